// The gradient of many channels on CUDA: each tile is blended again front to back, a block being a warp of 8x4 pixels that
// keeps its derivatives in shared memory.
#include "backward.cuh"

#include <cmath>

namespace core_splatting {
namespace {

/// A block is a warp of 8x4 pixels.
__global__ void __launch_bounds__(32)
    gradient_patches(Lists lists, Options o, core::Tensor<const float, 3> colors, Images images, Sums sums) {
  extern __shared__ float v[];  // [channel][pixel]
  const int tile = static_cast<int>(blockIdx.x) / 8, part = static_cast<int>(blockIdx.x) % 8, lane = static_cast<int>(threadIdx.x);
  const int in_camera = tile % (o.tiles_x * o.tiles_y), camera = tile / (o.tiles_x * o.tiles_y);
  const int left = in_camera % o.tiles_x * tile_size + part % 2 * 8, top = in_camera / o.tiles_x * tile_size + part / 2 * 4;
  const int column = left + lane % 8, row = top + lane / 8, channels = static_cast<int>(colors.shape[2]);
  const float px = static_cast<float>(column) + 0.5f, py = static_cast<float>(row) + 0.5f;
  const bool inside = column < o.width && row < o.height;
  float behind = 0.f, transmittance = 1.f;
  bool done = !inside;
  for (int k = 0; k < channels; ++k) {
    const float of_channel = inside ? at(images.v_image, camera, row, column, k) : 0.f;
    v[k * 32 + lane] = of_channel;
    if (inside) behind += of_channel * at(images.image, camera, row, column, k);
  }
  if (inside) behind -= (1.f - at(images.alphas, camera, row, column)) * at(images.v_alphas, camera, row, column);
  const TileList list(lists, tile);
  const float* const of_camera = colors.data + (colors.shape[0] == 1 ? 0 : camera) * colors.stride[0];
  for (std::uint32_t begin = list.begin; begin < list.end; begin += 32) {
    if (__all_sync(0xffffffffu, done)) break;
    std::uint32_t own = 0;
    bool reached = false;
    if (begin + static_cast<std::uint32_t>(lane) < list.end) {
      own = list.ids[begin + static_cast<std::uint32_t>(lane)];
      reached = list.holds(lists, own, camera) && reaches(load_splat(lists.splats, own), left, top);
    }
    for (std::uint32_t hits = __ballot_sync(0xffffffffu, reached); hits; hits &= hits - 1) {
      const int j = __ffs(static_cast<int>(hits)) - 1;
      const std::uint32_t id = __shfl_sync(0xffffffffu, own, j);
      const Splat s = load_splat(lists.splats, id);
      const float p = sqrtf(-s.uu), q = sqrtf(-s.yy), dy = q * (py - s.y), u = p * (px - s.x - s.shear * (py - s.y));
      const float exponent = done ? -INFINITY : s.log2_opacity - dy * dy - u * u, cut = exponent_cut(s.log2_opacity);
      if (!__any_sync(0xffffffffu, exponent >= cut)) continue;
      const float* const color =
          of_camera + (id - static_cast<std::uint32_t>(camera) * static_cast<std::uint32_t>(lists.gaussians)) * colors.stride[1];
      float shade = 0.f;
      for (int k = 0; k < channels; ++k) shade += color[k * colors.stride[2]] * v[k * 32 + lane];
      const auto [g, weight, finished] = share_of(exponent, cut, o.max_alpha, shade, transmittance, behind);
      done |= finished;
      const float gu = g * u;
      float m[moments] = {g, gu, gu * u, g * dy, gu * dy, g * dy * dy, fabsf(gu), fabsf(g * dy * q - gu * p * s.shear)};
      float* const to = sums.of(id, begin + static_cast<std::uint32_t>(j), part);
      const float moment = sum_of_warp(m, lane);
      if (lane % (32 / moments) == 0) sums.add(to + lane / (32 / moments), moment);
      for (int first = 0; first < channels; first += 32) {
        float c[32];
#pragma unroll
        for (int k = 0; k < 32; ++k) c[k] = first + k < channels ? weight * v[(first + k) * 32 + lane] : 0.f;
        const float sum = sum_of_warp(c, lane);
        if (first + lane < channels) sums.add(to + moments + first + lane, sum);
      }
    }
  }
}

}  // namespace

void sum_patches(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
                 cudaStream_t stream) {
  const std::size_t bytes = static_cast<std::size_t>(colors.shape[2]) * 32 * sizeof(float);
  constexpr auto kernel = &gradient_patches;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "asking for shared memory");
  kernel<<<static_cast<unsigned>(lists.tiles) * 8, 32, bytes, stream>>>(lists, o, colors, images, sums);
  check(cudaGetLastError(), "blending again");
}

}  // namespace core_splatting
