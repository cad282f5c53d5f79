// Block-sparse attention on CUDA for any sizes and strides: tiles of 64 queries and 64 keys, mma.sync, an online softmax.
#include <algorithm>

#include "attention_blocks.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int threads = 128, edge = 64;

/// 64 queries of one block, 16 a warp. Width: head dimension, rounded up.
template <class T, int Width>
__global__ void __launch_bounds__(threads) attend(Attention<T> a) {
  constexpr int padded = Width + 8;
  extern __shared__ __align__(16) char shared[];
  T *q_tile = reinterpret_cast<T*>(shared), *k_tile = q_tile + edge * padded, *v_tile = k_tile + edge * padded;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int tiles = (a.block + edge - 1) / edge, x = static_cast<int>(gridDim.x - 1 - blockIdx.x);  // the longest first
  const int q_block = x / tiles, first = q_block * a.block + x % tiles * edge;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int count = min(edge, min((q_block + 1) * a.block, a.n) - first);
  if (count <= 0) return;
  const T *from_k = a.k.at(b, h / a.share), *from_v = a.v.at(b, h / a.share);
  const std::uint32_t* bits = a.bits + ((std::int64_t{b} * a.heads + h) * a.q_blocks + q_block) * a.words;
  const int position = a.causal ? a.offset + first : a.m;  // of the first query
  const int last = a.causal ? position + count - 1 : a.m - 1;
  load_tile<T, edge, Width, padded, threads>(q_tile, a.q.at(b, h), a.q.row, a.q.col, a.q.wide, first, 1, first + count, 0, a.d);

  float out[Width / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int w = 0; w < a.words; ++w)
    for (std::uint32_t word = bits[w]; word; word &= word - 1) {
      const int key_block = w * 32 + __ffs(static_cast<int>(word)) - 1;
      const int end = min(min((key_block + 1) * a.block, a.m), last + 1);
      for (int key = key_block * a.block; key < end; key += edge) {
        __syncthreads();
        load_tile<T, edge, Width, padded, threads>(k_tile, from_k, a.k.row, a.k.col, a.k.wide, key, 1, end, 0, a.d);
        load_tile<T, edge, Width, padded, threads>(v_tile, from_v, a.v.row, a.v.col, a.v.wide, key, 1, end, 0, a.e);
        __syncthreads();
        float s[8][4] = {};
#pragma unroll
        for (int step = 0; step < Width; step += 16) {
          std::uint32_t y[4];
          load_matrices(y, q_tile + (warp * 16 + lane % 16) * padded + step + lane / 16 * 8);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            std::uint32_t z[4];
            load_matrices(z, k_tile + (j * 16 + lane / 16 * 8 + lane % 8) * padded + step + lane / 8 % 2 * 8);
            multiply_add<T>(s[2 * j], y, z[0], z[1]);
            multiply_add<T>(s[2 * j + 1], y, z[2], z[3]);
          }
        }
        const int keys = min(edge, end - key);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp * 16 + lane / 4 + half * 8, seen = min(keys, position - key + row + 1);
          float most = top[half];
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& y = s[j][half * 2 + i];
              y = j * 8 + lane % 4 * 2 + i < seen ? y * a.scale : -INFINITY;
              most = fmaxf(most, y);
            }
          most = quad_max(most);
          const float base = most == -INFINITY ? 0.f : most, keep = exp2_fast(top[half] - base);
          top[half] = most;
          sum[half] *= keep;
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& y = s[j][half * 2 + i];
              y = exp2_fast(y - base);
              sum[half] += y;
            }
#pragma unroll
          for (int j = 0; j < Width / 8; ++j) out[j][half * 2] *= keep, out[j][half * 2 + 1] *= keep;
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const std::uint32_t weights[4] = {pack<T>(s[2 * step][0], s[2 * step][1]), pack<T>(s[2 * step][2], s[2 * step][3]),
                                            pack<T>(s[2 * step + 1][0], s[2 * step + 1][1]),
                                            pack<T>(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
          for (int j = 0; j < Width / 16; ++j) {
            std::uint32_t z[4];
            load_matrices_transposed(z, v_tile + (step * 16 + lane % 16) * padded + j * 16 + lane / 16 * 8);
            multiply_add<T>(out[2 * j], weights, z[0], z[1]);
            multiply_add<T>(out[2 * j + 1], weights, z[2], z[3]);
          }
        }
      }
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + lane / 4 + half * 8;
    const float total = quad_sum(sum[half]), inverse = total == 0 ? 0.f : 1.f / total;
    if (row >= count) continue;
    T* to = a.out.at(b, h) + std::int64_t{first + row} * a.out.row;
#pragma unroll
    for (int j = 0; j < Width / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (const int column = j * 8 + lane % 4 * 2 + i; column < a.e) to[column * a.out.col] = T(out[j][half * 2 + i] * inverse);
    if (a.lse && lane % 4 == 0)
      a.lse[b * a.lse_batch + h * a.lse_head + std::int64_t{first + row} * a.lse_row] =
          total == 0 ? -INFINITY : (top[half] + log2f(total)) * ln_2;
  }
}

template <class T, int Width>
void attend_portable(const Attention<T>& a, cudaStream_t stream) {
  constexpr int bytes = 3 * edge * (Width + 8) * int{sizeof(T)};
  const char* op = "block_sparse_attention";
  check_cuda(op, cudaFuncSetAttribute(attend<T, Width>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  const dim3 grid(static_cast<unsigned>(a.q_blocks * ceil_div(a.block, edge)), static_cast<unsigned>(a.heads),
                  static_cast<unsigned>(a.batch));
  attend<T, Width><<<grid, threads, bytes, stream>>>(a);
  check_cuda(op, cudaGetLastError(), "attending");
}

template <class T>
void attention_on(core::Tensor<const T, 4> q, core::Tensor<const T, 4> k, core::Tensor<const T, 4> v, core::Tensor<const bool, 4> mask,
                  std::int64_t block, double scale, bool causal, core::Tensor<T, 4> out, std::optional<core::Tensor<float, 3>> lse,
                  core::Stream queue) {
  const char* op = "block_sparse_attention";
  check_attention(op, q, k, v, mask, block, scale, causal);
  if (q.shape[0] == 0 || q.shape[1] == 0 || q.shape[2] == 0) return;
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OnDevice on(op, q.device_id);
  const DeviceScratch scratch(op, q.device_id, stream, core::checked_mul(words_of_mask(op, mask), 4, op));
  using N = typename native<T>::type;
  Attention<N> a{read_blocks(op, q, k, v, mask, block, scale, causal, scratch.get<std::uint32_t>(), stream)};
  a.out = view(out);
  if (lse) a.lse = lse->data, a.lse_batch = lse->stride[0], a.lse_head = lse->stride[1], a.lse_row = lse->stride[2];
  if (attend_hopper(a, q.device_id, stream)) return;
  const std::int64_t width = std::max(q.shape[3], v.shape[3]);
  if (width <= 64) return attend_portable<N, 64>(a, stream);
  if (width <= 128) return attend_portable<N, 128>(a, stream);
  attend_portable<N, 256>(a, stream);
}
}  // namespace

void block_sparse_attention_bf16(core::Tensor<const core::bfloat16, 4> q, core::Tensor<const core::bfloat16, 4> k,
                                 core::Tensor<const core::bfloat16, 4> v, core::Tensor<const bool, 4> mask, std::int64_t block,
                                 double scale, bool causal, core::Tensor<core::bfloat16, 4> out, std::optional<core::Tensor<float, 3>> lse,
                                 core::Stream stream) {
  attention_on(q, k, v, mask, block, scale, causal, out, lse, stream);
}
void block_sparse_attention_fp16(core::Tensor<const core::float16, 4> q, core::Tensor<const core::float16, 4> k,
                                 core::Tensor<const core::float16, 4> v, core::Tensor<const bool, 4> mask, std::int64_t block, double scale,
                                 bool causal, core::Tensor<core::float16, 4> out, std::optional<core::Tensor<float, 3>> lse,
                                 core::Stream stream) {
  attention_on(q, k, v, mask, block, scale, causal, out, lse, stream);
}
}  // namespace core_llm_efficiency
