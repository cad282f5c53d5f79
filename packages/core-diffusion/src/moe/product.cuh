// The products of the experts on CUDA, and the numbers that they are made of.
//
// The rows of all experts lie in one matrix, each expert's beginning at a multiple of `padding` and followed by zeros: so a
// tile belongs to one expert, whether rows are the free side (outputs of a layer) or the depth (gradients of weights).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <core/tensor.hpp>

#include <type_traits>

namespace core_diffusion {
constexpr int padding = 128;

template <class T>
struct NativeOf {
  using type = T;
};
template <>
struct NativeOf<core::float16> {
  using type = __half;
};
template <>
struct NativeOf<core::bfloat16> {
  using type = __nv_bfloat16;
};
/// What a kernel calls a tensor's elements.
template <class T>
using Native = typename NativeOf<T>::type;
template <class T>
Native<T>* native(T* p) {
  return reinterpret_cast<Native<T>*>(p);
}
template <class T>
const Native<T>* native(const T* p) {
  return reinterpret_cast<const Native<T>*>(p);
}

/// What numbers T are added up in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }
template <class T>
__device__ T narrow(Sum<T> x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

/// Numbers that are read and written as one.
template <class T, int n>
struct alignas(sizeof(T) * n) Chunk {
  T at[n];
};
template <class T>
constexpr int chunk = 16 / sizeof(T);

/// Numbers of which `valid` exist; zeros for the others. `whole`: all or none exist, and they may be read as one.
template <int n, class T>
__device__ Chunk<T, n> get(const T* from, int valid, bool whole) {
  Chunk<T, n> v{};
  if (whole) {
    if (valid > 0) v = *reinterpret_cast<const Chunk<T, n>*>(from);
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j < valid) v.at[j] = from[j];
  }
  return v;
}
template <int n, class T>
__device__ void put(T* to, const Chunk<T, n>& v, int valid, bool whole) {
  if (whole) {
    if (valid > 0) *reinterpret_cast<Chunk<T, n>*>(to) = v;
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j < valid) to[j] = v.at[j];
  }
}

enum class Side { rows, columns };  // which side of a matrix is the product's depth: columns if its rows are contiguous along it
enum class Group { rows, depth };   // what the experts share among them
enum class After { nothing, activation, activation_backward };

/// out(m, n) = the sum over k of a(m, k) b(n, k). With Group::rows a is [rows, k], b one matrix for each expert and out
/// [rows, n]; with Group::depth a and b are [rows, m] and [rows, n], and out one matrix for each expert.
template <class T>
struct Product {
  const T *a = nullptr, *b = nullptr;
  T* out = nullptr;
  T* second = nullptr;            // the values before the activation; stored in the forward pass unless null
  T* third = nullptr;             // the activations times their gates, in the backward pass
  const T* bias = nullptr;        // [experts, n], or null
  const Sum<T>* gates = nullptr;  // [rows], in the backward pass
  Sum<T>* shares = nullptr;       // [rows, parts]: sums over a part of the columns of gradient times activation
  int m = 0, n = 0, k = 0;        // m: with Group::depth; k: with Group::rows
};
}  // namespace core_diffusion
