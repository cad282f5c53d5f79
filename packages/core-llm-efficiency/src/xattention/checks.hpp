// The argument checks that the XAttention operators share on every device.
#pragma once
#include <core/tensor.hpp>

#include <cmath>

namespace core_llm_efficiency {
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

[[noreturn, gnu::cold]] inline void refuse(const char* op, const char* argument, const std::string& why) {
  throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must be " + why);
}

/// Checks what the shapes of the three operators have in common.
inline void check_blocks(const char* op, std::int64_t q_len, std::int64_t k_len, std::int64_t block, bool causal, const char* blocks,
                         std::int64_t q_blocks, std::int64_t k_blocks) {
  if (block < 16 || block > 4096 || block % 16) refuse(op, "block", "a multiple of 16 in [16, 4096], got " + std::to_string(block));
  if (causal && q_len > k_len)
    refuse(
        op, "causal",
        "false where there are more queries than keys, got " + std::to_string(q_len) + " queries and " + std::to_string(k_len) + " keys");
  if (q_blocks != ceil_div(q_len, block) || k_blocks != ceil_div(k_len, block))
    refuse(op, blocks,
           "of " + std::to_string(ceil_div(q_len, block)) + " by " + std::to_string(ceil_div(k_len, block)) + " blocks, got " +
               std::to_string(q_blocks) + " by " + std::to_string(k_blocks));
}

/// Checks the heads and the scale of the two operators that read q and k.
inline void check_heads(const char* op, std::int64_t q_heads, std::int64_t k_heads, double scale) {
  if (k_heads ? q_heads % k_heads : q_heads)
    refuse(op, "k", "of a number of heads that divides q's, got " + std::to_string(k_heads) + " and " + std::to_string(q_heads));
  if (!std::isfinite(scale)) refuse(op, "scale", "finite, got " + std::to_string(scale));
}
}  // namespace core_llm_efficiency
