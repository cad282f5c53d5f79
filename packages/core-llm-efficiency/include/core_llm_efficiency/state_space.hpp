// core_llm_efficiency/state_space.hpp - the scans of Mamba-1 (arXiv 2312.00752, Algorithm 2) and Mamba-2 (SSD, arXiv
// 2405.21060, section 6), which the hybrid backbone of arXiv 2503.15558 is built of; forward and backward.
//
// Both carry a state: a scan cut anywhere, the second part starting from the first's last state, equals the whole; a
// decoding step is a scan of length 1. `delta` and `dt` arrive positive (after bias and softplus); exp(delta A) is the
// state's decay. Results do not depend on the number of threads. NaN and infinities follow the arithmetic along the scan
// (in ssd_scan also over the rest of their chunk). Gradients come back into given arrays, all of them written.
#pragma once
#include <core/tensor.hpp>

namespace core_llm_efficiency {

/// Mamba-1's selective scan, for every channel i of group i / (d / g) and every state j:
///   h[i,j](t) = exp(delta[i](t) A[i,j]) h[i,j](t-1) + delta[i](t) B[j](t) u[i](t),  out[i](t) = sum_j C[j](t) h[i,j](t).
/// u, delta, out[b,d,l]; A[d,n]; B, C[b,g,n,l], g divides d; initial_state[b,d,n] (zeros if absent); last_state[b,d,n].
/// All float32. Throws ValueError if g does not divide d.
CORE_EXPORT void selective_scan(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
                                core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                                std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<float, 3> out,
                                core::Tensor<float, 3> last_state);

/// Gradients of selective_scan from those of `out` and, if given, of `last_state`.
CORE_EXPORT void selective_scan_backward(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
                                         core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                                         std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<const float, 3> grad_out,
                                         std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<float, 3> grad_u,
                                         core::Tensor<float, 3> grad_delta, core::Tensor<float, 2> grad_A, core::Tensor<float, 4> grad_B,
                                         core::Tensor<float, 4> grad_C, core::Tensor<float, 3> grad_initial_state);

/// Mamba-2's scan, for every head h of group h / (heads / g), with one decay for the whole head:
///   S[p,j](t) = exp(dt(t) A) S[p,j](t-1) + dt(t) x[p](t) B[j](t),  out[p](t) = sum_j C[j](t) S[p,j](t).
/// x, out[b,l,h,p]; dt[b,l,h]; A[h]; B, C[b,l,g,n], g divides h; initial_states[b,h,p,n] (zeros if absent);
/// final_states[b,h,p,n]. All float32. seq_idx[b,l] int32, optional: the state starts from zero wherever it changes
/// along l (several sequences side by side); the initial state belongs to the first of them.
/// Computed in chunks of 64 steps as matrix products. Throws ValueError if g does not divide h, or n or p is above 256.
CORE_EXPORT void ssd_scan(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                          core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                          std::optional<core::Tensor<const float, 4>> initial_states,
                          std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<float, 4> out,
                          core::Tensor<float, 4> final_states);

/// Gradients of ssd_scan from those of `out` and, if given, of `final_states`.
CORE_EXPORT void ssd_scan_backward(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                                   core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                                   std::optional<core::Tensor<const float, 4>> initial_states,
                                   std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<const float, 4> grad_out,
                                   std::optional<core::Tensor<const float, 4>> grad_final_states, core::Tensor<float, 4> grad_x,
                                   core::Tensor<float, 3> grad_dt, core::Tensor<float, 1> grad_A, core::Tensor<float, 4> grad_B,
                                   core::Tensor<float, 4> grad_C, core::Tensor<float, 4> grad_initial_states);

#if defined(CORE_WITH_CUDA)
// On CUDA (compute capability 8.0 and above) u or x, B, C and out are float32, float16 or bfloat16, all else is float32; at
// most 256 states. ssd_scan's products take bfloat16 operands, which with bfloat16 arrays rounds the weights and the carried
// state before they are read; with float32 and float16 each is two bfloat16 numbers, to a relative error near 1e-5. Gradients
// have the dtypes of what they are of. Work is queued on `stream` and the host does not wait.
CORE_EXPORT void selective_scan_fp32(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
                                     core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                                     std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<float, 3> out,
                                     core::Tensor<float, 3> last_state, core::Stream stream);
CORE_EXPORT void ssd_scan_fp32(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                               core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                               std::optional<core::Tensor<const float, 4>> initial_states,
                               std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<float, 4> out,
                               core::Tensor<float, 4> final_states, core::Stream stream);
CORE_EXPORT void selective_scan_fp16(core::Tensor<const core::float16, 3> u, core::Tensor<const float, 3> delta,
                                     core::Tensor<const float, 2> A, core::Tensor<const core::float16, 4> B,
                                     core::Tensor<const core::float16, 4> C, std::optional<core::Tensor<const float, 3>> initial_state,
                                     core::Tensor<core::float16, 3> out, core::Tensor<float, 3> last_state, core::Stream stream);
CORE_EXPORT void ssd_scan_fp16(core::Tensor<const core::float16, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                               core::Tensor<const core::float16, 4> B, core::Tensor<const core::float16, 4> C,
                               std::optional<core::Tensor<const float, 4>> initial_states,
                               std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<core::float16, 4> out,
                               core::Tensor<float, 4> final_states, core::Stream stream);
CORE_EXPORT void selective_scan_bf16(core::Tensor<const core::bfloat16, 3> u, core::Tensor<const float, 3> delta,
                                     core::Tensor<const float, 2> A, core::Tensor<const core::bfloat16, 4> B,
                                     core::Tensor<const core::bfloat16, 4> C, std::optional<core::Tensor<const float, 3>> initial_state,
                                     core::Tensor<core::bfloat16, 3> out, core::Tensor<float, 3> last_state, core::Stream stream);
CORE_EXPORT void ssd_scan_bf16(core::Tensor<const core::bfloat16, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                               core::Tensor<const core::bfloat16, 4> B, core::Tensor<const core::bfloat16, 4> C,
                               std::optional<core::Tensor<const float, 4>> initial_states,
                               std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<core::bfloat16, 4> out,
                               core::Tensor<float, 4> final_states, core::Stream stream);
CORE_EXPORT void selective_scan_backward_fp32(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta,
                                              core::Tensor<const float, 2> A, core::Tensor<const float, 4> B,
                                              core::Tensor<const float, 4> C, std::optional<core::Tensor<const float, 3>> initial_state,
                                              core::Tensor<const float, 3> grad_out,
                                              std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<float, 3> grad_u,
                                              core::Tensor<float, 3> grad_delta, core::Tensor<float, 2> grad_A,
                                              core::Tensor<float, 4> grad_B, core::Tensor<float, 4> grad_C,
                                              core::Tensor<float, 3> grad_initial_state, core::Stream stream);
CORE_EXPORT void ssd_scan_backward_fp32(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                                        core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                                        std::optional<core::Tensor<const float, 4>> initial_states,
                                        std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<const float, 4> grad_out,
                                        std::optional<core::Tensor<const float, 4>> grad_final_states, core::Tensor<float, 4> grad_x,
                                        core::Tensor<float, 3> grad_dt, core::Tensor<float, 1> grad_A, core::Tensor<float, 4> grad_B,
                                        core::Tensor<float, 4> grad_C, core::Tensor<float, 4> grad_initial_states, core::Stream stream);
CORE_EXPORT void selective_scan_backward_fp16(
    core::Tensor<const core::float16, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
    core::Tensor<const core::float16, 4> B, core::Tensor<const core::float16, 4> C,
    std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<const core::float16, 3> grad_out,
    std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<core::float16, 3> grad_u, core::Tensor<float, 3> grad_delta,
    core::Tensor<float, 2> grad_A, core::Tensor<core::float16, 4> grad_B, core::Tensor<core::float16, 4> grad_C,
    core::Tensor<float, 3> grad_initial_state, core::Stream stream);
CORE_EXPORT void ssd_scan_backward_fp16(core::Tensor<const core::float16, 4> x, core::Tensor<const float, 3> dt,
                                        core::Tensor<const float, 1> A, core::Tensor<const core::float16, 4> B,
                                        core::Tensor<const core::float16, 4> C, std::optional<core::Tensor<const float, 4>> initial_states,
                                        std::optional<core::Tensor<const std::int32_t, 2>> seq_idx,
                                        core::Tensor<const core::float16, 4> grad_out,
                                        std::optional<core::Tensor<const float, 4>> grad_final_states,
                                        core::Tensor<core::float16, 4> grad_x, core::Tensor<float, 3> grad_dt,
                                        core::Tensor<float, 1> grad_A, core::Tensor<core::float16, 4> grad_B,
                                        core::Tensor<core::float16, 4> grad_C, core::Tensor<float, 4> grad_initial_states,
                                        core::Stream stream);
CORE_EXPORT void selective_scan_backward_bf16(
    core::Tensor<const core::bfloat16, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
    core::Tensor<const core::bfloat16, 4> B, core::Tensor<const core::bfloat16, 4> C,
    std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<const core::bfloat16, 3> grad_out,
    std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<core::bfloat16, 3> grad_u, core::Tensor<float, 3> grad_delta,
    core::Tensor<float, 2> grad_A, core::Tensor<core::bfloat16, 4> grad_B, core::Tensor<core::bfloat16, 4> grad_C,
    core::Tensor<float, 3> grad_initial_state, core::Stream stream);
CORE_EXPORT void ssd_scan_backward_bf16(core::Tensor<const core::bfloat16, 4> x, core::Tensor<const float, 3> dt,
                                        core::Tensor<const float, 1> A, core::Tensor<const core::bfloat16, 4> B,
                                        core::Tensor<const core::bfloat16, 4> C, std::optional<core::Tensor<const float, 4>> initial_states,
                                        std::optional<core::Tensor<const std::int32_t, 2>> seq_idx,
                                        core::Tensor<const core::bfloat16, 4> grad_out,
                                        std::optional<core::Tensor<const float, 4>> grad_final_states,
                                        core::Tensor<core::bfloat16, 4> grad_x, core::Tensor<float, 3> grad_dt,
                                        core::Tensor<float, 1> grad_A, core::Tensor<core::bfloat16, 4> grad_B,
                                        core::Tensor<core::bfloat16, 4> grad_C, core::Tensor<float, 4> grad_initial_states,
                                        core::Stream stream);
#endif

}  // namespace core_llm_efficiency
