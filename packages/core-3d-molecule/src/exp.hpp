// An exponential in double precision that compilers vectorise.
#pragma once
#include <bit>
#include <cstdint>

namespace core_3d_molecule {
/// exp(x) for x <= 0 to a few units in the last place, in operations that vectorise; 0 below -700.
inline double exp_negative(double x) {
  constexpr double shift = 0x1.8p52;
  const double clamped = x < -700 ? -700 : x;
  const double n = clamped * 1.4426950408889634 + shift, whole = n - shift;
  const double r = (clamped - whole * 0x1.62e42fefa38p-1) - whole * 0x1.ef35793c7673p-45;
  double p = 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1;
  p = p * r + 1;
  const auto scaled = std::bit_cast<std::uint64_t>(p) + (std::bit_cast<std::uint64_t>(n) << 52);
  return x < -700 ? 0 : std::bit_cast<double>(scaled);
}
}  // namespace core_3d_molecule
