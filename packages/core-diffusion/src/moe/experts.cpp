// The experts' feed-forward networks, forward and backward. Forward the tokens are the lanes of every product, so that the
// weights' rows are read as they lie; backward the features are, so that nothing but the tokens' own rows is ever transposed.
#include <sys/mman.h>
#include <core_diffusion/moe.hpp>

#include <bit>
#include <cmath>
#include <cstring>

#include "checks.hpp"
#include "products.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using products::ceil_div;
using products::multiply;
using products::round_up;
using products::row_step;
using products::Scratch;
using std::int64_t;

constexpr int lanes = 16;
constexpr int64_t chunk = 512;   // tokens of an expert that go through the network together
constexpr int64_t grain = 4096;  // elements of one task of a pass over rows

/// A matrix anywhere in memory.
template <class T>
struct View {
  T* data;
  int64_t row, col;
  T& operator()(int64_t i, int64_t j) const { return data[i * row + j * col]; }
};

template <class T>
View<T> matrix(Tensor<T, 2> t) {
  return {t.data, t.stride[0], t.stride[1]};
}
template <class T>
View<T> matrix(Tensor<T, 3> t, int64_t e) {
  return {t.data + e * t.stride[0], t.stride[1], t.stride[2]};
}

void copy_row(const float* from, int64_t step, int64_t n, float* to) {
  if (step == 1)
    std::memcpy(to, from, sizeof(float) * static_cast<std::size_t>(n));
  else
    for (int64_t j = 0; j < n; ++j) to[j] = from[j * step];
}

/// Rows i.. of m as a strip: `rows` of them, n numbers from column k.
const float* strip_of(View<const float> m, int64_t count, int64_t i, int64_t k, int64_t n, float* room) {
  for (int64_t r = 0; r < std::min(products::tile().rows, count - i); ++r) copy_row(&m(i + r, k), m.col, n, room + r * row_step);
  return room;
}

/// Columns j.. of m as a panel: n rows from row k, zeros past the last column.
const float* panel_of(View<const float> m, int64_t columns, int64_t j, int64_t k, int64_t n, float* room) {
  const int64_t width = products::tile().lanes, used = std::min(width, columns - j);
  for (int64_t r = 0; r < n; ++r) {
    copy_row(&m(k + r, j), m.col, used, room + r * width);
    std::fill_n(room + r * width + used, width - used, 0.f);
  }
  return room;
}

// ---- the activation: x s(z(x)) with s the logistic function; z = x for SiLU, and for GELU the cubic of its tanh form

inline float logistic(float z) {
  const float x = std::min(std::max(-z, -87.f), 87.f);
  const float shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.f, 1.f}) p = p * r + c;
  return z != z ? z : 1 / (1 + p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127u) << 23));
}

enum class Activation { gelu_tanh, silu };
Activation activation_of(const char* name, const char* op) {
  if (!std::strcmp(name, "gelu_tanh")) return Activation::gelu_tanh;
  if (!std::strcmp(name, "silu")) return Activation::silu;
  throw core::Error("ValueError", std::string(op) + ": argument 'activation' must be 'gelu_tanh' or 'silu', got '" + name + "'");
}

constexpr float slope = 1.5957691f;  // 2 sqrt(2 / pi)
constexpr float cubic = 0.044715f;

/// out[j] = act(x[j]).
void activate(Activation kind, int64_t n, const float* x, float* out) {
  if (kind == Activation::silu)
    for (int64_t j = 0; j < n; ++j) out[j] = x[j] * logistic(x[j]);
  else
    for (int64_t j = 0; j < n; ++j) out[j] = x[j] * logistic(slope * (x[j] + cubic * x[j] * x[j] * x[j]));
}

constexpr int64_t together = 8;  // rows of one call of differentiate

/// Rows of panels [panel][row][lanes], and of `hidden`, of which each row is whole.
struct Rows {
  int64_t rows, panels, lanes, panel, hidden_row;
  const float *hidden, *gates;
  float *slopes, *values, *shares;
};

/// values = act(hidden), slopes = gates slopes act'(hidden), shares = the rows' sums of slopes values.
template <Activation kind>
void differentiate(const Rows* rows) {
  const Rows& p = *rows;
  float sums[together][lanes] = {};
  for (int64_t at = 0; at < p.panels * p.lanes; at += lanes)
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t place = at / p.lanes * p.panel + r * p.lanes + at % p.lanes;
      float v[lanes], grad[lanes], value[lanes], out[lanes];
      std::memcpy(v, p.hidden + r * p.hidden_row + at, sizeof v);
      std::memcpy(grad, p.slopes + place, sizeof grad);
      const float gate = p.gates[r];
      for (int j = 0; j < lanes; ++j) {
        const float square = v[j] * v[j];
        const float z = kind == Activation::silu ? v[j] : slope * (v[j] + cubic * v[j] * square);
        const float dz = kind == Activation::silu ? 1.f : slope * (1 + 3 * cubic * square);
        const float s = logistic(z);
        value[j] = v[j] * s;
        out[j] = gate * grad[j] * (s + value[j] * (1 - s) * dz);
        sums[r][j] += grad[j] * value[j];
      }
      std::memcpy(p.values + place, value, sizeof value);
      std::memcpy(p.slopes + place, out, sizeof out);
    }
  for (int64_t r = 0; r < p.rows; ++r) {
    float sum = 0;
    for (const float part : sums[r]) sum += part;
    p.shares[r] = sum;
  }
}

/// x[r][j] += by[r].
void add_to_rows(int64_t rows, int64_t width, const float* by, float* x) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < width; ++j) x[r * width + j] += by[r];
}

float dot(int64_t n, const float* a, const float* b) {
  float sums[lanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int j = 0; j < lanes; ++j) sums[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const float part : sums) sum += part;
  return sum;
}

/// sums[j] += the sum of x[r][j] over r.
void add_rows_up(int64_t rows, int64_t width, const float* x, float* sums) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < width; ++j) sums[j] += x[r * width + j];
}

template <class F>
void each_row(int64_t rows, int64_t columns, F&& f) {
  core::parallel_for(rows, std::max<int64_t>(1, grain / (columns + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) f(r);
  });
}

/// Asks for huge pages behind a large output, as numpy does for its own: fresh pages of 4 KiB cost a sixth of a backward pass.
template <class T>
void huge_pages([[maybe_unused]] const T& tensor, [[maybe_unused]] int64_t elements) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = 4096, least = 4 << 20;
  char* const data = reinterpret_cast<char*>(tensor.data);
  const std::uintptr_t skip = -reinterpret_cast<std::uintptr_t>(data) % page, bytes = static_cast<std::uintptr_t>(elements) * sizeof(float);
  if (tensor.contiguous() && bytes >= least) madvise(data + skip, (bytes - skip) / page * page, MADV_HUGEPAGE);
#endif
}

void check_route(const char* op, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets, int64_t T, int64_t E) {
  const auto bad = [&](const char* argument, const std::string& what) {
    throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must " + what);
  };
  check_offsets(op, offsets.shape[0], E);
  if (offsets(0) != 0) bad("offsets", "begin with 0, got " + std::to_string(offsets(0)));
  for (int64_t e = 0; e < E; ++e) {
    if (offsets(e + 1) < offsets(e) || offsets(e + 1) > tokens.shape[0])
      bad("offsets", "ascend to at most " + std::to_string(tokens.shape[0]) + ", got " + std::to_string(offsets(e + 1)) + " for expert " +
                         std::to_string(e));
    int64_t before = -1;
    for (int64_t a = offsets(e); a < offsets(e + 1); before = tokens(a++))
      if (tokens(a) <= before || tokens(a) >= T)
        bad("tokens", "ascend strictly within 0.." + std::to_string(T - 1) + " for each expert, got " + std::to_string(tokens(a)) + " at " +
                          std::to_string(a));
  }
}
}  // namespace

void expert_ffn(Tensor<const float, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets, Tensor<const float, 2> gates,
                Tensor<const float, 3> up, std::optional<Tensor<const float, 2>> up_bias, Tensor<const float, 3> down,
                std::optional<Tensor<const float, 2>> down_bias, const char* activation, std::optional<Tensor<float, 2>> hidden,
                Tensor<float, 2> out) {
  const int64_t N = x.shape[0], D = x.shape[1], E = up.shape[0], H = up.shape[1], L = products::tile().lanes;
  constexpr int64_t features = 128;  // of one task between the products
  const Activation kind = activation_of(activation, "expert_ffn");
  check_route("expert_ffn", tokens, offsets, N, E);
  if (hidden) check_hidden("expert_ffn", hidden->shape[0], tokens.shape[0]), huge_pages(*hidden, tokens.shape[0] * H);
  each_row(N, D, [&](int64_t t) {
    for (int64_t d = 0; d < D; ++d) out(t, d) = 0;
  });
  int64_t most = 0;
  for (int64_t e = 0; e < E; ++e) most = std::max(most, std::min(chunk, offsets(e + 1) - offsets(e)));
  const Scratch inner(round_up(most, L), H), outer(round_up(most, L), D), biases(1, H + D);
  float *const h = inner.get(), *const y = outer.get(), *const of_up = biases.get(), *const of_down = of_up + H;
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t j = 0; j < H; ++j) of_up[j] = up_bias ? (*up_bias)(e, j) : 0.f;
    for (int64_t d = 0; d < D; ++d) of_down[d] = down_bias ? (*down_bias)(e, d) : 0.f;
    for (int64_t first = offsets(e); first < offsets(e + 1); first += chunk) {
      const int64_t n = std::min(chunk, offsets(e + 1) - first), columns = round_up(n, L / 2), panels = ceil_div(n, L);
      const auto gathered = [&](int64_t j, int64_t k, int64_t depth, float* room) -> const float* {
        const Scratch rows(L, depth);
        const int64_t used = std::min(L, n - j);
        for (int64_t r = 0; r < used; ++r) copy_row(&x(tokens(first + j + r), k), x.stride[1], depth, rows.get() + r * depth);
        std::fill_n(rows.get() + used * depth, (L - used) * depth, 0.f);
        core::multiversion<&products::transpose>(L, depth, static_cast<const float*>(rows.get()), depth, room, L);
        return room;
      };
      const auto rows_of = [](View<const float> m, int64_t count) {
        return [=](int64_t i, int64_t k, int64_t depth, float* room) { return strip_of(m, count, i, k, depth, room); };
      };
      multiply<false, true>(H, columns, D, rows_of(matrix(up, e), H), gathered, {h, L, 1, H * L});
      const int64_t pieces = ceil_div(H, features);
      core::parallel_for(panels * pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t p = task / pieces, j = task % pieces * features, count = std::min(features, H - j);
          float* const values = h + (p * H + j) * L;
          if (up_bias) core::multiversion<&add_to_rows>(count, L, static_cast<const float*>(of_up + j), values);
          const int64_t row = first + p * L, used = std::min(L, n - p * L);
          if (hidden && hidden->stride[1] == 1)
            core::multiversion<&products::transpose>(count, used, static_cast<const float*>(values), L, &(*hidden)(row, j),
                                                     hidden->stride[0]);
          else if (hidden)
            for (int64_t i = 0; i < count; ++i)
              for (int64_t r = 0; r < used; ++r) (*hidden)(row + r, j + i) = values[i * L + r];
          core::multiversion<&activate>(kind, count * L, static_cast<const float*>(values), values);
        }
      });
      const auto as_it_lies = [&](int64_t j, int64_t k, int64_t, float*) -> const float* { return h + (j * H + k * L); };
      multiply<false, true>(D, columns, H, rows_of(matrix(down, e), D), as_it_lies, {y, L, 1, D * L});
      core::parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
        const Scratch rows(L, D);
        for (int64_t p = begin; p < end; ++p) {
          const int64_t used = std::min(L, n - p * L);
          core::multiversion<&products::transpose>(D, used, static_cast<const float*>(y + p * D * L), L, rows.get(), D);
          for (int64_t r = 0; r < used; ++r) {
            const int64_t t = tokens(first + p * L + r);
            const float g = gates(t, e), *from = rows.get() + r * D;
            for (int64_t d = 0; d < D; ++d) out(t, d) += g * (from[d] + of_down[d]);
          }
        }
      });
    }
  }
  if (hidden)
    for (int64_t a = offsets(E); a < tokens.shape[0]; ++a)
      for (int64_t j = 0; j < H; ++j) (*hidden)(a, j) = 0;
}

void expert_ffn_backward(Tensor<const float, 2> dout, Tensor<const float, 2> x, Tensor<const int64_t, 1> tokens,
                         Tensor<const int64_t, 1> offsets, Tensor<const float, 2> gates, Tensor<const float, 3> up,
                         Tensor<const float, 3> down, std::optional<Tensor<const float, 2>> down_bias, Tensor<const float, 2> hidden,
                         const char* activation, Tensor<float, 2> dx, Tensor<float, 2> dgates, Tensor<float, 3> dup,
                         std::optional<Tensor<float, 2>> dup_bias, Tensor<float, 3> ddown, std::optional<Tensor<float, 2>> ddown_bias) {
  const int64_t N = x.shape[0], D = x.shape[1], E = up.shape[0], H = up.shape[1];
  const auto [R, L] = products::tile();
  const Activation kind = activation_of(activation, "expert_ffn_backward");
  check_route("expert_ffn_backward", tokens, offsets, N, E);
  check_hidden("expert_ffn_backward", hidden.shape[0], tokens.shape[0]);
  huge_pages(dup, E * H * D);
  huge_pages(ddown, E * H * D);
  each_row(N, D + E, [&](int64_t t) {
    for (int64_t d = 0; d < D; ++d) dx(t, d) = 0;
    for (int64_t e = 0; e < E; ++e) dgates(t, e) = 0;
  });
  int64_t most = 0;
  for (int64_t e = 0; e < E; ++e) most = std::max(most, std::min(chunk, offsets(e + 1) - offsets(e)));
  const int64_t wide = round_up(H, L), narrow = round_up(D, L);
  const Scratch inputs(most, narrow), grads(most, D), values(most, wide), slopes(most, wide), outer(most, D), of_rows(2, most),
      sums(1, wide + 2 * D);
  float *const xs = inputs.get(), *const dy = grads.get(), *const a = values.get(), *const dh = slopes.get();
  float *const gate = of_rows.get(), *const share = gate + most, *const of_up = sums.get(), *const of_down = of_up + wide,
               *const bias = of_down + D;
  for (int64_t e = 0; e < E; ++e) {
    std::fill_n(of_up, wide + D, 0.f);
    for (int64_t d = 0; d < D && down_bias; ++d) bias[d] = (*down_bias)(e, d);
    if (offsets(e) == offsets(e + 1))
      for (int64_t j = 0; j < H; ++j)
        for (int64_t d = 0; d < D; ++d) dup(e, j, d) = ddown(e, d, j) = 0;
    for (int64_t first = offsets(e); first < offsets(e + 1); first += chunk) {
      const int64_t n = std::min(chunk, offsets(e + 1) - first);
      const bool add = first > offsets(e);
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        gate[r] = gates(t, e);
        copy_row(&dout(t, 0), dout.stride[1], D, dy + r * D);
        for (int64_t d = 0; d < D; d += L) {
          float* to = xs + d * n + r * L;
          const int64_t used = std::min(L, D - d);
          copy_row(&x(t, d), x.stride[1], used, to);
          std::fill_n(to + used, L - used, 0.f);
        }
      });

      const auto columns_of = [L = L](View<const float> m, int64_t count) {
        return [=](int64_t j, int64_t k, int64_t depth, float* room) { return panel_of(m, count, j, k, depth, room); };
      };
      const auto of_grads = [&](int64_t i, int64_t k, int64_t depth, float* room) { return strip_of({dy, D, 1}, n, i, k, depth, room); };
      multiply<false, false>(n, wide, D, of_grads, columns_of(matrix(down, e), H), {dh, L, 1, n * L});

      core::parallel_for(ceil_div(n, together), 1, [&](int64_t begin, int64_t end) {
        const bool whole = hidden.stride[1] == 1 && wide == H;
        const Scratch padded(whole ? 0 : together, wide);
        for (int64_t r = begin * together; r < std::min(n, end * together); r += together) {
          const int64_t count = std::min(together, n - r);
          for (int64_t i = 0; i < count && !whole; ++i) {
            copy_row(&hidden(first + r + i, 0), hidden.stride[1], H, padded.get() + i * wide);
            std::fill_n(padded.get() + i * wide + H, wide - H, 0.f);
          }
          const Rows rows{
              count,    wide / L,   L,         n * L,    whole ? hidden.stride[0] : wide, whole ? &hidden(first + r, 0) : padded.get(),
              gate + r, dh + r * L, a + r * L, share + r};
          kind == Activation::silu ? core::multiversion<&differentiate<Activation::silu>>(&rows)
                                   : core::multiversion<&differentiate<Activation::gelu_tanh>>(&rows);
          for (int64_t i = r; i < r + count; ++i) {
            const float* row = dy + i * D;
            dgates(tokens(first + i), e) = share[i] + (down_bias ? core::multiversion<&dot>(D, row, static_cast<const float*>(bias)) : 0.f);
            for (int64_t d = 0; d < D; ++d) dy[i * D + d] *= gate[i];
          }
        }
      });
      if (ddown_bias) core::multiversion<&add_rows_up>(n, D, static_cast<const float*>(dy), of_down);
      for (int64_t j = 0; j < wide && dup_bias; j += L)
        core::multiversion<&add_rows_up>(n, L, static_cast<const float*>(dh + j * n), of_up + j);

      // In panels a row's neighbours lie beside each other, so that a strip by depth is a copy.
      const auto slopes_by_depth = [&, R = R, L = L](int64_t i, int64_t, int64_t depth, float* room) -> const float* {
        for (int64_t r = 0, used; r < std::min(R, H - i); r += used) {
          used = std::min({R - r, H - i - r, L - (i + r) % L});
          const float* from = dh + (i + r) / L * L * n + (i + r) % L;
          for (int64_t k = 0; k < depth; ++k)
            for (int64_t c = 0; c < used; ++c) room[k * R + r + c] = from[k * L + c];
        }
        return room;
      };
      const auto grads_by_depth = [&, R = R](int64_t i, int64_t, int64_t depth, float* room) -> const float* {
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t r = 0; r < std::min(R, D - i); ++r) room[k * R + r] = dy[k * D + i + r];
        return room;
      };
      const auto panels_in = [n](const float* m) { return [=](int64_t j, int64_t, int64_t, float*) { return m + j * n; }; };
      const View<float> of_dup = matrix(dup, e), of_ddown = matrix(ddown, e);
      multiply<true, true>(H, D, n, slopes_by_depth, panels_in(xs), {of_dup.data, of_dup.row, of_dup.col, L * of_dup.col}, add);
      multiply<true, false>(D, H, n, grads_by_depth, panels_in(a), {of_ddown.data, of_ddown.row, of_ddown.col, L * of_ddown.col}, add);

      const auto of_slopes = [&, R = R, L = L](int64_t i, int64_t k, int64_t depth, float* room) -> const float* {
        for (int64_t r = 0; r < std::min(R, n - i); ++r)
          for (int64_t j = 0; j < depth; j += L)
            std::memcpy(room + r * row_step + j, dh + (k + j) * n + (i + r) * L,
                        sizeof(float) * static_cast<std::size_t>(std::min(L, depth - j)));
        return room;
      };
      multiply<false, false>(n, D, H, of_slopes, columns_of(matrix(up, e), D), {outer.get(), D, 1, L});
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        for (int64_t d = 0; d < D; ++d) dx(t, d) += outer.get()[r * D + d];
      });
    }
    for (int64_t j = 0; j < H && dup_bias; ++j) (*dup_bias)(e, j) = of_up[j];
    for (int64_t d = 0; d < D && ddown_bias; ++d) (*ddown_bias)(e, d) = of_down[d];
  }
}

}  // namespace core_diffusion
