#include <cmath>
#include <core/test.hpp>
#include <core_llm_efficiency/state_space.hpp>
#include <random>
#include <vector>

using namespace core_llm_efficiency;

namespace {
using Floats = std::vector<float>;

Floats random_floats(std::int64_t n, unsigned seed, bool positive = false) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Floats x(static_cast<std::size_t>(n));
  for (float& v : x) v = positive ? std::abs(normal(rng)) * 0.2f : normal(rng);
  return x;
}

template <class... S>
auto in(const Floats& x, S... shape) {
  return core::tensor(x.data(), static_cast<std::int64_t>(shape)...);
}
template <class... S>
auto to(Floats& x, S... shape) {
  return core::tensor(x.data(), static_cast<std::int64_t>(shape)...);
}

/// x -> sum w x, for gradients by central differences.
double weighted(const Floats& x, const Floats& w) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(w[i]);
  return sum;
}

struct Chunked {
  std::int64_t b = 2, l = 131, h = 2, g = 1, p = 5, n = 7;
  Floats x = random_floats(b * l * h * p, 1), dt = random_floats(b * l * h, 2, true), A = random_floats(h, 3, true),
         B = random_floats(b * l * g * n, 4), C = random_floats(b * l * g * n, 5), initial = random_floats(b * h * p * n, 6);
  Chunked() {
    for (float& a : A) a = -5 * a - 0.1f;
  }
  void run(Floats& out, Floats& last, std::int64_t begin, std::int64_t end, const Floats& start) const {
    auto cut = [&](auto t) {
      t.data += begin * t.stride[1];
      t.shape[1] = end - begin;
      return t;
    };
    ssd_scan(cut(in(x, b, l, h, p)), cut(in(dt, b, l, h)), in(A, h), cut(in(B, b, l, g, n)), cut(in(C, b, l, g, n)), in(start, b, h, p, n),
             {}, cut(to(out, b, l, h, p)), to(last, b, h, p, n));
  }
};
}  // namespace

CORE_TEST(chunked_scan_equals_its_recurrence) {
  const Chunked c;
  Floats out(c.x.size()), last(c.initial.size());
  c.run(out, last, 0, c.l, c.initial);
  double worst = 0;
  for (std::int64_t b = 0; b < c.b; ++b)
    for (std::int64_t h = 0; h < c.h; ++h)
      for (std::int64_t p = 0; p < c.p; ++p) {
        std::vector<double> state;
        for (std::int64_t n = 0; n < c.n; ++n) state.push_back(static_cast<double>(in(c.initial, c.b, c.h, c.p, c.n)(b, h, p, n)));
        for (std::int64_t t = 0; t < c.l; ++t) {
          const double step = static_cast<double>(in(c.dt, c.b, c.l, c.h)(b, t, h));
          const double decay = std::exp(step * static_cast<double>(c.A[static_cast<std::size_t>(h)]));
          double y = 0;
          for (std::int64_t n = 0; n < c.n; ++n) {
            double& s = state[static_cast<std::size_t>(n)];
            s = decay * s + step * static_cast<double>(in(c.x, c.b, c.l, c.h, c.p)(b, t, h, p)) *
                                static_cast<double>(in(c.B, c.b, c.l, c.g, c.n)(b, t, 0, n));
            y += s * static_cast<double>(in(c.C, c.b, c.l, c.g, c.n)(b, t, 0, n));
          }
          worst = std::max(worst, std::abs(y - static_cast<double>(to(out, c.b, c.l, c.h, c.p)(b, t, h, p))));
        }
      }
  CHECK(worst < 1e-4);
}

CORE_TEST(chunked_scan_goes_on_from_its_last_state) {
  const Chunked c;
  Floats whole(c.x.size()), parts(c.x.size()), last(c.initial.size()), middle(c.initial.size()), end(c.initial.size());
  c.run(whole, last, 0, c.l, c.initial);
  c.run(parts, middle, 0, 70, c.initial);
  c.run(parts, end, 70, c.l, middle);
  for (std::size_t i = 0; i < whole.size(); ++i) CHECK_NEAR(whole[i], parts[i], 1e-4);
  for (std::size_t i = 0; i < last.size(); ++i) CHECK_NEAR(last[i], end[i], 1e-4);
}

CORE_TEST(chunked_scan_gradient_of_A_is_that_of_differences) {
  Chunked c;
  const Floats w = random_floats(c.b * c.l * c.h * c.p, 9);
  Floats gx(c.x.size()), gdt(c.dt.size()), gA(c.A.size()), gB(c.B.size()), gC(c.C.size()), gi(c.initial.size());
  ssd_scan_backward(in(c.x, c.b, c.l, c.h, c.p), in(c.dt, c.b, c.l, c.h), in(c.A, c.h), in(c.B, c.b, c.l, c.g, c.n),
                    in(c.C, c.b, c.l, c.g, c.n), in(c.initial, c.b, c.h, c.p, c.n), {}, in(w, c.b, c.l, c.h, c.p), {},
                    to(gx, c.b, c.l, c.h, c.p), to(gdt, c.b, c.l, c.h), to(gA, c.h), to(gB, c.b, c.l, c.g, c.n), to(gC, c.b, c.l, c.g, c.n),
                    to(gi, c.b, c.h, c.p, c.n));
  for (std::size_t h = 0; h < c.A.size(); ++h) {
    const float kept = c.A[h], nudge = 1e-2f;
    Floats up(c.x.size()), down(c.x.size()), last(c.initial.size());
    c.A[h] = kept + nudge;
    c.run(up, last, 0, c.l, c.initial);
    c.A[h] = kept - nudge;
    c.run(down, last, 0, c.l, c.initial);
    c.A[h] = kept;
    const double want = (weighted(up, w) - weighted(down, w)) / (2 * static_cast<double>(nudge));
    CHECK_NEAR(static_cast<double>(gA[h]), want, 1e-2 * std::max(1.0, std::abs(want)));
  }
}

CORE_TEST(empty_scans) {
  Floats none, A(3, -1.f), last(2 * 3 * 4, 7.f), start(2 * 3 * 4, 2.f);
  selective_scan(in(none, 2, 3, 0), in(none, 2, 3, 0), in(start, 3, 4), in(none, 2, 1, 4, 0), in(none, 2, 1, 4, 0), in(start, 2, 3, 4),
                 to(none, 2, 3, 0), to(last, 2, 3, 4));
  for (float x : last) CHECK(x == 2.f);
  ssd_scan(in(none, 1, 0, 3, 2), in(none, 1, 0, 3), in(A, 3), in(none, 1, 0, 1, 4), in(none, 1, 0, 1, 4), {}, {}, to(none, 1, 0, 3, 2),
           to(last, 1, 3, 2, 4));
  for (float x : last) CHECK(x == 0.f);
}

CORE_TEST(groups_must_divide) {
  Floats x(12), A(6), B(8), last(12), out(12);
  CHECK_THROWS(selective_scan(in(x, 1, 3, 4), in(x, 1, 3, 4), in(A, 3, 1), in(B, 1, 2, 1, 4), in(B, 1, 2, 1, 4), {}, to(out, 1, 3, 4),
                              to(last, 1, 3, 1)),
               "ValueError");
}
