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

}  // namespace core_splatting
