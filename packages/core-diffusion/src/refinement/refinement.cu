// The levels of a hierarchical volume decoder on CUDA, without a word to the host: a block for each tile of cells, a warp for
// each tile of nodes. Threads that mark the same byte mark it with the same number, so that their order changes nothing.
#include <core/cuda.hpp>
#include <core_diffusion/refinement.hpp>

#include <algorithm>

#include "level.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint8_t;

constexpr int threads = 256, warps = threads / 32;
constexpr int node_bytes = 16;  // of a tile's nodes that a lane reads at once
constexpr int run = 8;          // tiles in a row that a thread sums
constexpr unsigned all = ~0u;
static_assert(cell_tile == 4 * threads && node_tile % (32 * node_bytes) == 0);

struct Tile {
  int64_t asked, known, asked_before, known_before;
};

struct State {
  Level grid;
  int64_t batch;
  float* values;
  uint8_t *nodes, *cells;
  Tile* tiles;

  __device__ float* values_of(int64_t b) const { return values + b * grid.nodes; }
  __device__ uint8_t* nodes_of(int64_t b) const { return nodes + b * grid.node_tiles * node_tile; }
  __device__ uint8_t* cells_of(int64_t b) const { return cells + b * grid.cell_tiles * cell_tile; }
  __device__ Tile* node_tiles(int64_t b) const { return tiles + b * grid.tiles(); }
  __device__ Tile* cell_tiles(int64_t b) const { return node_tiles(b) + grid.node_tiles; }
};

struct Place {
  double low[3], spacing[3];
  __device__ static Place of(const Tensor<const double, 1>& low, const Tensor<const double, 1>& spacing) {
    Place p;
#pragma unroll
    for (int d = 0; d < 3; ++d) p.low[d] = low.data[d * low.stride[0]], p.spacing[d] = spacing.data[d * spacing.stride[0]];
    return p;
  }
  __device__ void put(int64_t x, int64_t y, int64_t z, float* point) const {
    point[0] = static_cast<float>(low[0] + static_cast<double>(x) * spacing[0]);
    point[1] = static_cast<float>(low[1] + static_cast<double>(y) * spacing[1]);
    point[2] = static_cast<float>(low[2] + static_cast<double>(z) * spacing[2]);
  }
};

/// A warp writes a row of nodes: the coarse grid's, and unknown ones between them.
__global__ void __launch_bounds__(threads) spread(Tensor<const float, 4> coarse, State s) {
  const int n = static_cast<int>(s.grid.side);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  if (row >= s.batch * n * n) return;
  const int64_t b = row / (static_cast<int64_t>(n) * n);
  const int x = static_cast<int>(row / n % n), y = static_cast<int>(row % n);
  const float* const from = coarse.data + b * coarse.stride[0] + x / 2 * coarse.stride[1] + y / 2 * coarse.stride[2];
  for (int z = threadIdx.x % 32; z < n; z += 32)
    s.values[row * n + z] = (x | y | z) & 1 ? __int_as_float(0x7fffffff) : from[z / 2 * coarse.stride[3]];
}

/// The first front, one thread a cell.
__global__ void __launch_bounds__(threads) find_active(Tensor<const float, 4> coarse, State s, float level, float near, int dilation) {
  const int c = static_cast<int>(s.grid.across);
  const int64_t b = blockIdx.y, cell = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (cell >= s.grid.cells) return;
  const int x = static_cast<int>(cell / c / c), y = static_cast<int>(cell / c % c), z = static_cast<int>(cell % c);
  const float* const from = coarse.data + b * coarse.stride[0] + x * coarse.stride[1] + y * coarse.stride[2] + z * coarse.stride[3];
  int above = 0;
  bool known = true, close = false;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float v = __ldg(from + (i >> 2) * coarse.stride[1] + (i >> 1 & 1) * coarse.stride[2] + (i & 1) * coarse.stride[3]);
    above += v > level;
    known &= v == v;
    close |= near > 0 && fabsf(v - level) <= near;
  }
  if (!known || !(close || (above > 0 && above < 8))) return;
  const int d = dilation;
  for (int i = max(x - d, 0); i <= min(x + d, c - 1); ++i)
    for (int j = max(y - d, 0); j <= min(y + d, c - 1); ++j)
      for (int k = max(z - d, 0); k <= min(z + d, c - 1); ++k) {
        const int64_t there = (static_cast<int64_t>(i) * c + j) * c + k;
        s.cells_of(b)[there] = front_of(0);
        s.cell_tiles(b)[there / cell_tile].asked = unseen;
      }
}

/// The cells of a tile that are in a front, in no order, in shared memory.
struct Front {
  int count;
  unsigned short cell[cell_tile];

  /// `state`: this thread's four cells. Ends with the block in step.
  __device__ void gather(uchar4 state, uint8_t front) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const uint8_t four[4] = {state.x, state.y, state.z, state.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (four[i] == front) cell[atomicAdd(&count, 1)] = static_cast<unsigned short>(threadIdx.x * 4 + i);
    __syncthreads();
  }
};

/// Marks the nodes of the front's cells, and the cells of the front before as refined. A block a tile.
__global__ void __launch_bounds__(threads) mark(State s, uint8_t front, Tensor<int64_t, 2> counts) {
  __shared__ Front found;
  const int64_t b = blockIdx.y, tile = blockIdx.x;
  if (b == 0 && tile == 0 && threadIdx.x == 0) counts.data[s.batch * counts.stride[0] + counts.stride[1]] = 0;  // count()'s ticket
  Tile& held = s.cell_tiles(b)[tile];
  if (held.asked == 0) return;
  uint8_t* const mine = s.cells_of(b) + tile * cell_tile + threadIdx.x * 4;
  uchar4 state = *reinterpret_cast<const uchar4*>(mine);
  found.gather(state, front);
  if (threadIdx.x == 0) held.asked = found.count;
  const auto settled = [front](uint8_t x) { return x && x != front ? cell_refined : x; };
  state = make_uchar4(settled(state.x), settled(state.y), settled(state.z), settled(state.w));
  *reinterpret_cast<uchar4*>(mine) = state;
  const int c = static_cast<int>(s.grid.across);
  const int64_t n = s.grid.side;
  uint8_t* const nodes = s.nodes_of(b);
  const float* const values = s.values_of(b);
  for (int i = threadIdx.x; i < found.count * 27; i += threads) {
    const int64_t cell = tile * cell_tile + found.cell[i / 27];
    if (cell >= s.grid.cells) continue;
    const int k = i % 27;
    const int64_t node = first_node(cell / c / c, cell / c % c, cell % c, n) + (k / 9 * n + k / 3 % 3) * n + k % 3;
    if (nodes[node]) continue;
    const float v = values[node];
    nodes[node] = v != v ? node_asked : node_known;
    s.node_tiles(b)[node / node_tile].asked = unseen;
  }
}

/// The states of 16 nodes: of each part of a tile a lane has so many.
__device__ uint4 part_of(const uint8_t* tile, int part) { return reinterpret_cast<const uint4*>(tile)[part * 32 + threadIdx.x % 32]; }
__device__ uint8_t byte_of(const uint4& x, int i) {
  const unsigned word = i < 4 ? x.x : i < 8 ? x.y : i < 12 ? x.z : x.w;
  return static_cast<uint8_t>(word >> i % 4 * 8);
}
constexpr int parts = static_cast<int>(node_tile / (32 * node_bytes));

/// Sums over the tiles before, of each shape, and the counts, by the block that ends last.
__device__ void sum_tiles(const State& s, Tensor<int64_t, 2> counts) {
  __shared__ int64_t sums[2][warps], fronts[warps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t front = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    Tile* const tiles = s.node_tiles(b);
    int64_t before[2] = {0, 0};
    for (int64_t begin = 0; begin < s.grid.node_tiles; begin += threads * run) {
      const int64_t first = begin + threadIdx.x * run;
      int64_t own[run][2], sum[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < run; ++i) {
        const bool there = first + i < s.grid.node_tiles;
        own[i][0] = there ? __ldcg(&tiles[first + i].asked) : 0, own[i][1] = there ? __ldcg(&tiles[first + i].known) : 0;
        sum[0] += own[i][0], sum[1] += own[i][1];
      }
      int64_t at[2] = {-sum[0], -sum[1]};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 1; i < 32; i *= 2) {
          const int64_t x = __shfl_up_sync(all, sum[j], i);
          if (lane >= i) sum[j] += x;
        }
        at[j] += before[j] + sum[j];
      }
      __syncthreads();
      if (lane == 31) sums[0][warp] = sum[0], sums[1][warp] = sum[1];
      __syncthreads();
#pragma unroll
      for (int w = 0; w < warps; ++w)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (w < warp) at[j] += sums[j][w];
          before[j] += sums[j][w];
        }
#pragma unroll
      for (int i = 0; i < run; ++i) {
        if (first + i < s.grid.node_tiles) tiles[first + i].asked_before = at[0], tiles[first + i].known_before = at[1];
        at[0] += own[i][0], at[1] += own[i][1];
      }
    }
    for (int64_t t = threadIdx.x; t < s.grid.cell_tiles; t += threads) front += __ldcg(&s.cell_tiles(b)[t].asked);
    if (threadIdx.x < 2) counts.data[b * counts.stride[0] + threadIdx.x * counts.stride[1]] = threadIdx.x ? before[1] : before[0];
  }
  for (int i = 16; i; i /= 2) front += __shfl_xor_sync(all, front, i);
  if (lane == 0) fronts[warp] = front;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < warps; ++w) front += fronts[w];
    counts.data[s.batch * counts.stride[0]] = front;
    counts.data[s.batch * counts.stride[0] + counts.stride[1]] = 0;
  }
}

/// Counts what the changed tiles of nodes hold, a warp a tile; then the sums.
__global__ void __launch_bounds__(threads) count(State s, Tensor<int64_t, 2> counts) {
  __shared__ bool last;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32, b = i / s.grid.node_tiles, tile = i % s.grid.node_tiles;
  const int lane = threadIdx.x % 32;
  if (b < s.batch) {
    Tile& held = s.node_tiles(b)[tile];
    if (held.asked == unseen) {
      int asked = 0, known = 0;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        const uint4 state = part_of(s.nodes_of(b) + tile * node_tile, part);
        if (!(state.x | state.y | state.z | state.w)) continue;
        for (int j = 0; j < node_bytes; ++j) {
          const uint8_t x = byte_of(state, j);
          asked += x == node_asked;
          known += x && s.grid.holds(tile * node_tile + (part * 32 + lane) * node_bytes + j);
        }
      }
      asked = __reduce_add_sync(all, asked), known = __reduce_add_sync(all, known);
      if (lane == 0) held.asked = asked, held.known = known;
    } else {
      __syncwarp();
      if (lane == 0) held.asked = 0;
    }
  }
  __threadfence();
  __syncthreads();
  auto* const ticket = reinterpret_cast<unsigned long long*>(counts.data + s.batch * counts.stride[0] + counts.stride[1]);
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1ull) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  sum_tiles(s, counts);
}

__global__ void __launch_bounds__(threads) answer(Tensor<const int64_t, 2> index, Tensor<const float, 2> found, State s) {
  const int64_t b = blockIdx.y, column = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (column >= index.shape[1]) return;
  const int64_t node = index.data[b * index.stride[0] + column * index.stride[1]];
  if (node >= 0 && node < s.grid.nodes) s.values_of(b)[node] = found.data[b * found.stride[0] + column * found.stride[1]];
}

/// The next front: a block a tile, a thread a side of a cell of the present one.
__global__ void __launch_bounds__(threads) follow(State s, uint8_t front, uint8_t next, float level, int reach) {
  __shared__ Front found;
  const int64_t b = blockIdx.y, tile = blockIdx.x;
  uint8_t* const cells = s.cells_of(b);
  const uchar4 mine = *reinterpret_cast<const uchar4*>(cells + tile * cell_tile + threadIdx.x * 4);
  if (!__syncthreads_or(mine.x == front || mine.y == front || mine.z == front || mine.w == front)) return;
  found.gather(mine, front);
  const int c = static_cast<int>(s.grid.across);
  const int64_t n = s.grid.side;
  const float* const values = s.values_of(b);
  for (int i = threadIdx.x; i < found.count * 6; i += threads) {
    const int64_t cell = tile * cell_tile + found.cell[i / 6];
    if (cell >= s.grid.cells) continue;
    const int side = i % 6, at[3] = {static_cast<int>(cell / c / c), static_cast<int>(cell / c % c), static_cast<int>(cell % c)};
    int there[3];
    bool inside = true;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      there[d] = at[d] + static_cast<int>(step_of(side, d));
      inside &= there[d] >= 0 && there[d] < c;
    }
    const auto number = [c](int64_t x, int64_t y, int64_t z) { return (x * c + y) * c + z; };
    if (!inside) continue;
    const uint8_t state = cells[number(there[0], there[1], there[2])];
    if (state && state != next) continue;  // another thread's mark of this round is no reason to leave out the neighbours
    const int64_t first = first_node(at[0], at[1], at[2], n);
    int above = 0;
#pragma unroll
    for (int k = 0; k < 9; ++k)
      above += values[first + (place_on(side, k, 0) * n + place_on(side, k, 1)) * n + place_on(side, k, 2)] > level;
    if (above == 0 || above == 9) continue;
    for (int x = max(there[0] - reach, 0); x <= min(there[0] + reach, c - 1); ++x)
      for (int y = max(there[1] - reach, 0); y <= min(there[1] + reach, c - 1); ++y)
        for (int z = max(there[2] - reach, 0); z <= min(there[2] + reach, c - 1); ++z) {
          const int64_t near = number(x, y, z);
          if (cells[near]) continue;
          cells[near] = next;
          s.cell_tiles(b)[near / cell_tile].asked = unseen;
        }
  }
}

/// How many of the lane's bytes satisfy, before which come the lanes' of smaller number: where its first goes.
__device__ int rank(int own, int& total) {
  int sum = own;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    const int x = __shfl_up_sync(all, sum, i);
    if (static_cast<int>(threadIdx.x % 32) >= i) sum += x;
  }
  total = __shfl_sync(all, sum, 31);
  return sum - own;
}

/// A warp lists the asked nodes of a tile.
__global__ void __launch_bounds__(threads)
    ask(Level grid, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<uint8_t, 2> nodes, Tensor<const int64_t, 3> tiles,
        Tensor<int64_t, 2> index, Tensor<float, 3> points) {
  const int64_t b = blockIdx.y, room = index.shape[1], n = grid.side, last = grid.size - 1;
  const Place place = Place::of(low, spacing);
  const Tile* const of_shape = reinterpret_cast<const Tile*>(tiles.data) + b * grid.tiles();
  int64_t* const numbers = index.data + b * room;
  float* const where = points.data + b * room * 3;
  for (int64_t i = of_shape[grid.node_tiles - 1].asked_before + of_shape[grid.node_tiles - 1].asked +
                   static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
       i < room; i += static_cast<int64_t>(gridDim.x) * threads) {
    numbers[i] = -1;
    place.put(0, 0, 0, where + i * 3);
  }
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  if (tile >= grid.node_tiles || of_shape[tile].asked <= 0) return;
  int64_t column = of_shape[tile].asked_before;
  uint8_t* const state = nodes.data + (b * grid.node_tiles + tile) * node_tile;
  for (int part = 0; part < parts; ++part) {
    const uint4 own = part_of(state, part);
    int mine = 0, total = 0;
    for (int j = 0; j < node_bytes; ++j) mine += byte_of(own, j) == node_asked;
    int64_t at = column + rank(mine, total);
    column += total;
    if (mine == 0) continue;
    const int base = (part * 32 + static_cast<int>(threadIdx.x) % 32) * node_bytes;
    for (int j = 0; j < node_bytes; ++j) {
      if (byte_of(own, j) != node_asked) continue;
      state[base + j] = node_known;
      if (at < room) {
        const int64_t node = tile * node_tile + base + j, row = node / n;
        numbers[at] = node;
        place.put(min(row / n, last), min(row % n, last), min(node % n, last), where + at * 3);
      }
      ++at;
    }
  }
}

/// A warp lists the known nodes of a tile.
__global__ void __launch_bounds__(threads) list(Level grid, Tensor<const float, 2> values, Tensor<const uint8_t, 2> nodes,
                                                Tensor<const int64_t, 3> tiles, Tensor<int64_t, 1> index, Tensor<float, 1> found) {
  const int64_t b = blockIdx.y, tile = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  const Tile* const first = reinterpret_cast<const Tile*>(tiles.data);
  const Tile* const of_shape = first + b * grid.tiles();
  if (tile >= grid.node_tiles || of_shape[tile].known <= 0) return;
  int64_t column = of_shape[tile].known_before;
  for (int64_t before = 0; before < b; ++before) {
    const Tile& end = first[before * grid.tiles() + grid.node_tiles - 1];
    column += end.known_before + end.known;
  }
  const uint8_t* const state = nodes.data + (b * grid.node_tiles + tile) * node_tile;
  for (int part = 0; part < parts; ++part) {
    const uint4 own = part_of(state, part);
    const int64_t base = tile * node_tile + (part * 32 + threadIdx.x % 32) * node_bytes;
    int mine = 0, total = 0;
    for (int j = 0; j < node_bytes; ++j) mine += byte_of(own, j) && grid.holds(base + j);
    int64_t at = column + rank(mine, total);
    column += total;
    if (mine == 0) continue;
    for (int j = 0; j < node_bytes; ++j) {
      const int64_t node = base + j;
      if (!byte_of(own, j) || !grid.holds(node)) continue;
      if (at < index.shape[0]) {
        index.data[at * index.stride[0]] = grid.in_volume(node);
        found.data[at * found.stride[0]] = values.data[b * values.stride[0] + node * values.stride[1]];
      }
      ++at;
    }
  }
}

__global__ void __launch_bounds__(threads)
    lay_points(int64_t first, int64_t size, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<float, 2> points) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= points.shape[0]) return;
  const int64_t node = first + i, row = node / size;
  float point[3];
  Place::of(low, spacing).put(row / size, row % size, node % size, point);
#pragma unroll
  for (int d = 0; d < 3; ++d) points.data[i * points.stride[0] + d * points.stride[1]] = point[d];
}

unsigned blocks(int64_t work, int64_t each = threads) { return static_cast<unsigned>((work + each - 1) / each); }

template <class T, int N>
void contiguous(const char* op, const char* argument, const Tensor<T, N>& t) {
  if (!t.contiguous())
    throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must be contiguous on CUDA, got another layout");
}
void check_batch(const char* op, const char* argument, int64_t batch) {
  if (batch > 65535) refuse(op, argument, "have at most 65535 shapes", batch);
}
State state_of(const char* op, const Level& grid, Tensor<float, 2> values, Tensor<uint8_t, 2> nodes, Tensor<uint8_t, 2> cells,
               Tensor<int64_t, 3> tiles) {
  check_state(op, grid, values, nodes, cells, tiles);
  check_batch(op, "values", values.shape[0]);
  contiguous(op, "values", values), contiguous(op, "nodes", nodes), contiguous(op, "cells", cells), contiguous(op, "tiles", tiles);
  return {grid, values.shape[0], values.data, nodes.data, cells.data, reinterpret_cast<Tile*>(tiles.data)};
}

void mark_and_count(const char* op, const State& s, uint8_t front, Tensor<int64_t, 2> counts, cudaStream_t stream) {
  mark<<<dim3(static_cast<unsigned>(s.grid.cell_tiles), static_cast<unsigned>(s.batch)), threads, 0, stream>>>(s, front, counts);
  count<<<blocks(s.batch * s.grid.node_tiles, warps), threads, 0, stream>>>(s, counts);
  core::check_cuda(op, cudaGetLastError(), "launching");
}
}  // namespace

void refine_start_cuda(Tensor<const float, 4> coarse, double level, double near, int64_t dilation, int64_t size, Tensor<float, 2> values,
                       Tensor<uint8_t, 2> nodes, Tensor<uint8_t, 2> cells, Tensor<int64_t, 3> tiles, Tensor<int64_t, 2> counts,
                       core::Stream stream) {
  const char* op = "refine_start";
  const State s = state_of(op, check_start(coarse.shape[1], level, near, dilation, size), values, nodes, cells, tiles);
  if (dilation > 16) refuse(op, "dilation", "be at most 16 on CUDA, where each cell marks all that it reaches", dilation);
  const core::OnDevice on(op, counts.device_id);
  const auto in = static_cast<cudaStream_t>(stream.handle);
  const auto clear = [&](void* data, int64_t bytes) {
    if (bytes) core::check_cuda(op, cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), in), "clearing");
  };
  clear(nodes.data, nodes.numel()), clear(cells.data, cells.numel()), clear(tiles.data, 8 * tiles.numel());
  if (s.batch == 0) {
    for (int64_t i = 0; i < 2; ++i) clear(counts.data + i * counts.stride[1], 8);
    return;
  }
  spread<<<blocks(s.batch * s.grid.side * s.grid.side, warps), threads, 0, in>>>(coarse, s);
  find_active<<<dim3(blocks(s.grid.cells), static_cast<unsigned>(s.batch)), threads, 0, in>>>(
      coarse, s, static_cast<float>(level), static_cast<float>(near), static_cast<int>(dilation));
  mark_and_count(op, s, front_of(0), counts, in);
}

void refine_ask_cuda(int64_t size, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<uint8_t, 2> nodes,
                     Tensor<const int64_t, 3> tiles, Tensor<int64_t, 2> index, Tensor<float, 3> points, core::Stream stream) {
  const char* op = "refine_ask";
  const Level grid = level_of(op, size);
  check_columns(op, "nodes", nodes.shape[1], grid.node_tiles * node_tile);
  check_columns(op, "tiles", tiles.shape[1], grid.tiles());
  check_batch(op, "nodes", nodes.shape[0]);
  contiguous(op, "nodes", nodes), contiguous(op, "tiles", tiles), contiguous(op, "index", index), contiguous(op, "points", points);
  if (nodes.shape[0] == 0) return;
  const core::OnDevice on(op, nodes.device_id);
  ask<<<dim3(blocks(grid.node_tiles, warps), static_cast<unsigned>(nodes.shape[0])), threads, 0,
        static_cast<cudaStream_t>(stream.handle)>>>(grid, low, spacing, nodes, tiles, index, points);
  core::check_cuda(op, cudaGetLastError(), "launching");
}

void refine_follow_cuda(int64_t size, Tensor<const int64_t, 2> index, Tensor<const float, 2> found, double level, int64_t round,
                        Tensor<float, 2> values, Tensor<uint8_t, 2> nodes, Tensor<uint8_t, 2> cells, Tensor<int64_t, 3> tiles,
                        Tensor<int64_t, 2> counts, core::Stream stream) {
  const char* op = "refine_follow";
  const Level grid = level_of(op, size);
  check_surface(op, level);
  if (round < 0) refuse(op, "round", "be >= 0", round);
  const State s = state_of(op, grid, values, nodes, cells, tiles);
  const core::OnDevice on(op, counts.device_id);
  const auto in = static_cast<cudaStream_t>(stream.handle);
  const auto shapes = static_cast<unsigned>(s.batch);
  if (s.batch == 0) {
    for (int64_t i = 0; i < 2; ++i) core::check_cuda(op, cudaMemsetAsync(counts.data + i * counts.stride[1], 0, 8, in), "clearing");
    return;
  }
  if (index.shape[1]) answer<<<dim3(blocks(index.shape[1]), shapes), threads, 0, in>>>(index, found, s);
  follow<<<dim3(static_cast<unsigned>(grid.cell_tiles), shapes), threads, 0, in>>>(s, front_of(round), front_of(round + 1),
                                                                                   static_cast<float>(level), round > 0);
  mark_and_count(op, s, front_of(round + 1), counts, in);
}

void refine_known_cuda(int64_t size, Tensor<const float, 2> values, Tensor<const uint8_t, 2> nodes, Tensor<const int64_t, 3> tiles,
                       Tensor<int64_t, 1> index, Tensor<float, 1> found, core::Stream stream) {
  const char* op = "refine_known";
  const Level grid = level_of(op, size);
  check_columns(op, "values", values.shape[1], grid.nodes);
  check_columns(op, "nodes", nodes.shape[1], grid.node_tiles * node_tile);
  check_columns(op, "tiles", tiles.shape[1], grid.tiles());
  check_batch(op, "values", values.shape[0]);
  contiguous(op, "nodes", nodes), contiguous(op, "tiles", tiles);
  if (values.shape[0] == 0) return;
  const core::OnDevice on(op, nodes.device_id);
  list<<<dim3(blocks(grid.node_tiles, warps), static_cast<unsigned>(values.shape[0])), threads, 0,
         static_cast<cudaStream_t>(stream.handle)>>>(grid, values, nodes, tiles, index, found);
  core::check_cuda(op, cudaGetLastError(), "launching");
}

void grid_points_cuda(int64_t first, int64_t size, Tensor<const double, 1> low, Tensor<const double, 1> spacing, Tensor<float, 2> points,
                      core::Stream stream) {
  const char* op = "grid_points";
  check_points(first, size, points.shape[0]);
  if (points.shape[0] == 0) return;
  const core::OnDevice on(op, points.device_id);
  lay_points<<<blocks(points.shape[0]), threads, 0, static_cast<cudaStream_t>(stream.handle)>>>(first, size, low, spacing, points);
  core::check_cuda(op, cudaGetLastError(), "launching");
}
}  // namespace core_diffusion
