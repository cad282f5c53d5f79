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
}  // namespace core_3d_molecule
