// Spherical harmonics on CUDA: one thread per Gaussian.
#include <core/cuda.hpp>

#include <string>

#include "basis.hpp"

namespace core_splatting {
namespace {

constexpr int block = 256;

unsigned blocks_for(std::int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

__global__ void __launch_bounds__(block) evaluate(Harmonics in, Out<3> out, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x, count = in.dirs.shape[0];
  if (i < total) harmonics_of(in, centre_of(in.viewmats, i / count), out, i / count, i % count);
}

__global__ void __launch_bounds__(block)
    gradient(Harmonics in, In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs, Out<1> v_phases, float* v_centres) {
  const std::int64_t n = std::int64_t{blockIdx.x} * block + threadIdx.x, count = in.dirs.shape[0];
  const bool there = n < count;
  float total[3] = {}, v_phase = 0.f;
  if (there)
    for (std::int64_t g = 0; g < v_coeffs.shape[0]; ++g)
      for (std::int64_t k = 0; k < v_coeffs.shape[2]; ++k)
        for (std::int64_t d = 0; d < v_coeffs.shape[3]; ++d) at(v_coeffs, g, n, k, d) = 0.f;
  for (std::int64_t c = 0; c < v_out.shape[0]; ++c) {
    float v_place[3] = {};
    if (there) harmonics_backward(in, centre_of(in.viewmats, c), v_out, v_coeffs, c, n, v_place, v_phase);
    for (int k = 0; k < 3; ++k) {
      total[k] += v_place[k];
      if (!in.viewmats.data) continue;
      float sum = v_place[k];
      for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
      if ((threadIdx.x & 31) == 0 && sum != 0.f) atomicAdd(v_centres + 3 * c + k, -sum);
    }
  }
  if (!there) return;
  for (int k = 0; k < 3; ++k) at(v_dirs, n, k) = total[k];
  at(v_phases, n) = v_phase;
}

__global__ void of_cameras(In<3> viewmats, const float* v_centres, Out<3> v_viewmats) {
  const std::int64_t c = std::int64_t{blockIdx.x} * block + threadIdx.x;
  if (c < v_viewmats.shape[0]) centre_backward(centre_of(viewmats, c), v_centres + 3 * c, v_viewmats, c);
}

}  // namespace

void spherical_harmonics_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                              MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, Out<3> out,
                              core::Stream queue) {
  const char* const op = "spherical_harmonics";
  const Harmonics in = check_harmonics(op, degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, out.shape[0]);
  const std::int64_t total = out.shape[0] * dirs.shape[0];
  if (total == 0) return;
  const core::OnDevice guard(op, out.device_id);
  evaluate<<<blocks_for(total), block, 0, static_cast<cudaStream_t>(queue.handle)>>>(in, out, total);
  core::check_cuda(op, cudaGetLastError(), "evaluating");
}

void spherical_harmonics_backward_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                       MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, In<3> v_out,
                                       Out<2> v_dirs, Out<4> v_coeffs, Out<3> v_viewmats, Out<1> v_phases, core::Stream queue) {
  const char* const op = "spherical_harmonics_backward";
  const std::int64_t cameras = v_out.shape[0], count = dirs.shape[0];
  const Harmonics in = check_harmonics(op, degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, cameras);
  if (v_coeffs.shape[0] != coeffs.shape[0])
    throw core::Error("ValueError", std::string(op) + ": argument 'v_coeffs' must have the shape of 'coeffs': its first size must be " +
                                        std::to_string(coeffs.shape[0]) + ", got " + std::to_string(v_coeffs.shape[0]));
  const core::OnDevice guard(op, v_out.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const core::DeviceScratch scratch(op, v_out.device_id, stream, cameras * 3 * static_cast<std::int64_t>(sizeof(float)));
  if (cameras)
    core::check_cuda(op, cudaMemsetAsync(scratch.get<float>(), 0, static_cast<std::size_t>(cameras) * 3 * sizeof(float), stream),
                     "clearing the sums");
  if (count) {
    gradient<<<blocks_for(count), block, 0, stream>>>(in, v_out, v_dirs, v_coeffs, v_phases, scratch.get<float>());
    core::check_cuda(op, cudaGetLastError(), "differentiating");
  }
  if (cameras) {
    of_cameras<<<blocks_for(cameras), block, 0, stream>>>(in.viewmats, scratch.get<float>(), v_viewmats);
    core::check_cuda(op, cudaGetLastError(), "differentiating by cameras");
  }
}

}  // namespace core_splatting
