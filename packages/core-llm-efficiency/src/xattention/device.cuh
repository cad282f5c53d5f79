// What the CUDA kernels of XAttention share: 16-bit arithmetic, tiles in shared memory.
#pragma once
#include <core/cuda.hpp>
#include <core_llm_efficiency/xattention.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "checks.hpp"

namespace core_llm_efficiency {

using core::check_cuda;
using core::DeviceScratch;
using core::OnDevice;

/// The device's type of a 16-bit element.
template <class T>
struct native;
template <>
struct native<core::bfloat16> {
  using type = __nv_bfloat16;
};
template <>
struct native<core::float16> {
  using type = __half;
};

/// A 4-dimensional operand [batch, head, row, column].
template <class T>
struct View {
  T* data;
  std::int64_t batch, head, row, col;
  bool wide;  // rows are contiguous and each starts at a multiple of 16 bytes

  __host__ __device__ T* at(std::int64_t b, std::int64_t h) const { return data + b * batch + h * head; }
};
template <class T>
auto view(const core::Tensor<T, 4>& t) {
  using N = typename native<typename core::Tensor<T, 4>::value_type>::type;
  using E = std::conditional_t<std::is_const_v<T>, const N, N>;
  const auto& s = t.stride;
  return View<E>{reinterpret_cast<E*>(t.data),
                 s[0],
                 s[1],
                 s[2],
                 s[3],
                 s[3] == 1 && reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && s[0] % 8 == 0 && s[1] % 8 == 0 && s[2] % 8 == 0 &&
                     t.shape[3] % 8 == 0};
}

/// Two floats as one register of two 16-bit numbers, the first in the low half.
template <class T>
__device__ inline std::uint32_t pack(float x, float y) {
  std::uint32_t r;
  if constexpr (std::is_same_v<T, __half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}

__device__ inline std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The largest / the sum of four neighbouring lanes, which hold one row of an accumulator.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

/// Matrices of 8x8 from shared memory; each lane gives the address of one row.
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

/// c[16 x 8] += a[16 x 16] b[16 x 8].
template <class T>
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A row of `width` elements to shared memory at a distance of `step` rows, by all threads of the block:
/// tile[i][x] = source[(first + i * every) * row + x * col], zero where the row is >= end or x >= dim. Padded to `pad` elements.
template <class T, int Rows, int Width, int Pad, int Threads>
__device__ inline void load_tile(T* tile, const T* source, std::int64_t row, std::int64_t col, bool wide, std::int64_t first,
                                 std::int64_t every, std::int64_t end, int column, int dim) {
  if (wide) {
    constexpr int pieces = Width / 8;
    for (int i = static_cast<int>(threadIdx.x); i < Rows * pieces; i += Threads) {
      const int r = i / pieces, x = i % pieces * 8;
      const std::int64_t at = first + r * every;
      const bool inside = at < end && column + x < dim;
      const T* from = inside ? source + at * row + column + x : source;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(tile + r * Pad + x)), "l"(from),
                   "r"(inside ? 16 : 0));
    }
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;" ::: "memory");
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < Rows * Width; i += Threads) {
      const int r = i / Width, x = i % Width;
      const std::int64_t at = first + r * every;
      tile[r * Pad + x] = at < end && column + x < dim ? source[at * row + (column + x) * col] : T(0.f);
    }
  }
}

}  // namespace core_llm_efficiency
