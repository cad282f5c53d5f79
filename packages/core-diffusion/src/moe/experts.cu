// The experts in numbers of 16 bits.
#include "experts.cuh"

namespace core_diffusion {
template decltype(expert_ffn_cuda<core::bfloat16>) expert_ffn_cuda<core::bfloat16>;
template decltype(expert_ffn_cuda<core::float16>) expert_ffn_cuda<core::float16>;
template decltype(expert_ffn_backward_cuda<core::bfloat16>) expert_ffn_backward_cuda<core::bfloat16>;
template decltype(expert_ffn_backward_cuda<core::float16>) expert_ffn_backward_cuda<core::float16>;
}  // namespace core_diffusion
