// Small matrices, and lattices as rows of three vectors.
#pragma once
#include <core/tensor.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <tuple>
#include <vector>

#include "../checks.hpp"

namespace core_3d_molecule {
using Vec = std::array<double, 3>;
using Mat = std::array<Vec, 3>;
using Whole = std::array<std::array<std::int64_t, 3>, 3>;
constexpr Whole unit{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
constexpr double degrees = 180 / std::numbers::pi;

inline double dot(const Vec& a, const Vec& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline double norm(const Vec& a) { return std::sqrt(dot(a, a)); }
inline Vec cross(const Vec& a, const Vec& b) { return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]}; }
inline Vec minus(const Vec& a, const Vec& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
inline double determinant(const Mat& m) { return dot(m[0], cross(m[1], m[2])); }
/// v m: fractional to Cartesian coordinates.
inline Vec times(const Vec& v, const Mat& m) {
  return {v[0] * m[0][0] + v[1] * m[1][0] + v[2] * m[2][0], v[0] * m[0][1] + v[1] * m[1][1] + v[2] * m[2][1],
          v[0] * m[0][2] + v[1] * m[1][2] + v[2] * m[2][2]};
}
inline Mat times(const Mat& a, const Mat& b) { return {times(a[0], b), times(a[1], b), times(a[2], b)}; }
inline Mat times(const Whole& a, const Mat& b) {
  Mat out{};
  for (std::size_t i = 0; i < 3; ++i)
    out[i] = times(Vec{static_cast<double>(a[i][0]), static_cast<double>(a[i][1]), static_cast<double>(a[i][2])}, b);
  return out;
}
inline Whole times(const Whole& a, const Whole& b) {
  Whole out{};
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j)
      for (std::size_t k = 0; k < 3; ++k) out[i][j] += a[i][k] * b[k][j];
  return out;
}
inline Mat real(const Whole& w) {
  Mat out{};
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j) out[i][j] = static_cast<double>(w[i][j]);
  return out;
}
/// The inverse; its columns are the reciprocal vectors without 2 pi.
inline Mat inverse(const Mat& m) {
  const double d = determinant(m);
  const Mat r{cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])};
  Mat out{};
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j) out[i][j] = r[j][i] / d;
  return out;
}
/// The lengths of the reciprocal vectors without 2 pi: one over the distances of lattice planes.
inline Vec reciprocal_lengths(const Mat& m) {
  const double d = std::abs(determinant(m));
  return {norm(cross(m[1], m[2])) / d, norm(cross(m[2], m[0])) / d, norm(cross(m[0], m[1])) / d};
}
inline double angle(const Vec& a, const Vec& b) { return std::acos(std::clamp(dot(a, b) / norm(a) / norm(b), -1.0, 1.0)) * degrees; }
inline Vec lengths(const Mat& m) { return {norm(m[0]), norm(m[1]), norm(m[2])}; }
inline Vec angles(const Mat& m) { return {angle(m[1], m[2]), angle(m[0], m[2]), angle(m[0], m[1])}; }
inline double wrapped(double x) {
  const double y = x - std::floor(x);
  return y < 1 ? y : 0;
}

/// The lattice of row b, checked.
inline Mat lattice_at(const char* op, const char* name, const core::Tensor<const double, 3>& lattices, std::int64_t b) {
  constexpr double shortest = 1e-3, longest = 1e5, flattest = 1e-9;
  Mat m{};
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) m[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)] = lattices(b, i, k);
    const double length = norm(m[static_cast<std::size_t>(i)]);
    if (!(length >= shortest && length <= longest))
      refuse(op, name, "have vectors of 0.001 to 100000 angstroms, got " + text(length) + " in crystal " + std::to_string(b));
  }
  const double volume = std::abs(determinant(m)), box = norm(m[0]) * norm(m[1]) * norm(m[2]);
  if (!(volume > flattest * box)) refuse(op, name, "span a volume, got " + text(volume) + " in crystal " + std::to_string(b));
  return m;
}

inline Vec fractional_at(const char* op, const char* name, const core::Tensor<const double, 2>& fractional, std::int64_t i) {
  constexpr double most = 1e6;
  const Vec v{fractional(i, 0), fractional(i, 1), fractional(i, 2)};
  for (double x : v)
    if (!(std::abs(x) <= most)) refuse(op, name, "be finite and in -1e6..1e6, got " + text(x) + " for atom " + std::to_string(i));
  return v;
}

/// A short and nearly orthogonal basis (Lenstra, Lenstra and Lovasz, delta 3/4), and what leads to it: basis = transform m.
Mat lll_reduced(const Mat& m, Whole& transform);
/// Niggli's reduced basis, right-handed: basis = transform m. False if the steps do not end.
bool niggli_reduced(const Mat& m, Mat& basis, Whole& transform);

/// A lattice as a lower triangle, in which the range of each index of the points of a sphere is known exactly.
struct Triangle {
  double l[3][3]{}, reach[3]{};
  explicit Triangle(const Mat& m) {
    Mat e{};
    for (std::size_t i = 0; i < 3; ++i) {
      Vec rest = m[i];
      for (std::size_t k = 0; k < i; ++k) {
        l[i][k] = dot(m[i], e[k]);
        for (std::size_t x = 0; x < 3; ++x) rest[x] -= l[i][k] * e[k][x];
      }
      l[i][i] = norm(rest);
      reach[i] = 1 / l[i][i];
      for (std::size_t x = 0; x < 3; ++x) e[i][x] = rest[x] / l[i][i];
    }
  }
  /// No more rows and points than this are looked at for a sphere.
  double effort(double radius) const {
    double all = 1;
    for (double r : reach) all *= 2 * radius * r + 3;
    return all;
  }
  /// Calls row(b, c, first a, last a) for the rows of shifts (a, b, c) that meet the sphere around the origin; c, then b
  /// ascend. `f`: the point's fractional coordinates at shift 0. A row may hold points a little outside.
  template <class Row>
  void rows(const Vec& f, double radius, std::int64_t lowest_c, Row&& row) const {
    constexpr double slack = 1e-9;
    const auto first = [](double middle, double half) { return static_cast<std::int64_t>(std::ceil(-middle - half - slack)); };
    const auto last = [](double middle, double half) { return static_cast<std::int64_t>(std::floor(-middle + half + slack)); };
    const double square = radius * radius, half2 = radius * reach[2];
    for (std::int64_t c = std::max(first(f[2], half2), lowest_c), ce = last(f[2], half2); c <= ce; ++c) {
      const double t2 = f[2] + static_cast<double>(c), z = t2 * l[2][2], left2 = std::max(square - z * z, 0.0);
      const double y0 = t2 * l[2][1], at1 = f[1] + y0 * reach[1], half1 = std::sqrt(left2) * reach[1];
      for (std::int64_t b = first(at1, half1), be = last(at1, half1); b <= be; ++b) {
        const double t1 = f[1] + static_cast<double>(b), y = t1 * l[1][1] + y0, left1 = std::max(left2 - y * y, 0.0);
        const double at0 = f[0] + (t2 * l[2][0] + t1 * l[1][0]) * reach[0], half0 = std::sqrt(left1) * reach[0];
        row(b, c, first(at0, half0), last(at0, half0));
      }
    }
  }
  /// Calls visit(a, b, c, square) for the points within the radius, in the order of rows, a ascending.
  template <class Visit>
  void points(const Vec& f, double radius, std::int64_t lowest_c, Visit&& visit) const {
    const double limit = radius * radius;
    rows(f, radius, lowest_c, [&](std::int64_t b, std::int64_t c, std::int64_t first, std::int64_t last) {
      const double t2 = f[2] + static_cast<double>(c), t1 = f[1] + static_cast<double>(b);
      const double z = t2 * l[2][2], y = t1 * l[1][1] + t2 * l[2][1], x0 = t2 * l[2][0] + t1 * l[1][0], yz = y * y + z * z;
      for (std::int64_t a = first; a <= last; ++a) {
        const double x = (f[0] + static_cast<double>(a)) * l[0][0] + x0, square = x * x + yz;
        if (square <= limit) visit(a, b, c, square);
      }
    });
  }
};

/// The bases of a lattice that have given lengths and angles (degrees), in the order in which pymatgen's
/// Lattice.find_all_mappings meets them: vectors by octants around the origin, in each by descending indices.
class Bases {
 public:
  struct Vector {
    std::array<std::int64_t, 3> index;
    Vec cartesian;
    double length;
    int octant;
  };

  /// Calls visit(a, b, c) for each basis of whole volume until it gives true. `length`: relative tolerance; `degree`: of angles.
  template <class Visit>
  void operator()(const Mat& lattice, const Vec& abc, const Vec& angle, double length, double degree, Visit&& visit) {
    constexpr double most_effort = 1e8, slack = 1e-12;
    const double radius = std::max({abc[0], abc[1], abc[2]}) * (1 + length);
    const Triangle triangle(lattice);
    if (triangle.effort(radius) > most_effort) return;  // a cell a thousand times as long as wide has no partner of this radius
    for (auto& list : vectors_) list.clear();
    triangle.points({0, 0, 0}, radius, std::numeric_limits<std::int64_t>::min(),
                    [&](std::int64_t a, std::int64_t b, std::int64_t c, double square) {
                      if (a == 0 && b == 0 && c == 0) return;
                      const double size = std::sqrt(square);
                      const Vec at = times(Vec{static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)}, lattice);
                      const int octant = (at[0] >= -border) * 4 + (at[1] >= -border) * 2 + (at[2] >= -border);
                      for (std::size_t i = 0; i < 3; ++i)
                        if (size / abc[i] < 1 + length && size / abc[i] > 1 / (1 + length))
                          vectors_[i].push_back({{a, b, c}, at, size, octant});
                    });
    for (auto& list : vectors_)
      std::sort(list.begin(), list.end(),
                [](const Vector& a, const Vector& b) { return std::tie(a.octant, b.index) < std::tie(b.octant, a.index); });
    Vec low{}, high{};
    for (std::size_t i = 0; i < 3; ++i) {
      low[i] = std::cos(std::min(angle[i] + degree, 180.0) / degrees) - slack;
      high[i] = std::cos(std::max(angle[i] - degree, 0.0) / degrees) + slack;
    }
    const auto agree = [&](const Vector& x, const Vector& y, std::size_t i) {
      const double cosine = dot(x.cartesian, y.cartesian) / (x.length * y.length);
      return cosine >= low[i] && cosine <= high[i];
    };
    for (const auto& a : vectors_[0])
      for (const auto& b : vectors_[1]) {
        if (!agree(a, b, 2)) continue;
        for (const auto& c : vectors_[2])
          if (agree(a, c, 1) && agree(b, c, 0) && std::abs(std::abs(determinant(real({a.index, b.index, c.index}))) - 1) < 0.5 &&
              visit(a, b, c))
            return;
      }
  }

 private:
  static constexpr double border = 1e-8;  // angstroms
  std::vector<Vector> vectors_[3];
};
}  // namespace core_3d_molecule
