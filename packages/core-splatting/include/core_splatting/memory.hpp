// core_splatting/memory.hpp - the memory of M3 (Zou et al., arXiv 2503.16413): the rows of many features that stand for
// all of them, and the attention by which Gaussians' few channels call them back.
#pragma once
#include <core/tensor.hpp>

#include <optional>

namespace core_splatting {

/// out[P,D] = softmax(queries keys^T) values, row by row; the P x T weights never exist at once.
///
/// queries[P,L], keys[T,L], values[T,D]; log_sums[P]: the logarithm of each row's sum of exponentials, which the gradient
/// takes. Without keys, rows are 0 and log_sums -infinity. The same on every run and for any number of threads.
CORE_EXPORT void memory_attention(core::Tensor<const float, 2> queries, core::Tensor<const float, 2> keys,
                                  core::Tensor<const float, 2> values, core::Tensor<float, 2> out, core::Tensor<float, 1> log_sums);

/// The gradient of `memory_attention`: out and log_sums as it wrote them, v_out[P,D] the derivatives of a loss by out;
/// v_queries[P,L], v_keys[T,L] and, if given, v_values[T,D] are written whole.
CORE_EXPORT void memory_attention_backward(core::Tensor<const float, 2> queries, core::Tensor<const float, 2> keys,
                                           core::Tensor<const float, 2> values, core::Tensor<const float, 2> out,
                                           core::Tensor<const float, 1> log_sums, core::Tensor<const float, 2> v_out,
                                           core::Tensor<float, 2> v_queries, core::Tensor<float, 2> v_keys,
                                           std::optional<core::Tensor<float, 2>> v_values);

/// Algorithm 1 of arXiv 2503.16413: the rows of features[N,D] are visited in order; one that is not taken becomes a
/// component, and all rows whose cosine with it is at least `threshold` are taken, but only if none of these is taken yet.
///
/// selected[N]: true for components. Cosines are those of float64 (the sums that float32 cannot decide are done again), a
/// row's with itself is 1, and one within 1e-12 of the threshold reaches it. A row of zeros is never a component. Throws
/// ValueError for values that are not finite, squares that leave float32, or a threshold outside (0, 1].
CORE_EXPORT void principal_components(core::Tensor<const float, 2> features, double threshold, core::Tensor<bool, 1> selected);

#if defined(CORE_WITH_CUDA)
/// The same on CUDA tensors; work is queued on `stream`.
CORE_EXPORT void memory_attention_cuda(core::Tensor<const float, 2> queries, core::Tensor<const float, 2> keys,
                                       core::Tensor<const float, 2> values, core::Tensor<float, 2> out, core::Tensor<float, 1> log_sums,
                                       core::Stream stream);
CORE_EXPORT void memory_attention_backward_cuda(core::Tensor<const float, 2> queries, core::Tensor<const float, 2> keys,
                                                core::Tensor<const float, 2> values, core::Tensor<const float, 2> out,
                                                core::Tensor<const float, 1> log_sums, core::Tensor<const float, 2> v_out,
                                                core::Tensor<float, 2> v_queries, core::Tensor<float, 2> v_keys,
                                                std::optional<core::Tensor<float, 2>> v_values, core::Stream stream);
/// The host waits for the device.
CORE_EXPORT void principal_components_cuda(core::Tensor<const float, 2> features, double threshold, core::Tensor<bool, 1> selected,
                                           core::Stream stream);
#endif

}  // namespace core_splatting
