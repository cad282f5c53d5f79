// core_llm_efficiency/xattention.hpp - block-sparse prefill attention that finds its blocks by antidiagonal sums
// (XAttention, arXiv 2503.16428, section 2).
//
// Sizes: B batch, H query heads, G key/value heads (H a multiple of G; head h reads h / (H / G)), N queries,
// M keys, D and E head dimensions of q/k and of v; QB = ceil(N / block), KB = ceil(M / block).
// With `causal`, queries are the last N of M positions (chunked prefill): query n sees keys 0..n + M - N, N <= M.
// `block` is a multiple of 16 in [16, 4096]. All results are independent of the number of threads.
// NaN and infinities follow the arithmetic: scores, and outputs of the query blocks that select them, become NaN.
// Scratch: one key/value head's k and v at a time.
#pragma once
#include <core/tensor.hpp>

namespace core_llm_efficiency {

/// Estimated attention mass of every block.
///
/// With S = stride, a tile is S queries by S keys, and its logit is the sum along its antidiagonal,
///   logit(i, j) = scale / S * sum_{r < S} q[iS + S-1-r] . k[jS + r]     (terms past the end of q or k are 0);
/// each row i of tiles is softmaxed over the keys' tiles (causal: those that start at or before the last
/// query of row i), and scores[..., I, J] is the sum of the probabilities of the tiles in block (I, J).
/// So a whole query block has row sum block / S. stride = 1 gives the exact mass of every block.
/// q[B,H,N,D], k[B,G,M,D] float32; stride >= 1 divides block; scale finite; scores[B,H,QB,KB] float32.
/// Throws ValueError on sizes, stride, block or scale out of these ranges.
CORE_EXPORT void antidiagonal_scores(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k, std::int64_t stride,
                                     std::int64_t block, double scale, bool causal, core::Tensor<float, 4> scores);

/// Chooses the blocks that every query block attends to.
///
/// causal: key block 0 (the sink) and the blocks that hold the query block's own positions come first, always
/// kept, their mass counted; then the other visible blocks by descending score, ties by lower index, each kept while
/// the mass before it is below thresholds[h] times the row's sum. Not causal: descending order alone; the best
/// block is always kept. A threshold >= 1 keeps all visible blocks, and so does a row with a NaN or infinite score.
/// scores[B,H,QB,KB] float32 >= 0; thresholds[H] float32 >= 0; mask[B,H,QB,KB] bool.
/// Throws ValueError on a negative or NaN threshold, a negative score, or sizes that do not fit q_len, k_len, block.
CORE_EXPORT void select_blocks(core::Tensor<const float, 4> scores, core::Tensor<const float, 1> thresholds, std::int64_t block,
                               std::int64_t q_len, std::int64_t k_len, bool causal, core::Tensor<bool, 4> mask);

/// Attention over the selected blocks: out = softmax(scale q k^T, over the keys of selected blocks) v.
///
/// mask[B,H,QB,KB]: which blocks are read. A query without any visible key gives zeros (lse -inf).
/// q[B,H,N,D], k[B,G,M,D], v[B,G,M,E] float32; scale finite; out[B,H,N,E] float32; lse[B,H,N] float32, optional:
/// the natural logarithm of the softmax denominator.
/// Throws ValueError on sizes, block or scale out of range.
CORE_EXPORT void block_sparse_attention(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k, core::Tensor<const float, 4> v,
                                        core::Tensor<const bool, 4> mask, std::int64_t block, double scale, bool causal,
                                        core::Tensor<float, 4> out, std::optional<core::Tensor<float, 3>> lse);

/// The gradients of block_sparse_attention, for training.
///
/// q to causal as there, out and lse what it gave; grad_out[B,H,N,E] and, optional, grad_lse[B,H,N] the gradients of these.
/// The weights are made again from lse, p = exp(scale q k^T - lse), and with delta = grad_out . out - grad_lse
///   grad_v = p^T grad_out,  ds = p (grad_out v^T - delta),  grad_q = scale ds k,  grad_k = scale ds^T q,
/// the last two of keys summed over the query heads that read them (FlashAttention, arXiv 2205.14135, algorithm 4).
/// Scratch: one head's q, k, v and grad_out twice. Throws ValueError as block_sparse_attention does.
CORE_EXPORT void block_sparse_attention_backward(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k,
                                                 core::Tensor<const float, 4> v, core::Tensor<const bool, 4> mask, std::int64_t block,
                                                 double scale, bool causal, core::Tensor<const float, 4> out,
                                                 core::Tensor<const float, 3> lse, core::Tensor<const float, 4> grad_out,
                                                 std::optional<core::Tensor<const float, 3>> grad_lse, core::Tensor<float, 4> grad_q,
                                                 core::Tensor<float, 4> grad_k, core::Tensor<float, 4> grad_v);

#if defined(CORE_WITH_CUDA)
// On CUDA (compute capability 8.0 and above), q, k, v and out are bfloat16 or float16 and sums are float32; scores and
// lse are float32. Work is queued on `stream` and the host does not wait. Scratch comes from a pool that keeps up to
// 1 GiB per device. Sizes are checked as above; values are not read by the host:

/// antidiagonal_scores; at most 2^30 positions.
CORE_EXPORT void antidiagonal_scores_bf16(core::Tensor<const core::bfloat16, 4> q, core::Tensor<const core::bfloat16, 4> k,
                                          std::int64_t stride, std::int64_t block, double scale, bool causal, core::Tensor<float, 4> scores,
                                          core::Stream stream);
CORE_EXPORT void antidiagonal_scores_fp16(core::Tensor<const core::float16, 4> q, core::Tensor<const core::float16, 4> k,
                                          std::int64_t stride, std::int64_t block, double scale, bool causal, core::Tensor<float, 4> scores,
                                          core::Stream stream);

/// select_blocks; a row with a negative score, or a negative or NaN threshold, keeps all its visible blocks.
CORE_EXPORT void select_blocks_cuda(core::Tensor<const float, 4> scores, core::Tensor<const float, 1> thresholds, std::int64_t block,
                                    std::int64_t q_len, std::int64_t k_len, bool causal, core::Tensor<bool, 4> mask, core::Stream stream);

/// block_sparse_attention; D and E at most 256.
CORE_EXPORT void block_sparse_attention_bf16(core::Tensor<const core::bfloat16, 4> q, core::Tensor<const core::bfloat16, 4> k,
                                             core::Tensor<const core::bfloat16, 4> v, core::Tensor<const bool, 4> mask, std::int64_t block,
                                             double scale, bool causal, core::Tensor<core::bfloat16, 4> out,
                                             std::optional<core::Tensor<float, 3>> lse, core::Stream stream);
CORE_EXPORT void block_sparse_attention_fp16(core::Tensor<const core::float16, 4> q, core::Tensor<const core::float16, 4> k,
                                             core::Tensor<const core::float16, 4> v, core::Tensor<const bool, 4> mask, std::int64_t block,
                                             double scale, bool causal, core::Tensor<core::float16, 4> out,
                                             std::optional<core::Tensor<float, 3>> lse, core::Stream stream);

/// block_sparse_attention_backward; D and E at most 256. The same bits at every run.
CORE_EXPORT void block_sparse_attention_backward_bf16(core::Tensor<const core::bfloat16, 4> q, core::Tensor<const core::bfloat16, 4> k,
                                                      core::Tensor<const core::bfloat16, 4> v, core::Tensor<const bool, 4> mask,
                                                      std::int64_t block, double scale, bool causal,
                                                      core::Tensor<const core::bfloat16, 4> out, core::Tensor<const float, 3> lse,
                                                      core::Tensor<const core::bfloat16, 4> grad_out,
                                                      std::optional<core::Tensor<const float, 3>> grad_lse,
                                                      core::Tensor<core::bfloat16, 4> grad_q, core::Tensor<core::bfloat16, 4> grad_k,
                                                      core::Tensor<core::bfloat16, 4> grad_v, core::Stream stream);
CORE_EXPORT void block_sparse_attention_backward_fp16(core::Tensor<const core::float16, 4> q, core::Tensor<const core::float16, 4> k,
                                                      core::Tensor<const core::float16, 4> v, core::Tensor<const bool, 4> mask,
                                                      std::int64_t block, double scale, bool causal,
                                                      core::Tensor<const core::float16, 4> out, core::Tensor<const float, 3> lse,
                                                      core::Tensor<const core::float16, 4> grad_out,
                                                      std::optional<core::Tensor<const float, 3>> grad_lse,
                                                      core::Tensor<core::float16, 4> grad_q, core::Tensor<core::float16, 4> grad_k,
                                                      core::Tensor<core::float16, 4> grad_v, core::Stream stream);
#endif

}  // namespace core_llm_efficiency
