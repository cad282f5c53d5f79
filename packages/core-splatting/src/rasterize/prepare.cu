// Projection on CUDA: project, count the Gaussians of each tile, write them to the tile's place as they come, sort each tile
// by depth in shared memory. How many (tile, Gaussian) pairs there are only the device knows: room is made for twice as
// many as earlier calls had, so that the host need not wait.
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

#include "../scenes.hpp"
#include "device.cuh"

namespace core_splatting {
namespace {

/// Depth and index: a tile's list is sorted by this.
using Key = unsigned long long;

/// Calls visit(i, depth, tile) for every tile that the ellipse of the lane's Gaussian reaches, if it has one; returns how
/// many these are. `first_tile`: of the camera. The whole warp goes over the tiles of a large one, a tile row per lane.
template <class Visit>
__device__ std::uint32_t visit_tiles(bool some, const Splat& s, std::uint32_t i, std::uint32_t depth, const Options& o, int first_tile,
                                     Visit visit) {
  constexpr float large = 48;
  const auto visit_row = [&](const Splat& splat, std::uint32_t g, std::uint32_t d, int row) {
    const Range columns = tile_columns(splat, o, row);
    const int first = first_tile + row * o.tiles_x;
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
__global__ void __launch_bounds__(binning, 2)
    project_all(Scene in, Options o, Lists lists, Plan plan, std::uint32_t* counts, std::uint32_t* places) {
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
    const std::uint32_t count = visit_tiles(seen, s, i, 0, o, first_tile, [&](std::uint32_t, std::uint32_t, int tile) {
      if (static_cast<unsigned>(tile - part.first) < static_cast<unsigned>(part.count)) atomicAdd(of_tiles + (tile - part.first), 1u);
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

/// Writes the keys to the places of their tiles, where these begin, how many there are, and in `seen` how many of a Gaussian.
__global__ void __launch_bounds__(binning, 2)
    write_pairs(Lists lists, Options o, Plan plan, const std::uint32_t* counts, const std::uint32_t* places, Key* keys, float* seen) {
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
    const std::uint32_t own_depth = inside ? lists.depths[own] : culled;
    const Splat s = own_depth != culled ? load_splat(lists.splats, own) : Splat{};
    visit_tiles(own_depth != culled, s, own, own_depth, o, first_tile, [&](std::uint32_t i, std::uint32_t depth, int tile) {
      if (static_cast<unsigned>(tile - part.first) < static_cast<unsigned>(part.count))
        keys[atomicAdd(of_tiles + (tile - part.first), 1u)] = Key{depth} << 32 | i;
    });
  });
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

/// What a block has in shared memory to sort up to Most keys.
template <int Threads, int Most>
struct Sorting {
  static constexpr int bins = 2048, each = bins / Threads;
  using Scan = cub::BlockScan<std::uint32_t, Threads>;
  Key keys[Most];
  alignas(16) std::uint32_t begins[bins];  // then the ends
  typename Scan::TempStorage scan;
  std::uint32_t least, most;
};

/// Sorts at most Most keys into `ids`: by a table of equal steps of the bits of the depth, and a place's keys by comparing all.
/// Where many have about the same depth, by comparisons alone.
template <int Threads, int Most>
__device__ void sort_by_table(const Key* given, std::uint32_t n, std::uint32_t* ids, Sorting<Threads, Most>& s) {
  using Own = Sorting<Threads, Most>;
  constexpr std::uint32_t crowd = 32;
  const std::uint32_t thread = threadIdx.x;
  std::uint32_t low = culled, high = 0;
  if (thread == 0) s.least = culled, s.most = 0;
  for (std::uint32_t i = thread; i < Own::bins; i += Threads) s.begins[i] = 0;
  __syncthreads();
#pragma unroll 4
  for (std::uint32_t i = thread; i < n; i += Threads) {
    const auto depth = static_cast<std::uint32_t>(given[i] >> 32);
    low = min(low, depth), high = max(high, depth);
  }
  low = __reduce_min_sync(0xffffffffu, low), high = __reduce_max_sync(0xffffffffu, high);
  if (thread % 32 == 0) atomicMin(&s.least, low), atomicMax(&s.most, high);
  __syncthreads();
  // (depth - least) * scale / 2^32 lies in [0, bins) and grows with the depth.
  const std::uint32_t least = s.least;
  const auto scale =
      static_cast<std::uint32_t>(min(std::uint64_t{0xffffffffu}, (std::uint64_t{Own::bins} << 32) / (std::uint64_t{s.most - least} + 1)));
  const auto bin_of = [&](Key key) { return __umulhi(static_cast<std::uint32_t>(key >> 32) - least, scale); };
#pragma unroll 4
  for (std::uint32_t i = thread; i < n; i += Threads) atomicAdd(s.begins + bin_of(given[i]), 1u);
  __syncthreads();
  std::uint32_t counts[Own::each], fullest = 0;
#pragma unroll
  for (int k = 0; k < Own::each; ++k) counts[k] = s.begins[thread * Own::each + k], fullest = max(fullest, counts[k]);
  typename Own::Scan(s.scan).ExclusiveSum(counts, counts);
#pragma unroll
  for (int k = 0; k < Own::each; ++k) s.begins[thread * Own::each + k] = counts[k];
  const bool crowded = __syncthreads_or(fullest > crowd);
#pragma unroll 4
  for (std::uint32_t i = thread; i < n; i += Threads) {
    const Key key = given[i];
    s.keys[atomicAdd(s.begins + bin_of(key), 1u)] = key;
  }
  __syncthreads();
  if (crowded) {
    sort_in_place(s.keys, n);
    for (std::uint32_t i = thread; i < n; i += Threads) ids[i] = static_cast<std::uint32_t>(s.keys[i]);
    return;
  }
  for (std::uint32_t i = thread; i < n; i += Threads) {
    const Key key = s.keys[i];
    const std::uint32_t bin = bin_of(key), begin = bin ? s.begins[bin - 1] : 0, end = s.begins[bin];
    std::uint32_t place = begin;
    for (std::uint32_t k = begin; k < end; ++k) place += s.keys[k] < key;
    ids[place] = static_cast<std::uint32_t>(key);
  }
}

constexpr int few = 1024, many = 12288;

/// One block per tile sorts its list if it has at most `few` Gaussians.
__global__ void __launch_bounds__(block) sort_few(Lists lists, const Key* keys) {
  __shared__ Sorting<block, few> memory;
  const std::uint32_t begin = lists.begins[blockIdx.x], n = lists.begins[blockIdx.x + 1] - begin;
  if (n == 0 || n > few || *lists.pairs > lists.capacity) return;
  sort_by_table(keys + begin, n, lists.ids + begin, memory);
}

/// The blocks share out the tiles with more. If there was no room for the lists, one block sorts all Gaussians.
__global__ void __launch_bounds__(1024) sort_many(Lists lists, Key* keys) {
  extern __shared__ __align__(16) unsigned char memory[];
  const auto sort_there = [](Key* given, std::uint32_t n, std::uint32_t* ids) {
    sort_in_place(given, n);
    for (std::uint32_t i = threadIdx.x; i < n; i += blockDim.x) ids[i] = static_cast<std::uint32_t>(given[i]);
  };
  if (*lists.pairs > lists.capacity) {
    if (blockIdx.x) return;
    const auto n = static_cast<std::uint32_t>(lists.total);
    for (std::uint32_t i = threadIdx.x; i < n; i += blockDim.x) keys[i] = Key{lists.depths[i]} << 32 | i;
    __syncthreads();
    sort_there(keys, n, lists.order);
    return;
  }
  __shared__ int large[1024], found;
  const int stride = static_cast<int>(gridDim.x);
  for (int first = static_cast<int>(blockIdx.x); first < lists.tiles; first += stride * 1024) {
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    const std::int64_t own = first + std::int64_t{stride} * threadIdx.x;
    if (own < lists.tiles && lists.begins[own + 1] - lists.begins[own] > few) large[atomicAdd(&found, 1)] = static_cast<int>(own);
    __syncthreads();
    for (int k = 0; k < found; ++k) {
      const std::uint32_t begin = lists.begins[large[k]], n = lists.begins[large[k] + 1] - begin;
      if (n <= many)
        sort_by_table(keys + begin, n, lists.ids + begin, *reinterpret_cast<Sorting<1024, many>*>(memory));
      else
        sort_there(keys + begin, n, lists.ids + begin);
      __syncthreads();
    }
  }
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
  const auto at_keys = scratch.part<Key>(std::max(std::int64_t{lists.total}, std::int64_t{lists.capacity}));
  scratch.allocate();
  auto *const counts = scratch.at<std::uint32_t>(at_counts), *const places = scratch.at<std::uint32_t>(at_places);
  Key* const keys = scratch.at<Key>(at_keys);
  check(cudaMemsetAsync(counts, 0, static_cast<std::size_t>(lists.tiles) * sizeof *counts, stream), "clearing the counters");
  const auto shared = static_cast<int>(sizeof(std::uint32_t)) * plan.width;
  constexpr int sorting = sizeof(Sorting<1024, many>);
  const auto ask = [](auto kernel, int bytes) {
    if (bytes > 40 * 1024)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  };
  ask(&project_all, shared), ask(&write_pairs, shared), ask(&sort_many, sorting);
  project_all<<<plan.blocks, binning, shared, stream>>>(in, o, lists, plan, counts, places);
  write_pairs<<<plan.blocks, binning, shared, stream>>>(lists, o, plan, counts, places, keys, expect(device, lists.tiles).seen);
  sort_few<<<static_cast<unsigned>(lists.tiles), block, 0, stream>>>(lists, keys);
  sort_many<<<static_cast<unsigned>(std::min(lists.tiles, 128)), 1024, sorting, stream>>>(lists, keys);
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
