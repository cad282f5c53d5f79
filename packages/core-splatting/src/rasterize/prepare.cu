// Projection on CUDA: project and count tiles, sort the Gaussians by depth, write their (tile, Gaussian) pairs in that
// order, sort the pairs stably by tile. How many pairs there are only the device knows: room is made for as many as
// earlier calls had, so that the host need not wait.
#include <thrust/iterator/transform_iterator.h>

#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device.cuh"

namespace core_splatting {
namespace {

/// One thread per (camera, Gaussian): the splat, its depth, its number of tiles; and their sum.
__global__ void __launch_bounds__(block) project_all(Scene in, Options o, Lists lists, std::uint32_t* ids, std::uint32_t* counts) {
  const int gaussians = lists.gaussians;
  __shared__ unsigned long long block_sum;
  if (threadIdx.x == 0) block_sum = 0;
  __syncthreads();
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  std::uint32_t count = 0;
  if (i < lists.total) {
    const int c = i / gaussians, n = i - c * gaussians;
    const Camera cam = load_camera(in, c);
    float depth;
    Splat s;
    if (project(cam, o, load_gaussian(in.gaussians, n), s, depth)) {
      const Range rows = tile_rows(s, o);
      for (int row = rows.first; row <= rows.last; ++row) {
        const Range columns = tile_columns(s, o, row);
        count += static_cast<std::uint32_t>(columns.last >= columns.first ? columns.last - columns.first + 1 : 0);
      }
    }
    if (count) {
      float4* out = reinterpret_cast<float4*>(lists.splats + i);
      out[0] = {s.x, s.y, s.uu, s.shear};
      out[1] = {s.yy, s.log2_opacity, s.extent_x, s.extent_y};
    }
    lists.depths[i] = count ? __float_as_uint(depth) : culled;
    ids[i] = static_cast<std::uint32_t>(i);
    counts[i] = count;
  }
  const std::uint32_t warp_sum = __reduce_add_sync(0xffffffffu, count);
  if ((threadIdx.x & 31) == 0 && warp_sum) atomicAdd(&block_sum, static_cast<unsigned long long>(warp_sum));
  __syncthreads();
  if (threadIdx.x == 0 && block_sum) atomicAdd(lists.pairs, block_sum);
}

/// One thread per Gaussian in depth order writes its (tile, Gaussian) pairs; a whole warp writes a large one's,
/// one tile row per lane.
template <class Key>
__global__ void __launch_bounds__(block)
    write_pairs(Lists lists, Options o, const std::uint32_t* counts, const std::uint32_t* offsets, Key* tiles, std::uint32_t* ids) {
  if (*lists.pairs > lists.capacity) return;
  const int gaussians = lists.gaussians;
  constexpr std::uint32_t large = 48;
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t id = 0, count = 0, offset = 0;
  if (i < lists.total) {
    id = lists.order[i];
    count = counts[id];
    offset = offsets[i];
  }
  const auto write_row = [&](std::uint32_t g, int row, Range columns, std::uint32_t to) {
    const int first = (static_cast<int>(g) / gaussians * o.tiles_y + row) * o.tiles_x;
    for (int column = columns.first; column <= columns.last; ++column, ++to) {
      tiles[to] = static_cast<Key>(first + column);
      ids[to] = g;
    }
  };
  if (count && count < large) {
    const Splat s = load_splat(lists.splats, id);
    const Range rows = tile_rows(s, o);
    for (int row = rows.first; row <= rows.last; ++row) {
      const Range columns = tile_columns(s, o, row);
      write_row(id, row, columns, offset);
      offset += static_cast<std::uint32_t>(max(columns.last - columns.first + 1, 0));
    }
  }
  for (std::uint32_t rest = __ballot_sync(0xffffffffu, count >= large); rest; rest &= rest - 1) {
    const int owner = __ffs(static_cast<int>(rest)) - 1;
    const std::uint32_t g = __shfl_sync(0xffffffffu, id, owner);
    std::uint32_t base = __shfl_sync(0xffffffffu, offset, owner);
    const Splat s = load_splat(lists.splats, g);
    const Range rows = tile_rows(s, o);
    for (int first = rows.first; first <= rows.last; first += 32) {
      const int row = first + lane;
      const Range columns = row <= rows.last ? tile_columns(s, o, row) : Range{0, -1};
      const std::uint32_t n = static_cast<std::uint32_t>(max(columns.last - columns.first + 1, 0));
      std::uint32_t upto = n;
      for (int step = 1; step < 32; step *= 2) {
        const std::uint32_t below = __shfl_up_sync(0xffffffffu, upto, step);
        if (lane >= step) upto += below;
      }
      write_row(g, row, columns, base + upto - n);
      base += __shfl_sync(0xffffffffu, upto, 31);
    }
  }
}

/// Where each tile's pairs begin in the sorted list, of which the unused end holds keys above all tiles; and how many there
/// were for each Gaussian.
template <class Key>
__global__ void __launch_bounds__(block) find_begins(const Key* keys, Lists lists, float* seen) {
  const int tile = blockIdx.x * block + static_cast<int>(threadIdx.x);
  if (tile == 0) *seen = static_cast<float>(*lists.pairs) / static_cast<float>(lists.total);
  if (tile > lists.tiles) return;
  std::uint32_t low = 0, high = lists.capacity;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (keys[middle] < static_cast<std::uint32_t>(tile))
      low = middle + 1;
    else
      high = middle;
  }
  lists.begins[tile] = low;
}

__global__ void __launch_bounds__(block) project_only(Scene in, Options o, int gaussians, int total, ProjectionOutputs out) {
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  if (i < total)
    write_projection(out, load_camera(in, i / gaussians), o, load_gaussian(in.gaussians, i % gaussians), i / gaussians, i % gaussians);
}

struct CountOf {
  const std::uint32_t* counts;
  __host__ __device__ std::uint32_t operator()(std::uint32_t id) const { return counts[id]; }
};

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
    *found->seen = 3.2f;
  }
  const float seen = *static_cast<volatile float*>(found->seen);
  found->ratio = std::max(0.99f * found->ratio, seen);
  return *found;
}

int bits_for(std::int64_t values) {
  int bits = 1;
  while (std::int64_t{1} << bits < values) ++bits;
  return bits;
}

constexpr std::int64_t aligned(std::int64_t ints) { return (ints + 63) / 64 * 64; }

template <class Key>
void prepare_with(const Scene& in, const Options& o, const Lists& lists, int device, cudaStream_t stream) {
  const int total = lists.total, bits = bits_for(std::int64_t{lists.tiles} + 1);
  const std::uint32_t capacity = lists.capacity;
  const auto count_in_order = [&](const std::uint32_t* counts) {
    return thrust::make_transform_iterator(static_cast<const std::uint32_t*>(lists.order), CountOf{counts});
  };
  constexpr std::uint32_t* none = nullptr;
  std::size_t sort_bytes = 0, scan_bytes = 0, bin_bytes = 0;
  check(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, lists.depths, none, none, lists.order, total, 0, 32, stream),
        "sizing the depth sort");
  check(cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, count_in_order(nullptr), none, total, stream), "sizing the scan");
  check(cub::DeviceRadixSort::SortPairs(nullptr, bin_bytes, static_cast<Key*>(nullptr), static_cast<Key*>(nullptr), none, lists.ids,
                                        capacity, 0, bits, stream),
        "sizing the tile sort");
  Scratch scratch(device, stream);
  const auto at_counts = scratch.part<std::uint32_t>(total), at_offsets = scratch.part<std::uint32_t>(total);
  const auto at_given = scratch.part<std::uint32_t>(std::max(std::int64_t{total}, std::int64_t{capacity}));
  const auto at_sorted = scratch.part<std::uint32_t>(total);
  const auto at_keys = scratch.part<Key>(capacity), at_sorted_keys = scratch.part<Key>(capacity);
  const auto at_temp = scratch.part<char>(static_cast<std::int64_t>(std::max({sort_bytes, scan_bytes, bin_bytes})));
  scratch.allocate();
  auto *counts = scratch.at<std::uint32_t>(at_counts), *offsets = scratch.at<std::uint32_t>(at_offsets);
  auto* given = scratch.at<std::uint32_t>(at_given);
  Key *keys = scratch.at<Key>(at_keys), *sorted_keys = scratch.at<Key>(at_sorted_keys);
  char* const temp = scratch.at<char>(at_temp);

  check(cudaMemsetAsync(lists.pairs, 0, sizeof *lists.pairs, stream), "clearing a counter");
  check(cudaMemsetAsync(keys, 0xff, capacity * sizeof(Key), stream), "clearing the keys");
  project_all<<<blocks_for(total), block, 0, stream>>>(in, o, lists, given, counts);
  check(cudaGetLastError(), "projecting");
  check(cub::DeviceRadixSort::SortPairs(temp, sort_bytes, lists.depths, scratch.at<std::uint32_t>(at_sorted), given, lists.order, total, 0,
                                        32, stream),
        "sorting by depth");
  check(cub::DeviceScan::ExclusiveSum(temp, scan_bytes, count_in_order(counts), offsets, total, stream), "counting the tiles");
  write_pairs<Key><<<blocks_for(total), block, 0, stream>>>(lists, o, counts, offsets, keys, given);
  check(cudaGetLastError(), "writing the tiles");
  check(cub::DeviceRadixSort::SortPairs(temp, bin_bytes, keys, sorted_keys, given, lists.ids, capacity, 0, bits, stream),
        "sorting by tile");
  find_begins<Key><<<blocks_for(std::int64_t{lists.tiles} + 1), block, 0, stream>>>(sorted_keys, lists, expect(device, lists.tiles).seen);
  check(cudaGetLastError(), "finding the tiles");
}

}  // namespace

std::int64_t Lists::size_without_ids(std::int64_t total, std::int64_t tiles) {
  return 64 + aligned(8 * total) + 2 * aligned(total) + aligned(tiles + 1);
}

Lists::Lists(std::int32_t* memory, std::int64_t size, std::int64_t gaussians_, std::int64_t total_, std::int64_t tiles_)
    : gaussians(static_cast<int>(gaussians_)), total(static_cast<int>(total_)), tiles(static_cast<int>(tiles_)) {
  const std::int64_t fixed = size_without_ids(total, tiles);
  if (size < fixed || reinterpret_cast<std::uintptr_t>(memory) % 16)
    throw core::Error("ValueError", "rasterize: argument 'workspace' must be 16-byte aligned and hold at least " + std::to_string(fixed) +
                                        " elements, got " + std::to_string(size));
  const auto part = [&](std::int64_t ints) { return std::exchange(memory, memory + aligned(ints)); };
  pairs = reinterpret_cast<unsigned long long*>(part(2));
  splats = reinterpret_cast<Splat*>(part(8 * total_));
  depths = reinterpret_cast<std::uint32_t*>(part(total));
  order = reinterpret_cast<std::uint32_t*>(part(total));
  begins = reinterpret_cast<std::uint32_t*>(part(tiles_ + 1));
  ids = reinterpret_cast<std::uint32_t*>(memory);
  capacity = static_cast<std::uint32_t>(std::min<std::int64_t>(size - fixed, std::numeric_limits<std::int32_t>::max()));
}

std::int64_t workspace_size(int device, std::int64_t total, std::int64_t tiles) {
  const double expected = 1.25 * static_cast<double>(expect(device, tiles).ratio) * static_cast<double>(total);
  const auto pairs = static_cast<std::int64_t>(std::min(expected, 2147483647.0 - (1 << 20))) + (1 << 18);
  return Lists::size_without_ids(total, tiles) + (pairs + 65535) / 65536 * 65536;
}

void prepare(const Scene& in, const Options& o, const Lists& lists, int device, cudaStream_t stream) {
  if (lists.total == 0) {
    check(cudaMemsetAsync(lists.pairs, 0, sizeof *lists.pairs, stream), "clearing a counter");
    check(cudaMemsetAsync(lists.begins, 0, (static_cast<std::size_t>(lists.tiles) + 1) * sizeof *lists.begins, stream),
          "clearing the tiles");
  } else if (lists.tiles < 65535) {
    prepare_with<std::uint16_t>(in, o, lists, device, stream);
  } else {
    prepare_with<std::uint32_t>(in, o, lists, device, stream);
  }
}

void project_gaussians_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                            std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip, double eps2d,
                            bool antialiased, const char* camera_model, Out<3> means2d, core::Tensor<std::int32_t, 3> radii, Out<2> depths,
                            Out<3> conics, Out<2> weights, core::Stream queue) {
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

}  // namespace core_splatting
