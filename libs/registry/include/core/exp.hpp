// core/exp.hpp - an exponential that compilers vectorise.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace core {
inline namespace v1 {
constexpr float lowest_exp = -88.f;  // its power of two below, 2^-127, comes out as 0

/// exp(x) for x in [lowest_exp, -lowest_exp], relative error below 2e-7; 0 below -87.7, NaN for NaN.
inline float exp_clamped(float x) {
  const float shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
  float r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127u) << 23);
}
}  // namespace v1
}  // namespace core
