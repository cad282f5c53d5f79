// The checks of the rasteriser's arguments.
#include <core_splatting/rasterize.hpp>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "tiles.hpp"

namespace core_splatting {

Options check_options(const char* op, std::int64_t cameras, std::int64_t gaussians, std::int64_t color_sets, const Scalars& scalars,
                      std::int64_t height, std::int64_t width) {
  const auto [near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model] = scalars;
  const auto require = [op](bool ok, const char* name, const char* wanted, double got) {
    if (!ok)
      throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must be " + wanted + ", got " + std::to_string(got));
  };
  constexpr double most = std::numeric_limits<float>::max();
  require(near_plane > 0 && near_plane <= most, "near_plane", "positive and finite", near_plane);
  require(far_plane >= near_plane, "far_plane", "at least near_plane", far_plane);
  require(radius_clip >= 0, "radius_clip", "at least 0", radius_clip);
  require(eps2d >= 0 && eps2d <= most, "eps2d", "at least 0 and finite", eps2d);
  require(max_alpha >= 1.0 / 255 && max_alpha < 1, "max_alpha", "at least 1/255 and less than 1", max_alpha);
  require(color_sets == 1 || color_sets == cameras, "colors", "of shape (1, N, D) or (C, N, D): its first size",
          static_cast<double>(color_sets));
  require(width <= 65536, "out_alphas", "at most 65536 pixels wide", static_cast<double>(width));
  require(height <= 65536, "out_alphas", "at most 65536 pixels high", static_cast<double>(height));
  const std::int64_t tiles_x = (width + tile_size - 1) / tile_size, tiles_y = (height + tile_size - 1) / tile_size;
  constexpr std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  if (core::checked_mul(cameras, gaussians, (std::string(op) + ": the number of projections").c_str()) > limit ||
      core::checked_mul(cameras, tiles_x * tiles_y, (std::string(op) + ": the number of tiles").c_str()) > limit)
    throw core::Error("ValueError", std::string(op) + ": more than 2^31 - 1 projections or tiles in one call; pass fewer cameras");
  constexpr const char* models[] = {"pinhole", "ortho", "fisheye"};
  const auto model = std::find(std::begin(models), std::end(models), std::string_view(camera_model)) - std::begin(models);
  if (model == std::ssize(models))
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'camera_model' must be pinhole, ortho or fisheye, got '" + camera_model + "'");
  const auto narrow = [most](double v) { return static_cast<float>(std::min(v, most)); };
  return {narrow(near_plane),
          narrow(far_plane),
          narrow(radius_clip),
          narrow(eps2d),
          narrow(max_alpha),
          static_cast<int>(width),
          static_cast<int>(height),
          static_cast<int>(tiles_x),
          static_cast<int>(tiles_y),
          static_cast<CameraModel>(model),
          antialiased};
}

void rasterize_workspace(std::int64_t cameras, std::int64_t gaussians, std::int64_t width, std::int64_t height,
                         [[maybe_unused]] std::int64_t device, core::Tensor<std::int64_t, 1> out) {
  for (const auto& [name, size] : {std::pair{"cameras", cameras}, {"gaussians", gaussians}, {"width", width}, {"height", height}})
    if (size < 0)
      throw core::Error("ValueError",
                        std::string("rasterize_workspace: argument '") + name + "' must not be negative, got " + std::to_string(size));
  [[maybe_unused]] const Options o =
      check_options("rasterize_workspace", cameras, gaussians, 1, {1e-2, 1e10, 0., 0.3, 0.5, false, "pinhole"}, height, width);
  out(0) = 0;
#if defined(CORE_WITH_CUDA)
  if (device >= 0) out(0) = workspace_size(static_cast<int>(device), cameras * gaussians, cameras * o.tiles_x * o.tiles_y);
#endif
}

Gaussians check_gaussians(const char* op, const In<2>& means, const MaybeIn<2>& quats, const MaybeIn<2>& scales, const MaybeIn<2>& covars,
                          const In<1>& opacities) {
  if (covars ? quats || scales : !(quats && scales))
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'covars' must be given in place of 'quats' and 'scales', or these two without it");
  Gaussians all{means, {}, {}, {}, opacities, covars.has_value()};
  if (covars)
    all.covars = *covars;
  else
    all.quats = *quats, all.scales = *scales;
  return all;
}

void check_gradients(const char* op, const Gaussians& gaussians, const In<3>& colors, const MaybeOut<2>& v_quats,
                     const MaybeOut<2>& v_scales, const MaybeOut<2>& v_covars, const Out<3>& v_colors, const MaybeOut<3>& v_means2d) {
  if (gaussians.by_covariance ? !v_covars : !(v_quats && v_scales))
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'v_covars' must be given with 'covars', and 'v_quats' and 'v_scales' without");
  if (v_colors.shape[0] != colors.shape[0])
    throw core::Error("ValueError", std::string(op) + ": argument 'v_colors' must have the shape of 'colors': its first size must be " +
                                        std::to_string(colors.shape[0]) + ", got " + std::to_string(v_colors.shape[0]));
  if (v_means2d && v_means2d->shape[2] != 2 && v_means2d->shape[2] != 4)
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'v_means2d' must have 2 or 4 columns, got " + std::to_string(v_means2d->shape[2]));
}

Camera load_camera(const char* op, const core::Tensor<const float, 3>& viewmats, const core::Tensor<const float, 3>& Ks, std::int64_t c) {
  Camera cam;
  for (int row = 0; row < 3; ++row) {
    for (int k = 0; k < 3; ++k) cam.r[3 * row + k] = viewmats(c, row, k);
    cam.t[row] = viewmats(c, row, 3);
  }
  cam.fx = Ks(c, 0, 0), cam.fy = Ks(c, 1, 1), cam.cx = Ks(c, 0, 2), cam.cy = Ks(c, 1, 2);
  const bool finite = std::all_of(cam.r, cam.r + 9, [](float v) { return std::isfinite(v); }) &&
                      std::all_of(cam.t, cam.t + 3, [](float v) { return std::isfinite(v); });
  if (!finite)
    throw core::Error("ValueError", std::string(op) + ": argument 'viewmats' must be finite, but camera " + std::to_string(c) + " is not");
  if (!(cam.fx > 0 && cam.fy > 0 && std::isfinite(cam.fx + cam.fy + cam.cx + cam.cy)))
    throw core::Error("ValueError", std::string(op) + ": argument 'Ks' must be finite with positive focal lengths, but camera " +
                                        std::to_string(c) + " is not");
  return cam;
}

}  // namespace core_splatting
