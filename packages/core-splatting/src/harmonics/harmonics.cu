// Spherical harmonics on CUDA: one thread per Gaussian; a block brings its coefficients through shared memory.
#include <core/cuda.hpp>

#include <string>

#include "../scenes.hpp"
#include "centres.cuh"

namespace core_splatting {
namespace {

constexpr int block = 64, warps = block / 32;
constexpr std::int64_t most_bytes = 48 << 10;  // of shared memory

unsigned blocks_for(std::int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

/// Coefficients as a block holds them: `rows` of K D floats at an odd pitch, so that threads do not meet in a bank.
struct Stage {
  int width, pitch;
  bool on;
};

/// Staging pays, and is possible, for rows that lie one after the other and are read once.
Stage stage_of(const In<4>& coeffs, int arrays, std::int64_t cameras) {
  const std::int64_t width = coeffs.shape[2] * coeffs.shape[3];
  if (width == 0 || width > 1024) return {0, 0, false};
  const bool packed = coeffs.stride[3] == 1 && coeffs.stride[2] == coeffs.shape[3] && coeffs.stride[1] == width;
  const std::int64_t pitch = width | 1;
  return {static_cast<int>(width), static_cast<int>(pitch),
          packed && coeffs.shape[0] == 1 && cameras > 0 && arrays * block * pitch * 4 <= most_bytes};
}

/// A tensor whose element (0, n, k, d) lies in `shared`, for the block's rows n from `first` on.
template <class T>
__device__ core::Tensor<T, 4> staged(core::Tensor<T, 4> tensor, T* shared, const Stage& stage, std::int64_t first) {
  tensor.data = shared - first * stage.pitch;
  tensor.stride = {0, stage.pitch, tensor.shape[3], 1};
  return tensor;
}

__device__ void load_rows(const In<4>& coeffs, const Stage& stage, std::int64_t first, int rows, float* shared) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * stage.width; i += block)
    shared[i / stage.width * stage.pitch + i % stage.width] = coeffs.data[first * stage.width + i];
}

__global__ void __launch_bounds__(block) evaluate(Harmonics in, Stage stage, Out<3> out) {
  extern __shared__ float shared[];
  const std::int64_t first = std::int64_t{blockIdx.x} * block, n = first + threadIdx.x, count = in.dirs.shape[0];
  if (stage.on) {
    load_rows(in.coeffs, stage, first, static_cast<int>(min(std::int64_t{block}, count - first)), shared);
    in.coeffs = staged<const float>(in.coeffs, shared, stage, first);
    __syncthreads();
  }
  if (n >= count) return;
  for (std::int64_t c = 0; c < out.shape[0]; ++c) harmonics_of(in, centre_of(in.viewmats, c), out, c, n);
}

__global__ void __launch_bounds__(block)
    gradient(Harmonics in, Stage stage, In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs, Out<1> v_phases, float* v_centres) {
  extern __shared__ float shared[];
  const std::int64_t first = std::int64_t{blockIdx.x} * block, n = first + threadIdx.x, count = in.dirs.shape[0];
  const bool there = n < count;
  const int rows = static_cast<int>(min(std::int64_t{block}, count - first));
  float* const v_shared = shared + block * stage.pitch;
  const Out<4> v_whole = v_coeffs;
  if (stage.on) {
    load_rows(in.coeffs, stage, first, rows, shared);
    in.coeffs = staged<const float>(in.coeffs, shared, stage, first);
    v_coeffs = staged<float>(v_coeffs, v_shared, stage, first);
    __syncthreads();
  }
  float total[3] = {}, v_phase = 0.f;
  if (there)
    for (std::int64_t g = 0; g < v_coeffs.shape[0]; ++g)
      for (std::int64_t k = 0; k < v_coeffs.shape[2]; ++k)
        for (std::int64_t d = 0; d < v_coeffs.shape[3]; ++d) at(v_coeffs, g, n, k, d) = 0.f;
  for (std::int64_t c = 0; c < v_out.shape[0]; ++c) {
    float v_place[3] = {};
    if (there) harmonics_backward(in, centre_of(in.viewmats, c), v_out, v_coeffs, c, n, v_place, v_phase);
    for (int k = 0; k < 3; ++k) total[k] += v_place[k];
    if (v_centres) add_to_centre(v_place, v_centres + 3 * (c * warps * gridDim.x + first / 32 + threadIdx.x / 32));
  }
  if (there) {
    for (int k = 0; k < 3; ++k) at(v_dirs, n, k) = total[k];
    at(v_phases, n) = v_phase;
  }
  if (!stage.on) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * stage.width; i += block) {
    const int row = i / stage.width, column = i % stage.width, channels = static_cast<int>(v_whole.shape[3]);
    at(v_whole, 0, first + row, column / channels, column % channels) = v_shared[row * stage.pitch + column];
  }
}

/// Of one scene.
void spherical_harmonics_of_scene(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                  MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, Out<3> out,
                                  core::Stream queue) {
  const char* const op = "spherical_harmonics";
  const Harmonics in = check_harmonics(op, degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, out.shape[0]);
  if (out.shape[0] * dirs.shape[0] == 0) return;
  const core::OnDevice guard(op, out.device_id);
  const Stage stage = stage_of(coeffs, 1, out.shape[0]);
  const std::size_t bytes = stage.on ? static_cast<std::size_t>(block * stage.pitch) * sizeof(float) : 0;
  evaluate<<<blocks_for(dirs.shape[0]), block, bytes, static_cast<cudaStream_t>(queue.handle)>>>(in, stage, out);
  core::check_cuda(op, cudaGetLastError(), "evaluating");
}

}  // namespace

void spherical_harmonics_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                              MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, std::int64_t scenes,
                              Out<3> out, core::Stream queue) {
  for_each_scene("spherical_harmonics", scenes, dirs.shape[0], out.shape[0], [&](const SceneOf& s) {
    spherical_harmonics_of_scene(degree, time_degree, s.rows(dirs), s.colors("coeffs", coeffs), s.views(viewmats), s.rows(phases),
                                 s.views(masks), as_color, s.projections("out", out), queue);
  });
}

namespace {

/// Of one scene.
void spherical_harmonics_backward_of_scene(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
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
  const std::int64_t parts = viewmats ? std::int64_t{warps} * blocks_for(count) : 0;
  const std::int64_t bytes_of_parts = core::checked_mul(cameras * parts, 3 * sizeof(float), op);
  const core::DeviceScratch scratch(op, v_out.device_id, stream, bytes_of_parts);
  if (bytes_of_parts)
    core::check_cuda(op, cudaMemsetAsync(scratch.get<float>(), 0, static_cast<std::size_t>(bytes_of_parts), stream), "clearing the sums");
  if (count) {
    const Stage stage = stage_of(coeffs, 2, cameras);
    const std::size_t bytes = stage.on ? static_cast<std::size_t>(2 * block * stage.pitch) * sizeof(float) : 0;
    gradient<<<blocks_for(count), block, bytes, stream>>>(in, stage, v_out, v_dirs, v_coeffs, v_phases,
                                                          parts ? scratch.get<float>() : nullptr);
    core::check_cuda(op, cudaGetLastError(), "differentiating");
  }
  if (cameras) {
    centres_to_cameras<<<static_cast<unsigned>(cameras), centre_threads, 0, stream>>>(in.viewmats, scratch.get<float>(), parts, false,
                                                                                      v_viewmats);
    core::check_cuda(op, cudaGetLastError(), "differentiating by cameras");
  }
}

}  // namespace

void spherical_harmonics_backward_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                       MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color,
                                       std::int64_t scenes, In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs, Out<3> v_viewmats, Out<1> v_phases,
                                       core::Stream queue) {
  for_each_scene("spherical_harmonics_backward", scenes, dirs.shape[0], v_out.shape[0], [&](const SceneOf& s) {
    spherical_harmonics_backward_of_scene(degree, time_degree, s.rows(dirs), s.colors("coeffs", coeffs), s.views(viewmats), s.rows(phases),
                                          s.views(masks), as_color, s.projections("v_out", v_out), s.rows(v_dirs),
                                          s.colors("v_coeffs", v_coeffs), s.views(v_viewmats), s.rows(v_phases), queue);
  });
}

}  // namespace core_splatting
