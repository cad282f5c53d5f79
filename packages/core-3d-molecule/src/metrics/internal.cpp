// Bond lengths, angles and dihedrals; see include/core_3d_molecule/geometry.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/geometry.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "graph.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t molecules_per_part = 64;
constexpr int num_elements = 118;
using Point = std::array<double, 3>;

Point minus(const Point& a, const Point& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }
Point cross(const Point& a, const Point& b) { return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]}; }
double dot(const Point& a, const Point& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
double norm(const Point& a) { return std::sqrt(dot(a, a)); }

void check_kind(const char* op, int64_t kind) {
  if (kind < 2 || kind > 4) refuse(op, "kind", "be 2 (lengths), 3 (angles) or 4 (dihedrals), got " + std::to_string(kind));
}

/// Calls found(atoms, orders) for each chain of `kind` bonded atoms, once.
template <class Found>
void chains(const Graph& graph, int64_t kind, Found&& found) {
  for (int64_t j = 0; j < graph.atoms(); ++j)
    for (const auto* k = graph.begin(j); k != graph.end(j); ++k) {
      if (kind == 2) {
        if (j < k->atom) found(std::array<int64_t, 4>{j, k->atom}, std::array<std::int32_t, 3>{k->order});
        continue;
      }
      if (kind == 3) {
        for (const auto* i = graph.begin(j); i != k; ++i)
          found(std::array<int64_t, 4>{i->atom, j, k->atom}, std::array<std::int32_t, 3>{i->order, k->order});
        continue;
      }
      if (k->atom < j) continue;
      for (const auto* i = graph.begin(j); i != graph.end(j); ++i)
        for (const auto* l = graph.begin(k->atom); l != graph.end(k->atom); ++l)
          if (i->atom != k->atom && l->atom != j && i->atom != l->atom)
            found(std::array<int64_t, 4>{i->atom, j, k->atom, l->atom}, std::array<std::int32_t, 3>{i->order, k->order, l->order});
    }
}

/// Elements and orders of a chain, seven and three bits each, read from the end that gives the lesser number.
int64_t symbol(const std::array<std::int32_t, 4>& z, const std::array<std::int32_t, 3>& orders, std::size_t kind) {
  int64_t forward = z[0], backward = z[kind - 1];
  for (std::size_t i = 1; i < kind; ++i) {
    forward = (forward << 3 | orders[i - 1]) << 7 | z[i];
    backward = (backward << 3 | orders[kind - 1 - i]) << 7 | z[kind - 1 - i];
  }
  return std::min(forward, backward);
}

double measure(const std::array<Point, 4>& p, int64_t kind) {
  constexpr double degrees = 180 / std::numbers::pi;
  const Point a = minus(p[1], p[0]);
  if (kind == 2) return norm(a);
  const Point b = minus(p[2], p[1]);
  if (kind == 3) {
    const Point n = cross(a, b);
    return std::atan2(norm(n), -dot(a, b)) * degrees;
  }
  const Point c = minus(p[3], p[2]), n1 = cross(a, b), n2 = cross(b, c);
  return std::atan2(norm(b) * dot(a, n2), dot(n1, n2)) * degrees;
}
}  // namespace

void chain_count(Tensor<const std::int32_t, 1> numbers, Tensor<const int64_t, 1> offsets, Tensor<const int64_t, 2> bonds,
                 Tensor<const std::int32_t, 1> orders, Tensor<const int64_t, 1> bond_offsets, int64_t kind, Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "chain_count";
  check_kind(op, kind);
  check_offsets(op, "bond_offsets", bond_offsets, orders.shape[0]);
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  const Bonds given{op, offsets, bonds, orders, bond_offsets};
  core::parallel_for(counts.shape[0], molecules_per_part, [&](int64_t first, int64_t last) {
    Graph graph;
    for (int64_t b = first; b < last; ++b) {
      graph.build(given, b);
      int64_t n = 0;
      chains(graph, kind, [&](const auto&, const auto&) { ++n; });
      counts(b) = n;
    }
  });
}

void chain_values(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets,
                  Tensor<const int64_t, 2> bonds, Tensor<const std::int32_t, 1> orders, Tensor<const int64_t, 1> bond_offsets, int64_t kind,
                  Tensor<const int64_t, 1> value_offsets, Tensor<int64_t, 1> symbols, Tensor<double, 1> values) {
  static constexpr const char* op = "chain_values";
  check_kind(op, kind);
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  check_offsets(op, "bond_offsets", bond_offsets, orders.shape[0]);
  check_offsets(op, "value_offsets", value_offsets, values.shape[0]);
  const Bonds given{op, offsets, bonds, orders, bond_offsets};
  core::parallel_for(offsets.shape[0] - 1, molecules_per_part, [&](int64_t first, int64_t last) {
    Graph graph;
    for (int64_t b = first; b < last; ++b) {
      graph.build(given, b);
      int64_t at = value_offsets(b);
      const int64_t end = value_offsets(b + 1), row = offsets(b);
      const auto length = static_cast<std::size_t>(kind);
      chains(graph, kind, [&](const std::array<int64_t, 4>& atoms, const std::array<std::int32_t, 3>& order) {
        std::array<std::int32_t, 4> z{};
        std::array<Point, 4> p{};
        for (std::size_t i = 0; i < length; ++i) {
          z[i] = numbers(row + atoms[i]);
          if (z[i] < 1 || z[i] > num_elements) refuse(op, "numbers", "be atomic numbers 1..118, got " + std::to_string(z[i]));
          for (std::size_t k = 0; k < 3; ++k) {
            p[i][k] = positions(row + atoms[i], static_cast<int64_t>(k));
            if (!(std::abs(p[i][k]) <= 1e100))
              refuse(op, "positions",
                     "be finite and in -1e100..1e100, got " + text(p[i][k]) + " for atom " + std::to_string(row + atoms[i]));
          }
        }
        if (at < end) symbols(at) = symbol(z, order, length), values(at) = measure(p, kind);
        ++at;
      });
      if (at != end)
        refuse(op, "value_offsets",
               "leave " + std::to_string(at - value_offsets(b)) + " values to structure " + std::to_string(b) + ", got " +
                   std::to_string(end - value_offsets(b)));
    }
  });
}
}  // namespace core_3d_molecule
