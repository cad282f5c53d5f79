// The argument checks that the state-space scans share on every device.
#pragma once
#include "../xattention/checks.hpp"

namespace core_llm_efficiency {
constexpr std::int64_t widest_state = 256;

/// Checks that the groups of B and C divide the `count` channels or heads.
inline void check_groups(const char* op, const char* what, std::int64_t count, std::int64_t groups) {
  if (groups ? count % groups : count)
    refuse(op, "B",
           std::string("of a number of groups that divides the ") + what + ", got " + std::to_string(groups) + " and " +
               std::to_string(count));
}

/// Checks the sizes of Mamba-2's scan.
inline void check_ssd(const char* op, std::int64_t heads, std::int64_t groups, std::int64_t p, std::int64_t n) {
  check_groups(op, "heads", heads, groups);
  if (p > widest_state || n > widest_state)
    refuse(op, p > widest_state ? "x" : "B",
           "at most " + std::to_string(widest_state) + " wide in its last dimension, got " + std::to_string(std::max(p, n)));
}
}  // namespace core_llm_efficiency
