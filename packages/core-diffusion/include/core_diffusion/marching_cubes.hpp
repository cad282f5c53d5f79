// core_diffusion/marching_cubes.hpp - the level set of a partly known volume as an indexed triangle mesh.
//
// Marching cubes (Lorensen and Cline, SIGGRAPH 1987) over the narrow band that a hierarchical decoder has evaluated
// (FlashVDM, arXiv 2503.16302, section 3.2). A node is inside if its value is above the level. A cell takes part only if
// all of its eight nodes are known; a value that is NaN, or absent from a sparse volume, is unknown. So no triangle reaches
// into the unknown, and no vertex is NaN. Every cut edge of the grid has one vertex, shared by all of its cells.
//
// The triangles come from a table that is computed from one rule: where a face of a cell is cut four times, its two inside
// nodes are kept apart. As the rule looks at nothing but the face, both cells at a face agree, and the mesh is
// watertight wherever its surroundings are known: each edge has two triangles, which run through it in opposite directions.
// No triangle has a side within a face of its cell that the rule did not put there, so that no edge has four triangles. A value
// equal to the level puts vertices of several edges at one node: triangles without area, and still watertight by index.
// An infinite value counts as the largest finite one. Level and values are compared as float32.
//
// Vertices and triangles come in the order of the grid's nodes and cells, whatever the number of threads.
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {

/// Counts the vertices and triangles of marching_cubes: counts[2] = {vertices, triangles}.
///
/// volume[X,Y,Z]: values, NaN where unknown. Throws ValueError: level is not finite.
CORE_EXPORT void marching_cubes_count(core::Tensor<const float, 3> volume, double level, core::Tensor<std::int64_t, 1> counts);

/// The level set of volume[X,Y,Z] as an indexed mesh.
///
/// origin[3], spacing[3]: world position of node (0,0,0) and the distance of nodes along each axis (finite, spacing > 0).
/// inward: false gives triangles that are counter-clockwise seen from the side below the level, true from above it.
/// vertices[V,3]: world positions, origin + spacing * (grid position), linear between the two nodes of a cut edge;
/// faces[F,3]: indices into vertices. V and F are those of marching_cubes_count.
/// Throws ValueError: level, origin or spacing out of range, V or F is another one, or V > 2^31 - 1.
CORE_EXPORT void marching_cubes(core::Tensor<const float, 3> volume, double level, core::Tensor<const double, 1> origin,
                                core::Tensor<const double, 1> spacing, bool inward, core::Tensor<float, 2> vertices,
                                core::Tensor<std::int32_t, 2> faces);

/// marching_cubes_count of a sparse volume of shape[3] nodes: node index[n] = (i * shape[1] + j) * shape[2] + k has
/// value values[n]; index ascends strictly. Throws ValueError: a size is not in 0..16384, an index is out of
/// range or does not ascend, or level is not finite.
CORE_EXPORT void sparse_marching_cubes_count(core::Tensor<const std::int64_t, 1> index, core::Tensor<const float, 1> values,
                                             core::Tensor<const std::int64_t, 1> shape, double level, core::Tensor<std::int64_t, 1> counts);

/// marching_cubes of such a sparse volume. Time and memory grow with the rows (i, j) of the grid and its known nodes.
CORE_EXPORT void sparse_marching_cubes(core::Tensor<const std::int64_t, 1> index, core::Tensor<const float, 1> values,
                                       core::Tensor<const std::int64_t, 1> shape, double level, core::Tensor<const double, 1> origin,
                                       core::Tensor<const double, 1> spacing, bool inward, core::Tensor<float, 2> vertices,
                                       core::Tensor<std::int32_t, 2> faces);

}  // namespace core_diffusion
