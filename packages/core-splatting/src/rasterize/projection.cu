// The operator project_gaussians on CUDA.
#include "../scenes.hpp"
#include "device.cuh"

namespace core_splatting {
namespace {

__global__ void __launch_bounds__(block) project_only(Scene in, Options o, int gaussians, int total, ProjectionOutputs out) {
  const int i = blockIdx.x * block + static_cast<int>(threadIdx.x);
  if (i < total)
    write_projection(out, load_camera(in, i / gaussians), o, load_gaussian(in.gaussians, i % gaussians), i / gaussians, i % gaussians);
}

/// Of one scene.
void project_gaussians_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                                In<3> Ks, std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip,
                                double eps2d, bool antialiased, const char* camera_model, Out<3> means2d,
                                core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights, core::Stream queue) {
  const char* const op = "project_gaussians";
  const std::int64_t cameras = viewmats.shape[0], count = means.shape[0];
  const Options o =
      check_options(op, cameras, count, 1, {near_plane, far_plane, radius_clip, eps2d, 0.5, antialiased, camera_model}, height, width);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  const int total = static_cast<int>(cameras * count);
  if (total == 0) return;
  const core::OnDevice guard(op, means2d.device_id);
  project_only<<<blocks_for(total), block, 0, static_cast<cudaStream_t>(queue.handle)>>>(scene, o, static_cast<int>(count), total,
                                                                                         {means2d, radii, depths, conics, weights});
  core::check_cuda(op, cudaGetLastError(), "projecting");
}

}  // namespace

void project_gaussians_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                            std::int64_t width, std::int64_t height, double near_plane, double far_plane, double radius_clip, double eps2d,
                            bool antialiased, const char* camera_model, std::int64_t scenes, Out<3> means2d,
                            core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights, core::Stream queue) {
  for_each_scene("project_gaussians", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    project_gaussians_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.views(viewmats),
                               s.views(Ks), width, height, near_plane, far_plane, radius_clip, eps2d, antialiased, camera_model,
                               s.projections("means2d", means2d), s.projections("radii", radii), s.projections("depths", depths),
                               s.projections("conics", conics), s.projections("weights", weights), queue);
  });
}

}  // namespace core_splatting
