// The operators of core-llm-efficiency.
#pragma once
#include <core/op.hpp>

#include <core_llm_efficiency/state_space.hpp>
#include <core_llm_efficiency/vidkv.hpp>
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
        {.paper = "2503.16428", .ns_per_element = 100}),
    core::op<"block_sparse_attention_backward",
             &block_sparse_attention_backward CORE_IF_CUDA(&block_sparse_attention_backward_bf16, &block_sparse_attention_backward_fp16)>(
        "The gradients of block-sparse attention, its weights made again from the logarithm of the softmax denominator.",
        {"q[B,H,N,D]", "k[B,G,M,D]", "v[B,G,M,E]", "mask[B,H,QB,KB]", "block", "scale", "causal", "out[B,H,N,E]", "lse[B,H,N]",
         "grad_out[B,H,N,E]", "grad_lse[B,H,N]", "grad_q[B,H,N,D]", "grad_k[B,G,M,D]", "grad_v[B,G,M,E]"},
        {.paper = "2503.16428", .ns_per_element = 200}),
    core::op<"selective_scan", &selective_scan CORE_IF_CUDA(&selective_scan_fp32, &selective_scan_fp16, &selective_scan_bf16)>(
        "Mamba-1's selective scan with carried state.",
        {"u[b,d,l]", "delta[b,d,l]", "A[d,n]", "B[b,g,n,l]", "C[b,g,n,l]", "initial_state[b,d,n]", "out[b,d,l]", "last_state[b,d,n]"},
        {.paper = "2312.00752", .ns_per_element = 10}),
    core::op<"selective_scan_backward", &selective_scan_backward CORE_IF_CUDA(&selective_scan_backward_fp32, &selective_scan_backward_fp16,
                                                                              &selective_scan_backward_bf16)>(
        "The gradients of Mamba-1's selective scan.",
        {"u[b,d,l]", "delta[b,d,l]", "A[d,n]", "B[b,g,n,l]", "C[b,g,n,l]", "initial_state[b,d,n]", "grad_out[b,d,l]",
         "grad_last_state[b,d,n]", "grad_u[b,d,l]", "grad_delta[b,d,l]", "grad_A[d,n]", "grad_B[b,g,n,l]", "grad_C[b,g,n,l]",
         "grad_initial_state[b,d,n]"},
        {.paper = "2312.00752", .ns_per_element = 30}),
    core::op<"ssd_scan", &ssd_scan CORE_IF_CUDA(&ssd_scan_fp32, &ssd_scan_fp16, &ssd_scan_bf16)>(
        "Mamba-2's scan (SSD) with carried state, by chunks.",
        {"x[b,l,h,p]", "dt[b,l,h]", "A[h]", "B[b,l,g,n]", "C[b,l,g,n]", "initial_states[b,h,p,n]", "seq_idx[b,l]", "out[b,l,h,p]",
         "final_states[b,h,p,n]"},
        {.paper = "2405.21060", .ns_per_element = 10}),
    core::op<"ssd_scan_backward",
             &ssd_scan_backward CORE_IF_CUDA(&ssd_scan_backward_fp32, &ssd_scan_backward_fp16, &ssd_scan_backward_bf16)>(
        "The gradients of Mamba-2's scan.",
        {"x[b,l,h,p]", "dt[b,l,h]", "A[h]", "B[b,l,g,n]", "C[b,l,g,n]", "initial_states[b,h,p,n]", "seq_idx[b,l]", "grad_out[b,l,h,p]",
         "grad_final_states[b,h,p,n]", "grad_x[b,l,h,p]", "grad_dt[b,l,h]", "grad_A[h]", "grad_B[b,l,g,n]", "grad_C[b,l,g,n]",
         "grad_initial_states[b,h,p,n]"},
        {.paper = "2405.21060", .ns_per_element = 30}),
    core::op<"pack_keys", &pack_keys CORE_IF_CUDA(&pack_keys_fp32, &pack_keys_fp16, &pack_keys_bf16)>(
        "Packs keys: chosen channels at two bits, the signs of the others' Fourier coefficients.",
        {"x[B,G,N,D]", "channels[B,D]", "group", "planes[B,G,T,P]", "scales[B,G,S,D]", "zeros[B,G,S,C]"},
        {.paper = "2503.16257", .ns_per_element = 5}),
    core::op<"unpack_keys", &unpack_keys CORE_IF_CUDA(&unpack_keys_fp32, &unpack_keys_fp16, &unpack_keys_bf16)>(
        "The keys that pack_keys stored, in float32.",
        {"channels[B,D]", "group", "planes[B,G,T,P]", "scales[B,G,S,D]", "zeros[B,G,S,C]", "out[B,G,N,D]"},
        {.paper = "2503.16257", .ns_per_element = 5}),
    core::op<"pack_values", &pack_values CORE_IF_CUDA(&pack_values_fp32, &pack_values_fp16, &pack_values_bf16)>(
        "Packs values at three levels, five to a byte, or at two bits.",
        {"x[B,G,N,E]", "group", "gamma", "codes[B,G,N,W]", "scales[B,G,S,E]", "zeros[B,G,S,E]"},
        {.paper = "2503.16257", .ns_per_element = 5}),
    core::op<"unpack_values", &unpack_values CORE_IF_CUDA(&unpack_values_fp32, &unpack_values_fp16, &unpack_values_bf16)>(
        "The values that pack_values stored, in float32.", {"group", "codes[B,G,N,W]", "scales[B,G,S,E]", "zeros[B,G,S,E]", "out[B,G,N,E]"},
        {.paper = "2503.16257", .ns_per_element = 5}),
    core::op<"packed_attention", &packed_attention CORE_IF_CUDA(&packed_attention_fp32, &packed_attention_fp16, &packed_attention_bf16)>(
        "Attention of one query a head over packed keys and values, read packed, and recent ones in float32.",
        {"q[B,H,D]", "channels[B,D]", "group", "planes[B,G,T,P]", "scales[B,G,S,D]", "zeros[B,G,S,C]", "codes2[B,G,V,W2]",
         "scales2[B,G,S2,E]", "zeros2[B,G,S2,E]", "codes3[B,G,U,*]", "scales3[B,G,S3,E]", "recent_k[B,G,R,D]", "recent_v[B,G,R,E]",
         "seen[B,*]", "scale", "out[B,H,E]"},
        {.paper = "2503.16257", .ns_per_element = 100}));
}  // namespace core_llm_efficiency
