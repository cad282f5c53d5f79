#include "attention_hopper.cuh"

namespace core_llm_efficiency {
template bool attend_hopper(const Attention<__half>&, int, cudaStream_t);
}
