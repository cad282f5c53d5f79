// Powder patterns as a model's input; see include/core_3d_molecule/crystals.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "../checks.hpp"
#include "../random.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

void pxrd_profile(Tensor<const double, 1> two_theta, Tensor<const double, 1> intensity, Tensor<const int64_t, 1> offsets, double high,
                  double least, int64_t zeros, int64_t seed, Tensor<float, 2> profiles) {
  static constexpr const char* op = "pxrd_profile";
  constexpr double apart = 0.2;  // degrees
  constexpr int64_t most_zeros = 4096, tries = 16, patterns_per_part = 16;
  check_offsets(op, "offsets", offsets, two_theta.shape[0]);
  if (!(high > 0 && high <= 180)) refuse(op, "high", "be in (0, 180], got " + text(high));
  if (zeros < 0 || zeros > most_zeros) refuse(op, "zeros", "be in 0..4096, got " + std::to_string(zeros));
  const int64_t points = profiles.shape[1];
  core::parallel_for(profiles.shape[0], patterns_per_part, [&](int64_t first, int64_t last) {
    std::vector<std::pair<double, double>> knots;
    std::vector<double> peaks;
    for (int64_t b = first; b < last; ++b) {
      knots.clear(), peaks.clear();
      for (int64_t i = offsets(b); i < offsets(b + 1); ++i) {
        if (!(two_theta(i) >= 0 && two_theta(i) <= 180)) refuse(op, "two_theta", "be in 0..180, got " + text(two_theta(i)));
        if (!(intensity(i) >= 0 && intensity(i) <= 100)) refuse(op, "intensity", "be in 0..100, got " + text(intensity(i)));
        if (intensity(i) > least && two_theta(i) < high) knots.emplace_back(two_theta(i), intensity(i)), peaks.push_back(two_theta(i));
      }
      std::sort(peaks.begin(), peaks.end());
      Random random(seed, Purpose::zeros, b);
      for (int64_t found = 0, left = tries * zeros; found < zeros && left > 0; --left) {
        const double angle = high * random.uniform();
        const auto next = std::lower_bound(peaks.begin(), peaks.end(), angle);
        if ((next != peaks.end() && *next - angle < apart) || (next != peaks.begin() && angle - next[-1] < apart)) continue;
        knots.emplace_back(angle, 0.0), ++found;
      }
      std::sort(knots.begin(), knots.end());
      std::size_t after = 0;
      for (int64_t p = 0; p < points; ++p) {
        const double angle = high * static_cast<double>(p) / static_cast<double>(points);
        while (after < knots.size() && knots[after].first <= angle) ++after;
        double value = 0;
        if (!knots.empty()) {
          const auto& [x1, y1] = knots[after == knots.size() ? after - 1 : after];
          const auto& [x0, y0] = knots[after ? after - 1 : 0];
          value = x1 > x0 ? y0 + (y1 - y0) * (angle - x0) / (x1 - x0) : y0;
        }
        profiles(b, p) = static_cast<float>(value);
      }
    }
  });
}
}  // namespace core_3d_molecule
