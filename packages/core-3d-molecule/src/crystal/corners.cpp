// Lattices from the corners of their cells; see include/core_3d_molecule/crystals.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <limits>
#include <vector>

#include "../assignment.hpp"
#include "lattice.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t cells_per_part = 16;
constexpr std::size_t corners_of_cell = 8;
using Corners = std::array<Vec, corners_of_cell>;

/// The edges of the parallelepiped that is nearest to the corners, whose corner i is vertex `vertex[i]`: bit k of a vertex
/// says whether edge k leads to it.
Mat fitted(const Corners& corners, const std::vector<std::size_t>& vertex) {
  Mat edges{};
  for (std::size_t i = 0; i < corners.size(); ++i)
    for (std::size_t k = 0; k < 3; ++k)
      for (std::size_t x = 0; x < 3; ++x) edges[k][x] += (vertex[i] >> k & 1 ? 0.25 : -0.25) * corners[i][x];
  return edges;
}

Vec vertex_at(const Mat& edges, std::size_t vertex) {
  Vec v{};
  for (std::size_t k = 0; k < 3; ++k)
    if (vertex >> k & 1)
      for (std::size_t x = 0; x < 3; ++x) v[x] += edges[k][x];
  return v;
}

/// Right-handed, edges ascending in length, angles all blunt (to within a third of a degree) or else all sharp.
Mat standard(Mat edges) {
  constexpr double right = 0.005;
  std::sort(edges.begin(), edges.end(), [](const Vec& a, const Vec& b) { return dot(a, a) < dot(b, b); });
  Mat sharp = edges;
  for (int signs = 0; signs < 8; ++signs) {
    Mat m = edges;
    for (std::size_t k = 0; k < 3; ++k)
      if (signs >> k & 1)
        for (double& x : m[k]) x = -x;
    if (determinant(m) < 0) continue;
    const Vec size = lengths(m);
    bool all_blunt = true, all_sharp = true;
    for (std::size_t k = 0; k < 3; ++k) {
      const std::size_t i = (k + 1) % 3, j = (k + 2) % 3;
      const double cosine = dot(m[i], m[j]) / (size[i] * size[j]);
      all_blunt &= cosine <= right;
      all_sharp &= cosine > 0;
    }
    if (all_blunt) return m;
    if (all_sharp) sharp = m;
  }
  return sharp;
}
}  // namespace

void lattice_from_corners(Tensor<const double, 3> corners, Tensor<double, 3> lattices, Tensor<double, 2> origins,
                          Tensor<double, 1> errors) {
  static constexpr const char* op = "lattice_from_corners";
  constexpr double most = 1e6, flattest = 1e-6;
  core::parallel_for(errors.shape[0], cells_per_part, [&](int64_t first, int64_t last) {
    Assignment assign;
    std::vector<double> cost(corners_of_cell * corners_of_cell);
    for (int64_t b = first; b < last; ++b) {
      Corners points{};
      for (std::size_t i = 0; i < corners_of_cell; ++i)
        for (std::size_t x = 0; x < 3; ++x) {
          points[i][x] = corners(b, static_cast<int64_t>(i), static_cast<int64_t>(x));
          if (!(std::abs(points[i][x]) <= most))
            refuse(op, "corners", "be finite and in -1e6..1e6, got " + text(points[i][x]) + " in cell " + std::to_string(b));
        }
      Mat best{};
      double error = std::numeric_limits<double>::infinity();
      for (std::size_t i = 1; i < corners_of_cell; ++i)
        for (std::size_t j = i + 1; j < corners_of_cell; ++j)
          for (std::size_t k = j + 1; k < corners_of_cell; ++k) {
            const Mat edges{minus(points[i], points[0]), minus(points[j], points[0]), minus(points[k], points[0])};
            const Vec size = lengths(edges);
            if (!(std::abs(determinant(edges)) > flattest * size[0] * size[1] * size[2])) continue;
            for (std::size_t c = 0; c < corners_of_cell; ++c)
              for (std::size_t v = 0; v < corners_of_cell; ++v)
                cost[c * corners_of_cell + v] = norm(minus(minus(points[c], points[0]), vertex_at(edges, v)));
            const auto& vertex = assign(cost, corners_of_cell);
            double sum = 0;
            for (std::size_t c = 0; c < corners_of_cell; ++c) sum += cost[c * corners_of_cell + vertex[c]] / corners_of_cell;
            if (sum < error) error = sum, best = fitted(points, vertex);
          }
      Vec origin{};
      if (error < std::numeric_limits<double>::infinity()) {
        best = standard(best);
        for (std::size_t x = 0; x < 3; ++x) {
          for (const Vec& p : points) origin[x] += p[x] / corners_of_cell;
          origin[x] -= 0.5 * (best[0][x] + best[1][x] + best[2][x]);
        }
      }
      for (std::size_t x = 0; x < 3; ++x) {
        origins(b, static_cast<int64_t>(x)) = origin[x];
        for (std::size_t k = 0; k < 3; ++k) lattices(b, static_cast<int64_t>(k), static_cast<int64_t>(x)) = best[k][x];
      }
      errors(b) = error;
    }
  });
}
}  // namespace core_3d_molecule
