// 4D Gaussians rendered at a time, on CUDA: each is sliced where it is projected, and coloured if it is seen.
#include <cuda_pipeline.h>

#include "../rasterize/device.cuh"
#include "colors.hpp"

namespace core_splatting {
namespace {

constexpr int scanned = 128;                                        // Gaussians of a warp
constexpr int warps = 2;                                            // of a block
constexpr std::int64_t most_staged = 40 * 1024 / (4 * 32 * warps);  // coefficients of a Gaussian

/// A warp finds those of its Gaussians that a camera sees and colours 32 of them at a time, a lane each; `width` coefficients, which lie
/// together, are brought through shared memory at an odd pitch, so that lanes do not meet in a bank; if it is 0, they are not.
__global__ void __launch_bounds__(32 * warps) color_seen(Moving in, In<3> viewmats, Lists lists, int width, Out<3> out) {
  extern __shared__ float staged[];
  __shared__ int found[warps][scanned];
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32), pitch = width | 1;
  const int cameras = static_cast<int>(out.shape[0]), first = (static_cast<int>(blockIdx.x) * warps + warp) * scanned;
  const auto seen = [&](int c, int row) { return lists.depths[std::int64_t{c} * lists.gaussians + row] != culled; };
  int count = 0;
  for (int row = first + lane; row < first + scanned; row += 32) {
    bool some = false;
    if (row < lists.gaussians)
      for (int c = 0; c < cameras; ++c) some |= seen(c, row);
    const unsigned all = __ballot_sync(0xffffffffu, some);
    if (some) found[warp][count + __popc(all & ((1u << lane) - 1))] = row;
    count += __popc(all);
  }
  __syncwarp();
  float* const own = staged + (warp * 32) * pitch;
  for (int begin = 0; begin < count; begin += 32) {
    const int here = min(32, count - begin), row = found[warp][begin + min(lane, here - 1)];
    const std::int64_t n = gaussian_of(in.gaussians, row);
    Harmonics harmonics = in.harmonics;
    if (width) {
      for (int of = 0; of < here; ++of) {
        const float* const from = harmonics.coeffs.data + __shfl_sync(0xffffffffu, n, of) * width;
        for (int k = lane; k < width; k += 32) __pipeline_memcpy_async(own + of * pitch + k, from + k, sizeof(float));
      }
      __pipeline_commit();
      harmonics.coeffs.data = own + lane * pitch;
      harmonics.coeffs.stride[1] = 0;
    }
    const Gaussian g = load_gaussian(in.gaussians, row);
    __pipeline_wait_prior(0);
    __syncwarp();
    if (lane < here)
      for (int c = 0; c < cameras; ++c)
        if (seen(c, row)) color_of(in, harmonics, centre_of(viewmats, c), g.mean, n, out, c, row);
    __syncwarp();
  }
}

void color(const Moving& in, const In<3>& viewmats, const Lists& lists, const Out<3>& out, cudaStream_t stream) {
  const In<4>& coeffs = in.harmonics.coeffs;
  const std::int64_t width = coeffs.shape[2] * coeffs.shape[3], of_block = scanned * warps;
  const bool packed = coeffs.stride[3] == 1 && coeffs.stride[2] == coeffs.shape[3] && coeffs.stride[1] == width;
  const int staged = packed && width < most_staged ? static_cast<int>(width) : 0;
  const std::size_t bytes = static_cast<std::size_t>(32 * warps * (staged | 1)) * sizeof(float);
  color_seen<<<static_cast<unsigned>((lists.gaussians + of_block - 1) / of_block), 32 * warps, bytes, stream>>>(in, viewmats, lists, staged,
                                                                                                                out);
  check(cudaGetLastError(), "colouring");
}

}  // namespace

void rasterize_4d_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                       double min_weight, double prefilter_var, MaybeIn<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                       std::int64_t time_degree, double duration, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane,
                       double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model,
                       Out<4> out_colors, Out<3> out_alphas, MaybeOut<3> seen, MaybeOutWorkspace workspace, core::Stream queue) {
  const char* const op = "rasterize_4d";
  const std::int64_t cameras = viewmats.shape[0], rows = indices ? indices->shape[0] : opacities.shape[0], channels = out_colors.shape[3];
  const Options o = check_options(op, cameras, rows, colors ? colors->shape[0] : 1,
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Dynamic gaussians =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  const Moving moving = check_moving(op, gaussians, {colors, coeffs, degree, time_degree, duration});
  check_seen(op, seen, rows);
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y, total = cameras * rows;
  if (tiles == 0) return;
  const int device = out_alphas.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OwnLists own(workspace, device, rows, total, tiles, stream);
  prepare(SceneFrom<Dynamic>{gaussians, viewmats, Ks}, o, own.lists, device, stream);
  if (colors) return blend_lists<float>(own.lists, o, *colors, backgrounds, out_colors, out_alphas, stream);
  const core::DeviceScratch scratch(op, device, stream,
                                    seen ? 0 : core::checked_mul(core::checked_mul(total, channels, op), sizeof(float), op));
  const Out<3> as_seen = seen ? *seen : core::tensor(scratch.get<float>(), cameras, rows, channels);
  if (total && channels) color(moving, viewmats, own.lists, as_seen, stream);
  blend_lists<float>(own.lists, o, {as_seen.data, as_seen.shape, as_seen.stride}, backgrounds, out_colors, out_alphas, stream);
}

}  // namespace core_splatting
