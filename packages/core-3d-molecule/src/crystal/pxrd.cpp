// Powder diffraction patterns; see include/core_3d_molecule/crystals.hpp. Of each pair of opposite reflections one is
// computed. Along a row of reflections (h runs, k and l stay) an atom's phase is one complex product of tables.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <vector>

#include "../exp.hpp"
#include "lattice.hpp"
#include "scattering.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t crystals_per_part = 4;

struct Range {
  double wavelength, low, high;  // angstroms; 1 / d at the two ends
  Range(const char* op, double wavelength, double low, double high) : wavelength(wavelength), low(0), high(0) {
    if (!(wavelength >= 0.1 && wavelength <= 10)) refuse(op, "wavelength", "be in 0.1..10 angstroms, got " + text(wavelength));
    if (!(low >= 0 && low < high && high < 180))
      refuse(op, "low", "be in 0..high and 'high' below 180, got " + text(low) + " and " + text(high));
    this->low = 2 * std::sin(low / 2 / degrees) / wavelength;
    this->high = 2 * std::sin(high / 2 / degrees) / wavelength;
  }
};

Mat reciprocal(const Mat& m) {
  const Mat i = inverse(m);
  return {{{i[0][0], i[1][0], i[2][0]}, {i[0][1], i[1][1], i[2][1]}, {i[0][2], i[1][2], i[2][2]}}};
}

struct Row {
  int64_t k, l, first, count, at;
};

/// The X-ray scattering factors of one element.
void factors(const double* square, double* out, int64_t n, int number) {
  const double* c = scattering[number - 1];
  for (int64_t i = 0; i < n; ++i) {
    const double s = square[i] / 4;  // (sin(theta) / wavelength)^2
    double sum = 0;
    for (int g = 0; g < 4; ++g) sum += c[2 * g] * exp_negative(-c[2 * g + 1] * s);
    out[i] = number - mott_bethe * s * sum;
  }
}

/// out += base times table, n complex numbers.
void add_phases(double* re, double* im, const double* table_re, const double* table_im, double base_re, double base_im, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    re[i] += base_re * table_re[i] - base_im * table_im[i];
    im[i] += base_re * table_im[i] + base_im * table_re[i];
  }
}

struct Table {
  std::vector<double> re, im;
  void fill(double x, int64_t most) {  // exp(2 pi i h x) for h = -most..most
    const auto size = static_cast<std::size_t>(2 * most + 1), middle = static_cast<std::size_t>(most);
    re.resize(size), im.resize(size);
    const double turn = 2 * std::numbers::pi * (x - std::floor(x)), c = std::cos(turn), s = std::sin(turn);
    re[middle] = 1, im[middle] = 0;
    for (std::size_t h = 1; h <= middle; ++h) {
      re[middle + h] = re[middle + h - 1] * c - im[middle + h - 1] * s;
      im[middle + h] = re[middle + h - 1] * s + im[middle + h - 1] * c;
      re[middle - h] = re[middle + h], im[middle - h] = -im[middle + h];
    }
  }
};

struct Peak {
  double square, intensity;
};

/// One crystal at a time; the buffers are kept.
struct Pattern {
  const char* op;
  Range range;
  std::vector<Row> rows;
  std::vector<double> square, re, im, total_re, total_im, factor;
  std::vector<Peak> peaks;
  Table tables[3];
  int64_t most[3]{};

  void list(const Mat& lattice, int64_t crystal) {
    constexpr double most_points = 1e7;
    const Triangle t(reciprocal(lattice));
    if (t.effort(range.high) > most_points)
      refuse(op, "lattices", "have fewer than 10^7 reflections, got more in crystal " + std::to_string(crystal));
    rows.clear();
    square.clear();
    std::fill_n(most, 3, 0);
    const double least = std::max(range.low * range.low, 1e-12), limit = range.high * range.high;
    t.rows({0, 0, 0}, range.high, 0, [&](int64_t k, int64_t l, int64_t first, int64_t last) {
      if (l == 0 && k < 0) return;
      if (l == 0 && k == 0) first = 1;
      if (first > last) return;
      rows.push_back({k, l, first, last - first + 1, static_cast<int64_t>(square.size())});
      const auto z = static_cast<double>(l) * t.l[2][2], y = static_cast<double>(k) * t.l[1][1] + static_cast<double>(l) * t.l[2][1];
      const double x0 = static_cast<double>(l) * t.l[2][0] + static_cast<double>(k) * t.l[1][0];
      for (int64_t h = first; h <= last; ++h) {
        const double x = static_cast<double>(h) * t.l[0][0] + x0, s = x * x + y * y + z * z;
        square.push_back(s >= least && s <= limit ? s : -1);
      }
      most[0] = std::max({most[0], std::abs(first), std::abs(last)});
      most[1] = std::max(most[1], std::abs(k));
      most[2] = std::max(most[2], l);
    });
  }
  int64_t points() const {
    return std::count_if(square.begin(), square.end(), [](double s) { return s > 0; });
  }

  /// `order`: the crystal's atoms, those of an element together.
  void compute(const Tensor<const std::int32_t, 1>& numbers, const Tensor<const double, 2>& fractional, const std::vector<int64_t>& order) {
    const auto n = static_cast<int64_t>(square.size());
    total_re.assign(square.size(), 0), total_im.assign(square.size(), 0), factor.resize(square.size());
    for (std::size_t begin = 0; begin < order.size();) {
      const std::int32_t number = numbers(order[begin]);
      re.assign(square.size(), 0), im.assign(square.size(), 0);
      std::size_t end = begin;
      for (; end < order.size() && numbers(order[end]) == number; ++end) {
        const Vec f = fractional_at(op, "fractional", fractional, order[end]);
        for (std::size_t axis = 0; axis < 3; ++axis) tables[axis].fill(f[axis], most[axis]);
        core::multiversion<&add_rows>(this);
      }
      core::multiversion<&factors>(square.data(), factor.data(), n, static_cast<int>(number));
      for (std::size_t i = 0; i < square.size(); ++i) total_re[i] += factor[i] * re[i], total_im[i] += factor[i] * im[i];
      begin = end;
    }
    peaks.clear();
    for (std::size_t i = 0; i < square.size(); ++i) {
      if (square[i] < 0) continue;
      const double sine2 = square[i] * range.wavelength * range.wavelength / 4, cosine = std::sqrt(1 - sine2);
      const double twice = 1 - 2 * sine2;
      peaks.push_back({square[i], (total_re[i] * total_re[i] + total_im[i] * total_im[i]) * (1 + twice * twice) / (sine2 * cosine)});
    }
    std::sort(peaks.begin(), peaks.end(), [](const Peak& a, const Peak& b) { return a.square < b.square; });
  }

  static void add_rows(Pattern* p) {
    const auto at = [&](int axis, int64_t h) { return static_cast<std::size_t>(h + p->most[axis]); };
    for (const Row& r : p->rows) {
      const double ar = p->tables[1].re[at(1, r.k)], ai = p->tables[1].im[at(1, r.k)];
      const double br = p->tables[2].re[at(2, r.l)], bi = p->tables[2].im[at(2, r.l)];
      add_phases(p->re.data() + r.at, p->im.data() + r.at, p->tables[0].re.data() + at(0, r.first), p->tables[0].im.data() + at(0, r.first),
                 ar * br - ai * bi, ar * bi + ai * br, r.count);
    }
  }
};
}  // namespace

void pxrd_count(Tensor<const double, 3> lattices, double wavelength, double low, double high, Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "pxrd_count";
  const Range range(op, wavelength, low, high);
  core::parallel_for(lattices.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Pattern pattern{op, range, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    for (int64_t b = first; b < last; ++b) {
      pattern.list(lattice_at(op, "lattices", lattices, b), b);
      counts(b) = pattern.points();
    }
  });
}

void pxrd_patterns(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> fractional, Tensor<const double, 3> lattices,
                   Tensor<const int64_t, 1> offsets, Tensor<const int64_t, 1> capacities, double wavelength, double low, double high,
                   Tensor<double, 1> two_theta, Tensor<double, 1> intensity, Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "pxrd_patterns";
  constexpr double bin_width = 1e-5, equal = 1e-12, least_peak = 1e-3, full = 100;
  const Range range(op, wavelength, low, high);
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  check_offsets(op, "capacities", capacities, two_theta.shape[0]);
  core::parallel_for(counts.shape[0], crystals_per_part, [&](int64_t first, int64_t last) {
    Pattern pattern{op, range, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    std::vector<int64_t> order;
    for (int64_t b = first; b < last; ++b) {
      order.clear();
      for (int64_t i = offsets(b); i < offsets(b + 1); ++i) {
        if (numbers(i) < 1 || numbers(i) > scattering_elements)
          refuse(op, "numbers", "be atomic numbers 1..98, got " + std::to_string(numbers(i)) + " for atom " + std::to_string(i));
        order.push_back(i);
      }
      std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return numbers(i) < numbers(j); });
      pattern.list(lattice_at(op, "lattices", lattices, b), b);
      if (pattern.points() != capacities(b + 1) - capacities(b))
        refuse(op, "capacities", "leave " + std::to_string(pattern.points()) + " rows to crystal " + std::to_string(b));
      pattern.compute(numbers, fractional, order);
      int64_t at = capacities(b);
      double position = 0, square = -1, bin = -1, greatest = 0;
      for (const Peak& p : pattern.peaks) {
        if (square < 0 || p.square - square > equal * square) {
          square = p.square;
          position = 2 * degrees * std::asin(std::min(std::sqrt(square) * wavelength / 2, 1.0));
        }
        if (const double now = std::nearbyint(position / bin_width); now != bin) {
          bin = now;
          two_theta(at) = position, intensity(at++) = 0;
        }
        intensity(at - 1) += p.intensity;
        greatest = std::max(greatest, intensity(at - 1));
      }
      int64_t kept = capacities(b);
      for (int64_t i = kept; i < at; ++i)
        if (const double scaled = intensity(i) / greatest * full; scaled > least_peak)
          two_theta(kept) = two_theta(i), intensity(kept++) = scaled;
      counts(b) = kept - capacities(b);
      for (; kept < capacities(b + 1); ++kept) two_theta(kept) = intensity(kept) = 0;
    }
  });
}
}  // namespace core_3d_molecule
