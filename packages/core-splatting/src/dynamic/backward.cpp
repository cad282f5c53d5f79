// The gradient of 4D Gaussians rendered at a time, on the CPU: what is known of a slice passes on to the Gaussian where it is found.
#include <core/parallel.hpp>

#include <algorithm>

#include "../rasterize/tiles.hpp"
#include "colors.hpp"

namespace core_splatting {

void check_moving_gradients(const char* op, const Moving& moving, const In<3>& colors, const MaybeOut<3>& v_colors,
                            const MaybeOut<3>& v_coeffs, const MaybeOut<3>& v_means2d, std::int64_t cameras) {
  const auto refuse = [op](const char* name, const char* wanted) {
    throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must " + wanted);
  };
  const bool harmonics = moving.harmonics.times;
  if (harmonics != v_coeffs.has_value()) refuse("v_coeffs", "be given with 'coeffs', and not without");
  if (harmonics == v_colors.has_value()) refuse("v_colors", "be given without 'coeffs', and not with them");
  if (v_colors && v_colors->shape != without_depth(moving, colors).shape)
    refuse("v_colors", "have the shape of 'colors', without the depth");
  if ((harmonics || moving.depth) && colors.shape[0] != cameras)
    refuse("colors", "be of shape (C, M, E), as seen, with 'coeffs' or 'depth'");
  if (v_means2d && (v_means2d->shape[1] != count_of(moving.gaussians) || (v_means2d->shape[2] != 2 && v_means2d->shape[2] != 4)))
    refuse("v_means2d", "be of shape (C, M, 2) or (C, M, 4)");
}

void rasterize_4d_backward(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                           double min_weight, double prefilter_var, In<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                           std::int64_t time_degree, double duration, bool depth, In<3> viewmats, In<3> Ks, double near_plane,
                           double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model,
                           In<4> image, In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas, MaybeWorkspace, bool, Out<2> v_means,
                           Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities, MaybeOut<3> v_colors,
                           MaybeOut<3> v_coeffs, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d) {
  const char* const op = "rasterize_4d_backward";
  const std::int64_t cameras = viewmats.shape[0], rows = indices ? indices->shape[0] : opacities.shape[0], channels = colors.shape[2];
  const Options o =
      check_options(op, cameras, rows, colors.shape[0], {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model},
                    alphas.shape[1], alphas.shape[2]);
  const Dynamic in =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  check_indices(op, in);
  const Moving moving = check_moving_seen(op, in, colors, {coeffs, degree, time_degree, duration, depth});
  check_moving_gradients(op, moving, colors, v_colors, v_coeffs, v_means2d, cameras);
  const DynamicGradients out{v_means, v_scales, v_quats_l, v_quats_r, v_opacities};
  core::parallel_for(opacities.shape[0], 256, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t n = first; n < last; ++n) write_gradient(out, DynamicGradient{}, n);
    for (std::int64_t n = first; v_coeffs && n < last; ++n)
      for (std::int64_t k = 0; k < v_coeffs->shape[1]; ++k)
        for (std::int64_t d = 0; d < v_coeffs->shape[2]; ++d) (*v_coeffs)(n, k, d) = 0.f;
  });
  for (const MaybeOut<3>& of_rows : {v_colors, v_means2d})
    if (of_rows) core::parallel_for(rows, 4096, [&](std::int64_t first, std::int64_t last) { clear(*of_rows, first, last); });
  if (v_viewmats) clear(*v_viewmats, 0, 4);
  const Out<4> to_coeffs =
      v_coeffs ? Out<4>{v_coeffs->data, moving.harmonics.coeffs.shape, {0, v_coeffs->stride[0], v_coeffs->stride[1], v_coeffs->stride[2]}}
               : Out<4>{};
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera(op, viewmats, Ks, c);
    if (o.tiles_x * o.tiles_y == 0) continue;
    const Projected projected = project_sorted(cam, o, in);
    const Bins bins = bin(projected, o);
    const std::int64_t color_set = colors.shape[0] == 1 ? 0 : c, stride = moments + channels;
    Pass pass{&projected, &bins, o, c, color_set, colors, image, v_image, alphas, v_alphas.value_or(In<3>{}), 0, nullptr};
    const std::vector<float> sums = sums_of_splats(pass, v_means2d && v_means2d->shape[2] == 4 ? Sought::absolute : Sought::derivatives);
    const Centre centre = centre_of(viewmats, c);
    const auto splats = static_cast<std::int64_t>(projected.splats.size());
    const In<3> of_colors = without_depth(moving, In<3>{sums.data() + moments, {1, splats, channels}, {0, stride, 1}});

    // The camera's own gradient is summed in blocks of fixed size, so that no thread changes the order.
    constexpr std::int64_t per_block = 1024;
    const std::int64_t blocks = (splats + per_block - 1) / per_block;
    std::vector<double> of_camera(static_cast<std::size_t>(blocks) * 15);  // [3][4], and those by its centre
    core::parallel_for(blocks, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first * per_block; i < std::min(last * per_block, splats); ++i) {
        const std::int64_t row = projected.index[static_cast<std::size_t>(i)], n = gaussian_of(in, row);
        const Splat& s = projected.splats[static_cast<std::size_t>(i)];
        const float* const m = sums.data() + i * stride;
        SplatGradient v = splat_gradient(s, m);
        if (depth) v.depth = m[stride - 1];
        const Gaussian sliced = load_gaussian(in, row);
        GaussianGradient g = project_backward(cam, o, sliced, v);
        double* const camera = of_camera.data() + i / per_block * 15;
        float v_time = 0.f;
        if (coeffs) {
          float v_place[3];
          v_time = color_backward(moving, moving.harmonics, centre, sliced.mean, n, of_colors, 0, i, to_coeffs, v_place);
          for (int k = 0; k < 3; ++k) g.mean[k] += v_place[k], camera[12 + k] -= static_cast<double>(v_place[k]);
        } else {
          for (std::int64_t d = 0; d < of_colors.shape[2]; ++d) (*v_colors)(color_set, row, d) += m[moments + d];
        }
        DynamicGradient whole = slice_backward(in, n, g.mean, g.covar, g.opacity);
        whole.mean[3] += v_time;
        add_gradient(out, whole, n);
        if (v_means2d) (*v_means2d)(c, row, 0) = v.x, (*v_means2d)(c, row, 1) = v.y;
        if (v_means2d && v_means2d->shape[2] == 4)
          (*v_means2d)(c, row, 2) = -2.f / log2e * s.uu * m[6], (*v_means2d)(c, row, 3) = 2.f / log2e * m[7];
        for (int k = 0; k < 12; ++k) camera[k] += static_cast<double>(k % 4 == 3 ? g.t[k / 4] : g.r[k / 4 * 3 + k % 4]);
      }
    });
    if (!v_viewmats) continue;
    double sum[15] = {};
    for (std::int64_t b = 0; b < blocks; ++b)
      for (int k = 0; k < 15; ++k) sum[k] += of_camera[static_cast<std::size_t>(15 * b + k)];
    if (const float v_centre[3] = {static_cast<float>(sum[12]), static_cast<float>(sum[13]), static_cast<float>(sum[14])}; coeffs)
      centre_backward(centre, v_centre, *v_viewmats, c);
    for (int k = 0; k < 12; ++k) (*v_viewmats)(c, k / 4, k % 4) += static_cast<float>(sum[k]);
  }
}

}  // namespace core_splatting
