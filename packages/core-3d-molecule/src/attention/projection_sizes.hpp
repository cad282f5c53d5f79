// What the projections of relational attention share on the CPU and on CUDA.
#pragma once
#include <core/tensor.hpp>

#include "../checks.hpp"

#if defined(__CUDACC__)
#define CORE_HOST_DEVICE __host__ __device__
#else
#define CORE_HOST_DEVICE
#endif

namespace core_3d_molecule {
/// Where the product of the channels e and f, of E, stands in the upper triangle.
CORE_HOST_DEVICE constexpr std::int64_t product_of(std::int64_t e, std::int64_t f, std::int64_t E) {
  const std::int64_t a = e < f ? e : f, b = e < f ? f : e;
  return a * E - a * (a + 1) / 2 + b;
}

template <class T, class U>
void check_projections(const char* op, const core::Tensor<const T, 3>& edge_q, const core::Tensor<U, 2>& form) {
  const std::int64_t E = edge_q.shape[2];
  if (edge_q.shape[0] < 1 || edge_q.shape[1] < 1 || E < 1) refuse(op, "edge_q", "have at least one head of one channel");
  if (form.shape[1] != E * (E + 1) / 2)
    refuse(op, "form", "have E (E + 1) / 2 = " + std::to_string(E * (E + 1) / 2) + " columns, got " + std::to_string(form.shape[1]));
}
}  // namespace core_3d_molecule
#undef CORE_HOST_DEVICE
