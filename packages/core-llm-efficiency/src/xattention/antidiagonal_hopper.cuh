// The product of the antidiagonal estimate for sm_90a, head dimension 128: tiles of 128 rows by 256 columns. One warp
// feeds the operands through the copy engine, two warpgroups of 64 rows multiply; the feeding runs ahead of the tile.
// Thread blocks of a cluster take query heads of one key head, at the same place, and each brings a part of the keys to all.
#pragma once
#include <algorithm>
#include <cstdlib>

#include "antidiagonal.cuh"
#include "hopper.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int rows_of_tile = 128, columns_of_tile = 256, stages = 4;

template <class T>
struct Shared {
  alignas(1024) T q[stages][rows_of_tile * 64];
  T k[stages][columns_of_tile * 64];
  hopper::Barrier full[stages], empty[stages];
};

struct Maps {
  CUtensorMap q, k;
};

/// Where a tile lies; `seen` if any of its rows sees any of its columns.
struct Place {
  int pair, row, column;
  bool seen;
};
__device__ inline Place place(const Estimate& e, std::int64_t t, int tall, int wide) {
  Place p{static_cast<int>(t / wide / tall), static_cast<int>(t / wide % tall) * rows_of_tile, static_cast<int>(t % wide) * columns_of_tile,
          true};
  p.seen = p.column < e.seen(min(p.row + rows_of_tile, e.rows) - 1);
  return p;
}

/// Writes what a thread holds of 64 rows by 128 columns; a unit is `Eights` groups of 8 columns.
template <int Eights>
__device__ inline void reduce(const Estimate& e, float (&c)[64], int pair, int row, int column, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = row + r * 8;
    const bool inside = at < e.rows;
    const int seen = inside ? static_cast<int>(e.seen(at)) : 0;
    float* to = partial + (std::int64_t{pair} * e.rows + at) * e.units + column / e.per;
#pragma unroll
    for (int u = 0; u < 16 / Eights; ++u) {
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int j = u * Eights; j < (u + 1) * Eights; ++j)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& y = c[j * 4 + r * 2 + x];
          y = column + j * 8 + lane % 4 * 2 + x < seen ? y * e.scale : -INFINITY;
          top = fmaxf(top, y);
        }
      top = quad_max(top);
      const float base = top == -INFINITY ? 0.f : top;
#pragma unroll
      for (int j = u * Eights; j < (u + 1) * Eights; ++j)
#pragma unroll
        for (int x = 0; x < 2; ++x) sum += exp2_fast(c[j * 4 + r * 2 + x] - base);
      sum = quad_sum(sum);
      if (inside && lane % 4 == u % 4 && column / e.per + u < e.units) to[u] = base + log2f(sum);
    }
  }
}

template <class T, int Eights, int Cluster>
__global__ void __launch_bounds__(384, 1) estimate_tiles(const __grid_constant__ Maps maps, const Estimate e, int pairs, float* partial) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  auto& s = *reinterpret_cast<Shared<T>*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  const int tall = (e.rows + rows_of_tile - 1) / rows_of_tile, wide = (e.columns + columns_of_tile - 1) / columns_of_tile;
  const int depth = e.stride * 2;  // pieces of 64 channels
  const std::int64_t tiles = std::int64_t{tall} * wide * (pairs / Cluster);
  const int rank = Cluster > 1 ? hopper::cluster_rank() : 0, first = static_cast<int>(blockIdx.x) / Cluster;
  const int every = static_cast<int>(gridDim.x) / Cluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) hopper::init(&s.full[i], 1), hopper::init(&s.empty[i], 8 * Cluster);
    asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
  }
  if constexpr (Cluster > 1)
    hopper::sync_cluster();
  else
    __syncthreads();
  // Says that a warp has read a stage, to all that write to it.
  const auto release = [&](int stage, int lane) {
    if constexpr (Cluster > 1) {
      if (lane < Cluster) hopper::arrive_at(&s.empty[stage], lane);
    } else if (lane == 0) {
      hopper::arrive(&s.empty[stage]);
    }
  };
  int i = 0;  // pieces so far
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    for (std::int64_t t = first; t < tiles && threadIdx.x == 0; t += every) {
      const Place p = place(e, t, tall, wide);
      if (!p.seen) continue;
      const int pair = e.first_head + p.pair * Cluster + rank, b = pair / e.heads, h = pair % e.heads;
      for (int piece = 0; piece < depth; ++piece, ++i) {
        const int stage = i % stages, r = piece / 2, x = piece % 2 * 64;
        hopper::wait(&s.empty[stage], i / stages % 2 ^ 1);
        hopper::expect(&s.full[stage], (rows_of_tile + columns_of_tile) * 128);
        hopper::copy(s.q[stage], &maps.q, &s.full[stage], x, e.stride - 1 - r, p.row, h, b);
        if constexpr (Cluster > 1) {
          constexpr int part = columns_of_tile / Cluster;
          hopper::copy_to_all(s.k[stage] + rank * part * 64, &maps.k, &s.full[stage], (1 << Cluster) - 1, x, r, p.column + rank * part,
                              h / e.share, b);
        } else {
          hopper::copy(s.k[stage], &maps.k, &s.full[stage], x, r, p.column, h / e.share, b);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 128 - 1;
    const int within = group * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
    for (std::int64_t t = first; t < tiles; t += every) {
      const Place p = place(e, t, tall, wide);
      if (!p.seen) continue;
      float left[64], right[64];
      for (int piece = 0; piece < depth; ++piece, ++i) {
        const int stage = i % stages;
        hopper::wait(&s.full[stage], i / stages % 2);
        hopper::hold(left);
        hopper::hold(right);
        hopper::begin_products();
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const std::uint64_t a = hopper::matrix(s.q[stage] + group * 64 * 64 + x * 16);
          hopper::product_of_rows<T>(left, a, hopper::matrix(s.k[stage] + x * 16), piece + x > 0);
          hopper::product_of_rows<T>(right, a, hopper::matrix(s.k[stage] + 128 * 64 + x * 16), piece + x > 0);
        }
        hopper::commit();
        hopper::wait_products<1>();
        if (piece) release((i - 1) % stages, lane);
      }
      hopper::wait_products<0>();
      hopper::hold(left);
      hopper::hold(right);
      release((i - 1) % stages, lane);
      const int pair = p.pair * Cluster + rank;
      reduce<Eights>(e, left, pair, p.row + within, p.column, partial);
      reduce<Eights>(e, right, pair, p.row + within, p.column + 128, partial);
    }
  }
  if constexpr (Cluster > 1) hopper::sync_cluster();  // none leaves while another writes to its memory
#endif
}

template <class T, int Eights, int Cluster>
void launch(const Maps& maps, const Estimate& e, int pairs, int device, float* partial, cudaStream_t stream) {
  const char* op = "antidiagonal_scores";
  constexpr int bytes = static_cast<int>(sizeof(Shared<T>)) + 1024;
  const auto kernel = estimate_tiles<T, Eights, Cluster>;
  int clusters = 0;
  check_cuda(op, cudaDeviceGetAttribute(&clusters, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  cudaLaunchAttribute shape{};
  shape.id = cudaLaunchAttributeClusterDimension, shape.val.clusterDim = {Cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(Cluster), config.blockDim = dim3(384), config.dynamicSmemBytes = bytes, config.stream = stream;
  config.attrs = &shape, config.numAttrs = Cluster > 1;
  if (Cluster > 1) check_cuda(op, cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "asking for clusters");
  config.gridDim = dim3(static_cast<unsigned>(std::max(1, clusters) * Cluster));
  check_cuda(op, cudaLaunchKernelEx(&config, kernel, maps, e, pairs, partial), "estimating");
}
}  // namespace

template <class T>
bool estimate_hopper(const View<const T>& q, const View<const T>& k, const Estimate& e, int batch, int pairs, int device, float* partial,
                     cudaStream_t stream) {
  int major = 0;
  check_cuda("antidiagonal_scores", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
  if (major != 9 || e.dim != 128 || e.n % e.stride || e.m % e.stride || (e.per != 8 && e.per != 16 && e.per != 32)) return false;
  int cluster = 1;
  for (const int wanted : {4, 2})
    if (cluster == 1 && e.share % wanted == 0 && pairs % wanted == 0 && e.first_head % wanted == 0) cluster = wanted;
  if (const char* forced = std::getenv("L1_CLUSTER")) cluster = std::atoi(forced);
  const auto describe = [&](CUtensorMap* map, const View<const T>& x, std::int64_t heads, std::int64_t tiles, cuuint32_t box) {
    return x.wide && hopper::describe<T, 5>(map, x.data, {128, e.stride, tiles, heads, batch},
                                            {1, x.row, x.row * e.stride, x.head, x.batch}, {64, 1, box, 1, 1});
  };
  Maps maps{};
  if (!describe(&maps.q, q, e.heads, e.rows, rows_of_tile) || !describe(&maps.k, k, e.heads / e.share, e.columns, static_cast<cuuint32_t>(columns_of_tile / cluster)))
    return false;
  const auto go = [&]<int Cluster>(std::integral_constant<int, Cluster>) {
    if (e.per == 8) launch<T, 1, Cluster>(maps, e, pairs, device, partial, stream);
    if (e.per == 16) launch<T, 2, Cluster>(maps, e, pairs, device, partial, stream);
    if (e.per == 32) launch<T, 4, Cluster>(maps, e, pairs, device, partial, stream);
  };
  if (cluster == 4) go(std::integral_constant<int, 4>{});
  if (cluster == 2) go(std::integral_constant<int, 2>{});
  if (cluster == 1) go(std::integral_constant<int, 1>{});
  return true;
}
}  // namespace core_llm_efficiency
