// The levels of a hierarchical volume decoder on the CPU: tiles of nodes and cells are passed over unless something in them
// changed, so that a round takes as long as its front is large.
#include <core/parallel.hpp>
#include <core_diffusion/refinement.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "level.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint8_t;

/// Contiguous memory with a tensor's elements: the tensor's own, or a copy that goes back to an output in the end.
template <class T, int N>
class Packed {
 public:
  explicit Packed(Tensor<T, N> t) : t_(t), data_(t.data) {
    if (t.contiguous()) return;
    copy_.resize(static_cast<std::size_t>(t.numel()));
    data_ = copy_.data();
    each([](auto& copy, auto& own) { copy = own; });
  }
  ~Packed() {
    if constexpr (!std::is_const_v<T>)
      if (!copy_.empty()) each([](auto& copy, auto& own) { own = copy; });
  }
  Packed(const Packed&) = delete;
  T* data() const { return data_; }

 private:
  template <class F>
  void each(F f) {
    for (int64_t i = 0; i < t_.numel(); ++i) {
      int64_t rest = i, at = 0;
      for (std::size_t d = N; d-- > 0; rest /= t_.shape[d]) at += rest % t_.shape[d] * t_.stride[d];
      f(copy_[static_cast<std::size_t>(i)], t_.data[at]);
    }
  }
  Tensor<T, N> t_;
  T* data_;
  std::vector<std::remove_const_t<T>> copy_;
};

/// f(shape, tile) for the tiles of all shapes, side by side.
template <class F>
void each_tile(int64_t batch, int64_t tiles, F&& f) {
  core::parallel_for(batch * tiles, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / tiles, i % tiles);
  });
}

/// f(i) for the bytes that are not 0.
template <class F>
void each_set(const uint8_t* bytes, int64_t count, F&& f) {
  for (int64_t i = 0; i < count; i += 8) {
    std::uint64_t eight;
    std::memcpy(&eight, bytes + i, 8);
    if (!eight) continue;
    for (int64_t j = i; j < i + 8; ++j)
      if (bytes[j]) f(j);
  }
}

struct State {
  Level grid;
  int64_t batch;
  float* values;
  uint8_t *nodes, *cells;
  int64_t (*tiles)[4];

  float* values_of(int64_t b) const { return values + b * grid.nodes; }
  uint8_t* nodes_of(int64_t b) const { return nodes + b * grid.node_tiles * node_tile; }
  uint8_t* cells_of(int64_t b) const { return cells + b * grid.cell_tiles * cell_tile; }
  int64_t (*tiles_of(int64_t b) const)[4] { return tiles + b * grid.tiles(); }

  /// Marks the nodes of the front's cells, and the cells of the front before as refined.
  void mark(uint8_t front) const {
    each_tile(batch, grid.cell_tiles, [&](int64_t b, int64_t tile) {
      auto* const of_shape = tiles_of(b);
      int64_t& held = of_shape[grid.node_tiles + tile][0];
      if (held == 0) return;
      held = 0;
      const int64_t base = tile * cell_tile, n = grid.side;
      uint8_t *const state = cells_of(b) + base, *const known = nodes_of(b);
      const float* const value = values_of(b);
      each_set(state, cell_tile, [&](int64_t i) {
        const int64_t cell = base + i, row = cell / grid.across;
        if (state[i] != front || cell >= grid.cells) {
          state[i] = cell_refined;
          return;
        }
        ++held;
        const int64_t first = first_node(row / grid.across, row % grid.across, cell % grid.across, n);
        for (int64_t x = 0; x < 3; ++x)
          for (int64_t y = 0; y < 3; ++y)
            for (int64_t node = first + (x * n + y) * n, end = node + 3; node < end; ++node) {
              std::atomic_ref<uint8_t> at(known[node]);
              if (at.load(std::memory_order_relaxed)) continue;
              at.store(value[node] != value[node] ? node_asked : node_known, std::memory_order_relaxed);
              std::atomic_ref<int64_t>(of_shape[node / node_tile][0]).store(unseen, std::memory_order_relaxed);
            }
      });
    });
  }

  void count(Tensor<int64_t, 2> counts) const {
    each_tile(batch, grid.node_tiles, [&](int64_t b, int64_t tile) {
      auto& held = tiles_of(b)[tile];
      if (held[0] != unseen) {
        held[0] = 0;
        return;
      }
      held[0] = held[1] = 0;
      const uint8_t* const state = nodes_of(b) + tile * node_tile;
      each_set(state, node_tile, [&](int64_t i) {
        held[0] += state[i] == node_asked;
        held[1] += grid.holds(tile * node_tile + i);
      });
    });
    int64_t front = 0;
    for (int64_t b = 0; b < batch; ++b) {
      auto* const tile = tiles_of(b);
      std::uint64_t asked = 0, known = 0;  // any numbers may have come in
      for (int64_t t = 0; t < grid.node_tiles; ++t) {
        tile[t][2] = static_cast<int64_t>(asked), tile[t][3] = static_cast<int64_t>(known);
        asked += static_cast<std::uint64_t>(tile[t][0]), known += static_cast<std::uint64_t>(tile[t][1]);
      }
      for (int64_t t = grid.node_tiles; t < grid.tiles(); ++t) front += tile[t][0];
      counts(b, 0) = static_cast<int64_t>(asked), counts(b, 1) = static_cast<int64_t>(known);
    }
    counts(batch, 0) = front, counts(batch, 1) = 0;
  }
};

/// cells[across] along a row: 1 where the eight nodes lie on both sides, or near. rows: of the nodes (x, y), (x, y + 1),
/// (x + 1, y), (x + 1, y + 1).
void active_row(const float* const (&rows)[4], int64_t stride, int64_t across, float level, float near, uint8_t* line, uint8_t* cells) {
  constexpr int unknown = 16;
  const auto of = [=](float v) { return (v > level) + (v != v) * unknown; };
  for (int64_t z = 0; z <= across; ++z) {
    int sum = 0;
    for (const float* row : rows) sum += of(row[z * stride]);
    line[z] = static_cast<uint8_t>(sum);
  }
  for (int64_t z = 0; z < across; ++z) {
    const int sum = line[z] + line[z + 1];
    cells[z] = sum > 0 && sum < 8;
  }
  if (near <= 0) return;
  for (int64_t z = 0; z < across; ++z) {
    bool some = false;
    for (const float* row : rows)
      for (int64_t i = z; i < z + 2; ++i) some |= std::abs(row[i * stride] - level) <= near;
    cells[z] |= static_cast<uint8_t>(some && line[z] + line[z + 1] < unknown);
  }
}

/// Sets what lies up to `reach` from a set byte of a line.
void dilate_line(uint8_t* line, int64_t stride, int64_t count, int64_t reach, std::vector<int64_t>& away) {
  away.resize(static_cast<std::size_t>(count));
  int64_t since = reach + 1;
  for (int64_t i = 0; i < count; ++i) away[static_cast<std::size_t>(i)] = since = line[i * stride] ? 0 : since + 1;
  since = reach + 1;
  for (int64_t i = count; i-- > 0;) {
    since = line[i * stride] ? 0 : since + 1;
    line[i * stride] = std::min(since, away[static_cast<std::size_t>(i)]) <= reach;
  }
}

/// Every cell of [across]^3 with those up to `reach` from it along each axis.
void dilate(uint8_t* cells, int64_t across, int64_t reach) {
  const int64_t plane = across * across;
  for (const int64_t axis : {plane, across, int64_t{1}})
    core::parallel_for(plane, 64, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> away;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = axis == plane ? i : axis == 1 ? i * across : i / across * plane + i % across;
        dilate_line(cells + at, axis, across, reach, away);
      }
    });
}

void place_points(const Level& grid, const double (&low)[3], const double (&spacing)[3], int64_t node, float* point) {
  const int64_t last = grid.size - 1, row = node / grid.side, place[3] = {row / grid.side, row % grid.side, node % grid.side};
  for (int d = 0; d < 3; ++d) point[d] = static_cast<float>(low[d] + static_cast<double>(std::min(place[d], last)) * spacing[d]);
}

/// Where the entries of a tile (what: 0 asked nodes, 1 known ones) begin and end in a list of `room`.
std::pair<int64_t, int64_t> range_of(const char* op, Tensor<const int64_t, 3> tiles, int64_t b, int64_t tile, int64_t what, int64_t room) {
  const int64_t count = tiles(b, tile, what), before = tiles(b, tile, what + 2);
  if (count < 0 || count > node_tile || before < 0) refuse(op, "tiles", "count nodes in tiles and before them", count < 0 ? count : before);
  if (before > room - count) refuse(op, what ? "tiles" : "index", "have room for the nodes of its tiles", room);
  return {before, before + count};
}
}  // namespace

void refine_start(Tensor<const float, 4> coarse, double level, double near, int64_t dilation, int64_t size, Tensor<float, 2> values,
                  Tensor<uint8_t, 2> nodes, Tensor<uint8_t, 2> cells, Tensor<int64_t, 3> tiles, Tensor<int64_t, 2> counts) {
  const Level grid = check_start(coarse.shape[1], level, near, dilation, size);
  check_state("refine_start", grid, values, nodes, cells, tiles);
  const Packed own_values(values);
  const Packed own_nodes(nodes), own_cells(cells);
  const Packed own_tiles(tiles);
  const State state{
      grid, coarse.shape[0], own_values.data(), own_nodes.data(), own_cells.data(), reinterpret_cast<int64_t (*)[4]>(own_tiles.data())};
  const int64_t batch = state.batch, n = grid.side, c = grid.across, z_stride = coarse.stride[3];
  each_tile(batch, n, [&](int64_t b, int64_t x) {
    float* const plane = state.values_of(b) + x * n * n;
    std::fill_n(plane, n * n, std::numeric_limits<float>::quiet_NaN());
    for (int64_t y = 0; y < n && x % 2 == 0; y += 2)
      for (int64_t z = 0; z < n; z += 2) plane[y * n + z] = coarse(b, x / 2, y / 2, z / 2);
  });
  each_tile(batch, grid.node_tiles, [&](int64_t b, int64_t tile) {
    std::fill_n(state.nodes_of(b) + tile * node_tile, node_tile, uint8_t{0});
    std::fill_n(state.tiles_of(b)[tile], 4, int64_t{0});
  });
  each_tile(batch, c, [&](int64_t b, int64_t x) {
    std::vector<uint8_t> line(static_cast<std::size_t>(c) + 1);
    for (int64_t y = 0; y < c; ++y) {
      const float* const rows[4] = {&coarse(b, x, y, 0), &coarse(b, x, y + 1, 0), &coarse(b, x + 1, y, 0), &coarse(b, x + 1, y + 1, 0)};
      active_row(rows, z_stride, c, static_cast<float>(level), static_cast<float>(near), line.data(), state.cells_of(b) + (x * c + y) * c);
    }
  });
  for (int64_t b = 0; b < batch; ++b) {
    uint8_t* const of_shape = state.cells_of(b);
    std::fill(of_shape + grid.cells, of_shape + grid.cell_tiles * cell_tile, uint8_t{0});
    if (dilation > 0) dilate(of_shape, c, dilation);
  }
  each_tile(batch, grid.cell_tiles, [&](int64_t b, int64_t tile) {
    uint8_t* const part = state.cells_of(b) + tile * cell_tile;
    for (int64_t i = 0; i < cell_tile; ++i) part[i] = static_cast<uint8_t>(part[i] * front_of(0));
    std::fill_n(state.tiles_of(b)[grid.node_tiles + tile], 4, int64_t{0});
    state.tiles_of(b)[grid.node_tiles + tile][0] = unseen;
  });
  state.mark(front_of(0));
  state.count(counts);
}

void refine_ask(int64_t size, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<uint8_t, 2> nodes,
                Tensor<const int64_t, 3> tiles, Tensor<int64_t, 2> index, Tensor<float, 3> points) {
  const char* op = "refine_ask";
  const Level grid = level_of(op, size);
  check_columns(op, "nodes", nodes.shape[1], grid.node_tiles * node_tile);
  check_columns(op, "tiles", tiles.shape[1], grid.tiles());
  const double first[3] = {low(0), low(1), low(2)}, step[3] = {spacing(0), spacing(1), spacing(2)};
  const Packed own(nodes);
  each_tile(nodes.shape[0], grid.node_tiles, [&](int64_t b, int64_t tile) {
    const auto [column_of_first, end] = range_of(op, tiles, b, tile, 0, index.shape[1]);
    int64_t column = column_of_first;
    if (column == end) return;
    uint8_t* const state = own.data() + (b * grid.node_tiles + tile) * node_tile;
    each_set(state, node_tile, [&](int64_t i) {
      if (state[i] != node_asked || column == end) return;
      state[i] = node_known;
      float point[3];
      place_points(grid, first, step, tile * node_tile + i, point);
      index(b, column) = tile * node_tile + i;
      for (int64_t d = 0; d < 3; ++d) points(b, column, d) = point[d];
      ++column;
    });
  });
  for (int64_t b = 0; b < nodes.shape[0]; ++b)
    for (int64_t column = range_of(op, tiles, b, grid.node_tiles - 1, 0, index.shape[1]).second; column < index.shape[1]; ++column) {
      index(b, column) = -1;
      for (int64_t d = 0; d < 3; ++d) points(b, column, d) = static_cast<float>(first[d]);
    }
}

void refine_follow(int64_t size, Tensor<const int64_t, 2> index, Tensor<const float, 2> found, double level, int64_t round,
                   Tensor<float, 2> values, Tensor<uint8_t, 2> nodes, Tensor<uint8_t, 2> cells, Tensor<int64_t, 3> tiles,
                   Tensor<int64_t, 2> counts) {
  const char* op = "refine_follow";
  const Level grid = level_of(op, size);
  check_surface(op, level);
  if (round < 0) refuse(op, "round", "be >= 0", round);
  check_state(op, grid, values, nodes, cells, tiles);
  const Packed own_values(values);
  const Packed own_nodes(nodes), own_cells(cells);
  const Packed own_tiles(tiles);
  const State state{
      grid, values.shape[0], own_values.data(), own_nodes.data(), own_cells.data(), reinterpret_cast<int64_t (*)[4]>(own_tiles.data())};
  core::parallel_for(index.shape[0] * index.shape[1], 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / index.shape[1], column = i % index.shape[1], node = index(b, column);
      if (node < -1 || node >= grid.nodes) refuse(op, "index", "be in -1.." + std::to_string(grid.nodes - 1), node);
      if (node >= 0) state.values_of(b)[node] = found(b, column);
    }
  });
  const uint8_t front = front_of(round), next = front_of(round + 1);
  const float limit = static_cast<float>(level);
  const int64_t n = grid.side, c = grid.across;
  std::vector<std::pair<int64_t, int64_t>> reached;  // shapes and cells
  std::mutex mutex;
  each_tile(state.batch, grid.cell_tiles, [&](int64_t b, int64_t tile) {
    if (state.tiles_of(b)[grid.node_tiles + tile][0] == 0) return;
    const uint8_t* const of_shape = state.cells_of(b);
    const float* const value = state.values_of(b);
    std::vector<std::pair<int64_t, int64_t>> mine;
    each_set(of_shape + tile * cell_tile, cell_tile, [&](int64_t i) {
      const int64_t cell = tile * cell_tile + i, at[3] = {cell / c / c, cell / c % c, cell % c};
      if (of_shape[cell] != front || cell >= grid.cells) return;
      const int64_t first = first_node(at[0], at[1], at[2], n);
      bool above[27];
      for (int64_t k = 0; k < 27; ++k) above[k] = value[first + (k / 9 * n + k / 3 % 3) * n + k % 3] > limit;
      for (int side = 0; side < 6; ++side) {
        int64_t there = 0;
        bool inside = true;
        for (int d = 0; d < 3; ++d) {
          const int64_t place = at[d] + step_of(side, d);
          inside &= place >= 0 && place < c;
          there = there * c + place;
        }
        if (!inside || of_shape[there]) continue;
        int count = 0;
        for (int k = 0; k < 9; ++k) count += above[(place_on(side, k, 0) * 3 + place_on(side, k, 1)) * 3 + place_on(side, k, 2)];
        if (count % 9) mine.emplace_back(b, there);
      }
    });
    if (mine.empty()) return;
    const std::lock_guard lock(mutex);
    reached.insert(reached.end(), mine.begin(), mine.end());
  });
  const int64_t reach = round > 0;
  for (const auto& [b, cell] : reached) {
    const int64_t at[3] = {cell / c / c, cell / c % c, cell % c};
    for (int64_t x = std::max<int64_t>(at[0] - reach, 0); x <= std::min(at[0] + reach, c - 1); ++x)
      for (int64_t y = std::max<int64_t>(at[1] - reach, 0); y <= std::min(at[1] + reach, c - 1); ++y)
        for (int64_t z = std::max<int64_t>(at[2] - reach, 0); z <= std::min(at[2] + reach, c - 1); ++z) {
          const int64_t near = (x * c + y) * c + z;
          uint8_t& held = state.cells_of(b)[near];
          if (held) continue;
          held = next;
          state.tiles_of(b)[grid.node_tiles + near / cell_tile][0] = unseen;
        }
  }
  state.mark(next);
  state.count(counts);
}

void refine_known(int64_t size, Tensor<const float, 2> values, Tensor<const uint8_t, 2> nodes, Tensor<const int64_t, 3> tiles,
                  Tensor<int64_t, 1> index, Tensor<float, 1> found) {
  const char* op = "refine_known";
  const Level grid = level_of(op, size);
  check_columns(op, "values", values.shape[1], grid.nodes);
  check_columns(op, "nodes", nodes.shape[1], grid.node_tiles * node_tile);
  check_columns(op, "tiles", tiles.shape[1], grid.tiles());
  const Packed own(nodes);
  std::vector<int64_t> begins{0};
  for (int64_t b = 0; b < values.shape[0]; ++b)
    begins.push_back(begins.back() + range_of(op, tiles, b, grid.node_tiles - 1, 1, grid.nodes).second);
  if (index.shape[0] != begins.back()) refuse(op, "index", "have " + std::to_string(begins.back()) + " elements", index.shape[0]);
  each_tile(values.shape[0], grid.node_tiles, [&](int64_t b, int64_t tile) {
    const auto shape = static_cast<std::size_t>(b);
    const auto [first, last] = range_of(op, tiles, b, tile, 1, begins[shape + 1] - begins[shape]);
    if (first == last) return;
    int64_t at = begins[shape] + first;
    const int64_t end = begins[shape] + last;
    const uint8_t* const state = own.data() + (b * grid.node_tiles + tile) * node_tile;
    each_set(state, node_tile, [&](int64_t i) {
      const int64_t node = tile * node_tile + i;
      if (at == end || node >= grid.nodes || !grid.holds(node)) return;
      index(at) = grid.in_volume(node);
      found(at++) = values(b, node);
    });
  });
}

void grid_points(int64_t first, int64_t size, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<float, 2> points) {
  check_points(first, size, points.shape[0]);
  const double begin[3] = {low(0), low(1), low(2)}, step[3] = {spacing(0), spacing(1), spacing(2)};
  core::parallel_for(points.shape[0], 4096, [&](int64_t from, int64_t to) {
    int64_t node = first + from, place[3] = {node / size / size, node / size % size, node % size};
    for (int64_t i = from; i < to; ++i) {
      for (int64_t d = 0; d < 3; ++d) points(i, d) = static_cast<float>(begin[d] + static_cast<double>(place[d]) * step[d]);
      for (int d = 2; d >= 0 && ++place[d] == size && d > 0; --d) place[d] = 0;
    }
  });
}
}  // namespace core_diffusion
