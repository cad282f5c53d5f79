// What the forward and the backward pass on the CPU share: projected Gaussians in depth order, the lists of the tiles.
#pragma once
#include <bit>
#include <vector>

#include "project.hpp"

namespace core_splatting {

/// The visible Gaussians of one camera in depth order.
struct Projected {
  std::vector<Splat> splats;
  std::vector<std::uint32_t> index;  // which Gaussian
};

/// The splats of each tile, front to back: those of tile t are list[begin[t]] .. list[begin[t + 1]].
struct Bins {
  std::vector<std::uint32_t> begin, list;
};

/// Throws ValueError, in the name of the operator `op`, if the camera is not finite or has no positive focal length.
Camera load_camera(const char* op, const core::Tensor<const float, 3>& viewmats, const core::Tensor<const float, 3>& Ks, std::int64_t c);

Projected project_sorted(const Camera& cam, const Options& o, const Gaussians& gaussians);

Bins bin(const std::vector<Splat>& splats, const Options& o);

}  // namespace core_splatting
