#include "gradients_hopper.cuh"

namespace core_llm_efficiency {
template bool differentiate_hopper(Gradients<__nv_bfloat16>, int, cudaStream_t);
}
