// The projection alone, for those who want to see it.
#include <core/parallel.hpp>
#include <core_splatting/rasterize.hpp>

#include "../scenes.hpp"
#include "tiles.hpp"

namespace core_splatting {
namespace {

/// Of one scene.
void project_gaussians_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                                In<3> Ks, std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip,
                                double eps2d, bool antialiased, const char* camera_model, Out<3> means2d,
                                core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights) {
  const char* const op = "project_gaussians";
  const std::int64_t cameras = viewmats.shape[0];
  const Options o = check_options(op, cameras, means.shape[0], 1,
                                  {near_plane, far_plane, radius_clip, eps2d, 0.5, antialiased, camera_model}, height, width);
  const Gaussians gaussians = check_gaussians(op, means, quats, scales, covars, opacities);
  const ProjectionOutputs out{means2d, radii, depths, conics, weights};
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera(op, viewmats, Ks, c);
    core::parallel_for(means.shape[0], 1024, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) write_projection(out, cam, o, load_gaussian(gaussians, n), c, n);
    });
  }
}

}  // namespace

void project_gaussians(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                       std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip, double eps2d,
                       bool antialiased, const char* camera_model, std::int64_t scenes, Out<3> means2d, core::Tensor<std::int32_t, 3> radii,
                       Out<2> depths, Out<3> conics, Out<2> weights) {
  for_each_scene("project_gaussians", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    project_gaussians_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.views(viewmats),
                               s.views(Ks), width, height, near_plane, far_plane, radius_clip, eps2d, antialiased, camera_model,
                               s.projections("means2d", means2d), s.projections("radii", radii), s.projections("depths", depths),
                               s.projections("conics", conics), s.projections("weights", weights));
  });
}

}  // namespace core_splatting
