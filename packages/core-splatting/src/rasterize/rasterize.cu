// Forward rasterisation on CUDA: blends one tile per block, a warp on its own.
#include <core_splatting/rasterize.hpp>

#include "../scenes.hpp"
#include "device.cuh"
#include "features.cuh"

namespace core_splatting {
namespace {

/// Blends up to four channels. A warp blends its strips of the tile: it stages 32 Gaussians of the list at a time, each with
/// a mask of the strips that the ellipse's rows reach, while the next 32 are on their way.
template <int K, int S>
__global__ void __launch_bounds__(Patch<S>::threads)
    blend(Lists lists, Options o, core::Tensor<const float, 3> colors, core::Tensor<const float, 2> backgrounds,
          core::Tensor<float, 4> out_colors, core::Tensor<float, 3> out_alphas) {
  __shared__ __align__(16) Staged all_staged[Patch<S>::warps][32];
  __shared__ float4 all_colors[Patch<S>::warps][32];
  const Patch<S> patch(o, static_cast<int>(blockIdx.x));
  Staged* const staged = all_staged[patch.warp];
  float4* const staged_colors = all_colors[patch.warp];
  const int channels = static_cast<int>(colors.shape[2]);

  const float x = patch.x();
  float y[S], transmittance[S], sum[S][K] = {};  // y is NaN when the pixel is finished
  std::uint32_t alive = 0;                       // the strips with a pixel that is not
#pragma unroll
  for (int s = 0; s < S; ++s) {
    y[s] = patch.y(s, o), transmittance[s] = 1.f;
    if (__any_sync(0xffffffffu, y[s] == y[s])) alive |= 1u << s;
  }
  const TileList list(lists, static_cast<int>(blockIdx.x));
  Stream32<K> next(lists, list, colors.data + (colors.shape[0] == 1 ? 0 : patch.camera) * colors.stride[0], colors.stride[1],
                   colors.stride[2], channels, patch.camera, patch.lane);
  for (std::uint32_t begin = list.begin; begin < list.end && alive; begin += 32) {
    const std::uint32_t mask = next.valid ? patch.reached(next.splat) & alive : 0, hits = __ballot_sync(0xffffffffu, mask != 0);
    if (mask) {
      const int place = __popc(hits & ((1u << patch.lane) - 1));
      staged[place] = patch.stage(next.splat, mask);
      staged_colors[place] = {next.color[0], K > 1 ? next.color[1 % K] : 0.f, K > 2 ? next.color[2 % K] : 0.f,
                              K > 3 ? next.color[3 % K] : 0.f};
    }
    next.fetch();
    __syncwarp();
#pragma unroll 2
    for (int j = 0, count = __popc(hits); j < count; ++j) {
      const Staged g = staged[j];
      const float4 c = staged_colors[j];
      const float color[] = {c.x, c.y, c.z, c.w}, across = g.p * x + g.u;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (S > 1 && !(g.mask >> s & 1)) continue;
        const float v = g.q * y[s] + g.v, u = g.sheared * y[s] + across, exponent = g.power - v * v - u * u;
        const float alpha = fminf(o.max_alpha, exp2_fast(exponent)), blended = exponent >= g.cut ? alpha * transmittance[s] : 0.f;
        const bool finished = transmittance[s] - blended <= min_transmittance;
        const float weight = finished ? 0.f : blended;
        y[s] = finished ? not_a_number() : y[s];
        transmittance[s] -= weight;
#pragma unroll
        for (int k = 0; k < K; ++k) sum[s][k] += weight * color[k];
      }
    }
#pragma unroll
    for (int s = 0; s < S; ++s)
      if (!__any_sync(0xffffffffu, y[s] == y[s])) alive &= ~(1u << s);
    __syncwarp();
  }
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const int row = patch.row + 4 * s;
    if (patch.column >= o.width || row >= o.height) continue;
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k < channels)
        at(out_colors, patch.camera, row, patch.column, k) =
            sum[s][k] + (backgrounds.data ? transmittance[s] * at(backgrounds, patch.camera, k) : 0.f);
    at(out_alphas, patch.camera, row, patch.column) = 1.f - transmittance[s];
  }
}

template <int K>
void blend_few(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors,
               const core::Tensor<const float, 2>& backgrounds, const Out<4>& out_colors, const Out<3>& out_alphas, cudaStream_t stream) {
  constexpr int strips = 2;
  blend<K, strips>
      <<<static_cast<unsigned>(lists.tiles), Patch<strips>::threads, 0, stream>>>(lists, o, colors, backgrounds, out_colors, out_alphas);
}

/// Of one scene.
void rasterize_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                        In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d,
                        double max_alpha, bool antialiased, const char* camera_model, Out<4> out_colors, Out<3> out_alphas,
                        MaybeOutWorkspace workspace, core::Stream queue) {
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0];
  const Options o = check_options("rasterize", cameras, gaussians, colors.shape[0],
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Scene scene{check_gaussians("rasterize", means, quats, scales, covars, opacities), viewmats, Ks};
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y;
  if (tiles == 0) return;
  const int device = out_alphas.device_id;
  const core::OnDevice guard("rasterize", device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OwnLists own(workspace, device, gaussians, cameras * gaussians, tiles, stream);
  const Lists& lists = own.lists;
  prepare(scene, o, lists, device, stream);

  const auto background = backgrounds.value_or(core::Tensor<const float, 2>{});
  const std::int64_t channels = colors.shape[2];
  if (channels > 4) {
    blend_features(lists, o, colors, background, out_colors, out_alphas, stream);
  } else {
    const auto run = channels <= 1 ? &blend_few<1> : channels == 3 ? &blend_few<3> : &blend_few<4>;
    run(lists, o, colors, background, out_colors, out_alphas, stream);
  }
  check(cudaGetLastError(), "blending");
}

}  // namespace

void rasterize_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                    In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d,
                    double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, Out<4> out_colors, Out<3> out_alphas,
                    MaybeOutWorkspace workspace, core::Stream queue) {
  for_each_scene("rasterize", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                       s.views(viewmats), s.views(Ks), s.views(backgrounds), near_plane, far_plane, radius_clip, eps2d, max_alpha,
                       antialiased, camera_model, s.views(out_colors), s.views(out_alphas), s.workspace(workspace), queue);
  });
}

}  // namespace core_splatting
