// Binning on CUDA: project, count the Gaussians of each tile, write them to the tile's place as they come. How many (tile, Gaussian) pairs
// there are only the device knows: room is made for twice as many as earlier calls had, so that the host need not wait.
//
// Blocks share the Gaussians of a camera out among them, and each counts in shared memory the tiles of a window of the
// picture, which is all of it unless it is very large. A block asks for room in each tile once; then it knows its places.
#include <algorithm>
#include <cub/block/block_scan.cuh>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device.cuh"

namespace core_splatting {
namespace {

/// Calls visit(i, first, last) for the tiles of each row that the ellipse of the lane's Gaussian reaches, if it has one; returns
/// how many these are. `first_tile`: of the camera. The whole warp goes over the tiles of a large one, a tile row per lane.
template <class Visit>
__device__ std::uint32_t visit_tiles(bool some, const Splat& s, std::uint32_t i, const Options& o, int first_tile, Visit visit) {
  constexpr float large = 48;
  const auto visit_row = [&](const Splat& splat, std::uint32_t g, int row) {
    const Range columns = tile_columns(splat, o, row);
    const int first = first_tile + row * o.tiles_x;
    visit(g, first + columns.first, first + columns.last);
    return static_cast<std::uint32_t>(max(columns.last - columns.first + 1, 0));
  };
  const Range rows = some ? tile_rows(s, o) : Range{0, -1};
  const bool is_large = static_cast<float>(rows.last - rows.first + 1) * (2.f * s.extent_x / tile_size + 1.f) >= large && some;
  std::uint32_t count = 0;
  if (!is_large)
    for (int row = rows.first; row <= rows.last; ++row) count += visit_row(s, i, row);
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (std::uint32_t rest = __ballot_sync(0xffffffffu, is_large); rest; rest &= rest - 1) {
    const int owner = __ffs(static_cast<int>(rest)) - 1;
    const auto of_owner = [&](auto v) { return __shfl_sync(0xffffffffu, v, owner); };
    const Splat wide{of_owner(s.x),        of_owner(s.y),       of_owner(s.uu), of_owner(s.shear), of_owner(s.yy), of_owner(s.log2_opacity),
                     of_owner(s.extent_x), of_owner(s.extent_y)};
    const std::uint32_t g = of_owner(i);
    std::uint32_t of_lane = 0;
    for (int row = of_owner(rows.first) + lane, last = of_owner(rows.last); row <= last; row += 32) of_lane += visit_row(wide, g, row);
    const std::uint32_t all = __reduce_add_sync(0xffffffffu, of_lane);
    if (lane == owner) count = all;
  }
  return count;
}

/// Reads a splat that is not read soon again, so that it does not displace the lists from the cache.
__device__ Splat load_passing(const Splat* splats, std::uint32_t i) {
  const float4* in = reinterpret_cast<const float4*>(splats + i);
  const float4 a = __ldcs(in), b = __ldcs(in + 1);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

constexpr int binning = 512;  // threads

/// How the work of binning is shared out: a block has the Gaussians chunk, chunk + chunks, .. of a camera, `binning` each, and
/// the tiles [window * width, .. + width) of the camera.
struct Plan {
  int chunks, windows, width, tiles_of_camera;
  unsigned blocks;

  static Plan of(const Lists& lists, const Options& o, int device) {
    constexpr int widest = 24576;                  // tiles, 96 KiB
    constexpr std::int64_t most_places = 1 << 24;  // of all blocks
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for the processors");
    const int of_camera = o.tiles_x * o.tiles_y, windows = (of_camera + widest - 1) / widest, width = (of_camera + windows - 1) / windows;
    const std::int64_t cameras = lists.tiles / of_camera, parts = cameras * windows;
    const std::int64_t useful = (lists.gaussians + binning - 1) / binning, wanted = (2 * processors + parts - 1) / parts;
    const std::int64_t chunks = std::max<std::int64_t>(1, std::min({useful, wanted, most_places / lists.tiles}));
    return {static_cast<int>(chunks), windows, width, of_camera, static_cast<unsigned>(parts * chunks)};
  }
};

/// What one block of the plan does.
struct Part {
  int chunk, window, camera, first, count;  // the tiles of the window: `count` from `first` on, of those of all cameras
  std::size_t places;                       // where the block's begin
  __device__ explicit Part(const Plan& plan) {
    const int block_of_all = static_cast<int>(blockIdx.x);
    chunk = block_of_all % plan.chunks, window = block_of_all / plan.chunks % plan.windows;
    camera = block_of_all / plan.chunks / plan.windows;
    first = camera * plan.tiles_of_camera + window * plan.width;
    count = min(plan.width, plan.tiles_of_camera - window * plan.width);
    places = static_cast<std::size_t>(block_of_all) * static_cast<std::size_t>(plan.width);
  }
  /// Of the tiles [first, last] those of the window, counted from its first.
  __device__ Range own(int first_tile, int last_tile) const { return {max(first_tile - first, 0), min(last_tile - first, count - 1)}; }
  /// Calls visit(n, inside) for all Gaussians of the block, whole warps at a time.
  template <class Visit>
  __device__ void each_gaussian(const Plan& plan, int gaussians, Visit visit) const {
    for (std::int64_t base = std::int64_t{chunk} * binning; base < gaussians; base += std::int64_t{plan.chunks} * binning) {
      const std::int64_t n = base + threadIdx.x;
      visit(static_cast<int>(n), n < gaussians);
    }
  }
};

/// The splats and their depths; how many there are in each tile, in `counts`, and how many of these are of earlier blocks.
template <class Source>
__global__ void __launch_bounds__(binning, 2)
    project_all(SceneFrom<Source> in, Options o, Lists lists, Plan plan, std::uint32_t* counts, std::uint32_t* places) {
  extern __shared__ std::uint32_t of_tiles[];
  const Part part(plan);
  for (int t = static_cast<int>(threadIdx.x); t < part.count; t += binning) of_tiles[t] = 0;
  __syncthreads();
  const Camera camera = load_camera(in, part.camera);
  const int first_tile = part.camera * plan.tiles_of_camera;
  part.each_gaussian(plan, lists.gaussians, [&](int n, bool inside) {
    Splat s{};
    float depth = 0.f;
    const bool seen = inside && project(camera, o, load_gaussian(in.gaussians, n), s, depth);
    const auto i = static_cast<std::uint32_t>(part.camera) * static_cast<std::uint32_t>(lists.gaussians) + static_cast<std::uint32_t>(n);
    const std::uint32_t count = visit_tiles(seen, s, i, o, first_tile, [&](std::uint32_t, int first, int last) {
      const Range own = part.own(first, last);
      for (int t = own.first; t <= own.last; ++t) atomicAdd(of_tiles + t, 1u);
    });
    if (!inside || part.window != 0) return;
    if (count) {
      float4* out = reinterpret_cast<float4*>(lists.splats + i);
      out[0] = {s.x, s.y, s.uu, s.shear};
      out[1] = {s.yy, s.log2_opacity, s.extent_x, s.extent_y};
    }
    lists.depths[i] = count ? __float_as_uint(depth) : culled;
  });
  __syncthreads();
#pragma unroll 4
  for (int t = static_cast<int>(threadIdx.x); t < part.count; t += binning) {
    const std::uint32_t count = of_tiles[t];
    places[part.places + static_cast<std::size_t>(t)] = count ? atomicAdd(counts + part.first + t, count) : 0;
  }
}

/// Writes the indices to the places of their tiles, where these begin, how many there are, and in `seen` how many of a Gaussian.
__global__ void __launch_bounds__(binning, 2)
    write_pairs(Lists lists, Options o, Plan plan, const std::uint32_t* counts, const std::uint32_t* places, float* seen) {
  using Scan = cub::BlockScan<std::uint32_t, binning>;
  __shared__ union {
    Scan::TempStorage scan;
    unsigned long long sums[2];
  } memory;
  extern __shared__ std::uint32_t of_tiles[];
  const Part part(plan);
  const int thread = static_cast<int>(threadIdx.x);

  unsigned long long before = 0, pairs = 0;  // of the tiles before the window, and of all
  for (int t = thread; t < lists.tiles; t += binning) {
    const std::uint32_t count = counts[t];
    pairs += count;
    if (t < part.first) before += count;
    if (static_cast<unsigned>(t - part.first) < static_cast<unsigned>(part.count)) of_tiles[t - part.first] = count;
  }
  if (thread < 2) memory.sums[thread] = 0;
  __syncthreads();
  for (int bit = 16; bit >= 1; bit /= 2) {
    before += __shfl_xor_sync(0xffffffffu, before, bit);
    pairs += __shfl_xor_sync(0xffffffffu, pairs, bit);
  }
  if (thread % 32 == 0) atomicAdd(memory.sums, before), atomicAdd(memory.sums + 1, pairs);
  __syncthreads();
  before = memory.sums[0], pairs = memory.sums[1];
  __syncthreads();
  if (blockIdx.x == 0 && thread == 0) {
    *lists.pairs = pairs;
    lists.begins[lists.tiles] = static_cast<std::uint32_t>(pairs);
    *seen = static_cast<float>(pairs) / static_cast<float>(lists.total);
  }

  const int each = (part.count + binning - 1) / binning | 1, from = thread * each, to = min(from + each, part.count);
  std::uint32_t sum = 0;
  for (int t = from; t < to; ++t) sum += of_tiles[t];
  Scan(memory.scan).ExclusiveSum(sum, sum);
  sum += static_cast<std::uint32_t>(before);
  for (int t = from; t < to; ++t) sum += std::exchange(of_tiles[t], sum);
  __syncthreads();
#pragma unroll 4
  for (int t = thread; t < part.count; t += binning) {
    const std::uint32_t begin = of_tiles[t];
    if (part.chunk == 0) lists.begins[part.first + t] = begin;
    of_tiles[t] = begin + places[part.places + static_cast<std::size_t>(t)];
  }
  __syncthreads();
  if (pairs > lists.capacity) return;
  const int first_tile = part.camera * plan.tiles_of_camera;
  part.each_gaussian(plan, lists.gaussians, [&](int n, bool inside) {
    const auto own = static_cast<std::uint32_t>(part.camera) * static_cast<std::uint32_t>(lists.gaussians) + static_cast<std::uint32_t>(n);
    const bool some = inside && lists.depths[own] != culled;
    const Splat s = some ? load_passing(lists.splats, own) : Splat{};
    visit_tiles(some, s, own, o, first_tile, [&](std::uint32_t i, int first, int last) {
      const Range tiles = part.own(first, last);
      constexpr int together = 4;  // so that they wait less for each other
      for (int t = tiles.first; t <= tiles.last; t += together) {
        std::uint32_t place[together];
#pragma unroll
        for (int k = 0; k < together; ++k)
          if (t + k <= tiles.last) place[k] = atomicAdd(of_tiles + t + k, 1u);
#pragma unroll
        for (int k = 0; k < together; ++k)
          if (t + k <= tiles.last) lists.ids[place[k]] = i;
      }
    });
  });
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

template <class Source>
void prepare(const SceneFrom<Source>& in, const Options& o, const Lists& lists, int device, cudaStream_t stream) {
  if (lists.total == 0 || lists.tiles == 0) {
    const std::size_t counters = 64 + static_cast<std::size_t>(lists.tiles) + 1;  // the pairs, and the tiles' begins behind
    check(cudaMemsetAsync(lists.pairs, 0, counters * sizeof(std::uint32_t), stream), "clearing the counters");
    check(cudaMemsetAsync(lists.depths, 0xff, static_cast<std::size_t>(lists.total) * sizeof *lists.depths, stream), "culling");
    return;
  }
  const Plan plan = Plan::of(lists, o, device);
  Scratch scratch(device, stream);
  const auto at_counts = scratch.part<std::uint32_t>(lists.tiles);
  const auto at_places = scratch.part<std::uint32_t>(std::int64_t{plan.blocks} * plan.width);
  scratch.allocate();
  auto *const counts = scratch.at<std::uint32_t>(at_counts), *const places = scratch.at<std::uint32_t>(at_places);
  check(cudaMemsetAsync(counts, 0, static_cast<std::size_t>(lists.tiles) * sizeof *counts, stream), "clearing the counters");
  const auto shared = static_cast<int>(sizeof(std::uint32_t)) * plan.width;
  const auto ask = [](auto kernel, int bytes) {
    if (bytes > 40 * 1024)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  };
  ask(&project_all<Source>, shared), ask(&write_pairs, shared);
  project_all<Source><<<plan.blocks, binning, shared, stream>>>(in, o, lists, plan, counts, places);
  const Expectation known = expect(device, lists.tiles);
  write_pairs<<<plan.blocks, binning, shared, stream>>>(lists, o, plan, counts, places, known.seen);
  check(cudaGetLastError(), "projecting");
  sort_lists(lists, static_cast<double>(known.ratio) * lists.total / lists.tiles, stream);
}

template void prepare(const SceneFrom<Gaussians>&, const Options&, const Lists&, int, cudaStream_t);
template void prepare(const SceneFrom<Dynamic>&, const Options&, const Lists&, int, cudaStream_t);

}  // namespace core_splatting
