// The product of the antidiagonal estimate for sm_90a, head dimension 128: tiles of 128 rows by 256 columns. One warp
// feeds the operands through the copy engine, two warpgroups of 64 rows multiply; the feeding runs ahead of the tile.
#pragma once
#include <algorithm>

#include "antidiagonal.cuh"
#include "hopper.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int multipliers = 2, rows_of_tile = 64 * multipliers, columns_of_tile = 256;
constexpr int piece_width = 64, stages = 4;  // channels of a stage

template <class T>
struct Shared {
  alignas(1024) T q[stages][rows_of_tile * piece_width];
  T k[stages][columns_of_tile * piece_width];
  hopper::Barrier full[stages], empty[stages];
};

struct Maps {
  CUtensorMap q, k;
  int together;  // neighbouring pairs whose tiles at one place are worked on together
};

/// Where a tile lies; `seen` if any of its rows sees any of its columns, `whole` if all its rows see all of them and the scale
/// keeps the order of the products.
struct Place {
  int pair, row, column;
  bool seen, whole;
};
/// Tiles that are worked on together: the heads that share keys, of four rows of tiles.
__device__ inline Place place(const Estimate& e, std::int64_t t, int together, int fours, int wide) {
  const int head = static_cast<int>(t % together);
  t /= together;
  const int row = static_cast<int>(t / 4 / wide % fours * 4 + t % 4) * rows_of_tile,
            column = static_cast<int>(t / 4 % wide) * columns_of_tile;
  Place p{static_cast<int>(t / 4 / wide / fours) * together + head, row, column, row < e.rows, e.scale > 0};
  p.seen = p.seen && column < e.seen(min(row + rows_of_tile, e.rows) - 1);
  p.whole = p.whole && row + rows_of_tile <= e.rows && column + columns_of_tile <= e.seen(row);
  return p;
}

/// Writes what a thread holds of 64 rows by 256 columns; a unit is `Eights` groups of 8 columns. Four units share the base of
/// their exponentials; one so far below it that its sum is zero has no share of the row either. A lane of four writes one.
/// Whole: of a tile in which nothing is hidden, whose products are scaled within the exponent.
template <int Eights, bool Whole>
__device__ inline void reduce(const Estimate& e, float (&c)[128], int pair, int row, int column, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = row + r * 8;
    const bool inside = Whole || at < e.rows;
    const int seen = (inside ? static_cast<int>(e.seen(at)) - column : 0) - lane % 4 * 2;
    const float scale = Whole ? e.scale : 1.f;  // that is still to be applied
    float* const to = partial + (std::int64_t{pair} * e.rows + at) * e.units + column / e.per;
#pragma unroll
    for (int four = 0; four < 8 / Eights; ++four) {
      float top = -INFINITY, sum[4] = {};
#pragma unroll
      for (int j = four * 4 * Eights; j < (four + 1) * 4 * Eights; ++j)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& y = c[j * 4 + r * 2 + x];
          if constexpr (!Whole) y = j * 8 + x < seen ? y * e.scale : -INFINITY;
          top = fmaxf(top, y);
        }
      top = quad_max(top);
      const float base = top == -INFINITY ? 0.f : top * scale;
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int j = 0; j < Eights; ++j)
#pragma unroll
          for (int x = 0; x < 2; ++x) sum[u] += exp2_fast(c[((four * 4 + u) * Eights + j) * 4 + r * 2 + x] * scale - base);
      const bool odd = lane & 1, high = lane & 2;
#pragma unroll
      for (int u = 0; u < 2; ++u) sum[u] = (odd ? sum[u + 2] : sum[u]) + __shfl_xor_sync(~0u, odd ? sum[u] : sum[u + 2], 1);
      const float all = (high ? sum[1] : sum[0]) + __shfl_xor_sync(~0u, high ? sum[0] : sum[1], 2);
      const int unit = four * 4 + (odd ? 2 : 0) + (high ? 1 : 0);
      if (Whole || (inside && column / e.per + unit < e.units)) to[unit] = base + __log2f(all);
    }
  }
}

template <class T, int Eights>
__global__ void __launch_bounds__(128 * (1 + multipliers), 1)
    estimate_tiles(const __grid_constant__ Maps maps, const Estimate e, int pairs, float* partial) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  constexpr int per_row = 128 / piece_width;
  auto& s = *reinterpret_cast<Shared<T>*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  const int tall = (e.rows + rows_of_tile - 1) / rows_of_tile, wide = (e.columns + columns_of_tile - 1) / columns_of_tile;
  const int depth = e.stride * per_row, fours = (tall + 3) / 4;
  const std::int64_t tiles = std::int64_t{fours} * 4 * wide * pairs;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) hopper::init(&s.full[i], 1), hopper::init(&s.empty[i], 4 * multipliers);
    asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  int i = 0;  // pieces so far
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x) return;
    for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const Place p = place(e, t, maps.together, fours, wide);
      if (!p.seen) continue;
      const int pair = e.first_head + p.pair, b = pair / e.heads, h = pair % e.heads;
      for (int piece = 0; piece < depth; ++piece, ++i) {
        const int stage = i % stages, r = piece / per_row, x = piece % per_row * piece_width;
        hopper::wait(&s.empty[stage], i / stages % 2 ^ 1);
        hopper::expect(&s.full[stage], (rows_of_tile + columns_of_tile) * piece_width * 2);
        hopper::copy(s.q[stage], &maps.q, &s.full[stage], x, e.stride - 1 - r, p.row, h, b);
        hopper::copy(s.k[stage], &maps.k, &s.full[stage], x, r, p.column, h / e.share, b);
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 128 - 1;
    const int within = group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
    for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const Place p = place(e, t, maps.together, fours, wide);
      if (!p.seen) continue;
      float c[128];
      for (int piece = 0; piece < depth; ++piece, ++i) {
        const int stage = i % stages;
        hopper::wait(&s.full[stage], i / stages % 2);
        hopper::hold(c);
        hopper::begin_products();
#pragma unroll
        for (int x = 0; x < piece_width; x += 16)
          hopper::product_of_rows<T>(c, hopper::matrix(s.q[stage] + group * 64 * piece_width + x), hopper::matrix(s.k[stage] + x),
                                     piece + x > 0);
        hopper::commit();
        hopper::wait_products<1>();
        if (piece && lane == 0) hopper::arrive(&s.empty[(i - 1) % stages]);
      }
      hopper::wait_products<0>();
      hopper::hold(c);
      if (lane == 0) hopper::arrive(&s.empty[(i - 1) % stages]);
      if (p.whole)
        reduce<Eights, true>(e, c, p.pair, p.row + within, p.column, partial);
      else
        reduce<Eights, false>(e, c, p.pair, p.row + within, p.column, partial);
    }
  }
#endif
}

template <class T, int Eights>
void launch(const Maps& maps, const Estimate& e, int pairs, int device, float* partial, cudaStream_t stream) {
  const char* op = "antidiagonal_scores";
  constexpr int bytes = static_cast<int>(sizeof(Shared<T>)) + 1024;
  int processors = 0;
  check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  check_cuda(op, cudaFuncSetAttribute(estimate_tiles<T, Eights>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory");
  estimate_tiles<T, Eights><<<static_cast<unsigned>(processors), 128 * (1 + multipliers), bytes, stream>>>(maps, e, pairs, partial);
  check_cuda(op, cudaGetLastError(), "estimating");
}
}  // namespace

template <class T>
bool estimate_hopper(const View<const T>& q, const View<const T>& k, const Estimate& e, int batch, int pairs, int device, float* partial,
                     cudaStream_t stream) {
  int major = 0;
  check_cuda("antidiagonal_scores", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
  if (major != 9 || e.dim != 128 || e.n % e.stride || e.m % e.stride || (e.per != 8 && e.per != 16 && e.per != 32)) return false;
  const auto describe = [&](CUtensorMap* map, const View<const T>& x, std::int64_t heads, std::int64_t tiles, cuuint32_t box) {
    return x.wide && hopper::describe<T, 5>(map, x.data, {128, e.stride, tiles, heads, batch},
                                            {1, x.row, x.row * e.stride, x.head, x.batch}, {piece_width, 1, box, 1, 1});
  };
  Maps maps{};
  if (!describe(&maps.q, q, e.heads, e.rows, rows_of_tile) || !describe(&maps.k, k, e.heads / e.share, e.columns, columns_of_tile))
    return false;
  maps.together = pairs % e.share || e.first_head % e.share ? 1 : e.share;
  if (e.per == 8) launch<T, 1>(maps, e, pairs, device, partial, stream);
  if (e.per == 16) launch<T, 2>(maps, e, pairs, device, partial, stream);
  if (e.per == 32) launch<T, 4>(maps, e, pairs, device, partial, stream);
  return true;
}
}  // namespace core_llm_efficiency
