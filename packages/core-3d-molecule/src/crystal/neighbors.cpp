// Periodic neighbours and distances; see include/core_3d_molecule/crystals.hpp. Each pair of atoms is looked at once.
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <limits>
#include <vector>

#include "lattice.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t crystals_per_part = 16;
constexpr double most_effort = 2e10;

struct Neighbor {
  std::int32_t a, b, c;
  double distance;
};

/// One crystal's atoms; the buffer is kept.
struct Atoms {
  std::vector<Vec> f;

  void gather(const char* op, const Tensor<const double, 2>& fractional, int64_t begin, int64_t end) {
    f.clear();
    for (int64_t i = begin; i < end; ++i) f.push_back(fractional_at(op, "fractional", fractional, i));
  }
};

double checked_cutoff(const char* op, double cutoff) {
  constexpr double longest = 100, tolerance = 1e-8;
  if (!(cutoff >= 0 && cutoff <= longest)) refuse(op, "cutoff", "be in 0..100 angstroms, got " + text(cutoff));
  return cutoff + tolerance;
}

void check_effort(const char* op, const Triangle& lattice, double radius, std::size_t atoms, int64_t crystal) {
  const auto n = static_cast<double>(atoms);
  if (lattice.effort(radius) * n * n > most_effort)
    refuse(op, "lattices", "hold fewer images within " + text(radius) + " angstroms than crystal " + std::to_string(crystal) + " does");
}
}  // namespace

void neighbor_count(Tensor<const double, 2> fractional, Tensor<const double, 3> lattices, Tensor<const int64_t, 1> offsets, double cutoff,
                    Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "neighbor_count";
  const double radius = checked_cutoff(op, cutoff);
  check_offsets(op, "offsets", offsets, fractional.shape[0]);
  core::parallel_for(lattices.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Atoms atoms;
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b);
      const Triangle lattice(lattice_at(op, "lattices", lattices, b));
      atoms.gather(op, fractional, row, offsets(b + 1));
      check_effort(op, lattice, radius, atoms.f.size(), b);
      const int64_t own = atoms.f.empty() ? 0 : lattice.count({}, radius) - 1;
      for (int64_t i = row; i < offsets(b + 1); ++i) counts(i) = own;
      for (std::size_t i = 0; i < atoms.f.size(); ++i)
        for (std::size_t j = i + 1; j < atoms.f.size(); ++j) {
          const int64_t found = lattice.count(minus(atoms.f[j], atoms.f[i]), radius);
          counts(row + static_cast<int64_t>(i)) += found;
          counts(row + static_cast<int64_t>(j)) += found;
        }
    }
  });
}

void neighbor_list(Tensor<const double, 2> fractional, Tensor<const double, 3> lattices, Tensor<const int64_t, 1> offsets, double cutoff,
                   Tensor<const int64_t, 1> neighbor_offsets, Tensor<int64_t, 2> pairs, Tensor<std::int32_t, 2> shifts,
                   Tensor<double, 1> distances) {
  static constexpr const char* op = "neighbor_list";
  const double radius = checked_cutoff(op, cutoff);
  check_offsets(op, "offsets", offsets, fractional.shape[0]);
  check_offsets(op, "neighbor_offsets", neighbor_offsets, pairs.shape[0]);
  core::parallel_for(lattices.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Atoms atoms;
    std::vector<Neighbor> own, found;  // an atom's images are the same for all
    std::vector<int64_t> next;
    const auto find = [&](const Triangle& lattice, const Vec& from, std::vector<Neighbor>& to) {
      to.clear();
      lattice.points(from, radius, std::numeric_limits<int64_t>::min(), [&](int64_t x, int64_t y, int64_t z, double square) {
        to.push_back({static_cast<std::int32_t>(x), static_cast<std::int32_t>(y), static_cast<std::int32_t>(z), std::sqrt(square)});
      });
    };
    const auto put = [&](int64_t at, int64_t i, int64_t j, const Neighbor& n, std::int32_t sign) {
      pairs(at, 0) = i, pairs(at, 1) = j;
      shifts(at, 0) = sign * n.a, shifts(at, 1) = sign * n.b, shifts(at, 2) = sign * n.c;
      distances(at) = n.distance;
    };
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b), end = offsets(b + 1);
      const Triangle lattice(lattice_at(op, "lattices", lattices, b));
      atoms.gather(op, fractional, row, end);
      check_effort(op, lattice, radius, atoms.f.size(), b);
      next.clear();
      for (int64_t i = row; i < end; ++i) next.push_back(neighbor_offsets(i));
      const auto reserve = [&](int64_t i, std::size_t count) {
        int64_t& at = next[static_cast<std::size_t>(i - row)];
        const int64_t first = at;
        if (static_cast<int64_t>(count) > neighbor_offsets(i + 1) - first)
          refuse(op, "neighbor_offsets", "leave room for the neighbours of atom " + std::to_string(i));
        at += static_cast<int64_t>(count);
        return first;
      };
      if (row < end) {
        find(lattice, {}, own);
        std::erase_if(own, [](const Neighbor& n) { return n.a == 0 && n.b == 0 && n.c == 0; });
      }
      for (int64_t i = row; i < end; ++i) {
        int64_t at = reserve(i, own.size());
        for (const auto& n : own) put(at++, i, i, n, 1);
        for (int64_t j = i + 1; j < end; ++j) {
          find(lattice, minus(atoms.f[static_cast<std::size_t>(j - row)], atoms.f[static_cast<std::size_t>(i - row)]), found);
          at = reserve(i, found.size());
          for (const auto& n : found) put(at++, i, j, n, 1);
          at = reserve(j, found.size());
          for (auto n = found.rbegin(); n != found.rend(); ++n) put(at++, j, i, *n, -1);
        }
      }
      for (int64_t i = row; i < end; ++i)
        if (next[static_cast<std::size_t>(i - row)] != neighbor_offsets(i + 1))
          refuse(op, "neighbor_offsets", "leave no more room than the neighbours of atom " + std::to_string(i) + " need");
    }
  });
}

void crystal_distances(Tensor<const double, 2> fractional, Tensor<const double, 3> lattices, Tensor<const int64_t, 1> offsets,
                       Tensor<double, 1> volumes, Tensor<double, 1> min_distances) {
  static constexpr const char* op = "crystal_distances";
  check_offsets(op, "offsets", offsets, fractional.shape[0]);
  core::parallel_for(lattices.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Atoms atoms;
    for (int64_t b = first; b < last; ++b) {
      Whole transform;
      const Mat given = lattice_at(op, "lattices", lattices, b), reduced = lll_reduced(given, transform);
      const Mat to_reduced = times(given, inverse(reduced));
      const Triangle lattice(reduced);
      atoms.gather(op, fractional, offsets(b), offsets(b + 1));
      double best = std::numeric_limits<double>::infinity();
      for (std::size_t i = 0; i < atoms.f.size(); ++i)
        for (std::size_t j = i + 1; j < atoms.f.size(); ++j) {
          Vec f = times(minus(atoms.f[j], atoms.f[i]), to_reduced);
          for (double& x : f) x -= std::nearbyint(x);
          best = std::min(best, norm(times(f, reduced)));
          lattice.points(f, best, std::numeric_limits<int64_t>::min(),
                         [&](int64_t, int64_t, int64_t, double square) { best = std::min(best, std::sqrt(square)); });
        }
      volumes(b) = std::abs(determinant(given));
      min_distances(b) = best;
    }
  });
}
}  // namespace core_3d_molecule
