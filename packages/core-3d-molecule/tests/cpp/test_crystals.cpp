// The crystal operators as C++ functions: rock salt, its primitive cell, and lattices that are none.
#include <core/test.hpp>
#include <core_3d_molecule/crystals.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace {
struct Crystal {
  std::vector<std::int32_t> numbers;
  std::vector<double> fractional, lattice;
  std::vector<std::int64_t> offsets{0, static_cast<std::int64_t>(numbers.size())};

  std::int64_t size() const { return offsets[1]; }
  template <class T, class... S>
  static core::Tensor<const T, sizeof...(S)> in(const std::vector<T>& v, S... shape) {
    return core::tensor(v.data(), shape...);
  }
  auto z() const { return in(numbers, size()); }
  auto f() const { return in(fractional, size(), 3); }
  auto m() const { return in(lattice, 1, 3, 3); }
  auto o() const { return in(offsets, 2); }
};

Crystal salt() {
  return {{11, 11, 11, 11, 17, 17, 17, 17},
          {0, 0, 0, 0, .5, .5, .5, 0, .5, .5, .5, 0, .5, .5, .5, .5, 0, 0, 0, .5, 0, 0, 0, .5},
          {5.64, 0, 0, 0, 5.64, 0, 0, 0, 5.64}};
}
Crystal primitive_salt() { return {{17, 11}, {.6, .6, .6, .1, .1, .1}, {0, 2.82, 2.82, 2.82, 0, 2.82, 2.82, 2.82, 0}}; }

double match(const Crystal& a, const Crystal& b) {
  double rms = 0, farthest = 0;
  core_3d_molecule::match_crystals(a.z(), a.f(), a.m(), a.o(), b.z(), b.f(), b.m(), b.o(), 0.2, 0.3, 5, true, true, core::tensor(&rms, 1),
                                   core::tensor(&farthest, 1));
  return rms;
}

std::vector<std::int64_t> neighbors(const Crystal& c, double cutoff) {
  std::vector<std::int64_t> counts(c.numbers.size());
  core_3d_molecule::neighbor_count(c.f(), c.m(), c.o(), cutoff, core::tensor(counts.data(), c.size()));
  std::vector<std::int64_t> starts{0};
  for (std::int64_t n : counts) starts.push_back(starts.back() + n);
  const std::int64_t total = starts.back();
  const auto rows = static_cast<std::size_t>(total);
  std::vector<std::int64_t> pairs(2 * rows);
  std::vector<std::int32_t> shifts(3 * rows);
  std::vector<double> distances(rows);
  core_3d_molecule::neighbor_list(c.f(), c.m(), c.o(), cutoff, Crystal::in(starts, c.size() + 1), core::tensor(pairs.data(), total, 2),
                                  core::tensor(shifts.data(), total, 3), core::tensor(distances.data(), total));
  for (double d : distances) CHECK(d <= cutoff + 1e-8);
  return counts;
}
}  // namespace

CORE_TEST(neighbors_of_salt) {
  for (std::int64_t n : neighbors(salt(), 2.9)) CHECK(n == 6);
  for (std::int64_t n : neighbors(primitive_salt(), 2.9)) CHECK(n == 6);
}

CORE_TEST(salt_matches_its_primitive_cell) {
  CHECK(match(salt(), primitive_salt()) < 1e-6);
  CHECK(match(primitive_salt(), salt()) < 1e-6);
  Crystal other = salt();
  for (auto& z : other.numbers) z = 11;
  CHECK(std::isnan(match(other, salt())));
}

CORE_TEST(pattern_of_salt) {
  const Crystal c = salt();
  std::int64_t capacity = 0, count = 0;
  core_3d_molecule::pxrd_count(c.m(), 1.54184, 0, 90, core::tensor(&capacity, 1));
  std::vector<double> angle(static_cast<std::size_t>(capacity)), intensity(angle.size());
  const std::vector<std::int64_t> room{0, capacity};
  core_3d_molecule::pxrd_patterns(c.z(), c.f(), c.m(), c.o(), Crystal::in(room, 2), 1.54184, 0, 90, core::tensor(angle.data(), capacity),
                                  core::tensor(intensity.data(), capacity), core::tensor(&count, 1));
  CHECK(count > 4 && count < capacity);
  CHECK_NEAR(angle[1], 31.731, 0.01);
  CHECK_NEAR(intensity[1], 100, 1e-9);
}

CORE_TEST(least_distance_of_a_skewed_cell) {
  Crystal c = salt();
  for (std::size_t k = 0; k < 3; ++k) c.lattice[6 + k] += 1000 * c.lattice[k];  // the same lattice
  for (std::size_t i = 0; i < c.numbers.size(); ++i) c.fractional[3 * i] -= 1000 * c.fractional[3 * i + 2];
  double volume = 0, distance = 0;
  core_3d_molecule::crystal_distances(c.f(), c.m(), c.o(), core::tensor(&volume, 1), core::tensor(&distance, 1));
  CHECK_NEAR(volume, 5.64 * 5.64 * 5.64, 1e-6);
  CHECK_NEAR(distance, 2.82, 1e-6);
}

CORE_TEST(hostile_crystals) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), huge = 1e300;
  for (double bad : {nan, huge, -huge, std::numeric_limits<double>::infinity()})
    for (std::size_t at : {0U, 5U}) {
      Crystal place = salt(), cell = salt();
      place.fractional[at] = bad, cell.lattice[at] = bad;
      for (const Crystal* c : {&place, &cell}) {
        CHECK_THROWS(neighbors(*c, 3), "ValueError");
        CHECK_THROWS(match(*c, salt()), "ValueError");
        CHECK_THROWS(match(salt(), *c), "ValueError");
      }
    }
  Crystal flat = salt();
  flat.lattice = {1, 0, 0, 0, 1, 0, 1, 1, 0};
  CHECK_THROWS(neighbors(flat, 3), "ValueError");
  for (double cutoff : {-1.0, 101.0, nan}) CHECK_THROWS(neighbors(salt(), cutoff), "ValueError");
}
