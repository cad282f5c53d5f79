#include "antidiagonal_hopper.cuh"

namespace core_llm_efficiency {
template bool estimate_hopper(const View<const __half>&, const View<const __half>&, const Estimate&, int, int, int, float*, cudaStream_t);
}
