// Kabsch RMSD and maximum mean discrepancy; see include/core_3d_molecule/geometry.hpp.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_3d_molecule/geometry.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.hpp"
#include "../exp.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr double largest = 1e100;  // its square is finite

double checked(const char* op, const char* name, double v, int64_t row) {
  if (!(std::abs(v) <= largest)) refuse(op, name, "be finite and in -1e100..1e100, got " + text(v) + " in row " + std::to_string(row));
  return v;
}

using Matrix = std::array<std::array<double, 4>, 4>;

/// The eigenvector of the greatest eigenvalue of a symmetric matrix, by Jacobi's rotations.
std::array<double, 4> principal(Matrix a) {
  Matrix v{};
  for (std::size_t i = 0; i < 4; ++i) v[i][i] = 1;
  constexpr int most_sweeps = 50;
  for (int sweep = 0; sweep < most_sweeps; ++sweep) {
    double off = 0, scale = 0;
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t j = 0; j < 4; ++j) (i == j ? scale : off) += std::abs(a[i][j]);
    constexpr double negligible = 1e-17, skipped = 1e-20;
    if (off <= negligible * scale) break;
    for (std::size_t p = 0; p < 3; ++p)
      for (std::size_t q = p + 1; q < 4; ++q) {
        if (std::abs(a[p][q]) <= skipped * scale) continue;
        const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (std::size_t k = 0; k < 4; ++k) {
          const double kp = a[k][p], kq = a[k][q];
          a[k][p] = c * kp - s * kq, a[k][q] = s * kp + c * kq;
        }
        for (std::size_t k = 0; k < 4; ++k) {
          const double pk = a[p][k], qk = a[q][k];
          a[p][k] = c * pk - s * qk, a[q][k] = s * pk + c * qk;
          const double vp = v[k][p], vq = v[k][q];
          v[k][p] = c * vp - s * vq, v[k][q] = s * vp + c * vq;
        }
      }
  }
  std::size_t best = 0;
  for (std::size_t i = 1; i < 4; ++i)
    if (a[i][i] > a[best][best]) best = i;
  return {v[0][best], v[1][best], v[2][best], v[3][best]};
}

/// Rows of the rotation that the unit quaternion (w, x, y, z) is.
std::array<std::array<double, 3>, 3> rotation(const std::array<double, 4>& q) {
  const auto [w, x, y, z] = q;
  return {{{w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)},
           {2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)},
           {2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z}}};
}

/// The sum over y of the five kernels at x; `rate` is 1 / the widest bandwidth, and each narrower kernel a square.
double kernels(double x, const double* y, int64_t n, double rate) {
  constexpr int64_t lanes = 8;
  double sum[lanes] = {};
  const auto all = [&](double d) {
    const double a = exp_negative(-d * d * rate), b = a * a, c = b * b, e = c * c;
    return a + b + c + e + e * e;
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) sum[l] += all(x - y[i + l]);
  for (; i < n; ++i) sum[0] += all(x - y[i]);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/// The mean of the kernels over all pairs of two sets; the same for any number of threads.
double mean_kernel(const std::vector<double>& x, const std::vector<double>& y, double rate) {
  constexpr int64_t rows_per_part = 16;
  std::vector<double> rows(x.size());
  core::parallel_for(static_cast<int64_t>(x.size()), rows_per_part, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      rows[at] = core::multiversion<&kernels>(x[at], y.data(), static_cast<int64_t>(y.size()), rate);
    }
  });
  double sum = 0;
  for (double r : rows) sum += r;
  return sum / static_cast<double>(x.size()) / static_cast<double>(y.size());
}
}  // namespace

void kabsch_rmsd(Tensor<const double, 2> positions, Tensor<const double, 2> targets, Tensor<const int64_t, 1> offsets,
                 Tensor<double, 1> rmsd) {
  static constexpr const char* op = "kabsch_rmsd";
  constexpr int64_t structures_per_part = 64;
  check_offsets(op, "offsets", offsets, positions.shape[0]);
  core::parallel_for(rmsd.shape[0], structures_per_part, [&](int64_t first, int64_t last) {
    std::vector<std::array<double, 3>> p, q;  // about their means, in units of the largest
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = offsets(b), end = offsets(b + 1);
      const double share = 1 / static_cast<double>(end - begin);
      std::array<double, 3> from{}, to{};
      p.clear(), q.clear();
      for (int64_t i = begin; i < end; ++i) {
        auto &at = p.emplace_back(), &on = q.emplace_back();
        for (std::size_t k = 0; k < 3; ++k) {
          at[k] = checked(op, "positions", positions(i, static_cast<int64_t>(k)), i);
          on[k] = checked(op, "targets", targets(i, static_cast<int64_t>(k)), i);
          from[k] += at[k] * share, to[k] += on[k] * share;
        }
      }
      double scale = 0;
      for (std::size_t i = 0; i < p.size(); ++i)
        for (std::size_t k = 0; k < 3; ++k) {
          p[i][k] -= from[k], q[i][k] -= to[k];
          scale = std::max({scale, std::abs(p[i][k]), std::abs(q[i][k])});
        }
      if (!(scale > 0)) {
        rmsd(b) = 0;
        continue;
      }
      double m[3][3] = {};
      for (std::size_t i = 0; i < p.size(); ++i)
        for (std::size_t k = 0; k < 3; ++k) p[i][k] /= scale, q[i][k] /= scale;
      for (std::size_t i = 0; i < p.size(); ++i)
        for (std::size_t j = 0; j < 3; ++j)
          for (std::size_t k = 0; k < 3; ++k) m[j][k] += p[i][j] * q[i][k];
      const double yz = m[1][2] - m[2][1], zx = m[2][0] - m[0][2], xy = m[0][1] - m[1][0];
      const double a = m[0][1] + m[1][0], c = m[2][0] + m[0][2], d = m[1][2] + m[2][1];
      const auto r = rotation(principal({{{m[0][0] + m[1][1] + m[2][2], yz, zx, xy},
                                          {yz, m[0][0] - m[1][1] - m[2][2], a, c},
                                          {zx, a, m[1][1] - m[0][0] - m[2][2], d},
                                          {xy, c, d, m[2][2] - m[0][0] - m[1][1]}}}));
      double sum = 0;
      for (std::size_t i = 0; i < p.size(); ++i)
        for (std::size_t j = 0; j < 3; ++j) {
          const double miss = r[j][0] * p[i][0] + r[j][1] * p[i][1] + r[j][2] * p[i][2] - q[i][j];
          sum += miss * miss;
        }
      rmsd(b) = scale * std::sqrt(sum * share);
    }
  });
}

void gaussian_mmd(Tensor<const double, 1> x, Tensor<const double, 1> y, Tensor<double, 1> mmd) {
  static constexpr const char* op = "gaussian_mmd";
  std::vector<double> a, b;
  for (const auto& [set, name, into] : {std::tuple{&x, "x", &a}, std::tuple{&y, "y", &b}}) {
    if (set->shape[0] < 1 || set->shape[0] > INT32_MAX) refuse(op, name, "hold 1 to 2^31 - 1 values, got " + std::to_string(set->shape[0]));
    for (int64_t i = 0; i < set->shape[0]; ++i) into->push_back(checked(op, name, (*set)(i), i));
  }
  const auto total = static_cast<double>(a.size() + b.size());
  double mean = 0, square = 0;
  for (const auto* set : {&a, &b})
    for (double v : *set) mean += v / total;
  for (const auto* set : {&a, &b})
    for (double v : *set) square += (v - mean) * (v - mean);
  const double widest = 4 * 2 * square / (total - 1);  // s = 2 square / (total - 1); 2^4 s / 4
  if (!(widest > 0)) {
    mmd(0) = 0;
    return;
  }
  mmd(0) = mean_kernel(a, a, 1 / widest) + mean_kernel(b, b, 1 / widest) - 2 * mean_kernel(a, b, 1 / widest);
}
}  // namespace core_3d_molecule
