// The register tile, the packing and the exponential that the XAttention kernels of the CPU share.
// Panels hold `lanes` columns side by side, [depth][lanes]. The tile's loop over lanes is the outermost one and is
// what the compiler vectorises, so that the accumulators of all rows stay in registers.
#pragma once
#include <core/exp.hpp>
#include <core/parallel.hpp>
#include <core/tensor.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "checks.hpp"

namespace core_llm_efficiency {
constexpr int lanes = 16;
constexpr std::int64_t rows_of_tile = 12;
constexpr std::int64_t deepest = 256, row_step = deepest + 16;  // off a power of two, for the cache's sake
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// Uninitialised scratch.
struct Scratch {
  explicit Scratch(std::int64_t n) : data(new float[static_cast<std::size_t>(n)]) {}
  std::unique_ptr<float[]> data;
  float* get() const { return data.get(); }
};

/// Rows of the tile that starts with `left` rows to go: 12, or what is left rounded up to 4.
inline int tile_rows(std::int64_t left) { return left >= rows_of_tile ? 12 : left > 8 ? 12 : left > 4 ? 8 : 4; }

/// Calls f.template operator()<R>() for R = 4, 8 or 12 rows.
template <class F>
inline void with_rows(int rows, F&& f) {
  switch (rows) {
    case 4: return f.template operator()<4>();
    case 8: return f.template operator()<8>();
    default: return f.template operator()<12>();
  }
}

/// As tile_rows and with_rows, with tiles of 24 rows before.
constexpr std::int64_t rows_of_tall_tile = 24;
inline int tall_rows(std::int64_t left) { return left >= rows_of_tall_tile ? 24 : tile_rows(left); }
template <class F>
inline void with_tall_rows(int rows, F&& f) {
  if (rows == rows_of_tall_tile) return f.template operator()<24>();
  with_rows(rows, f);
}

/// c[i][j] = keep[i] c[i][j] + sum_k a[i][k] b[k][j], i < R, j < lanes, 1 <= depth <= deepest, rows of a `row_step` apart.
/// The sums go through a local array, which the compiler knows to be apart from a and b.
template <int R>
inline void multiply(std::int64_t depth, const float* a, const float* b, float* c, std::int64_t c_row, const float* keep) {
  float sums[R][lanes];
  for (int j = 0; j < lanes; ++j) {
    float sum[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sum[i] = 0;
    std::int64_t k = 0;
    do {  // a test before the first pass would keep the compiler from vectorising the loop over j
      const float x = b[k * lanes + j];
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) sum[i] += a[i * row_step + k] * x;
    } while (++k < depth);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sums[i][j] = sum[i];
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < lanes; ++j) c[i * c_row + j] = keep[i] * c[i * c_row + j] + sums[i][j];
}

/// c = a b of any depth: a is cut into pieces of `deepest` columns that lie `piece` floats apart; b is [depth][lanes].
template <int R>
inline void multiply_deep(std::int64_t depth, const float* a, std::int64_t piece, const float* b, float* c, std::int64_t c_row) {
  constexpr float ones[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < lanes; ++j) c[i * c_row + j] = 0;
  for (std::int64_t at = 0; at < depth; at += deepest, a += piece)
    multiply<R>(std::min(deepest, depth - at), a, b + at * lanes, c, c_row, ones);
}

/// c[i][p 16 + j] = (Add ? keep[i] c : 0) + sum_k a[i][k] b_p[k][j], i < R, for P panels b_p that lie b_step floats apart.
template <int R, int P, bool Add>
inline void multiply_block(std::int64_t depth, const float* a, const float* b, std::int64_t b_step, float* c, std::int64_t c_row,
                           const float* keep) {
  float sums[P][R][lanes];
  for (int j = 0; j < lanes; ++j) {
    float sum[P][R];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) sum[p][i] = 0;
    std::int64_t k = 0;
    do {
      float x[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) x[p] = b[p * b_step + k * lanes + j];
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sum[p][i] += a[i * row_step + k] * x[p];
    } while (++k < depth);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) sums[p][i][j] = sum[p][i];
  }
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < lanes; ++j) c[i * c_row + p * lanes + j] = (Add ? keep[i] * c[i * c_row + p * lanes + j] : 0.f) + sums[p][i][j];
}

/// multiply_block over any number of panels: two of them at a time, so that a loaded element of b meets H rows and one of
/// a two panels. H is what the registers hold, 12 rows if they are `wide` (32 of 16 lanes), else 6.
template <int R, bool Add>
inline void multiply_panels(bool wide, std::int64_t panels, std::int64_t depth, const float* a, const float* b, std::int64_t b_step,
                            float* c, std::int64_t c_row, const float* keep) {
  constexpr int tall = R % 12 ? R : 12, low = R % 6 ? 4 : 6;
  for (std::int64_t p = 0; p < panels; p += 2, b += 2 * b_step, c += 2 * lanes) {
    if (p + 1 == panels)
      for (int i = 0; i < R; i += tall) multiply_block<tall, 1, Add>(depth, a + i * row_step, b, b_step, c + i * c_row, c_row, keep + i);
    else if (wide)
      for (int i = 0; i < R; i += tall) multiply_block<tall, 2, Add>(depth, a + i * row_step, b, b_step, c + i * c_row, c_row, keep + i);
    else
      for (int i = 0; i < R; i += low) multiply_block<low, 2, Add>(depth, a + i * row_step, b, b_step, c + i * c_row, c_row, keep + i);
  }
}

using core::exp_clamped;
constexpr float lowest = core::lowest_exp;

/// The largest of x[0..n), n a positive multiple of `lanes`; NaN is passed over.
inline float row_max(const float* x, std::int64_t n) {
  float best[lanes];
  for (int j = 0; j < lanes; ++j) {
    float m = minus_infinity;
    std::int64_t p = 0;
    do m = m < x[p + j] ? x[p + j] : m;
    while ((p += lanes) < n);
    best[j] = m;
  }
  float m = best[0];
  for (int j = 1; j < lanes; ++j) m = m < best[j] ? best[j] : m;
  return m;
}

/// x[0..n) = exp(x - base), n a positive multiple of `lanes`; sum[j] = keep * sum[j] + the sum of lane j.
inline void exp_row(float* __restrict x, std::int64_t n, float base, float keep, float* __restrict sum) {
  for (std::int64_t j = 0; j < n; ++j) {  // a loop of its own: beside exp, the compiler makes the clamp a branch
    const float y = x[j] - base;
    x[j] = y < lowest ? lowest : y;
  }
  for (std::int64_t j = 0; j < n; ++j) x[j] = exp_clamped(x[j]);
  for (int j = 0; j < lanes; ++j) {
    float s = keep * sum[j];
    std::int64_t p = 0;
    do s += x[p + j];
    while ((p += lanes) < n);
    sum[j] = s;
  }
}

/// The rows of one head as a matrix with any strides.
struct Rows {
  const float* data;
  std::int64_t row, col;
};
inline Rows head(const core::Tensor<const float, 4>& t, std::int64_t b, std::int64_t h) {
  return {t.data + b * t.stride[0] + h * t.stride[1], t.stride[2], t.stride[3]};
}
}  // namespace core_llm_efficiency
