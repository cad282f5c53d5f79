// The octree's cube, its cells, and their Morton codes.
#pragma once
#include <core_3d_molecule/octree.hpp>

#include <cmath>
#include <cstdint>

#include "../checks.hpp"

namespace core_3d_molecule {
struct Grid {
  std::int64_t depth, bins;
  double cell, resolution;

  Grid(const char* op, std::int64_t depth, double cell, double resolution) : depth(depth), bins(0), cell(cell), resolution(resolution) {
    if (depth < 1 || depth > max_depth) refuse(op, "depth", "be in 1..10, got " + std::to_string(depth));
    if (!(cell > 0 && cell < 1e6)) refuse(op, "cell", "be in (0, 1e6), got " + text(cell));
    const double ratio = cell / resolution;
    if (!(resolution > 0 && ratio >= 1 && ratio <= 65536 && std::abs(ratio - std::round(ratio)) < 1e-6 * ratio))
      refuse(op, "resolution", "divide 'cell' into 1 to 65536 bins, got " + text(resolution));
    bins = std::llround(ratio);
  }
  std::int64_t side() const { return std::int64_t{1} << depth; }
  std::int32_t null_bin() const { return static_cast<std::int32_t>(bins / 2); }
};

/// A number that stands for an element, an alpha carbon or a corner; its token is one less.
constexpr bool is_place(std::int32_t number) {
  return (number >= 1 && number <= num_elements + num_residues) || number == lattice_token + 1;
}

/// Puts bit i of v to bit 3 i.
constexpr std::uint64_t spread(std::uint64_t v) {
  v = (v | v << 16) & 0x030000ff;
  v = (v | v << 8) & 0x0300f00f;
  v = (v | v << 4) & 0x030c30c3;
  return (v | v << 2) & 0x09249249;
}
constexpr std::int64_t gather(std::uint64_t v) {
  v &= 0x09249249;
  v = (v | v >> 2) & 0x030c30c3;
  v = (v | v >> 4) & 0x0300f00f;
  v = (v | v >> 8) & 0x030000ff;
  return static_cast<std::int64_t>((v | v >> 16) & 0x3ff);
}
constexpr std::uint64_t morton(const std::int32_t* c) {
  return spread(static_cast<std::uint64_t>(c[0])) | spread(static_cast<std::uint64_t>(c[1])) << 1 |
         spread(static_cast<std::uint64_t>(c[2])) << 2;
}
}  // namespace core_3d_molecule
