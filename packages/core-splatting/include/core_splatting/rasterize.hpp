// core_splatting/rasterize.hpp - rasterisation of 3D Gaussians (Kerbl et al., arXiv 2308.04079) and its gradient.
//
// A Gaussian is projected to the ellipse of EWA splatting (its covariance through the Jacobian of the
// camera's map, plus `eps2d` pixels^2), and the ellipses are blended front to back in the order of the
// depth of their centres: alpha = min(max_alpha, opacity * exp(-sigma)), where 2 sigma is the squared
// Mahalanobis distance of the pixel's centre. Contributions with alpha < 1/255 or farther than 3.33 standard
// deviations are skipped; a pixel is finished by the Gaussian that would bring its transmittance to 1e-4 or
// less, which itself does not contribute.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_splatting {

template <int N>
using In = core::Tensor<const float, N>;
template <int N>
using Out = core::Tensor<float, N>;
template <int N>
using MaybeIn = std::optional<In<N>>;
template <int N>
using MaybeOut = std::optional<Out<N>>;
using MaybeWorkspace = std::optional<core::Tensor<const std::int32_t, 1>>;
using MaybeOutWorkspace = std::optional<core::Tensor<std::int32_t, 1>>;

/// Renders N Gaussians into C cameras.
///
/// scenes: how many scenes these are. Each has N / scenes Gaussians and C / scenes cameras, one scene's after the other's, and
/// its cameras see its own Gaussians.
/// means[N,3]: centres in world units; quats[N,4]: rotations (w, x, y, z), of any length but zero;
/// scales[N,3]: standard deviations along the rotated axes; covars[N,6]: in place of both, the covariances
/// (xx, xy, xz, yy, yz, zz); opacities[N] in [0, 1];
/// colors[1,N,D], or one set for each camera [C,N / scenes,D]: D channels of any meaning;
/// viewmats[C,4,4]: world to camera, x right, y down, z forward (the last row is not read);
/// Ks[C,3,3]: camera matrices in pixels, the first pixel's centre at (0.5, 0.5), skew is not read;
/// backgrounds[C,D]: what shows through, black if left out;
/// near_plane, far_plane: depths outside are culled; radius_clip: Gaussians whose extent is at most this many
/// pixels in both axes are culled; eps2d: variance in pixels^2 added to every ellipse; max_alpha in [1/255, 1);
/// antialiased: opacities are multiplied by the square root of the ratio of the determinants of the covariance
/// before and after eps2d (Yu et al., arXiv 2311.16493);
/// camera_model: "pinhole", "ortho" (x, y in world units times the focal length) or "fisheye" (equidistant).
/// out_colors[C,H,W,D], out_alphas[C,H,W]: written whole; workspace[S]: with CUDA, what the gradient would else make again,
/// of the size that `rasterize_workspace` says (not touched on the CPU).
/// A Gaussian with a NaN, an infinity, a zero quaternion, or an opacity of at most 1/255 is culled.
/// Throws ValueError for a scalar out of range, colors of other sizes, an image side above 65,536 and, on the CPU, a
/// camera that is not finite or has no positive focal length (on CUDA such a camera shows the background).
/// The result does not depend on the number of threads.
CORE_EXPORT void rasterize(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                           In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip,
                           double eps2d, double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes,
                           Out<4> out_colors, Out<3> out_alphas, MaybeOutWorkspace workspace = std::nullopt);

/// The gradient of `rasterize`: what a loss gains by each input, given what it gains by each pixel.
///
/// means .. scenes: as in `rasterize`; image[C,H,W,D], alphas[C,H,W]: what it gave; v_image[C,H,W,D],
/// v_alphas[C,H,W]: derivatives of the loss by these (0 if v_alphas is left out); workspace[S]: what `rasterize` left there, if
/// it was given one; deterministic: on CUDA, whether two runs must agree to the bit, which takes more time and memory. Written
/// whole: v_means[N,3], v_quats[N,4] and v_scales[N,3] or v_covars[N,6], v_opacities[N], v_colors as colors and, if wanted,
/// v_viewmats[C,4,4] (last row 0), the derivatives by the inputs, summed over cameras; and, if wanted, v_means2d[C,N / scenes,2]:
/// those by the projected centre (x, y) in pixels, or 4 columns: and the sums over pixels of their absolute values (the "absgrad"
/// of Ye et al., arXiv 2404.10484). Culled Gaussians get 0, and so does an alpha
/// that max_alpha limits. By the background b it is the sum over pixels of (1 - alpha) v_image. Throws what `rasterize` throws. The result
/// does not depend on the number of threads.
CORE_EXPORT void rasterize_backward(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                    In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                                    double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, In<4> image,
                                    In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas, MaybeWorkspace workspace, bool deterministic,
                                    Out<2> v_means, MaybeOut<2> v_quats, MaybeOut<2> v_scales, MaybeOut<2> v_covars, Out<1> v_opacities,
                                    Out<3> v_colors, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d);

/// The size that the workspace of `rasterize` should have, for each of its scenes, for pictures of `width` x `height`: room for twice as
/// many (Gaussian, tile) pairs as such calls on the CUDA device `device` had lately. One that turns out too small costs time. Written:
/// out[1], in elements; 0 for device -1, the CPU, and without CUDA. Throws ValueError for sizes that `rasterize` refuses.
CORE_EXPORT void rasterize_workspace(std::int64_t cameras, std::int64_t gaussians, std::int64_t width, std::int64_t height,
                                     std::int64_t device, core::Tensor<std::int64_t, 1> out);

/// What `rasterize` makes of each Gaussian in each camera before blending, for pictures of `width` x `height`.
///
/// means[N,3] .. scenes: as in `rasterize`. Written whole, with n = N / scenes: means2d[C,n,2]: centres in pixels; radii[C,n,2]: half
/// axes of the box around the pixels that it reaches, rounded up, 0 if it is culled or reaches none (all else is then 0
/// too); depths[C,n]; conics[C,n,3]: the inverse covariance (xx, xy, yy) after eps2d; weights[C,n]: the opacity that
/// blending uses. Throws what `rasterize` throws.
CORE_EXPORT void project_gaussians(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                                   In<3> Ks, std::int64_t width, std::int64_t height, double near_plane, double far_plane,
                                   double radius_clip, double eps2d, bool antialiased, const char* camera_model, std::int64_t scenes,
                                   Out<3> means2d, core::Tensor<std::int32_t, 3> radii, Out<2> depths, Out<3> conics, Out<2> weights);

/// out[C,n] = the sum over pixels of a Gaussian's blending weight in each camera, times pixels[C,H,W], n = N / scenes.
///
/// means[N,3] .. scenes: as in `rasterize`, and so what it throws. The result does not depend on the number of threads.
CORE_EXPORT void contributions(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                               In<3> Ks, In<3> pixels, double near_plane, double far_plane, double radius_clip, double eps2d,
                               double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, Out<2> out);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA tensors. Work is queued on `stream`; the host does not wait. More than four channels are blended by the
/// tensor cores with a relative error of about 2^-16. Scratch comes from a pool that keeps up to 1 GiB per device.
CORE_EXPORT void rasterize_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip,
                                double eps2d, double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes,
                                Out<4> out_colors, Out<3> out_alphas, MaybeOutWorkspace workspace, core::Stream stream);
/// The same with colours in float16 and, of more than four channels, products of float16: an error of at most about a thousandth of
/// the largest colour, which must be less than 65,504.
CORE_EXPORT void rasterize_half_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities,
                                     core::Tensor<const core::float16, 3> colors, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds,
                                     double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha,
                                     bool antialiased, const char* camera_model, std::int64_t scenes,
                                     core::Tensor<core::float16, 4> out_colors, Out<3> out_alphas, MaybeOutWorkspace workspace,
                                     core::Stream stream);

/// The same on CUDA tensors, as `rasterize_cuda` works. At most 1024 channels, else NotImplementedError. Unless
/// `deterministic`, for which the host waits, sums over pixels are added in the order in which the device comes to them: the
/// last digits differ from run to run.
CORE_EXPORT void rasterize_backward_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                         In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                                         double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, In<4> image,
                                         In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas, MaybeWorkspace workspace, bool deterministic,
                                         Out<2> v_means, MaybeOut<2> v_quats, MaybeOut<2> v_scales, MaybeOut<2> v_covars,
                                         Out<1> v_opacities, Out<3> v_colors, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d,
                                         core::Stream stream);

CORE_EXPORT void project_gaussians_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities,
                                        In<3> viewmats, In<3> Ks, std::int64_t width, std::int64_t height, double near_plane,
                                        double far_plane, double radius_clip, double eps2d, bool antialiased, const char* camera_model,
                                        std::int64_t scenes, Out<3> means2d, core::Tensor<std::int32_t, 3> radii, Out<2> depths,
                                        Out<3> conics, Out<2> weights, core::Stream stream);

/// Sums are added in the order in which the device comes to them: the last digits differ from run to run.
CORE_EXPORT void contributions_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> viewmats,
                                    In<3> Ks, In<3> pixels, double near_plane, double far_plane, double radius_clip, double eps2d,
                                    double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, Out<2> out,
                                    core::Stream stream);
#endif

}  // namespace core_splatting
