// How kernels come to the 4D Gaussians that cameras see, and to their coefficients.
#pragma once
#include <cuda_pipeline.h>

#include "../rasterize/device.cuh"
#include "colors.hpp"

namespace core_splatting {

constexpr int scanned = 128;  // Gaussians of a warp

__device__ inline bool is_seen(const Lists& lists, int c, int row) {
  return lists.depths[std::int64_t{c} * lists.gaussians + row] != culled;
}

/// A warp, of W in a block, finds those of its Gaussians that a camera sees and calls visit(inside, harmonics, row, n, place) for 32 of
/// them at a time, each lane for one; those without are not inside. `width` coefficients, which lie together, are brought to `staged` at an
/// odd pitch, so that lanes do not meet in a bank; if it is 0, they are not.
template <int W, class Visit>
__device__ void for_seen(const Moving& in, const Lists& lists, int cameras, int width, float* staged, Visit visit) {
  __shared__ int found[W][scanned];
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32), pitch = width | 1;
  const int first = (static_cast<int>(blockIdx.x) * W + warp) * scanned;
  int count = 0;
  for (int row = first + lane; row < first + scanned; row += 32) {
    bool some = false;
    if (row < lists.gaussians)
      for (int c = 0; c < cameras; ++c) some |= is_seen(lists, c, row);
    const unsigned all = __ballot_sync(0xffffffffu, some);
    if (some) found[warp][count + __popc(all & ((1u << lane) - 1))] = row;
    count += __popc(all);
  }
  __syncwarp();
  for (int begin = 0; begin < count; begin += 32) {
    const int here = min(32, count - begin), row = found[warp][begin + min(lane, here - 1)];
    const std::int64_t n = gaussian_of(in.gaussians, row);
    Harmonics harmonics = in.harmonics;
    if (width) {
      for (int of = 0; of < here; ++of) {
        const float* const from = harmonics.coeffs.data + __shfl_sync(0xffffffffu, n, of) * width;
        for (int k = lane; k < width; k += 32) __pipeline_memcpy_async(staged + of * pitch + k, from + k, sizeof(float));
      }
      __pipeline_commit();
      harmonics.coeffs.data = staged + lane * pitch;
      harmonics.coeffs.stride[1] = 0;
    }
    const Gaussian g = load_gaussian(in.gaussians, row);
    __pipeline_wait_prior(0);
    __syncwarp();
    visit(lane < here, harmonics, row, n, g.mean);
    __syncwarp();
  }
}

/// The number of a Gaussian's coefficients if they lie together and W * `arrays` * 32 of them fit in shared memory, else 0.
template <int W, class T>
int staged_width(const core::Tensor<T, 4>& coeffs, int arrays) {
  const std::int64_t width = coeffs.shape[2] * coeffs.shape[3];
  const bool packed = coeffs.stride[3] == 1 && coeffs.stride[2] == coeffs.shape[3] && coeffs.stride[1] == width;
  return packed && width < 40 * 1024 / (4 * 32 * W * arrays) ? static_cast<int>(width) : 0;
}

inline unsigned blocks_for_seen(const Lists& lists, int warps) {
  return static_cast<unsigned>((lists.gaussians + std::int64_t{warps} * scanned - 1) / (warps * scanned));
}

}  // namespace core_splatting
