// What the forward and the backward pass on the CPU share: projected Gaussians in depth order, the lists of the tiles.
#pragma once
#include <memory>
#include <vector>

#include "../dynamic/slice.hpp"

namespace core_splatting {

/// An allocator that leaves elements uninitialised, so that the threads and not the caller touch their pages first.
template <class T>
struct LeftAlone : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = LeftAlone<U>;
  };
  template <class U>
  void construct(U* at) noexcept {
    ::new (static_cast<void*>(at)) U;
  }
};

template <class T>
using Untouched = std::vector<T, LeftAlone<T>>;

/// The visible Gaussians of one camera in depth order.
struct Projected {
  Untouched<Splat> splats;
  Untouched<std::uint32_t> index;  // which Gaussian
};

/// The splats of each tile, front to back: those of tile t are list[begin[t]] .. list[begin[t + 1]].
struct Bins {
  std::vector<std::uint32_t> begin;
  Untouched<std::uint32_t> list;
};

/// Throws ValueError, in the name of the operator `op`, if the camera is not finite or has no positive focal length.
Camera load_camera(const char* op, const core::Tensor<const float, 3>& viewmats, const core::Tensor<const float, 3>& Ks, std::int64_t c);

/// `Source`: Gaussians or Dynamic.
template <class Source>
Projected project_sorted(const Camera& cam, const Options& o, const Source& gaussians);

Bins bin(const Projected& projected, const Options& o);

/// What a camera's picture is blended from, and where it goes.
struct Frame {
  const Projected* projected;
  const Bins* bins;
  Options options;
  std::int64_t camera, color_set;
  In<3> colors;
  const In<2>* backgrounds;  // or null
  Out<4> out_colors;
  Out<3> out_alphas;
  std::int64_t channel = 0, channels = 0;  // the part of the channels that a pass blends
};

void blend(Frame frame);

/// What the gradient of a camera's picture is made from.
struct Pass {
  const Projected* projected;
  const Bins* bins;
  Options options;
  std::int64_t camera, color_set;
  core::Tensor<const float, 3> colors;
  core::Tensor<const float, 4> image, v_image;
  core::Tensor<const float, 3> alphas, v_alphas;
  std::uint32_t first_pair;
  float* pairs;  // [pair - first_pair][moments + D]
};

/// What of a pair is summed: its weights times v_image alone; the moments of its derivatives too; and those of absolute values.
enum class Sought { weights, derivatives, absolute };

/// The sums of each splat of one camera: [splat][moments + D].
std::vector<float> sums_of_splats(Pass& pass, Sought kind);

/// Clears rows, which the last axis but one counts, or the only one.
template <int N>
void clear(const core::Tensor<float, N>& t, std::int64_t first, std::int64_t last) {
  if constexpr (N == 3)
    for (std::int64_t i = 0; i < t.shape[0]; ++i)
      clear(core::Tensor<float, 2>{&t(i, 0, 0), {t.shape[1], t.shape[2]}, {t.stride[1], t.stride[2]}}, first, last);
  else
    for (std::int64_t i = first; i < last; ++i) {
      if constexpr (N == 1)
        t(i) = 0.f;
      else
        for (std::int64_t j = 0; j < t.shape[1]; ++j) t(i, j) = 0.f;
    }
}

}  // namespace core_splatting
