// What the kernels of the memory on CUDA share: tiles of matrices in shared memory, and their products on the matrix units. A
// float32 is the sum of two numbers of tf32; the product of the two lesser parts is left out (relative error about 2^-20).
#pragma once
#include "../tf32.cuh"
#include "../views.hpp"

namespace core_splatting {

using std::int64_t;
using Matrix = core::Tensor<const float, 2>;

constexpr int threads = 256;
constexpr int depth_step = 32;  // channels of a score, or columns of a value, that are in shared memory at a time

__device__ inline float element_or_zero(const Matrix& m, int64_t i, int64_t k) {
  return i < m.shape[0] && k < m.shape[1] ? at(m, i, k) : 0.f;
}

/// Rows of a transposed tile of `Rows` have this length: no two lanes of a warp that fills or reads it meet in a bank.
template <int Rows>
constexpr int pitch_of = Rows + 8;

/// A thread's share of `Rows` rows of m and depth_step of their columns, on the way from memory to a tile [k][row].
template <int Rows>
struct Share {
  static constexpr int count = Rows * depth_step / threads;
  float held[count];

  static __device__ int row() { return static_cast<int>(threadIdx.x) % 8; }  // and each eighth: a warp takes 8 rows and 4 columns
  static __device__ int channel() { return static_cast<int>(threadIdx.x) / 8; }

  /// All loads are under way before the first is waited for; zeros outside of m.
  __device__ void fetch(const Matrix& m, int64_t first, int64_t from) {
    const float* place = m.data + (first + row()) * m.stride[0] + (from + channel()) * m.stride[1];
    const int64_t left = from + channel() < m.shape[1] ? m.shape[0] - first - row() : 0;
    const int rows = static_cast<int>(left < Rows ? left : Rows);
#pragma unroll
    for (int j = 0; j < count; ++j, place += 8 * m.stride[0]) held[j] = 8 * j < rows ? *place : 0.f;
  }
  __device__ void store(float (*tile)[pitch_of<Rows>]) const {
#pragma unroll
    for (int j = 0; j < count; ++j) tile[channel()][row() + 8 * j] = held[j];
  }
};

template <int Rows>
__device__ void load_transposed(const Matrix& m, int64_t first, int64_t from, float (*tile)[pitch_of<Rows>]) {
  Share<Rows> share;
  share.fetch(m, first, from);
  share.store(tile);
}

/// A warp's tile of M x N pieces of 16 x 8: sums += a b over k in [0, Depth). a(row, k) and b(k, column) read elements, rows
/// 0 to 16 M and columns 0 to 8 N. Element e of a piece is of row lane / 4 + 8 (e / 2) and column 2 (lane % 4) + e % 2.
template <int M, int N, int Depth, class A, class B>
__device__ void multiply_tile(float (&sums)[M][N][4], A a, B b) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll 1
  for (int k = 0; k < Depth; k += 8) {
    Parts right[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) right[n][e] = parts_of(b(k + t + 4 * e, 8 * n + g));
#pragma unroll
    for (int m = 0; m < M; ++m) {
      Parts left[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] = parts_of(a(16 * m + g + 8 * (e % 2), k + t + 4 * (e / 2)));
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const Parts first = right[n][0], second = right[n][1];
        float c[4] = {};  // the matrix units cut off what they add to a sum: keep their sums short
        multiply_add(c, left[0].low, left[1].low, left[2].low, left[3].low, first.high, second.high);
        multiply_add(c, left[0].high, left[1].high, left[2].high, left[3].high, first.low, second.low);
        multiply_add(c, left[0].high, left[1].high, left[2].high, left[3].high, first.high, second.high);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] += c[e];
      }
    }
  }
}

/// Copies 16 bytes to shared memory asynchronously, or clears them there. `commit` must follow.
__device__ inline void begin_copy_16(void* to, const void* from, bool there) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// All copies but the latest have arrived, for the threads that began them.
__device__ inline void wait_for_all_but_one() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

inline unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace core_splatting
