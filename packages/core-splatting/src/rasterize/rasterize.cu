// Forward rasterisation on CUDA: blends one tile per block, a warp 8x8 pixels of it.
#include <core_splatting/rasterize.hpp>

#include "../scenes.hpp"
#include "device.cuh"
#include "features.cuh"

namespace core_splatting {
namespace {

constexpr int strips = 2, batch = Patch<strips>::threads;

/// Blends up to four channels. The block stages a Gaussian a thread, each with a mask of the strips that the ellipse's rows
/// reach, while the next are on their way; a warp passes over those that do not reach its strips.
template <int K, class T>
__global__ void __launch_bounds__(batch)
    blend(Lists lists, Options o, core::Tensor<const T, 3> colors, core::Tensor<const float, 2> backgrounds, core::Tensor<T, 4> out_colors,
          core::Tensor<float, 3> out_alphas) {
  constexpr int S = strips;
  __shared__ struct {
    Staged staged[batch];
    float4 colors[batch];
  } buffers[2];
  __shared__ std::uint8_t all_hits[Patch<S>::warps][batch];
  const Patch<S> patch(o, static_cast<int>(blockIdx.x));
  std::uint8_t* const hits = all_hits[patch.warp];
  const int channels = static_cast<int>(colors.shape[2]), thread = static_cast<int>(threadIdx.x);
  const float x = patch.x();
  float y[S], transmittance[S], sum[S][K] = {};  // y is NaN when the pixel is finished
  std::uint32_t alive = 0;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    y[s] = patch.y(s, o), transmittance[s] = 1.f;
    if (__any_sync(0xffffffffu, y[s] == y[s])) alive |= 1u << s;
  }
  const TileList list(lists, static_cast<int>(blockIdx.x));
  Stream<K, batch, T> next(lists, list, colors.data + (colors.shape[0] == 1 ? 0 : patch.camera) * colors.stride[0], colors.stride[1],
                           colors.stride[2], channels, patch.camera, thread);
  int turn = 0;
  for (std::uint32_t begin = list.begin; begin < list.end; begin += batch, turn ^= 1) {
    auto& buffer = buffers[turn];
    const std::uint32_t reached = next.valid() ? reached_of_tile(next.splat, patch.left, patch.top) : 0;
    if (reached) {
      buffer.staged[thread] = stage_at(patch.left + 8, patch.top + 8, next.splat, reached);
      buffer.colors[thread] = {next.color[0], K > 1 ? next.color[1 % K] : 0.f, K > 2 ? next.color[2 % K] : 0.f,
                               K > 3 ? next.color[3 % K] : 0.f};
    } else {
      buffer.staged[thread].mask = 0;
    }
    next.fetch();
    if (!__syncthreads_or(static_cast<int>(alive))) break;
    if (!alive) continue;
    int count = 0;
#pragma unroll
    for (int part = 0; part < batch; part += 32) {
      const bool hit = patch.own(buffer.staged[part + patch.lane].mask) & alive;
      const std::uint32_t all = __ballot_sync(0xffffffffu, hit);
      if (hit) hits[count + __popc(all & ((1u << patch.lane) - 1))] = static_cast<std::uint8_t>(part + patch.lane);
      count += __popc(all);
    }
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < count; ++j) {
      const int slot = hits[j];
      const Staged g = buffer.staged[slot];
      const float4 c = buffer.colors[slot];
      const std::uint32_t mask = patch.own(g.mask);
      const float color[] = {c.x, c.y, c.z, c.w}, across = g.p * x + g.u;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (!(mask >> s & 1)) continue;
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
        set(at(out_colors, patch.camera, row, patch.column, k),
            sum[s][k] + (backgrounds.data ? transmittance[s] * at(backgrounds, patch.camera, k) : 0.f));
    at(out_alphas, patch.camera, row, patch.column) = 1.f - transmittance[s];
  }
}

}  // namespace

template <class T>
void blend_lists(const Lists& lists, const Options& o, const core::Tensor<const T, 3>& colors, const MaybeIn<2>& backgrounds,
                 const core::Tensor<T, 4>& out_colors, const Out<3>& out_alphas, cudaStream_t stream) {
  const auto background = backgrounds.value_or(core::Tensor<const float, 2>{});
  const std::int64_t channels = colors.shape[2];
  if (channels > 4) {
    blend_features(lists, o, colors, background, out_colors, out_alphas, stream);
  } else {
    const auto kernel = channels <= 1 ? &blend<1, T> : channels == 3 ? &blend<3, T> : &blend<4, T>;
    kernel<<<static_cast<unsigned>(lists.tiles), batch, 0, stream>>>(lists, o, colors, background, out_colors, out_alphas);
  }
  check(cudaGetLastError(), "blending");
}

template void blend_lists(const Lists&, const Options&, const In<3>&, const MaybeIn<2>&, const Out<4>&, const Out<3>&, cudaStream_t);

namespace {

/// Of one scene.
template <class T>
void rasterize_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities,
                        core::Tensor<const T, 3> colors, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane,
                        double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model,
                        core::Tensor<T, 4> out_colors, Out<3> out_alphas, MaybeOutWorkspace workspace, core::Stream queue) {
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
  prepare(scene, o, own.lists, device, stream);
  blend_lists<T>(own.lists, o, colors, backgrounds, out_colors, out_alphas, stream);
}

}  // namespace

void rasterize_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                    In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d,
                    double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, Out<4> out_colors, Out<3> out_alphas,
                    MaybeOutWorkspace workspace, core::Stream queue) {
  for_each_scene("rasterize", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_of_scene<float>(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                              s.views(viewmats), s.views(Ks), s.views(backgrounds), near_plane, far_plane, radius_clip, eps2d, max_alpha,
                              antialiased, camera_model, s.views(out_colors), s.views(out_alphas), s.workspace(workspace), queue);
  });
}

void rasterize_half_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities,
                         core::Tensor<const core::float16, 3> colors, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane,
                         double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model,
                         std::int64_t scenes, core::Tensor<core::float16, 4> out_colors, Out<3> out_alphas, MaybeOutWorkspace workspace,
                         core::Stream queue) {
  for_each_scene("rasterize", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_of_scene<core::float16>(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities),
                                      s.colors("colors", colors), s.views(viewmats), s.views(Ks), s.views(backgrounds), near_plane,
                                      far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model, s.views(out_colors),
                                      s.views(out_alphas), s.workspace(workspace), queue);
  });
}

}  // namespace core_splatting
