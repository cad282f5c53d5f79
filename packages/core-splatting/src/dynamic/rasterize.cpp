// 4D Gaussians rendered at a time, on the CPU: each is sliced where it is projected, and coloured if it is seen.
#include <core/parallel.hpp>

#include <string>

#include "../rasterize/tiles.hpp"
#include "colors.hpp"

namespace core_splatting {

Moving check_moving(const char* op, const Dynamic& gaussians, const MaybeIn<3>& colors, const Colouring& colouring, std::int64_t channels) {
  const auto& [coeffs, degree, time_degree, duration, depth] = colouring;
  const auto refuse = [op](const char* name, const std::string& wanted, const std::string& got) {
    throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must be " + wanted + ", got " + got);
  };
  const std::int64_t rows = count_of(gaussians);
  if (colors.has_value() == coeffs.has_value())
    refuse("colors", "given in place of 'coeffs', or 'coeffs' without it", colors ? "both" : "neither");
  if (colors && colors->shape[1] != rows)
    refuse("colors", "of shape (1, M, D) or (C, M, D) with M = " + std::to_string(rows), std::to_string(colors->shape[1]) + " rows");
  if (!(duration > 0 && duration <= 1e30)) refuse("duration", "positive and finite", std::to_string(duration));
  if (const std::int64_t expected = colors.value_or(coeffs.value_or(In<3>{})).shape[2] + depth; channels != expected)
    refuse("depth", "true if the picture has a channel more than the colours, else false: they make " + std::to_string(expected),
           std::to_string(channels));
  Moving moving{gaussians, colors.value_or(In<3>{}), {}, static_cast<float>(duration), depth};
  if (!coeffs) return moving;
  const In<2>& means = gaussians.means;
  const In<4> set{coeffs->data,
                  {1, coeffs->shape[0], coeffs->shape[1], coeffs->shape[2]},
                  {0, coeffs->stride[0], coeffs->stride[1], coeffs->stride[2]}};
  const In<1> times{means.data, {means.shape[0]}, {means.stride[0]}};
  moving.harmonics = check_harmonics(op, degree, time_degree, means, set, {}, times, {}, true, 1);
  return moving;
}

void check_seen(const char* op, const MaybeOut<3>& seen, std::int64_t rows) {
  if (seen && seen->shape[1] != rows)
    throw core::Error("ValueError", std::string(op) + ": argument 'seen' must be of shape (C, M, D) with M = " + std::to_string(rows) +
                                        ", got " + std::to_string(seen->shape[1]) + " rows");
}

void rasterize_4d(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time, double min_weight,
                  double prefilter_var, MaybeIn<3> colors, MaybeIn<3> coeffs, std::int64_t degree, std::int64_t time_degree,
                  double duration, bool depth, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane,
                  double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model, Out<4> out_colors,
                  Out<3> out_alphas, MaybeOut<3> seen, MaybeOutWorkspace) {
  const char* const op = "rasterize_4d";
  const std::int64_t cameras = viewmats.shape[0], rows = indices ? indices->shape[0] : opacities.shape[0];
  const Options o = check_options(op, cameras, rows, colors ? colors->shape[0] : 1,
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Dynamic in =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  check_indices(op, in);
  check_seen(op, seen, rows);
  const std::int64_t channels = out_colors.shape[3];
  const Moving moving = check_moving(op, in, colors, {coeffs, degree, time_degree, duration, depth}, channels);
  const bool as_given = colors && !depth;
  Untouched<float> own(!as_given && !seen ? static_cast<std::size_t>(core::checked_mul(rows, channels, op)) : 0);
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera(op, viewmats, Ks, c);
    if (o.tiles_x * o.tiles_y == 0) continue;
    const Projected projected = project_sorted(cam, o, in);
    const Bins bins = bin(projected, o);
    Frame frame{&projected, &bins,     o, c, colors && colors->shape[0] > 1 ? c : 0, {}, backgrounds ? &*backgrounds : nullptr,
                out_colors, out_alphas};
    if (as_given) {
      frame.colors = *colors;
    } else {
      const Out<3> as_seen = seen ? *seen : core::tensor(own.data(), std::int64_t{1}, rows, channels);
      frame.color_set = seen ? c : 0;
      frame.colors = {as_seen.data, as_seen.shape, as_seen.stride};
      const Centre centre = centre_of(viewmats, c);
      core::parallel_for(static_cast<std::int64_t>(projected.index.size()), 256, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t row = projected.index[static_cast<std::size_t>(i)];
          const Gaussian g = load_gaussian(in, row);
          color_of(moving, moving.harmonics, centre, viewmats, c, g.mean, gaussian_of(in, row), as_seen, frame.color_set, row);
        }
      });
    }
    blend(frame);
  }
}

}  // namespace core_splatting
