#pragma once
#include "../xattention/tile.hpp"

namespace core_llm_efficiency {
/// e[j] = exp(x[j]), j < lanes; infinity above 88.
inline void exp_lanes(const float* x, float* e) {
  float clamped[lanes];
#pragma GCC unroll 1
  for (int j = 0; j < lanes; ++j) {
    const float y = x[j] < lowest ? lowest : x[j];
    clamped[j] = y > -lowest ? -lowest : y;
  }
#pragma GCC unroll 1
  for (int j = 0; j < lanes; ++j) clamped[j] = exp_clamped(clamped[j]);
#pragma GCC unroll 1
  for (int j = 0; j < lanes; ++j) e[j] = x[j] > -lowest ? -minus_infinity : clamped[j];
}
}  // namespace core_llm_efficiency
