// The gradient of the rasteriser on CUDA: the tiles are blended again, and what their pixels pass to a Gaussian becomes the
// derivatives by its parameters.
#include <core_splatting/rasterize.hpp>

#include <limits>
#include <string>

#include "../scenes.hpp"
#include "backward.cuh"

namespace core_splatting {
namespace {

/// One thread per Gaussian of a camera: the sum of its entries in the tiles' lists, tile by tile.
__global__ void __launch_bounds__(block) collect_entries(Lists lists, Options o, Sums entries, float* sums) {
  const auto i = blockIdx.x * block + threadIdx.x;
  if (i >= static_cast<std::uint32_t>(lists.total) || lists.depths[i] == culled) return;
  const Splat s = load_splat(lists.splats, i);
  const int first_tile = static_cast<int>(i) / lists.gaussians * o.tiles_x * o.tiles_y;
  const Range rows = tile_rows(s, o);
  for (int row = rows.first; row <= rows.last; ++row) {
    const Range columns = tile_columns(s, o, row);
    for (int column = columns.first; column <= columns.last; ++column) {
      const int tile = first_tile + row * o.tiles_x + column;
      std::uint32_t low = lists.begins[tile], high = lists.begins[tile + 1];
      while (low + 1 < high) {
        const std::uint32_t middle = low + (high - low) / 2, id = lists.ids[middle];
        if (lists.depths[id] < lists.depths[i] || (lists.depths[id] == lists.depths[i] && id <= i))
          low = middle;
        else
          high = middle;
      }
      for (std::size_t warp = 0; warp < entries.warps; ++warp)
        for (std::size_t k = 0; k < entries.stride; ++k)
          sums[i * entries.stride + k] += entries.data[(low * entries.warps + warp) * entries.stride + k];
    }
  }
}

/// Writes the derivatives by a Gaussian at rest.
__device__ void write_gradient(const Gaussians& in, const GradientsOf<Gaussians>& out, int n, const GaussianGradient& total, bool) {
  for (int k = 0; k < 3; ++k) at(out.means, n, k) = total.mean[k];
  if (in.by_covariance) {
    for (int k = 0; k < 6; ++k) at(out.covars, n, k) = total.covar[k];
  } else {
    for (int k = 0; k < 3; ++k) at(out.scales, n, k) = total.scale[k];
    for (int k = 0; k < 4; ++k) at(out.quats, n, k) = total.quat[k];
  }
  at(out.opacities, n) = total.opacity;
}

/// Passes the derivatives by a slice on to the 4D Gaussian; `seen`: whether a camera sees it.
__device__ void write_gradient(const Dynamic& in, const GradientsOf<Dynamic>& out, int row, GaussianGradient& total, bool seen) {
  const std::int64_t n = gaussian_of(in, row);
  if (n < 0) return;
  DynamicGradient g{};
  if (seen) {
    float v_time = 0.f;
    if (out.places) {
      for (int k = 0; k < 3; ++k) total.mean[k] += out.places[4 * std::int64_t{row} + k];
      v_time = out.places[4 * std::int64_t{row} + 3];
    }
    g = slice_backward(in, n, total.mean, total.covar, total.opacity);
    g.mean[3] += v_time;
  }
  write_gradient(out.gaussians, g, n);
}

/// One thread per Gaussian: its sums of all cameras become the derivatives by its parameters; `of_cameras`, unless null, gets
/// those by the cameras, [camera][block][12].
template <class Source>
__global__ void __launch_bounds__(block) gradient_gaussians(SceneFrom<Source> in, Options o, int cameras, int gaussians, int channels,
                                                            int depth, Lists lists, Sums sums, GradientsOf<Source> out, float* of_cameras) {
  __shared__ float of_warps[block / 32][12];
  const int n = blockIdx.x * block + static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  const bool one_set = out.colors.shape[0] == 1;
  GaussianGradient total{};
  bool seen = false;
  for (int c = 0; c < cameras; ++c) {
    GaussianGradient g{};
    if (n < gaussians) {
      const std::int64_t i = std::int64_t{c} * gaussians + n;
      const auto* const of_splat = reinterpret_cast<const float4*>(sums.data + static_cast<std::size_t>(i) * sums.stride);
      float centre[4] = {};
      if (lists.depths[i] != culled) {
        seen = true;
        const Splat s = load_splat(lists.splats, static_cast<std::uint32_t>(i));
        const float over_p = rsqrtf(-s.uu), over_q = rsqrtf(-s.yy);
        const float4 a = of_splat[0], b = of_splat[1];
        const float m[moments] = {
            a.x, a.y * over_p, a.z * over_p * over_p, a.w * over_q, b.x * over_p * over_q, b.y * over_q * over_q, b.z * over_p, b.w};
        SplatGradient v = splat_gradient(s, m);
        if (depth >= 0) v.depth = reinterpret_cast<const float*>(of_splat)[moments + depth];
        g = project_backward(load_camera(in, c), o, load_gaussian(in.gaussians, n), v);
        centre[0] = v.x, centre[1] = v.y, centre[2] = -2.f / log2e * s.uu * m[6], centre[3] = 2.f / log2e * m[7];
      }
      for (int k = 0; k < out.means2d.shape[2]; ++k) at(out.means2d, c, n, k) = centre[k];
      for (int k = 0; k < 3; ++k) total.mean[k] += g.mean[k], total.scale[k] += g.scale[k];
      for (int k = 0; k < 4; ++k) total.quat[k] += g.quat[k];
      for (int k = 0; k < 6; ++k) total.covar[k] += g.covar[k];
      total.opacity += g.opacity;
    }
    // The colours' by the block together, neighbouring threads neighbouring channels.
    const auto first = static_cast<std::uint32_t>(blockIdx.x) * block, width = static_cast<std::uint32_t>(channels);
    for (std::uint32_t at_color = threadIdx.x, end = min(static_cast<std::uint32_t>(gaussians) - first, std::uint32_t{block}) * width;
         at_color < end; at_color += block) {
      const std::uint32_t of = first + at_color / width, d = at_color % width;
      float& to = at(out.colors, one_set ? 0 : c, of, d);
      to = sums.data[(static_cast<std::size_t>(c) * static_cast<std::size_t>(gaussians) + of) * sums.stride + moments + d] +
           (one_set && c ? to : 0.f);
    }
    if (!of_cameras) continue;
    float of_camera[16] = {};
    for (int k = 0; k < 12; ++k) of_camera[k] = k % 4 == 3 ? g.t[k / 4] : g.r[k / 4 * 3 + k % 4];
    const float sum = sum_of_warp(of_camera, lane);
    if (lane % 2 == 0 && lane < 24) of_warps[threadIdx.x / 32][lane / 2] = sum;
    __syncthreads();
    if (threadIdx.x < 12) {
      float of_block = 0.f;
      for (const auto& of_warp : of_warps) of_block += of_warp[threadIdx.x];
      of_cameras[(static_cast<std::size_t>(c) * gridDim.x + blockIdx.x) * 12 + threadIdx.x] = of_block;
    }
    __syncthreads();
  }
  if (n >= gaussians) return;
  write_gradient(in.gaussians, out, n, total, seen);
}

/// One block per camera, a warp for each of 16 elements: the sum over `parts` blocks of Gaussians.
__global__ void __launch_bounds__(512) gradient_cameras(const float* of_blocks, int parts, core::Tensor<float, 3> out) {
  const int k = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x & 31);
  float sum = 0.f;
  if (k < 12)
    for (int part = lane; part < parts; part += 32) sum += of_blocks[(static_cast<std::size_t>(blockIdx.x) * parts + part) * 12 + k];
  for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  if (lane == 0) at(out, blockIdx.x, k / 4, k % 4) = sum;
}

__global__ void __launch_bounds__(block) write_zeros(core::Tensor<float, 3> colors, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x, d = colors.shape[2], n = colors.shape[1];
  if (i < total) at(colors, i / (d * n), i / d % n, i % d) = 0.f;
}

/// The number of pairs; waits for the device.
std::int64_t count_pairs(const Lists& lists, cudaStream_t stream) {
  unsigned long long pairs = 0;
  check(cudaMemcpyAsync(&pairs, lists.pairs, sizeof pairs, cudaMemcpyDeviceToHost, stream), "reading the number of tiles");
  check(cudaStreamSynchronize(stream), "waiting for the projection");
  if (pairs > static_cast<unsigned long long>(std::numeric_limits<std::int32_t>::max()))
    throw core::Error("MemoryError", "rasterize_backward: the Gaussians reach " + std::to_string(pairs) + " tiles, more than 2^31 - 1");
  return static_cast<std::int64_t>(pairs);
}

}  // namespace

template <class Source>
Gradient<Source>::Gradient(const char* op, const SceneFrom<Source>& scene, const Options& o, std::int64_t gaussians, const In<3>& colors,
                           const Images& images, const MaybeWorkspace& workspace, bool deterministic, bool absolute, bool by_cameras,
                           int device, cudaStream_t stream)
    : scene_(scene), options_(o), cameras_(scene.viewmats.shape[0]), gaussians_(gaussians), scratch_(device, stream), stream_(stream) {
  constexpr int most_channels = 1024;
  const std::int64_t channels = colors.shape[2];
  if (channels > most_channels)
    throw core::Error("NotImplementedError", std::string(op) + ": argument 'colors' must have at most " + std::to_string(most_channels) +
                                                 " channels on CUDA, got " + std::to_string(channels));
  const std::int64_t tiles = cameras_ * o.tiles_x * o.tiles_y, total = cameras_ * gaussians, stride = Sums::stride_of(channels);
  lists_.emplace(tiles ? workspace : MaybeWorkspace{}, device, gaussians, total, tiles, stream);
  if (!(tiles && workspace)) prepare(scene, o, lists_->lists, device, stream);
  const auto at_sums = scratch_.part<float>(core::checked_mul(total, stride, op));
  const auto at_cameras = scratch_.part<float>(by_cameras ? core::checked_mul(cameras_, std::int64_t{blocks_for(gaussians)} * 12, op) : 0);
  scratch_.allocate();
  sums_ = {scratch_.at<float>(at_sums), static_cast<std::size_t>(stride), 0};
  if (by_cameras) of_cameras_ = scratch_.at<float>(at_cameras);
  check(cudaMemsetAsync(sums_.data, 0, static_cast<std::size_t>(total * stride) * sizeof(float), stream), "clearing the sums");
  const auto blend_again = [&](const Lists& of, const Sums& to) {
    if (channels > 32) return sum_patches(of, o, colors, images, to, stream);
    sum_tiles(of, o, colors, images, to, absolute, stream);
  };
  if (total && tiles && !deterministic) blend_again(lists_->lists, sums_);
  if (total && tiles && deterministic) {
    const std::int64_t pairs = count_pairs(lists_->lists, stream);
    std::optional<core::DeviceScratch> enough;
    Lists exact = lists_->lists;
    if (pairs > exact.capacity) {
      const std::int64_t size = Lists::size_without_ids(total, tiles) + pairs;
      enough.emplace(op, device, stream, size * 4);
      exact = Lists(enough->get<std::int32_t>(), size, gaussians, total, tiles);
      prepare(scene, o, exact, device, stream);
    }
    const std::int64_t warps = warps_of_tile(channels);
    const std::int64_t floats = core::checked_mul(core::checked_mul(pairs, warps, op), stride, op);
    const core::DeviceScratch entries(op, device, stream, core::checked_mul(floats, sizeof(float), op));
    check(cudaMemsetAsync(entries.get<float>(), 0, static_cast<std::size_t>(floats) * sizeof(float), stream), "clearing the sums");
    const Sums by_entry{entries.get<float>(), static_cast<std::size_t>(stride), static_cast<std::size_t>(warps)};
    blend_again(exact, by_entry);
    collect_entries<<<blocks_for(total), block, 0, stream>>>(exact, o, by_entry, sums_.data);
    check(cudaGetLastError(), "adding up");
  }
}

template <class Source>
void Gradient<Source>::write(const GradientsOf<Source>& out, std::int64_t channels, std::int64_t depth, const MaybeOut<3>& v_viewmats) {
  const unsigned parts = blocks_for(gaussians_);
  if (gaussians_)
    gradient_gaussians<Source><<<parts, block, 0, stream_>>>(scene_, options_, static_cast<int>(cameras_), static_cast<int>(gaussians_),
                                                             static_cast<int>(channels), static_cast<int>(depth), lists_->lists, sums_, out,
                                                             of_cameras_);
  if (cameras_ && v_viewmats)
    gradient_cameras<<<static_cast<unsigned>(cameras_), 512, 0, stream_>>>(of_cameras_, static_cast<int>(parts), *v_viewmats);
  check(cudaGetLastError(), "projecting backward");
}

template class Gradient<Gaussians>;
template class Gradient<Dynamic>;

void clear_colors(const Out<3>& colors, cudaStream_t stream) {
  if (const std::int64_t total = colors.numel()) write_zeros<<<blocks_for(total), block, 0, stream>>>(colors, total);
}

namespace {

/// Of one scene.
void rasterize_backward_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                 In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                                 double max_alpha, bool antialiased, const char* camera_model, In<4> image, In<3> alphas, In<4> v_image,
                                 MaybeIn<3> v_alphas, MaybeWorkspace workspace, bool deterministic, Out<2> v_means, MaybeOut<2> v_quats,
                                 MaybeOut<2> v_scales, MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors, MaybeOut<3> v_viewmats,
                                 MaybeOut<3> v_means2d, core::Stream queue) {
  const char* op = "rasterize_backward";
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0];
  const Options o =
      check_options(op, cameras, gaussians, colors.shape[0],
                    {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, alphas.shape[1], alphas.shape[2]);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  check_gradients(op, scene.gaussians, colors, v_quats, v_scales, v_covars, v_colors, v_means2d);
  const int device = v_means.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  if (cameras == 0) clear_colors(v_colors, stream);
  Gradient<Gaussians> gradient(op, scene, o, gaussians, colors, {image, v_image, alphas, v_alphas.value_or(In<3>{})}, workspace,
                               deterministic, v_means2d && v_means2d->shape[2] == 4, v_viewmats.has_value(), device, stream);
  gradient.write({v_means, v_quats.value_or(Out<2>{}), v_scales.value_or(Out<2>{}), v_covars.value_or(Out<2>{}), v_opacities, v_colors,
                  v_means2d.value_or(Out<3>{})},
                 colors.shape[2], -1, v_viewmats);
}

}  // namespace

void rasterize_backward_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                             In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                             double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, In<4> image, In<3> alphas,
                             In<4> v_image, MaybeIn<3> v_alphas, MaybeWorkspace workspace, bool deterministic, Out<2> v_means,
                             MaybeOut<2> v_quats, MaybeOut<2> v_scales, MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors,
                             MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d, core::Stream queue) {
  for_each_scene("rasterize_backward", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_backward_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                                s.views(viewmats), s.views(Ks), near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased,
                                camera_model, s.views(image), s.views(alphas), s.views(v_image), s.views(v_alphas), s.workspace(workspace),
                                deterministic, s.rows(v_means), s.rows(v_quats), s.rows(v_scales), s.rows(v_covars), s.rows(v_opacities),
                                s.colors("v_colors", v_colors), s.views(v_viewmats), s.projections("v_means2d", v_means2d), queue);
  });
}

}  // namespace core_splatting
