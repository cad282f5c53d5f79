// What the search for principal scene components refuses, and what it counts as near, on the CPU and on CUDA.
#pragma once
#include <core/tensor.hpp>

#include <string>

namespace core_splatting {

constexpr double slack = 1e-12;  // below the threshold, for a cosine of equal rows

inline void check_threshold(double threshold) {
  if (!(threshold > 0 && threshold <= 1))
    throw core::Error("ValueError", "principal_components: argument 'threshold' must be in (0, 1], got " + std::to_string(threshold));
}

inline core::Error not_finite(std::int64_t row) {
  return {"ValueError", "principal_components: argument 'features' must have finite values whose squares fit into float32, row " +
                            std::to_string(row) + " has not"};
}

}  // namespace core_splatting
