// The sums of blending weights on CUDA: what the gradient adds up for a black channel.
#include <core_splatting/rasterize.hpp>

#include "../scenes.hpp"
#include "backward.cuh"

namespace core_splatting {
namespace {

__global__ void __launch_bounds__(block) take_weights(Sums sums, core::Tensor<float, 2> out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x, n = out.shape[1];
  if (i < out.shape[0] * n) at(out, i / n, i % n) = sums.data[static_cast<std::size_t>(i) * sums.stride + moments];
}

/// Of one scene.
void contributions_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                            In<3> pixels, const Scalars& scalars, Out<2> out, core::Stream queue) {
  const char* const op = "contributions";
  const std::int64_t cameras = viewmats.shape[0], count = means.shape[0], total = cameras * count;
  const Options o = check_options(op, cameras, count, 1, scalars, pixels.shape[1], pixels.shape[2]);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  if (!total) return;
  const int device = out.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const std::int64_t stride = Sums::stride_of(1), floats = total * stride + 1;  // behind the sums a zero, for what is black
  const core::DeviceScratch scratch(op, device, stream, core::checked_mul(floats, sizeof(float), op));
  float* const data = scratch.get<float>();
  check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(floats) * sizeof(float), stream), "clearing the sums");
  const Sums sums{data, static_cast<std::size_t>(stride), 0};
  if (const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y) {
    const OwnLists lists(MaybeWorkspace{}, device, count, total, tiles, stream);
    prepare(scene, o, lists.lists, device, stream);
    const float* const zero = data + total * stride;
    const core::Tensor<const float, 4> black{zero, {cameras, o.height, o.width, 1}, {}};
    const core::Tensor<const float, 3> nothing{zero, {cameras, o.height, o.width}, {}};
    const core::Tensor<const float, 4> weighed{
        pixels.data, {cameras, o.height, o.width, 1}, {pixels.stride[0], pixels.stride[1], pixels.stride[2], 0}};
    sum_tiles(lists.lists, o, {zero, {1, count, 1}, {}}, {black, weighed, nothing, nothing}, sums, false, stream);
  }
  take_weights<<<blocks_for(total), block, 0, stream>>>(sums, out);
  check(cudaGetLastError(), "adding up weights");
}

}  // namespace

void contributions_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats, In<3> Ks,
                        In<3> pixels, double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha,
                        bool antialiased, const char* camera_model, std::int64_t scenes, Out<2> out, core::Stream queue) {
  for_each_scene("contributions", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    contributions_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.views(viewmats), s.views(Ks),
                           s.views(pixels), {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model},
                           s.projections("out", out), queue);
  });
}

}  // namespace core_splatting
