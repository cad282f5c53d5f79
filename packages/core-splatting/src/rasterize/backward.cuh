// What the kernels of the gradient on CUDA share: how a warp adds up, where the sums go, what a pixel passes to a Gaussian.
#pragma once
#include "device.cuh"

namespace core_splatting {

/// Folds the first 2 Half of N values over the lanes that differ in a bit, again and again: each lane keeps one.
template <int Half, int N>
__device__ void fold(float (&v)[N], int lane) {
  constexpr int bit = 32 * Half / N;
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float first = v[i], second = v[i + Half];
    const float given = lane & bit ? first : second, kept = lane & bit ? second : first;
    v[i] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
  }
  if constexpr (Half > 1) fold<Half / 2>(v, lane);
}

/// Adds up N values (a power of two, at most 32) over the warp: lane l gets the sum of value l / (32 / N).
template <int N>
__device__ float sum_of_warp(float (&v)[N], int lane) {
  if constexpr (N > 1) fold<N / 2>(v, lane);
  float sum = v[0];
#pragma unroll
  for (int bit = 16 / N; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

struct Images {
  core::Tensor<const float, 4> image, v_image;
  core::Tensor<const float, 3> alphas, v_alphas;
};

/// Where the sums over pixels go: [moments + channels], up to a multiple of four, of a Gaussian of a camera, added by whoever
/// comes; or, where every run must give the same, of an entry of the tiles' lists for each warp of a tile, written once.
struct Sums {
  float* data;
  std::size_t stride, warps;  // warps: 0 if by Gaussian
  static std::int64_t stride_of(std::int64_t channels) { return (moments + channels + 3) / 4 * 4; }
  __device__ float* of(std::uint32_t id, std::uint32_t entry, int warp) const {
    return data + (warps ? entry * warps + static_cast<std::size_t>(warp) : std::size_t{id}) * stride;
  }
  __device__ void add(float* to, float value) const {
    if (warps)
      *to = value;
    else
      atomicAdd(to, value);
  }
  __device__ void add(float* to, float4 value) const {
    if (warps) {
      *reinterpret_cast<float4*>(to) = value;
      return;
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4*>(to), value);
#else
    atomicAdd(to, value.x), atomicAdd(to + 1, value.y), atomicAdd(to + 2, value.z), atomicAdd(to + 3, value.w);
#endif
  }
};

/// What a pixel passes to a Gaussian: G = alpha dL/dalpha where alpha is not clamped, and its weight; 0 if it does not
/// contribute. Blends it; `finished` says that the pixel takes no more.
struct PixelShare {
  float g, weight;
  bool finished;
};
__device__ inline PixelShare share_of(float exponent, float cut, float max_alpha, float shade, float& transmittance, float& behind) {
  const float before = transmittance, full = exp2_fast(exponent), alpha = fminf(max_alpha, full);
  const float blended = exponent >= cut ? alpha * before : 0.f;
  const bool finished = before - blended <= min_transmittance;
  const float weight = finished ? 0.f : blended;
  behind -= weight * shade;
  transmittance = before - weight;
  return {weight > 0.f && full <= max_alpha ? full * (before * shade - __fdividef(behind, 1.f - alpha)) : 0.f, weight, finished};
}

/// The warps that blend a tile again.
constexpr int warps_of_tile(std::int64_t channels) { return channels <= 4 ? 4 : 8; }

/// Blend again and add to `sums`, cleared before: at most 32 channels, and any number. `absolute`: whether the moments of
/// absolute values are wanted.
void sum_tiles(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
               bool absolute, cudaStream_t stream);
void sum_patches(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
                 cudaStream_t stream);

/// Where the derivatives go.
template <class Source>
struct GradientsOf;
template <>
struct GradientsOf<Gaussians> {
  Out<2> means, quats, scales, covars;
  Out<1> opacities;
  Out<3> colors, means2d;
};
template <>
struct GradientsOf<Dynamic> {
  DynamicGradients gaussians;
  Out<3> colors, means2d;
  const float* places;  // [row][4]: what the colours say of the sliced mean and of the mean in time, where seen; or null
};

/// Blends again; then the sums over pixels are there, and `write` makes of them the derivatives.
template <class Source>
class Gradient {
 public:
  Gradient(const char* op, const SceneFrom<Source>& scene, const Options& o, std::int64_t gaussians, const In<3>& colors,
           const Images& images, const MaybeWorkspace& workspace, bool deterministic, bool absolute, bool by_cameras, int device,
           cudaStream_t stream);
  const Lists& lists() const { return lists_->lists; }
  const Sums& sums() const { return sums_; }
  /// `channels`: of out.colors, 0 if no one asks for these; `depth`: the channel of the Gaussians' depth, -1 if none is.
  void write(const GradientsOf<Source>& out, std::int64_t channels, std::int64_t depth, const MaybeOut<3>& v_viewmats);

 private:
  SceneFrom<Source> scene_;
  Options options_;
  std::int64_t cameras_, gaussians_;
  std::optional<OwnLists> lists_;
  Scratch scratch_;
  Sums sums_{};
  float* of_cameras_ = nullptr;
  cudaStream_t stream_;
};

void clear_colors(const Out<3>& colors, cudaStream_t stream);

}  // namespace core_splatting
