#include "antidiagonal_hopper.cuh"

namespace core_llm_efficiency {
template bool estimate_hopper(const View<const __nv_bfloat16>&, const View<const __nv_bfloat16>&, const Estimate&, int, int, int, float*,
                              cudaStream_t);
}
