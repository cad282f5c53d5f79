// core_diffusion/moe.hpp - mixture-of-experts layers of diffusion transformers
// (Expert Race, arXiv 2503.16057; DiffMoE, arXiv 2503.14487).
//
// A router is a selection mask [T,E] of tokens and experts; all routers differ in the rows in which the best
// scores are taken only: tokens (token choice), experts (expert choice, DiffMoE) or one row of all (race).
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {

/// Marks the k largest scores of each row, exactly k, by radix selection.
///
/// scores[R,C]: any value but NaN; -0 equals 0. Of equal scores those of lower columns are taken first.
/// k in 0..C. mask[R,C]: the selection; kth[R]: the k-th largest score, +inf where k = 0.
/// Throws ValueError: k out of range, NaN (names row and column).
CORE_EXPORT void topk_mask(core::Tensor<const float, 2> scores, std::int64_t k, core::Tensor<bool, 2> mask, core::Tensor<float, 1> kth);
CORE_EXPORT void topk_mask_f64(core::Tensor<const double, 2> scores, std::int64_t k, core::Tensor<bool, 2> mask,
                               core::Tensor<double, 1> kth);

/// Lists the tokens of each expert.
///
/// mask[T,E]: the selection. offsets[O]: O = E + 1, expert e has the entries offsets[e] .. offsets[e+1] - 1 of
/// tokens[A]: its tokens in ascending order; entries past offsets[E] are -1.
/// Throws ValueError: O is not E + 1, or more than A pairs are selected.
CORE_EXPORT void moe_route(core::Tensor<const bool, 2> mask, core::Tensor<std::int64_t, 1> offsets, core::Tensor<std::int64_t, 1> tokens);

/// out[t] = sum over the experts e of token t of gates[t,e] (down[e] act(up[e] x[t] + up_bias[e]) + down_bias[e]).
///
/// x[T,D]; tokens[A], offsets[O]: as of moe_route; gates[T,E]: weights, read where selected; up[E,H,D], down[E,D,H]:
/// the experts' matrices, rows are outputs; biases are optional. activation: "gelu_tanh" or "silu".
/// hidden[P,H], P = A: optional, takes the values before the activation, which the backward pass needs; entries past
/// offsets[E] are 0. out[T,D]. The experts' shares are added in their order: the result does not depend on threads.
/// Throws ValueError: O is not E + 1, offsets that do not ascend from 0 to at most A, tokens of an expert that
/// do not ascend strictly or are not in 0..T-1, an unknown activation.
CORE_EXPORT void expert_ffn(core::Tensor<const float, 2> x, core::Tensor<const std::int64_t, 1> tokens,
                            core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const float, 2> gates,
                            core::Tensor<const float, 3> up, std::optional<core::Tensor<const float, 2>> up_bias,
                            core::Tensor<const float, 3> down, std::optional<core::Tensor<const float, 2>> down_bias,
                            const char* activation, std::optional<core::Tensor<float, 2>> hidden, core::Tensor<float, 2> out);

/// The derivatives of expert_ffn. dout[T,D]: the gradient of out; hidden[P,H]: what the forward pass stored. The
/// biases' derivatives are optional.
/// All outputs are written whole: dgates is 0 where not selected, an expert without tokens has gradient 0.
/// Throws as expert_ffn.
CORE_EXPORT void expert_ffn_backward(core::Tensor<const float, 2> dout, core::Tensor<const float, 2> x,
                                     core::Tensor<const std::int64_t, 1> tokens, core::Tensor<const std::int64_t, 1> offsets,
                                     core::Tensor<const float, 2> gates, core::Tensor<const float, 3> up, core::Tensor<const float, 3> down,
                                     std::optional<core::Tensor<const float, 2>> down_bias, core::Tensor<const float, 2> hidden,
                                     const char* activation, core::Tensor<float, 2> dx, core::Tensor<float, 2> dgates,
                                     core::Tensor<float, 3> dup, std::optional<core::Tensor<float, 2>> dup_bias,
                                     core::Tensor<float, 3> ddown, std::optional<core::Tensor<float, 2>> ddown_bias);

/// Rows of `hidden` for A pairs on CUDA, where each expert's rows fill whole tiles of 128.
inline std::int64_t padded_rows(std::int64_t pairs, std::int64_t experts) { return (pairs / 128 + experts) * 128; }

#if defined(CORE_WITH_CUDA)
/// topk_mask on a CUDA device, without synchronisation: NaN is not refused, it counts as below all numbers.
CORE_EXPORT void topk_mask_cuda(core::Tensor<const float, 2> scores, std::int64_t k, core::Tensor<bool, 2> mask, core::Tensor<float, 1> kth,
                                core::Stream stream);

/// moe_route on a CUDA device, without synchronisation: pairs beyond A are not refused but left out, and offsets end at A.
CORE_EXPORT void moe_route_cuda(core::Tensor<const bool, 2> mask, core::Tensor<std::int64_t, 1> offsets,
                                core::Tensor<std::int64_t, 1> tokens, core::Stream stream);

/// expert_ffn and its derivatives on a GPU of compute capability 8.0 or more, without synchronisation. Sums are held in
/// float, those of doubles in double. hidden[P,H]: P = padded_rows(A, E), in an order of its own. What the lists hold is
/// not checked; tokens past offsets[E] are not read. Throws NotImplementedError: an older GPU, tensors that are not
/// contiguous or do not begin at a multiple of 16 bytes.
template <class T>
void expert_ffn_cuda(core::Tensor<const T, 2> x, core::Tensor<const std::int64_t, 1> tokens, core::Tensor<const std::int64_t, 1> offsets,
                     core::Tensor<const T, 2> gates, core::Tensor<const T, 3> up, std::optional<core::Tensor<const T, 2>> up_bias,
                     core::Tensor<const T, 3> down, std::optional<core::Tensor<const T, 2>> down_bias, const char* activation,
                     std::optional<core::Tensor<T, 2>> hidden, core::Tensor<T, 2> out, core::Stream stream);
template <class T>
void expert_ffn_backward_cuda(core::Tensor<const T, 2> dout, core::Tensor<const T, 2> x, core::Tensor<const std::int64_t, 1> tokens,
                              core::Tensor<const std::int64_t, 1> offsets, core::Tensor<const T, 2> gates, core::Tensor<const T, 3> up,
                              core::Tensor<const T, 3> down, std::optional<core::Tensor<const T, 2>> down_bias,
                              core::Tensor<const T, 2> hidden, const char* activation, core::Tensor<T, 2> dx, core::Tensor<T, 2> dgates,
                              core::Tensor<T, 3> dup, std::optional<core::Tensor<T, 2>> dup_bias, core::Tensor<T, 3> ddown,
                              std::optional<core::Tensor<T, 2>> ddown_bias, core::Stream stream);
extern template CORE_EXPORT decltype(expert_ffn_cuda<core::bfloat16>) expert_ffn_cuda<core::bfloat16>;
extern template CORE_EXPORT decltype(expert_ffn_cuda<core::float16>) expert_ffn_cuda<core::float16>;
extern template CORE_EXPORT decltype(expert_ffn_cuda<float>) expert_ffn_cuda<float>;
extern template CORE_EXPORT decltype(expert_ffn_cuda<double>) expert_ffn_cuda<double>;
extern template CORE_EXPORT decltype(expert_ffn_backward_cuda<core::bfloat16>) expert_ffn_backward_cuda<core::bfloat16>;
extern template CORE_EXPORT decltype(expert_ffn_backward_cuda<core::float16>) expert_ffn_backward_cuda<core::float16>;
extern template CORE_EXPORT decltype(expert_ffn_backward_cuda<float>) expert_ffn_backward_cuda<float>;
extern template CORE_EXPORT decltype(expert_ffn_backward_cuda<double>) expert_ffn_backward_cuda<double>;
#endif
}  // namespace core_diffusion
