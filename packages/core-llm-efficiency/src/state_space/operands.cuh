// What the state-space scans on CUDA share: operands of any float type, sums over lanes.
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
__device__ inline float number(float x) { return x; }
__device__ inline float number(__half x) { return __half2float(x); }
__device__ inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
struct device_type {
  using type = T;
};
template <>
struct device_type<core::float16> : native<core::float16> {};
template <>
struct device_type<core::bfloat16> : native<core::bfloat16> {};
/// The device's type of an element, const as it was.
template <class T>
using element = std::conditional_t<std::is_const_v<T>, const typename device_type<std::remove_const_t<T>>::type,
                                   typename device_type<std::remove_const_t<T>>::type>;

/// Sums v over lanes whose numbers differ in `Levels` bits from `bit` on; the sums are shared out: v[0], ... are those from
/// the returned index on, N >> Levels of them.
template <int Levels, int N, int Half = N / 2>
__device__ inline int sum_shared(float (&v)[N], int lane, int bit) {
  if constexpr (Levels == 0) return 0;
  const bool upper = lane & bit;
#pragma unroll
  for (int k = 0; k < Half; ++k) {
    const float keep = upper ? v[k + Half] : v[k], give = upper ? v[k] : v[k + Half];
    v[k] = keep + __shfl_xor_sync(~0u, give, bit);
  }
  const int first = upper ? Half : 0;
  if constexpr (Levels > 1) return first + sum_shared<Levels - 1, N, Half / 2>(v, lane, 2 * bit);
  return first;
}
constexpr int log_2(int x) { return x > 1 ? 1 + log_2(x / 2) : 0; }
}  // namespace core_llm_efficiency::scan
