// What the forward and the backward pass on CUDA share: scratch memory, and the tiles' lists of projected Gaussians.
#pragma once
#include <core/cuda.hpp>

#include <optional>

#include "project.hpp"

namespace core_splatting {

constexpr int block = 256;

inline void check(cudaError_t e, const char* what) { core::check_cuda("rasterize", e, what); }

/// One allocation, handed out in parts: ask for all parts, allocate, then read the pointers.
class Scratch {
 public:
  Scratch(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  Scratch(const Scratch&) = delete;

  template <class T>
  std::size_t part(std::int64_t n) {
    const std::size_t at = size_;
    size_ += (static_cast<std::size_t>(core::checked_mul(n, sizeof(T), "rasterize: scratch")) + 255) / 256 * 256;
    return at;
  }
  void allocate() { memory_.emplace("rasterize", device_, stream_, static_cast<std::int64_t>(size_ + 256)); }
  template <class T>
  T* at(std::size_t part) const {
    return reinterpret_cast<T*>(memory_->get<char>() + part);
  }

 private:
  int device_;
  cudaStream_t stream_;
  std::optional<core::DeviceScratch> memory_;
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

struct Scene {
  Gaussians gaussians;
  In<3> viewmats, Ks;
};

/// The camera of the arrays, not checked.
__device__ inline Camera load_camera(const Scene& in, int c) {
  Camera cam;
  for (int row = 0; row < 3; ++row) {
    for (int k = 0; k < 3; ++k) cam.r[3 * row + k] = at(in.viewmats, c, row, k);
    cam.t[row] = at(in.viewmats, c, row, 3);
  }
  cam.fx = at(in.Ks, c, 0, 0), cam.fy = at(in.Ks, c, 1, 1), cam.cx = at(in.Ks, c, 0, 2), cam.cy = at(in.Ks, c, 1, 2);
  return cam;
}

__device__ inline Splat load_splat(const Splat* splats, std::uint32_t i) {
  const float4* in = reinterpret_cast<const float4*>(splats + i);
  const float4 a = in[0], b = in[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The pixel of a thread, one warp per patch of 8x4 pixels of a tile of 16x16.
struct Pixel {
  int camera, tile_x, tile_y, column, row;
  __device__ Pixel(const Options& o, int tile, int thread) {
    const int in_camera = tile % (o.tiles_x * o.tiles_y), lane = thread % 32, warp = thread / 32;
    camera = tile / (o.tiles_x * o.tiles_y);
    tile_y = in_camera / o.tiles_x * tile_size, tile_x = in_camera % o.tiles_x * tile_size;
    column = tile_x + warp % 2 * 8 + lane % 8, row = tile_y + warp / 2 * 4 + lane / 8;
  }
};

/// Which of the eight patches of a tile the ellipse's rows reach, a bit for each.
__device__ inline std::uint8_t reached_patches(const Splat& s, int tile_x, int tile_y) {
  std::uint8_t mask = 0;
#pragma unroll
  for (int strip = 0; strip < tile_size / 4; ++strip) {
    const float dy = static_cast<float>(tile_y + 4 * strip) + 0.5f - s.y;
    if (dy > s.extent_y || dy + 3.f < -s.extent_y) continue;
    float left, right;
    ellipse_span(s, dy, dy + 3.f, left, right);
    const float from = s.x + left - static_cast<float>(tile_x) - 0.52f, to = s.x + right - static_cast<float>(tile_x) - 0.48f;
    mask |= static_cast<std::uint8_t>(((from <= 7.f && to >= 0.f) ? 1 : 0) | ((from <= 15.f && to >= 8.f) ? 2 : 0)) << (2 * strip);
  }
  return mask;
}

/// The projected Gaussians, by camera and Gaussian: how many tiles each reaches (those of none have no splat); and the
/// (tile, Gaussian) pairs sorted by tile and depth: those of tile t are ids[ranges[t].x] .. ids[ranges[t].y].
struct Binned {
  const uint2* ranges = nullptr;
  const std::uint32_t* ids = nullptr;
  const Splat* splats = nullptr;
  const std::uint32_t* counts = nullptr;
};

/// Projects, sorts and bins on `stream`; the host waits for the number of pairs only. `first` and `second` keep the result.
Binned prepare(const Scene& in, const Options& o, std::int64_t cameras, std::int64_t gaussians, Scratch& first, Scratch& second,
               cudaStream_t stream);

inline unsigned blocks_for(std::int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

}  // namespace core_splatting
