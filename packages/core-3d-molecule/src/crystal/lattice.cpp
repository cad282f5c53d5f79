// Reduced cells; see include/core_3d_molecule/crystals.hpp.
#include "lattice.hpp"

#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

Mat lll_reduced(const Mat& m, Whole& transform) {
  constexpr double delta = 0.75;
  constexpr int most_steps = 1000;
  transform = unit;
  Mat a = m, star{};
  Mat mu{};
  Vec square{};
  const auto orthogonalise = [&] {
    for (std::size_t i = 0; i < 3; ++i) {
      star[i] = a[i];
      for (std::size_t j = 0; j < i; ++j) {
        mu[i][j] = dot(a[i], star[j]) / square[j];
        for (std::size_t x = 0; x < 3; ++x) star[i][x] -= mu[i][j] * star[j][x];
      }
      square[i] = dot(star[i], star[i]);
    }
  };
  orthogonalise();
  std::size_t k = 1;
  for (int step = 0; k < 3 && step < most_steps; ++step) {
    for (std::size_t j = k; j-- > 0;) {
      const double q = std::nearbyint(mu[k][j]);
      if (q == 0) continue;
      for (std::size_t x = 0; x < 3; ++x) {
        a[k][x] -= q * a[j][x];
        transform[k][x] -= static_cast<int64_t>(q) * transform[j][x];
      }
      orthogonalise();
    }
    if (square[k] >= (delta - mu[k][k - 1] * mu[k][k - 1]) * square[k - 1]) {
      ++k;
    } else {
      std::swap(a[k], a[k - 1]);
      std::swap(transform[k], transform[k - 1]);
      orthogonalise();
      k = std::max<std::size_t>(k - 1, 1);
    }
  }
  return a;
}

bool niggli_reduced(const Mat& m, Mat& basis, Whole& transform) {
  constexpr double tolerance = 1e-5;
  constexpr int most_steps = 1000;
  Mat now = lll_reduced(m, transform);
  const double e = tolerance * std::cbrt(std::abs(determinant(m)));
  // The names of Krivy and Gruber: A, B, C squares of lengths; xi, eta, zeta twice the products of b c, a c, a b.
  double A{}, B{}, C{}, xi{}, eta{}, zeta{};
  const auto measure = [&] {
    A = dot(now[0], now[0]), B = dot(now[1], now[1]), C = dot(now[2], now[2]);
    xi = 2 * dot(now[1], now[2]), eta = 2 * dot(now[0], now[2]), zeta = 2 * dot(now[0], now[1]);
  };
  const auto apply = [&](const Whole& rows) {
    transform = times(rows, transform);
    now = times(transform, m);
    measure();
  };
  const auto sign = [&](double v) -> int64_t { return std::abs(v) < e ? 0 : v > 0 ? 1 : -1; };
  measure();
  for (int step = 0; step < most_steps; ++step) {
    if (A > B + e || (std::abs(A - B) < e && std::abs(xi) > std::abs(eta) + e)) apply({{{0, -1, 0}, {-1, 0, 0}, {0, 0, -1}}});
    if (B > C + e || (std::abs(B - C) < e && std::abs(eta) > std::abs(zeta) + e)) {
      apply({{{-1, 0, 0}, {0, 0, -1}, {0, -1, 0}}});
      continue;
    }
    const int64_t s[3] = {sign(xi), sign(eta), sign(zeta)};
    int64_t flip[3] = {1, 1, 1};
    if (s[0] * s[1] * s[2] == 1) {
      for (int i = 0; i < 3; ++i) flip[i] = s[i];
    } else {
      int free = -1;
      for (int i = 0; i < 3; ++i) {
        if (s[i] == 1) flip[i] = -1;
        if (s[i] == 0) free = i;
      }
      if (flip[0] * flip[1] * flip[2] == -1 && free >= 0) flip[free] = -flip[free];
    }
    if (flip[0] != 1 || flip[1] != 1 || flip[2] != 1) apply({{{flip[0], 0, 0}, {0, flip[1], 0}, {0, 0, flip[2]}}});
    const auto against = [](double v) -> int64_t { return v > 0 ? -1 : 1; };
    if (std::abs(xi) > B + e || (std::abs(xi - B) < e && zeta > 2 * eta + e) || (std::abs(xi + B) < e && zeta < -e)) {
      apply({{{1, 0, 0}, {0, 1, 0}, {0, against(xi), 1}}});
    } else if (std::abs(eta) > A + e || (std::abs(eta - A) < e && zeta > 2 * xi + e) || (std::abs(eta + A) < e && zeta < -e)) {
      apply({{{1, 0, 0}, {0, 1, 0}, {against(eta), 0, 1}}});
    } else if (std::abs(zeta) > A + e || (std::abs(zeta - A) < e && eta > 2 * xi + e) || (std::abs(zeta + A) < e && eta < -e)) {
      apply({{{1, 0, 0}, {against(zeta), 1, 0}, {0, 0, 1}}});
    } else if (const double sum = xi + eta + zeta + A + B; sum < -e || (std::abs(sum) < e && zeta + 2 * (A + eta) > e)) {
      apply({{{1, 0, 0}, {0, 1, 0}, {1, 1, 1}}});
    } else {
      if (determinant(now) < 0)
        for (auto& row : transform)
          for (auto& x : row) x = -x;
      basis = times(transform, m);
      return true;
    }
  }
  return false;
}

void niggli_reduce(Tensor<const double, 3> lattices, Tensor<double, 3> reduced, Tensor<int64_t, 3> transforms) {
  static constexpr const char* op = "niggli_reduce";
  constexpr int64_t lattices_per_part = 64;
  core::parallel_for(lattices.shape[0], lattices_per_part, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Mat basis;
      Whole transform;
      if (!niggli_reduced(lattice_at(op, "lattices", lattices, b), basis, transform))
        throw core::Error("RuntimeError", std::string(op) + ": the cell of crystal " + std::to_string(b) + " could not be reduced");
      for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k) {
          reduced(b, i, k) = basis[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)];
          transforms(b, i, k) = transform[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)];
        }
    }
  });
}
}  // namespace core_3d_molecule
