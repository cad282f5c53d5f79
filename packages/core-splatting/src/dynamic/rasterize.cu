// 4D Gaussians rendered at a time, on CUDA: each is sliced where it is projected, and coloured if it is seen.
#include "colors.cuh"

namespace core_splatting {
namespace {

constexpr int warps = 2;

__global__ void __launch_bounds__(32 * warps) color_seen(Moving in, In<3> viewmats, Lists lists, int width, Out<3> out) {
  extern __shared__ float staged[];
  const int cameras = static_cast<int>(out.shape[0]);
  for_seen<warps>(in, lists, cameras, width, staged + threadIdx.x / 32 * 32 * (width | 1),
                  [&](bool inside, const Harmonics& harmonics, int row, std::int64_t n, const float* place) {
                    for (int c = 0; c < cameras; ++c)
                      if (inside && is_seen(lists, c, row))
                        color_of(in, harmonics, centre_of(viewmats, c), viewmats, c, place, n, out, c, row);
                  });
}

void color(const Moving& in, const In<3>& viewmats, const Lists& lists, const Out<3>& out, cudaStream_t stream) {
  const int width = staged_width<warps>(in.harmonics.coeffs, 1);
  const std::size_t bytes = static_cast<std::size_t>(32 * warps * (width | 1)) * sizeof(float);
  color_seen<<<blocks_for_seen(lists, warps), 32 * warps, bytes, stream>>>(in, viewmats, lists, width, out);
  check(cudaGetLastError(), "colouring");
}

}  // namespace

void rasterize_4d_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                       double min_weight, double prefilter_var, MaybeIn<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                       std::int64_t time_degree, double duration, bool depth, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds,
                       double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased,
                       const char* camera_model, Out<4> out_colors, Out<3> out_alphas, MaybeOut<3> seen, MaybeOutWorkspace workspace,
                       core::Stream queue) {
  const char* const op = "rasterize_4d";
  const std::int64_t cameras = viewmats.shape[0], rows = indices ? indices->shape[0] : opacities.shape[0], channels = out_colors.shape[3];
  const Options o = check_options(op, cameras, rows, colors ? colors->shape[0] : 1,
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Dynamic gaussians =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  const Moving moving = check_moving(op, gaussians, colors, {coeffs, degree, time_degree, duration, depth}, channels);
  check_seen(op, seen, rows);
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y, total = cameras * rows;
  if (tiles == 0) return;
  const int device = out_alphas.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OwnLists own(workspace, device, rows, total, tiles, stream);
  prepare(SceneFrom<Dynamic>{gaussians, viewmats, Ks}, o, own.lists, device, stream);
  if (colors && !depth) return blend_lists<float>(own.lists, o, *colors, backgrounds, out_colors, out_alphas, stream);
  const core::DeviceScratch scratch(op, device, stream,
                                    seen ? 0 : core::checked_mul(core::checked_mul(total, channels, op), sizeof(float), op));
  const Out<3> as_seen = seen ? *seen : core::tensor(scratch.get<float>(), cameras, rows, channels);
  if (total && channels) color(moving, viewmats, own.lists, as_seen, stream);
  blend_lists<float>(own.lists, o, {as_seen.data, as_seen.shape, as_seen.stride}, backgrounds, out_colors, out_alphas, stream);
}

}  // namespace core_splatting
