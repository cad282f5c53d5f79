// Valences of given bonds; see include/core_3d_molecule/bonds.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/bonds.hpp>

#include <vector>

#include "graph.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

void valence_stability(Tensor<const std::int32_t, 1> numbers, Tensor<const std::int32_t, 1> charges, Tensor<const int64_t, 1> offsets,
                       Tensor<const int64_t, 2> bonds, Tensor<const std::int32_t, 1> orders, Tensor<const int64_t, 1> bond_offsets,
                       Tensor<const int64_t, 3> allowed, Tensor<int64_t, 1> stable_atoms) {
  static constexpr const char* op = "valence_stability";
  constexpr int64_t molecules_per_part = 64;
  constexpr std::int32_t num_elements = 118, most_valence = 62;
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  check_offsets(op, "bond_offsets", bond_offsets, orders.shape[0]);
  const Bonds given{op, offsets, bonds, orders, bond_offsets};
  const int64_t middle = allowed.shape[1] / 2, most_aromatic = allowed.shape[2];
  core::parallel_for(stable_atoms.shape[0], molecules_per_part, [&](int64_t first, int64_t last) {
    std::vector<std::int32_t> valence, aromatic;
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b), n = offsets(b + 1) - row;
      valence.assign(static_cast<std::size_t>(n), 0);
      aromatic.assign(static_cast<std::size_t>(n), 0);
      given.each(b, [&](int64_t i, int64_t j, std::int32_t order) {
        for (int64_t at : {i, j}) {
          if (order == Bonds::aromatic)
            ++aromatic[static_cast<std::size_t>(at)];
          else
            valence[static_cast<std::size_t>(at)] += order;
        }
      });
      int64_t stable = 0;
      for (int64_t i = 0; i < n; ++i) {
        const std::int32_t z = numbers(row + i), sum = valence[static_cast<std::size_t>(i)];
        const int64_t charge = charges(row + i) + middle, rings = aromatic[static_cast<std::size_t>(i)];
        if (z < 1 || z > num_elements)
          refuse(op, "numbers", "be atomic numbers 1..118, got " + std::to_string(z) + " for atom " + std::to_string(row + i));
        if (charge < 0 || charge >= allowed.shape[1] || rings >= most_aromatic || sum > most_valence) continue;
        stable += allowed(z, charge, rings) >> sum & 1;
      }
      stable_atoms(b) = stable;
    }
  });
}
}  // namespace core_3d_molecule
