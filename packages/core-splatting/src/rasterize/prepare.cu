// Projection on CUDA: project, count the Gaussians of each tile, write them to the tile's place as they come, sort each tile
// by depth in shared memory. How many (tile, Gaussian) pairs there are only the device knows: room is made for twice as
// many as earlier calls had, so that the host need not wait.
#include <algorithm>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../scenes.hpp"
#include "device.cuh"

namespace core_splatting {
namespace {

/// Depth and index: a tile's list is sorted by this.
using Key = unsigned long long;

/// Calls visit(i, depth, tile) for every tile that the ellipse of the lane's Gaussian reaches, if it has one; returns how
/// many these are. The whole warp goes over the tiles of a large one, a tile row per lane.
template <class Visit>
__device__ std::uint32_t visit_tiles(bool some, const Splat& s, std::uint32_t i, std::uint32_t depth, const Options& o, int gaussians,
                                     Visit visit) {
  constexpr float large = 48;
  const auto visit_row = [&](const Splat& splat, std::uint32_t g, std::uint32_t d, int row) {
    const Range columns = tile_columns(splat, o, row);
    const int first = (static_cast<int>(g) / gaussians * o.tiles_y + row) * o.tiles_x;
    for (int column = columns.first; column <= columns.last; ++column) visit(g, d, first + column);
    return static_cast<std::uint32_t>(max(columns.last - columns.first + 1, 0));
  };
  const Range rows = some ? tile_rows(s, o) : Range{0, -1};
  const bool is_large = static_cast<float>(rows.last - rows.first + 1) * (2.f * s.extent_x / tile_size + 1.f) >= large && some;
  std::uint32_t count = 0;
  if (!is_large)
    for (int row = rows.first; row <= rows.last; ++row) count += visit_row(s, i, depth, row);
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (std::uint32_t rest = __ballot_sync(0xffffffffu, is_large); rest; rest &= rest - 1) {
    const int owner = __ffs(static_cast<int>(rest)) - 1;
    const auto of_owner = [&](auto v) { return __shfl_sync(0xffffffffu, v, owner); };
    const Splat wide{of_owner(s.x),        of_owner(s.y),       of_owner(s.uu), of_owner(s.shear), of_owner(s.yy), of_owner(s.log2_opacity),
                     of_owner(s.extent_x), of_owner(s.extent_y)};
    const std::uint32_t g = of_owner(i), d = of_owner(depth);
    std::uint32_t of_lane = 0;
    for (int row = of_owner(rows.first) + lane, last = of_owner(rows.last); row <= last; row += 32) of_lane += visit_row(wide, g, d, row);
    const std::uint32_t all = __reduce_add_sync(0xffffffffu, of_lane);
    if (lane == owner) count = all;
  }
  return count;
}

/// One thread per (camera, Gaussian): the splat and its depth; how many there are in each tile (counts[1 + tile]), and in all.
__global__ void __launch_bounds__(block) project_all(Scene in, Options o, Lists lists) {
  __shared__ unsigned long long block_sum;
  if (threadIdx.x == 0) block_sum = 0;
  __syncthreads();
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  Splat s{};
  float depth = 0.f;
  bool seen = false;
  if (i < lists.total) {
    const int c = i / lists.gaussians, n = i - c * lists.gaussians;
    seen = project(load_camera(in, c), o, load_gaussian(in.gaussians, n), s, depth);
  }
  const std::uint32_t count = visit_tiles(seen, s, static_cast<std::uint32_t>(i), 0, o, lists.gaussians,
                                          [&](std::uint32_t, std::uint32_t, int tile) { atomicAdd(lists.begins + tile, 1); });
  if (i < lists.total) {
    if (count) {
      float4* out = reinterpret_cast<float4*>(lists.splats + i);
      out[0] = {s.x, s.y, s.uu, s.shear};
      out[1] = {s.yy, s.log2_opacity, s.extent_x, s.extent_y};
    }
    lists.depths[i] = count ? __float_as_uint(depth) : culled;
  }
  const std::uint32_t warp_sum = __reduce_add_sync(0xffffffffu, count);
  if ((threadIdx.x & 31) == 0 && warp_sum) atomicAdd(&block_sum, static_cast<unsigned long long>(warp_sum));
  __syncthreads();
  if (threadIdx.x == 0 && block_sum) atomicAdd(lists.pairs, block_sum);
}

/// One block: the tiles' counts become the places where they begin, in `next` too; `seen` gets the pairs per Gaussian.
__global__ void __launch_bounds__(1024) find_begins(Lists lists, std::uint32_t* next, float* seen) {
  constexpr int items = 8;
  using Scan = cub::BlockScan<std::uint32_t, 1024>;
  __shared__ Scan::TempStorage memory;
  std::uint32_t before = 0;
  for (int first = 0; first <= lists.tiles; first += 1024 * items) {
    std::uint32_t counts[items], sum;
    const int at = first + static_cast<int>(threadIdx.x) * items;
    for (int k = 0; k < items; ++k) counts[k] = at + k < lists.tiles ? lists.begins[at + k] : 0;
    Scan(memory).ExclusiveSum(counts, counts, sum);
    for (int k = 0; k < items; ++k)
      if (at + k <= lists.tiles) lists.begins[at + k] = next[at + k] = before + counts[k];
    before += sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) *seen = static_cast<float>(*lists.pairs) / static_cast<float>(lists.total);
}

/// One thread per (camera, Gaussian) writes its keys to the places of its tiles.
__global__ void __launch_bounds__(block) write_pairs(Lists lists, Options o, std::uint32_t* next, Key* keys) {
  if (*lists.pairs > lists.capacity) return;
  const auto i = blockIdx.x * block + threadIdx.x;
  const std::uint32_t depth = i < static_cast<std::uint32_t>(lists.total) ? lists.depths[i] : culled;
  const Splat s = depth != culled ? load_splat(lists.splats, i) : Splat{};
  visit_tiles(depth != culled, s, i, depth, o, lists.gaussians,
              [&](std::uint32_t g, std::uint32_t d, int tile) { keys[atomicAdd(next + tile, 1)] = Key{d} << 32 | g; });
}

/// Sorts by one block, in place: the bitonic network in which every comparison puts the smaller first.
__device__ void sort_in_place(Key* keys, std::uint32_t n) {
  const auto compare = [&](std::uint32_t low, std::uint32_t high) {
    if (high >= n) return;
    const Key a = keys[low], b = keys[high];
    if (b < a) keys[low] = b, keys[high] = a;
  };
  for (std::uint64_t size = 2; size < 2 * std::uint64_t{n}; size *= 2) {
    for (std::uint64_t i = threadIdx.x; i < (std::uint64_t{n} + size - 1) / size * (size / 2); i += blockDim.x) {
      const std::uint64_t in_run = i % (size / 2), run = i / (size / 2) * size;
      if (run + in_run < n)
        compare(static_cast<std::uint32_t>(run + in_run), static_cast<std::uint32_t>(min(run + size - 1 - in_run, std::uint64_t{n})));
    }
    __syncthreads();
    for (std::uint64_t step = size / 4; step >= 1; step /= 2) {
      for (std::uint64_t i = threadIdx.x; i < (std::uint64_t{n} + 2 * step - 1) / (2 * step) * step; i += blockDim.x) {
        const std::uint64_t low = i / step * 2 * step + i % step;
        if (low < n) compare(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(min(low + step, std::uint64_t{n})));
      }
      __syncthreads();
    }
  }
}

template <int Items>
using BlockSort = cub::BlockRadixSort<std::uint32_t, block, Items, std::uint32_t>;

/// Puts runs of equal depth, of a list sorted by depth, in the order of the indices; false if one is too long.
__device__ bool sort_runs(Key* keys, std::uint32_t n) {
  constexpr std::uint32_t most = 8;
  bool long_run = false;
  for (std::uint32_t i = threadIdx.x; i + 1 < n; i += block) {
    const auto depth = keys[i] >> 32;
    if (keys[i + 1] >> 32 != depth || (i > 0 && keys[i - 1] >> 32 == depth)) continue;
    std::uint32_t end = i + 2;
    while (end < n && end <= i + most && keys[end] >> 32 == depth) ++end;
    long_run |= end > i + most;
    for (std::uint32_t k = i + 1; k < end; ++k)
      for (std::uint32_t at = k; at > i && keys[at] < keys[at - 1]; --at) {
        const Key key = keys[at];
        keys[at] = keys[at - 1], keys[at - 1] = key;
      }
  }
  return !__syncthreads_or(long_run);
}

/// Sorts at most 256 Items keys into `ids`; false if that needs another way.
template <int Items>
__device__ bool sort_in_registers(Key* keys, std::uint32_t n, std::uint32_t* ids, void* memory, std::uint32_t* firsts) {
  __shared__ std::uint32_t least, most;
  if (threadIdx.x == 0) least = culled, most = 0;
  __syncthreads();
  std::uint32_t depths[Items], values[Items], low = culled, high = 0;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const std::uint32_t at = static_cast<std::uint32_t>(k) * block + threadIdx.x;
    const Key key = at < n ? keys[at] : ~Key{0};
    depths[k] = static_cast<std::uint32_t>(key >> 32), values[k] = static_cast<std::uint32_t>(key);
    if (at < n) low = min(low, depths[k]), high = max(high, depths[k]);
  }
  low = __reduce_min_sync(0xffffffffu, low), high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x % 32 == 0) atomicMin(&least, low), atomicMax(&most, high);
  __syncthreads();
  // Of the depths only the bits that differ are sorted; the rest of the places gets all ones, which is more than any.
  const std::uint32_t base = least;
#pragma unroll
  for (int k = 0; k < Items; ++k)
    if (static_cast<std::uint32_t>(k) * block + threadIdx.x < n) depths[k] -= base;
  BlockSort<Items>(*static_cast<typename BlockSort<Items>::TempStorage*>(memory)).Sort(depths, values, 0, 32 - __clz(most - base + 1));
  bool equal = false;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const std::uint32_t at = threadIdx.x * Items + static_cast<std::uint32_t>(k);
    if (at < n) ids[at] = values[k];
    if (k > 0) equal |= at < n && depths[k] == depths[k - 1];
  }
  firsts[threadIdx.x] = depths[0];
  __syncthreads();
  equal |= (threadIdx.x + 1) * Items < n && firsts[(threadIdx.x + 1) % block] == depths[Items - 1];
  if (!__syncthreads_or(equal)) return true;
#pragma unroll
  for (int k = 0; k < Items; ++k) {
    const std::uint32_t at = threadIdx.x * Items + static_cast<std::uint32_t>(k);
    if (at < n) keys[at] = Key{depths[k] + base} << 32 | values[k];
  }
  __syncthreads();
  if (!sort_runs(keys, n)) return false;
  for (std::uint32_t i = threadIdx.x; i < n; i += block) ids[i] = static_cast<std::uint32_t>(keys[i]);
  return true;
}

/// One block per tile sorts its list; `Large`: those of more than 1024 Gaussians, else the others. If there was no room for
/// the lists, one block sorts all Gaussians.
template <bool Large>
__global__ void __launch_bounds__(block, Large ? 3 : 5) sort_tiles(Lists lists, Key* keys) {
  __shared__ union {
    typename BlockSort<Large ? 8 : 1>::TempStorage a;
    typename BlockSort<Large ? 16 : 2>::TempStorage b;
    typename BlockSort<Large ? 16 : 4>::TempStorage c;
  } memory;
  __shared__ std::uint32_t firsts[block];
  std::uint32_t begin = lists.begins[blockIdx.x], n = lists.begins[blockIdx.x + 1] - begin, *ids = lists.ids;
  if (*lists.pairs > lists.capacity) {
    if (!Large || blockIdx.x) return;
    begin = 0, n = static_cast<std::uint32_t>(lists.total), ids = lists.order;
    for (std::uint32_t i = threadIdx.x; i < n; i += block) keys[i] = Key{lists.depths[i]} << 32 | i;
    __syncthreads();
  } else {
    if (Large ? n <= 1024 : n == 0 || n > 1024) return;
    Key* const own = keys + begin;
    if constexpr (Large) {
      if (n <= 2048 ? sort_in_registers<8>(own, n, ids + begin, &memory, firsts)
                    : n <= 4096 && sort_in_registers<16>(own, n, ids + begin, &memory, firsts))
        return;
    } else {
      if (n <= 256   ? sort_in_registers<1>(own, n, ids + begin, &memory, firsts)
          : n <= 512 ? sort_in_registers<2>(own, n, ids + begin, &memory, firsts)
                     : sort_in_registers<4>(own, n, ids + begin, &memory, firsts))
        return;
    }
  }
  sort_in_place(keys + begin, n);
  for (std::uint32_t i = threadIdx.x; i < n; i += block) ids[begin + i] = static_cast<std::uint32_t>(keys[begin + i]);
}

__global__ void __launch_bounds__(block) project_only(Scene in, Options o, int gaussians, int total, ProjectionOutputs out) {
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  if (i < total)
    write_projection(out, load_camera(in, i / gaussians), o, load_gaussian(in.gaussians, i % gaussians), i / gaussians, i % gaussians);
}

/// What is known of calls of a size: how many pairs there were lately for each Gaussian. The device writes what it saw into
/// pinned memory; a call reads what earlier ones left there.
struct Expectation {
  int device;
  std::int64_t tiles;
  float* seen;
  float ratio;
};

Expectation expect(int device, std::int64_t tiles) {
  static std::mutex mutex;
  static std::vector<Expectation> known;
  static std::size_t next = 0;
  constexpr std::size_t most = 64;
  std::lock_guard lock(mutex);
  auto found = std::find_if(known.begin(), known.end(), [&](const auto& e) { return e.device == device && e.tiles == tiles; });
  if (found == known.end()) {
    if (known.size() < most) {
      float* seen = nullptr;
      check(cudaHostAlloc(&seen, sizeof *seen, cudaHostAllocPortable | cudaHostAllocMapped), "allocating pinned memory");
      found = known.insert(known.end(), {device, tiles, seen, 0.f});
    } else {
      found = known.begin() + static_cast<std::ptrdiff_t>(next++ % most);
      *found = {device, tiles, found->seen, 0.f};
    }
    *found->seen = 4.f;
  }
  const float seen = *static_cast<volatile float*>(found->seen);
  found->ratio = std::max(0.99f * found->ratio, seen);
  return *found;
}

constexpr std::int64_t aligned(std::int64_t ints) { return (ints + 63) / 64 * 64; }

}  // namespace

std::int64_t Lists::size_without_ids(std::int64_t total, std::int64_t tiles) {
  return 64 + aligned(tiles + 1) + aligned(8 * total) + 2 * aligned(total);
}

Lists::Lists(std::int32_t* memory, std::int64_t size, std::int64_t gaussians_, std::int64_t total_, std::int64_t tiles_)
    : gaussians(static_cast<int>(gaussians_)), total(static_cast<int>(total_)), tiles(static_cast<int>(tiles_)) {
  const std::int64_t fixed = size_without_ids(total, tiles);
  if (size < fixed || reinterpret_cast<std::uintptr_t>(memory) % 16)
    throw core::Error("ValueError", "rasterize: argument 'workspace' must be 16-byte aligned and hold at least " + std::to_string(fixed) +
                                        " elements, got " + std::to_string(size));
  const auto part = [&](std::int64_t ints) { return std::exchange(memory, memory + aligned(ints)); };
  pairs = reinterpret_cast<unsigned long long*>(part(2));
  begins = reinterpret_cast<std::uint32_t*>(part(tiles_ + 1));
  splats = reinterpret_cast<Splat*>(part(8 * total_));
  depths = reinterpret_cast<std::uint32_t*>(part(total));
  order = reinterpret_cast<std::uint32_t*>(part(total));
  ids = reinterpret_cast<std::uint32_t*>(memory);
  capacity = static_cast<std::uint32_t>(std::min<std::int64_t>(size - fixed, std::numeric_limits<std::int32_t>::max()));
}

std::int64_t workspace_size(int device, std::int64_t total, std::int64_t tiles) {
  const double expected = 2.0 * static_cast<double>(expect(device, tiles).ratio) * static_cast<double>(total);
  const auto pairs = static_cast<std::int64_t>(std::min(expected, 2147483647.0 - (1 << 20))) + (1 << 18);
  return Lists::size_without_ids(total, tiles) + (pairs + 65535) / 65536 * 65536;
}

void prepare(const Scene& in, const Options& o, const Lists& lists, int device, cudaStream_t stream) {
  const std::size_t counters = 64 + static_cast<std::size_t>(lists.tiles) + 1;  // the pairs, and the tiles' counts behind
  check(cudaMemsetAsync(lists.pairs, 0, counters * sizeof(std::uint32_t), stream), "clearing the counters");
  if (lists.total == 0) return;
  Scratch scratch(device, stream);
  const auto at_next = scratch.part<std::uint32_t>(std::int64_t{lists.tiles} + 1);
  const auto at_keys = scratch.part<Key>(std::max(std::int64_t{lists.total}, std::int64_t{lists.capacity}));
  scratch.allocate();
  auto* const next = scratch.at<std::uint32_t>(at_next);
  Key* const keys = scratch.at<Key>(at_keys);
  project_all<<<blocks_for(lists.total), block, 0, stream>>>(in, o, lists);
  find_begins<<<1, 1024, 0, stream>>>(lists, next, expect(device, lists.tiles).seen);
  if (lists.tiles) {
    write_pairs<<<blocks_for(lists.total), block, 0, stream>>>(lists, o, next, keys);
    sort_tiles<false><<<static_cast<unsigned>(lists.tiles), block, 0, stream>>>(lists, keys);
    sort_tiles<true><<<static_cast<unsigned>(lists.tiles), block, 0, stream>>>(lists, keys);
  }
  check(cudaGetLastError(), "projecting");
}

namespace {

/// Of one scene.
void project_gaussians_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                                In<3> Ks, std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip,
                                double eps2d, bool antialiased, const char* camera_model, Out<3> means2d,
                                core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights, core::Stream queue) {
  const char* const op = "project_gaussians";
  const std::int64_t cameras = viewmats.shape[0], count = means.shape[0];
  const Options o =
      check_options(op, cameras, count, 1, {near_plane, far_plane, radius_clip, eps2d, 0.5, antialiased, camera_model}, height, width);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  const int total = static_cast<int>(cameras * count);
  if (total == 0) return;
  const core::OnDevice guard(op, means2d.device_id);
  project_only<<<blocks_for(total), block, 0, static_cast<cudaStream_t>(queue.handle)>>>(scene, o, static_cast<int>(count), total,
                                                                                         {means2d, radii, depths, conics, weights});
  core::check_cuda(op, cudaGetLastError(), "projecting");
}

}  // namespace

void project_gaussians_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                            std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip, double eps2d,
                            bool antialiased, const char* camera_model, std::int64_t scenes, Out<3> means2d,
                            core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights, core::Stream queue) {
  for_each_scene("project_gaussians", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    project_gaussians_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.views(viewmats),
                               s.views(Ks), width, height, near_plane, far_plane, radius_clip, eps2d, antialiased, camera_model,
                               s.projections("means2d", means2d), s.projections("radii", radii), s.projections("depths", depths),
                               s.projections("conics", conics), s.projections("weights", weights), queue);
  });
}

}  // namespace core_splatting
