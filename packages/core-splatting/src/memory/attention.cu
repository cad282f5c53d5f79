// Gaussian memory attention on CUDA; see include/core_splatting/memory.hpp.
//
// Scores are cheap (L is 16 or 32 channels) and values are wide (D is 512 to 4096), so each block of the product has a
// tile of output columns and computes the weights that it needs anew, from the logarithms of their sums.
#include <core/cuda.hpp>
#include <core_splatting/memory.hpp>

#include <algorithm>
#include <cmath>

#include "tiles.cuh"

namespace core_splatting {
namespace {

/// log_sums of 16 queries of a block: its warps take tiles of 32 keys in turn, straight from memory.
__global__ void __launch_bounds__(threads) log_sums_kernel(Matrix queries, Matrix keys, core::Tensor<float, 1> log_sums) {
  constexpr int warps = threads / 32;
  __shared__ float mosts[warps][16], sums[warps][16];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = int64_t{blockIdx.x} * 16, length = queries.shape[1];
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int64_t t = warp * 32; t < keys.shape[0]; t += warps * 32) {
    float scores[1][4][4] = {};
    for (int64_t from = 0; from < length; from += 8)
      multiply_tile<1, 4, 8>(
          scores, [&](int r, int k) { return element_or_zero(queries, first + r, from + k); },
          [&](int k, int n) { return element_or_zero(keys, t + n, from + k); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float high = most[half];
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (t + 8 * n + 2 * (lane % 4) + e >= keys.shape[0]) scores[0][n][2 * half + e] = -INFINITY;
          high = max_of(scores[0][n][2 * half + e], high);
        }
      if (high == -INFINITY) continue;
      sum[half] *= expf(most[half] - high);
      most[half] = high;
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) sum[half] += expf(scores[0][n][2 * half + e] - high);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float high = most[half];
    for (int other = 2; other; other /= 2) high = max_of(high, __shfl_xor_sync(0xffffffffu, high, other));
    float all = most[half] == -INFINITY ? 0.f : sum[half] * expf(most[half] - high);
    for (int other = 2; other; other /= 2) all += __shfl_xor_sync(0xffffffffu, all, other);
    if (lane % 4 == 0) mosts[warp][lane / 4 + 8 * half] = high, sums[warp][lane / 4 + 8 * half] = all;
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row >= 16 || first + row >= queries.shape[0]) return;
  float high = -INFINITY, all = 0.f;
  for (int w = 0; w < warps; ++w) high = max_of(high, mosts[w][row]);
  for (int w = 0; w < warps; ++w) all += mosts[w][row] == -INFINITY ? 0.f : sums[w][row] * expf(mosts[w][row] - high);
  at(log_sums, first + row) = high + logf(all);
}

constexpr int wide = 128, step = 32;
template <int Tall>
struct SumTiles {
  float a[depth_step][pitch_of<Tall>], b[depth_step][pitch_of<step>], w[step][pitch_of<Tall>], v[2][step][pitch_of<wide>];
};

/// Rows [first, first + step) and columns [column, column + wide) of m to shared memory, zeros outside; asynchronously if m's
/// rows lie in pieces of 16 bytes. `commit` must follow.
__device__ void begin_copy(const Matrix& m, int64_t first, int64_t column, float (*to)[pitch_of<wide>], bool in_pieces) {
  const int thread = static_cast<int>(threadIdx.x);
  if (in_pieces && column + wide <= m.shape[1]) {
    static_assert(wide / 4 * 8 == threads);
    const int row = thread / (wide / 4), four = thread % (wide / 4) * 4;
    const float* from = m.data + (first + row) * m.stride[0] + column + four;
    const int64_t left = m.shape[0] - first - row;
    const int rows = static_cast<int>(left < step ? left : step);
#pragma unroll
    for (int j = 0; j < step * wide / 4 / threads; ++j, from += 8 * m.stride[0])
      begin_copy_16(&to[row + 8 * j][four], 8 * j < rows ? from : m.data, 8 * j < rows);
  } else {
#pragma unroll 4
    for (int j = 0; j < step * wide / threads; ++j) {
      const int i = j * threads + thread;
      to[i / wide][i % wide] = element_or_zero(m, first + i / wide, column + i % wide);
    }
  }
}

/// out[row, :] = sum over inner of exp(rows[row] . inner - log_sum) columns[inner, :]: the attention itself (log_sums of the
/// rows), and the gradient by values (of the inner ones). Tall rows and 128 columns of a block, of a warp a half and a quarter.
template <bool ByRow, int Tall>
__global__ void __launch_bounds__(threads, 2)
    weighted_sums_kernel(Matrix rows, Matrix inner, Matrix columns, core::Tensor<const float, 1> log_sums, core::Tensor<float, 2> out) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& [a, b, w, v] = *reinterpret_cast<SumTiles<Tall>*>(shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t first = int64_t{blockIdx.x} * Tall, column = int64_t{blockIdx.y} * wide, length = rows.shape[1];
  const int top = warp / 4 * (Tall / 2), side = warp % 4 * (wide / 4);  // of the product
  const int place = warp * 16;                                          // of the weights, if below Tall
  constexpr int pieces = Tall / 32;
  const bool in_pieces = columns.stride[1] == 1 && columns.stride[0] % 4 == 0 && reinterpret_cast<std::uintptr_t>(columns.data) % 16 == 0;
  float sums[pieces][4][4] = {}, shift[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + place + lane / 4 + 8 * half;
    if (ByRow && row < rows.shape[0]) shift[half] = at(log_sums, row);
  }
  begin_copy(columns, 0, column, v[0], in_pieces);
  commit();
  for (int64_t t = 0; t < inner.shape[0]; t += step) {
    float scores[1][4][4] = {};
    for (int64_t from = 0; from < length; from += depth_step) {
      __syncthreads();
      if (t == 0 || length > depth_step) load_transposed<Tall>(rows, first, from, a);
      load_transposed<step>(inner, t, from, b);
      __syncthreads();
      if (place < Tall) {
        const auto left = [&](int r, int k) { return a[k][place + r]; };
        const auto right = [&](int k, int n) { return b[k][n]; };
        if (length - from > 16)
          multiply_tile<1, 4, 32>(scores, left, right);
        else
          multiply_tile<1, 4, 16>(scores, left, right);
      }
    }
    if (length == 0) __syncthreads();
    if (place < Tall) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = place + lane / 4 + 8 * (e / 2), key = 8 * n + 2 * (lane % 4) + e % 2;
          const bool there = t + key < inner.shape[0] && first + row < rows.shape[0];
          w[key][row] = there ? expf(scores[0][n][e] - (ByRow ? shift[e / 2] : at(log_sums, t + key))) : 0.f;
        }
    }
    const int now = static_cast<int>(t / step % 2);
    begin_copy(columns, t + step, column, v[1 - now], in_pieces);
    commit();
    wait_for_all_but_one();
    __syncthreads();
    multiply_tile<pieces, 4, step>(sums, [&](int r, int k) { return w[k][top + r]; }, [&](int k, int n) { return v[now][k][side + n]; });
  }
#pragma unroll
  for (int m = 0; m < pieces; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t r = first + top + 16 * m + lane / 4 + 8 * (e / 2), c = column + side + 8 * n + 2 * (lane % 4) + e % 2;
        if (r < out.shape[0] && c < out.shape[1]) at(out, r, c) = sums[m][n][e];
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
  __shared__ float a[depth_step][pitch_of<64>], b[depth_step][pitch_of<64>], slopes[64][64 + 4];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int top = warp / 2 * 16, side = warp % 2 * 32;
  const int64_t count = queries.shape[0], memories = keys.shape[0], length = queries.shape[1], depth = values.shape[1];
  float* const by_query = query_shares + int64_t{blockIdx.y} * count * length;
  float* const by_key = key_shares + int64_t{blockIdx.x} * memories * length;
  const int64_t begin = int64_t{blockIdx.y} * keys_per_block, end = begin + keys_per_block < memories ? begin + keys_per_block : memories;
  const auto left = [&](int r, int k) { return a[k][top + r]; };
  const auto right = [&](int k, int n) { return b[k][side + n]; };
  for (int64_t first = int64_t{blockIdx.x} * 64; first < count; first += int64_t{gridDim.x} * 64) {
    for (int64_t t = begin; t < end; t += 64) {
      float scores[1][4][4] = {}, gains[1][4][4] = {};
      for (int64_t from = 0; from < length; from += depth_step) {
        __syncthreads();
        load_transposed<64>(queries, first, from, a);
        load_transposed<64>(keys, t, from, b);
        __syncthreads();
        multiply_tile<1, 4, depth_step>(scores, left, right);
      }
      Share<64> of_out, of_values;
      of_out.fetch(v_out, first, 0), of_values.fetch(values, t, 0);
      for (int64_t from = 0; from < depth; from += depth_step) {
        __syncthreads();
        of_out.store(a), of_values.store(b);
        __syncthreads();
        if (from + depth_step < depth) of_out.fetch(v_out, first, from + depth_step), of_values.fetch(values, t, from + depth_step);
        multiply_tile<1, 4, depth_step>(gains, left, right);
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = top + lane / 4 + 8 * (e / 2), key = side + 8 * n + 2 * (lane % 4) + e % 2;
          const bool there = first + row < count && t + key < end;
          slopes[row][key] = there ? expf(scores[0][n][e] - at(log_sums, first + row)) * (gains[0][n][e] - means[first + row]) : 0.f;
        }
      const int part = warp % 2 * 16;  // of the channels
      for (int64_t from = 0; from < length; from += depth_step) {
        __syncthreads();
        load_transposed<64>(keys, t, from, b);
        load_transposed<64>(queries, first, from, a);
        __syncthreads();
        float query[1][2][4] = {}, key[1][2][4] = {};
        multiply_tile<1, 2, 64>(query, [&](int r, int k) { return slopes[top + r][k]; }, [&](int k, int n) { return b[part + n][k]; });
        multiply_tile<1, 2, 64>(key, [&](int r, int k) { return slopes[k][top + r]; }, [&](int k, int n) { return a[part + n][k]; });
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = top + lane / 4 + 8 * (e / 2);
            const int64_t channel = from + part + 8 * n + 2 * (lane % 4) + e % 2;
            if (channel >= length) continue;
            if (first + row < count) by_query[(first + row) * length + channel] += query[0][n][e];
            if (t + row < end) by_key[(t + row) * length + channel] += key[0][n][e];
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

constexpr int64_t wanted = 264;  // blocks: two for each multiprocessor of an H100

void check_sizes(const char* op, const Matrix& columns) {
  if (columns.shape[1] > int64_t{65535} * 128)
    throw core::Error("ValueError", std::string(op) + ": argument 'values' must have at most 8,388,480 columns on CUDA");
}

void add_shares(const float* from, int64_t shares, const core::Tensor<float, 2>& out, cudaStream_t stream) {
  if (const int64_t n = out.shape[0] * out.shape[1]) add_shares_kernel<<<blocks(n, threads), threads, 0, stream>>>(from, shares, out);
}

template <bool ByRow, int Tall>
void weighted_sums_of(const char* op, const Matrix& rows, const Matrix& inner, const Matrix& columns,
                      const core::Tensor<const float, 1>& log_sums, const core::Tensor<float, 2>& out, cudaStream_t stream) {
  constexpr int bytes = sizeof(SumTiles<Tall>);
  core::check_cuda(op, cudaFuncSetAttribute(weighted_sums_kernel<ByRow, Tall>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                   "asking for shared memory");
  weighted_sums_kernel<ByRow, Tall>
      <<<dim3(blocks(out.shape[0], Tall), blocks(out.shape[1], wide)), threads, bytes, stream>>>(rows, inner, columns, log_sums, out);
}

template <bool ByRow>
void weighted_sums(const char* op, const Matrix& rows, const Matrix& inner, const Matrix& columns,
                   const core::Tensor<const float, 1>& log_sums, const core::Tensor<float, 2>& out, cudaStream_t stream) {
  if (!out.shape[0] || !out.shape[1]) return;
  const int64_t tall_blocks = int64_t{blocks(out.shape[0], 128)} * blocks(out.shape[1], wide);
  if (tall_blocks >= wanted)
    weighted_sums_of<ByRow, 128>(op, rows, inner, columns, log_sums, out, stream);
  else
    weighted_sums_of<ByRow, 64>(op, rows, inner, columns, log_sums, out, stream);
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
    log_sums_kernel<<<blocks(queries.shape[0], 16), threads, 0, stream>>>(queries, keys, log_sums);
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
