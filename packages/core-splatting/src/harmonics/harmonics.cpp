// Spherical harmonics on the CPU.
#include <core/parallel.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "../scenes.hpp"
#include "basis.hpp"

namespace core_splatting {

Harmonics check_harmonics(const char* op, std::int64_t degree, std::int64_t time_degree, const In<2>& dirs, const In<4>& coeffs,
                          const MaybeIn<3>& viewmats, const MaybeIn<1>& phases, const std::optional<core::Tensor<const bool, 2>>& masks,
                          bool as_color, std::int64_t cameras) {
  const auto refuse = [op](const char* name, const std::string& wanted, std::int64_t got) {
    throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must be " + wanted + ", got " + std::to_string(got));
  };
  if (degree < 0 || degree > 3) refuse("degree", "0 to 3", degree);
  if (time_degree < 0 || time_degree >= most_times) refuse("time_degree", "0 to 2", time_degree);
  const std::int64_t needed = most_harmonics * time_degree + (degree + 1) * (degree + 1);
  if (coeffs.shape[2] < needed)
    refuse("coeffs", "of shape (G, N, K, D) with K at least " + std::to_string(needed) + " for these degrees", coeffs.shape[2]);
  if (coeffs.shape[0] != 1 && coeffs.shape[0] != cameras)
    refuse("coeffs", "of shape (1, N, K, D) or (C, N, K, D): its first size", coeffs.shape[0]);
  if (time_degree && !phases) refuse("phases", "given if time_degree is above 0; time_degree", time_degree);
  core::checked_mul(cameras, dirs.shape[0], (std::string(op) + ": the number of colours").c_str());
  return {static_cast<int>((degree + 1) * (degree + 1)),
          static_cast<int>(time_degree + 1),
          dirs,
          coeffs,
          viewmats.value_or(In<3>{}),
          phases.value_or(In<1>{}),
          masks.value_or(core::Tensor<const bool, 2>{}),
          as_color};
}

namespace {

/// Of one scene.
void spherical_harmonics_of_scene(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                  MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, Out<3> out) {
  const std::int64_t cameras = out.shape[0], count = dirs.shape[0];
  const Harmonics in =
      check_harmonics("spherical_harmonics", degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, cameras);
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Centre centre = centre_of(in.viewmats, c);
    core::parallel_for(count, 1024, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) harmonics_of(in, centre, out, c, n);
    });
  }
}

}  // namespace

void spherical_harmonics(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats, MaybeIn<1> phases,
                         std::optional<core::Tensor<const bool, 2>> masks, bool as_color, std::int64_t scenes, Out<3> out) {
  for_each_scene("spherical_harmonics", scenes, dirs.shape[0], out.shape[0], [&](const SceneOf& s) {
    spherical_harmonics_of_scene(degree, time_degree, s.rows(dirs), s.colors("coeffs", coeffs), s.views(viewmats), s.rows(phases),
                                 s.views(masks), as_color, s.projections("out", out));
  });
}

namespace {

/// Of one scene.
void spherical_harmonics_backward_of_scene(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                           MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, In<3> v_out,
                                           Out<2> v_dirs, Out<4> v_coeffs, Out<3> v_viewmats, Out<1> v_phases) {
  const std::int64_t cameras = v_out.shape[0], count = dirs.shape[0];
  const Harmonics in =
      check_harmonics("spherical_harmonics_backward", degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, cameras);
  if (v_coeffs.shape[0] != coeffs.shape[0])
    throw core::Error("ValueError",
                      "spherical_harmonics_backward: argument 'v_coeffs' must have the shape of 'coeffs': its first size must be " +
                          std::to_string(coeffs.shape[0]) + ", got " + std::to_string(v_coeffs.shape[0]));
  // The camera's own gradient is summed in blocks of fixed size, so that no thread changes the order.
  constexpr std::int64_t per_block = 1024;
  const std::int64_t blocks = (count + per_block - 1) / per_block;
  std::vector<double> of_centre(static_cast<std::size_t>(blocks * 3));
  core::parallel_for(count, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      for (int k = 0; k < 3; ++k) v_dirs(n, k) = 0.f;
      v_phases(n) = 0.f;
      for (std::int64_t g = 0; g < v_coeffs.shape[0]; ++g)
        for (std::int64_t k = 0; k < v_coeffs.shape[2]; ++k)
          for (std::int64_t d = 0; d < v_coeffs.shape[3]; ++d) v_coeffs(g, n, k, d) = 0.f;
    }
  });
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Centre centre = centre_of(in.viewmats, c);
    std::fill(of_centre.begin(), of_centre.end(), 0.0);
    core::parallel_for(blocks, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t n = first * per_block; n < std::min(last * per_block, count); ++n) {
        // What is not rendered adds nothing, be its place NaN or the camera's own.
        bool seen = false;
        for (std::int64_t d = 0; d < v_out.shape[2]; ++d) seen |= v_out(c, n, d) != 0.f;
        if (!seen) continue;
        float v_place[3];
        harmonics_backward(in, centre, v_out, v_coeffs, c, n, v_place, v_phases(n));
        for (int k = 0; k < 3; ++k) {
          v_dirs(n, k) += v_place[k];
          of_centre[static_cast<std::size_t>(n / per_block * 3 + k)] -= static_cast<double>(v_place[k]);
        }
      }
    });
    float v_centre[3];
    for (std::size_t k = 0; k < 3; ++k) {
      double sum = 0;
      for (std::size_t b = 0; b < static_cast<std::size_t>(blocks); ++b) sum += of_centre[3 * b + k];
      v_centre[k] = static_cast<float>(sum);
    }
    centre_backward(centre, v_centre, v_viewmats, c);
  }
}

}  // namespace

void spherical_harmonics_backward(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                  MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color, std::int64_t scenes,
                                  In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs, Out<3> v_viewmats, Out<1> v_phases) {
  for_each_scene("spherical_harmonics_backward", scenes, dirs.shape[0], v_out.shape[0], [&](const SceneOf& s) {
    spherical_harmonics_backward_of_scene(degree, time_degree, s.rows(dirs), s.colors("coeffs", coeffs), s.views(viewmats), s.rows(phases),
                                          s.views(masks), as_color, s.projections("v_out", v_out), s.rows(v_dirs),
                                          s.colors("v_coeffs", v_coeffs), s.views(v_viewmats), s.rows(v_phases));
  });
}

}  // namespace core_splatting
