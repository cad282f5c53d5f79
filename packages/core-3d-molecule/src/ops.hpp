// The operators of core-3d-molecule.
#pragma once
#include <core/op.hpp>
#include <core_3d_molecule/bonds.hpp>
#include <core_3d_molecule/crystals.hpp>
#include <core_3d_molecule/geometry.hpp>
#include <core_3d_molecule/octree.hpp>
#include <core_3d_molecule/relational_attention.hpp>

namespace core_3d_molecule {
inline constexpr auto ops = core::op_set(
    core::op<"octree_count", &octree_count, &octree_count_f64>(
        "The number of octree tokens of each structure of a batch.",
        {"positions[A,3]", "offsets[B+1]", "depth", "cell", "resolution", "keep_first", "counts[B]"},
        {.paper = "2503.16278", .ns_per_element = 20}),
    core::op<"octree_tokenize", &octree_tokenize, &octree_tokenize_f64>(
        "The octree tokens of each structure of a batch: nodes coarse to fine, atoms, CLS.",
        {"numbers[A]", "positions[A,3]", "offsets[B+1]", "token_offsets[B+1]", "depth", "cell", "resolution", "keep_first", "tokens[T]",
         "levels[T]", "centres[T,3]", "bins[T,3]", "atoms[T]", "origins[B,3]"},
        {.paper = "2503.16278", .ns_per_element = 5}),
    core::op<"octree_detokenize", &octree_detokenize>("The structures of a batch of octree token streams.",
                                                      {"tokens[T]", "bins[T,3]", "token_offsets[B+1]", "origins[B,3]", "offsets[B+1]",
                                                       "depth", "cell", "resolution", "numbers[A]", "positions[A,3]"},
                                                      {.paper = "2503.16278", .ns_per_element = 5}),
    core::op<"octree_pack", &octree_pack>("Octree tokens as a model's input: each after its MASK copy, with cu_seqlens.",
                                          {"tokens[T]", "levels[T]", "centres[T,3]", "bins[T,3]", "token_offsets[B+1]", "cell",
                                           "resolution", "packed_tokens[T,2]", "packed_levels[T,2]", "positions[T,2,3]", "cu_seqlens[B+1]"},
                                          {.paper = "2503.16278", .ns_per_element = 1}),
    core::op<"edm_stability", &edm_stability, &edm_stability_f64>(
        "Valences by EDM's bond lengths, and how many atoms of each molecule have an allowed one.",
        {"numbers[A]", "positions[A,3]", "offsets[B+1]", "allowed[119]", "valences[A]", "stable_atoms[B]", "bond_counts[B]"},
        {.paper = "2203.17003", .ns_per_element = 20}),
    core::op<"edm_bonds", &edm_bonds, &edm_bonds_f64>(
        "The bonds of each molecule of a batch by EDM's bond lengths.",
        {"numbers[A]", "positions[A,3]", "offsets[B+1]", "bond_offsets[B+1]", "bonds[M,2]", "orders[M]"},
        {.paper = "2203.17003", .ns_per_element = 20}),
    core::op<"kabsch_rmsd", &kabsch_rmsd>("RMSD of each structure of a batch after the best translation and rotation.",
                                          {"positions[A,3]", "targets[A,3]", "offsets[B+1]", "rmsd[B]"}, {.ns_per_element = 10}),
    core::op<"gaussian_mmd", &gaussian_mmd>("Maximum mean discrepancy of two sets of numbers, five Gaussian kernels.",
                                            {"x[N]", "y[M]", "mmd[1]"}, {.paper = "2305.12347", .ns_per_element = 1000}),
    core::op<"niggli_reduce", &niggli_reduce>("Niggli's reduced cell of each lattice of a batch.",
                                              {"lattices[B,3,3]", "reduced[B,3,3]", "transforms[B,3,3]"}, {.ns_per_element = 50}),
    core::op<"neighbor_count", &neighbor_count>("How many neighbours each atom of each crystal has within a cutoff.",
                                                {"fractional[A,3]", "lattices[B,3,3]", "offsets[B+1]", "cutoff", "counts[A]"},
                                                {.ns_per_element = 500}),
    core::op<"neighbor_list", &neighbor_list>("The neighbours of each atom of each crystal within a cutoff.",
                                              {"fractional[A,3]", "lattices[B,3,3]", "offsets[B+1]", "cutoff", "neighbor_offsets[A+1]",
                                               "pairs[P,2]", "shifts[P,3]", "distances[P]"},
                                              {.ns_per_element = 10}),
    core::op<"crystal_distances", &crystal_distances>(
        "The volume and the least distance between different atoms of each crystal.",
        {"fractional[A,3]", "lattices[B,3,3]", "offsets[B+1]", "volumes[B]", "min_distances[B]"}, {.ns_per_element = 100}),
    core::op<"pxrd_count", &pxrd_count>("How many peaks the powder pattern of each crystal may have.",
                                        {"lattices[B,3,3]", "wavelength", "low", "high", "counts[B]"}, {.ns_per_element = 500}),
    core::op<"pxrd_patterns", &pxrd_patterns>("The powder diffraction pattern of each crystal.",
                                              {"numbers[A]", "fractional[A,3]", "lattices[B,3,3]", "offsets[B+1]", "capacities[B+1]",
                                               "wavelength", "low", "high", "two_theta[P]", "intensity[P]", "counts[B]"},
                                              {.ns_per_element = 100}),
    core::op<"match_crystals", &match_crystals>(
        "Whether pairs of crystals are the same within tolerances, and how far apart their atoms are.",
        {"numbers1[A]", "fractional1[A,3]", "lattices1[B,3,3]", "offsets1[B+1]", "numbers2[C]", "fractional2[C,3]", "lattices2[B,3,3]",
         "offsets2[B+1]", "ltol", "stol", "angle_tol", "primitive_cell", "scale", "rms[B]", "max_distance[B]"},
        {.ns_per_element = 1000}),
    core::op<"relational_attention", &relational_attention<float>, &relational_attention<double>>(
        "Attention among the atoms of each molecule, with features of every pair that are made on the fly.",
        {"q[A,H,D]", "k[A,H,D]", "v[A,H,D]", "q_edge[A,H,E]", "k_edge[A,H,E]", "form[H,S]", "positions[A,3]", "bonds[P]", "offsets[B+1]",
         "centres[G]", "widths[G]", "w1[F,I]", "b1[F]", "w2[E,F]", "b2[E]", "out[A,H,D]", "out_edge[A,H,E]", "lse[A,H]"},
        {.paper = "2503.15567", .ns_per_element = 200}),
    core::op<"relational_attention_backward", &relational_attention_backward<float>, &relational_attention_backward<double>>(
        "The gradients of relational_attention.",
        {"q[A,H,D]",
         "k[A,H,D]",
         "v[A,H,D]",
         "q_edge[A,H,E]",
         "k_edge[A,H,E]",
         "form[H,S]",
         "positions[A,3]",
         "bonds[P]",
         "offsets[B+1]",
         "centres[G]",
         "widths[G]",
         "w1[F,I]",
         "b1[F]",
         "w2[E,F]",
         "b2[E]",
         "out[A,H,D]",
         "out_edge[A,H,E]",
         "lse[A,H]",
         "grad_out[A,H,D]",
         "grad_out_edge[A,H,E]",
         "grad_lse[A,H]",
         "grad_q[A,H,D]",
         "grad_k[A,H,D]",
         "grad_v[A,H,D]",
         "grad_q_edge[A,H,E]",
         "grad_k_edge[A,H,E]",
         "grad_form[H,S]",
         "grad_positions[A,3]",
         "grad_centres[G]",
         "grad_widths[G]",
         "grad_w1[F,I]",
         "grad_b1[F]",
         "grad_w2[E,F]",
         "grad_b2[E]"},
        {.paper = "2503.15567", .ns_per_element = 500}));
}  // namespace core_3d_molecule
