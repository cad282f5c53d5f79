// The bonds of one molecule at a time, as lists of neighbours.
#pragma once
#include <core/tensor.hpp>

#include <vector>

#include "../checks.hpp"

namespace core_3d_molecule {
/// Bonds as operators take them, with what is wrong with them.
struct Bonds {
  const char* op;
  const core::Tensor<const std::int64_t, 1>& offsets;
  const core::Tensor<const std::int64_t, 2>& bonds;
  const core::Tensor<const std::int32_t, 1>& orders;
  const core::Tensor<const std::int64_t, 1>& bond_offsets;

  static constexpr std::int32_t aromatic = 4;

  /// Calls found(i, j, order) with rows of the molecule.
  template <class Found>
  void each(std::int64_t b, Found&& found) const {
    const std::int64_t first = offsets(b), end = offsets(b + 1);
    for (std::int64_t m = bond_offsets(b); m < bond_offsets(b + 1); ++m) {
      const std::int64_t i = bonds(m, 0), j = bonds(m, 1);
      if (i < first || j < first || i >= end || j >= end || i == j)
        refuse(op, "bonds",
               "join two atoms of structure " + std::to_string(b) + ", got " + std::to_string(i) + " and " + std::to_string(j));
      if (orders(m) < 1 || orders(m) > aromatic) refuse(op, "orders", "be in 1..4, got " + std::to_string(orders(m)));
      found(i - first, j - first, orders(m));
    }
  }
};

class Graph {
 public:
  struct Neighbor {
    std::int64_t atom;
    std::int32_t order;
  };

  void build(const Bonds& bonds, std::int64_t b) {
    atoms_ = bonds.offsets(b + 1) - bonds.offsets(b);
    start_.assign(static_cast<std::size_t>(atoms_ + 2), 0);
    std::size_t total = 0;
    bonds.each(b, [&](std::int64_t i, std::int64_t j, std::int32_t) {
      ++start_[static_cast<std::size_t>(i + 2)], ++start_[static_cast<std::size_t>(j + 2)], total += 2;
    });
    for (std::size_t i = 2; i < start_.size(); ++i) start_[i] += start_[i - 1];
    neighbors_.resize(total);
    bonds.each(b, [&](std::int64_t i, std::int64_t j, std::int32_t order) {
      neighbors_[start_[static_cast<std::size_t>(i + 1)]++] = {j, order};
      neighbors_[start_[static_cast<std::size_t>(j + 1)]++] = {i, order};
    });
  }
  std::int64_t atoms() const { return atoms_; }
  const Neighbor* begin(std::int64_t i) const { return neighbors_.data() + start_[static_cast<std::size_t>(i)]; }
  const Neighbor* end(std::int64_t i) const { return neighbors_.data() + start_[static_cast<std::size_t>(i + 1)]; }

 private:
  std::int64_t atoms_ = 0;
  std::vector<std::size_t> start_;
  std::vector<Neighbor> neighbors_;
};
}  // namespace core_3d_molecule
