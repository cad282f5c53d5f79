// Reading the arguments that block-sparse attention and its gradients on CUDA have in common.
#pragma once
#include "attention.cuh"

namespace core_llm_efficiency {
namespace {
/// One warp for each row of the mask.
__global__ void __launch_bounds__(256) pack_mask(core::Tensor<const bool, 4> mask, std::int64_t rows, int words, int block, std::int64_t n,
                                                 std::int64_t m, bool causal, std::uint32_t* bits, int* counts) {
  const std::int64_t i = blockIdx.x * std::int64_t{8} + threadIdx.x / 32;
  if (i >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t q_blocks = mask.shape[2], row = i % q_blocks, h = i / q_blocks % mask.shape[1], b = i / q_blocks / mask.shape[1];
  const bool* from = mask.data + b * mask.stride[0] + h * mask.stride[1] + row * mask.stride[2];
  const std::int64_t last = (row + 1) * block < n ? (row + 1) * block : n,
                     visible = causal ? (m - n + last - 1) / block + 1 : mask.shape[3];
  int count = 0;
  for (int w = 0; w < words; ++w) {
    const std::int64_t j = w * 32 + lane;
    const std::uint32_t word = __ballot_sync(~0u, j < visible && from[j * mask.stride[3]]);
    if (lane == 0) bits[i * words + w] = word;
    count += __popc(word);
  }
  if (lane == 0) counts[i] = count;
}

template <class T>
void check_attention(const char* op, const core::Tensor<const T, 4>& q, const core::Tensor<const T, 4>& k,
                     const core::Tensor<const T, 4>& v, const core::Tensor<const bool, 4>& mask, std::int64_t block, double scale,
                     bool causal) {
  const auto [batch, heads, n, d] = q.shape;
  const std::int64_t groups = k.shape[1], m = k.shape[2], e = v.shape[3];
  check_blocks(op, n, m, block, causal, "mask", mask.shape[2], mask.shape[3]);
  check_heads(op, heads, groups, scale);
  if (d > 256) refuse(op, "q", "of at most 256 channels on CUDA, got " + std::to_string(d));
  if (e > 256) refuse(op, "v", "of at most 256 channels on CUDA, got " + std::to_string(e));
  if (n > INT32_MAX / 2 || m > INT32_MAX / 2 || batch > 65535 || heads > 65535)
    refuse(op, "q", "of at most 2^30 positions and 65,535 batches and heads on CUDA");
}

/// The words that the mask's bits and their counts take.
inline std::int64_t words_of_mask(const char* op, const core::Tensor<const bool, 4>& mask) {
  return core::checked_mul(mask.shape[0] * mask.shape[1] * mask.shape[2], ceil_div(mask.shape[3], 32) + 1, op);
}

/// What checked arguments say; the mask's bits are queued to be written to `bits`.
template <class T>
Blocks<typename native<T>::type> read_blocks(const char* op, const core::Tensor<const T, 4>& q, const core::Tensor<const T, 4>& k,
                                             const core::Tensor<const T, 4>& v, const core::Tensor<const bool, 4>& mask, std::int64_t block,
                                             double scale, bool causal, std::uint32_t* bits, cudaStream_t stream) {
  const std::int64_t n = q.shape[2], m = k.shape[2], rows = mask.shape[0] * mask.shape[1] * mask.shape[2];
  const int words = static_cast<int>(ceil_div(mask.shape[3], 32));
  auto* const counts = reinterpret_cast<int*>(bits + rows * words);
  if (rows)
    pack_mask<<<static_cast<unsigned>(ceil_div(rows, 8)), 256, 0, stream>>>(mask, rows, words, static_cast<int>(block), n, m, causal, bits,
                                                                            counts);
  check_cuda(op, cudaGetLastError(), "packing the mask");
  Blocks<typename native<T>::type> a{};
  a.q = view(q), a.k = view(k), a.v = view(v), a.bits = bits, a.counts = counts, a.words = words;
  a.batch = static_cast<int>(q.shape[0]), a.heads = static_cast<int>(q.shape[1]);
  a.share = static_cast<int>(q.shape[1] / k.shape[1]);
  a.q_blocks = static_cast<int>(mask.shape[2]), a.k_blocks = static_cast<int>(mask.shape[3]);
  a.n = static_cast<int>(n), a.m = static_cast<int>(m), a.d = static_cast<int>(q.shape[3]), a.e = static_cast<int>(v.shape[3]);
  a.block = static_cast<int>(block), a.offset = static_cast<int>(m - n), a.causal = causal;
  a.scale = static_cast<float>(scale) * log2_e;
  return a;
}
}  // namespace
}  // namespace core_llm_efficiency
