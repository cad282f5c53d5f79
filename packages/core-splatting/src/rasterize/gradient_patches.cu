// The gradient of many channels on CUDA. A warp blends the Gaussians that reach its 8x4 pixels again, front to back, sixteen
// at a time. What a pixel's derivatives say of their colours, and what all pixels' derivatives add to these, are matrix
// products for the tensor cores, as in the forward pass.
#include "backward.cuh"
#include "matrix.cuh"

namespace core_splatting {
namespace {

constexpr int waiting = 32 + depth;
constexpr int shade_stride = 36;  // of a Gaussian's pixels: no two lanes that write meet in a bank

struct Shared {
  Staged staged[waiting];  // those that reach the patch and wait
  std::uint32_t ids[waiting], entries[waiting];
  float shades[depth * shade_stride];
  __align__(16) __nv_bfloat16 weights[2][32 * weight_stride];  // high, low
};

/// From one pixel's channels to the next one's, in bfloat16: whole products, and an odd number of 16-byte units.
__host__ __device__ constexpr int pitch_of(int channels) { return (channels + 15) / 16 * 16 + 8; }

/// Channels k and k + 1 of a row, 0 where there are none.
template <bool Pairs>
__device__ float2 two_channels(const float* row, int k, int channels, std::int64_t stride) {
  if (!row || k >= channels) return {0.f, 0.f};
  if constexpr (Pairs) return *reinterpret_cast<const float2*>(row + k);
  return {row[k * stride], k + 1 < channels ? row[(k + 1) * stride] : 0.f};
}

/// A block is a warp. `Pairs`: the channels of a colour lie beside each other and can be read by two.
template <bool Pairs>
__global__ void __launch_bounds__(32, 16)
    gradient_patches(Lists lists, Options o, core::Tensor<const float, 3> colors, Images images, Sums sums) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  __nv_bfloat16* const v = reinterpret_cast<__nv_bfloat16*>(memory + sizeof(Shared));  // [high, low][pixel][channel]
  const int tile = static_cast<int>(blockIdx.x) / 8, part = static_cast<int>(blockIdx.x) % 8, lane = static_cast<int>(threadIdx.x);
  const int in_camera = tile % (o.tiles_x * o.tiles_y), camera = tile / (o.tiles_x * o.tiles_y);
  const int left = in_camera % o.tiles_x * tile_size + part % 2 * 8, top = in_camera / o.tiles_x * tile_size + part / 2 * 4;
  const int channels = static_cast<int>(colors.shape[2]), pitch = pitch_of(channels);

  float behind = 0.f, transmittance = 1.f;
#pragma unroll 4
  for (int pixel = 0; pixel < 32; ++pixel) {
    const int column = left + pixel % 8, row = top + pixel / 8;
    const bool inside = column < o.width && row < o.height;
    const float* const of_v = inside ? &at(images.v_image, camera, row, column, 0) : nullptr;
    const float* const of_image = inside ? &at(images.image, camera, row, column, 0) : nullptr;
    float sum = 0.f;
    for (int k = 2 * lane; k < pitch - 8; k += 64) {
      const float2 value = two_channels<false>(of_v, k, channels, images.v_image.stride[3]);
      const float2 color = two_channels<false>(of_image, k, channels, images.image.stride[3]);
      sum += value.x * color.x + value.y * color.y;
      const Half2s pair = split(value.x, value.y);
      *reinterpret_cast<std::uint32_t*>(v + pixel * pitch + k) = pair.high;
      *reinterpret_cast<std::uint32_t*>(v + (32 + pixel) * pitch + k) = pair.low;
    }
#pragma unroll
    for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (lane == pixel) behind = sum;
  }
  const int column = left + lane % 8, row = top + lane / 8;
  const bool inside = column < o.width && row < o.height;
  if (inside && images.v_alphas.data) behind -= (1.f - at(images.alphas, camera, row, column)) * at(images.v_alphas, camera, row, column);
  const float x = static_cast<float>(lane % 8) - 3.5f;
  float y = inside ? static_cast<float>(lane / 8) - 1.5f : not_a_number();  // NaN when the pixel is finished

  const float* const of_camera = colors.data + (colors.shape[0] == 1 ? 0 : camera) * colors.stride[0];
  const auto first_id = static_cast<std::uint32_t>(camera) * static_cast<std::uint32_t>(lists.gaussians);

  /// The waiting Gaussians from `from` on, at most sixteen.
  const auto blend = [&](int from, int count) {
    const int rows[] = {lane / 4, lane / 4 + 8};  // the Gaussians whose colours this lane has in a product
    const float* color[2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      color[j] = rows[j] < count ? of_camera + (shared.ids[from + rows[j]] - first_id) * colors.stride[1] : nullptr;
    float shade[2][2][4] = {};
#pragma unroll 2
    for (int k = 0; k < pitch - 8; k += 16) {
      std::uint32_t b[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 near = two_channels<Pairs>(color[j], k + lane % 4 * 2, channels, colors.stride[2]);
        const float2 far = two_channels<Pairs>(color[j], k + lane % 4 * 2 + 8, channels, colors.stride[2]);
        const Half2s first = split(near.x, near.y), second = split(far.x, far.y);
        b[j][0] = first.high, b[j][1] = second.high, b[j][2] = first.low, b[j][3] = second.low;
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        std::uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) load_matrices(a[half], v + (half * 32 + m * 16 + lane % 16) * pitch + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) multiply(shade[m][j], a, b[j]);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          shared.shades[(j * 8 + lane % 4 * 2 + e % 2) * shade_stride + m * 16 + lane / 4 + e / 2 * 8] = shade[m][j][e];
    __syncwarp();

    std::uint32_t used = 0;  // those that contribute to a pixel
#pragma unroll 1
    for (int begin = 0; begin < depth; begin += 8) {
      float weight[8];
#pragma unroll
      for (int part_of_8 = 0; part_of_8 < 8; part_of_8 += 4) {
        float m[4 * moments];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int g = begin + part_of_8 + i;
          const Staged of = shared.staged[from + g];
          const float dy = of.q * y + of.v, u = of.sheared * y + (of.p * x + of.u), cut = g < count ? of.cut : INFINITY;
          const PixelShare share =
              share_of(of.power - dy * dy - u * u, cut, o.max_alpha, shared.shades[g * shade_stride + lane], transmittance, behind);
          y = share.finished ? not_a_number() : y;
          used |= static_cast<std::uint32_t>(__any_sync(0xffffffffu, share.weight > 0.f)) << g;
          weight[part_of_8 + i] = share.weight;
          // Where the pixel is finished g is 0, but u is not a number.
          const float own_u = share.weight > 0.f ? u : 0.f, own_dy = share.weight > 0.f ? dy : 0.f;
          const float gu = share.g * own_u, gdy = share.g * own_dy;
          const float of_pixel[moments] = {share.g,     gu,           gu * own_u, gdy,
                                           gu * own_dy, gdy * own_dy, fabsf(gu),  fabsf(gu * of.sheared + gdy * of.q)};
#pragma unroll
          for (int k = 0; k < moments; ++k) m[i * moments + k] = of_pixel[k];
        }
        const float sum = sum_of_warp(m, lane);
        const int g = begin + part_of_8 + lane / moments;
        if (used >> g & 1) sums.add(sums.of(shared.ids[from + g], shared.entries[from + g], part) + lane % moments, sum);
      }
      store_weights(weight, shared.weights[0] + lane * weight_stride + begin, shared.weights[1] + lane * weight_stride + begin);
    }
    __syncwarp();
    if (!used) return;

    std::uint32_t a[2][2][4];  // the weights of 16 pixels, and of 16 more: high, low
#pragma unroll
    for (int kk = 0; kk < 2; ++kk)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        load_transposed(a[kk][half], shared.weights[half] + (kk * 16 + lane / 16 * 8 + lane % 8) * weight_stride + lane / 8 % 2 * 8);
    float* to[2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      to[j] = used >> rows[j] & 1 ? sums.of(shared.ids[from + rows[j]], shared.entries[from + rows[j]], part) + moments : nullptr;
    const bool odd = lane % 2;
#pragma unroll 2
    for (int n = 0; n < pitch - 8; n += 16) {
      float c[2][4] = {};
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) {
          std::uint32_t b[4];
          load_transposed(b, v + (lane / 16 * 32 + kk * 16 + lane % 16) * pitch + n + 8 * t);
          multiply(c[t], a[kk], b);
        }
      // Two lanes beside each other have the same four channels of two products: each takes one.
      const int k = n + (odd ? 8 : 0) + lane % 4 / 2 * 4;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float x0 = c[0][2 * j], y0 = c[0][2 * j + 1], x1 = c[1][2 * j], y1 = c[1][2 * j + 1];
        const float given_x = __shfl_xor_sync(0xffffffffu, odd ? x0 : x1, 1), given_y = __shfl_xor_sync(0xffffffffu, odd ? y0 : y1, 1);
        if (to[j] && k < channels) sums.add(to[j] + k, odd ? float4{given_x, given_y, x1, y1} : float4{x0, y0, given_x, given_y});
      }
    }
    __syncwarp();
  };

  const TileList list(lists, tile);
  std::uint32_t next_id = 0;
  Splat next{};
  bool next_valid = false;
  const auto fetch = [&](std::uint32_t at) {
    next_valid = at < list.end;
    if (!next_valid) return;
    next_id = list.ids[at];
    next_valid = list.holds(lists, next_id, camera);
    if (next_valid) next = load_splat(lists.splats, next_id);
  };
  int count = 0;
  fetch(list.begin + static_cast<std::uint32_t>(lane));
  for (std::uint32_t begin = list.begin; begin < list.end; begin += 32) {
    if (__all_sync(0xffffffffu, y != y)) return;
    const bool reached = next_valid && reaches(next, left, top);
    const std::uint32_t hits = __ballot_sync(0xffffffffu, reached);
    if (reached) {
      const int place = count + __popc(hits & ((1u << lane) - 1));
      shared.staged[place] = stage_at(left + 4, top + 2, next, 0);
      shared.ids[place] = next_id;
      shared.entries[place] = begin + static_cast<std::uint32_t>(lane);
    }
    count += __popc(hits);
    const bool last = list.end - begin <= 32;
    if (!last) fetch(begin + 32 + static_cast<std::uint32_t>(lane));
    __syncwarp();
    int from = 0;
    for (; count - from >= depth || (last && from < count); from += depth) blend(from, min(count - from, depth));
    count = max(count - from, 0);
    if (from && lane < count) {
      shared.staged[lane] = shared.staged[from + lane];
      shared.ids[lane] = shared.ids[from + lane];
      shared.entries[lane] = shared.entries[from + lane];
    }
    __syncwarp();
  }
}

}  // namespace

void sum_patches(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
                 cudaStream_t stream) {
  const int channels = static_cast<int>(colors.shape[2]);
  const std::size_t bytes = sizeof(Shared) + std::size_t{64} * pitch_of(channels) * sizeof(__nv_bfloat16);
  const bool pairs = colors.stride[2] == 1 && channels % 2 == 0 && colors.stride[1] % 2 == 0 && colors.stride[0] % 2 == 0 &&
                     reinterpret_cast<std::uintptr_t>(colors.data) % 8 == 0;
  const auto kernel = pairs ? &gradient_patches<true> : &gradient_patches<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "asking for shared memory");
  kernel<<<static_cast<unsigned>(lists.tiles) * 8, 32, bytes, stream>>>(lists, o, colors, images, sums);
  check(cudaGetLastError(), "blending again");
}

}  // namespace core_splatting
