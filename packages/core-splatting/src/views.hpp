// What kernels for the CPU and for CUDA share: function qualifiers and element access.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

#if defined(__CUDACC__)
#define CORE_HD __host__ __device__ inline
// Two kernels must get the same result bit for bit: one body, not inlined.
#define CORE_HD_ONCE __host__ __device__ __noinline__ inline
#else
#define CORE_HD inline
#define CORE_HD_ONCE inline
#endif

namespace core_splatting {

template <class T, int N, class... I>
CORE_HD T& at(const core::Tensor<T, N>& t, I... i) {
  const std::int64_t index[] = {static_cast<std::int64_t>(i)...};
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < N; ++d) offset += index[d] * t.stride[d];
  return t.data[offset];
}

CORE_HD float max_of(float a, float b) { return a > b ? a : b; }
CORE_HD float min_of(float a, float b) { return a < b ? a : b; }

}  // namespace core_splatting
