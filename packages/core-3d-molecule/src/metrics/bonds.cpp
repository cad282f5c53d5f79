// Bonds from distances; see include/core_3d_molecule/bonds.hpp. A pair is first held against a squared limit, a little
// too long, and only what passes gets its root and the exact comparison.
#include <core/parallel.hpp>
#include <core_3d_molecule/bonds.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t molecules_per_part = 64;
constexpr int num_elements = 118, num_kinds = 14;  // the 13 elements of the table, and all others

struct Length {
  int a, b, single, twofold, threefold;  // atomic numbers; picometres, 0: no such bond
};
constexpr Length lengths[] = {
    {1, 1, 74, 0, 0},      {1, 5, 119, 0, 0},   {1, 6, 109, 0, 0},     {1, 7, 101, 0, 0},     {1, 8, 96, 0, 0},      {1, 9, 92, 0, 0},
    {1, 14, 148, 0, 0},    {1, 15, 144, 0, 0},  {1, 16, 134, 0, 0},    {1, 17, 127, 0, 0},    {1, 33, 152, 0, 0},    {1, 35, 141, 0, 0},
    {1, 53, 161, 0, 0},    {5, 17, 175, 0, 0},  {6, 6, 154, 134, 120}, {6, 7, 147, 129, 116}, {6, 8, 143, 120, 113}, {6, 9, 135, 0, 0},
    {6, 14, 185, 0, 0},    {6, 15, 184, 0, 0},  {6, 16, 182, 160, 0},  {6, 17, 177, 0, 0},    {6, 35, 194, 0, 0},    {6, 53, 214, 0, 0},
    {7, 7, 145, 125, 110}, {7, 8, 140, 121, 0}, {7, 9, 136, 0, 0},     {7, 15, 177, 0, 0},    {7, 16, 168, 0, 0},    {7, 17, 175, 0, 0},
    {7, 35, 214, 0, 0},    {7, 53, 222, 0, 0},  {8, 8, 148, 121, 0},   {8, 9, 142, 0, 0},     {8, 14, 163, 0, 0},    {8, 15, 163, 150, 0},
    {8, 16, 151, 0, 0},    {8, 17, 164, 0, 0},  {8, 35, 172, 0, 0},    {8, 53, 194, 0, 0},    {9, 9, 142, 0, 0},     {9, 14, 160, 0, 0},
    {9, 15, 156, 0, 0},    {9, 16, 158, 0, 0},  {9, 17, 166, 0, 0},    {9, 35, 178, 0, 0},    {9, 53, 187, 0, 0},    {14, 14, 233, 0, 0},
    {14, 16, 200, 0, 0},   {14, 17, 202, 0, 0}, {14, 35, 215, 0, 0},   {14, 53, 243, 0, 0},   {15, 15, 221, 0, 0},   {15, 16, 210, 186, 0},
    {15, 17, 203, 0, 0},   {15, 35, 222, 0, 0}, {16, 16, 204, 0, 0},   {16, 17, 207, 0, 0},   {16, 35, 225, 0, 0},   {16, 53, 234, 0, 0},
    {17, 17, 199, 0, 0},   {17, 35, 214, 0, 0}, {35, 35, 228, 0, 0},   {53, 53, 266, 0, 0}};

constexpr int kind_of(int number) {
  constexpr int elements[] = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 35, 53};
  for (int k = 0; k < num_kinds - 1; ++k)
    if (elements[k] == number) return k;
  return num_kinds - 1;
}

struct Table {
  std::uint8_t kind[num_elements + 1]{};
  double near[num_kinds][num_kinds]{};      // square angstroms
  double limit[num_kinds][num_kinds][3]{};  // picometres

  constexpr Table() {
    for (int z = 0; z <= num_elements; ++z) kind[z] = static_cast<std::uint8_t>(kind_of(z));
    for (const auto& l : lengths) {
      const int a = kind[l.a], b = kind[l.b];
      const double single = l.single + 10.0;
      near[a][b] = near[b][a] = single * single * 1.000001e-4;
      limit[a][b][0] = limit[b][a][0] = single;
      limit[a][b][1] = limit[b][a][1] = l.twofold ? l.twofold + 5.0 : 0.0;
      limit[a][b][2] = limit[b][a][2] = l.threefold ? l.threefold + 3.0 : 0.0;
    }
  }
  int order(int a, int b, double square) const {
    const double distance = 100 * std::sqrt(square);
    const double* at = limit[a][b];
    if (!(distance < at[0])) return 0;
    if (!(distance < at[1])) return 1;
    return distance < at[2] ? 3 : 2;
  }
};
constexpr Table table;

/// One molecule at a time, gathered; the buffers are kept.
struct Molecule {
  std::vector<double> x, y, z;
  std::vector<std::uint8_t> kind;

  template <class T>
  void gather(const char* op, const Tensor<const std::int32_t, 1>& numbers, const Tensor<const T, 2>& positions, int64_t begin,
              int64_t end) {
    const auto n = static_cast<std::size_t>(end - begin);
    x.resize(n), y.resize(n), z.resize(n), kind.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      const int64_t row = begin + static_cast<int64_t>(i);
      const std::int32_t number = numbers(row);
      if (number < 1 || number > num_elements)
        refuse(op, "numbers", "be atomic numbers 1..118, got " + std::to_string(number) + " for atom " + std::to_string(row));
      kind[i] = table.kind[number];
      x[i] = static_cast<double>(positions(row, 0));
      y[i] = static_cast<double>(positions(row, 1));
      z[i] = static_cast<double>(positions(row, 2));
      for (double v : {x[i], y[i], z[i]})
        if (!std::isfinite(v)) refuse(op, "positions", "be finite, got " + text(v) + " for atom " + std::to_string(row));
    }
  }

  /// Calls found(i, j, order) for each bond, i < j ascending.
  template <class Found>
  void bonds(Found&& found) const {
    const std::size_t n = kind.size();
    for (std::size_t i = 0; i + 1 < n; ++i) {
      const double* near = table.near[kind[i]];
      const double xi = x[i], yi = y[i], zi = z[i];
      for (std::size_t j = i + 1; j < n; ++j) {
        const double dx = x[j] - xi, dy = y[j] - yi, dz = z[j] - zi, square = dx * dx + dy * dy + dz * dz;
        if (square < near[kind[j]])
          if (const int order = table.order(kind[i], kind[j], square)) found(i, j, order);
      }
    }
  }
};

template <class T>
void stability(const Tensor<const std::int32_t, 1>& numbers, const Tensor<const T, 2>& positions, const Tensor<const int64_t, 1>& offsets,
               const Tensor<const int64_t, 1>& allowed, const Tensor<std::int32_t, 1>& valences, const Tensor<int64_t, 1>& stable_atoms,
               const Tensor<int64_t, 1>& bond_counts) {
  static constexpr const char* op = "edm_stability";
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  core::parallel_for(bond_counts.shape[0], molecules_per_part, [&](int64_t first, int64_t last) {
    Molecule molecule;
    std::vector<std::int32_t> sum;
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b);
      molecule.gather(op, numbers, positions, row, offsets(b + 1));
      sum.assign(molecule.kind.size(), 0);
      int64_t count = 0, stable = 0;
      molecule.bonds([&](std::size_t i, std::size_t j, int order) { sum[i] += order, sum[j] += order, ++count; });
      for (std::size_t i = 0; i < sum.size(); ++i) {
        const int64_t at = row + static_cast<int64_t>(i);
        valences(at) = sum[i];
        stable += sum[i] < 63 && (allowed(numbers(at)) >> sum[i] & 1);
      }
      stable_atoms(b) = stable;
      bond_counts(b) = count;
    }
  });
}

template <class T>
void list_bonds(const Tensor<const std::int32_t, 1>& numbers, const Tensor<const T, 2>& positions, const Tensor<const int64_t, 1>& offsets,
                const Tensor<const int64_t, 1>& bond_offsets, const Tensor<int64_t, 2>& bonds, const Tensor<std::int32_t, 1>& orders) {
  static constexpr const char* op = "edm_bonds";
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  check_offsets(op, "bond_offsets", bond_offsets, orders.shape[0]);
  core::parallel_for(offsets.shape[0] - 1, molecules_per_part, [&](int64_t first, int64_t last) {
    Molecule molecule;
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b), begin = bond_offsets(b), end = bond_offsets(b + 1);
      molecule.gather(op, numbers, positions, row, offsets(b + 1));
      int64_t at = begin;
      molecule.bonds([&](std::size_t i, std::size_t j, int order) {
        if (at < end) {
          bonds(at, 0) = row + static_cast<int64_t>(i);
          bonds(at, 1) = row + static_cast<int64_t>(j);
          orders(at) = order;
        }
        ++at;
      });
      if (at != end)
        refuse(op, "bond_offsets",
               "leave " + std::to_string(at - begin) + " bonds to structure " + std::to_string(b) + ", got " + std::to_string(end - begin));
    }
  });
}
}  // namespace

void edm_stability(Tensor<const std::int32_t, 1> numbers, Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets,
                   Tensor<const int64_t, 1> allowed, Tensor<std::int32_t, 1> valences, Tensor<int64_t, 1> stable_atoms,
                   Tensor<int64_t, 1> bond_counts) {
  stability(numbers, positions, offsets, allowed, valences, stable_atoms, bond_counts);
}
void edm_stability_f64(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets,
                       Tensor<const int64_t, 1> allowed, Tensor<std::int32_t, 1> valences, Tensor<int64_t, 1> stable_atoms,
                       Tensor<int64_t, 1> bond_counts) {
  stability(numbers, positions, offsets, allowed, valences, stable_atoms, bond_counts);
}
void edm_bonds(Tensor<const std::int32_t, 1> numbers, Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets,
               Tensor<const int64_t, 1> bond_offsets, Tensor<int64_t, 2> bonds, Tensor<std::int32_t, 1> orders) {
  list_bonds(numbers, positions, offsets, bond_offsets, bonds, orders);
}
void edm_bonds_f64(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets,
                   Tensor<const int64_t, 1> bond_offsets, Tensor<int64_t, 2> bonds, Tensor<std::int32_t, 1> orders) {
  list_bonds(numbers, positions, offsets, bond_offsets, bonds, orders);
}
}  // namespace core_3d_molecule
