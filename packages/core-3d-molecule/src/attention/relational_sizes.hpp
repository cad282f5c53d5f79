// Which shapes of operands fit together, for relational attention on the CPU and on CUDA.
#pragma once
#include <core/tensor.hpp>

#include "../checks.hpp"

namespace core_3d_molecule {
/// Refuses shapes that do not fit; gives the number of bond classes.
template <class T>
std::int64_t check_shapes(const char* op, const core::Tensor<const T, 3>& q, const core::Tensor<const T, 3>& q_edge,
                          const core::Tensor<const T, 2>& form, const core::Tensor<const T, 1>& centres,
                          const core::Tensor<const T, 2>& w1) {
  const std::int64_t E = q_edge.shape[2], classes = w1.shape[1] - 1 - centres.shape[0];
  if (q.shape[1] < 1 || q.shape[2] < 1) refuse(op, "q", "have at least one head of at least one channel");
  if (E < 1) refuse(op, "q_edge", "have at least one channel a head");
  if (w1.shape[0] < 1) refuse(op, "w1", "have at least one row");
  if (form.shape[1] != E * (E + 1) / 2)
    refuse(op, "form", "have E (E + 1) / 2 = " + std::to_string(E * (E + 1) / 2) + " columns, got " + std::to_string(form.shape[1]));
  if (classes < 1 || classes > 256) refuse(op, "w1", "have 1 + G + 1..256 bond classes columns, got " + std::to_string(w1.shape[1]));
  return classes;
}
}  // namespace core_3d_molecule
