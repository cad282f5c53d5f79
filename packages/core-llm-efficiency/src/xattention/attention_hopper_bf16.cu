#include "attention_hopper.cuh"

namespace core_llm_efficiency {
template bool attend_hopper(const Attention<__nv_bfloat16>&, int, cudaStream_t);
}
