// core_3d_molecule/bonds.hpp - bonds from distances, and whether atoms have an allowed valence (EDM, arXiv 2203.17003).
//
// A pair of elements has a single bond below its tabulated length + 10 pm, a double bond if it also has a tabulated
// double length and lies below that + 5 pm, a triple bond likewise with + 3 pm; all comparisons are strict. A pair
// that is not in the table has no bond. The table covers H, B, C, N, O, F, Si, P, S, Cl, As, Br and I; it is the same
// for either order of the two elements.
#pragma once
#include <core/tensor.hpp>

namespace core_3d_molecule {
/// The valence of each atom, and of each molecule the number of atoms with an allowed one and of bonds.
///
/// numbers[A]: atomic numbers 1..118; positions[A,3] in angstroms; offsets[B+1] ascends from 0 to A; allowed[119]: by
/// atomic number a set of valences, bit v for valence v of 0..62; valences[A]: the sum of an atom's bond orders;
/// stable_atoms[B], bond_counts[B].
/// Throws ValueError: bad offsets, an atomic number out of range, a position that is not finite.
CORE_EXPORT void edm_stability(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const float, 2> positions,
                               core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> allowed,
                               core::Tensor<std::int32_t, 1> valences, core::Tensor<std::int64_t, 1> stable_atoms,
                               core::Tensor<std::int64_t, 1> bond_counts);
CORE_EXPORT void edm_stability_f64(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> positions,
                                   core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> allowed,
                                   core::Tensor<std::int32_t, 1> valences, core::Tensor<std::int64_t, 1> stable_atoms,
                                   core::Tensor<std::int64_t, 1> bond_counts);

/// The bonds of each molecule, in rows bond_offsets[b]..bond_offsets[b+1] as bond_counts of edm_stability gives them.
///
/// bonds[M,2]: two rows of `positions`, the lesser first, in ascending order; orders[M]: 1, 2 or 3.
/// Throws ValueError as edm_stability does, and for bond_offsets that leave a molecule another number of bonds.
CORE_EXPORT void edm_bonds(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const float, 2> positions,
                           core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> bond_offsets,
                           core::Tensor<std::int64_t, 2> bonds, core::Tensor<std::int32_t, 1> orders);
CORE_EXPORT void edm_bonds_f64(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> positions,
                               core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> bond_offsets,
                               core::Tensor<std::int64_t, 2> bonds, core::Tensor<std::int32_t, 1> orders);

/// How many atoms of each molecule have an allowed valence, by bonds that are given.
///
/// numbers[A]: 1..118; charges[A]; bonds[M,2]: two rows of the molecule; orders[M]: 1..3, 4 for aromatic; molecule b has rows
/// bond_offsets[b]..bond_offsets[b+1]. allowed[119,2C+1,R]: by atomic number, charge -C..C and number of aromatic bonds, a set
/// of valences of the other bonds, bit v for valence v of 0..62; stable_atoms[B]. What lies outside the table is not stable.
/// Throws ValueError: bad offsets, an atomic number or order out of range, a bond that leaves its molecule.
CORE_EXPORT void valence_stability(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const std::int32_t, 1> charges,
                                   core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 2> bonds,
                                   core::Tensor<const std::int32_t, 1> orders, core::Tensor<const std::int64_t, 1> bond_offsets,
                                   core::Tensor<const std::int64_t, 3> allowed, core::Tensor<std::int64_t, 1> stable_atoms);
}  // namespace core_3d_molecule
