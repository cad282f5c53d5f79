// core_splatting/dynamic.hpp - 4D Gaussians (Yang et al., arXiv 2310.10642): their slice at a time, and how much they vary
// in time (Yuan et al., arXiv 2503.16422).
//
// A 4D Gaussian has a mean (x, y, z, t) and the covariance (R diag(scales)) (R diag(scales))^T, where R is the product of
// the left and the right isoclinic rotation of two quaternions, normalised, its axes in the order x, y, z, t.
#pragma once
#include <core_splatting/rasterize.hpp>

namespace core_splatting {

/// The 3D Gaussians that N 4D Gaussians, or the M of them in `indices`, are at `time`.
///
/// means[N,4], scales[N,4], quats_l[N,4], quats_r[N,4] (any length but zero), opacities[N]; indices[M]: rising, all M = N
/// if left out. With S = covariance_tt, d = time - mean_t and the temporal weight p = exp(-d^2 / (2 (S + prefilter_var))):
/// out_means[M,3] = mean_xyz + covariance_xyz,t d / S; out_covars[M,6]: covariance_xyz - covariance_xyz,t
/// covariance_t,xyz / S (xx, xy, xz, yy, yz, zz); out_opacities[M] = p opacity; out_weights[M] = p. Where p <= min_weight
/// all of them are 0: such a Gaussian is culled. Throws ValueError for a scalar out of range and, on the CPU, for
/// indices that do not rise or lie outside [0, N) (on CUDA one outside gives zeros).
CORE_EXPORT void slice_4d(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                          std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight, double prefilter_var,
                          Out<2> out_means, Out<2> out_covars, Out<1> out_opacities, Out<1> out_weights);

/// The gradient of `slice_4d`: v_out_* are derivatives of a loss by its outputs; v_means .. v_opacities, those by its
/// inputs, are written whole, 0 for Gaussians that are culled or not in `indices`.
CORE_EXPORT void slice_4d_backward(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                                   std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                                   double prefilter_var, In<2> v_out_means, In<2> v_out_covars, In<1> v_out_opacities, Out<2> v_means,
                                   Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities);

/// Renders N 4D Gaussians, or the M of them in `indices`, at `time` into C cameras: what `slice_4d`, `spherical_harmonics` and
/// `rasterize` give one after the other, but a Gaussian is sliced where it is projected, and one that no camera sees is not coloured.
///
/// means .. prefilter_var: as in `slice_4d`. Either colors[1,M,D], or one set for each camera [C,M,D]; or coeffs[N,K,D], those of the 4D
/// spherindrical harmonics of `degree` and `time_degree` as in `spherical_harmonics`, with the phases (mean_t - time) / duration.
/// viewmats .. camera_model, out_colors, out_alphas and workspace: as in `rasterize`, with E channels: the D and, with `depth`, that of the
/// Gaussian's centre in the camera. seen[C,M,E]: with coeffs or `depth`, the channels, written where a camera sees the Gaussian, for the
/// gradient. Throws what these three throw.
CORE_EXPORT void rasterize_4d(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                              std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                              double prefilter_var, MaybeIn<3> colors, MaybeIn<3> coeffs, std::int64_t degree, std::int64_t time_degree,
                              double duration, bool depth, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds, double near_plane,
                              double far_plane, double radius_clip, double eps2d, double max_alpha, bool antialiased,
                              const char* camera_model, Out<4> out_colors, Out<3> out_alphas, MaybeOut<3> seen,
                              MaybeOutWorkspace workspace);

/// The gradient of `rasterize_4d`: v_means[N,4] .. v_opacities[N] are written whole, 0 for Gaussians that no camera sees.
///
/// colors: as they were given or, with coeffs or `depth`, `seen`; v_colors as colors without coeffs, of D channels, or v_coeffs as coeffs;
/// image .. deterministic, v_viewmats and v_means2d: as in `rasterize_backward`, by the rows. What is known of a sliced Gaussian is passed
/// on to the 4D one where it is found; it is in no array.
CORE_EXPORT void rasterize_4d_backward(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                                       std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                                       double prefilter_var, In<3> colors, MaybeIn<3> coeffs, std::int64_t degree, std::int64_t time_degree,
                                       double duration, bool depth, In<3> viewmats, In<3> Ks, double near_plane, double far_plane,
                                       double radius_clip, double eps2d, double max_alpha, bool antialiased, const char* camera_model,
                                       In<4> image, In<3> alphas, In<4> v_image, MaybeIn<3> v_alphas, MaybeWorkspace workspace,
                                       bool deterministic, Out<2> v_means, Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r,
                                       Out<1> v_opacities, MaybeOut<3> v_colors, MaybeOut<3> v_coeffs, MaybeOut<3> v_viewmats,
                                       MaybeOut<3> v_means2d);

/// out[N] = sum over times[T] of 1 / (0.5 tanh(|p''(t)|) + 0.5), p'' the second derivative of the temporal weight
/// (prefilter_var 0): the temporal part of the spatial-temporal variation score, each term in [1, 2].
CORE_EXPORT void temporal_variation(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> times, Out<1> out);

#if defined(CORE_WITH_CUDA)
CORE_EXPORT void slice_4d_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                               std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                               double prefilter_var, Out<2> out_means, Out<2> out_covars, Out<1> out_opacities, Out<1> out_weights,
                               core::Stream stream);
CORE_EXPORT void slice_4d_backward_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                                        std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                                        double prefilter_var, In<2> v_out_means, In<2> v_out_covars, In<1> v_out_opacities, Out<2> v_means,
                                        Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities, core::Stream stream);
CORE_EXPORT void rasterize_4d_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                                   std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                                   double prefilter_var, MaybeIn<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                                   std::int64_t time_degree, double duration, bool depth, In<3> viewmats, In<3> Ks, MaybeIn<2> backgrounds,
                                   double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha,
                                   bool antialiased, const char* camera_model, Out<4> out_colors, Out<3> out_alphas, MaybeOut<3> seen,
                                   MaybeOutWorkspace workspace, core::Stream stream);
CORE_EXPORT void rasterize_4d_backward_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities,
                                            std::optional<core::Tensor<const std::int64_t, 1>> indices, double time, double min_weight,
                                            double prefilter_var, In<3> colors, MaybeIn<3> coeffs, std::int64_t degree,
                                            std::int64_t time_degree, double duration, bool depth, In<3> viewmats, In<3> Ks,
                                            double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha,
                                            bool antialiased, const char* camera_model, In<4> image, In<3> alphas, In<4> v_image,
                                            MaybeIn<3> v_alphas, MaybeWorkspace workspace, bool deterministic, Out<2> v_means,
                                            Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities, MaybeOut<3> v_colors,
                                            MaybeOut<3> v_coeffs, MaybeOut<3> v_viewmats, MaybeOut<3> v_means2d, core::Stream stream);
CORE_EXPORT void temporal_variation_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> times, Out<1> out,
                                         core::Stream stream);
#endif

}  // namespace core_splatting
