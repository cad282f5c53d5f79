// The gradient of 4D Gaussians rendered at a time, on CUDA: the tiles are blended again, colours pass on to the coefficients and to the
// places they are seen at, and all that is known of a slice passes on to the Gaussian in the kernel that finds it.
#include "../harmonics/centres.cuh"
#include "../rasterize/backward.cuh"
#include "colors.cuh"

namespace core_splatting {
namespace {

/// One warp a block. Adds the derivatives of the colours seen to v_coeffs, cleared before, writes those by the places and the means in
/// time, `places`[row][4], and, unless null, adds those by the cameras' centres to its own of v_centres[C][blocks][3].
__global__ void __launch_bounds__(32)
    color_gradient(Moving in, In<3> viewmats, Lists lists, int width, In<3> v_out, Out<4> v_coeffs, float* places, float* v_centres) {
  extern __shared__ float staged[];
  const int cameras = static_cast<int>(v_out.shape[0]), lane = static_cast<int>(threadIdx.x), pitch = width | 1;
  float* const v_staged = staged + 32 * pitch;
  for_seen<1>(in, lists, cameras, width, staged, [&](bool inside, const Harmonics& harmonics, int row, std::int64_t n, const float* place) {
    Out<4> own = v_coeffs;
    if (width) {
      own.data = v_staged + lane * pitch, own.stride[1] = 0;
      for (int k = 0; k < width; ++k) own.data[k] = 0.f;
    }
    float total[4] = {};
    for (int c = 0; c < cameras; ++c) {
      float v_place[3] = {};
      if (inside && is_seen(lists, c, row))
        total[3] += color_backward(in, harmonics, centre_of(viewmats, c), place, n, v_out, c, row, own, v_place);
      for (int k = 0; k < 3; ++k) total[k] += v_place[k];
      if (v_centres) add_to_centre(v_place, v_centres + 3 * (std::int64_t{c} * gridDim.x + blockIdx.x));
    }
    if (inside) reinterpret_cast<float4*>(places)[row] = {total[0], total[1], total[2], total[3]};
    if (!width) return;
    __syncwarp();
    for (unsigned rest = __ballot_sync(0xffffffffu, inside); rest; rest &= rest - 1) {
      const int of = __ffs(static_cast<int>(rest)) - 1;
      float* const to = v_coeffs.data + __shfl_sync(0xffffffffu, n, of) * width;
      for (int k = lane; k < width; k += 32) to[k] = v_staged[of * pitch + k];
    }
  });
}

__global__ void __launch_bounds__(block) clear_gaussians(DynamicGradients out) {
  const std::int64_t n = std::int64_t{blockIdx.x} * block + threadIdx.x;
  if (n < out.opacities.shape[0]) write_gradient(out, DynamicGradient{}, n);
}

}  // namespace

void rasterize_4d_backward_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                                double min_weight, double prefilter_var, In<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                                std::int64_t time_degree, double duration, bool depth, In<3> viewmats, In<3> Ks, double near_plane,
                                double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased,
                                const char* camera_model, In<4> image, In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas,
                                MaybeWorkspace workspace, bool deterministic, Out<2> v_means, Out<2> v_scales, Out<2> v_quats_l,
                                Out<2> v_quats_r, Out<1> v_opacities, MaybeOut<3> v_colors, MaybeOut<3> v_coeffs, MaybeOut<3> v_viewmats,
                                MaybeOut<3> v_means2d, core::Stream queue) {
  const char* const op = "rasterize_4d_backward";
  const std::int64_t cameras = viewmats.shape[0], rows = indices ? indices->shape[0] : opacities.shape[0], given = colors.shape[2] - depth;
  const Options o =
      check_options(op, cameras, rows, colors.shape[0], {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model},
                    alphas.shape[1], alphas.shape[2]);
  const Dynamic gaussians =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  const Moving moving = check_moving_seen(op, gaussians, colors, {coeffs, degree, time_degree, duration, depth});
  check_moving_gradients(op, moving, colors, v_colors, v_coeffs, v_means2d, cameras);
  const int device = v_means.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const DynamicGradients out{v_means, v_scales, v_quats_l, v_quats_r, v_opacities};
  if (indices && opacities.shape[0]) clear_gaussians<<<blocks_for(opacities.shape[0]), block, 0, stream>>>(out);
  if (v_colors && cameras == 0) clear_colors(*v_colors, stream);
  if (v_coeffs && v_coeffs->contiguous())
    check(cudaMemsetAsync(v_coeffs->data, 0, static_cast<std::size_t>(v_coeffs->numel()) * sizeof(float), stream), "clearing");
  else if (v_coeffs)
    clear_colors(*v_coeffs, stream);

  Gradient<Dynamic> gradient(op, {gaussians, viewmats, Ks}, o, rows, colors, {image, v_image, alphas, v_alphas.value_or(In<3>{})},
                             workspace, deterministic, v_means2d && v_means2d->shape[2] == 4, v_viewmats.has_value(), device, stream);
  Scratch scratch(device, stream);
  const std::int64_t parts = coeffs ? blocks_for_seen(gradient.lists(), 1) : 0, of_centres = v_viewmats ? cameras * parts * 3 : 0;
  const auto at_places = scratch.part<float>(coeffs ? 4 * rows : 0), at_centres = scratch.part<float>(of_centres);
  scratch.allocate();
  float* const v_centres = scratch.at<float>(at_centres);
  if (coeffs && rows && cameras) {
    const Sums& sums = gradient.sums();
    const auto stride = static_cast<std::int64_t>(sums.stride);
    const In<3> v_out{sums.data + moments, {cameras, rows, given}, {rows * stride, stride, 1}};
    const Out<4> to{v_coeffs->data, moving.harmonics.coeffs.shape, {0, v_coeffs->stride[0], v_coeffs->stride[1], v_coeffs->stride[2]}};
    const int width = staged_width<1>(to, 2) ? staged_width<1>(moving.harmonics.coeffs, 2) : 0;
    const std::size_t bytes = static_cast<std::size_t>(2 * 32 * (width | 1)) * sizeof(float);
    check(cudaMemsetAsync(v_centres, 0, static_cast<std::size_t>(of_centres) * sizeof(float), stream), "clearing the sums");
    color_gradient<<<static_cast<unsigned>(parts), 32, bytes, stream>>>(moving, viewmats, gradient.lists(), width, v_out, to,
                                                                        scratch.at<float>(at_places), v_viewmats ? v_centres : nullptr);
    check(cudaGetLastError(), "colouring backward");
  }
  gradient.write({out, v_colors.value_or(Out<3>{}), v_means2d.value_or(Out<3>{}), coeffs ? scratch.at<float>(at_places) : nullptr},
                 coeffs ? 0 : given, depth ? given : -1, v_viewmats);
  if (of_centres)
    centres_to_cameras<<<static_cast<unsigned>(cameras), centre_threads, 0, stream>>>(viewmats, v_centres, parts, true, *v_viewmats);
  check(cudaGetLastError(), "differentiating by cameras");
}

}  // namespace core_splatting
