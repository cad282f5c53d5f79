// core_diffusion/refinement.hpp - the levels of a hierarchical volume decoder (FlashVDM, arXiv 2503.16302, section 3.1).
//
// A grid of `size` nodes along each axis refines one of cells twice as large: C = size / 2 of these an axis, and S = 2 C + 1
// nodes, of which the last lies outside of the volume if `size` is even. A cell is refined if the surface crosses or
// approaches it, or runs into it from a refined one; then its 27 nodes are known, and those to ask the field at are the
// ones that the coarse grid did not know. Node (x, y, z) has the number (x S + y) S + z, a cell likewise.
//
// The state of a level, for each of B shapes (contiguous on CUDA):
//   values[B,V]    V = S^3; NaN where unknown;
//   nodes[B,P]     for each node 0, or 1 if known, or 2 if it is to be asked next; zeros up to a multiple of node_tile;
//   cells[B,Q]     for each cell 0, or 1 if refined, 2 and 3 in the front of an even and an odd round; zeros up to a
//                  multiple of cell_tile;
//   tiles[B,T,4]   of the tiles of nodes: nodes to be asked, known ones of the volume, and the sums of both over the shape's
//                  tiles before; then of the tiles of cells: cells of the front, and three numbers without a meaning.
// counts[B+1,2] is all that the host must see: of each shape the nodes to be asked and the known ones of the volume, then the
// cells of the front of all shapes. Nothing depends on the number of threads.
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {
inline constexpr std::int64_t node_tile = 4096, cell_tile = 1024;

/// Begins a level with round 0. Its front: the cells whose eight nodes in coarse[B,N,N,N] are known (not NaN) and lie on both
/// sides of `level`, or one within `near` of it, and all cells up to `dilation` from these along each axis.
///
/// Writes the whole state and counts. Throws ValueError: N < 2, size neither 2 N - 1 nor 2 N - 2, level not finite, near not
/// at least 0, dilation not in 0..2048, a state of other sizes.
CORE_EXPORT void refine_start(core::Tensor<const float, 4> coarse, double level, double near, std::int64_t dilation, std::int64_t size,
                              core::Tensor<float, 2> values, core::Tensor<std::uint8_t, 2> nodes, core::Tensor<std::uint8_t, 2> cells,
                              core::Tensor<std::int64_t, 3> tiles, core::Tensor<std::int64_t, 2> counts);

/// Lists the nodes to be asked, ascending: index[B,M] their numbers, -1 behind a shape's last; points[B,M,3] where they lie,
/// low + spacing * (x, y, z), no axis beyond node size - 1, and at node 0 behind the last. low[3], spacing[3]: world units.
/// Marks the nodes as known. Throws ValueError: size < 2, M too small, a state of other sizes.
CORE_EXPORT void refine_ask(std::int64_t size, core::Tensor<const double, 1> low, core::Tensor<const double, 1> spacing,
                            core::Tensor<std::uint8_t, 2> nodes, core::Tensor<const std::int64_t, 3> tiles,
                            core::Tensor<std::int64_t, 2> index, core::Tensor<float, 3> points);

/// Takes the answers found[B,M] at index[B,M] and goes on to the next front, of cells that no front held: those with a common
/// side with a cell of round `round`'s whose nine nodes lie on both sides of `level`; from round 1 on their neighbours too.
///
/// Writes state and counts. Throws ValueError: size < 2, level not finite, round < 0, an index not in -1..S^3-1, a state of
/// other sizes.
CORE_EXPORT void refine_follow(std::int64_t size, core::Tensor<const std::int64_t, 2> index, core::Tensor<const float, 2> found,
                               double level, std::int64_t round, core::Tensor<float, 2> values, core::Tensor<std::uint8_t, 2> nodes,
                               core::Tensor<std::uint8_t, 2> cells, core::Tensor<std::int64_t, 3> tiles,
                               core::Tensor<std::int64_t, 2> counts);

/// Lists the known nodes of the volume, shape after shape, ascending: index[K] their numbers in the grid of size^3 nodes, and
/// found[K] their values. Throws ValueError: size < 2, another K, a state of other sizes.
CORE_EXPORT void refine_known(std::int64_t size, core::Tensor<const float, 2> values, core::Tensor<const std::uint8_t, 2> nodes,
                              core::Tensor<const std::int64_t, 3> tiles, core::Tensor<std::int64_t, 1> index, core::Tensor<float, 1> found);

/// points[N,3]: where the nodes first, first + 1, ... of a grid of size^3 nodes lie, low[3] + spacing[3] * (x, y, z).
/// Throws ValueError: size < 1, or nodes that the grid does not have.
CORE_EXPORT void grid_points(std::int64_t first, std::int64_t size, core::Tensor<const double, 1> low,
                             core::Tensor<const double, 1> spacing, core::Tensor<float, 2> points);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA, with a dilation of at most 16. The host waits for nothing and values are not refused: an index without a node is
/// passed over, what has no room is left out. The state is contiguous, and so are points and index of refine_ask.
CORE_EXPORT void refine_start_cuda(core::Tensor<const float, 4> coarse, double level, double near, std::int64_t dilation, std::int64_t size,
                                   core::Tensor<float, 2> values, core::Tensor<std::uint8_t, 2> nodes, core::Tensor<std::uint8_t, 2> cells,
                                   core::Tensor<std::int64_t, 3> tiles, core::Tensor<std::int64_t, 2> counts, core::Stream stream);
CORE_EXPORT void refine_ask_cuda(std::int64_t size, core::Tensor<const double, 1> low, core::Tensor<const double, 1> spacing,
                                 core::Tensor<std::uint8_t, 2> nodes, core::Tensor<const std::int64_t, 3> tiles,
                                 core::Tensor<std::int64_t, 2> index, core::Tensor<float, 3> points, core::Stream stream);
CORE_EXPORT void refine_follow_cuda(std::int64_t size, core::Tensor<const std::int64_t, 2> index, core::Tensor<const float, 2> found,
                                    double level, std::int64_t round, core::Tensor<float, 2> values, core::Tensor<std::uint8_t, 2> nodes,
                                    core::Tensor<std::uint8_t, 2> cells, core::Tensor<std::int64_t, 3> tiles,
                                    core::Tensor<std::int64_t, 2> counts, core::Stream stream);
CORE_EXPORT void refine_known_cuda(std::int64_t size, core::Tensor<const float, 2> values, core::Tensor<const std::uint8_t, 2> nodes,
                                   core::Tensor<const std::int64_t, 3> tiles, core::Tensor<std::int64_t, 1> index,
                                   core::Tensor<float, 1> found, core::Stream stream);
CORE_EXPORT void grid_points_cuda(std::int64_t first, std::int64_t size, core::Tensor<const double, 1> low,
                                  core::Tensor<const double, 1> spacing, core::Tensor<float, 2> points, core::Stream stream);
#endif
}  // namespace core_diffusion
