// The sizes of an antidiagonal estimate on CUDA and which tiles a row sees.
#pragma once
#include "device.cuh"

namespace core_llm_efficiency {
/// A row is `stride` queries, a column `stride` keys, a block `per` columns. A unit is a block's columns, or 64 of them.
struct Estimate {
  int n, m, dim, heads, share, stride, per, rows, columns, units_of_block, units, units_of_tile, offset, first_head;
  bool causal;
  float scale;  // of a product, in powers of two

  /// Columns that start at or before the row's last query.
  __host__ __device__ std::int64_t seen(std::int64_t row) const {
    const std::int64_t end = (row + 1) * stride;
    return causal ? (offset + (end < n ? end : n) - 1) / stride + 1 : columns;
  }
  __host__ __device__ std::int64_t unit_column(int unit) const {
    return std::int64_t{unit / units_of_block} * per + unit % units_of_block * 64;
  }
  __host__ __device__ std::int64_t unit_end(int unit) const {
    const std::int64_t end = unit_column(unit) + 64, last = (std::int64_t{unit / units_of_block} + 1) * per;
    return end < last ? end : last;
  }
  /// Units of which the row sees a column.
  __device__ int units_seen(std::int64_t row) const {
    const std::int64_t columns_seen = seen(row), whole = columns_seen / per, rest = columns_seen % per;
    return static_cast<int>(whole * units_of_block + (rest + 63) / 64);
  }
};

/// Queues the product for sm_90a; false if these operands are none of its. partial[pairs][rows][units]: log2 of the sum of
/// exponentials of every unit that a row sees.
template <class T>
bool estimate_hopper(const View<const T>& q, const View<const T>& k, const Estimate& e, int batch, int pairs, int device, float* partial,
                     cudaStream_t stream);
}  // namespace core_llm_efficiency
