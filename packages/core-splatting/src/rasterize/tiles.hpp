// What the forward and the backward pass on the CPU share: projected Gaussians in depth order, the lists of the tiles.
#pragma once
#include <bit>
#include <vector>

#include "project.hpp"

namespace core_splatting {

inline constexpr int lanes = 8, groups = tile_size / lanes;
/// The lanes of a group of pixels. Plain loops over so few elements are unrolled first and put together again badly.
using Lanes [[gnu::vector_size(lanes * sizeof(float)), gnu::aligned(alignof(float)), gnu::may_alias]] = float;

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

/// 2^x for x in [-126, 0], relative error below 3e-7.
inline float exp2_of(float x) {
  const int whole = static_cast<int>(x - 0.5f);
  const float f = x - static_cast<float>(whole);
  const float p = 1.f + f * (0.69314718f + f * (0.24022651f + f * (0.05550411f + f * (0.00961813f + f * (0.00133336f + f * 0.00015404f)))));
  return p * std::bit_cast<float>((whole + 127) << 23);
}

}  // namespace core_splatting
