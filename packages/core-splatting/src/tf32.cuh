// Products of float32 on the tensor cores: both factors are sums of two numbers of tf32, and the product of the two lesser
// parts may be left out (relative error about 2^-20).
#pragma once
#include <cstdint>

namespace core_splatting {

/// A float32 as the sum of two numbers that the matrix units take.
struct Parts {
  std::uint32_t high, low;
};
__device__ inline Parts parts_of(float x) {
  const std::uint32_t high = __float_as_uint(x) & 0xffffe000u;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

__device__ inline void multiply_add(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                    std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace core_splatting
