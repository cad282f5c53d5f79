// What Mamba-2's scan on the CPU and its gradients share. Chunks of 64 steps as matrix products. With c the running sum of dt A inside the
// chunk, k the decay since the chunk's start, exp(c[i]), and w[i,j] = exp(c[i] - c[j]) (j <= i, else 0):
//   out = ((C B^T) . w) (dt x) + k C S^T,   S <- k[last] S + (dt x)^T (w[last,.] B).
// Where seq_idx changes, w between its two sides and k beyond it are 0.
#pragma once
#include <core/isa.hpp>
#include <core_llm_efficiency/state_space.hpp>

#include "checks.hpp"
#include "exp_lanes.hpp"

namespace core_llm_efficiency::ssd {
constexpr std::int64_t chunk = 64;

/// A matrix with any strides.
template <class T>
struct Matrix {
  T* data;
  std::int64_t row, col;
};

/// One head of one sequence.
struct Head {
  std::int64_t steps, p, n;  // p, n: of x and of the state
  Matrix<const float> x, B, C;
  const float* dt;
  std::int64_t dt_step;
  float A;
  const std::int32_t* seq;  // null: one sequence
  std::int64_t seq_step;
  Matrix<const float> initial;  // [p][n]; data may be null
};

/// Rows of a product's left factor, `row_step` apart, their number rounded up to 4 with zeros.
inline void rows_of(const Matrix<const float>& m, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t i = 0; i < round_up(rows, 4); ++i)
    for (std::int64_t j = 0; j < cols; ++j) to[i * row_step + j] = i < rows ? m.data[i * m.row + j * m.col] : 0.f;
}
/// A product's right factor, [column / 16][row][16], columns rounded up with zeros.
inline void panels_of(const Matrix<const float>& m, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t first = 0; first < cols; first += lanes)
    for (std::int64_t i = 0; i < rows; ++i, to += lanes)
      for (std::int64_t j = 0; j < lanes; ++j) to[j] = first + j < cols ? m.data[i * m.row + (first + j) * m.col] : 0.f;
}
inline Matrix<const float> turned(const Matrix<const float>& m) { return {m.data, m.col, m.row}; }
inline Matrix<const float> after(const Matrix<const float>& m, std::int64_t row) { return {m.data + row * m.row, m.row, m.col}; }
inline Matrix<const float> matrix(const float* rows) { return {rows, row_step, 1}; }

/// One chunk of a head: its length, dt and decays.
struct Chunk {
  std::int64_t first, count;
  float dt[chunk], since_start[chunk], to_end[chunk], between[chunk * chunk];  // between[i][j]
  float whole() const { return since_start[count - 1]; }
};

/// The decays of a chunk from the running sums of dt A and from where each step's sequence began.
inline void find_decays(Chunk* c, const float* sum, const std::int32_t* start) {
  for (std::int64_t j = 0; j < chunk; j += lanes) exp_lanes(sum + j, c->since_start + j);
  for (std::int32_t i = 0; i < chunk; ++i) {
    const std::int32_t first = start[i];
    c->since_start[i] = first < 0 ? c->since_start[i] : 0.f;
    float* const row = c->between + i * chunk;
    for (std::int32_t at = 0; at < chunk; at += lanes) {
      if (at > i) {
        std::fill_n(row + at, lanes, 0.f);
        continue;
      }
      float power[lanes], e[lanes];
      for (int j = 0; j < lanes; ++j) power[j] = sum[i] - sum[at + j];
      exp_lanes(power, e);
      for (int j = 0; j < lanes; ++j) row[at + j] = at + j >= first && at + j <= i ? e[j] : 0.f;
    }
  }
  std::copy_n(c->between + (c->count - 1) * chunk, chunk, c->to_end);
}

inline void enter(const Head& s, std::int64_t first, Chunk& c) {
  c.first = first;
  c.count = std::min(chunk, s.steps - first);
  float sum[chunk];
  std::int32_t start[chunk];  // of the step's sequence; -1: it began before the chunk
  float running = 0;
  std::int32_t begin = -1;
  for (std::int32_t t = 0; t < chunk; ++t) {
    c.dt[t] = t < c.count ? s.dt[(first + t) * s.dt_step] : 0.f;
    running += c.dt[t] * s.A;
    sum[t] = running;
    if (s.seq && t < c.count && first + t > 0 && s.seq[(first + t) * s.seq_step] != s.seq[(first + t - 1) * s.seq_step]) begin = t;
    start[t] = begin;
  }
  core::multiversion<&find_decays>(&c, static_cast<const float*>(sum), static_cast<const std::int32_t*>(start));
}

template <class T>
Matrix<T> steps_of(const core::Tensor<T, 4>& x, std::int64_t b, std::int64_t h) {
  return {x.data + b * x.stride[0] + h * x.stride[2], x.stride[1], x.stride[3]};
}
template <class T>
Matrix<T> state_of(const core::Tensor<T, 4>& x, std::int64_t b, std::int64_t h) {
  return {x.data + b * x.stride[0] + h * x.stride[1], x.stride[2], x.stride[3]};
}

/// The inputs.
struct Inputs {
  const core::Tensor<const float, 4>&x, &B, &C;
  const core::Tensor<const float, 3>& dt;
  const core::Tensor<const float, 1>& A;
  const std::optional<core::Tensor<const float, 4>>& initial;
  const std::optional<core::Tensor<const std::int32_t, 2>>& seq;
  std::int64_t batch = x.shape[0], steps = x.shape[1], heads = x.shape[2], p = x.shape[3], groups = B.shape[2], n = B.shape[3];

  Head head(std::int64_t b, std::int64_t h) const {
    const std::int64_t g = h / (heads / groups);
    return {steps,
            p,
            n,
            steps_of(x, b, h),
            steps_of(B, b, g),
            steps_of(C, b, g),
            dt.data + b * dt.stride[0] + h * dt.stride[2],
            dt.stride[1],
            A(h),
            seq ? seq->data + b * seq->stride[0] : nullptr,
            seq ? seq->stride[1] : 0,
            initial ? state_of(*initial, b, h) : Matrix<const float>{}};
  }
};
}  // namespace core_llm_efficiency::ssd
