// Gaussian memory attention on CUDA; see include/core_splatting/memory.hpp.
//
// Scores are cheap (L is 16 or 32 channels) and values are wide (D is 512 to 4096), so each block of the product has a
// tile of output columns and computes the weights that it needs anew, from the logarithms of their sums.
#include <core/cuda.hpp>
#include <core_splatting/memory.hpp>

#include <algorithm>
#include <cmath>

#include "../views.hpp"

namespace core_splatting {
namespace {

using std::int64_t;
using Matrix = core::Tensor<const float, 2>;

constexpr int threads = 256;
constexpr int depth_step = 32;  // channels of a score, or columns of a value, that are in shared memory at a time

__device__ float element_or_zero(const Matrix& m, int64_t i, int64_t k) { return i < m.shape[0] && k < m.shape[1] ? at(m, i, k) : 0.f; }

/// Rows of a transposed tile of `Rows` have this length: no two lanes of a warp that fills it meet in a bank.
template <int Rows>
constexpr int pitch_of = Rows + 8;

/// The place of a row in a tile, and the row of a place.
struct InOrder {
  static __device__ int row(int place) { return place; }
};
/// The 4 rows x, x + 8, x + 16, x + 24 of 32 beside each other.
struct Interleaved {
  static __device__ int row(int place) { return place / 4 + place % 4 * 8; }
};

/// tile[k][place] = m(first + row of the place, from + k): `Rows` rows, depth_step of their columns, zeros outside.
template <int Rows, class Order = InOrder>
__device__ void load_transposed(const Matrix& m, int64_t first, int64_t from, float (*tile)[pitch_of<Rows>]) {
  for (int i = static_cast<int>(threadIdx.x); i < Rows * depth_step; i += threads) {
    const int lane = i % 32, group = i / 32;  // a warp takes 8 rows and 4 columns
    const int r = group / (depth_step / 4) * 8 + lane % 8, k = group % (depth_step / 4) * 4 + lane / 8;
    tile[k][r] = element_or_zero(m, first + Order::row(r), from + k);
  }
}

/// sums[4][4] of a thread += rows 4 y .. times rows 4 x .. of two transposed tiles.
template <int A, int B>
__device__ void add_products(const float (*a)[A], const float (*b)[B], int y, int x, float (&sums)[4][4]) {
#pragma unroll
  for (int k = 0; k < depth_step; ++k) {
    const float4 p = *reinterpret_cast<const float4*>(&a[k][4 * y]), q = *reinterpret_cast<const float4*>(&b[k][4 * x]);
    const float left[4] = {p.x, p.y, p.z, p.w}, right[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] += left[i] * right[j];
  }
}

/// log_sums of 64 queries: the keys pass by in tiles of 64, each thread keeps the most and the sum of four rows' share.
__global__ void __launch_bounds__(threads) log_sums_kernel(Matrix queries, Matrix keys, core::Tensor<float, 1> log_sums) {
  __shared__ __align__(16) float q[depth_step][pitch_of<64>], k[depth_step][pitch_of<64>];
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const int64_t first = int64_t{blockIdx.x} * 64, length = queries.shape[1];
  float most[4], sum[4];
  for (int i = 0; i < 4; ++i) most[i] = -INFINITY, sum[i] = 0.f;
  for (int64_t t = 0; t < keys.shape[0]; t += 64) {
    float scores[4][4] = {};
    for (int64_t from = 0; from < length; from += depth_step) {
      __syncthreads();
      if (t == 0 || length > depth_step) load_transposed<64>(queries, first, from, q);
      load_transposed<64>(keys, t, from, k);
      __syncthreads();
      add_products(q, k, y, x, scores);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float high = most[i];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (t + 4 * x + j < keys.shape[0]) high = max_of(scores[i][j], high);
      if (high == -INFINITY) continue;
      sum[i] *= __expf(most[i] - high);
      most[i] = high;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (t + 4 * x + j < keys.shape[0]) sum[i] += expf(scores[i][j] - high);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float high = most[i];
    for (int lane = 8; lane; lane /= 2) high = max_of(high, __shfl_xor_sync(0xffffffffu, high, lane));
    float all = most[i] == -INFINITY ? 0.f : sum[i] * expf(most[i] - high);
    for (int lane = 8; lane; lane /= 2) all += __shfl_xor_sync(0xffffffffu, all, lane);
    const int64_t row = first + 4 * y + i;
    if (x == 0 && row < queries.shape[0]) at(log_sums, row) = high + logf(all);
  }
}

constexpr int tall = 128, wide = 128, step = 32;
struct SumTiles {
  float a[depth_step][pitch_of<tall>], b[depth_step][pitch_of<step>], w[step][tall + 4], v[step][wide + 4];
};

/// out[row, :] = sum over inner of exp(rows[row] . inner - log_sum) columns[inner, :]: the attention itself (log_sums of the
/// rows), and the gradient by values (of the inner ones). 128 rows and 128 columns of a block; 8 by 8 of a thread.
template <bool ByRow>
__global__ void __launch_bounds__(threads, 2)
    weighted_sums_kernel(Matrix rows, Matrix inner, Matrix columns, core::Tensor<const float, 1> log_sums, core::Tensor<float, 2> out) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& [a, b, w, v] = *reinterpret_cast<SumTiles*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = int64_t{blockIdx.x} * tall, column = int64_t{blockIdx.y} * wide, length = rows.shape[1];
  float sums[8][8] = {};
  const int y = thread / 16, x = thread % 16;     // of the product: rows 4 y and 64 + 4 y, columns 4 x and 64 + 4 x
  const int up = thread / 8, along = thread % 8;  // of the weights
  float shift[4];
  for (int i = 0; i < 4; ++i) shift[i] = ByRow && first + 4 * up + i < rows.shape[0] ? at(log_sums, first + 4 * up + i) : 0.f;
  for (int64_t t = 0; t < inner.shape[0]; t += step) {
    float scores[4][4] = {};
    for (int64_t from = 0; from < length; from += depth_step) {
      __syncthreads();
      if (t == 0 || length > depth_step) load_transposed<tall>(rows, first, from, a);
      load_transposed<step, Interleaved>(inner, t, from, b);
      __syncthreads();
      add_products(a, b, up, along, scores);
    }
    if (length == 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t place = t + along + 8 * j;
      const bool there = place < inner.shape[0];
      const float by_inner = !ByRow && there ? at(log_sums, place) : 0.f;
      float e[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) e[i] = there ? expf(scores[i][j] - (ByRow ? shift[i] : by_inner)) : 0.f;
      *reinterpret_cast<float4*>(&w[along + 8 * j][4 * up]) = make_float4(e[0], e[1], e[2], e[3]);
    }
    for (int i = thread; i < step * wide; i += threads) v[i / wide][i % wide] = element_or_zero(columns, t + i / wide, column + i % wide);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < step; ++k) {
      float left[8], right[8];
      *reinterpret_cast<float4*>(left) = *reinterpret_cast<const float4*>(&w[k][4 * y]);
      *reinterpret_cast<float4*>(left + 4) = *reinterpret_cast<const float4*>(&w[k][64 + 4 * y]);
      *reinterpret_cast<float4*>(right) = *reinterpret_cast<const float4*>(&v[k][4 * x]);
      *reinterpret_cast<float4*>(right + 4) = *reinterpret_cast<const float4*>(&v[k][64 + 4 * x]);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] += left[i] * right[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t r = first + (i / 4) * 64 + 4 * y + i % 4, c = column + (j / 4) * 64 + 4 * x + j % 4;
      if (r < out.shape[0] && c < out.shape[1]) at(out, r, c) = sums[i][j];
    }
}

/// means[row] = out[row] . v_out[row], one warp a row.
__global__ void __launch_bounds__(threads) means_kernel(Matrix out, Matrix v_out, float* means) {
  const int64_t row = (int64_t{blockIdx.x} * threads + threadIdx.x) / 32;
  if (row >= out.shape[0]) return;
  float sum = 0.f;
  for (int64_t d = threadIdx.x % 32; d < out.shape[1]; d += 32) sum += at(out, row, d) * at(v_out, row, d);
  for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 32 == 0) means[row] = sum;
}

/// Derivatives by scores, tile by tile of 64 queries and 64 keys, and from them shares of the gradients by queries (one
/// for each blockIdx.y, which has a range of keys) and by keys (one for each blockIdx.x, which has every so manieth tile of
/// queries). Each share is written by one thread alone, so that sums are the same on every run.
__global__ void __launch_bounds__(threads)
    scores_backward_kernel(Matrix queries, Matrix keys, Matrix values, core::Tensor<const float, 1> log_sums, Matrix v_out,
                           const float* means, int64_t keys_per_block, float* query_shares, float* key_shares) {
  __shared__ __align__(16) float a[depth_step][pitch_of<64>], b[depth_step][pitch_of<64>], slopes[64][64 + 4];
  const int thread = static_cast<int>(threadIdx.x), y = thread / 16, x = thread % 16;
  const int64_t count = queries.shape[0], memories = keys.shape[0], length = queries.shape[1], depth = values.shape[1];
  float* const by_query = query_shares + int64_t{blockIdx.y} * count * length;
  float* const by_key = key_shares + int64_t{blockIdx.x} * memories * length;
  const int64_t begin = int64_t{blockIdx.y} * keys_per_block, end = begin + keys_per_block < memories ? begin + keys_per_block : memories;
  for (int64_t first = int64_t{blockIdx.x} * 64; first < count; first += int64_t{gridDim.x} * 64) {
    for (int64_t t = begin; t < end; t += 64) {
      float scores[4][4] = {}, gains[4][4] = {};
      for (int64_t from = 0; from < length; from += depth_step) {
        __syncthreads();
        load_transposed<64>(queries, first, from, a);
        load_transposed<64>(keys, t, from, b);
        __syncthreads();
        add_products(a, b, y, x, scores);
      }
      for (int64_t from = 0; from < depth; from += depth_step) {
        __syncthreads();
        load_transposed<64>(v_out, first, from, a);
        load_transposed<64>(values, t, from, b);
        __syncthreads();
        add_products(a, b, y, x, gains);
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first + 4 * y + i;
        const float shift = row < count ? at(log_sums, row) : 0.f, mean = row < count ? means[row] : 0.f;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          slopes[4 * y + i][4 * x + j] = row < count && t + 4 * x + j < end ? expf(scores[i][j] - shift) * (gains[i][j] - mean) : 0.f;
      }
      for (int64_t from = 0; from < length; from += depth_step) {
        __syncthreads();
        load_transposed<64>(keys, t, from, b);
        load_transposed<64>(queries, first, from, a);
        __syncthreads();
        for (int i = thread; i < 64 * depth_step; i += threads) {
          const int row = i / depth_step, k = i % depth_step;
          if (from + k >= length) continue;
          float query = 0.f, key = 0.f;
          for (int j = 0; j < 64; ++j) query += slopes[row][j] * b[k][j], key += slopes[j][row] * a[k][j];
          if (first + row < count) by_query[(first + row) * length + from + k] += query;
          if (t + row < end) by_key[(t + row) * length + from + k] += key;
        }
      }
    }
  }
}

/// out = the sum of `shares` arrays of its shape.
__global__ void __launch_bounds__(threads) add_shares_kernel(const float* from, int64_t shares, core::Tensor<float, 2> out) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, n = out.shape[0] * out.shape[1];
  if (i >= n) return;
  float sum = 0.f;
  for (int64_t s = 0; s < shares; ++s) sum += from[s * n + i];
  at(out, i / out.shape[1], i % out.shape[1]) = sum;
}

__global__ void __launch_bounds__(threads) fill_kernel(core::Tensor<float, 1> out, float value) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < out.shape[0]) at(out, i) = value;
}

unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

void check_sizes(const char* op, const Matrix& columns) {
  if (columns.shape[1] > int64_t{65535} * 128)
    throw core::Error("ValueError", std::string(op) + ": argument 'values' must have at most 8,388,480 columns on CUDA");
}

void add_shares(const float* from, int64_t shares, const core::Tensor<float, 2>& out, cudaStream_t stream) {
  if (const int64_t n = out.shape[0] * out.shape[1]) add_shares_kernel<<<blocks(n, threads), threads, 0, stream>>>(from, shares, out);
}

template <bool ByRow>
void weighted_sums(const char* op, const Matrix& rows, const Matrix& inner, const Matrix& columns,
                   const core::Tensor<const float, 1>& log_sums, const core::Tensor<float, 2>& out, cudaStream_t stream) {
  if (!out.shape[0] || !out.shape[1]) return;
  core::check_cuda(op, cudaFuncSetAttribute(weighted_sums_kernel<ByRow>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(SumTiles)),
                   "asking for shared memory");
  weighted_sums_kernel<ByRow><<<dim3(blocks(out.shape[0], tall), blocks(out.shape[1], wide)), threads, sizeof(SumTiles), stream>>>(
      rows, inner, columns, log_sums, out);
}

core::Tensor<const float, 1> constant(const core::Tensor<float, 1>& t) { return {t.data, t.shape, t.stride, t.device_type, t.device_id}; }

}  // namespace

void memory_attention_cuda(Matrix queries, Matrix keys, Matrix values, core::Tensor<float, 2> out, core::Tensor<float, 1> log_sums,
                           core::Stream queue) {
  const char* const op = "memory_attention";
  check_sizes(op, values);
  const core::OnDevice guard(op, out.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  if (!queries.shape[0]) return;
  if (keys.shape[0])
    log_sums_kernel<<<blocks(queries.shape[0], 64), threads, 0, stream>>>(queries, keys, log_sums);
  else
    fill_kernel<<<blocks(queries.shape[0], threads), threads, 0, stream>>>(log_sums, -INFINITY);
  weighted_sums<true>(op, queries, keys, values, constant(log_sums), out, stream);
  core::check_cuda(op, cudaGetLastError(), "starting a kernel");
}

void memory_attention_backward_cuda(Matrix queries, Matrix keys, Matrix values, Matrix out, core::Tensor<const float, 1> log_sums,
                                    Matrix v_out, core::Tensor<float, 2> v_queries, core::Tensor<float, 2> v_keys,
                                    std::optional<core::Tensor<float, 2>> v_values, core::Stream queue) {
  const char* const op = "memory_attention_backward";
  check_sizes(op, values);
  const core::OnDevice guard(op, v_queries.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const int64_t count = queries.shape[0], memories = keys.shape[0], length = queries.shape[1];
  constexpr int64_t wanted = 264;  // blocks: two for each multiprocessor of an H100
  const int64_t across = std::max<int64_t>(std::min<int64_t>((count + 63) / 64, wanted / 2), 1);
  const int64_t tiles = (memories + 63) / 64;
  const int64_t keys_per_block = std::max<int64_t>((tiles * across + wanted - 1) / wanted, 1) * 64;
  const int64_t down = std::max<int64_t>((memories + keys_per_block - 1) / keys_per_block, 1);
  const int64_t by_query = core::checked_mul(core::checked_mul(down, count, op), length, op);
  const int64_t by_key = core::checked_mul(core::checked_mul(across, memories, op), length, op);
  const int64_t bytes = core::checked_mul(by_query + by_key + count, 4, op);
  const core::DeviceScratch scratch(op, v_queries.device_id, stream, bytes);
  float* const shares = scratch.get<float>();
  float* const means = shares + by_query + by_key;
  if (bytes) core::check_cuda(op, cudaMemsetAsync(shares, 0, static_cast<std::size_t>(bytes), stream), "clearing scratch");
  if (count && memories) {
    means_kernel<<<blocks(count, threads / 32), threads, 0, stream>>>(out, v_out, means);
    scores_backward_kernel<<<dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), threads, 0, stream>>>(
        queries, keys, values, log_sums, v_out, means, keys_per_block, shares, shares + by_query);
  }
  add_shares(shares, down, v_queries, stream);
  add_shares(shares + by_query, across, v_keys, stream);
  if (v_values) weighted_sums<false>(op, keys, queries, v_out, log_sums, *v_values, stream);
  core::check_cuda(op, cudaGetLastError(), "starting a kernel");
}

}  // namespace core_splatting
