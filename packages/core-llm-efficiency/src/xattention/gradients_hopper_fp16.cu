#include "gradients_hopper.cuh"

namespace core_llm_efficiency {
template bool differentiate_hopper(Gradients<__half>, int, cudaStream_t);
}
