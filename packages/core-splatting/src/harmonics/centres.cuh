// The derivatives by cameras' centres on CUDA: each warp leaves its sum, and these are added up in the same order on every run.
#pragma once
#include "basis.hpp"

namespace core_splatting {

/// Adds what the centre gains, if the places of a warp's lanes gain `v_place`, to the warp's own part[3].
__device__ inline void add_to_centre(const float* v_place, float* part) {
  for (int k = 0; k < 3; ++k) {
    float sum = v_place[k];
    for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (threadIdx.x % 32 == 0) part[k] -= sum;
  }
}

inline constexpr int centre_threads = 256;

/// One block a camera: its `parts`, v_centres[C][parts][3], become the derivative by the camera, which is written or added.
static __global__ void __launch_bounds__(centre_threads)
    centres_to_cameras(In<3> viewmats, const float* v_centres, std::int64_t parts, bool add, Out<3> v_viewmats) {
  constexpr int warps = centre_threads / 32;
  __shared__ float of_warps[warps][3];
  const int thread = static_cast<int>(threadIdx.x);
  const float* const own = v_centres + blockIdx.x * parts * 3;
  float sum[3] = {};
  for (std::int64_t part = thread; part < parts; part += centre_threads)
    for (int k = 0; k < 3; ++k) sum[k] += own[3 * part + k];
  for (int k = 0; k < 3; ++k) {
    for (int bit = 16; bit >= 1; bit /= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], bit);
    if (thread % 32 == 0) of_warps[thread / 32][k] = sum[k];
  }
  __syncthreads();
  if (thread) return;
  float v_centre[3] = {}, of_camera[16];
  for (const float* const of_warp : of_warps)
    for (int k = 0; k < 3; ++k) v_centre[k] += of_warp[k];
  centre_backward(centre_of(viewmats, blockIdx.x), v_centre, {of_camera, {1, 4, 4}, {16, 4, 1}}, 0);
  for (int k = 0; k < 16; ++k) {
    float& to = at(v_viewmats, blockIdx.x, k / 4, k % 4);
    to = of_camera[k] + (add ? to : 0.f);
  }
}

}  // namespace core_splatting
