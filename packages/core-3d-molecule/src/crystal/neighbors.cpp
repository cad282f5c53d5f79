// Periodic neighbours and distances; see include/core_3d_molecule/crystals.hpp. Each pair of atoms is looked at once.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "lattice.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t crystals_per_part = 16;
constexpr double most_images = 2e7, most_effort = 2e10;
using Shift = std::array<int64_t, 3>;

/// The squares of the distances of n points from -(dx, dy, dz), and the numbers of those within the limit; how many they are.
int64_t near(const double* x, const double* y, const double* z, int64_t n, double dx, double dy, double dz, double limit, double* squares,
             std::int32_t* hits) {
  for (int64_t i = 0; i < n; ++i) {
    const double ax = x[i] + dx, ay = y[i] + dy, az = z[i] + dz;
    squares[i] = ax * ax + ay * ay + az * az;
  }
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    hits[found] = static_cast<std::int32_t>(i);
    found += squares[i] <= limit;
  }
  return found;
}

int64_t count_near(const double* x, const double* y, const double* z, int64_t n, double dx, double dy, double dz, double limit) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double ax = x[i] + dx, ay = y[i] + dy, az = z[i] + dz;
    found += ax * ax + ay * ay + az * az <= limit;
  }
  return found;
}

/// One crystal's atoms and, once for all their pairs, the lattice points among which their images are. The buffers are kept.
class Images {
  Mat reduced_{}, to_reduced_{};
  Whole transform_{};
  double limit_ = 0;
  std::vector<Vec> atoms_;
  std::vector<double> x_, y_, z_, squares_;
  std::vector<std::array<std::int32_t, 3>> shifts_;
  std::vector<std::int32_t> hits_;

 public:
  void build(const char* op, const Tensor<const double, 2>& fractional, const Tensor<const double, 3>& lattices,
             const Tensor<const int64_t, 1>& offsets, double radius, int64_t b) {
    constexpr double slack = 1 + 1e-9;
    const Mat given = lattice_at(op, "lattices", lattices, b);
    atoms_.clear(), x_.clear(), y_.clear(), z_.clear(), shifts_.clear();
    for (int64_t i = offsets(b); i < offsets(b + 1); ++i) atoms_.push_back(fractional_at(op, "fractional", fractional, i));
    if (atoms_.empty()) return;
    reduced_ = lll_reduced(given, transform_), to_reduced_ = times(given, inverse(reduced_));
    double farthest = 0;  // of two atoms, one of them moved into the reduced cell around the other
    for (double p : {-0.5, 0.5})
      for (double q : {-0.5, 0.5}) farthest = std::max(farthest, norm(times(Vec{0.5, p, q}, reduced_)));
    const double around = (radius + (atoms_.size() > 1 ? farthest : 0)) * slack;
    const Triangle lattice(given);
    const auto n = static_cast<double>(atoms_.size());
    const double effort = lattice.effort(around);
    if (effort > most_images || effort * n * n > most_effort)
      refuse(op, "lattices", "hold fewer images within " + text(radius) + " angstroms than crystal " + std::to_string(b) + " does");
    lattice.points({}, around, std::numeric_limits<int64_t>::min(), [&](int64_t s, int64_t t, int64_t u, double) {
      const Vec at = times(Vec{static_cast<double>(s), static_cast<double>(t), static_cast<double>(u)}, given);
      x_.push_back(at[0]), y_.push_back(at[1]), z_.push_back(at[2]);
      shifts_.push_back({static_cast<std::int32_t>(s), static_cast<std::int32_t>(t), static_cast<std::int32_t>(u)});
    });
    squares_.resize(x_.size()), hits_.resize(x_.size());
    limit_ = radius * radius;
  }
  std::size_t atoms() const { return atoms_.size(); }
  /// From atom i to the nearest image, or nearly, of atom j; that image's shift.
  Vec apart(std::size_t i, std::size_t j, Shift& shift) const {
    Vec f = times(minus(atoms_[j], atoms_[i]), to_reduced_);
    shift = {};
    for (std::size_t k = 0; k < 3; ++k) {
      const double whole = std::nearbyint(f[k]);
      f[k] -= whole;
      for (std::size_t x = 0; x < 3; ++x) shift[x] -= static_cast<int64_t>(whole) * transform_[k][x];
    }
    return times(f, reduced_);
  }
  int64_t count(const Vec& d) const {
    return core::multiversion<&count_near>(x_.data(), y_.data(), z_.data(), static_cast<int64_t>(x_.size()), d[0], d[1], d[2], limit_);
  }
  /// The numbers of the lattice points that put an atom at d within the radius, by their shifts, the last index first.
  std::span<const std::int32_t> find(const Vec& d) {
    const int64_t found = core::multiversion<&near>(x_.data(), y_.data(), z_.data(), static_cast<int64_t>(x_.size()), d[0], d[1], d[2],
                                                    limit_, squares_.data(), hits_.data());
    return std::span(hits_).first(static_cast<std::size_t>(found));
  }
  /// Of an atom's own images, all but itself.
  std::span<const std::int32_t> find_own() {
    const std::size_t found = find({}).size();
    const auto itself =
        std::find_if(hits_.begin(), hits_.end(), [&](std::int32_t hit) { return shift(hit) == std::array<std::int32_t, 3>{}; });
    std::copy(itself + 1, hits_.begin() + static_cast<std::ptrdiff_t>(found), itself);
    return std::span(hits_).first(found - 1);
  }
  const std::array<std::int32_t, 3>& shift(std::int32_t hit) const { return shifts_[static_cast<std::size_t>(hit)]; }
  double distance(std::int32_t hit) const { return std::sqrt(squares_[static_cast<std::size_t>(hit)]); }
};

double checked_cutoff(const char* op, double cutoff) {
  constexpr double longest = 100, tolerance = 1e-8;
  if (!(cutoff >= 0 && cutoff <= longest)) refuse(op, "cutoff", "be in 0..100 angstroms, got " + text(cutoff));
  return cutoff + tolerance;
}
}  // namespace

void neighbor_count(Tensor<const double, 2> fractional, Tensor<const double, 3> lattices, Tensor<const int64_t, 1> offsets, double cutoff,
                    Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "neighbor_count";
  const double radius = checked_cutoff(op, cutoff);
  check_offsets(op, "offsets", offsets, fractional.shape[0]);
  core::parallel_for(lattices.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Images images;
    Shift shift{};
    for (int64_t b = first; b < last; ++b) {
      images.build(op, fractional, lattices, offsets, radius, b);
      const int64_t row = offsets(b), own = images.atoms() ? images.count({}) - 1 : 0;
      for (int64_t i = row; i < offsets(b + 1); ++i) counts(i) = own;
      for (std::size_t i = 0; i < images.atoms(); ++i)
        for (std::size_t j = i + 1; j < images.atoms(); ++j) {
          const int64_t found = images.count(images.apart(i, j, shift));
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
    Images images;
    std::vector<int64_t> next;
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b), end = offsets(b + 1);
      images.build(op, fractional, lattices, offsets, radius, b);
      next.clear();
      for (int64_t i = row; i < end; ++i) next.push_back(neighbor_offsets(i));
      const auto reserve = [&](int64_t i, std::size_t count) {
        int64_t& at = next[static_cast<std::size_t>(i - row)];
        const int64_t begin = at;
        if (static_cast<int64_t>(count) > neighbor_offsets(i + 1) - begin)
          refuse(op, "neighbor_offsets", "leave room for the neighbours of atom " + std::to_string(i));
        at += static_cast<int64_t>(count);
        return begin;
      };
      const auto put = [&](int64_t i, int64_t j, std::span<const std::int32_t> hits, const Shift& shift, int64_t sign) {
        const int64_t begin = reserve(i, hits.size()), count = static_cast<int64_t>(hits.size());
        const auto hit = [&](int64_t k) { return hits[static_cast<std::size_t>(sign > 0 ? k : count - 1 - k)]; };
        for (int64_t k = 0; k < count; ++k) pairs(begin + k, 0) = i, pairs(begin + k, 1) = j;
        for (int64_t k = 0; k < count; ++k) {
          const auto& moved = images.shift(hit(k));
          for (std::size_t x = 0; x < 3; ++x)
            shifts(begin + k, static_cast<int64_t>(x)) = static_cast<std::int32_t>(sign * (moved[x] + shift[x]));
        }
        for (int64_t k = 0; k < count; ++k) distances(begin + k) = images.distance(hit(k));
      };
      for (int64_t i = row; i < end; ++i) {
        put(i, i, images.find_own(), {}, 1);
        for (int64_t j = i + 1; j < end; ++j) {
          Shift shift{};
          const auto found = images.find(images.apart(static_cast<std::size_t>(i - row), static_cast<std::size_t>(j - row), shift));
          put(i, j, found, shift, 1);
          put(j, i, found, shift, -1);
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
    std::vector<Vec> atoms;
    for (int64_t b = first; b < last; ++b) {
      Whole transform;
      const Mat given = lattice_at(op, "lattices", lattices, b), reduced = lll_reduced(given, transform);
      const Mat to_reduced = times(given, inverse(reduced));
      const Triangle lattice(reduced);
      atoms.clear();
      for (int64_t i = offsets(b); i < offsets(b + 1); ++i) atoms.push_back(fractional_at(op, "fractional", fractional, i));
      double best = std::numeric_limits<double>::infinity();
      for (std::size_t i = 0; i < atoms.size(); ++i)
        for (std::size_t j = i + 1; j < atoms.size(); ++j) {
          Vec f = times(minus(atoms[j], atoms[i]), to_reduced);
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
