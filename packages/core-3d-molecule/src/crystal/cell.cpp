// Primitive cells: of all sublattices whose index divides the numbers of atoms of every element, in Hermite normal form,
// the first that maps the atoms on each other.
#include "cell.hpp"

#include <cstring>
#include <numeric>
#include <utility>

#include "../elements.hpp"

namespace core_3d_molecule {
namespace {
using Group = std::vector<Vec>;  // the fractional coordinates of one element

double periodic(double x) { return std::abs(x - std::nearbyint(x)); }

bool near(const Vec& a, const Vec& b, const Vec& tolerance) {
  for (std::size_t k = 0; k < 3; ++k)
    if (!(periodic(a[k] - b[k]) < tolerance[k])) return false;
  return true;
}

/// Translations that take every atom to within twice the tolerance of one of its element.
std::vector<Vec> translations(const std::vector<Group>& groups, const Vec& tolerance) {
  const Group& least = *std::min_element(groups.begin(), groups.end(), [](auto& a, auto& b) { return a.size() < b.size(); });
  std::vector<Vec> found;
  for (const Vec& f : least) found.push_back(minus(f, least[0]));
  for (const Group& group : groups)
    for (const Vec& from : group) {
      if (found.size() < 2) return found;
      std::erase_if(found, [&](const Vec& t) {
        return std::none_of(group.begin(), group.end(), [&](const Vec& to) { return near(t, minus(to, from), tolerance); });
      });
    }
  return found;
}

/// The groups of atoms that coincide in the smaller cell, each merged into one; false if they do not fall into groups of `size`.
bool merge(const Group& atoms, const Mat& to_cell, std::size_t size, const Vec& tolerance, const Vec& apart, Group& out) {
  const std::size_t n = atoms.size();
  Group inside(n);
  for (std::size_t i = 0; i < n; ++i) inside[i] = times(atoms[i], to_cell);
  std::vector<std::vector<std::size_t>> partners(n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      bool other = i == j;
      for (std::size_t k = 0; k < 3; ++k) other |= periodic(atoms[i][k] - atoms[j][k]) > 2 * apart[k];
      if (other && near(inside[i], inside[j], tolerance)) partners[i].push_back(j);
    }
  for (const auto& group : partners) {
    if (group.size() != size) return false;
    for (std::size_t j : group)
      if (partners[j] != group) return false;
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (partners[i][0] != i) continue;
    Vec mean{wrapped(inside[i][0]), wrapped(inside[i][1]), wrapped(inside[i][2])};
    for (std::size_t at = 1; at < size; ++at)
      for (std::size_t k = 0; k < 3; ++k) {
        const double step = wrapped(inside[partners[i][at]][k]) - mean[k];
        mean[k] += (step - std::nearbyint(step)) / static_cast<double>(at + 1);
      }
    out.push_back(mean);
  }
  return true;
}

/// Of a lattice's equal reduced bases the one that pymatgen's Lattice.get_niggli_reduced_lattice takes: the first that is
/// right-handed in the given basis. Tolerances along the axes make it decide which atoms coincide.
Mat chosen(const Mat& lattice, const Mat& reduced) {
  constexpr double tolerance = 1e-5, degree = 1;
  Mat first = reduced;
  bool any = false;
  Bases()(lattice, lengths(reduced), angles(reduced), tolerance * std::cbrt(std::abs(determinant(lattice))), degree,
          [&](const auto& a, const auto& b, const auto& c) {
            const bool proper = determinant(real({a.index, b.index, c.index})) > 0;
            if (proper || !any) first = {a.cartesian, b.cartesian, c.cartesian};
            any = true;
            return proper;
          });
  if (determinant(first) < 0)
    for (Vec& row : first)
      for (double& x : row) x = -x;
  return first;
}
}  // namespace

bool reduce(Cell& cell) {
  Mat basis;
  Whole transform;
  if (!niggli_reduced(cell.lattice, basis, transform)) return false;
  basis = chosen(cell.lattice, basis);
  const Mat into = times(cell.lattice, inverse(basis));
  for (Vec& f : cell.f) {
    f = times(f, into);
    for (double& x : f) x = wrapped(x);
  }
  cell.lattice = basis;
  return true;
}

bool make_primitive(Cell& cell, double tolerance) {
  if (cell.size() == 0) return true;
  std::vector<std::size_t> order(cell.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return std::strcmp(symbols[cell.z[i]], symbols[cell.z[j]]) < 0; });
  std::vector<Group> groups;
  std::vector<std::int32_t> elements;
  for (std::size_t i : order) {
    if (elements.empty() || elements.back() != cell.z[i]) elements.push_back(cell.z[i]), groups.emplace_back();
    groups.back().push_back(cell.f[i]);
  }
  std::size_t units = 0;
  for (const Group& g : groups) units = std::gcd(units, g.size());
  const Vec abc = lengths(cell.lattice);
  const Vec apart{tolerance / abc[0], tolerance / abc[1], tolerance / abc[2]};
  const auto shifts = translations(groups, {2 * apart[0], 2 * apart[1], 2 * apart[2]});
  if (shifts.size() < 2) return true;
  const auto known = [&](const Vec& row) {
    return std::any_of(shifts.begin(), shifts.end(), [&](const Vec& t) { return near(row, t, apart); });
  };
  const auto try_cell = [&](const Mat& m, std::size_t size) {
    const Mat inside = inverse(m);
    for (const Vec& row : inside)
      if (!known(row)) return false;
    Cell smaller;
    smaller.lattice = times(inside, cell.lattice);
    const Vec sides = lengths(smaller.lattice);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      if (!merge(groups[g], m, size, {tolerance / sides[0], tolerance / sides[1], tolerance / sides[2]}, apart, smaller.f)) return false;
      smaller.z.resize(smaller.f.size(), elements[g]);
    }
    cell = std::move(smaller);
    return true;
  };
  for (std::size_t size = 2; size <= units; ++size) {
    if (units % size) continue;
    for (std::size_t a = 1; a <= size; ++a) {
      if (size % a) continue;
      for (std::size_t e = 1; e <= size / a; ++e) {
        if (size / a % e) continue;
        const std::size_t g = size / a / e;
        for (std::size_t b = 0; b < a; ++b)
          for (std::size_t c = 0; c < a; ++c)
            for (std::size_t f = 0; f < e; ++f)
              if (try_cell({{{static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)},
                             {0, static_cast<double>(e), static_cast<double>(f)},
                             {0, 0, static_cast<double>(g)}}},
                           size))
                return make_primitive(cell, tolerance) && reduce(cell);
      }
    }
  }
  return true;
}
}  // namespace core_3d_molecule
