// core_splatting/rasterize.hpp - forward rasterisation of 3D Gaussians (Kerbl et al., arXiv 2308.04079).
//
// A Gaussian is projected to the ellipse of EWA splatting (its covariance through the Jacobian of the
// perspective map, plus `eps2d` pixels^2), and the ellipses are blended front to back in the order of the
// depth of their centres: alpha = min(max_alpha, opacity * exp(-sigma)), where 2 sigma is the squared
// Mahalanobis distance of the pixel's centre. Contributions with alpha < 1/255 or farther than 3.33 standard
// deviations are skipped; a pixel is finished by the Gaussian that would bring its transmittance to 1e-4 or
// less, which itself does not contribute.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_splatting {

/// Renders N Gaussians into C pinhole cameras.
///
/// means[N,3]: centres in world units; quats[N,4]: rotations (w, x, y, z), of any length but zero;
/// scales[N,3]: standard deviations along the rotated axes; opacities[N] in [0, 1];
/// colors[G,N,D]: D channels of any meaning, G = C or, for all cameras alike, 1;
/// viewmats[C,4,4]: world to camera, x right, y down, z forward (the last row is not read);
/// Ks[C,3,3]: pinhole matrices in pixels, the first pixel's centre at (0.5, 0.5), skew is not read;
/// backgrounds[C,D]: what shows through, black if left out;
/// near_plane, far_plane: depths outside are culled; radius_clip: Gaussians whose extent is at most this many
/// pixels in both axes are culled; eps2d: variance in pixels^2 added to every ellipse; max_alpha in [1/255, 1).
/// out_colors[C,H,W,D], out_alphas[C,H,W]: written whole.
/// A Gaussian with a NaN, an infinity, a zero quaternion, or an opacity of at most 1/255 is culled.
/// Throws ValueError for a scalar out of range, G not 1 or C, an image side above 65,536 and, on the CPU, a
/// camera that is not finite or has no positive focal length (on CUDA such a camera shows the background).
/// The result does not depend on the number of threads.
CORE_EXPORT void rasterize(core::Tensor<const float, 2> means, core::Tensor<const float, 2> quats, core::Tensor<const float, 2> scales,
                           core::Tensor<const float, 1> opacities, core::Tensor<const float, 3> colors,
                           core::Tensor<const float, 3> viewmats, core::Tensor<const float, 3> Ks,
                           std::optional<core::Tensor<const float, 2>> backgrounds, double near_plane, double far_plane, double radius_clip,
                           double eps2d, double max_alpha, core::Tensor<float, 4> out_colors, core::Tensor<float, 3> out_alphas);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA tensors. Work is queued on `stream`; the host waits for the number of
/// (Gaussian, tile) pairs only. Scratch comes from a pool that keeps up to 1 GiB per device.
CORE_EXPORT void rasterize_cuda(core::Tensor<const float, 2> means, core::Tensor<const float, 2> quats, core::Tensor<const float, 2> scales,
                                core::Tensor<const float, 1> opacities, core::Tensor<const float, 3> colors,
                                core::Tensor<const float, 3> viewmats, core::Tensor<const float, 3> Ks,
                                std::optional<core::Tensor<const float, 2>> backgrounds, double near_plane, double far_plane,
                                double radius_clip, double eps2d, double max_alpha, core::Tensor<float, 4> out_colors,
                                core::Tensor<float, 3> out_alphas, core::Stream stream);
#endif

}  // namespace core_splatting
