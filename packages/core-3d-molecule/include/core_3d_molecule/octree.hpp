// core_3d_molecule/octree.hpp - octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278).
//
// A structure lies in a cube of 2^depth cells a side. An atom is a cell and, in it, a bin per axis. The octree over
// the occupied cells is written level by level, coarse to fine, each level in ascending Morton order (x is the lowest
// bit): a node is one token, the byte whose bit i says that child i is occupied. Then come the atoms, one token each,
// in the same order, and one CLS token.
//
// Token ids: atomic number - 1 (hydrogen 0), cls_token, mask_token, tree_token + the byte of a node.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_3d_molecule {
inline constexpr std::int32_t num_elements = 118, cls_token = 342, mask_token = 344, tree_token = 346;
inline constexpr std::int64_t max_depth = 10;

/// The number of tokens of each structure: nodes, atoms and CLS.
///
/// positions[A,3] in the unit of `cell` (angstroms), those of structure b in rows offsets[b]..offsets[b+1];
/// offsets[B+1] ascends from 0 to A; depth 1..10; cell > 0; counts[B]. A structure's mean lies half a cell behind a
/// cell's corner; its cells are shifted so that their mean is the cube's middle, or as near to it as the cube allows.
/// Throws ValueError: bad offsets, a position that is not finite, a structure that the cube cannot hold (names it
/// and its extent), two atoms in one cell (names both) unless `keep_first`, which drops all but the first.
CORE_EXPORT void octree_count(core::Tensor<const float, 2> positions, core::Tensor<const std::int64_t, 1> offsets, std::int64_t depth,
                              double cell, double resolution, bool keep_first, core::Tensor<std::int64_t, 1> counts);
CORE_EXPORT void octree_count_f64(core::Tensor<const double, 2> positions, core::Tensor<const std::int64_t, 1> offsets, std::int64_t depth,
                                  double cell, double resolution, bool keep_first, core::Tensor<std::int64_t, 1> counts);

/// The tokens of each structure, in rows token_offsets[b]..token_offsets[b+1] as octree_count gives them.
///
/// numbers[A]: atomic numbers 1..118; tokens[T]; levels[T]: depth..1 for nodes, 0 for atoms, -1 for CLS;
/// centres[T,3]: the middle of the node's cube, of the atom's cell, of the whole cube; bins[T,3]: an atom's place in
/// its cell in units of `resolution`, and for other tokens half the number of bins; atoms[T]: the atom's row in
/// `positions`, else -1; origins[B,3]: what to add to positions in the cube to be back in the structure's frame.
CORE_EXPORT void octree_tokenize(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const float, 2> positions,
                                 core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> token_offsets,
                                 std::int64_t depth, double cell, double resolution, bool keep_first, core::Tensor<std::int32_t, 1> tokens,
                                 core::Tensor<std::int32_t, 1> levels, core::Tensor<float, 2> centres, core::Tensor<std::int32_t, 2> bins,
                                 core::Tensor<std::int64_t, 1> atoms, core::Tensor<double, 2> origins);
CORE_EXPORT void octree_tokenize_f64(core::Tensor<const std::int32_t, 1> numbers, core::Tensor<const double, 2> positions,
                                     core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const std::int64_t, 1> token_offsets,
                                     std::int64_t depth, double cell, double resolution, bool keep_first,
                                     core::Tensor<std::int32_t, 1> tokens, core::Tensor<std::int32_t, 1> levels,
                                     core::Tensor<float, 2> centres, core::Tensor<std::int32_t, 2> bins,
                                     core::Tensor<std::int64_t, 1> atoms, core::Tensor<double, 2> origins);

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
/// tokens[T], levels[T], centres[T,3], bins[T,3] and token_offsets[B+1] as octree_tokenize gives them, cell and
/// resolution in the unit of `centres`. packed_tokens[T,2] and packed_levels[T,2]; positions[T,2,3]: the centre, and
/// for an atom's own copy the place that its bins give; cu_seqlens[B+1]: twice the offsets, as attention over
/// sequences of different lengths takes them.
/// Throws ValueError: bad offsets, a bin of an atom outside its cell, more than 2^30 - 1 tokens.
CORE_EXPORT void octree_pack(core::Tensor<const std::int32_t, 1> tokens, core::Tensor<const std::int32_t, 1> levels,
                             core::Tensor<const float, 2> centres, core::Tensor<const std::int32_t, 2> bins,
                             core::Tensor<const std::int64_t, 1> token_offsets, double cell, double resolution,
                             core::Tensor<std::int32_t, 2> packed_tokens, core::Tensor<std::int32_t, 2> packed_levels,
                             core::Tensor<float, 3> positions, core::Tensor<std::int32_t, 1> cu_seqlens);
}  // namespace core_3d_molecule
