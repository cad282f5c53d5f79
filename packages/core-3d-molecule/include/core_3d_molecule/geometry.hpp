// core_3d_molecule/geometry.hpp - how alike two geometries, and two sets of them, are.
#pragma once
#include <core/tensor.hpp>

namespace core_3d_molecule {
/// The root mean square distance of each structure's atoms after the best translation and rotation (Kabsch,
/// doi 10.1107/S0567739476001873; a reflection is no rotation).
///
/// positions[A,3] and targets[A,3], atom by atom, in one unit; offsets[B+1] ascends from 0 to A; rmsd[B], 0 for a
/// structure without atoms.
/// Throws ValueError: bad offsets, a position that is not finite or not in -1e100..1e100.
CORE_EXPORT void kabsch_rmsd(core::Tensor<const double, 2> positions, core::Tensor<const double, 2> targets,
                             core::Tensor<const std::int64_t, 1> offsets, core::Tensor<double, 1> rmsd);

/// The maximum mean discrepancy of two sets of numbers (bond lengths, angles, dihedrals; JODO, arXiv 2305.12347).
///
/// x[N], y[M], 1 to 2^31 - 1 values each; mmd[1]: the mean over all pairs of xx, plus that of yy, minus twice that
/// of xy, of the sum of five Gaussian kernels exp(-d^2 / (2^k s / 4)), k = 0..4, where s is the mean squared
/// difference of different members of the union. 0 if all values are equal.
/// Throws ValueError: an empty set, a value that is not finite or not in -1e100..1e100.
CORE_EXPORT void gaussian_mmd(core::Tensor<const double, 1> x, core::Tensor<const double, 1> y, core::Tensor<double, 1> mmd);

/// How many chains of `kind` bonded atoms (2: bonds, 3: angles, 4: dihedrals) each molecule has.
///
/// numbers[A]: only their number counts; offsets[B+1]: of atoms; bonds[M,2]: two rows of the molecule; orders[M]: 1..3, 4 for aromatic;
/// bond_offsets[B+1]; counts[B]. A dihedral's ends are different atoms. Throws ValueError: bad offsets, orders, a bond that leaves its
/// molecule.
CORE_EXPORT void chain_count(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const std::int64_t, 1> offsets,
                             core::Tensor<const std::int64_t, 2> bonds, core::Tensor<const std::int32_t, 1> orders,
                             core::Tensor<const std::int64_t, 1> bond_offsets, std::int64_t kind, core::Tensor<std::int64_t, 1> counts);

/// The length (unit of positions), angle (degrees, 0..180) or dihedral (degrees, -180..180) of each chain, and what it joins.
///
/// value_offsets[B+1]: running sums of chain_count; symbols[V]: elements and bond orders along the chain, z1 o1 z2 o2 .., seven
/// and three bits each, the last in the lowest bits, from the end that gives the lesser number; values[V].
/// Throws ValueError as chain_count does, and for an atomic number or a position out of range.
CORE_EXPORT void chain_values(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> positions,
                              core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 2> bonds,
                              core::Tensor<const std::int32_t, 1> orders, core::Tensor<const std::int64_t, 1> bond_offsets,
                              std::int64_t kind, core::Tensor<const std::int64_t, 1> value_offsets, core::Tensor<std::int64_t, 1> symbols,
                              core::Tensor<double, 1> values);
}  // namespace core_3d_molecule
