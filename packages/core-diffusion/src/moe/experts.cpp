// The experts' feed-forward networks, forward and backward, on gathered rows: every product is a blocked matrix
// product over packed panels, so that strides, transposition and the gathering of tokens cost one pass each.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_diffusion/moe.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "checks.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int lanes = 16;
constexpr int64_t tile_rows = 12, block_rows = 48, depth_piece = 256;
constexpr int64_t chunk = 1024;  // tokens of an expert that go through the network together
constexpr int64_t grain = 4096;  // elements of one task of a pass over rows

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Uninitialised scratch.
struct Scratch {
  Scratch(int64_t rows, int64_t columns)
      : data(new float[static_cast<std::size_t>(core::checked_mul(rows, columns, "expert_ffn: scratch"))]) {}
  std::unique_ptr<float[]> data;
  float* get() const { return data.get(); }
};

/// A matrix anywhere in memory.
template <class T>
struct View {
  T* data;
  int64_t row, col;
  T& operator()(int64_t i, int64_t j) const { return data[i * row + j * col]; }
  View transposed() const { return {data, col, row}; }
  View from(int64_t i) const { return {data + i * row, row, col}; }
};

template <class T>
View<T> matrix(Tensor<T, 2> t) {
  return {t.data, t.stride[0], t.stride[1]};
}
template <class T>
View<T> matrix(Tensor<T, 3> t, int64_t e) {
  return {t.data + e * t.stride[0], t.stride[1], t.stride[2]};
}

/// Sixteen columns of b, [depth][lanes], zero past the last one.
void pack_panel(View<const float> b, int64_t depth, int64_t first, int64_t width, float* out) {
  if (width == lanes && b.col == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < lanes; ++j) out[k * lanes + j] = b.data[k * b.row + first + j];
    return;
  }
  if (width < lanes) std::fill_n(out, depth * lanes, 0.f);
  for (int64_t j = 0; j < width; ++j)
    for (int64_t k = 0; k < depth; ++k) out[k * lanes + j] = b(k, first + j);
}

/// The packed right-hand side of products.
struct Packed {
  int64_t depth, columns;
  Scratch data;
  Packed(int64_t depth, int64_t columns) : depth(depth), columns(columns), data(depth, round_up(columns, lanes)) {}
  void fill(View<const float> b, int64_t depth_now) {
    depth = depth_now;
    core::parallel_for(ceil_div(columns, lanes), std::max<int64_t>(1, grain / (depth * lanes + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        pack_panel(b, depth, p * lanes, std::min<int64_t>(lanes, columns - p * lanes), data.get() + p * lanes * depth);
    });
  }
};

struct Product {
  View<const float> a;
  const float* b;
  View<float> c;
  int64_t rows, columns, depth;
  bool add;
};

/// c += or = a b on R rows by `lanes` columns. The loop over lanes is the outermost one and is what the compiler
/// vectorises, so that the accumulators of all rows stay in registers.
template <int R>
inline void tile(int64_t depth, const float* a, int64_t a_row, const float* b, View<float> c, int64_t rows, int64_t width, bool add) {
  float sums[R][lanes];
  for (int j = 0; j < lanes; ++j) {
    float sum[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sum[i] = 0;
    int64_t k = 0;
    do {  // a test before the first pass would keep the compiler from vectorising the loop over j
      const float x = b[k * lanes + j];
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) sum[i] += a[i * a_row + k] * x;
    } while (++k < depth);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sums[i][j] = sum[i];
  }
  if (c.col == 1 && width == lanes) {
    for (int64_t i = 0; i < rows; ++i)
      for (int j = 0; j < lanes; ++j) c.data[i * c.row + j] = (add ? c.data[i * c.row + j] : 0.f) + sums[i][j];
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) c(i, j) = (add ? c(i, j) : 0.f) + sums[i][j];
}

/// Rows [first, first + block_rows) of a product. work: room for them, packed.
void block(const Product* product, int64_t first, float* work) {
  const Product& p = *product;
  const int64_t rows = std::min(block_rows, p.rows - first), padded = round_up(rows, 4);
  constexpr int64_t row_step = depth_piece + lanes;
  for (int64_t at = 0; at < p.depth; at += depth_piece) {
    const int64_t depth = std::min(depth_piece, p.depth - at);
    if (p.a.col == 1)
      for (int64_t i = 0; i < rows; ++i)
        std::memcpy(work + i * row_step, &p.a(first + i, at), static_cast<std::size_t>(depth) * sizeof(float));
    else
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < rows; ++i) work[i * row_step + k] = p.a(first + i, at + k);
    for (int64_t i = rows; i < padded; ++i) std::fill_n(work + i * row_step, depth, 0.f);
    for (int64_t j = 0; j < p.columns; j += lanes) {
      const float* b = p.b + j * p.depth + at * lanes;
      const int64_t width = std::min<int64_t>(lanes, p.columns - j);
      for (int64_t i = 0; i < rows; i += tile_rows) {
        const View<float> c{p.c.data + (first + i) * p.c.row + j * p.c.col, p.c.row, p.c.col};
        const int64_t left = std::min(tile_rows, rows - i);
        const bool add = p.add || at > 0;
        const float* a = work + i * row_step;
        if (left > 8)
          tile<12>(depth, a, row_step, b, c, left, width, add);
        else if (left > 4)
          tile<8>(depth, a, row_step, b, c, left, width, add);
        else
          tile<4>(depth, a, row_step, b, c, left, width, add);
      }
    }
  }
}

/// c = a b, or c += a b. No depth leaves the sum 0.
void multiply(View<const float> a, const Packed& b, View<float> c, int64_t rows, bool add = false) {
  if (b.depth == 0) {
    for (int64_t i = 0; i < rows && !add; ++i)
      for (int64_t j = 0; j < b.columns; ++j) c(i, j) = 0;
    return;
  }
  const Product product{a, b.data.get(), c, rows, b.columns, b.depth, add};
  core::parallel_for(ceil_div(rows, block_rows), 1, [&](int64_t begin, int64_t end) {
    const Scratch work(block_rows, depth_piece + lanes);
    for (int64_t i = begin; i < end; ++i) core::multiversion<&block>(&product, i * block_rows, work.get());
  });
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

/// act[j] = act(x[j]), dx[j] = gate d[j] act'(x[j]); returns the sum of d[j] act(x[j]). d and dx may be one.
template <Activation kind>
float differentiate(int64_t n, const float* x, const float* d, float gate, float* act, float* dx) {
  float sums[lanes] = {};
  for (int64_t first = 0; first < n; first += lanes) {
    const int64_t width = std::min<int64_t>(lanes, n - first);
    float v[lanes] = {}, grad[lanes] = {}, value[lanes], out[lanes];
    const auto copy = [width](const float* from, float* to) {
      if (width == lanes)
        std::memcpy(to, from, sizeof(float) * lanes);
      else
        std::copy_n(from, width, to);
    };
    copy(x + first, v);
    copy(d + first, grad);
    for (int j = 0; j < lanes; ++j) {
      const float square = v[j] * v[j];
      const float z = kind == Activation::silu ? v[j] : slope * (v[j] + cubic * v[j] * square);
      const float dz = kind == Activation::silu ? 1.f : slope * (1 + 3 * cubic * square);
      const float s = logistic(z);
      value[j] = v[j] * s;
      out[j] = gate * grad[j] * (s + value[j] * (1 - s) * dz);
      sums[j] += grad[j] * value[j];
    }
    copy(value, act + first);
    copy(out, dx + first);
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

float differentiate_row(Activation kind, int64_t n, const float* x, const float* d, float gate, float* act, float* dx) {
  return kind == Activation::silu ? core::multiversion<&differentiate<Activation::silu>>(n, x, d, gate, act, dx)
                                  : core::multiversion<&differentiate<Activation::gelu_tanh>>(n, x, d, gate, act, dx);
}

template <class F>
void each_row(int64_t rows, int64_t columns, F&& f) {
  core::parallel_for(rows, std::max<int64_t>(1, grain / (columns + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) f(r);
  });
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
  const int64_t N = x.shape[0], D = x.shape[1], E = up.shape[0], H = up.shape[1];
  const Activation kind = activation_of(activation, "expert_ffn");
  check_route("expert_ffn", tokens, offsets, N, E);
  if (hidden) check_hidden("expert_ffn", hidden->shape[0], tokens.shape[0]);
  each_row(N, D, [&](int64_t t) {
    for (int64_t d = 0; d < D; ++d) out(t, d) = 0;
  });
  int64_t most = 0;
  for (int64_t e = 0; e < E; ++e) most = std::max(most, std::min(chunk, offsets(e + 1) - offsets(e)));
  const Scratch rows(most, D), inner(most, H), outer(most, D);
  Packed packed_up(D, H), packed_down(H, D);
  for (int64_t e = 0; e < E; ++e) {
    if (offsets(e) == offsets(e + 1)) continue;
    packed_up.fill(matrix(up, e).transposed(), D);
    packed_down.fill(matrix(down, e).transposed(), H);
    for (int64_t first = offsets(e); first < offsets(e + 1); first += chunk) {
      const int64_t n = std::min(chunk, offsets(e + 1) - first);
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        for (int64_t d = 0; d < D; ++d) rows.get()[r * D + d] = x(t, d);
      });
      multiply({rows.get(), D, 1}, packed_up, View<float>{inner.get(), H, 1}, n);
      each_row(n, H, [&](int64_t r) {
        float* h = inner.get() + r * H;
        if (up_bias)
          for (int64_t j = 0; j < H; ++j) h[j] += (*up_bias)(e, j);
        if (hidden)
          for (int64_t j = 0; j < H; ++j) (*hidden)(first + r, j) = h[j];
        core::multiversion<&activate>(kind, H, static_cast<const float*>(h), h);
      });
      multiply({inner.get(), H, 1}, packed_down, View<float>{outer.get(), D, 1}, n);
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        const float g = gates(t, e), *y = outer.get() + r * D;
        for (int64_t d = 0; d < D; ++d) out(t, d) += g * (y[d] + (down_bias ? (*down_bias)(e, d) : 0.f));
      });
    }
  }
  if (hidden)
    for (int64_t a = offsets(E); a < tokens.shape[0]; ++a)
      for (int64_t j = 0; j < H; ++j) (*hidden)(a, j) = 0;
}

void expert_activation_backward(Tensor<const float, 2> dvalues, Tensor<const float, 2> hidden, Tensor<const float, 1> gates,
                                const char* activation, Tensor<float, 2> values, Tensor<float, 2> dhidden, Tensor<float, 1> dgates) {
  const int64_t H = hidden.shape[1];
  const Activation kind = activation_of(activation, "expert_activation_backward");
  const bool dense = dvalues.stride[1] == 1 && hidden.stride[1] == 1 && values.stride[1] == 1 && dhidden.stride[1] == 1;
  core::parallel_for(hidden.shape[0], std::max<int64_t>(1, grain / (H + 1)), [&](int64_t begin, int64_t end) {
    const Scratch work(dense ? 0 : 4, H);
    float *h = work.get(), *d = h + H, *a = d + H, *dh = a + H;
    for (int64_t r = begin; r < end; ++r) {
      if (dense) {
        dgates(r) = differentiate_row(kind, H, &hidden(r, 0), &dvalues(r, 0), gates(r), &values(r, 0), &dhidden(r, 0));
        continue;
      }
      for (int64_t j = 0; j < H; ++j) h[j] = hidden(r, j), d[j] = dvalues(r, j);
      dgates(r) = differentiate_row(kind, H, h, d, gates(r), a, dh);
      for (int64_t j = 0; j < H; ++j) values(r, j) = a[j], dhidden(r, j) = dh[j];
    }
  });
}

void expert_ffn_backward(Tensor<const float, 2> dout, Tensor<const float, 2> x, Tensor<const int64_t, 1> tokens,
                         Tensor<const int64_t, 1> offsets, Tensor<const float, 2> gates, Tensor<const float, 3> up,
                         Tensor<const float, 3> down, std::optional<Tensor<const float, 2>> down_bias, Tensor<const float, 2> hidden,
                         const char* activation, Tensor<float, 2> dx, Tensor<float, 2> dgates, Tensor<float, 3> dup,
                         std::optional<Tensor<float, 2>> dup_bias, Tensor<float, 3> ddown, std::optional<Tensor<float, 2>> ddown_bias) {
  const int64_t N = x.shape[0], D = x.shape[1], E = up.shape[0], H = up.shape[1];
  const Activation kind = activation_of(activation, "expert_ffn_backward");
  check_route("expert_ffn_backward", tokens, offsets, N, E);
  check_hidden("expert_ffn_backward", hidden.shape[0], tokens.shape[0]);
  each_row(N, D + E, [&](int64_t t) {
    for (int64_t d = 0; d < D; ++d) dx(t, d) = 0;
    for (int64_t e = 0; e < E; ++e) dgates(t, e) = 0;
  });
  int64_t most = 0;
  for (int64_t e = 0; e < E; ++e) most = std::max(most, std::min(chunk, offsets(e + 1) - offsets(e)));
  const Scratch rows(most, D), grad(most, D), values(most, H), act(most, H), inner(most, H), outer(most, D);
  Packed packed_up(H, D), packed_down(D, H), packed_rows(most, D), packed_act(most, H);
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t j = 0; j < H && dup_bias; ++j) (*dup_bias)(e, j) = 0;
    for (int64_t d = 0; d < D && ddown_bias; ++d) (*ddown_bias)(e, d) = 0;
    if (offsets(e) == offsets(e + 1)) {
      for (int64_t j = 0; j < H; ++j)
        for (int64_t d = 0; d < D; ++d) dup(e, j, d) = ddown(e, d, j) = 0;
      continue;
    }
    packed_up.fill(matrix(up, e), H);
    packed_down.fill(matrix(down, e), D);
    for (int64_t first = offsets(e); first < offsets(e + 1); first += chunk) {
      const int64_t n = std::min(chunk, offsets(e + 1) - first);
      const bool add = first > offsets(e);
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        for (int64_t d = 0; d < D; ++d) rows.get()[r * D + d] = x(t, d), grad.get()[r * D + d] = dout(t, d);
      });
      multiply({grad.get(), D, 1}, packed_down, View<float>{inner.get(), H, 1}, n);
      each_row(n, H + D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        const float g = gates(t, e);
        float *h = values.get() + r * H, *a = act.get() + r * H, *d_h = inner.get() + r * H, *dy = grad.get() + r * D;
        for (int64_t j = 0; j < H; ++j) h[j] = hidden(first + r, j);
        float share = differentiate_row(kind, H, h, d_h, g, a, d_h);
        for (int64_t d = 0; d < D && down_bias; ++d) share += dy[d] * (*down_bias)(e, d);
        dgates(t, e) = share;
        for (int64_t d = 0; d < D; ++d) dy[d] *= g;
      });
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t j = 0; j < H && dup_bias; ++j) (*dup_bias)(e, j) += inner.get()[r * H + j];
        for (int64_t d = 0; d < D && ddown_bias; ++d) (*ddown_bias)(e, d) += grad.get()[r * D + d];
      }
      packed_rows.fill({rows.get(), D, 1}, n);
      packed_act.fill({act.get(), H, 1}, n);
      multiply(View<const float>{inner.get(), 1, H}, packed_rows, matrix(dup, e), H, add);
      multiply(View<const float>{grad.get(), 1, D}, packed_act, matrix(ddown, e), D, add);
      multiply({inner.get(), H, 1}, packed_up, View<float>{outer.get(), D, 1}, n);
      each_row(n, D, [&](int64_t r) {
        const int64_t t = tokens(first + r);
        for (int64_t d = 0; d < D; ++d) dx(t, d) += outer.get()[r * D + d];
      });
    }
  }
}

}  // namespace core_diffusion
