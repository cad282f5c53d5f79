// A small matrix product on the CPU: blocks of rows times panels of sixteen columns, summed in registers.
#pragma once
#include <core/parallel.hpp>
#include <core/tensor.hpp>

#include <algorithm>
#include <vector>

namespace core_splatting {

constexpr std::int64_t lanes = 16, tile_rows = 12, block_rows = 48;
constexpr std::int64_t depth_block = 256;  // a panel's part stays in the first-level cache, and sums stay short

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }
inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// A matrix [depth, columns], sixteen columns beside each other: panel p is [depth][lanes], zeros beyond the last column.
struct Panels {
  std::int64_t depth = 0, columns = 0;
  std::vector<float> data;

  std::int64_t count() const { return ceil_div(columns, lanes); }
  std::int64_t width() const { return count() * lanes; }
  const float* panel(std::int64_t p) const { return data.data() + p * depth * lanes; }

  /// at(k, j) is the element of row k and column j.
  template <class At>
  void pack(std::int64_t depth_, std::int64_t columns_, At at) {
    depth = depth_, columns = columns_;
    data.resize(static_cast<std::size_t>(core::checked_mul(width(), depth, "panels: scratch")));
    core::parallel_for(count(), 1 + 8192 / (depth * lanes + 1), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        float* const to = data.data() + p * depth * lanes;
        for (std::int64_t k = 0; k < depth; ++k)
          for (std::int64_t j = 0; j < lanes; ++j) to[k * lanes + j] = p * lanes + j < columns ? at(k, p * lanes + j) : 0.f;
      }
    });
  }
};

/// c[12][16] += a[12][depth] panel[depth][16], depth >= 1.
inline void add_tile(std::int64_t depth, const float* a, std::int64_t pitch, const float* panel, float* c, std::int64_t c_pitch) {
  float sums[tile_rows][lanes];
  for (std::int64_t j = 0; j < lanes; ++j) {
    float sum[tile_rows];
#pragma GCC unroll 12
    for (int i = 0; i < tile_rows; ++i) sum[i] = 0;
    std::int64_t k = 0;
    do {  // a test before the first pass would keep the compiler from vectorising the loop over j
      const float b = panel[k * lanes + j];
#pragma GCC unroll 12
      for (int i = 0; i < tile_rows; ++i) sum[i] += a[i * pitch + k] * b;
    } while (++k < depth);
#pragma GCC unroll 12
    for (int i = 0; i < tile_rows; ++i) sums[i][j] = sum[i];
  }
  for (std::int64_t i = 0; i < tile_rows; ++i)
    for (std::int64_t j = 0; j < lanes; ++j) c[i * c_pitch + j] += sums[i][j];
}

/// c[rows][width of b] = a[rows][b's depth] b, with room for rows rounded up to twelve in both.
inline void multiply(std::int64_t rows, const float* a, std::int64_t pitch, const Panels& b, float* c) {
  const std::int64_t width = b.width(), tall = round_up(rows, tile_rows);
  std::fill_n(c, tall * width, 0.f);
  for (std::int64_t p = 0; p < b.count(); ++p)
    for (std::int64_t k = 0; k < b.depth; k += depth_block)
      for (std::int64_t i = 0; i < tall; i += tile_rows)
        add_tile(std::min(depth_block, b.depth - k), a + i * pitch + k, pitch, b.panel(p) + k * lanes, c + i * width + p * lanes, width);
}

}  // namespace core_splatting
