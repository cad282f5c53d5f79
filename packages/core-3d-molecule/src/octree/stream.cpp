// Token streams back to structures, and to a model's input; see include/core_3d_molecule/octree.hpp.
#include <core/parallel.hpp>

#include <limits>
#include <vector>

#include "grid.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint64_t;

constexpr int64_t structures_per_part = 64;
}  // namespace

void octree_detokenize(Tensor<const std::int32_t, 1> tokens, Tensor<const std::int32_t, 2> bins, Tensor<const int64_t, 1> token_offsets,
                       std::optional<Tensor<const double, 2>> origins, Tensor<const int64_t, 1> offsets, int64_t depth, double cell,
                       double resolution, Tensor<std::int32_t, 1> numbers, Tensor<double, 2> positions) {
  static constexpr const char* op = "octree_detokenize";
  const Grid grid(op, depth, cell, resolution);
  check_offsets(op, "token_offsets", token_offsets, tokens.shape[0]);
  check_offsets(op, "offsets", offsets, numbers.shape[0]);
  core::parallel_for(offsets.shape[0] - 1, structures_per_part, [&](int64_t first, int64_t last) {
    std::vector<uint64_t> nodes, children;
    for (int64_t b = first; b < last; ++b) {
      int64_t at = token_offsets(b);
      const int64_t end = token_offsets(b + 1);
      const auto bad = [&](const std::string& why) {
        refuse(op, "tokens", why + " at token " + std::to_string(at) + " of structure " + std::to_string(b));
      };
      const auto next = [&] {
        if (at == end) bad("not end early, as it does");
        return tokens(at);
      };
      nodes.clear();
      if (next() != cls_token) nodes.push_back(0);
      for (int64_t level = grid.depth; level >= 1; --level) {
        children.clear();
        for (uint64_t node : nodes) {
          const int64_t mask = next() - int64_t{tree_token};
          if (mask < 1 || mask > 255) bad("hold a node's token (347..601) here, got " + std::to_string(tokens(at)));
          for (uint64_t child = 0; child < 8; ++child)
            if (mask >> child & 1) children.push_back(node << 3 | child);
          ++at;
        }
        if (static_cast<int64_t>(children.size()) > end - at) bad("not end early, as it does");
        nodes.swap(children);
      }
      int64_t atom = offsets(b);
      if (static_cast<int64_t>(nodes.size()) != offsets(b + 1) - atom)
        refuse(op, "offsets",
               "leave " + std::to_string(nodes.size()) + " atoms to structure " + std::to_string(b) + ", got " +
                   std::to_string(offsets(b + 1) - atom));
      for (uint64_t code : nodes) {
        const std::int32_t token = next();
        if (token == std::numeric_limits<std::int32_t>::max() || !is_place(token + 1))
          bad("hold an atom's token (0..138 or 341) here, got " + std::to_string(token));
        numbers(atom) = token + 1;
        for (int axis = 0; axis < 3; ++axis) {
          const std::int32_t bin = bins(at, axis);
          if (bin < 0 || bin >= grid.bins)
            refuse(op, "bins",
                   "be in 0.." + std::to_string(grid.bins - 1) + ", got " + std::to_string(bin) + " at token " + std::to_string(at));
          const double p = static_cast<double>(gather(code >> axis)) * grid.cell + bin * grid.resolution;
          positions(atom, axis) = p + (origins ? (*origins)(b, axis) : 0.0);
        }
        ++atom, ++at;
      }
      if (next() != cls_token) bad("hold CLS (342) here, got " + std::to_string(tokens(at)));
      if (++at != end) bad("end after CLS, but go on");
    }
  });
}

void octree_pack(Tensor<const std::int32_t, 1> tokens, Tensor<const std::int32_t, 1> levels, Tensor<const float, 2> centres,
                 Tensor<const std::int32_t, 2> bins, Tensor<const std::int32_t, 1> counts, Tensor<const int64_t, 1> token_offsets,
                 Tensor<const std::int32_t, 2> conditions, int64_t trees, int64_t depth, double cell, double resolution,
                 Tensor<std::int32_t, 1> packed_tokens, Tensor<std::int32_t, 1> packed_levels, Tensor<float, 2> positions,
                 Tensor<std::int32_t, 2> packed_bins, Tensor<std::int32_t, 1> packed_trees, Tensor<std::int32_t, 1> packed_counts,
                 Tensor<std::int32_t, 2> remaining, Tensor<std::int32_t, 1> cu_seqlens) {
  static constexpr const char* op = "octree_pack";
  const Grid grid(op, depth, cell, resolution);
  const int64_t total = tokens.shape[0], batch = conditions.shape[0], before = conditions.shape[1];
  const int64_t size = core::checked_mul(batch, before, op) + core::checked_mul(2, total, op);
  check_offsets(op, "token_offsets", token_offsets, total);
  if (trees < 1 || trees > 2 || token_offsets.shape[0] - 1 != trees * batch)
    refuse(op, "trees", "be 1 or 2, the number of streams of each row of 'conditions', got " + std::to_string(trees));
  if (size > std::numeric_limits<std::int32_t>::max()) refuse(op, "tokens", "give fewer than 2^31 rows, got " + std::to_string(size));
  if (packed_tokens.shape[0] != size) refuse(op, "packed_tokens", "have " + std::to_string(size) + " rows");
  cu_seqlens(0) = 0;
  for (int64_t b = 0; b < batch; ++b) cu_seqlens(b + 1) = static_cast<std::int32_t>((b + 1) * before + 2 * token_offsets((b + 1) * trees));
  const auto middle = static_cast<float>(std::ldexp(0.5 * cell, static_cast<int>(depth)));
  core::parallel_for(batch, structures_per_part, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t at = cu_seqlens(b);
      const auto put = [&](std::int32_t token, std::int32_t level, std::int32_t tree, std::int32_t count, int64_t atoms, int64_t left) {
        packed_tokens(at) = token, packed_levels(at) = level;
        packed_trees(at) = tree, packed_counts(at) = count;
        remaining(at, 0) = static_cast<std::int32_t>(atoms), remaining(at, 1) = static_cast<std::int32_t>(left);
      };
      for (int64_t c = 0; c < before; ++c, ++at) {
        const std::int32_t token = conditions(b, c);
        const bool counted = token >= count_token && token <= count_token + most_counted;
        put(token, -1, 2, counted ? token - count_token : -1, 0, 0);
        for (int axis = 0; axis < 3; ++axis) positions(at, axis) = middle, packed_bins(at, axis) = grid.null_bin();
      }
      for (int64_t tree = trees - 1; tree >= 0; --tree) {
        const int64_t row = b * trees + trees - 1 - tree, end = token_offsets(row + 1);
        for (int64_t t = token_offsets(row), stop = t; t < end; t = stop) {
          const std::int32_t level = levels(t);
          int64_t atoms = 0;
          for (stop = t; stop < end && levels(stop) == level; ++stop) atoms += counts(stop);
          for (int64_t left = level < 0 ? 0 : stop - t; t < stop; ++t, left -= left > 0) {
            put(mask_token, level, static_cast<std::int32_t>(tree), -1, atoms, left);
            for (int axis = 0; axis < 3; ++axis) positions(at, axis) = centres(t, axis), packed_bins(at, axis) = grid.null_bin();
            ++at;
            put(tokens(t), level, static_cast<std::int32_t>(tree), counts(t), atoms, left);
            for (int axis = 0; axis < 3; ++axis) {
              const std::int32_t bin = packed_bins(at, axis) = bins(t, axis);
              if (level) {
                positions(at, axis) = centres(t, axis);
                continue;
              }
              if (bin < 0 || bin >= grid.bins)
                refuse(op, "bins",
                       "be in 0.." + std::to_string(grid.bins - 1) + ", got " + std::to_string(bin) + " at token " + std::to_string(t));
              positions(at, axis) = static_cast<float>(static_cast<double>(centres(t, axis)) - 0.5 * cell + bin * resolution);
            }
            ++at;
            atoms -= counts(t);
          }
        }
      }
    }
  });
}
}  // namespace core_3d_molecule
