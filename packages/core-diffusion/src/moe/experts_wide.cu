// The experts in float32 and float64.
#include "experts.cuh"

namespace core_diffusion {
template decltype(expert_ffn_cuda<float>) expert_ffn_cuda<float>;
template decltype(expert_ffn_cuda<double>) expert_ffn_cuda<double>;
template decltype(expert_ffn_backward_cuda<float>) expert_ffn_backward_cuda<float>;
template decltype(expert_ffn_backward_cuda<double>) expert_ffn_backward_cuda<double>;
}  // namespace core_diffusion
