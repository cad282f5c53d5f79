// What the coders and the attention over packed keys and values share: float16, the Fourier basis, checks, a register tile.
#pragma once
#include <core/parallel.hpp>
#include <core/tensor.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "../xattention/tile.hpp"
#include "checks.hpp"

namespace core_llm_efficiency {
/// A finite float16 as float.
inline float widen(std::uint16_t h) {
  const std::uint32_t magnitude = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f) | sign);
}

/// The nearest float16, ties to even. |x| < 65520.
inline core::float16 narrow(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const std::uint32_t nearest = magnitude < 0x38800000u ? static_cast<std::uint32_t>(std::nearbyint(std::fabs(x) * 0x1p24f))
                                                        : (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  return {static_cast<std::uint16_t>(sign | nearest)};
}

/// out[0..n) = the float16 numbers at p, `step` apart.
inline void widen(const core::float16* p, std::int64_t step, std::int64_t n, float* out) {
  if (step == 1)
    for (std::int64_t i = 0; i < n; ++i) out[i] = widen(p[i].bits);
  else
    for (std::int64_t i = 0; i < n; ++i) out[i] = widen(p[i * step].bits);
}

/// Where channel j's weight in coefficient f is kept: panels of `lanes` coefficients, [f / lanes][j][f % lanes].
constexpr std::size_t basis_at(std::int64_t n, std::int64_t j, std::int64_t f) {
  return static_cast<std::size_t>((f / lanes * n + j) * lanes + f % lanes);
}

/// The orthonormal real Fourier transform of n channels.
inline std::vector<float> fourier(std::int64_t n) {
  const std::int64_t step = round_up(n, lanes);
  std::vector<float> basis(static_cast<std::size_t>(core::checked_mul(n, step, "fourier: basis")));
  std::vector<double> cosine(static_cast<std::size_t>(n)), sine(static_cast<std::size_t>(n));
  for (std::int64_t m = 0; m < n; ++m) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(m) / static_cast<double>(n);
    cosine[static_cast<std::size_t>(m)] = std::cos(angle);
    sine[static_cast<std::size_t>(m)] = std::sin(angle);
  }
  for (std::int64_t j = 0; j < n; ++j)
    for (std::int64_t f = 0; f < n; ++f) {
      const bool alone = f == 0 || (f == n - 1 && n % 2 == 0);  // the constant, and the highest frequency of an even n
      const auto turn = static_cast<std::size_t>((f + 1) / 2 * j % n);
      const double wave = f % 2 || f == 0 ? cosine[turn] : sine[turn];
      basis[basis_at(n, j, f)] = static_cast<float>(wave * std::sqrt((alone ? 1.0 : 2.0) / static_cast<double>(n)));
    }
  return basis;
}

/// c[i][j] += sum_k a[i][k] b[k][j], i < R, j < lanes, the rows of b `lanes` apart.
template <int R>
inline void accumulate(std::int64_t depth, const float* a, std::int64_t a_row, const float* b, float* c, std::int64_t c_row) {
  if (depth <= 0) return;
  float sums[R][lanes];
  for (int j = 0; j < lanes; ++j) {
    float sum[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) sum[i] = 0;
    std::int64_t k = 0;
    do {
      const float x = b[k * lanes + j];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) sum[i] += a[i * a_row + k] * x;
    } while (++k < depth);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) sums[i][j] = sum[i];
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < lanes; ++j) c[i * c_row + j] += sums[i][j];
}

inline void check_channels(const char* op, const core::Tensor<const std::int32_t, 2>& channels) {
  const std::int64_t d = channels.shape[1];
  std::vector<bool> met(static_cast<std::size_t>(d));
  for (std::int64_t b = 0; b < channels.shape[0]; ++b) {
    std::fill(met.begin(), met.end(), false);
    for (std::int64_t c = 0; c < d; ++c) {
      const std::int32_t x = channels(b, c);
      if (x < 0 || x >= d || met[static_cast<std::size_t>(x)])
        refuse(op, "channels",
               "a permutation of 0.." + std::to_string(d - 1) + " in every row, got " + std::to_string(x) + " at place " +
                   std::to_string(c) + " of row " + std::to_string(b));
      met[static_cast<std::size_t>(x)] = true;
    }
  }
}
}  // namespace core_llm_efficiency
