// What the kernels of this package refuse alike.
#pragma once
#include <core/tensor.hpp>

#include <cstdio>
#include <string>

namespace core_3d_molecule {
[[noreturn, gnu::cold]] inline void refuse(const char* op, const char* argument, const std::string& why) {
  throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must " + why);
}

inline std::string text(double v) {
  char s[32];
  std::snprintf(s, sizeof s, "%g", v);
  return s;
}

/// Offsets of a ragged batch: they begin with 0, do not descend, and end with `total`.
inline void check_offsets(const char* op, const char* name, const core::Tensor<const std::int64_t, 1>& offsets, std::int64_t total) {
  const std::int64_t last = offsets.shape[0] - 1;
  if (last < 0 || offsets(0) != 0 || offsets(last) != total) refuse(op, name, "begin with 0 and end with " + std::to_string(total));
  for (std::int64_t b = 0; b < last; ++b)
    if (offsets(b + 1) < offsets(b))
      refuse(op, name, "ascend, got " + std::to_string(offsets(b + 1)) + " after " + std::to_string(offsets(b)));
}
}  // namespace core_3d_molecule
