// core_splatting/harmonics.hpp - colours that depend on the direction of view and on time: spherical harmonics (Kerbl et
// al., arXiv 2308.04079), and their product with a cosine series in time (Yang et al., arXiv 2310.10642, section 3.2).
#pragma once
#include <core_splatting/rasterize.hpp>

namespace core_splatting {

/// out[c,n] = sum over i of cos(2 pi i phases[n]) sum over k of Y_k(direction) coeffs[., n, 16 i + k].
///
/// degree: 0 to 3, the first (degree + 1)^2 real harmonics Y_k, in the order and with the signs of the 3DGS code;
/// time_degree: 0 to 2, i runs from 0 to it; dirs[N,3]: directions of any length but zero, the same for all C; or, with
/// viewmats[C,4,4] (world to camera), places that are seen from each camera's centre; coeffs: coefficients;
/// phases[N]: (mu_t - t) / T, needed if time_degree > 0; masks: where false, the output is 0.
/// as_color: out is max(0, sum + 0.5), as 3DGS makes colours; scenes: as in `rasterize`, each with n = N / scenes places and
/// C / scenes cameras; masks[C,n], coeffs [1,N,K,D] or [C,n,K,D]. out[C,n,D] is written whole.
/// Throws ValueError for a degree out of range, too few coefficients, missing phases and sizes that do not fit.
CORE_EXPORT void spherical_harmonics(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                     MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color,
                                     std::int64_t scenes, Out<3> out);

/// The gradient: degree .. scenes as in `spherical_harmonics`; v_out[C,n,D]: derivatives of a loss by its output.
/// Written whole: v_dirs[N,3], v_coeffs as coeffs, v_viewmats[C,4,4] (0 without viewmats) and v_phases[N].
CORE_EXPORT void spherical_harmonics_backward(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                              MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color,
                                              std::int64_t scenes, In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs, Out<3> v_viewmats,
                                              Out<1> v_phases);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA tensors; work is queued on `stream`.
CORE_EXPORT void spherical_harmonics_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs, MaybeIn<3> viewmats,
                                          MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks, bool as_color,
                                          std::int64_t scenes, Out<3> out, core::Stream stream);
CORE_EXPORT void spherical_harmonics_backward_cuda(std::int64_t degree, std::int64_t time_degree, In<2> dirs, In<4> coeffs,
                                                   MaybeIn<3> viewmats, MaybeIn<1> phases, std::optional<core::Tensor<const bool, 2>> masks,
                                                   bool as_color, std::int64_t scenes, In<3> v_out, Out<2> v_dirs, Out<4> v_coeffs,
                                                   Out<3> v_viewmats, Out<1> v_phases, core::Stream stream);
#endif

}  // namespace core_splatting
