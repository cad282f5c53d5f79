// One crystal at a time, and its primitive cell.
#pragma once
#include <vector>

#include "lattice.hpp"

namespace core_3d_molecule {
struct Cell {
  Mat lattice{};
  std::vector<Vec> f;           // fractional coordinates
  std::vector<std::int32_t> z;  // atomic numbers

  std::size_t size() const { return z.size(); }
};

/// Puts the cell into its Niggli basis, of equal ones pymatgen's; false if it cannot be reduced.
bool reduce(Cell& cell);
/// The primitive cell if translations map all atoms on atoms of their element within `tolerance` angstroms on each axis,
/// merged atoms at their mean and elements in alphabetic order; else the cell as it is. False as in `reduce`.
bool make_primitive(Cell& cell, double tolerance);
}  // namespace core_3d_molecule
