// The gradient of the rasteriser on the CPU, and the sums of weights: each tile is blended again front to back while the part of the
// pixel's colour that lies behind shrinks, so that no list of a pixel is kept and nothing is divided by a transmittance. The sums of a
// (Gaussian, tile) pair are written to the pair's own place and added in the order of the tiles, whatever the threads.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_splatting/rasterize.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#if CORE_HAS_ISA_LEVELS
#include <immintrin.h>
#endif

#include "../scenes.hpp"
#include "tiles.hpp"

namespace core_splatting {
namespace {

constexpr std::size_t pair_floats = std::size_t{1} << 24;  // of the pairs that wait to be added

#define CORE_LEVEL_FILE "gradient.inc"
#include "each_level.inc"

template <Sought Kind>
auto gradient_of_tile(std::int64_t channels) {
  switch (channels) {
    case 1: return CORE_OF_THIS_LEVEL(gradient_tile<1, Kind>);
    case 3: return CORE_OF_THIS_LEVEL(gradient_tile<3, Kind>);
    case 4: return CORE_OF_THIS_LEVEL(gradient_tile<4, Kind>);
    default: return CORE_OF_THIS_LEVEL(gradient_tile<0, Kind>);
  }
}

}  // namespace

std::vector<float> sums_of_splats(Pass& pass, Sought kind) {
  const auto tiles = static_cast<std::size_t>(pass.options.tiles_x) * static_cast<std::size_t>(pass.options.tiles_y);
  const std::int64_t channels = pass.colors.shape[2];
  const auto run = kind == Sought::weights       ? gradient_of_tile<Sought::weights>(channels)
                   : kind == Sought::derivatives ? gradient_of_tile<Sought::derivatives>(channels)
                                                 : gradient_of_tile<Sought::absolute>(channels);
  const auto stride = static_cast<std::size_t>(moments + channels);
  const std::size_t splats = pass.projected->splats.size(), most = std::max<std::size_t>(pair_floats / stride, 1);
  std::vector<float> sums(static_cast<std::size_t>(core::checked_mul(splats, stride, "rasterize_backward: scratch")));
  Untouched<float> pairs;
  const auto& begin = pass.bins->begin;
  for (std::size_t tile = 0, stop; tile < tiles; tile = stop) {
    for (stop = tile + 1; stop < tiles && begin[stop + 1] - begin[tile] <= most;) ++stop;
    const std::size_t count = begin[stop] - begin[tile];
    if (count == 0) continue;
    if (count * stride > pairs.size()) pairs = Untouched<float>(count * stride);
    pass.first_pair = begin[tile];
    pass.pairs = pairs.data();
    std::atomic<std::size_t> next{tile};
    core::parallel_for(core::num_threads(), 1, [&](std::int64_t, std::int64_t) {
      std::vector<float> scratch(static_cast<std::size_t>(channels) * (tile_size * tile_size + tile_size + 1));
      for (std::size_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < stop;)
        run(&pass, static_cast<std::int64_t>(t), scratch.data());
    });
    // A tile's splats ascend: those of a thread are found by bisection.
    const auto n = static_cast<std::int64_t>(splats);
    core::parallel_for(n, n / core::num_threads() + 1, [&](std::int64_t first, std::int64_t last) {
      const auto list = pass.bins->list.begin();
      for (std::size_t t = tile; t < stop; ++t) {
        const auto end = list + begin[t + 1];
        for (auto i = std::lower_bound(list + begin[t], end, static_cast<std::uint32_t>(first)); i != end && *i < last; ++i) {
          const float* const from = pairs.data() + static_cast<std::size_t>(i - list - begin[tile]) * stride;
          float* const to = sums.data() + *i * stride;
          for (std::size_t k = 0; k < stride; ++k) to[k] += from[k];
        }
      }
    });
  }
  return sums;
}

namespace {

/// Of one scene.
void rasterize_backward_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                 In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                                 double max_alpha, bool antialiased, const char* camera_model, In<4> image, In<3> alphas, In<4> v_image,
                                 MaybeIn<3> v_alphas, MaybeWorkspace, bool, Out<2> v_means, MaybeOut<2> v_quats, MaybeOut<2> v_scales,
                                 MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d) {
  const char* const op = "rasterize_backward";
  const std::int64_t cameras = viewmats.shape[0], channels = colors.shape[2];
  const Options o =
      check_options(op, cameras, means.shape[0], colors.shape[0],
                    {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, alphas.shape[1], alphas.shape[2]);
  const Gaussians gaussians = check_gaussians(op, means, quats, scales, covars, opacities);
  check_gradients(op, gaussians, colors, v_quats, v_scales, v_covars, v_colors, v_means2d);
  core::parallel_for(means.shape[0], 4096, [&](std::int64_t first, std::int64_t last) {
    for (const MaybeOut<2>& out : {MaybeOut<2>(v_means), v_quats, v_scales, v_covars})
      if (out) clear(*out, first, last);
    for (const MaybeOut<3>& out : {MaybeOut<3>(v_colors), v_means2d})
      if (out) clear(*out, first, last);
    clear(v_opacities, first, last);
  });
  if (v_viewmats) clear(*v_viewmats, 0, 4);
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera(op, viewmats, Ks, c);
    if (o.tiles_x * o.tiles_y == 0) continue;
    const Projected projected = project_sorted(cam, o, gaussians);
    const Bins bins = bin(projected, o);
    const std::int64_t color_set = colors.shape[0] == 1 ? 0 : c;
    Pass pass{&projected, &bins, o, c, color_set, colors, image, v_image, alphas, v_alphas.value_or(In<3>{}), 0, nullptr};
    const std::vector<float> sums = sums_of_splats(pass, v_means2d && v_means2d->shape[2] == 4 ? Sought::absolute : Sought::derivatives);

    // The camera's own gradient is summed in blocks of fixed size, so that no thread changes the order.
    constexpr std::int64_t per_block = 1024;
    const auto splats = static_cast<std::int64_t>(projected.splats.size());
    const std::int64_t blocks = (splats + per_block - 1) / per_block;
    std::vector<double> of_camera(static_cast<std::size_t>(blocks) * 12);
    core::parallel_for(blocks, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first * per_block; i < std::min(last * per_block, splats); ++i) {
        const std::int64_t n = projected.index[static_cast<std::size_t>(i)];
        const Splat& s = projected.splats[static_cast<std::size_t>(i)];
        const float* const m = sums.data() + i * (moments + channels);
        const SplatGradient v = splat_gradient(s, m);
        const GaussianGradient g = project_backward(cam, o, load_gaussian(gaussians, n), v);
        for (int k = 0; k < 3; ++k) v_means(n, k) += g.mean[k];
        if (covars) {
          for (int k = 0; k < 6; ++k) (*v_covars)(n, k) += g.covar[k];
        } else {
          for (int k = 0; k < 3; ++k) (*v_scales)(n, k) += g.scale[k];
          for (int k = 0; k < 4; ++k) (*v_quats)(n, k) += g.quat[k];
        }
        v_opacities(n) += g.opacity;
        for (std::int64_t d = 0; d < channels; ++d) v_colors(color_set, n, d) += m[moments + d];
        if (v_means2d) (*v_means2d)(c, n, 0) = v.x, (*v_means2d)(c, n, 1) = v.y;
        if (v_means2d && v_means2d->shape[2] == 4)
          (*v_means2d)(c, n, 2) = -2.f / log2e * s.uu * m[6], (*v_means2d)(c, n, 3) = 2.f / log2e * m[7];
        double* const camera = of_camera.data() + i / per_block * 12;
        for (int row = 0; row < 3; ++row) {
          for (int k = 0; k < 3; ++k) camera[4 * row + k] += static_cast<double>(g.r[3 * row + k]);
          camera[4 * row + 3] += static_cast<double>(g.t[row]);
        }
      }
    });
    for (int k = 0; v_viewmats && k < 12; ++k) {
      double sum = 0;
      for (std::int64_t b = 0; b < blocks; ++b) sum += of_camera[static_cast<std::size_t>(12 * b + k)];
      (*v_viewmats)(c, k / 4, k % 4) = static_cast<float>(sum);
    }
  }
}

/// Of one scene.
void contributions_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                            In<3> pixels, const Scalars& scalars, Out<2> out) {
  const char* const op = "contributions";
  const std::int64_t cameras = viewmats.shape[0], count = means.shape[0];
  const Options o = check_options(op, cameras, count, 1, scalars, pixels.shape[1], pixels.shape[2]);
  const Gaussians gaussians = check_gaussians(op, means, quats, scales, covars, opacities);
  clear(out, 0, cameras);
  const float nothing = 0.f;
  const core::Tensor<const float, 3> black{&nothing, {1, count, 1}, {}};
  const core::Tensor<const float, 4> weighed{
      pixels.data, {cameras, o.height, o.width, 1}, {pixels.stride[0], pixels.stride[1], pixels.stride[2], 0}};
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera(op, viewmats, Ks, c);
    if (o.tiles_x * o.tiles_y == 0) continue;
    const Projected projected = project_sorted(cam, o, gaussians);
    const Bins bins = bin(projected, o);
    Pass pass{&projected, &bins, o, c, 0, black, {}, weighed, {}, {}, 0, nullptr};
    const std::vector<float> sums = sums_of_splats(pass, Sought::weights);
    for (std::size_t i = 0; i < projected.index.size(); ++i) out(c, projected.index[i]) = sums[i * (moments + 1) + moments];
  }
}

}  // namespace

void rasterize_backward(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                        In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased,
                        const char* camera_model, std::int64_t scenes, In<4> image, In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas,
                        MaybeWorkspace workspace, bool deterministic, Out<2> v_means, MaybeOut<2> v_quats, MaybeOut<2> v_scales,
                        MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d) {
  for_each_scene("rasterize_backward", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_backward_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                                s.views(viewmats), s.views(Ks), near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased,
                                camera_model, s.views(image), s.views(alphas), s.views(v_image), s.views(v_alphas), workspace,
                                deterministic, s.rows(v_means), s.rows(v_quats), s.rows(v_scales), s.rows(v_covars), s.rows(v_opacities),
                                s.colors("v_colors", v_colors), s.views(v_viewmats), s.projections("v_means2d", v_means2d));
  });
}

void contributions(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                   In<3> pixels, double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased,
                   const char* camera_model, std::int64_t scenes, Out<2> out) {
  for_each_scene("contributions", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    contributions_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.views(viewmats), s.views(Ks),
                           s.views(pixels), {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model},
                           s.projections("out", out));
  });
}

}  // namespace core_splatting
