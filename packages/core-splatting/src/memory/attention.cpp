// Gaussian memory attention on the CPU; see include/core_splatting/memory.hpp.
#include <core/exp.hpp>
#include <core/isa.hpp>
#include <core_splatting/memory.hpp>

#include <cmath>
#include <limits>

#include "panels.hpp"

namespace core_splatting {
namespace {

using std::int64_t;
using Matrix = core::Tensor<const float, 2>;

constexpr int64_t chunk_rows = 1008;  // queries whose weights the gradient holds at a time
static_assert(chunk_rows % block_rows == 0);

std::vector<float> room(int64_t rows, int64_t columns) {
  return std::vector<float>(static_cast<std::size_t>(core::checked_mul(rows, columns, "memory_attention: scratch")));
}

/// Rows [first, first + rows) of m, beside each other.
void load(const Matrix& m, int64_t first, int64_t rows, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < m.shape[1]; ++k) to[i * m.shape[1] + k] = m(first + i, k);
}

/// exp(x - shift) over a row of n in place; returns their sum.
float exponentials(float* x, int64_t n, float shift) {
  float sums[lanes] = {};
  int64_t t = 0;
  for (; t + lanes <= n; t += lanes)
    for (int64_t j = 0; j < lanes; ++j) {
      const float below = x[t + j] - shift;
      sums[j] += x[t + j] = core::exp_clamped(below < core::lowest_exp ? core::lowest_exp : below);
    }
  float sum = 0;
  for (; t < n; ++t) {
    const float below = x[t] - shift;
    sum += x[t] = core::exp_clamped(below < core::lowest_exp ? core::lowest_exp : below);
  }
  for (const float s : sums) sum += s;
  return sum;
}

struct Forward {
  Matrix queries;
  core::Tensor<float, 2> out;
  core::Tensor<float, 1> log_sums;
  Panels keys, values;
};

/// work: block_rows rows of queries, weights and results.
void forward_block(const Forward* job, int64_t first, float* work) {
  const int64_t rows = std::min(block_rows, job->queries.shape[0] - first), memories = job->keys.columns;
  float* const weights = work + block_rows * job->keys.depth;
  float* const results = weights + block_rows * job->keys.width();
  load(job->queries, first, rows, work);
  multiply(rows, work, job->keys.depth, job->keys, weights);
  float sums[block_rows];
  for (int64_t i = 0; i < rows; ++i) {
    float* const row = weights + i * job->keys.width();
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < memories; ++t) most = row[t] > most ? row[t] : most;
    sums[i] = exponentials(row, memories, most);
    job->log_sums(first + i) = most + std::log(sums[i]);
  }
  multiply(rows, weights, job->keys.width(), job->values, results);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < job->values.columns; ++d) job->out(first + i, d) = results[i * job->values.width() + d] / sums[i];
}

struct Backward {
  Matrix queries, out, v_out;
  core::Tensor<const float, 1> log_sums;
  core::Tensor<float, 2> v_queries, v_keys;
  std::optional<core::Tensor<float, 2>> v_values;
  Panels keys, values_by_row, keys_by_column;  // [L, T], [D, T], [T, L]
  // Of a chunk of queries: weights and derivatives by scores [rows][width of keys], and [rows, D], [rows, L].
  std::vector<float> weights, slopes;
  Panels v_out_chunk, queries_chunk;
};

/// The weights and slopes of a block of queries in the chunk that begins at `start`, and the gradient by its queries.
void backward_queries(Backward* job, int64_t start, int64_t at, float* work) {
  const int64_t first = start + at, rows = std::min(block_rows, job->queries.shape[0] - first);
  const int64_t memories = job->keys.columns, pitch = job->keys.width(), depth = job->values_by_row.depth;
  float* const weights = job->weights.data() + at * pitch;
  float* const slopes = job->slopes.data() + at * pitch;
  load(job->queries, first, rows, work);
  multiply(rows, work, job->keys.depth, job->keys, weights);
  load(job->v_out, first, rows, work);
  multiply(rows, work, depth, job->values_by_row, slopes);
  for (int64_t i = 0; i < rows; ++i) {
    double mean = 0;
    for (int64_t d = 0; d < depth; ++d) mean += static_cast<double>(work[i * depth + d]) * static_cast<double>(job->out(first + i, d));
    float* const w = weights + i * pitch;
    float* const s = slopes + i * pitch;
    exponentials(w, memories, job->log_sums(first + i));
    const float shift = static_cast<float>(mean);
    for (int64_t t = 0; t < memories; ++t) s[t] = w[t] * (s[t] - shift);
  }
  multiply(rows, slopes, pitch, job->keys_by_column, work);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < job->keys_by_column.columns; ++k) job->v_queries(first + i, k) = work[i * job->keys_by_column.width() + k];
}

/// Adds a chunk's share to the gradient by a block of keys and values.
void backward_keys(const Backward* job, int64_t chunk, int64_t first, float* work) {
  const int64_t rows = std::min(block_rows, job->keys.columns - first), pitch = job->keys.width();
  float* const products = work + block_rows * chunk;
  const auto add = [&](const std::vector<float>& from, const Panels& by, const core::Tensor<float, 2>& to) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t p = 0; p < chunk; ++p) work[i * chunk + p] = from[static_cast<std::size_t>(p * pitch + first + i)];
    multiply(rows, work, chunk, by, products);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < by.columns; ++k) to(first + i, k) += products[i * by.width() + k];
  };
  add(job->slopes, job->queries_chunk, job->v_keys);
  if (job->v_values) add(job->weights, job->v_out_chunk, *job->v_values);
}

template <class F>
void over_blocks(int64_t rows, int64_t floats_per_row, F f) {
  core::parallel_for(ceil_div(rows, block_rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> work = room(block_rows, floats_per_row);
    for (int64_t b = begin; b < end; ++b) f(b * block_rows, work.data());
  });
}

void clear(const core::Tensor<float, 2>& t) {
  for (int64_t i = 0; i < t.shape[0]; ++i)
    for (int64_t k = 0; k < t.shape[1]; ++k) t(i, k) = 0;
}

}  // namespace

void memory_attention(Matrix queries, Matrix keys, Matrix values, core::Tensor<float, 2> out, core::Tensor<float, 1> log_sums) {
  Forward job{queries, out, log_sums, {}, {}};
  job.keys.pack(keys.shape[1], keys.shape[0], [&](int64_t k, int64_t t) { return keys(t, k); });
  job.values.pack(values.shape[0], values.shape[1], [&](int64_t t, int64_t d) { return values(t, d); });
  if (!keys.shape[0]) {
    clear(out);
    for (int64_t p = 0; p < log_sums.shape[0]; ++p) log_sums(p) = -std::numeric_limits<float>::infinity();
    return;
  }
  over_blocks(queries.shape[0], job.keys.depth + job.keys.width() + job.values.width(),
              [&](int64_t first, float* work) { core::multiversion<&forward_block>(&job, first, work); });
}

void memory_attention_backward(Matrix queries, Matrix keys, Matrix values, Matrix out, core::Tensor<const float, 1> log_sums, Matrix v_out,
                               core::Tensor<float, 2> v_queries, core::Tensor<float, 2> v_keys,
                               std::optional<core::Tensor<float, 2>> v_values) {
  Backward job{queries, out, v_out, log_sums, v_queries, v_keys, v_values, {}, {}, {}, {}, {}, {}, {}};
  clear(v_queries), clear(v_keys);
  if (v_values) clear(*v_values);
  const int64_t memories = keys.shape[0], length = keys.shape[1], depth = values.shape[1], count = queries.shape[0];
  if (!memories || !count) return;
  job.keys.pack(length, memories, [&](int64_t k, int64_t t) { return keys(t, k); });
  job.keys_by_column.pack(memories, length, [&](int64_t t, int64_t k) { return keys(t, k); });
  job.values_by_row.pack(depth, memories, [&](int64_t d, int64_t t) { return values(t, d); });
  const int64_t most = std::min(chunk_rows, round_up(count, block_rows));
  job.weights = room(most, job.keys.width()), job.slopes = room(most, job.keys.width());
  for (int64_t start = 0; start < count; start += chunk_rows) {
    const int64_t chunk = std::min(chunk_rows, count - start);
    over_blocks(chunk, std::max({length, depth, job.keys_by_column.width()}),
                [&](int64_t at, float* work) { core::multiversion<&backward_queries>(&job, start, at, work); });
    job.queries_chunk.pack(chunk, length, [&](int64_t p, int64_t k) { return queries(start + p, k); });
    if (v_values) job.v_out_chunk.pack(chunk, depth, [&](int64_t p, int64_t d) { return v_out(start + p, d); });
    over_blocks(memories, chunk + std::max(job.queries_chunk.width(), job.v_out_chunk.width()),
                [&](int64_t first, float* work) { core::multiversion<&backward_keys>(&job, chunk, first, work); });
  }
}

}  // namespace core_splatting
