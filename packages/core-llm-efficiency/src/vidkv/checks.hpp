// The argument checks that the coders and the attention over packed keys and values share on every device.
#pragma once
#include "../xattention/checks.hpp"

namespace core_llm_efficiency {
constexpr std::int64_t word = 32;  // tokens of a word of bits

inline void check_equal(const char* op, const char* argument, const char* what, std::int64_t want, std::int64_t got) {
  if (want != got) refuse(op, argument, std::string("of ") + std::to_string(want) + " " + what + ", got " + std::to_string(got));
}

inline void check_group(const char* op, std::int64_t group, const char* argument, std::int64_t tokens) {
  if (group != 32 && group != 64 && group != 128) refuse(op, "group", "32, 64 or 128, got " + std::to_string(group));
  if (tokens % group)
    refuse(op, argument, "of a number of tokens that is a multiple of " + std::to_string(group) + ", got " + std::to_string(tokens));
}

/// Checks the shapes of packed keys of n tokens.
template <class Planes, class Halves>
inline void check_keys(const char* op, std::int64_t n, std::int64_t d, std::int64_t group, const Planes& planes, const Halves& scales,
                       const Halves& zeros) {
  const std::int64_t c = zeros.shape[3];
  if (c > d) refuse(op, "zeros", "of at most " + std::to_string(d) + " channels, got " + std::to_string(c));
  check_equal(op, "planes", "words of 32 tokens", n / word, planes.shape[2]);
  check_equal(op, "planes", "bits a token", d + c, planes.shape[3]);
  check_equal(op, "scales", "runs of tokens", n / group, scales.shape[2]);
  check_equal(op, "zeros", "runs of tokens", n / group, zeros.shape[2]);
}

/// Checks the shapes of n packed values of e channels, `per_byte` in a byte.
inline void check_values(const char* op, const char* codes, std::int64_t bytes, std::int64_t e, std::int64_t per_byte, const char* scales,
                         std::int64_t n, std::int64_t group, std::int64_t runs) {
  check_equal(op, codes, "bytes a token", ceil_div(e, per_byte), bytes);
  check_equal(op, scales, "runs of tokens", n / group, runs);
}

/// Checks what packed_attention's sizes have in common; T: type of q.
template <class T>
inline void check_packed_attention(const char* op, const core::Tensor<const T, 3>& q, std::int64_t group,
                                   const core::Tensor<const std::int32_t, 4>& planes, const core::Tensor<const core::float16, 4>& scales,
                                   const core::Tensor<const core::float16, 4>& zeros, const core::Tensor<const std::uint8_t, 4>& codes2,
                                   const core::Tensor<const core::float16, 4>& scales2, const core::Tensor<const std::uint8_t, 4>& codes3,
                                   const core::Tensor<const core::float16, 4>& scales3, const core::Tensor<const T, 4>& recent_k,
                                   const std::optional<core::Tensor<const bool, 2>>& seen, double scale, std::int64_t e) {
  const std::int64_t heads = q.shape[1], d = q.shape[2], groups = planes.shape[1], two = codes2.shape[2], n = two + codes3.shape[2];
  check_group(op, group, "codes2", two);
  check_group(op, group, "codes3", n - two);
  check_keys(op, n, d, group, planes, scales, zeros);
  check_values(op, "codes2", codes2.shape[3], e, 4, "scales2", two, group, scales2.shape[2]);
  check_values(op, "codes3", codes3.shape[3], e, 5, "scales3", n - two, group, scales3.shape[2]);
  if (seen) check_equal(op, "seen", "tokens", n + recent_k.shape[2], seen->shape[1]);
  if (groups ? heads % groups : heads)
    refuse(op, "q",
           "of a number of heads that is a multiple of the keys', got " + std::to_string(heads) + " and " + std::to_string(groups));
  if (d == 0) refuse(op, "q", "of at least one channel");
  if (!std::isfinite(scale)) refuse(op, "scale", "finite, got " + std::to_string(scale));
}
}  // namespace core_llm_efficiency
