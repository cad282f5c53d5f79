// Tensors of any strides as contiguous memory, for kernels that read and write rows.
#pragma once
#include <core/cuda.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

namespace relational {
/// A tensor as contiguous memory, 16-byte aligned: its own, or a copy. An output is copied back by `finish`.
template <class T, int N>
class Dense {
 public:
  Dense(const char* op, const Tensor<T, N>& t, cudaStream_t stream);
  T* get() const { return data_; }
  void finish() const;

 private:
  using Value = std::remove_const_t<T>;
  bool own(const Tensor<T, N>& t) const { return t.contiguous() && reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }
  const char* op_;
  Tensor<T, N> t_;
  cudaStream_t stream_;
  core::DeviceScratch copy_;
  T* data_;
};

template <class T, int N>
struct Strided {
  T* data;
  int64_t shape[N], stride[N];
  __device__ T& operator[](int64_t i) const {
    int64_t at = 0;
    for (int d = N - 1; d >= 0; --d) at += i % shape[d] * stride[d], i /= shape[d];
    return data[at];
  }
};

template <bool back, class T, int N>
__global__ void copy_strided(Strided<T, N> t, std::remove_const_t<T>* dense, int64_t n) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    if constexpr (back)
      t[i] = dense[i];
    else
      dense[i] = t[i];
}

template <bool back, class T, int N>
void copy_strided(const char* op, const Tensor<T, N>& t, std::remove_const_t<T>* dense, cudaStream_t stream) {
  const int64_t n = t.numel();
  if (n == 0) return;
  Strided<T, N> s{t.data, {}, {}};
  for (std::size_t d = 0; d < N; ++d) s.shape[d] = t.shape[d], s.stride[d] = t.stride[d];
  copy_strided<back><<<static_cast<unsigned>(std::min<int64_t>((n + 255) / 256, 4096)), 256, 0, stream>>>(s, dense, n);
  core::check_cuda(op, cudaGetLastError(), "copying a tensor");
}

template <class T, int N>
Dense<T, N>::Dense(const char* op, const Tensor<T, N>& t, cudaStream_t stream)
    : op_(op), t_(t), stream_(stream), copy_(op, t.device_id, stream, own(t) ? 0 : t.numel() * static_cast<int64_t>(sizeof(T))) {
  data_ = own(t) ? t.data : copy_.template get<Value>();
  if constexpr (std::is_const_v<T>)
    if (!own(t)) copy_strided<false>(op, t, copy_.template get<Value>(), stream);
}

template <class T, int N>
void Dense<T, N>::finish() const {
  if (!own(t_)) copy_strided<true>(op_, t_, data_, stream_);
}
}  // namespace relational
}  // namespace core_3d_molecule
