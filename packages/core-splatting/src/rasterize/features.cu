// Blending of many channels on CUDA. The weights of 16 Gaussians at a time, for the 32 pixels of a warp, times their colours
// is a matrix product for the tensor cores: both factors are split into two bfloat16 each, high and low, and three of the
// four products are added in float32, which leaves a relative error of about 2^-16. Colours of float16 make one product of
// float16, and an error of about 2^-11.
#include "features.cuh"
#include "matrix.cuh"

namespace core_splatting {
namespace {

constexpr int batch = 128;

constexpr int odd(int n) { return n | 1; }
template <int N>
inline constexpr int color_stride = odd(N / 8) * 8;  // in 2 bytes: an odd number of 16-byte units

template <int N, class T>
struct Shared {
  static constexpr int parts = std::is_same_v<T, float> ? 2 : 1;  // high, low
  Staged staged[batch];
  std::uint8_t reached[batch];  // the patches, a bit for each warp
  std::uint8_t hits[8][batch];  // of a warp: the places in the batch that reach it
  __align__(16) std::uint16_t colors[parts][batch * color_stride<N>];
  __align__(16) std::uint16_t weights[8][parts][32 * weight_stride];  // of a warp
};

/// One block per tile, a warp for 8x4 pixels. Blends the N channels from `channel` on, as far as there are.
template <int N, class T>
__global__ void __launch_bounds__(block, N <= 32 ? 3 : 2)
    blend_channels(Lists lists, Options o, core::Tensor<const T, 3> colors, core::Tensor<const float, 2> backgrounds, int channel,
                   core::Tensor<T, 4> out_colors, core::Tensor<float, 3> out_alphas) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int parts = Shared<N, T>::parts;
  Shared<N, T>& shared = *reinterpret_cast<Shared<N, T>*>(memory);
  const Patch<1> patch(o, static_cast<int>(blockIdx.x));
  const int lane = patch.lane, warp = patch.warp, thread = static_cast<int>(threadIdx.x);
  const int left = patch.left, top = patch.top;
  const bool inside = patch.column < o.width && patch.row < o.height;
  const float x = patch.x();
  float y = patch.y(0, o);  // NaN when the pixel is finished
  const int channels = min(static_cast<int>(colors.shape[2]) - channel, N);
  const T* const source = colors.data + (colors.shape[0] == 1 ? 0 : patch.camera) * colors.stride[0] + channel * colors.stride[2];
  const auto first = static_cast<std::uint32_t>(patch.camera) * static_cast<std::uint32_t>(lists.gaussians);
  std::uint16_t* const weights = shared.weights[warp][0];
  std::uint8_t* const hits = shared.hits[warp];

  float transmittance = 1.f, sum[2][N / 8][4] = {};
  const TileList list(lists, static_cast<int>(blockIdx.x));
  for (std::uint32_t begin = list.begin; begin < list.end; begin += batch) {
    if (__syncthreads_count(y != y) == block) break;
    const int count = static_cast<int>(min(list.end - begin, static_cast<std::uint32_t>(batch)));
    if (thread < batch) {
      std::uint32_t mask = 0;
      if (thread < count) {
        const std::uint32_t id = list.ids[begin + thread];
        if (list.holds(lists, id, patch.camera)) {
          const Splat s = load_splat(lists.splats, id);
          shared.staged[thread] = stage_at(left + 8, top + 8, s, 0);
          mask = reached_of_tile(s, left, top);
        }
      }
      shared.reached[thread] = static_cast<std::uint8_t>(mask);
    }
    // Two channels a thread, neighbouring threads neighbouring channels.
#pragma unroll 4
    for (int i = thread; i < count * (N / 2); i += block) {
      const int g = i / (N / 2), k = i % (N / 2) * 2;
      const std::uint32_t id = list.ids[begin + g];
      const std::uint32_t n = list.all ? id % static_cast<std::uint32_t>(lists.gaussians) : id - first;
      const T* const row = source + n * colors.stride[1];
      T pair[2] = {};
      if (k < channels) pair[0] = row[k * colors.stride[2]];
      if (k + 1 < channels) pair[1] = row[(k + 1) * colors.stride[2]];
      const auto there = [&](int part) -> std::uint32_t& {
        return reinterpret_cast<std::uint32_t*>(shared.colors[part])[(g * color_stride<N> + k) / 2];
      };
      if constexpr (parts == 2) {
        const Half2s both = split(pair[0], pair[1]);
        there(0) = both.high, there(1) = both.low;
      } else {
        there(0) = std::uint32_t{pair[0].bits} | std::uint32_t{pair[1].bits} << 16;
      }
    }
    __syncthreads();
    if (__all_sync(0xffffffffu, y != y)) continue;
    int found = 0;
    for (int part = 0; part < count; part += 32) {
      const bool hit = part + lane < count && patch.own(shared.reached[part + lane]);
      const std::uint32_t all = __ballot_sync(0xffffffffu, hit);
      if (hit) hits[found + __popc(all & ((1u << lane) - 1))] = static_cast<std::uint8_t>(part + lane);
      found += __popc(all);
    }
    __syncwarp();
    for (int from = 0; from < found; from += depth) {
      float weight[depth];
#pragma unroll
      for (int i = 0; i < depth; ++i) {
        weight[i] = 0.f;
        if (from + i >= found) continue;
        const Staged g = shared.staged[hits[from + i]];
        const float v = g.q * y + g.v, u = g.sheared * y + (g.p * x + g.u), exponent = g.power - v * v - u * u;
        const float alpha = fminf(o.max_alpha, exp2_fast(exponent)), blended = exponent >= g.cut ? alpha * transmittance : 0.f;
        const bool finished = transmittance - blended <= min_transmittance;
        weight[i] = finished ? 0.f : blended;
        y = finished ? not_a_number() : y;
        transmittance -= weight[i];
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < depth; i += 8) {
        std::uint16_t* const to = weights + lane * weight_stride + i;
        if constexpr (parts == 2)
          store_weights(weight + i, to, to + 32 * weight_stride);
        else
          store_half(weight + i, to);
      }
      __syncwarp();
      std::uint32_t a[2][parts][4];  // of 16 pixels each
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int part = 0; part < parts; ++part)
          load_matrices(a[m][part], weights + (part * 32 + m * 16 + lane % 16) * weight_stride + lane / 16 * 8);
      const int row = hits[min(from + lane % depth, found - 1)];  // of the Gaussian whose colours this lane fetches
      if constexpr (parts == 2) {
        const std::uint16_t* const fetched = shared.colors[lane / 16] + row * color_stride<N>;
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
          std::uint32_t b[4];  // high, low: of eight Gaussians and the next eight
          load_transposed(b, fetched + 8 * n);
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply(sum[m][n], a[m], b);
        }
      } else {
        const std::uint16_t* const fetched = shared.colors[0] + row * color_stride<N> + (N > 8 ? lane / 16 * 8 : 0);
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
          std::uint32_t b[4];  // of eight channels, and of the next: of eight Gaussians and the next eight
          load_transposed(b, fetched + 8 * n);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply_half(sum[m][n], a[m][0], b[0], b[1]);
            if constexpr (N > 8) multiply_half(sum[m][n + 1], a[m][0], b[2], b[3]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int pixel = m * 16 + h * 8 + lane / 4;
      const int column = patch.column - lane % 8 + pixel % 8, row = patch.row - lane / 8 + pixel / 8;
      const float rest = __shfl_sync(0xffffffffu, transmittance, pixel);
      if (column >= o.width || row >= o.height) continue;
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int d = 8 * n + lane % 4 * 2 + k;
          if (d < channels)
            set(at(out_colors, patch.camera, row, column, channel + d),
                sum[m][n][2 * h + k] + (backgrounds.data ? rest * at(backgrounds, patch.camera, channel + d) : 0.f));
        }
    }
  if (channel == 0 && inside) at(out_alphas, patch.camera, patch.row, patch.column) = 1.f - transmittance;
}

template <int N, class T>
void run(const Lists& lists, const Options& o, const core::Tensor<const T, 3>& colors, const core::Tensor<const float, 2>& backgrounds,
         int channel, const core::Tensor<T, 4>& out_colors, const Out<3>& out_alphas, cudaStream_t stream) {
  constexpr auto kernel = &blend_channels<N, T>;
  using Memory = Shared<N, T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Memory)), "asking for shared memory");
  kernel<<<static_cast<unsigned>(lists.tiles), block, sizeof(Memory), stream>>>(lists, o, colors, backgrounds, channel, out_colors,
                                                                                out_alphas);
}

}  // namespace

template <class T>
void blend_features(const Lists& lists, const Options& o, const core::Tensor<const T, 3>& colors,
                    const core::Tensor<const float, 2>& backgrounds, const core::Tensor<T, 4>& out_colors, const Out<3>& out_alphas,
                    cudaStream_t stream) {
  constexpr int most = 80;
  const int channels = static_cast<int>(colors.shape[2]), passes = (channels + most - 1) / most, width = (channels + passes - 1) / passes;
  for (int channel = 0; channel < channels; channel += width <= 8 ? 8 : width <= 16 ? 16 : width <= 32 ? 32 : width <= 64 ? 64 : 80) {
    const auto kernel = width <= 8    ? &run<8, T>
                        : width <= 16 ? &run<16, T>
                        : width <= 32 ? &run<32, T>
                        : width <= 64 ? &run<64, T>
                                      : &run<80, T>;
    kernel(lists, o, colors, backgrounds, channel, out_colors, out_alphas, stream);
    check(cudaGetLastError(), "blending");
  }
}

template void blend_features(const Lists&, const Options&, const core::Tensor<const float, 3>&, const core::Tensor<const float, 2>&,
                             const core::Tensor<float, 4>&, const Out<3>&, cudaStream_t);
template void blend_features(const Lists&, const Options&, const core::Tensor<const core::float16, 3>&, const core::Tensor<const float, 2>&,
                             const core::Tensor<core::float16, 4>&, const Out<3>&, cudaStream_t);

}  // namespace core_splatting
