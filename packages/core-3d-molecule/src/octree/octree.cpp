// Octree tokens; see include/core_3d_molecule/octree.hpp. An atom's key is the Morton code of its cell above its row
// in the structure, so one sort of the keys orders the atoms and every level of the tree.
#include <core/parallel.hpp>

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "../random.hpp"
#include "grid.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint64_t;

constexpr int64_t structures_per_part = 64;

/// What octree_count and octree_tokenize have in common.
struct Settings {
  const char* op;
  Grid grid;
  bool keep_first, crop;
  int64_t seed;
  const std::optional<Tensor<const double, 2>>& middles;
  const std::optional<Tensor<const double, 1>>& drops;

  /// Whether the level 1 nodes of a structure may be left out, and the draws that decide, node by node.
  double drop(int64_t structure) const { return drops ? (*drops)(structure) : 0.0; }
  Random draws(int64_t structure) const { return {seed, Purpose::drop, structure}; }
};

/// One structure at a time as sorted keys; the buffers are kept.
class Encoder {
 public:
  std::vector<uint64_t> keys;      // Morton code << 32 | row in the structure; ascending
  std::vector<std::int32_t> bins;  // three per row
  double origin[3]{};

  explicit Encoder(const Settings& settings) : set_(settings) {}

  template <class T>
  void encode(const Tensor<const T, 2>& positions, int64_t begin, int64_t end, int64_t structure) {
    const int64_t n = end - begin;
    keys.clear();
    std::fill_n(origin, 3, 0.0);
    if (n == 0) return;
    if (n > std::numeric_limits<std::int32_t>::max() / 3) refuse(set_.op, "offsets", "give a structure fewer than 2^31 / 3 atoms");
    cells_.resize(static_cast<std::size_t>(3 * n));
    bins.resize(static_cast<std::size_t>(3 * n));
    Random random(set_.seed, Purpose::crop, structure);
    const int64_t kept = set_.crop ? random.below(n) : 0;
    bool cropped = false;
    for (int axis = 0; axis < 3; ++axis) cropped |= place(positions, begin, n, axis, structure, kept, random);
    for (int64_t i = 0; i < n; ++i) {
      const std::int32_t* c = cells_.data() + 3 * i;
      if (cropped && (outside(c[0]) || outside(c[1]) || outside(c[2]))) continue;
      keys.push_back(morton(c) << 32 | static_cast<uint64_t>(i));
    }
    std::sort(keys.begin(), keys.end());
    const auto same_cell = [](uint64_t a, uint64_t b) { return a >> 32 == b >> 32; };
    if (const auto twice = std::adjacent_find(keys.begin(), keys.end(), same_cell); twice != keys.end()) {
      if (!set_.keep_first)
        refuse(set_.op, "positions",
               "put at most one atom into a cell, got atoms " + std::to_string(begin + static_cast<int64_t>(twice[0] & 0xffffffff)) +
                   " and " + std::to_string(begin + static_cast<int64_t>(twice[1] & 0xffffffff)) + " of structure " +
                   std::to_string(structure) + " in one (keep_first drops the later)");
      keys.erase(std::unique(keys.begin(), keys.end(), same_cell), keys.end());
    }
  }

  int64_t tokens(int64_t structure) const {
    if (keys.empty()) return 1;
    int64_t count = set_.grid.depth + 2;
    for (std::size_t i = 1; i < keys.size(); ++i) count += (std::bit_width((keys[i] ^ keys[i - 1]) >> 32) + 2) / 3;
    if (const double ratio = set_.drop(structure); ratio > 0) {
      Random draws = set_.draws(structure);
      uint64_t before = ~keys.front();
      for (uint64_t key : keys) count -= (key ^ before) >> 35 != 0 && draws.uniform() < ratio, before = key;
    }
    return count;
  }

 private:
  bool outside(std::int32_t cell) const { return cell < 0 || cell >= set_.grid.side(); }

  /// Cells and bins of all atoms along one axis; whether some lie outside the cube, which holds atom `kept`.
  template <class T>
  bool place(const Tensor<const T, 2>& positions, int64_t begin, int64_t n, int axis, int64_t structure, int64_t kept, Random& random) {
    const Grid& grid = set_.grid;
    double middle = 0;
    if (set_.middles) {
      middle = (*set_.middles)(structure, axis);
      if (!std::isfinite(middle))
        refuse(set_.op, "middles", "be finite, got " + text(middle) + " for structure " + std::to_string(structure));
    } else {
      for (int64_t i = 0; i < n; ++i) middle += static_cast<double>(positions(begin + i, axis));
      middle /= static_cast<double>(n);
    }
    const double shift = 0.5 * grid.cell - middle;
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
      cells_[static_cast<std::size_t>(3 * i + axis)] = static_cast<std::int32_t>(at);
      bins[static_cast<std::size_t>(3 * i + axis)] = static_cast<std::int32_t>(std::max(bin, 0.0));
      least = std::min(least, at);
      most = std::max(most, at);
      total += at;
    }
    const bool larger = most - least >= grid.side();
    if (larger && !set_.crop) too_large(axis, static_cast<double>(most - least + 1) * grid.cell, structure);
    int64_t move = 0;
    if (larger) {
      const int64_t first = cells_[static_cast<std::size_t>(3 * kept + axis)] - random.below(grid.side());
      move = -std::clamp(first, least, most - grid.side() + 1);
    } else {
      const int64_t mean = set_.middles ? 0 : (total - n * least) / n + least;
      move = std::clamp(grid.side() / 2 - mean, -least, grid.side() - 1 - most);
    }
    for (int64_t i = 0; i < n; ++i) cells_[static_cast<std::size_t>(3 * i + axis)] += static_cast<std::int32_t>(move);
    origin[axis] = -shift - static_cast<double>(move) * grid.cell;
    return larger;
  }

  template <class T>
  [[gnu::cold]] void check_finite(const Tensor<const T, 2>& positions, int64_t begin, int64_t n, int axis, int64_t structure) const {
    for (int64_t i = begin; i < begin + n; ++i)
      if (const double x = static_cast<double>(positions(i, axis)); !std::isfinite(x))
        refuse(set_.op, "positions",
               "be finite, got " + text(x) + " for atom " + std::to_string(i) + " of structure " + std::to_string(structure));
  }
  [[noreturn, gnu::cold]] void too_large(int axis, double extent, int64_t structure) const {
    refuse(set_.op, "positions",
           "fit into a cube of " + text(static_cast<double>(set_.grid.side()) * set_.grid.cell) + ", got structure " +
               std::to_string(structure) + " with extent " + text(extent) + " along " + "xyz"[axis] +
               " about its mean (a greater depth holds it, 'crop' cuts it)");
  }

  const Settings& set_;
  std::vector<std::int32_t> cells_;  // three per row
};

template <class T>
void count(const Settings& settings, const Tensor<const T, 2>& positions, const Tensor<const int64_t, 1>& offsets,
           const Tensor<int64_t, 1>& counts) {
  check_offsets(settings.op, "offsets", offsets, positions.shape[0]);
  core::parallel_for(counts.shape[0], structures_per_part, [&](int64_t begin, int64_t end) {
    Encoder encoder(settings);
    for (int64_t b = begin; b < end; ++b) {
      encoder.encode(positions, offsets(b), offsets(b + 1), b);
      counts(b) = encoder.tokens(b);
    }
  });
}

/// Where the tokens go.
struct Stream {
  const Tensor<std::int32_t, 1>& tokens;
  const Tensor<std::int32_t, 1>& levels;
  const Tensor<float, 2>& centres;
  const Tensor<std::int32_t, 2>& bins;
  const Tensor<std::int32_t, 1>& counts;
  const Tensor<int64_t, 1>& atoms;
  const Tensor<double, 2>& origins;
};

template <class T>
void tokenize(const Settings& settings, const Tensor<const std::int32_t, 1>& numbers, const Tensor<const T, 2>& positions,
              const Tensor<const int64_t, 1>& offsets, const Tensor<const int64_t, 1>& token_offsets, const Stream& out) {
  const char* op = settings.op;
  const Grid& grid = settings.grid;
  check_offsets(op, "offsets", offsets, positions.shape[0]);
  check_offsets(op, "token_offsets", token_offsets, out.tokens.shape[0]);
  core::parallel_for(out.origins.shape[0], structures_per_part, [&](int64_t first, int64_t last) {
    Encoder encoder(settings);
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = offsets(b);
      encoder.encode(positions, row, offsets(b + 1), b);
      const auto& keys = encoder.keys;
      int64_t at = token_offsets(b);
      if (token_offsets(b + 1) - at != encoder.tokens(b))
        refuse(op, "token_offsets",
               "leave " + std::to_string(encoder.tokens(b)) + " tokens to structure " + std::to_string(b) + ", got " +
                   std::to_string(token_offsets(b + 1) - at));
      for (int axis = 0; axis < 3; ++axis) out.origins(b, axis) = encoder.origin[axis];
      const auto put = [&](int64_t token, int64_t level, uint64_t code, double size, const std::int32_t* bin, int64_t below, int64_t atom) {
        out.tokens(at) = static_cast<std::int32_t>(token);
        out.levels(at) = static_cast<std::int32_t>(level);
        for (int axis = 0; axis < 3; ++axis) {
          out.centres(at, axis) = static_cast<float>((static_cast<double>(gather(code >> axis)) + 0.5) * size);
          out.bins(at, axis) = bin ? bin[axis] : grid.null_bin();
        }
        out.counts(at) = static_cast<std::int32_t>(below);
        out.atoms(at++) = atom;
      };
      const double ratio = settings.drop(b);
      Random draws = settings.draws(b);
      for (int64_t level = grid.depth; level >= 1 && !keys.empty(); --level) {
        const double size = std::ldexp(grid.cell, static_cast<int>(level));
        const auto node = [&](uint64_t key) { return key >> (32 + 3 * level); };
        for (std::size_t i = 0; i < keys.size();) {
          const uint64_t parent = node(keys[i]);
          const std::size_t begin = i;
          unsigned children = 0;
          for (; i < keys.size() && node(keys[i]) == parent; ++i) children |= 1u << (keys[i] >> (32 + 3 * (level - 1)) & 7);
          if (level == 1 && ratio > 0 && draws.uniform() < ratio) continue;
          put(tree_token + static_cast<int64_t>(children), level, parent, size, nullptr, static_cast<int64_t>(i - begin), -1);
        }
      }
      for (uint64_t key : keys) {
        const auto i = static_cast<int64_t>(key & 0xffffffff);
        const std::int32_t z = numbers(row + i);
        if (!is_place(z))
          refuse(op, "numbers",
                 "be atomic numbers 1..118 (or 119..139 for alpha carbons, 342 for a cell's corner), got " + std::to_string(z) +
                     " for atom " + std::to_string(row + i));
        put(z - 1, 0, key >> 32, grid.cell, encoder.bins.data() + 3 * i, 1, row + i);
      }
      put(cls_token, -1, 0, static_cast<double>(grid.side()) * grid.cell, nullptr, 0, -1);
    }
  });
}
}  // namespace

void octree_count(Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets, int64_t depth, double cell, double resolution,
                  bool keep_first, bool crop, int64_t seed, std::optional<Tensor<const double, 2>> middles,
                  std::optional<Tensor<const double, 1>> drops, Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "octree_count";
  count({op, Grid(op, depth, cell, resolution), keep_first, crop, seed, middles, drops}, positions, offsets, counts);
}
void octree_count_f64(Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets, int64_t depth, double cell, double resolution,
                      bool keep_first, bool crop, int64_t seed, std::optional<Tensor<const double, 2>> middles,
                      std::optional<Tensor<const double, 1>> drops, Tensor<int64_t, 1> counts) {
  static constexpr const char* op = "octree_count";
  count({op, Grid(op, depth, cell, resolution), keep_first, crop, seed, middles, drops}, positions, offsets, counts);
}
void octree_tokenize(Tensor<const std::int32_t, 1> numbers, Tensor<const float, 2> positions, Tensor<const int64_t, 1> offsets,
                     Tensor<const int64_t, 1> token_offsets, int64_t depth, double cell, double resolution, bool keep_first, bool crop,
                     int64_t seed, std::optional<Tensor<const double, 2>> middles, std::optional<Tensor<const double, 1>> drops,
                     Tensor<std::int32_t, 1> tokens, Tensor<std::int32_t, 1> levels, Tensor<float, 2> centres, Tensor<std::int32_t, 2> bins,
                     Tensor<std::int32_t, 1> counts, Tensor<int64_t, 1> atoms, Tensor<double, 2> origins) {
  static constexpr const char* op = "octree_tokenize";
  tokenize({op, Grid(op, depth, cell, resolution), keep_first, crop, seed, middles, drops}, numbers, positions, offsets, token_offsets,
           {tokens, levels, centres, bins, counts, atoms, origins});
}
void octree_tokenize_f64(Tensor<const std::int32_t, 1> numbers, Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets,
                         Tensor<const int64_t, 1> token_offsets, int64_t depth, double cell, double resolution, bool keep_first, bool crop,
                         int64_t seed, std::optional<Tensor<const double, 2>> middles, std::optional<Tensor<const double, 1>> drops,
                         Tensor<std::int32_t, 1> tokens, Tensor<std::int32_t, 1> levels, Tensor<float, 2> centres,
                         Tensor<std::int32_t, 2> bins, Tensor<std::int32_t, 1> counts, Tensor<int64_t, 1> atoms,
                         Tensor<double, 2> origins) {
  static constexpr const char* op = "octree_tokenize";
  tokenize({op, Grid(op, depth, cell, resolution), keep_first, crop, seed, middles, drops}, numbers, positions, offsets, token_offsets,
           {tokens, levels, centres, bins, counts, atoms, origins});
}
}  // namespace core_3d_molecule
