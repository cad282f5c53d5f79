// Chains of bonded atoms, valences and cells from corners as C++ functions, and input that no molecule has.
#include <core/test.hpp>
#include <core_3d_molecule/bonds.hpp>
#include <core_3d_molecule/crystals.hpp>
#include <core_3d_molecule/geometry.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {
using std::int32_t;
using std::int64_t;

template <class T, class... S>
core::Tensor<const T, sizeof...(S)> in(const std::vector<T>& v, S... shape) {
  return core::tensor(v.data(), shape...);
}

/// Hydrogen peroxide.
struct Peroxide {
  std::vector<int32_t> numbers{1, 8, 8, 1}, charges{0, 0, 0, 0}, orders{1, 1, 1};
  std::vector<double> positions{0.9, 0.5, 0, 0, 0.7, 0, 0, -0.7, 0, 0.3, -0.9, 0.9};
  std::vector<int64_t> offsets{0, 4}, bonds{0, 1, 2, 1, 2, 3}, bond_offsets{0, 3};

  int64_t count(int64_t kind) const {
    int64_t n = -1;
    core_3d_molecule::chain_count(in(numbers, 4), in(offsets, 2), in(bonds, 3, 2), in(orders, 3), in(bond_offsets, 2), kind,
                                  core::tensor(&n, 1));
    return n;
  }
  double first(int64_t kind) const {
    const int64_t n = count(kind);
    std::vector<int64_t> ends{0, n}, symbols(static_cast<std::size_t>(n));
    std::vector<double> values(static_cast<std::size_t>(n));
    core_3d_molecule::chain_values(in(numbers, 4), in(positions, 4, 3), in(offsets, 2), in(bonds, 3, 2), in(orders, 3), in(bond_offsets, 2),
                                   kind, in(ends, 2), core::tensor(symbols.data(), n), core::tensor(values.data(), n));
    return values.front();
  }
  int64_t stable() const {
    std::vector<int64_t> allowed(119 * 3 * 2);
    allowed[1 * 6 + 2] = 1 << 1, allowed[8 * 6 + 2] = 1 << 2;  // neutral, no aromatic bond
    int64_t n = -1;
    core_3d_molecule::valence_stability(in(numbers, 4), in(charges, 4), in(offsets, 2), in(bonds, 3, 2), in(orders, 3), in(bond_offsets, 2),
                                        in(allowed, 119, 3, 2), core::tensor(&n, 1));
    return n;
  }
};
}  // namespace

CORE_TEST(chains_of_peroxide) {
  const Peroxide p;
  CHECK(p.count(2) == 3 && p.count(3) == 2 && p.count(4) == 1);
  CHECK_NEAR(std::abs(p.first(4)), std::atan2(0.9, 0.3) * 180 / 3.14159265358979, 1e-6);
  CHECK(p.stable() == 4);
}

CORE_TEST(hostile_bonds) {
  constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
  for (int64_t bad : {least, int64_t{-1}, int64_t{4}, most})
    for (std::size_t at = 0; at < 6; ++at) {
      Peroxide p;
      p.bonds[at] = bad;
      CHECK_THROWS(p.count(3), "ValueError");
      CHECK_THROWS(p.stable(), "ValueError");
    }
  for (int32_t bad : {std::numeric_limits<int32_t>::min(), 0, 5, std::numeric_limits<int32_t>::max()}) {
    Peroxide orders, numbers, charges;
    orders.orders[1] = bad, charges.charges[1] = bad == 0 ? -2 : bad, numbers.numbers[1] = bad == 5 ? 119 : bad;
    CHECK_THROWS(orders.count(2), "ValueError");
    CHECK_THROWS(numbers.first(4), "ValueError");
    CHECK(charges.stable() == 3);
  }
  Peroxide far;
  far.positions[4] = std::numeric_limits<double>::infinity();
  CHECK_THROWS(far.first(3), "ValueError");
}

CORE_TEST(cell_from_corners_in_any_order) {
  const double edges[3][3] = {{3, 0, 0}, {-1, 4, 0}, {-0.5, -0.7, 5}};
  std::vector<double> corners(24), lattice(9), origin(3);
  double error = -1;
  for (std::size_t turn = 0; turn < 8; ++turn) {
    for (std::size_t i = 0; i < 8; ++i)
      for (std::size_t k = 0; k < 3; ++k) {
        const std::size_t vertex = (i * 3 + turn) % 8;
        double x = 7;
        for (std::size_t e = 0; e < 3; ++e) x += (vertex >> e & 1) ? edges[e][k] : 0;
        corners[3 * i + k] = x;
      }
    core_3d_molecule::lattice_from_corners(in(corners, 1, 8, 3), core::tensor(lattice.data(), 1, 3, 3), core::tensor(origin.data(), 1, 3),
                                           core::tensor(&error, 1));
    CHECK_NEAR(error, 0, 1e-9);
    const double *a = lattice.data(), *b = a + 3, *c = a + 6;
    CHECK_NEAR(a[0] * a[0] + a[1] * a[1] + a[2] * a[2], 9, 1e-9);
    CHECK_NEAR(a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]), 60, 1e-9);
  }
  std::fill(corners.begin(), corners.end(), 0.0);
  core_3d_molecule::lattice_from_corners(in(corners, 1, 8, 3), core::tensor(lattice.data(), 1, 3, 3), core::tensor(origin.data(), 1, 3),
                                         core::tensor(&error, 1));
  CHECK(std::isinf(error));
}
