// What the state-space scans on CUDA share: operands of any float type.
#pragma once
#include <type_traits>

#include <core_llm_efficiency/state_space.hpp>
#include "../xattention/device.cuh"
#include "checks.hpp"

namespace core_llm_efficiency::scan {
enum class Kind { fp32, fp16, bf16 };
template <class T>
constexpr Kind kind_of = std::is_same_v<T, float>           ? Kind::fp32
                         : std::is_same_v<T, core::float16> ? Kind::fp16
                                                            : Kind::bf16;

__device__ inline float load(const void* data, std::int64_t i, Kind kind) {
  if (kind == Kind::fp32) return static_cast<const float*>(data)[i];
  if (kind == Kind::fp16) return __half2float(static_cast<const __half*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}
__device__ inline void store(void* data, std::int64_t i, Kind kind, float x) {
  if (kind == Kind::fp32)
    static_cast<float*>(data)[i] = x;
  else if (kind == Kind::fp16)
    static_cast<__half*>(data)[i] = __float2half_rn(x);
  else
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(x);
}
}  // namespace core_llm_efficiency::scan
