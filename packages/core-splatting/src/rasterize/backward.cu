// The gradient of the rasteriser on CUDA: each tile is blended again front to back while the part of the pixel's colour
// that lies behind shrinks; a warp adds up its pixels' shares of a Gaussian in registers and adds them to its sums.
#include <core_splatting/rasterize.hpp>
#include <utility>

#include "device.cuh"

namespace core_splatting {
namespace {

constexpr int most_channels = 32;

constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

/// Adds up N values (a power of two) over the warp: lane l gets the sum of value l / (32 / N).
template <int N>
__device__ float sum_of_warp(float (&v)[N], int lane) {
#pragma unroll
  for (int half = N / 2, bit = 16; half >= 1; half /= 2, bit /= 2)
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const bool upper = lane & bit;
      const float given = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
    }
  float sum = v[0];
#pragma unroll
  for (int bit = 16 / N; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

struct Images {
  core::Tensor<const float, 4> image, v_image;
  core::Tensor<const float, 3> alphas, v_alphas;
};

/// One block per tile, one thread per pixel. Adds to sums [camera, Gaussian][moments + channels].
template <int K>
__global__ void __launch_bounds__(block, K > 16 ? 1 : 2)
    gradient_tiles(Binned binned, Options o, int gaussians, core::Tensor<const float, 3> colors, int channels, Images images, float* sums) {
  __shared__ float4 shape[block];  // x, y, uu, shear
  __shared__ float4 power[block];  // yy, log2_opacity, cut
  __shared__ float color[block * K];
  __shared__ std::uint32_t gaussian[block];
  __shared__ std::uint8_t reached[block];

  const int tile = blockIdx.x, lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const auto [camera, tile_x, tile_y, column, row] = Pixel(o, tile, static_cast<int>(threadIdx.x));
  const float px = static_cast<float>(column) + 0.5f, py = static_cast<float>(row) + 0.5f;
  const int color_set = colors.shape[0] == 1 ? 0 : camera;

  float v[K] = {}, behind = 0.f, transmittance = 1.f;
  bool done = !(column < o.width && row < o.height);
  if (!done) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k < channels) {
        v[k] = at(images.v_image, camera, row, column, k);
        behind += v[k] * at(images.image, camera, row, column, k);
      }
    behind -= (1.f - at(images.alphas, camera, row, column)) * at(images.v_alphas, camera, row, column);
  }
  const uint2 range = binned.ranges[tile];
  for (std::uint32_t begin = range.x; begin < range.y; begin += block) {
    if (__syncthreads_count(done) == block) break;
    std::uint8_t mask = 0;
    if (begin + threadIdx.x < range.y) {
      const std::uint32_t id = binned.ids[begin + threadIdx.x];
      const Splat s = load_splat(binned.splats, id);
      gaussian[threadIdx.x] = id;
      shape[threadIdx.x] = {s.x, s.y, s.uu, s.shear};
      power[threadIdx.x] = {s.yy, s.log2_opacity, exponent_cut(s.log2_opacity), 0.f};
      const std::int64_t n = id - static_cast<std::uint32_t>(camera) * static_cast<std::uint32_t>(gaussians);
      const float* source = colors.data + color_set * colors.stride[0] + n * colors.stride[1];
#pragma unroll
      for (int k = 0; k < K; ++k) color[threadIdx.x * K + k] = k < channels ? source[k * colors.stride[2]] : 0.f;
      mask = reached_patches(s, tile_x, tile_y);
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
        bool active = !done && exponent >= b.z;
        const float full = exp2_fast(exponent), alpha = fminf(o.max_alpha, full), before = transmittance;
        if (active && before - alpha * before <= min_transmittance) done = true, active = false;
        if (!__any_sync(0xffffffffu, active)) continue;
        const float weight = active ? alpha * before : 0.f;
        float g = 0.f;
        if (active) {
          float shade = 0.f;
#pragma unroll
          for (int k = 0; k < K; ++k) shade += color[j * K + k] * v[k];
          behind -= weight * shade;
          transmittance = before - weight;
          g = full <= o.max_alpha ? full * (before * shade - behind / (1.f - alpha)) : 0.f;
        }
        const float gu = g * u;
        float m[moments] = {g, gu, gu * u, g * dy, gu * dy, g * dy * dy, fabsf(gu), fabsf(gu * a.z * a.w - g * b.x * dy)};
        float* const to = sums + static_cast<std::size_t>(gaussian[j]) * static_cast<std::size_t>(moments + channels);
        const float moment = sum_of_warp(m, lane);
        if (lane % (32 / moments) == 0) atomicAdd(to + lane / (32 / moments), moment);
        constexpr int wide = power_of_two(K), step = 32 / wide;
        float c[wide];
#pragma unroll
        for (int k = 0; k < wide; ++k) c[k] = k < K ? weight * v[k < K ? k : 0] : 0.f;
        const float shared = sum_of_warp(c, lane);
        if (lane % step == 0 && lane / step < channels) atomicAdd(to + moments + lane / step, shared);
      }
      if (__all_sync(0xffffffffu, done)) break;
    }
  }
}

struct Outputs {
  core::Tensor<float, 2> means, quats, scales, covars;
  core::Tensor<float, 1> opacities;
  core::Tensor<float, 3> colors, viewmats, means2d;
};

/// One thread per Gaussian: its sums of all cameras become the derivatives by its parameters, and those by the cameras.
__global__ void __launch_bounds__(block)
    gradient_gaussians(Scene in, Options o, int cameras, int gaussians, int channels, Binned binned, const float* sums, Outputs out) {
  __shared__ float of_camera[12];
  const int n = blockIdx.x * block + static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  const bool one_set = out.colors.shape[0] == 1;
  GaussianGradient total{};
  for (int c = 0; c < cameras; ++c) {
    if (threadIdx.x < 12) of_camera[threadIdx.x] = 0.f;
    __syncthreads();
    GaussianGradient g{};
    if (n < gaussians) {
      const std::int64_t i = std::int64_t{c} * gaussians + n;
      const float* const m = sums + i * (moments + channels);
      float centre[4] = {};
      if (binned.counts && binned.counts[i]) {
        const Splat s = load_splat(binned.splats, static_cast<std::uint32_t>(i));
        const SplatGradient v = splat_gradient(s, m);
        g = project_backward(load_camera(in, c), o, load_gaussian(in.gaussians, n), v);
        centre[0] = v.x, centre[1] = v.y, centre[2] = -2.f / log2e * s.uu * m[6], centre[3] = 2.f / log2e * m[7];
      }
      for (int k = 0; k < 4; ++k) at(out.means2d, c, n, k) = centre[k];
      for (int k = 0; k < 3; ++k) total.mean[k] += g.mean[k], total.scale[k] += g.scale[k];
      for (int k = 0; k < 4; ++k) total.quat[k] += g.quat[k];
      for (int k = 0; k < 6; ++k) total.covar[k] += g.covar[k];
      total.opacity += g.opacity;
      for (int d = 0; d < channels; ++d) {
        float& to = at(out.colors, one_set ? 0 : c, n, d);
        to = m[moments + d] + (one_set && c ? to : 0.f);
      }
    }
    for (int k = 0; k < 12; ++k) {
      float sum = k % 4 == 3 ? g.t[k / 4] : g.r[k / 4 * 3 + k % 4];
      for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
      if (lane == 0 && sum != 0.f) atomicAdd(of_camera + k, sum);
    }
    __syncthreads();
    if (threadIdx.x < 12 && of_camera[threadIdx.x] != 0.f)
      atomicAdd(&at(out.viewmats, c, threadIdx.x / 4, threadIdx.x % 4), of_camera[threadIdx.x]);
    __syncthreads();
  }
  if (n >= gaussians) return;
  for (int k = 0; k < 3; ++k) at(out.means, n, k) = total.mean[k];
  if (in.gaussians.by_covariance) {
    for (int k = 0; k < 6; ++k) at(out.covars, n, k) = total.covar[k];
  } else {
    for (int k = 0; k < 3; ++k) at(out.scales, n, k) = total.scale[k];
    for (int k = 0; k < 4; ++k) at(out.quats, n, k) = total.quat[k];
  }
  at(out.opacities, n) = total.opacity;
}

__global__ void clear_cameras(core::Tensor<float, 3> viewmats) { at(viewmats, blockIdx.x, threadIdx.x / 4, threadIdx.x % 4) = 0.f; }

__global__ void __launch_bounds__(block) clear_colors(core::Tensor<float, 3> colors, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x, d = colors.shape[2], n = colors.shape[1];
  if (i < total) at(colors, i / (d * n), i / d % n, i % d) = 0.f;
}

}  // namespace

void rasterize_backward_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                             In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                             double max_alpha, bool antialiased, const char* camera_model, In<4> image, In<3> alphas, In<4> v_image,
                             In<3> v_alphas, Out<2> v_means, MaybeOut<2> v_quats, MaybeOut<2> v_scales, MaybeOut<2> v_covars,
                             Out<1> v_opacities, Out<3> v_colors, Out<3> v_viewmats, Out<3> v_means2d, core::Stream queue) {
  const char* op = "rasterize_backward";
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0], channels = colors.shape[2];
  const Options o =
      check_options(op, cameras, gaussians, colors.shape[0],
                    {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, alphas.shape[1], alphas.shape[2]);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  check_gradients(op, scene.gaussians, colors, v_quats, v_scales, v_covars, v_colors);
  if (channels > most_channels)
    throw core::Error("NotImplementedError", std::string(op) + ": argument 'colors' must have at most " + std::to_string(most_channels) +
                                                 " channels on CUDA, got " + std::to_string(channels));
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y;
  const core::OnDevice guard(op, v_means.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  if (cameras) clear_cameras<<<static_cast<unsigned>(cameras), 16, 0, stream>>>(v_viewmats);
  if (gaussians == 0) return;
  if (const std::int64_t of_colors = v_colors.shape[0] * gaussians * channels; of_colors && cameras == 0)
    clear_colors<<<blocks_for(of_colors), block, 0, stream>>>(v_colors, of_colors);

  Scratch first(v_means.device_id, stream), second(v_means.device_id, stream), third(v_means.device_id, stream);
  const std::int64_t floats = core::checked_mul(cameras * gaussians, moments + channels, "rasterize_backward: scratch");
  const auto at_sums = third.part<float>(floats);
  third.allocate();
  float* const sums = third.at<float>(at_sums);
  check(cudaMemsetAsync(sums, 0, static_cast<std::size_t>(floats) * sizeof(float), stream), "clearing the sums");
  Binned binned;
  if (tiles) binned = prepare(scene, o, cameras, gaussians, first, second, stream);
  if (tiles && channels) {
    const auto kernel = channels == 1    ? &gradient_tiles<1>
                        : channels <= 3  ? &gradient_tiles<3>
                        : channels == 4  ? &gradient_tiles<4>
                        : channels <= 8  ? &gradient_tiles<8>
                        : channels <= 16 ? &gradient_tiles<16>
                                         : &gradient_tiles<32>;
    kernel<<<static_cast<unsigned>(tiles), block, 0, stream>>>(binned, o, static_cast<int>(gaussians), colors, static_cast<int>(channels),
                                                               {image, v_image, alphas, v_alphas}, sums);
    check(cudaGetLastError(), "blending again");
  }
  gradient_gaussians<<<blocks_for(gaussians), block, 0, stream>>>(
      scene, o, static_cast<int>(cameras), static_cast<int>(gaussians), static_cast<int>(channels), binned, sums,
      {v_means, v_quats.value_or(Out<2>{}), v_scales.value_or(Out<2>{}), v_covars.value_or(Out<2>{}), v_opacities, v_colors, v_viewmats,
       v_means2d});
  check(cudaGetLastError(), "projecting backward");
}

}  // namespace core_splatting
