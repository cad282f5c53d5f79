// Forward rasterisation on CUDA: blends one tile per block.
#include <core_splatting/rasterize.hpp>
#include <utility>

#include "device.cuh"

namespace core_splatting {
namespace {

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

  const int tile = blockIdx.x, lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const auto [camera, tile_x, tile_y, column, row] = Pixel(o, tile, static_cast<int>(threadIdx.x));
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

}  // namespace

void rasterize_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                    In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d,
                    double max_alpha, bool antialiased, const char* camera_model, Out<4> out_colors, Out<3> out_alphas,
                    core::Stream queue) {
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0];
  const Options o = check_options("rasterize", cameras, gaussians, colors.shape[0],
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Scene scene{check_gaussians("rasterize", means, quats, scales, covars, opacities), viewmats, Ks};
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y;
  if (tiles == 0) return;
  const core::OnDevice guard("rasterize", out_alphas.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  Scratch first(out_alphas.device_id, stream), second(out_alphas.device_id, stream);
  const Binned binned = prepare(scene, o, cameras, gaussians, first, second, stream);

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
    kernel<<<static_cast<unsigned>(tiles), block, 0, stream>>>(binned.ranges, binned.ids, binned.splats, o, static_cast<int>(gaussians),
                                                               colors, background, channel, std::min(rest, width), out_colors, out_alphas);
    check(cudaGetLastError(), "blending");
    channel += width;
  } while (channel < channels);
}

}  // namespace core_splatting
