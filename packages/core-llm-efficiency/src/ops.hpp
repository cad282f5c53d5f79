// The operators of core-llm-efficiency.
#pragma once
#include <core/op.hpp>

#include <core_llm_efficiency/xattention.hpp>

namespace core_llm_efficiency {
inline constexpr auto ops = core::op_set(
    core::op<"antidiagonal_scores", &antidiagonal_scores CORE_IF_CUDA(&antidiagonal_scores_bf16, &antidiagonal_scores_fp16)>(
        "Estimated attention mass of every block: softmax of antidiagonally sampled tile logits, summed over blocks.",
        {"q[B,H,N,D]", "k[B,G,M,D]", "stride", "block", "scale", "causal", "scores[B,H,QB,KB]"},
        {.paper = "2503.16428", .ns_per_element = 50}),
    core::op<"select_blocks", &select_blocks CORE_IF_CUDA(&select_blocks_cuda)>(
        "The fewest blocks of every query block whose estimated mass reaches a share of the whole; sink and diagonal always.",
        {"scores[B,H,QB,KB]", "thresholds[H]", "block", "q_len", "k_len", "causal", "mask[B,H,QB,KB]"},
        {.paper = "2503.16428", .ns_per_element = 20}),
    core::op<"block_sparse_attention", &block_sparse_attention CORE_IF_CUDA(&block_sparse_attention_bf16, &block_sparse_attention_fp16)>(
        "Softmax attention over the selected blocks only; grouped-query heads, right-aligned causal mask.",
        {"q[B,H,N,D]", "k[B,G,M,D]", "v[B,G,M,E]", "mask[B,H,QB,KB]", "block", "scale", "causal", "out[B,H,N,E]", "lse[B,H,N]"},
        {.paper = "2503.16428", .ns_per_element = 100}));
}  // namespace core_llm_efficiency
