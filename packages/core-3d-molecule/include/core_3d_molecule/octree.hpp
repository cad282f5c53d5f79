// core_3d_molecule/octree.hpp - octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278).
//
// A structure lies in a cube of 2^depth cells a side. An atom is a cell and, in it, a bin per axis. The octree over
// the occupied cells is written level by level, coarse to fine, each level in ascending Morton order (x is the lowest
// bit): a node is one token, the byte whose bit i says that child i is occupied. Then come the atoms, one token each,
// in the same order, and one CLS token.
//
// Token ids: atomic number - 1 (hydrogen 0), 118..138 the alpha carbons of residues, lattice_token a corner of a crystal's
// cell, cls_token, mask_token, tree_token + the byte of a node; in crystals, then, components_token, count_token + a number
// of atoms, pxrd_token + part. A "number" is the token of an atom, an alpha carbon or a corner, plus 1.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_3d_molecule {
inline constexpr std::int32_t num_elements = 118, num_residues = 21, lattice_token = 341, cls_token = 342, mask_token = 344,
                              tree_token = 346, components_token = 602, count_token = 603, most_counted = 128, pxrd_token = 732;
inline constexpr std::int64_t max_depth = 10;

/// The number of tokens of each structure: nodes, atoms and CLS.
///
/// positions[A,3] in the unit of `cell` (angstroms), those of structure b in rows offsets[b]..offsets[b+1];
/// offsets[B+1] ascends from 0 to A; depth 1..10; cell > 0; counts[B]. middles[B,3]: the point of each structure that
/// comes half a cell behind a cell's corner, into the cube's middle cell, or as near to it as the cube allows; left out, the
/// structure's mean, and its cells are then shifted so that their mean is the cube's middle. drops[B]: the
/// probability with which each node of level 1 is left out, 0 if left out. With `crop`, a structure that the cube cannot hold
/// is cut by a cube at random around one of its atoms. `seed` decides both, together with the structure's row.
/// Throws ValueError: bad offsets, a position that is not finite, a structure that the cube cannot hold (names it
/// and its extent), two atoms in one cell (names both) unless `keep_first`, which drops all but the first.
CORE_EXPORT void octree_count(core::Tensor<const float, 2> positions, core::Tensor<const std::int64_t, 1> offsets, std::int64_t depth,
                              double cell, double resolution, bool keep_first, bool crop, std::int64_t seed,
                              std::optional<core::Tensor<const double, 2>> middles, std::optional<core::Tensor<const double, 1>> drops,
                              core::Tensor<std::int64_t, 1> counts);
CORE_EXPORT void octree_count_f64(core::Tensor<const double, 2> positions, core::Tensor<const std::int64_t, 1> offsets, std::int64_t depth,
                                  double cell, double resolution, bool keep_first, bool crop, std::int64_t seed,
                                  std::optional<core::Tensor<const double, 2>> middles, std::optional<core::Tensor<const double, 1>> drops,
                                  core::Tensor<std::int64_t, 1> counts);

/// The tokens of each structure, in rows token_offsets[b]..token_offsets[b+1] as octree_count gives them.
///
/// numbers[A]: atomic numbers 1..118, 119..139 or 342; tokens[T]; levels[T]: depth..1 for nodes, 0 for atoms, -1 for CLS;
/// centres[T,3]: the middle of the node's cube, of the atom's cell, of the whole cube; bins[T,3]: an atom's place in
/// its cell in units of `resolution`, and for other tokens half the number of bins; counts[T]: the atoms below a node, 1 for
/// an atom, 0 for CLS; atoms[T]: the atom's row in `positions`, else -1; origins[B,3]: what to add to positions in the cube
/// to be back in the structure's frame.
CORE_EXPORT void octree_tokenize(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const float, 2> positions,
                                 core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> token_offsets,
                                 std::int64_t depth, double cell, double resolution, bool keep_first, bool crop, std::int64_t seed,
                                 std::optional<core::Tensor<const double, 2>> middles, std::optional<core::Tensor<const double, 1>> drops,
                                 core::Tensor<std::int32_t, 1> tokens, core::Tensor<std::int32_t, 1> levels, core::Tensor<float, 2> centres,
                                 core::Tensor<std::int32_t, 2> bins, core::Tensor<std::int32_t, 1> counts,
                                 core::Tensor<std::int64_t, 1> atoms, core::Tensor<double, 2> origins);
CORE_EXPORT void octree_tokenize_f64(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> positions,
                                     core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> token_offsets,
                                     std::int64_t depth, double cell, double resolution, bool keep_first, bool crop, std::int64_t seed,
                                     std::optional<core::Tensor<const double, 2>> middles,
                                     std::optional<core::Tensor<const double, 1>> drops, core::Tensor<std::int32_t, 1> tokens,
                                     core::Tensor<std::int32_t, 1> levels, core::Tensor<float, 2> centres,
                                     core::Tensor<std::int32_t, 2> bins, core::Tensor<std::int32_t, 1> counts,
                                     core::Tensor<std::int64_t, 1> atoms, core::Tensor<double, 2> origins);

/// Structures in random orientations, and where octree_tokenize is to put them: `middles` and `drops`.
///
/// positions[A,3] in angstroms, offsets[B+1]; anchors: how many leading points' mean is a structure's middle, 0: all;
/// rotate: the probability of a uniformly random rotation about that middle; noise: the standard deviation of a normal shift
/// on each axis; step, steps: of a further shift by -steps..steps times `step`; drop: drops[B] are uniform in 0..drop.
/// moved[A,3], middles[B,3]. Throws ValueError: bad offsets, a probability outside 0..1, a size outside its range.
CORE_EXPORT void octree_augment(core::Tensor<const double, 2> positions, core::Tensor<const std::int64_t, 1> offsets, std::int64_t anchors,
                                double rotate, double noise, double step, std::int64_t steps, double drop, std::int64_t seed,
                                core::Tensor<double, 2> moved, core::Tensor<double, 2> middles, core::Tensor<double, 1> drops);

/// Structures from token streams; the inverse of octree_tokenize up to half a `resolution` per axis.
///
/// tokens[T], bins[T,3] (read for atoms only), token_offsets[B+1] ascending from 0 to T; origins[B,3], zero if left
/// out; offsets[B+1]: where each structure's atoms go; numbers[A], positions[A,3], in the stream's order.
/// Throws ValueError, naming structure and token, for a stream that no structure has: a wrong kind of token, a node
/// without children, a missing or superfluous token, a bin out of range, another number of atoms than in `offsets`.
CORE_EXPORT void octree_detokenize(core::Tensor<const std::int32_t, 1> tokens, core::Tensor<const std::int32_t, 2> bins,
                                   core::Tensor<const std::int64_t, 1> token_offsets, std::optional<core::Tensor<const double, 2>> origins,
                                   core::Tensor<const std::int64_t, 1> offsets, std::int64_t depth, double cell, double resolution,
                                   core::Tensor<std::int32_t, 1> numbers, core::Tensor<double, 2> positions);

/// The model's input: every token twice, first as mask_token with the coarse position, then itself.
///
/// tokens[T], levels[T], centres[T,3], bins[T,3], counts[T] and token_offsets[R+1] as octree_tokenize gives them, with
/// R = trees B streams: with trees = 2 (crystals), that of the lattice's corners and that of the atoms make one sequence.
/// conditions[B,C]: tokens that begin each sequence, once. S = B C + 2 T rows: packed_tokens[S], packed_levels[S] (-1 for
/// conditions); positions[S,3]: the centre, for an atom's own copy the place that its bins give, for conditions the cube's
/// middle; packed_bins[S,3]: half the number of bins but for an atom's own copy; packed_trees[S]: 0 the atoms' tree, 1 the
/// lattice's, 2 conditions; packed_counts[S]: of a token's own copy and of count_token's, else -1; remaining[S,2]: the atoms
/// and tokens of this level, this one and later ones, 0 for CLS and conditions; cu_seqlens[B+1]: where sequences begin, as
/// attention over sequences of different lengths takes them.
/// Throws ValueError: bad offsets, a bin of an atom outside its cell, another number of trees, 2^31 rows or more.
CORE_EXPORT void octree_pack(core::Tensor<const std::int32_t, 1> tokens, core::Tensor<const std::int32_t, 1> levels,
                             core::Tensor<const float, 2> centres, core::Tensor<const std::int32_t, 2> bins,
                             core::Tensor<const std::int32_t, 1> counts, core::Tensor<const std::int64_t, 1> token_offsets,
                             core::Tensor<const std::int32_t, 2> conditions, std::int64_t trees, std::int64_t depth, double cell,
                             double resolution, core::Tensor<std::int32_t, 1> packed_tokens, core::Tensor<std::int32_t, 1> packed_levels,
                             core::Tensor<float, 2> positions, core::Tensor<std::int32_t, 2> packed_bins,
                             core::Tensor<std::int32_t, 1> packed_trees, core::Tensor<std::int32_t, 1> packed_counts,
                             core::Tensor<std::int32_t, 2> remaining, core::Tensor<std::int32_t, 1> cu_seqlens);
}  // namespace core_3d_molecule
