// A single step of Mamba-2's scan on CUDA, as in decoding: the states are read and written once.
#pragma once
#include "ssd_scan.cuh"

namespace core_llm_efficiency {
namespace {
using namespace ssd;

/// A single step: one warp a channel.
__global__ void __launch_bounds__(256) scan_step(const __grid_constant__ Scan s, std::int64_t rows) {
  const std::int64_t row = blockIdx.x * std::int64_t{8} + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, p = static_cast<int>(row % s.p), h = static_cast<int>(row / s.p % s.heads);
  const std::int64_t b = row / s.p / s.heads;
  const float dt = s.dt[b * s.dt_batch + h * s.dt_head], keep = exp2_fast(dt * s.A[h * s.A_head] * log2_e);
  const float x = dt * load(s.x.data, b * s.x.batch + h * s.x.head + p * s.x.col, s.kind);
  const std::int64_t of_B = b * s.B.batch + h / s.share * s.B.head, of_C = b * s.C.batch + h / s.share * s.C.head;
  float y = 0;
  for (int n = lane; n < s.n; n += 32) {
    float state = x * load(s.B.data, of_B + n * s.B.col, s.kind);
    if (s.initial.data) state += keep * s.initial.data[b * s.initial.batch + h * s.initial.head + p * s.initial.row + n * s.initial.col];
    y += state * load(s.C.data, of_C + n * s.C.col, s.kind);
    s.final.data[b * s.final.batch + h * s.final.head + p * s.final.row + n * s.final.col] = state;
  }
  for (int o = 16; o; o /= 2) y += __shfl_xor_sync(~0u, y, o);
  if (lane == 0) store(s.out.data, b * s.out.batch + h * s.out.head + p * s.out.col, s.kind, y);
}

/// A single step whose states are contiguous, four a lane and `Fours` times 128 in all: eight channels of a head a warp, read
/// before any is worked on.
template <class T, int Fours>
__global__ void __launch_bounds__(128) step_together(const __grid_constant__ Scan s) {
  constexpr int rows = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, parts = (s.p + 4 * rows - 1) / (4 * rows);
  const int first = static_cast<int>(blockIdx.x) % parts * 4 * rows + static_cast<int>(threadIdx.x) / 32 * rows;
  const int h = static_cast<int>(blockIdx.x) / parts % s.heads;
  const std::int64_t b = blockIdx.x / parts / s.heads;
  if (first >= s.p) return;
  const auto state_at = [&](const States& m, int r, int k) {
    return reinterpret_cast<float4*>(m.data + b * m.batch + h * m.head + (first + r) * m.row + (k * 32 + lane) * 4);
  };
  const auto inside = [&](int r, int k) { return first + r < s.p && (k * 32 + lane) * 4 < s.n; };
  float4 state[rows][Fours];
#pragma unroll
  for (int r = 0; r < rows; ++r)
#pragma unroll
    for (int k = 0; k < Fours; ++k) state[r][k] = s.initial.data && inside(r, k) ? __ldcs(state_at(s.initial, r, k)) : float4{};
  const T *const x = static_cast<const T*>(s.x.data) + b * s.x.batch + h * s.x.head,
                 *const B = static_cast<const T*>(s.B.data) + b * s.B.batch + h / s.share * s.B.head,
                 *const C = static_cast<const T*>(s.C.data) + b * s.C.batch + h / s.share * s.C.head;
  const float dt = s.dt[b * s.dt_batch + h * s.dt_head], keep = exp2_fast(dt * s.A[h * s.A_head] * log2_e);
  const float mine = lane < rows && first + lane < s.p ? dt * number(x[(first + lane) * s.x.col]) : 0.f;
  float y[rows] = {};
#pragma unroll
  for (int k = 0; k < Fours; ++k) {
    float in[4], out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = (k * 32 + lane) * 4 + i;
      in[i] = n < s.n ? number(B[n * s.B.col]) : 0.f, out[i] = n < s.n ? number(C[n * s.C.col]) : 0.f;
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float input = __shfl_sync(~0u, mine, r);
      float4& z = state[r][k];
      z = {keep * z.x + input * in[0], keep * z.y + input * in[1], keep * z.z + input * in[2], keep * z.w + input * in[3]};
      y[r] += z.x * out[0] + z.y * out[1] + z.z * out[2] + z.w * out[3];
      if (inside(r, k)) __stcs(state_at(s.final, r, k), z);
    }
  }
  const int r = sum_shared<3>(y, lane, 1);
  y[0] += __shfl_xor_sync(~0u, y[0], 8);
  y[0] += __shfl_xor_sync(~0u, y[0], 16);
  if (lane < rows && first + r < s.p) static_cast<T*>(s.out.data)[b * s.out.batch + h * s.out.head + (first + r) * s.out.col] = T(y[0]);
}

/// Whether states lie side by side in pieces of 16 bytes.
bool in_fours(const States& m, int n) {
  return !m.data || (m.col == 1 && n % 4 == 0 && m.row % 4 == 0 && m.head % 4 == 0 && m.batch % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0);
}

template <class T>
void step(const Scan& s, cudaStream_t stream) {
  const char* op = "ssd_scan";
  const std::int64_t batch = s.batch;
  const bool together = in_fours(s.initial, s.n) && in_fours(s.final, s.n);
  const std::int64_t rows = batch * s.heads * s.p, blocks = together ? batch * s.heads * ceil_div(s.p, 32) : ceil_div(rows, 8);
  if (blocks > INT32_MAX) refuse(op, "x", "of fewer batches and heads on CUDA");
  if (!together)
    scan_step<<<static_cast<unsigned>(blocks), 256, 0, stream>>>(s, rows);
  else if (s.n <= 128)
    step_together<T, 1><<<static_cast<unsigned>(blocks), 128, 0, stream>>>(s);
  else
    step_together<T, 2><<<static_cast<unsigned>(blocks), 128, 0, stream>>>(s);
  check_cuda(op, cudaGetLastError(), "scanning");
}
}  // namespace
}  // namespace core_llm_efficiency
