// Forward rasterisation on CUDA: project and count tiles, sort the Gaussians by depth, write their (tile, Gaussian)
// pairs in that order, sort the pairs stably by tile, blend one tile per block.
#include <core_splatting/rasterize.hpp>

#include <cuda_runtime.h>
#include <thrust/iterator/transform_iterator.h>

#include <array>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <limits>
#include <mutex>

#include "project.hpp"

namespace core_splatting {
namespace {

constexpr int block = 256;
constexpr std::uint32_t culled = 0xffffffffu;

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  cudaGetLastError();
  throw core::Error(e == cudaErrorMemoryAllocation ? "MemoryError" : "RuntimeError",
                    std::string("rasterize: ") + what + ": " + cudaGetErrorString(e));
}

/// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (device != before_) check(cudaSetDevice(device), "choosing the device");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

/// The pool of a device. The default pool would give its memory back at each wait of the host.
cudaMemPool_t pool(int device) {
  static std::mutex mutex;
  static std::array<cudaMemPool_t, 128> pools{};
  std::lock_guard lock(mutex);
  cudaMemPool_t& p = pools.at(static_cast<std::size_t>(device));
  if (!p) {
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&p, &props), "making a memory pool");
    std::uint64_t keep = std::uint64_t{1} << 30;
    check(cudaMemPoolSetAttribute(p, cudaMemPoolAttrReleaseThreshold, &keep), "setting up a memory pool");
  }
  return p;
}

/// One allocation, handed out in parts: ask for all parts, allocate, then read the pointers.
class Scratch {
 public:
  Scratch(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  ~Scratch() {
    if (base_) cudaFreeAsync(base_, stream_);
  }
  Scratch(const Scratch&) = delete;

  template <class T>
  std::size_t part(std::int64_t n) {
    const std::size_t at = size_;
    size_ += (static_cast<std::size_t>(core::checked_mul(n, sizeof(T), "rasterize: scratch")) + 255) / 256 * 256;
    return at;
  }
  void allocate() { check(cudaMallocFromPoolAsync(&base_, size_ + 256, pool(device_), stream_), "allocating scratch memory"); }
  template <class T>
  T* at(std::size_t part) const {
    return reinterpret_cast<T*>(static_cast<char*>(base_) + part);
  }

 private:
  int device_;
  cudaStream_t stream_;
  void* base_ = nullptr;
  std::size_t size_ = 0;
};

/// A number that the device sends to the host without stopping the stream.
class Mailbox {
 public:
  Mailbox() { check(cudaHostAlloc(&value_, sizeof *value_, cudaHostAllocPortable), "allocating pinned memory"); }
  ~Mailbox() { cudaFreeHost(value_); }
  Mailbox(const Mailbox&) = delete;

  void send(const unsigned long long* device_value, cudaStream_t stream) {
    check(cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming), "making an event");
    check(cudaMemcpyAsync(value_, device_value, sizeof *value_, cudaMemcpyDeviceToHost, stream), "reading the number of tiles");
    check(cudaEventRecord(arrived_, stream), "recording an event");
  }
  unsigned long long receive() {
    const cudaError_t e = cudaEventSynchronize(arrived_);
    cudaEventDestroy(arrived_);
    check(e, "waiting for the projection");
    return *value_;
  }

 private:
  unsigned long long* value_ = nullptr;
  cudaEvent_t arrived_{};
};

template <class T, int N, class... I>
__device__ T& at(const core::Tensor<T, N>& t, I... i) {
  const std::int64_t index[] = {static_cast<std::int64_t>(i)...};
  std::int64_t offset = 0;
  for (int d = 0; d < N; ++d) offset += index[d] * t.stride[d];
  return t.data[offset];
}

struct Scene {
  core::Tensor<const float, 2> means, quats, scales;
  core::Tensor<const float, 1> opacities;
  core::Tensor<const float, 3> viewmats, Ks;
};

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
    Camera cam;
    for (int row = 0; row < 3; ++row) {
      for (int k = 0; k < 3; ++k) cam.r[3 * row + k] = at(in.viewmats, c, row, k);
      cam.t[row] = at(in.viewmats, c, row, 3);
    }
    cam.fx = at(in.Ks, c, 0, 0), cam.fy = at(in.Ks, c, 1, 1), cam.cx = at(in.Ks, c, 0, 2), cam.cy = at(in.Ks, c, 1, 2);
    float mean[3], scale[3], quat[4], depth;
    for (int k = 0; k < 3; ++k) mean[k] = at(in.means, n, k), scale[k] = at(in.scales, n, k);
    for (int k = 0; k < 4; ++k) quat[k] = at(in.quats, n, k);
    Splat s;
    if (project(cam, o, mean, quat, scale, at(in.opacities, n), s, depth)) {
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

__device__ Splat load_splat(const Splat* splats, std::uint32_t i) {
  const float4* in = reinterpret_cast<const float4*>(splats + i);
  const float4 a = in[0], b = in[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
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

__device__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// One block per tile, one thread per pixel, one warp per patch of 8x4 pixels. Batches of 256 Gaussians go through
/// shared memory, each with a mask of the patches that its ellipse's rows reach. Blends channels
/// [channel, channel + channels) of at most K.
template <int K>
__global__ void __launch_bounds__(block, K > 16 ? 2 : 4)
    blend(const uint2* ranges, const std::uint32_t* ids, const Splat* splats, Options o, int gaussians, core::Tensor<const float, 3> colors,
          core::Tensor<const float, 2> backgrounds, int channel, int channels, core::Tensor<float, 4> out_colors,
          core::Tensor<float, 3> out_alphas) {
  constexpr int stride = K == 3 ? 4 : K;
  __shared__ float4 shape[block];  // x, y, uu, shear
  __shared__ float4 power[block];  // yy, log2_opacity, cut
  __shared__ __align__(16) float color[block * stride];
  __shared__ std::uint8_t reached[block];

  const int tile = blockIdx.x, camera = tile / (o.tiles_x * o.tiles_y), in_camera = tile - camera * o.tiles_x * o.tiles_y;
  const int tile_y = in_camera / o.tiles_x * tile_size, tile_x = in_camera % o.tiles_x * tile_size;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const int column = tile_x + warp % 2 * 8 + lane % 8, row = tile_y + warp / 2 * 4 + lane / 8;
  const bool inside = column < o.width && row < o.height;
  const float px = static_cast<float>(column) + 0.5f, py = static_cast<float>(row) + 0.5f;
  const int color_set = colors.shape[0] == 1 ? 0 : camera;

  float transmittance = 1.f, sum[K] = {};
  bool done = !inside;
  const uint2 range = ranges[tile];
  for (std::uint32_t begin = range.x; begin < range.y; begin += block) {
    if (__syncthreads_count(done) == block) break;
    std::uint8_t mask = 0;
    if (begin + threadIdx.x < range.y) {
      const std::uint32_t id = ids[begin + threadIdx.x];
      const Splat s = load_splat(splats, id);
      shape[threadIdx.x] = {s.x, s.y, s.uu, s.shear};
      power[threadIdx.x] = {s.yy, s.log2_opacity, exponent_cut(s.log2_opacity), 0.f};
      const std::int64_t n = id - static_cast<std::uint32_t>(camera) * static_cast<std::uint32_t>(gaussians);
      const float* source = colors.data + color_set * colors.stride[0] + n * colors.stride[1] + channel * colors.stride[2];
#pragma unroll
      for (int k = 0; k < K; ++k) color[threadIdx.x * stride + k] = K == 3 || k < channels ? source[k * colors.stride[2]] : 0.f;
#pragma unroll
      for (int strip = 0; strip < tile_size / 4; ++strip) {
        const float dy = static_cast<float>(tile_y + 4 * strip) + 0.5f - s.y;
        if (dy > s.extent_y || dy + 3.f < -s.extent_y) continue;
        float left, right;
        ellipse_span(s, dy, dy + 3.f, left, right);
        const float from = s.x + left - static_cast<float>(tile_x) - 0.52f, to = s.x + right - static_cast<float>(tile_x) - 0.48f;
        mask |= static_cast<std::uint8_t>(((from <= 7.f && to >= 0.f) ? 1 : 0) | ((from <= 15.f && to >= 8.f) ? 2 : 0)) << (2 * strip);
      }
    }
    reached[threadIdx.x] = mask;
    __syncthreads();
    for (int part = 0; part < block; part += 32) {
      std::uint32_t hits = __ballot_sync(0xffffffffu, reached[part + lane] >> warp & 1);
      while (hits) {
        const int j = part + __ffs(static_cast<int>(hits)) - 1;
        hits &= hits - 1;
        const float4 a = shape[j], b = power[j];
        const float dy = py - a.y, u = px - a.x - a.w * dy;
        const float exponent = a.z * u * u + (b.x * dy * dy + b.y);
        if (exponent < b.z || done) continue;
        const float alpha = fminf(o.max_alpha, exp2_fast(exponent));
        const float next = transmittance - alpha * transmittance;
        if (next <= min_transmittance) {
          done = true;
          continue;
        }
        const float weight = alpha * transmittance;
        if constexpr (K == 3) {
          const float4 c = reinterpret_cast<const float4*>(color)[j];
          sum[0] += weight * c.x, sum[1] += weight * c.y, sum[2] += weight * c.z;
        } else {
#pragma unroll
          for (int k = 0; k < K; ++k) sum[k] += weight * color[j * stride + k];
        }
        transmittance = next;
      }
      if (__all_sync(0xffffffffu, done)) break;
    }
  }
  if (!inside) return;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (K == 3 || k < channels)
      at(out_colors, camera, row, column, channel + k) =
          sum[k] + (backgrounds.data ? transmittance * at(backgrounds, camera, channel + k) : 0.f);
  if (channel == 0) at(out_alphas, camera, row, column) = 1.f - transmittance;
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

unsigned blocks_for(std::int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

/// The pairs sorted by tile, kept alive by `scratch`.
struct Binned {
  const uint2* ranges;
  const std::uint32_t* ids;
};

template <class Key>
Binned bin(Scratch& scratch, const std::uint32_t* order, const std::uint32_t* counts, const std::uint32_t* offsets, const Splat* splats,
           const Options& o, int gaussians, int total, std::uint32_t pairs, std::int64_t tiles, cudaStream_t stream) {
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
  return {ranges, ids.Current()};
}

}  // namespace

void rasterize_cuda(core::Tensor<const float, 2> means, core::Tensor<const float, 2> quats, core::Tensor<const float, 2> scales,
                    core::Tensor<const float, 1> opacities, core::Tensor<const float, 3> colors, core::Tensor<const float, 3> viewmats,
                    core::Tensor<const float, 3> Ks, std::optional<core::Tensor<const float, 2>> backgrounds, double near_plane,
                    double far_plane, double radius_clip, double eps2d, double max_alpha, core::Tensor<float, 4> out_colors,
                    core::Tensor<float, 3> out_alphas, core::Stream queue) {
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0];
  const Options o = check_options("rasterize", cameras, gaussians, colors.shape[0], near_plane, far_plane, radius_clip, eps2d, max_alpha,
                                  out_alphas.shape[1], out_alphas.shape[2]);
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y;
  if (tiles == 0) return;
  const OnDevice guard(out_alphas.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const int total = static_cast<int>(cameras * gaussians);

  Scratch first(out_alphas.device_id, stream), second(out_alphas.device_id, stream);
  Binned binned{};
  const Splat* splats = nullptr;
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
    splats = first.at<Splat>(at_splats);

    static thread_local Mailbox mailbox;
    check(cudaMemsetAsync(sum, 0, sizeof *sum, stream), "clearing a counter");
    project_all<<<blocks_for(total), block, 0, stream>>>({means, quats, scales, opacities, viewmats, Ks}, o, static_cast<int>(gaussians),
                                                         total, first.at<Splat>(at_splats), keys.Current(), ids.Current(), counts, sum);
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
    binned = run(second, ids.Current(), counts, offsets, splats, o, static_cast<int>(gaussians), total, static_cast<std::uint32_t>(pairs),
                 tiles, stream);
  } else {
    const auto at_ranges = second.part<uint2>(tiles);
    second.allocate();
    binned.ranges = second.at<uint2>(at_ranges);
    check(cudaMemsetAsync(second.at<uint2>(at_ranges), 0, static_cast<std::size_t>(tiles) * sizeof(uint2), stream), "clearing the tiles");
  }

  const auto background = backgrounds.value_or(core::Tensor<const float, 2>{});
  const int channels = static_cast<int>(colors.shape[2]);
  int channel = 0;
  do {
    const int rest = channels - channel;
    const auto [width, kernel] = rest == 3    ? std::pair{3, &blend<3>}
                                 : rest <= 1  ? std::pair{1, &blend<1>}
                                 : rest <= 4  ? std::pair{4, &blend<4>}
                                 : rest <= 8  ? std::pair{8, &blend<8>}
                                 : rest <= 16 ? std::pair{16, &blend<16>}
                                              : std::pair{32, &blend<32>};
    kernel<<<static_cast<unsigned>(tiles), block, 0, stream>>>(binned.ranges, binned.ids, splats, o, static_cast<int>(gaussians), colors,
                                                               background, channel, std::min(rest, width), out_colors, out_alphas);
    check(cudaGetLastError(), "blending");
    channel += width;
  } while (channel < channels);
}

}  // namespace core_splatting
