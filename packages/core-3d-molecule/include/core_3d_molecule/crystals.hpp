// core_3d_molecule/crystals.hpp - reduced cells, neighbours, diffraction patterns and matching of periodic structures.
//
// A crystal is a lattice, whose rows are its three vectors in angstroms, and fractional coordinates. A batch is ragged:
// offsets[B+1] ascends from 0 to A.
//
// All functions throw ValueError for bad offsets, numbers that are not finite, a lattice whose volume is not positive or
// whose vectors are beyond 1e-3..1e5 angstroms, fractional coordinates beyond +-1e6.
#pragma once
#include <core/tensor.hpp>

namespace core_3d_molecule {
/// Niggli's reduced cell of each lattice (Krivy and Gruber 1976; Grosse-Kunstleve, Sauter and Adams 2004,
/// doi 10.1107/S010876730302186X).
///
/// lattices[B,3,3]; reduced[B,3,3] = transforms[B,3,3] lattices, right-handed. Lengths are compared to within 1e-5 of the
/// cube root of the volume. Throws RuntimeError for a cell that 1,000 steps do not reduce.
CORE_EXPORT void niggli_reduce(core::Tensor<const double, 3> lattices, core::Tensor<double, 3> reduced,
                               core::Tensor<std::int64_t, 3> transforms);

/// How many neighbours each atom has within a cutoff (0..100 angstroms), periodic images included.
///
/// counts[A]; an atom's own images count, itself does not. A pair at the cutoff + 1e-8 still counts. Throws ValueError for
/// a crystal that has more than 2^31 pairs.
CORE_EXPORT void neighbor_count(core::Tensor<const double, 2> fractional, core::Tensor<const double, 3> lattices,
                                core::Tensor<const std::int64_t, 1> offsets, double cutoff, core::Tensor<std::int64_t, 1> counts);

/// These neighbours, in rows neighbor_offsets[i]..neighbor_offsets[i+1] for atom i.
///
/// pairs[P,2]: rows i and j of the batch; shifts[P,3]: the lattice vectors to add to j; distances[P]. Ordered by i, j, then shift with the
/// last index first.
CORE_EXPORT void neighbor_list(core::Tensor<const double, 2> fractional, core::Tensor<const double, 3> lattices,
                               core::Tensor<const std::int64_t, 1> offsets, double cutoff,
                               core::Tensor<const std::int64_t, 1> neighbor_offsets, core::Tensor<std::int64_t, 2> pairs,
                               core::Tensor<std::int32_t, 2> shifts, core::Tensor<double, 1> distances);

/// The volume and the least distance of two different atoms, over all periodic images, of each crystal.
///
/// volumes[B]; min_distances[B], infinite below two atoms.
CORE_EXPORT void crystal_distances(core::Tensor<const double, 2> fractional, core::Tensor<const double, 3> lattices,
                                   core::Tensor<const std::int64_t, 1> offsets, core::Tensor<double, 1> volumes,
                                   core::Tensor<double, 1> min_distances);

/// No pattern has more peaks than this: half the points of the reciprocal lattice whose angle is in range.
///
/// wavelength in 0.1..10 angstroms, low and high in 0..180 degrees (2 theta); counts[B]. Throws ValueError for more than
/// 10^7 points.
CORE_EXPORT void pxrd_count(core::Tensor<const double, 3> lattices, double wavelength, double low, double high,
                            core::Tensor<std::int64_t, 1> counts);

/// Powder diffraction patterns: kinematic intensities with Lorentz and polarisation factor, scaled to 100.
///
/// numbers[A]: 1..98; capacities[B+1]: running sums of pxrd_count; two_theta[P] in degrees and intensity[P]: the first
/// counts[b] rows from capacities[b], ascending, the rest 0. Reflections whose angles round to the same 1e-5 degrees are
/// one peak, at the least of them; peaks of 1e-3 or less are left out. Scattering factors: four Gaussians an element (Doyle and Turner
/// 1968; Smith and Burge 1962) by the Mott-Bethe relation.
CORE_EXPORT void pxrd_patterns(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> fractional,
                               core::Tensor<const double, 3> lattices, core::Tensor<const std::int64_t, 1> offsets,
                               core::Tensor<const std::int64_t, 1> capacities, double wavelength, double low, double high,
                               core::Tensor<double, 1> two_theta, core::Tensor<double, 1> intensity, core::Tensor<std::int64_t, 1> counts);

/// Whether pairs of crystals are the same, and how far their atoms are apart if so (Ong et al. 2013,
/// doi 10.1016/j.commatsci.2012.10.028: the matcher of pymatgen with one formula unit).
///
/// Both are reduced to primitive cells (atoms that a translation maps on each other within 0.25 angstroms are one) and
/// Niggli cells, and scaled to their mean volume. Then each lattice of the first that agrees with the second's within
/// relative lengths `ltol` and angles `angle_tol` (degrees), and each translation that brings the rarest element's first
/// atom on one of its kind, is tried. Distances are in units of (volume / atoms)^(1/3) and must be below `stol`.
/// rms[B], max_distance[B]: of the best; NaN for a pair that does not match. At most 1,000 atoms a crystal.
CORE_EXPORT void match_crystals(core::Tensor<const std::int32_t, 1> numbers1, core::Tensor<const double, 2> fractional1,
                                core::Tensor<const double, 3> lattices1, core::Tensor<const std::int64_t, 1> offsets1,
                                core::Tensor<const std::int32_t, 1> numbers2, core::Tensor<const double, 2> fractional2,
                                core::Tensor<const double, 3> lattices2, core::Tensor<const std::int64_t, 1> offsets2, double ltol,
                                double stol, double angle_tol, bool primitive_cell, bool scale, core::Tensor<double, 1> rms,
                                core::Tensor<double, 1> max_distance);

/// The cells whose eight corners these are, in any order and not quite exact.
///
/// corners[B,8,3] in angstroms; lattices[B,3,3]: edges of the parallelepiped nearest to the corners, right-handed, ascending
/// in length, angles all blunt or all sharp; origins[B,3]: one of its corners; errors[B]: the mean distance of the corners
/// from those that three edges of the first one span, infinite for corners in a plane. Throws ValueError: a corner beyond +-1e6.
CORE_EXPORT void lattice_from_corners(core::Tensor<const double, 3> corners, core::Tensor<double, 3> lattices,
                                      core::Tensor<double, 2> origins, core::Tensor<double, 1> errors);

/// Powder patterns on a grid of angles, as Uni-3DAR (arXiv 2503.16278) reads them.
///
/// two_theta[P] and intensity[P] (0..100) of peaks, offsets[B+1]; peaks above `least` and below `high` degrees, and `zeros`
/// random angles at least 0.2 degrees from them with intensity 0, are joined by straight lines; profiles[B,N]: at N angles from
/// 0, high / N apart. The value of the first and of the last point holds beyond it. Throws ValueError: a value out of range.
CORE_EXPORT void pxrd_profile(core::Tensor<const double, 1> two_theta, core::Tensor<const double, 1> intensity,
                              core::Tensor<const std::int64_t, 1> offsets, double high, double least, std::int64_t zeros, std::int64_t seed,
                              core::Tensor<float, 2> profiles);
}  // namespace core_3d_molecule
