// The memory of M3 from C++: attention against double, its gradient against differences, the greedy rule by hand.
#include <core/test.hpp>
#include <core_splatting/memory.hpp>

#include <random>
#include <vector>

using namespace core_splatting;

namespace {

std::vector<float> noise(std::size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

constexpr std::int64_t pixels = 61, length = 5, memories = 37, width = 19;

core::Tensor<const float, 2> in(const std::vector<float>& x, std::int64_t rows, std::int64_t columns) {
  return core::tensor(x.data(), rows, columns);
}

/// sum of out * gain in double.
double loss(const std::vector<float>& q, const std::vector<float>& k, const std::vector<float>& v, const std::vector<float>& gain) {
  double total = 0;
  for (std::int64_t p = 0; p < pixels; ++p) {
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t t = 0; t < memories; ++t) {
      double score = 0;
      for (std::int64_t l = 0; l < length; ++l)
        score += double{q[static_cast<std::size_t>(p * length + l)]} * double{k[static_cast<std::size_t>(t * length + l)]};
      weights.push_back(std::exp(score));
      sum += weights.back();
    }
    for (std::int64_t t = 0; t < memories; ++t)
      for (std::int64_t d = 0; d < width; ++d)
        total += weights[static_cast<std::size_t>(t)] / sum * double{v[static_cast<std::size_t>(t * width + d)]} *
                 double{gain[static_cast<std::size_t>(p * width + d)]};
  }
  return total;
}

}  // namespace

CORE_TEST(attention_and_its_gradient) {
  std::vector<float> q = noise(pixels * length, 1), k = noise(memories * length, 2), v = noise(memories * width, 3);
  const std::vector<float> gain = noise(pixels * width, 4);
  std::vector<float> out(pixels * width), log_sums(pixels), v_q(q.size()), v_k(k.size()), v_v(v.size());
  const auto tq = in(q, pixels, length), tk = in(k, memories, length);
  const auto tv = in(v, memories, width);
  memory_attention(tq, tk, tv, core::tensor(out.data(), pixels, width), core::tensor(log_sums.data(), pixels));
  double total = 0;
  for (std::size_t i = 0; i < out.size(); ++i) total += double{out[i]} * double{gain[i]};
  CHECK_NEAR(total, loss(q, k, v, gain), 1e-3);
  memory_attention_backward(tq, tk, tv, in(out, pixels, width), core::tensor(static_cast<const float*>(log_sums.data()), pixels),
                            in(gain, pixels, width), core::tensor(v_q.data(), pixels, length), core::tensor(v_k.data(), memories, length),
                            core::tensor(v_v.data(), memories, width));
  struct {
    std::vector<float>*value, *slope;
  } const parts[] = {{&q, &v_q}, {&k, &v_k}, {&v, &v_v}};
  for (const auto& [value, slope] : parts)
    for (const std::size_t i : {std::size_t{0}, value->size() / 2, value->size() - 1}) {
      const float kept = (*value)[i];
      (*value)[i] = kept + 1e-2f;
      const double above = loss(q, k, v, gain);
      (*value)[i] = kept - 1e-2f;
      const double below = loss(q, k, v, gain);
      (*value)[i] = kept;
      CHECK_NEAR((above - below) / 2e-2, (*slope)[i], 2e-3 * (1 + std::abs(double{(*slope)[i]})));
    }
}

CORE_TEST(components) {
  const float rows[] = {1, 0, 0.98f, 0.2f, 0.9f, 0.44f, 0, 2, 0, 0};
  bool selected[5];
  principal_components(core::tensor(static_cast<const float*>(rows), 5, 2), 0.95, core::tensor(selected, 5));
  // The second is taken by the first; the third is near the second; the last is zero.
  CHECK(selected[0] && !selected[1] && !selected[2] && selected[3] && !selected[4]);
  CHECK_THROWS(principal_components(core::tensor(static_cast<const float*>(rows), 5, 2), 0.0, core::tensor(selected, 5)), "ValueError");
}
