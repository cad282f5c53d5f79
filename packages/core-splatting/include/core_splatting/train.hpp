// core_splatting/train.hpp - what a trainer of Gaussians does at every step beside rendering: the structural similarity
// of two images with its gradient, and Adam for the Gaussians that were seen.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_splatting {

/// The structural similarity of Wang et al. (2004) as Kerbl et al. (arXiv 2308.04079) use it: per channel, 11x11 Gaussian
/// window of deviation 1.5, zeros outside the image, C1 = 0.01^2, C2 = 0.03^2 (values in [0, 1]).
///
/// image, target [B,C,H,W]; out[B,C,H,W]: the similarity at each pixel. partials[3,B,C,H,W], if given: the derivatives of a
/// pixel's similarity by the windowed mean of the image, of its square, and of its product with the target, which
/// `ssim_backward` takes. All outputs are written whole. The result does not depend on the number of threads.
CORE_EXPORT void ssim(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<float, 4> out,
                      std::optional<core::Tensor<float, 5>> partials);

/// What a loss gains by the image, given what it gains by each pixel's similarity: v_out[B,C,H,W], v_image[B,C,H,W].
CORE_EXPORT void ssim_backward(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target,
                               core::Tensor<const float, 5> partials, core::Tensor<const float, 4> v_out, core::Tensor<float, 4> v_image);

/// One step of Adam (Kingma and Ba, arXiv 1412.6980) on the rows that are visible; the others keep values, moments and count.
///
/// param, grad, exp_avg, exp_avg_sq [N,K]; steps[N]: how many steps each row has had, one more afterwards; visible[N]; rates[K]: what
/// the learning rate of a column is times, 1 if left out.
/// A row goes as under torch.optim.Adam run on the steps at which it was visible. Throws ValueError for a scalar out of
/// range (lr and eps at least 0, betas in [0, 1)) and, on the CPU, for a negative count.
CORE_EXPORT void selective_adam(core::Tensor<float, 2> param, core::Tensor<const float, 2> grad, core::Tensor<float, 2> exp_avg,
                                core::Tensor<float, 2> exp_avg_sq, core::Tensor<std::int32_t, 1> steps, core::Tensor<const bool, 1> visible,
                                std::optional<core::Tensor<const float, 1>> rates, double lr, double beta1, double beta2, double eps);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA tensors; work is queued on `stream`.
CORE_EXPORT void ssim_cuda(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<float, 4> out,
                           std::optional<core::Tensor<float, 5>> partials, core::Stream stream);
CORE_EXPORT void ssim_backward_cuda(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target,
                                    core::Tensor<const float, 5> partials, core::Tensor<const float, 4> v_out,
                                    core::Tensor<float, 4> v_image, core::Stream stream);
CORE_EXPORT void selective_adam_cuda(core::Tensor<float, 2> param, core::Tensor<const float, 2> grad, core::Tensor<float, 2> exp_avg,
                                     core::Tensor<float, 2> exp_avg_sq, core::Tensor<std::int32_t, 1> steps,
                                     core::Tensor<const bool, 1> visible, std::optional<core::Tensor<const float, 1>> rates, double lr,
                                     double beta1, double beta2, double eps, core::Stream stream);
#endif

}  // namespace core_splatting
