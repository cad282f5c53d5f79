// Matching of crystals; see include/core_3d_molecule/crystals.hpp. Compositions are compared first, then lattices, then
// atoms on fractional tolerances; only what is left gets its distances and the best assignment of atoms.
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <limits>
#include <tuple>
#include <vector>

#include "../assignment.hpp"
#include "cell.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t pairs_per_part = 4;
constexpr int64_t most_atoms = 1000;
constexpr double primitive_tolerance = 0.25;

struct Tolerance {
  double length, site, angle;
  bool primitive, scale;
};

struct Match {
  double rms = std::numeric_limits<double>::infinity(), farthest = 0;
};

struct Given {
  const char *numbers_name, *fractional_name, *lattices_name, *offsets_name;
  Tensor<const std::int32_t, 1> numbers;
  Tensor<const double, 2> fractional;
  Tensor<const double, 3> lattices;
  Tensor<const int64_t, 1> offsets;

  Cell prepared(const char* op, int64_t b, bool primitive) const {
    Cell cell;
    cell.lattice = lattice_at(op, lattices_name, lattices, b);
    const int64_t n = offsets(b + 1) - offsets(b);
    if (n > most_atoms)
      refuse(op, offsets_name, "give a crystal at most 1000 atoms, got " + std::to_string(n) + " in crystal " + std::to_string(b));
    for (int64_t i = offsets(b); i < offsets(b + 1); ++i) {
      if (numbers(i) < 1 || numbers(i) > 118)
        refuse(op, numbers_name, "be atomic numbers 1..118, got " + std::to_string(numbers(i)) + " for atom " + std::to_string(i));
      cell.z.push_back(numbers(i));
      cell.f.push_back(fractional_at(op, fractional_name, fractional, i));
    }
    if (!reduce(cell) || (primitive && !make_primitive(cell, primitive_tolerance)))
      throw core::Error("RuntimeError", std::string(op) + ": the cell of crystal " + std::to_string(b) + " could not be reduced");
    return cell;
  }
};

Mat from_parameters(const Vec& abc, const Vec& angle) {
  const double ca = std::cos(angle[0] / degrees), cb = std::cos(angle[1] / degrees), cg = std::cos(angle[2] / degrees);
  const double sg = std::sin(angle[2] / degrees), x = (ca - cb * cg) / sg;
  return {
      {{abc[0], 0, 0}, {abc[1] * cg, abc[1] * sg, 0}, {abc[2] * cb, abc[2] * x, abc[2] * std::sqrt(std::max(1 - cb * cb - x * x, 0.0))}}};
}

class Matcher {
 public:
  explicit Matcher(const Tolerance& t) : t_(t) {}

  Match operator()(Cell& first, Cell& second) {
    best_ = {};
    const std::size_t n = first.size();
    if (n != second.size() || n == 0 || !same_composition(first, second)) return best_;
    if (t_.scale) {
      const double ratio = std::pow(std::abs(determinant(second.lattice)) / std::abs(determinant(first.lattice)), 1.0 / 6);
      for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t k = 0; k < 3; ++k) first.lattice[i][k] *= ratio, second.lattice[i][k] /= ratio;
    }
    first_ = &first, second_ = &second;
    anchor_ = rarest(second);
    starts_.clear();
    for (std::size_t i = 0; i < n; ++i)
      if (first.z[i] == second.z[anchor_]) starts_.push_back(i);
    lattices();
    return best_;
  }

 private:
  static bool same_composition(const Cell& a, const Cell& b) {
    auto x = a.z, y = b.z;
    std::sort(x.begin(), x.end());
    std::sort(y.begin(), y.end());
    return x == y;
  }
  static std::size_t rarest(const Cell& c) {
    std::size_t best = 0;
    std::ptrdiff_t least = std::numeric_limits<std::ptrdiff_t>::max();
    for (std::size_t i = 0; i < c.size(); ++i)
      if (const auto count = std::count(c.z.begin(), c.z.end(), c.z[i]); count < least) least = count, best = i;
    return best;
  }

  /// All bases of the first lattice whose lengths and angles are the second's.
  void lattices() {
    const Vec abc = lengths(second_->lattice), angle = angles(second_->lattice);
    bases_(first_->lattice, abc, angle, t_.length, t_.angle, [&](const auto& a, const auto& b, const auto& c) {
      const Vec abc1{a.length, b.length, c.length}, angle1 = angles({a.cartesian, b.cartesian, c.cartesian});
      Vec abc_mean{}, angle_mean{};
      for (std::size_t i = 0; i < 3; ++i) abc_mean[i] = (abc1[i] + abc[i]) / 2, angle_mean[i] = (angle1[i] + angle[i]) / 2;
      atoms(inverse(real({a.index, b.index, c.index})), from_parameters(abc_mean, angle_mean));
      return best_.rms < 1e-5;
    });
  }

  /// All translations, for one basis of the first lattice.
  void atoms(const Mat& into, const Mat& mean) {
    const std::size_t n = first_->size();
    const double volume = std::abs(determinant(mean));
    if (!(volume > 0)) return;
    per_length_ = std::cbrt(static_cast<double>(n) / volume);
    const auto tolerance = [&](const Mat& m) {
      Vec r = reciprocal_lengths(m);
      for (double& x : r) x *= 2 * t_.site / per_length_;
      return r;
    };
    from_.resize(n), to_.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      to_[i] = times(first_->f[i], into);
      for (double& x : to_[i]) x -= std::floor(x);
    }
    const Vec near = tolerance(mean);
    bool prepared = false;
    for (std::size_t start : starts_) {
      const Vec shift = minus(to_[start], second_->f[anchor_]);
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t k = 0; k < 3; ++k) from_[i][k] = second_->f[i][k] + shift[k];
      if (!covered(near)) continue;
      if (!prepared) {
        Whole transform;
        basis_ = lll_reduced(mean, transform);
        into_basis_ = inverse(real(transform));
        near_ = tolerance(basis_);
        images_.clear();
        for (int a = -1; a <= 1; ++a)
          for (int b = -1; b <= 1; ++b)
            for (int c = -1; c <= 1; ++c)
              images_.push_back(times(Vec{static_cast<double>(a), static_cast<double>(b), static_cast<double>(c)}, basis_));
        prepared = true;
      }
      distances();
    }
  }

  /// Whether every atom of the second has one of its element in the first within the fractional tolerance.
  bool covered(const Vec& near) const {
    for (std::size_t i = 0; i < from_.size(); ++i) {
      bool found = false;
      for (std::size_t j = 0; j < to_.size() && !found; ++j) {
        if (second_->z[i] != first_->z[j]) continue;
        found = true;
        for (std::size_t k = 0; k < 3; ++k) {
          const double d = from_[i][k] - to_[j][k];
          found = found && std::abs(d - std::nearbyint(d)) <= near[k];
        }
      }
      if (!found) return false;
    }
    return true;
  }

  void distances() {
    const std::size_t n = from_.size();
    constexpr double never = 1e20;
    square_.assign(n * n, never);
    vector_.resize(n * n);
    cartesian_.resize(n);
    inside_.resize(n);
    for (std::size_t j = 0; j < n; ++j) {
      inside_[j] = times(to_[j], into_basis_);
      for (double& x : inside_[j]) x = wrapped(x);
      cartesian_[j] = times(inside_[j], basis_);
    }
    for (std::size_t i = 0; i < n; ++i) {
      Vec f = times(from_[i], into_basis_);
      for (double& x : f) x = wrapped(x);
      const Vec at = times(f, basis_);
      for (std::size_t j = 0; j < n; ++j) {
        if (second_->z[i] != first_->z[j]) continue;
        bool close = true;
        for (std::size_t k = 0; k < 3; ++k) {
          const double d = f[k] - inside_[j][k];
          close = close && std::abs(d - std::nearbyint(d)) <= near_[k];
        }
        if (!close) continue;
        const Vec plain = minus(cartesian_[j], at);
        double best = never;
        const Vec* image = nullptr;
        for (const Vec& m : images_) {
          const double x = plain[0] + m[0], y = plain[1] + m[1], z = plain[2] + m[2], square = x * x + y * y + z * z;
          if (square < best) best = square, image = &m;
        }
        square_[i * n + j] = best;
        vector_[i * n + j] = {plain[0] + (*image)[0], plain[1] + (*image)[1], plain[2] + (*image)[2]};
      }
    }
    const auto& partner = assign_(square_, n);
    Vec mean{};
    for (std::size_t i = 0; i < n; ++i) {
      if (square_[i * n + partner[i]] >= never) return;
      for (std::size_t k = 0; k < 3; ++k) mean[k] += vector_[i * n + partner[i]][k] / static_cast<double>(n);
    }
    double sum = 0, farthest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const Vec rest = minus(vector_[i * n + partner[i]], mean);
      sum += dot(rest, rest);
      farthest = std::max(farthest, dot(rest, rest));
    }
    const double rms = std::sqrt(sum / static_cast<double>(n)) * per_length_;
    if (rms < best_.rms) best_ = {rms, std::sqrt(farthest) * per_length_};
  }

  Tolerance t_;
  Match best_;
  const Cell *first_ = nullptr, *second_ = nullptr;
  std::size_t anchor_ = 0;
  std::vector<std::size_t> starts_;
  Bases bases_;
  std::vector<Vec> from_, to_, images_, vector_, cartesian_, inside_;
  std::vector<double> square_;
  Mat basis_{}, into_basis_{};
  Vec near_{};
  double per_length_ = 1;
  Assignment assign_;
};
}  // namespace

void match_crystals(Tensor<const std::int32_t, 1> numbers1, Tensor<const double, 2> fractional1, Tensor<const double, 3> lattices1,
                    Tensor<const int64_t, 1> offsets1, Tensor<const std::int32_t, 1> numbers2, Tensor<const double, 2> fractional2,
                    Tensor<const double, 3> lattices2, Tensor<const int64_t, 1> offsets2, double ltol, double stol, double angle_tol,
                    bool primitive_cell, bool scale, Tensor<double, 1> rms, Tensor<double, 1> max_distance) {
  static constexpr const char* op = "match_crystals";
  for (const auto& [name, value, most] :
       {std::tuple{"ltol", ltol, 1.0}, std::tuple{"stol", stol, 10.0}, std::tuple{"angle_tol", angle_tol, 90.0}})
    if (!(value >= 0 && value <= most)) refuse(op, name, "be in 0.." + text(most) + ", got " + text(value));
  check_offsets(op, "offsets1", offsets1, numbers1.shape[0]);
  check_offsets(op, "offsets2", offsets2, numbers2.shape[0]);
  const Given first{"numbers1", "fractional1", "lattices1", "offsets1", numbers1, fractional1, lattices1, offsets1};
  const Given second{"numbers2", "fractional2", "lattices2", "offsets2", numbers2, fractional2, lattices2, offsets2};
  core::parallel_for(rms.shape[0], pairs_per_part, [&](int64_t begin, int64_t end) {
    Matcher matcher({ltol, stol, angle_tol, primitive_cell, scale});
    for (int64_t b = begin; b < end; ++b) {
      Cell one = first.prepared(op, b, primitive_cell), two = second.prepared(op, b, primitive_cell);
      const Match found = matcher(one, two);
      const bool same = found.rms < stol;
      rms(b) = same ? found.rms : std::numeric_limits<double>::quiet_NaN();
      max_distance(b) = same ? found.farthest : std::numeric_limits<double>::quiet_NaN();
    }
  });
}
}  // namespace core_3d_molecule
