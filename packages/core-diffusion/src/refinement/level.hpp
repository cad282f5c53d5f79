// What the operators of a level share on every device: how its state is laid out, and the checks of arguments.
#pragma once
#include <core_diffusion/refinement.hpp>

#include <cmath>
#include <string>

namespace core_diffusion {
/// The sizes of a level.
struct Level {
  std::int64_t size, across, side;  // nodes an axis of the volume; cells; nodes, an odd number
  std::int64_t cells, nodes, cell_tiles, node_tiles;

  constexpr explicit Level(std::int64_t size)
      : size(size),
        across(size / 2),
        side(2 * across + 1),
        cells(across * across * across),
        nodes(side * side * side),
        cell_tiles((cells + cell_tile - 1) / cell_tile),
        node_tiles((nodes + node_tile - 1) / node_tile) {}
  constexpr std::int64_t tiles() const { return node_tiles + cell_tiles; }
  /// Whether a node lies in the volume.
  constexpr bool holds(std::int64_t node) const {
    return size == side || (node % side < size && node / side % side < size && node / (side * side) < size);
  }
  /// The number of a node in the grid of the volume alone.
  constexpr std::int64_t in_volume(std::int64_t node) const {
    return size == side ? node : (node / (side * side) * size + node / side % side) * size + node % side;
  }
};

constexpr std::uint8_t node_known = 1, node_asked = 2, cell_refined = 1;
constexpr std::int64_t unseen = -1;  // in place of a tile's first number: to be counted anew
constexpr std::uint8_t front_of(std::int64_t round) { return static_cast<std::uint8_t>(2 + round % 2); }

/// The first node of a cell, with the number of its place in a cube of 27.
constexpr std::int64_t first_node(std::int64_t x, std::int64_t y, std::int64_t z, std::int64_t side) {
  return 2 * ((x * side + y) * side + z);
}
/// The sides of a cell: 0 to 2 that towards the smaller x, y, z, then that towards the larger.
constexpr std::int64_t step_of(int side, int axis) { return side % 3 != axis ? 0 : side < 3 ? -1 : 1; }
/// The i-th of the nine nodes on a side, as a place along an axis.
constexpr std::int64_t place_on(int side, int i, int axis) {
  const int normal = side % 3, first = normal == 0 ? 1 : 0;
  return axis == normal ? (side < 3 ? 0 : 2) : axis == first ? i / 3 : i % 3;
}

[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& must, std::int64_t got) {
  throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must " + must + ", got " + std::to_string(got));
}
inline Level level_of(const char* op, std::int64_t size) {
  if (size < 2 || size > 4097) refuse(op, "size", "be in 2..4097", size);
  return Level(size);
}
inline void check_columns(const char* op, const char* argument, std::int64_t got, std::int64_t want) {
  if (got != want) refuse(op, argument, "have " + std::to_string(want) + " columns at this size", got);
}
inline void check_surface(const char* op, double level) {
  if (!std::isfinite(level)) throw core::Error("ValueError", std::string(op) + ": argument 'level' must be finite");
}
inline Level check_start(std::int64_t coarse, double level, double near, std::int64_t dilation, std::int64_t size) {
  const char* op = "refine_start";
  if (coarse < 2) refuse(op, "coarse", "have at least 2 nodes along each axis", coarse);
  if (size != 2 * coarse - 1 && size != 2 * coarse - 2) refuse(op, "size", "be " + std::to_string(2 * coarse - 2) + " or one more", size);
  check_surface(op, level);
  if (!(near >= 0)) throw core::Error("ValueError", std::string(op) + ": argument 'near' must be >= 0");
  if (dilation < 0 || dilation > 2048) refuse(op, "dilation", "be in 0..2048", dilation);
  return level_of(op, size);
}
inline void check_state(const char* op, const Level& grid, const core::Tensor<float, 2>& values, const core::Tensor<std::uint8_t, 2>& nodes,
                        const core::Tensor<std::uint8_t, 2>& cells, const core::Tensor<std::int64_t, 3>& tiles) {
  check_columns(op, "values", values.shape[1], grid.nodes);
  check_columns(op, "nodes", nodes.shape[1], grid.node_tiles * node_tile);
  check_columns(op, "cells", cells.shape[1], grid.cell_tiles * cell_tile);
  check_columns(op, "tiles", tiles.shape[1], grid.tiles());
}
inline void check_points(std::int64_t first, std::int64_t size, std::int64_t count) {
  const char* op = "grid_points";
  if (size < 1 || size > 4097) refuse(op, "size", "be in 1..4097", size);
  if (first < 0 || first > size * size * size - count)
    refuse(op, "first", "be in 0.." + std::to_string(size * size * size - count) + " for so many points", first);
}
}  // namespace core_diffusion
