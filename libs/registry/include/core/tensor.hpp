// core/tensor.hpp - typed, strided, non-owning views over DLPack memory, and the error type.
#pragma once
#include <core/abi.h>

#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace core {
inline namespace v1 {

/// What every operator throws. `kind` names the Python exception class.
struct Error : std::runtime_error {
  Error(const char* kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
  const char* kind;  // a string literal: "ValueError", "TypeError", "BufferError", "MemoryError", ...
};

/// a * b, or an Error that names `what`.
inline std::int64_t checked_mul(std::int64_t a, std::int64_t b, const char* what) {
  std::int64_t r;
  if (__builtin_mul_overflow(a, b, &r)) throw Error("ValueError", std::string(what) + " overflows 64 bits");
  return r;
}

/// 16-bit storage types; arithmetic is the kernel's business.
struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

template <class T>
struct dtype_of;
#define CORE_DTYPE(T, c, b)                           \
  template <>                                         \
  struct dtype_of<T> {                                \
    static constexpr std::uint8_t code = c, bits = b; \
  }
CORE_DTYPE(std::int8_t, 0, 8);
CORE_DTYPE(std::int16_t, 0, 16);
CORE_DTYPE(std::int32_t, 0, 32);
CORE_DTYPE(std::int64_t, 0, 64);
CORE_DTYPE(std::uint8_t, 1, 8);
CORE_DTYPE(std::uint16_t, 1, 16);
CORE_DTYPE(std::uint32_t, 1, 32);
CORE_DTYPE(std::uint64_t, 1, 64);
CORE_DTYPE(float16, 2, 16);
CORE_DTYPE(float, 2, 32);
CORE_DTYPE(double, 2, 64);
CORE_DTYPE(bfloat16, 4, 16);
CORE_DTYPE(bool, 6, 8);
#undef CORE_DTYPE

/// A view of `N` dimensions over elements of `T`: const T for inputs, T for outputs.
/// Strides are in elements; an input's may be zero or negative.
template <class T, int N>
struct Tensor {
  using value_type = std::remove_const_t<T>;
  static constexpr int rank = N;
  static constexpr bool is_output = !std::is_const_v<T>;
  T* data = nullptr;
  std::array<std::int64_t, N> shape{}, stride{};
  std::int32_t device_type = CORE_CPU, device_id = 0;

  template <class... I>
    requires(sizeof...(I) == N && (std::integral<I> && ...))
  T& operator()(I... i) const {
    std::int64_t off = 0;
    int d = 0;
    ((off += static_cast<std::int64_t>(i) * stride[static_cast<std::size_t>(d++)]), ...);
    return data[off];
  }
  /// Cannot overflow for a tensor that came through an operator call.
  std::int64_t numel() const {
    std::int64_t n = 1;
    for (auto s : shape) n *= s;
    return n;
  }
  bool contiguous() const {
    std::int64_t acc = 1;
    for (std::size_t d = N; d-- > 0;) {
      if (shape[d] != 1 && stride[d] != acc) return false;
      acc *= shape[d];
    }
    return true;
  }
};

/// A C-contiguous view, for C++ callers.
template <class T, std::integral... S>
Tensor<T, sizeof...(S)> tensor(T* data, S... shape) {
  Tensor<T, sizeof...(S)> t;
  t.data = data;
  t.shape = {static_cast<std::int64_t>(shape)...};
  std::int64_t acc = 1;
  for (std::size_t d = sizeof...(S); d-- > 0; acc *= t.shape[d]) t.stride[d] = acc;
  return t;
}

/// The stream of a CUDA operator: its function takes one as last parameter, which is
/// what makes it the CUDA overload. `handle` is a cudaStream_t.
struct Stream {
  void* handle = nullptr;
};

template <class>
inline constexpr bool is_tensor = false;
template <class T, int N>
inline constexpr bool is_tensor<Tensor<T, N>> = true;
template <class>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

}  // namespace v1
}  // namespace core
