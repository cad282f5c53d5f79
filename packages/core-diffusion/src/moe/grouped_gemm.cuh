// The experts' products in bfloat16 or float16 on Hopper's tensor cores, for widths that are multiples of 8.
//
// Blocks stay and take tiles in turn, in clusters of two that share the operand which their tiles have in common: its
// halves are loaded once and sent to both. One warp loads, two warpgroups multiply, 64 x 256 each.
#pragma once
#include <cuda_runtime.h>

#include "hopper.cuh"
#include "product.cuh"

namespace core_diffusion::grouped {
using std::uint32_t;
using std::uint64_t;

constexpr int tile_m = padding, tile_n = 256, tile_k = 64, stages = 4;
constexpr int box = 64, box_bytes = box * box * 2;  // of the copy engine: 64 rows of 128 swizzled bytes
constexpr int a_bytes = tile_m * tile_k * 2, stage_bytes = a_bytes + tile_n * tile_k * 2;
constexpr int staging_bytes = 2 * box_bytes;  // of a warpgroup: half of its tile
constexpr int shared_bytes = stages * stage_bytes + 2 * staging_bytes + (2 * stages + 4) * 8;
constexpr int threads = 384;

template <class T>
struct Arguments {
  CUtensorMap a, b, out, second;  // second: the values before the activation
  CUtensorMap third;              // the activations times their gates, in the backward pass
  const int* starts;              // [experts + 1], first tile of each expert's rows
  const T* bias;                  // [experts, n], or null
  const float* gates;             // [rows], in the backward pass
  float* shares;                  // [rows, tiles of n]: sums over the tile of gradient times activation
  int experts, m, n, k;           // m: with Group::depth; k: with Group::rows
  bool keep;                      // store the values before the activation
};

struct Tile {
  int expert = 0, first = 0;  // of the expert's items
  int m = 0, n = 0;           // tile indices
  int begin = 0, steps = 0;   // along the depth
  bool same_rows = false;     // the cluster's tiles lie side by side and share A; else they share B
};

/// The tile of this block among the cluster's item, or false behind the last. Items ascend from call to call.
template <Group group, class T>
__device__ bool locate(const Arguments<T>& p, int item, int rank, Tile& t) {
  const int across = (p.n + tile_n - 1) / tile_n;
  for (; t.expert < p.experts; ++t.expert) {
    const int start = __ldg(p.starts + t.expert), tiles = __ldg(p.starts + t.expert + 1) - start;
    const int down = group == Group::rows ? tiles : (p.m + tile_m - 1) / tile_m;
    const int pairs = (group == Group::rows ? down : down + 1) / 2 * across;
    const int items = pairs + (group == Group::rows && down % 2 ? (across + 1) / 2 : 0);
    const int i = item - t.first;
    if (i >= items) {
      t.first += items;
      continue;
    }
    t.same_rows = i >= pairs;
    t.m = t.same_rows ? down - 1 : 2 * (i / across) + rank;
    t.n = t.same_rows ? 2 * (i - pairs) + rank : i % across;
    if (group == Group::rows) t.m += start;
    t.begin = group == Group::rows ? 0 : start * tile_m;
    t.steps = group == Group::rows ? (p.k + tile_k - 1) / tile_k : tiles * (tile_m / tile_k);
    return true;
  }
  return false;
}

template <Side side>
__device__ void load(uint32_t to, const CUtensorMap* map, uint32_t barrier, int free, int depth, int z) {
  if constexpr (side == Side::columns)
    hopper::load_box(to, map, barrier, depth, free, z);
  else
    hopper::load_box(to, map, barrier, free, depth, z);
}
template <Side side>
__device__ void load_both(uint32_t to, const CUtensorMap* map, uint32_t barrier, int free, int depth, int z) {
  if constexpr (side == Side::columns)
    hopper::load_box_all(to, map, barrier, depth, free, z, 3);
  else
    hopper::load_box_all(to, map, barrier, free, depth, z, 3);
}

struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

template <Side a_side, Side b_side, Group group, class T>
__device__ void produce(const Arguments<T>& p, uint32_t buffers, uint32_t full, uint32_t empty, int rank) {
  Ring ring;
  Tile t;
  for (int item = static_cast<int>(blockIdx.x) / 2; locate<group>(p, item, rank, t); item += static_cast<int>(gridDim.x) / 2) {
    const int m = t.m * tile_m, n = t.n * tile_n, of_b = group == Group::rows ? t.expert : 0;
    for (int step = 0; step < t.steps; ++step, ring.next()) {
      const int k = t.begin + step * tile_k;
      const uint32_t a = buffers + ring.stage * stage_bytes, b = a + a_bytes, ready = full + 8 * ring.stage;
      hopper::barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
      hopper::barrier_expect(ready, stage_bytes);
      if (t.same_rows) {
        load_both<a_side>(a + rank * box_bytes, &p.a, ready, m + rank * box, k, 0);
        for (int i = 0; i < 4; ++i) load<b_side>(b + i * box_bytes, &p.b, ready, n + i * box, k, of_b);
      } else {
        for (int i = 0; i < 2; ++i) load<a_side>(a + i * box_bytes, &p.a, ready, m + i * box, k, 0);
        for (int i = 2 * rank; i < 2 * rank + 2; ++i) load_both<b_side>(b + i * box_bytes, &p.b, ready, n + i * box, k, of_b);
      }
    }
  }
}

__device__ inline float tanh_of(float x) {
  asm("tanh.approx.f32 %0, %0;" : "+f"(x));
  return x;
}

constexpr float gelu_slope = 0.79788456f, gelu_cubic = 0.044715f;

template <bool silu>
__device__ float activate(float x) {
  const float half = 0.5f * x;
  return fmaf(half, tanh_of(silu ? half : x * fmaf(gelu_slope * gelu_cubic * x, x, gelu_slope)), half);
}
/// The activation and its derivative.
template <bool silu>
__device__ float2 activate_both(float x) {
  const float square = x * x, u = silu ? 0.5f * x : x * fmaf(gelu_slope * gelu_cubic, square, gelu_slope);
  const float du = silu ? 0.5f : fmaf(3 * gelu_slope * gelu_cubic, square, gelu_slope);
  const float t = tanh_of(u), s = fmaf(0.5f, t, 0.5f);
  return {x * s, fmaf(0.5f * x * fmaf(-t, t, 1.f), du, s)};
}

template <class T>
__device__ uint32_t pack(float x, float y) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 v = __floats2half2_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}
template <class T>
__device__ float2 unpack(uint32_t v) {
  if constexpr (std::is_same_v<T, __half>)
    return __half22float2(*reinterpret_cast<const __half2*>(&v));
  else
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v));
}

/// A warpgroup's share of a tile on its way between registers and memory, half after half of 128 columns.
struct Staging {
  uint32_t buffer, arrived;  // arrived: a barrier of loads for each of the two boxes
  int group, thread, lane;
  uint32_t parity[2] = {0, 0};

  __device__ uint32_t at(int column_block, int half_of_rows) const {  // of 8 columns; rows lane / 4, and 8 below
    const int row = thread / 32 * 16 + lane / 4 + 8 * half_of_rows;
    return buffer + column_block / 8 * box_bytes + row * 128 + ((column_block % 8) ^ (lane / 4)) * 16 + lane % 4 * 4;
  }
  __device__ void reuse() const {
    if (thread == 0) hopper::stores_read();
    hopper::group_sync(1 + group);
  }
  __device__ void store(const CUtensorMap* map, int column, int row, int z, int columns) const {
    hopper::fence_copies();
    hopper::group_sync(1 + group);
    if (thread != 0) return;
    for (int i = 0; i < 2; ++i)
      if (column + i * box < columns) hopper::store_box(map, buffer + i * box_bytes, column + i * box, row, z);
    hopper::store_commit();
  }
  __device__ void store_one(const CUtensorMap* map, int i, int column, int row) const {
    hopper::fence_copies();
    hopper::group_sync(1 + group);
    if (thread != 0) return;
    hopper::store_box(map, buffer + i * box_bytes, column, row, 0);
    hopper::store_commit();
  }
  /// Asks for a box; the group's own accesses to its place lie before the last store.
  __device__ void load_one(const CUtensorMap* map, int i, int column, int row) const {
    if (thread != 0) return;
    hopper::stores_read();
    hopper::barrier_expect(arrived + 8 * i, box_bytes);
    hopper::load_box(buffer + i * box_bytes, map, arrived + 8 * i, column, row, 0);
  }
  __device__ void wait(int i) {
    hopper::barrier_wait(arrived + 8 * i, parity[i]);
    parity[i] ^= 1;
  }
};

/// The gradient d of the activations becomes that before the activation, box after box: while one is worked on, the
/// stored values of the next arrive. The first two were asked for before the products.
template <bool silu, class T>
__device__ void finish_backward(const Arguments<T>& p, const Tile& t, Staging& staging, float (&d)[128]) {
  const int row = t.m * tile_m + staging.group * box, lane = staging.lane, line = row + staging.thread / 32 * 16 + lane / 4;
  if (t.n * tile_n >= p.n) return;
  float share[2] = {0, 0};
  const float gate[2] = {p.gates[line], p.gates[line + 8]};
#pragma unroll
  for (int q = 0; q < tile_n / box; ++q) {
    const int column = t.n * tile_n + q * box, i = q % 2;
    if (column >= p.n) break;
    uint32_t scaled[16];
    staging.wait(i);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* v = d + 32 * q + 4 * j + 2 * r;
        const uint32_t at = staging.at(8 * i + j, r);
        const float2 h = unpack<T>(hopper::read_shared(at));
        const float2 x = activate_both<silu>(h.x), y = activate_both<silu>(h.y);
        share[r] += v[0] * x.x + v[1] * y.x;
        scaled[2 * j + r] = pack<T>(gate[r] * x.x, gate[r] * y.x);
        hopper::write_shared(at, pack<T>(gate[r] * v[0] * x.y, gate[r] * v[1] * y.y));
      }
    staging.store_one(&p.out, i, column, row);
    staging.reuse();
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) hopper::write_shared(staging.at(8 * i + j, r), scaled[2 * j + r]);
    staging.store_one(&p.third, i, column, row);
    if (q + 2 < tile_n / box && column + 2 * box < p.n) staging.load_one(&p.second, i, column + 2 * box, row);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    share[r] += __shfl_xor_sync(~0u, share[r], 1);
    share[r] += __shfl_xor_sync(~0u, share[r], 2);
    if (lane % 4 == 0) p.shares[static_cast<int64_t>(line + 8 * r) * ((p.n + tile_n - 1) / tile_n) + t.n] = share[r];
  }
}

template <Group group, After after, bool silu, class T>
__device__ void finish(const Arguments<T>& p, const Tile& t, const Staging& staging, float (&d)[128]) {
  const int row = t.m * tile_m + staging.group * box, z = group == Group::depth ? t.expert : 0;
  if (group == Group::depth && row >= p.m) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = t.n * tile_n + half * 128;
    if (column >= p.n) break;
    if (group == Group::rows && p.bias) {
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int c = column + 8 * j + staging.lane % 4 * 2;
        const auto* from = reinterpret_cast<const uint32_t*>(p.bias + static_cast<int64_t>(t.expert) * p.n + c);
        const float2 b = c < p.n ? unpack<T>(__ldg(from)) : float2{0, 0};
        float* v = d + half * 64 + 4 * j;
        v[0] += b.x, v[1] += b.y, v[2] += b.x, v[3] += b.y;
      }
    }
    const auto write = [&](bool act) {
      staging.reuse();
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float x = d[half * 64 + 4 * j + 2 * r], y = d[half * 64 + 4 * j + 2 * r + 1];
          hopper::write_shared(staging.at(j, r), act ? pack<T>(activate<silu>(x), activate<silu>(y)) : pack<T>(x, y));
        }
    };
    if (after == After::activation && p.keep) {
      write(false);
      staging.store(&p.second, column, row, z, p.n);
    }
    write(after == After::activation);
    staging.store(&p.out, column, row, z, p.n);
  }
}

template <Side a_side, Side b_side, Group group, After after, bool silu, class T>
__device__ void consume(const Arguments<T>& p, uint32_t buffers, uint32_t full, uint32_t empty, Staging& staging, int rank) {
  constexpr bool a_turned = a_side == Side::rows, b_turned = b_side == Side::rows;
  constexpr uint32_t a_step = a_turned ? 16 * 128 : 32, b_step = b_turned ? 16 * 128 : 32;
  Ring ring;
  Tile t;
  const auto release = [&](int stage) {
    if (staging.lane < 2) hopper::barrier_arrive(empty + 8 * stage, staging.lane);
  };
  for (int item = static_cast<int>(blockIdx.x) / 2; locate<group>(p, item, rank, t); item += static_cast<int>(gridDim.x) / 2) {
    if constexpr (after == After::activation_backward)
      for (int i = 0; i < 2; ++i)
        if (const int column = t.n * tile_n + i * box; column < p.n)
          staging.load_one(&p.second, i, column, t.m * tile_m + staging.group * box);
    float d[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) d[i] = 0;
    int before = -1;
    for (int step = 0; step < t.steps; ++step, ring.next()) {
      hopper::barrier_wait(full + 8 * ring.stage, ring.parity);
      const uint32_t a = buffers + ring.stage * stage_bytes + staging.group * box_bytes, b = buffers + ring.stage * stage_bytes + a_bytes;
      hopper::hold(d);
      hopper::products_begin();
#pragma unroll
      for (uint32_t i = 0; i < tile_k / 16; ++i)
        hopper::multiply_add<std::is_same_v<T, __half>, a_turned, b_turned>(
            d, hopper::matrix_descriptor(a + i * a_step, 16), hopper::matrix_descriptor(b + i * b_step, b_turned ? box_bytes : 16));
      hopper::products_commit();
      if (before >= 0) {
        hopper::products_wait<1>();
        release(before);
      }
      before = ring.stage;
    }
    hopper::products_wait<0>();
    hopper::hold(d);
    if (before >= 0) release(before);
    if constexpr (after == After::activation_backward)
      finish_backward<silu>(p, t, staging, d);
    else
      finish<group, after, silu>(p, t, staging, d);
  }
  if (staging.thread == 0) hopper::stores_done();
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CORE_PAIRS_OF_BLOCKS __cluster_dims__(2)
#else
#define CORE_PAIRS_OF_BLOCKS  // this kernel is not called there, but the compiler refuses the attribute
#endif
template <Side a_side, Side b_side, Group group, After after, bool silu, class T>
__global__ void CORE_PAIRS_OF_BLOCKS __launch_bounds__(threads, 1) multiply(const __grid_constant__ Arguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t buffers = hopper::shared_address(memory), staging = buffers + stages * stage_bytes;
  const uint32_t full = staging + 2 * staging_bytes, empty = full + 8 * stages, arrived = empty + 8 * stages;
  const int thread = static_cast<int>(threadIdx.x), rank = static_cast<int>(hopper::cluster_rank());
  if (thread == 0) {
    for (int i = 0; i < stages; ++i) hopper::barrier_init(full + 8 * i, 1), hopper::barrier_init(empty + 8 * i, 2 * 8);
    for (int i = 0; i < 4; ++i) hopper::barrier_init(arrived + 8 * i, 1);
    hopper::barrier_init_done();
  }
  __syncthreads();
  hopper::cluster_sync();
  if (thread < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread == 0) produce<a_side, b_side, group>(p, buffers, full, empty, rank);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group_of = thread / 128 - 1;
    Staging s{staging + group_of * staging_bytes, arrived + 16 * group_of, group_of, thread % 128, thread % 32};
    consume<a_side, b_side, group, after, silu>(p, buffers, full, empty, s, rank);
  }
  __syncwarp();
  hopper::cluster_sync();
#endif
}
#undef CORE_PAIRS_OF_BLOCKS
}  // namespace core_diffusion::grouped
