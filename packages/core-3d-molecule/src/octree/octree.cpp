// Octree tokens; see include/core_3d_molecule/octree.hpp. An atom's key is the Morton code of its cell above its row
// in the structure, so one sort of the keys orders the atoms and every level of the tree.
#include <core/parallel.hpp>
#include <core_3d_molecule/octree.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "../checks.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint64_t;

constexpr int64_t structures_per_part = 64;

/// The cube, its cells and their bins.
struct Grid {
  int64_t depth, bins;
  double cell, resolution;

  Grid(const char* op, int64_t depth, double cell, double resolution) : depth(depth), bins(0), cell(cell), resolution(resolution) {
    if (depth < 1 || depth > max_depth) refuse(op, "depth", "be in 1..10, got " + std::to_string(depth));
    if (!(cell > 0 && cell < 1e6)) refuse(op, "cell", "be in (0, 1e6), got " + text(cell));
    const double ratio = cell / resolution;
    if (!(resolution > 0 && ratio >= 1 && ratio <= 65536 && std::abs(ratio - std::round(ratio)) < 1e-6 * ratio))
      refuse(op, "resolution", "divide 'cell' into 1 to 65536 bins, got " + text(resolution));
    bins = std::llround(ratio);
  }
  int64_t side() const { return int64_t{1} << depth; }
};

/// Puts bit i of v to bit 3 i.
constexpr uint64_t spread(uint64_t v) {
  v = (v | v << 16) & 0x030000ff;
  v = (v | v << 8) & 0x0300f00f;
  v = (v | v << 4) & 0x030c30c3;
  return (v | v << 2) & 0x09249249;
}
constexpr int64_t gather(uint64_t v) {
  v &= 0x09249249;
  v = (v | v >> 2) & 0x030c30c3;
  v = (v | v >> 4) & 0x0300f00f;
  v = (v | v >> 8) & 0x030000ff;
  return static_cast<int64_t>((v | v >> 16) & 0x3ff);
}
constexpr uint64_t morton(const int64_t (&c)[3]) {
  return spread(static_cast<uint64_t>(c[0])) | spread(static_cast<uint64_t>(c[1])) << 1 | spread(static_cast<uint64_t>(c[2])) << 2;
}

/// One structure at a time as sorted keys; the buffers are kept.
struct Encoder {
  Grid grid;
  const char* op;
  bool keep_first;
  std::vector<uint64_t> keys;             // Morton code << 32 | row in the structure; ascending
  std::vector<std::int32_t> cells, bins;  // three per row
  double origin[3]{};

  template <class T>
  void encode(const Tensor<const T, 2>& positions, int64_t begin, int64_t end, int64_t structure) {
    const int64_t n = end - begin;
    keys.clear();
    std::fill_n(origin, 3, 0.0);
    if (n == 0) return;
    if (n > std::numeric_limits<std::int32_t>::max() / 3) refuse(op, "offsets", "give a structure fewer than 2^31 / 3 atoms");
    cells.resize(static_cast<std::size_t>(3 * n));
    bins.resize(static_cast<std::size_t>(3 * n));
    for (int axis = 0; axis < 3; ++axis) place(positions, begin, n, axis, structure);
    for (int64_t i = 0; i < n; ++i) {
      const std::int32_t* c = cells.data() + 3 * i;
      keys.push_back(morton({c[0], c[1], c[2]}) << 32 | static_cast<uint64_t>(i));
    }
    std::sort(keys.begin(), keys.end());
    const auto same_cell = [](uint64_t a, uint64_t b) { return a >> 32 == b >> 32; };
    if (const auto twice = std::adjacent_find(keys.begin(), keys.end(), same_cell); twice != keys.end()) {
      if (!keep_first)
        refuse(op, "positions",
               "put at most one atom into a cell, got atoms " + std::to_string(begin + static_cast<int64_t>(twice[0] & 0xffffffff)) +
                   " and " + std::to_string(begin + static_cast<int64_t>(twice[1] & 0xffffffff)) + " of structure " +
                   std::to_string(structure) + " in one (keep_first drops the later)");
      keys.erase(std::unique(keys.begin(), keys.end(), same_cell), keys.end());
    }
  }

  int64_t tokens() const {
    int64_t count = 1;
    if (!keys.empty())
      for (int64_t level = 0; level <= grid.depth; ++level) {
        uint64_t before = ~keys.front();
        for (uint64_t key : keys) count += (key ^ before) >> (32 + 3 * level) != 0, before = key;
      }
    return count;
  }

 private:
  /// Cells and bins of all atoms along one axis.
  template <class T>
  void place(const Tensor<const T, 2>& positions, int64_t begin, int64_t n, int axis, int64_t structure) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(positions(begin + i, axis));
    const double shift = 0.5 * grid.cell - sum / static_cast<double>(n);
    constexpr double far = 1e9;  // cells; beyond, no cube holds the structure and integers would overflow
    int64_t least = std::numeric_limits<int64_t>::max(), most = std::numeric_limits<int64_t>::min(), total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double p = static_cast<double>(positions(begin + i, axis)) + shift, cell = std::floor(p / grid.cell);
      if (!(std::abs(cell) < far)) {
        check_finite(positions, begin, n, axis, structure);
        too_large(axis, std::isfinite(p) ? std::abs(p) : std::numeric_limits<double>::max(), structure);
      }
      double bin = std::nearbyint((p - cell * grid.cell) / grid.resolution);
      int64_t at = static_cast<int64_t>(cell);
      if (bin >= static_cast<double>(grid.bins)) bin = 0, ++at;
      cells[static_cast<std::size_t>(3 * i + axis)] = static_cast<std::int32_t>(at);
      bins[static_cast<std::size_t>(3 * i + axis)] = static_cast<std::int32_t>(std::max(bin, 0.0));
      least = std::min(least, at);
      most = std::max(most, at);
      total += at;
    }
    if (most - least >= grid.side()) too_large(axis, static_cast<double>(most - least + 1) * grid.cell, structure);
    const int64_t move = std::clamp(grid.side() / 2 - (total - n * least) / n - least, -least, grid.side() - 1 - most);
    for (int64_t i = 0; i < n; ++i) cells[static_cast<std::size_t>(3 * i + axis)] += static_cast<std::int32_t>(move);
    origin[axis] = -shift - static_cast<double>(move) * grid.cell;
  }

  template <class T>
  [[gnu::cold]] void check_finite(const Tensor<const T, 2>& positions, int64_t begin, int64_t n, int axis, int64_t structure) const {
    for (int64_t i = begin; i < begin + n; ++i)
      if (const double x = static_cast<double>(positions(i, axis)); !std::isfinite(x))
        refuse(op, "positions",
               "be finite, got " + text(x) + " for atom " + std::to_string(i) + " of structure " + std::to_string(structure));
  }
  [[noreturn, gnu::cold]] void too_large(int axis, double extent, int64_t structure) const {
    refuse(op, "positions",
           "fit into a cube of " + text(static_cast<double>(grid.side()) * grid.cell) + ", got structure " + std::to_string(structure) +
               " with extent " + text(extent) + " along " + "xyz"[axis] + " about its mean (a greater depth holds it)");
  }
};

template <class T>
void count(const Tensor<const T, 2>& positions, const Tensor<const int64_t, 1>& offsets, int64_t depth, double cell, double resolution,
           bool keep_first, const Tensor<int64_t, 1>& counts) {
  static constexpr const char* op = "octree_count";
  const Grid grid(op, depth, cell, resolution);
  check_offsets(op, "offsets", offsets, positions.shape[0]);
  core::parallel_for(counts.shape[0], structures_per_part, [&](int64_t begin, int64_t end) {
    Encoder encoder{grid, op, keep_first, {}, {}, {}};
    for (int64_t b = begin; b < end; ++b) {
      encoder.encode(positions, offsets(b), offsets(b + 1), b);
      counts(b) = encoder.tokens();
    }
  });
}

template <class T>
void tokenize(const Tensor<const std::int32_t, 1>& numbers, const Tensor<const T, 2>& positions, const Tensor<const int64_t, 1>& offsets,
              const Tensor<const int64_t, 1>& token_offsets, int64_t depth, double cell, double resolution, bool keep_first,
              const Tensor<std::int32_t, 1>& tokens, const Tensor<std::int32_t, 1>& levels, const Tensor<float, 2>& centres,
              const Tensor<std::int32_t, 2>& bins, const Tensor<int64_t, 1>& atoms, const Tensor<double, 2>& origins) {
  static constexpr const char* op = "octree_tokenize";
  const Grid grid(op, depth, cell, resolution);
  check_offsets(op, "offsets", offsets, positions.shape[0]);
  check_offsets(op, "token_offsets", token_offsets, tokens.shape[0]);
  core::parallel_for(origins.shape[0], structures_per_part, [&](int64_t first, int64_t last) {
    Encoder encoder{grid, op, keep_first, {}, {}, {}};
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b);
      encoder.encode(positions, row, offsets(b + 1), b);
      int64_t at = token_offsets(b);
      if (token_offsets(b + 1) - at != encoder.tokens())
        refuse(op, "token_offsets",
               "leave " + std::to_string(encoder.tokens()) + " tokens to structure " + std::to_string(b) + ", got " +
                   std::to_string(token_offsets(b + 1) - at));
      for (int axis = 0; axis < 3; ++axis) origins(b, axis) = encoder.origin[axis];
      const auto put = [&](int64_t token, int64_t level, uint64_t code, double size, const std::int32_t* bin, int64_t atom) {
        tokens(at) = static_cast<std::int32_t>(token);
        levels(at) = static_cast<std::int32_t>(level);
        for (int axis = 0; axis < 3; ++axis) {
          centres(at, axis) = static_cast<float>((static_cast<double>(gather(code >> axis)) + 0.5) * size);
          bins(at, axis) = bin ? bin[axis] : static_cast<std::int32_t>(grid.bins / 2);
        }
        atoms(at++) = atom;
      };
      for (int64_t level = grid.depth; level >= 1 && !encoder.keys.empty(); --level) {
        const double size = std::ldexp(grid.cell, static_cast<int>(level));
        const auto node = [&](uint64_t key) { return key >> (32 + 3 * level); };
        for (std::size_t i = 0; i < encoder.keys.size();) {
          const uint64_t parent = node(encoder.keys[i]);
          unsigned children = 0;
          for (; i < encoder.keys.size() && node(encoder.keys[i]) == parent; ++i)
            children |= 1u << (encoder.keys[i] >> (32 + 3 * (level - 1)) & 7);
          put(tree_token + static_cast<int64_t>(children), level, parent, size, nullptr, -1);
        }
      }
      for (uint64_t key : encoder.keys) {
        const auto i = static_cast<int64_t>(key & 0xffffffff);
        const std::int32_t z = numbers(row + i);
        if (z < 1 || z > num_elements)
          refuse(op, "numbers", "be atomic numbers 1..118, got " + std::to_string(z) + " for atom " + std::to_string(row + i));
        put(z - 1, 0, key >> 32, grid.cell, encoder.bins.data() + 3 * i, row + i);
      }
      put(cls_token, -1, 0, static_cast<double>(grid.side()) * grid.cell, nullptr, -1);
    }
  });
}
}  // namespace

void octree_count(Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets, int64_t depth, double cell, double resolution,
                  bool keep_first, Tensor<int64_t, 1> counts) {
  count(positions, offsets, depth, cell, resolution, keep_first, counts);
}
void octree_count_f64(Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets, int64_t depth, double cell, double resolution,
                      bool keep_first, Tensor<int64_t, 1> counts) {
  count(positions, offsets, depth, cell, resolution, keep_first, counts);
}

void octree_tokenize(Tensor<const std::int32_t, 1> numbers, Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets,
                     Tensor<const int64_t, 1> token_offsets, int64_t depth, double cell, double resolution, bool keep_first,
                     Tensor<std::int32_t, 1> tokens, Tensor<std::int32_t, 1> levels, Tensor<float, 2> centres, Tensor<std::int32_t, 2> bins,
                     Tensor<int64_t, 1> atoms, Tensor<double, 2> origins) {
  tokenize(numbers, positions, offsets, token_offsets, depth, cell, resolution, keep_first, tokens, levels, centres, bins, atoms, origins);
}
void octree_tokenize_f64(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets,
                         Tensor<const int64_t, 1> token_offsets, int64_t depth, double cell, double resolution, bool keep_first,
                         Tensor<std::int32_t, 1> tokens, Tensor<std::int32_t, 1> levels, Tensor<float, 2> centres,
                         Tensor<std::int32_t, 2> bins, Tensor<int64_t, 1> atoms, Tensor<double, 2> origins) {
  tokenize(numbers, positions, offsets, token_offsets, depth, cell, resolution, keep_first, tokens, levels, centres, bins, atoms, origins);
}

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
        if (token < 0 || token >= num_elements) bad("hold an atom's token (0..117) here, got " + std::to_string(token));
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
                 Tensor<const std::int32_t, 2> bins, Tensor<const int64_t, 1> token_offsets, double cell, double resolution,
                 Tensor<std::int32_t, 2> packed_tokens, Tensor<std::int32_t, 2> packed_levels, Tensor<float, 3> positions,
                 Tensor<std::int32_t, 1> cu_seqlens) {
  static constexpr const char* op = "octree_pack";
  constexpr int64_t tokens_per_part = 4096;
  const Grid grid(op, 1, cell, resolution);
  const int64_t total = tokens.shape[0];
  if (total > std::numeric_limits<std::int32_t>::max() / 2) refuse(op, "tokens", "be fewer than 2^30, got " + std::to_string(total));
  check_offsets(op, "token_offsets", token_offsets, total);
  for (int64_t b = 0; b < cu_seqlens.shape[0]; ++b) cu_seqlens(b) = static_cast<std::int32_t>(2 * token_offsets(b));
  core::parallel_for(total, tokens_per_part, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      packed_tokens(t, 0) = mask_token, packed_tokens(t, 1) = tokens(t);
      const std::int32_t level = packed_levels(t, 0) = packed_levels(t, 1) = levels(t);
      for (int axis = 0; axis < 3; ++axis) {
        const float centre = positions(t, 0, axis) = positions(t, 1, axis) = centres(t, axis);
        if (level) continue;
        const std::int32_t bin = bins(t, axis);
        if (bin < 0 || bin >= grid.bins)
          refuse(op, "bins",
                 "be in 0.." + std::to_string(grid.bins - 1) + ", got " + std::to_string(bin) + " at token " + std::to_string(t));
        positions(t, 1, axis) = static_cast<float>(static_cast<double>(centre) - 0.5 * cell + bin * resolution);
      }
    }
  });
}
}  // namespace core_3d_molecule
