// Projection on CUDA: project and count tiles, sort the Gaussians by depth, write their (tile, Gaussian) pairs in that
// order, sort the pairs stably by tile.
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <limits>
#include <string>

#include "device.cuh"

namespace core_splatting {
namespace {

constexpr std::uint32_t culled = 0xffffffffu;

/// One thread per (camera, Gaussian): the splat, its depth as a sort key, its number of tiles; and their sum.
__global__ void __launch_bounds__(block) project_all(Scene in, Options o, int gaussians, int total, Splat* splats, std::uint32_t* keys,
                                                     std::uint32_t* ids, std::uint32_t* counts, unsigned long long* sum) {
  __shared__ unsigned long long block_sum;
  if (threadIdx.x == 0) block_sum = 0;
  __syncthreads();
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  std::uint32_t count = 0;
  if (i < total) {
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
      float4* out = reinterpret_cast<float4*>(splats + i);
      out[0] = {s.x, s.y, s.uu, s.shear};
      out[1] = {s.yy, s.log2_opacity, s.extent_x, s.extent_y};
    }
    keys[i] = count ? __float_as_uint(depth) : culled;
    ids[i] = static_cast<std::uint32_t>(i);
    counts[i] = count;
  }
  const std::uint32_t warp_sum = __reduce_add_sync(0xffffffffu, count);
  if ((threadIdx.x & 31) == 0 && warp_sum) atomicAdd(&block_sum, static_cast<unsigned long long>(warp_sum));
  __syncthreads();
  if (threadIdx.x == 0 && block_sum) atomicAdd(sum, block_sum);
}

/// One thread per Gaussian in depth order writes its (tile, Gaussian) pairs; a whole warp writes a large one's,
/// one tile row per lane.
template <class Key>
__global__ void __launch_bounds__(block)
    write_pairs(const std::uint32_t* order, const std::uint32_t* counts, const std::uint32_t* offsets, const Splat* splats, Options o,
                int gaussians, int total, Key* tiles, std::uint32_t* ids) {
  constexpr std::uint32_t large = 48;
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t id = 0, count = 0, offset = 0;
  if (i < total) {
    id = order[i];
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
    const Splat s = load_splat(splats, id);
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
    const Splat s = load_splat(splats, g);
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

/// Where each tile's pairs begin and end in the sorted list; untouched for a tile without pairs.
template <class Key>
__global__ void __launch_bounds__(block) find_ranges(const Key* tiles, std::uint32_t pairs, uint2* ranges) {
  const std::uint32_t i = blockIdx.x * block + threadIdx.x;
  if (i >= pairs) return;
  const Key tile = tiles[i];
  if (i == 0 || tiles[i - 1] != tile) ranges[tile].x = i;
  if (i + 1 == pairs || tiles[i + 1] != tile) ranges[tile].y = i + 1;
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

int bits_for(std::int64_t values) {
  int bits = 1;
  while (std::int64_t{1} << bits < values) ++bits;
  return bits;
}

template <class Key>
void bin(Scratch& scratch, const std::uint32_t* order, const std::uint32_t* counts, const std::uint32_t* offsets, const Splat* splats,
         const Options& o, int gaussians, int total, std::uint32_t pairs, std::int64_t tiles, cudaStream_t stream, Binned& result) {
  cub::DoubleBuffer<Key> keys(nullptr, nullptr);
  cub::DoubleBuffer<std::uint32_t> ids(nullptr, nullptr);
  const int bits = bits_for(tiles);
  std::size_t bytes = 0;
  check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, ids, pairs, 0, bits, stream), "sizing the tile sort");
  const auto at_keys = scratch.part<Key>(pairs), at_keys2 = scratch.part<Key>(pairs);
  const auto at_ids = scratch.part<std::uint32_t>(pairs), at_ids2 = scratch.part<std::uint32_t>(pairs);
  const auto at_ranges = scratch.part<uint2>(tiles), at_temp = scratch.part<char>(static_cast<std::int64_t>(bytes));
  scratch.allocate();
  keys = {scratch.at<Key>(at_keys), scratch.at<Key>(at_keys2)};
  ids = {scratch.at<std::uint32_t>(at_ids), scratch.at<std::uint32_t>(at_ids2)};
  uint2* ranges = scratch.at<uint2>(at_ranges);
  check(cudaMemsetAsync(ranges, 0, static_cast<std::size_t>(tiles) * sizeof *ranges, stream), "clearing the tiles");
  if (pairs) {
    write_pairs<Key>
        <<<blocks_for(total), block, 0, stream>>>(order, counts, offsets, splats, o, gaussians, total, keys.Current(), ids.Current());
    check(cudaGetLastError(), "writing the tiles");
    check(cub::DeviceRadixSort::SortPairs(scratch.at<char>(at_temp), bytes, keys, ids, pairs, 0, bits, stream), "sorting by tile");
    find_ranges<Key><<<blocks_for(pairs), block, 0, stream>>>(keys.Current(), pairs, ranges);
    check(cudaGetLastError(), "finding the tiles");
  }
  result.ranges = ranges, result.ids = ids.Current();
}

}  // namespace

Binned prepare(const Scene& in, const Options& o, std::int64_t cameras, std::int64_t gaussians, Scratch& first, Scratch& second,
               cudaStream_t stream) {
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y;
  const int total = static_cast<int>(cameras * gaussians);
  Binned binned;
  if (total) {
    cub::DoubleBuffer<std::uint32_t> keys(nullptr, nullptr), ids(nullptr, nullptr);
    const auto count_in_order = [&](const std::uint32_t* order, const std::uint32_t* counts) {
      return thrust::make_transform_iterator(order, CountOf{counts});
    };
    std::size_t sort_bytes = 0, scan_bytes = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, keys, ids, total, 0, 32, stream), "sizing the depth sort");
    check(cub::DeviceScan::ExclusiveSum(nullptr, scan_bytes, count_in_order(nullptr, nullptr), static_cast<std::uint32_t*>(nullptr), total,
                                        stream),
          "sizing the scan");
    const auto at_splats = first.part<Splat>(total);
    const auto at_keys = first.part<std::uint32_t>(total), at_keys2 = first.part<std::uint32_t>(total);
    const auto at_ids = first.part<std::uint32_t>(total), at_ids2 = first.part<std::uint32_t>(total);
    const auto at_counts = first.part<std::uint32_t>(total), at_offsets = first.part<std::uint32_t>(total);
    const auto at_sum = first.part<unsigned long long>(1);
    const auto at_temp = first.part<char>(static_cast<std::int64_t>(std::max(sort_bytes, scan_bytes)));
    first.allocate();
    keys = {first.at<std::uint32_t>(at_keys), first.at<std::uint32_t>(at_keys2)};
    ids = {first.at<std::uint32_t>(at_ids), first.at<std::uint32_t>(at_ids2)};
    auto* counts = first.at<std::uint32_t>(at_counts);
    auto* offsets = first.at<std::uint32_t>(at_offsets);
    auto* sum = first.at<unsigned long long>(at_sum);
    binned.splats = first.at<Splat>(at_splats), binned.counts = counts;

    static thread_local Mailbox mailbox;
    check(cudaMemsetAsync(sum, 0, sizeof *sum, stream), "clearing a counter");
    project_all<<<blocks_for(total), block, 0, stream>>>(in, o, static_cast<int>(gaussians), total, first.at<Splat>(at_splats),
                                                         keys.Current(), ids.Current(), counts, sum);
    check(cudaGetLastError(), "projecting");
    mailbox.send(sum, stream);
    // The device sorts while the host waits for the sum.
    cudaError_t queued = cub::DeviceRadixSort::SortPairs(first.at<char>(at_temp), sort_bytes, keys, ids, total, 0, 32, stream);
    if (queued == cudaSuccess)
      queued =
          cub::DeviceScan::ExclusiveSum(first.at<char>(at_temp), scan_bytes, count_in_order(ids.Current(), counts), offsets, total, stream);
    const unsigned long long pairs = mailbox.receive();
    check(queued, "sorting by depth");
    if (pairs > static_cast<unsigned long long>(std::numeric_limits<std::int32_t>::max()))
      throw core::Error("MemoryError", "rasterize: the Gaussians reach " + std::to_string(pairs) + " tiles, more than 2^31 - 1");
    const auto run = tiles <= 65536 ? &bin<std::uint16_t> : &bin<std::uint32_t>;
    run(second, ids.Current(), counts, offsets, binned.splats, o, static_cast<int>(gaussians), total, static_cast<std::uint32_t>(pairs),
        tiles, stream, binned);
  } else {
    const auto at_ranges = second.part<uint2>(tiles);
    second.allocate();
    binned.ranges = second.at<uint2>(at_ranges);
    check(cudaMemsetAsync(second.at<uint2>(at_ranges), 0, static_cast<std::size_t>(tiles) * sizeof(uint2), stream), "clearing the tiles");
  }
  return binned;
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
