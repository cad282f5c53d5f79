// Random numbers that depend on a seed, a purpose and a row only, not on threads: SplitMix64 (doi 10.1145/2714064.2660195).
#pragma once
#include <cmath>
#include <cstdint>
#include <numbers>

namespace core_3d_molecule {
enum class Purpose : std::uint64_t { augment = 1, drop = 2, crop = 3, zeros = 4 };

class Random {
 public:
  Random(std::int64_t seed, Purpose purpose, std::int64_t row)
      : state_(mix(mix(static_cast<std::uint64_t>(seed) + golden * static_cast<std::uint64_t>(purpose)) +
                   golden * static_cast<std::uint64_t>(row))) {}
  /// In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// In 0..n - 1, n > 0.
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(uniform() * static_cast<double>(n)); }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  static constexpr std::uint64_t golden = 0x9e3779b97f4a7c15;
  static constexpr std::uint64_t mix(std::uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  std::uint64_t next() { return mix(state_ += golden); }
  std::uint64_t state_;
};
}  // namespace core_3d_molecule
