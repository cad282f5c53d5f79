// What the kernels of block-sparse attention on CUDA get: operands, sizes and the mask as bits.
#pragma once
#include "device.cuh"

namespace core_llm_efficiency {
/// 16-bit operands of type T. Row i of the mask, [batch, head, query block], is bits[i * words ...], bit j for key block j,
/// clear where no query of the block sees the key block; counts[i] is how many are set.
template <class T>
struct Blocks {
  View<const T> q, k, v;
  const std::uint32_t* bits;
  const int* counts;
  int words, batch, heads, share, q_blocks, k_blocks, n, m, d, e, block, offset;
  bool causal;
  float scale;  // in powers of two
};

template <class T>
struct Attention : Blocks<T> {
  View<T> out;
  float* lse;
  std::int64_t lse_batch, lse_head, lse_row;
};

/// Queues the kernel for sm_90a; false if these operands are none of its.
template <class T>
bool attend_hopper(const Attention<T>& a, int device, cudaStream_t stream);
}  // namespace core_llm_efficiency
