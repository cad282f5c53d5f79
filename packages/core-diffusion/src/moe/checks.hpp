// The argument checks that the mixture-of-experts operators share on every device.
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {
inline void check_k(std::int64_t k, std::int64_t columns) {
  if (k < 0 || k > columns)
    throw core::Error("ValueError", "topk_mask: argument 'k' must be in 0.." + std::to_string(columns) + ", got " + std::to_string(k));
}
inline void check_offsets(const char* op, std::int64_t size, std::int64_t experts) {
  if (size != experts + 1)
    throw core::Error("ValueError", std::string(op) + ": argument 'offsets' must have " + std::to_string(experts + 1) + " elements, got " +
                                        std::to_string(size));
}
inline void check_hidden(const char* op, std::int64_t rows, std::int64_t needed) {
  if (rows != needed)
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'hidden' must have " + std::to_string(needed) + " rows, got " + std::to_string(rows));
}
}  // namespace core_diffusion
