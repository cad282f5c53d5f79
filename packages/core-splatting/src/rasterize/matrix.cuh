// Products of float32 on the tensor cores: both factors are split into two bfloat16 each, high and low, and three of the four
// products are added in float32, which leaves a relative error of about 2^-16.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace core_splatting {

constexpr int depth = 16;          // Gaussians of one product
constexpr int weight_stride = 24;  // of a pixel's weights: 48 bytes, so that eight rows lie in different banks

struct Half2s {
  std::uint32_t high, low;
};

/// (a, b) as the sum of two pairs of bfloat16.
__device__ inline Half2s split(float a, float b) {
  const __nv_bfloat162 high = __floats2bfloat162_rn(a, b);
  const float2 rounded = __bfloat1622float2(high);
  const __nv_bfloat162 low = __floats2bfloat162_rn(a - rounded.x, b - rounded.y);
  return {*reinterpret_cast<const std::uint32_t*>(&high), *reinterpret_cast<const std::uint32_t*>(&low)};
}

__device__ inline void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
/// sum += a b, of bfloat16.
__device__ inline void multiply(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// sum += a b, each in two parts, high and low; of b there are the first eight rows and the next eight of each.
__device__ inline void multiply(float (&sum)[4], const std::uint32_t (&a)[2][4], const std::uint32_t (&b)[4]) {
  multiply(sum, a[0], b[0], b[1]);
  multiply(sum, a[0], b[2], b[3]);
  multiply(sum, a[1], b[0], b[1]);
}

/// The same of float16.
__device__ inline void multiply_half(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The weights of eight Gaussians for a pixel in float16.
__device__ inline void store_half(const float* weight, void* to) {
  std::uint32_t pairs[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const __half2 pair = __floats2half2_rn(weight[2 * k], weight[2 * k + 1]);
    pairs[k] = *reinterpret_cast<const std::uint32_t*>(&pair);
  }
  *reinterpret_cast<uint4*>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
}

/// The weights of eight Gaussians for a pixel: to `high`, and to `low` what it leaves.
__device__ inline void store_weights(const float* weight, void* high, void* low) {
  Half2s pairs[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) pairs[k] = split(weight[2 * k], weight[2 * k + 1]);
  *reinterpret_cast<uint4*>(high) = {pairs[0].high, pairs[1].high, pairs[2].high, pairs[3].high};
  *reinterpret_cast<uint4*>(low) = {pairs[0].low, pairs[1].low, pairs[2].low, pairs[3].low};
}

}  // namespace core_splatting
