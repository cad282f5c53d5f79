// The gradients of Mamba-2's scan on CUDA, from the states of ssd_states.cuh: all chunks are worked on at once, the heads that
// share B and C one after another in one thread block, so that nothing has to be summed across blocks. The products are those
// of ssd_scan.cpp; where it adds (dW . between) B for every head, the heads' sum is multiplied once.
#pragma once
#include "ssd_states.cuh"

namespace core_llm_efficiency::ssd {
/// A slice of stored states to shared memory.
template <class L, bool Exact>
__device__ void fetch_states(const Pair& to, const void* from, std::int64_t place) {
  if constexpr (Exact) {
    const float2* source = reinterpret_cast<const float2*>(static_cast<const float*>(from) + place * L::of_slice);
    for (int i = static_cast<int>(threadIdx.x); i < L::of_slice / 2; i += L::threads) {
      const float2 x = source[i];
      put_two<true>(to, i * 2 / L::states * L::pad_n + i * 2 % L::states, x.x, x.y);
    }
  } else {
    const Bf16* source = static_cast<const Bf16*>(from) + place * L::of_slice;
    for (int i = static_cast<int>(threadIdx.x) * 8; i < L::of_slice; i += L::threads * 8)
      copy_piece(to.high + i / L::states * L::pad_n + i % L::states, source + i, true);
  }
}

/// What a head's steps gather from the warps: [quarter or row of warps][step].
template <int Quarters>
struct Sums {
  float rows[Quarters][chunk], ends[Quarters][chunk], of_x[Quarters][chunk], columns[4][chunk], inner[4 * Quarters];
};

/// One warp: the gradients of dt, and of A from this chunk.
template <int Quarters>
__device__ void finish_head(const Backward& g, const Decays& d, const Sums<Quarters>& sums, int b, int h, int c) {
  const Scan& s = g.scan;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float of_sum[2] = {}, direct[2] = {}, of_end = 0, inner = lane < 4 * Quarters ? sums.inner[lane] : 0.f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
#pragma unroll
    for (int q = 0; q < Quarters; ++q) {
      of_sum[i] += sums.rows[q][t] - sums.ends[q][t];
      direct[i] += sums.of_x[q][t];
      of_end += sums.ends[q][t];
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) of_sum[i] -= sums.columns[w][t];
  }
  for (int o = 16; o; o /= 2) of_end += __shfl_xor_sync(~0u, of_end, o), inner += __shfl_xor_sync(~0u, inner, o);
  if (lane == 31) of_sum[1] += of_end + whole_of(d) * inner;
  float rest = of_sum[0] + of_sum[1];
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const float later = __shfl_down_sync(~0u, rest, o);
    if (lane + o < 32) rest += later;
  }
  const float of_step[2] = {rest, rest - of_sum[0]}, A = s.A[h * s.A_head];
  float of_A = d.dt[2 * lane] * of_step[0] + d.dt[2 * lane + 1] * of_step[1];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (const int t = c * chunk + 2 * lane + i; t < s.steps)
      g.grad_dt[b * g.grad_dt_batch + t * g.grad_dt_step + h * g.grad_dt_head] = A * of_step[i] + direct[i];
  for (int o = 16; o; o /= 2) of_A += __shfl_xor_sync(~0u, of_A, o);
  if (lane == 0) g.of_A[(std::int64_t{b} * s.heads + h) * g.chunks + c] = of_A;
}

/// One thread block for a chunk of a group. Warp: 16 steps, and a quarter's share of states, channels or other steps.
template <int States16, bool Exact>
__global__ void __launch_bounds__(Layout<States16, Exact>::threads, 1) find_gradients(const __grid_constant__ Backward g) {
  using L = Layout<States16, Exact>;
  constexpr int eights = L::share / 8;  // of a warp's channels, or other steps
  extern __shared__ __align__(16) char shared[];
  __shared__ Decays d;
  __shared__ Sums<L::quarters> sums;
  auto* memory = reinterpret_cast<Bf16*>(shared);
  const Pair B = pair_at<Exact>(memory, L::series), C = pair_at<Exact>(memory, L::series), before = pair_at<Exact>(memory, L::series),
             after = pair_at<Exact>(memory, L::series), x = pair_at<Exact>(memory, L::rows), dy = pair_at<Exact>(memory, L::rows),
             square = pair_at<Exact>(memory, L::rows);
  const Scan& s = g.scan;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int c = static_cast<int>(blockIdx.x) % g.chunks, local = static_cast<int>(blockIdx.x) / g.chunks, pair = g.first + local;
  const int b = pair / g.groups, of = pair % g.groups, step = c * chunk;
  const int rows = warp % 4 * 16, quarter = warp / 4, columns = quarter * L::share, of_n = quarter * 64;
  const int row[2] = {rows + lane / 4, rows + lane / 4 + 8}, column = columns + lane % 4 * 2;
  fetch<L::states, L::pad_n, Exact>(B, s.B, s.kind, b, of, step, s.steps, 0, s.n);
  fetch<L::states, L::pad_n, Exact>(C, s.C, s.kind, b, of, step, s.steps, 0, s.n);
  commit_copies();
  wait_copies();
  __syncthreads();
  float scores[eights][4] = {}, mixed[eights][4] = {}, of_B[8][4] = {}, of_C[8][4] = {};
#pragma unroll 2
  for (int k = 0; k < L::states; k += 16) {
    Fragment<Exact> a;
    left<Exact>(a, C, L::pad_n, rows, k, lane);
    add_products<false>(scores, a, B, L::pad_n, columns, k, lane);
  }

#pragma unroll 1
  for (int of_group = 0; of_group < s.share; ++of_group) {
    const int h = of * s.share + of_group;
    float dW[eights][4] = {}, of_row[2] = {}, of_end[2] = {}, of_x[2] = {}, inner = 0;
#pragma unroll 1
    for (int part = 0; part < s.slices; ++part) {
      const std::int64_t place = ((std::int64_t{local} * s.share + of_group) * g.chunks + c) * s.slices + part;
      fetch<slice, pad_p, Exact>(x, s.x, s.kind, b, h, step, s.steps, part * slice, s.p);
      fetch<slice, pad_p, Exact>(dy, g.grad_out, s.kind, b, h, step, s.steps, part * slice, s.p);
      fetch_states<L, Exact>(before, g.before, place);
      fetch_states<L, Exact>(after, g.after, place);
      if (warp == 0 && part == 0) find_decays(s, b, h, step, d);
      commit_copies();
      wait_copies();
      __syncthreads();
      if (part == 0) {
#pragma unroll
        for (int j = 0; j < eights; ++j)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int to = column + j * 8;
            put_two<Exact>(square, row[r] * pad_p + to, scores[j][2 * r] * between(d, row[r], to),
                           scores[j][2 * r + 1] * between(d, row[r], to + 1));
          }
      }
      float since[2], until[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) since[r] = since_start(d, row[r]), until[r] = to_end(d, row[r]);

      float from_state[8][4] = {};  // dy S, then x dS
#pragma unroll
      for (int k = 0; k < slice; k += 16) {
        Fragment<Exact> a, z;
        left<Exact>(a, dy, pad_p, rows, k, lane);
#pragma unroll
        for (int j = 0; j < eights; j += 2)
          if (columns + j * 8 <= rows) {
            right<Exact>(z, x, pad_p, columns + j * 8, k, lane);
            add_both<Exact>(dW, j, a, z);
          }
        add_products<true>(from_state, a, before, L::pad_n, of_n, k, lane);
        left<Exact>(a, x, pad_p, rows, k, lane);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float by = until[r % 2] * d.dt[row[r % 2]];
          scale<Exact>(a, r, by, by);
        }
        add_products<true>(of_B, a, after, L::pad_n, of_n, k, lane);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float2 y = two<Exact>(C, row[r] * L::pad_n + of_n + j * 8 + lane % 4 * 2);
          const float u = from_state[j][2 * r] * since[r], v = from_state[j][2 * r + 1] * since[r];
          of_C[j][2 * r] += u, of_C[j][2 * r + 1] += v;
          of_row[r] += u * y.x + v * y.y;
        }
      for (int i = static_cast<int>(threadIdx.x) * 2; i < L::of_slice; i += L::threads * 2) {
        const int at = i / L::states * L::pad_n + i % L::states;
        const float2 u = two<Exact>(before, at), v = two<Exact>(after, at);
        inner += u.x * v.x + u.y * v.y;
      }

      float dx[eights][4] = {};
#pragma unroll 2
      for (int k = 0; k < L::states; k += 16) {
        Fragment<Exact> a;
        left<Exact>(a, B, L::pad_n, rows, k, lane);
        add_products<false>(dx, a, after, L::pad_n, columns, k, lane);
      }
#pragma unroll
      for (int j = 0; j < eights; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float2 y = two<Exact>(x, row[r] * pad_p + column + j * 8);
          dx[j][2 * r] *= until[r], dx[j][2 * r + 1] *= until[r];
          of_end[r] += d.dt[row[r]] * (dx[j][2 * r] * y.x + dx[j][2 * r + 1] * y.y);
        }
      if (part == 0) __syncthreads();  // the weights
#pragma unroll
      for (int k = 0; k < chunk; k += 16)
        if (k >= rows) {
          Fragment<Exact> a;
          left_turned<Exact>(a, square, pad_p, rows, k, lane);
          add_products<true>(dx, a, dy, pad_p, columns, k, lane);
        }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::int64_t to = b * g.grad_x.batch + std::int64_t{step + row[r]} * g.grad_x.step + h * g.grad_x.head;
        const float by = d.dt[row[r]];
#pragma unroll
        for (int j = 0; j < eights; ++j) {
          const float2 y = two<Exact>(x, row[r] * pad_p + column + j * 8);
          of_x[r] += dx[j][2 * r] * y.x + dx[j][2 * r + 1] * y.y;
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (const int p = part * slice + column + j * 8 + i; p < s.p && step + row[r] < s.steps)
              store(g.grad_x.data, to + p * g.grad_x.col, s.kind, dx[j][2 * r + i] * by);
        }
      }
      __syncthreads();
    }

#pragma unroll
    for (int j = 0; j < eights; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int to = column + j * 8 + i;
        float down = 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float by = between(d, row[r], to), x_of = by != 0 ? dW[j][2 * r + i] * d.dt[to] * by : 0.f;
          const float of_decay = x_of * scores[j][2 * r + i];
          mixed[j][2 * r + i] += x_of;
          of_row[r] += of_decay, down += of_decay;
        }
#pragma unroll
        for (int o = 4; o < 32; o *= 2) down += __shfl_xor_sync(~0u, down, o);
        if (lane < 4) sums.columns[warp % 4][to] = down;
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      of_row[r] = quad_sum(of_row[r]), of_end[r] = quad_sum(of_end[r]), of_x[r] = quad_sum(of_x[r]);
      if (lane % 4 == 0)
        sums.rows[quarter][row[r]] = of_row[r], sums.ends[quarter][row[r]] = of_end[r], sums.of_x[quarter][row[r]] = of_x[r];
    }
#pragma unroll
    for (int o = 16; o; o /= 2) inner += __shfl_xor_sync(~0u, inner, o);
    if (lane == 0) sums.inner[warp] = inner;
    __syncthreads();
    if (warp == 0) finish_head(g, d, sums, b, h, c);
    __syncthreads();
  }

#pragma unroll
  for (int j = 0; j < eights; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r) put_two<Exact>(square, row[r] * pad_p + column + j * 8, mixed[j][2 * r], mixed[j][2 * r + 1]);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < chunk; k += 16) {
    Fragment<Exact> a;
    if (k <= rows) {
      left<Exact>(a, square, pad_p, rows, k, lane);
      add_products<true>(of_C, a, B, L::pad_n, of_n, k, lane);
    }
    if (k >= rows) {
      left_turned<Exact>(a, square, pad_p, rows, k, lane);
      add_products<true>(of_B, a, C, L::pad_n, of_n, k, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (const int n = of_n + j * 8 + lane % 4 * 2 + i; n < s.n && step + row[r] < s.steps) {
          const auto put = [&](const Steps& m, float y) {
            store(m.data, b * m.batch + std::int64_t{step + row[r]} * m.step + of * m.head + n * m.col, s.kind, y);
          };
          put(g.grad_B, of_B[j][2 * r + i]);
          put(g.grad_C, of_C[j][2 * r + i]);
        }
}

/// One warp for a head: the sum over batches and chunks.
__global__ void __launch_bounds__(32) sum_A(const float* parts, int batch, int heads, int chunks, float* A, std::int64_t A_head) {
  double sum = 0;
  for (int b = 0; b < batch; ++b)
    for (int c = static_cast<int>(threadIdx.x); c < chunks; c += 32) sum += parts[(std::int64_t{b} * heads + blockIdx.x) * chunks + c];
  for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  if (threadIdx.x == 0) A[blockIdx.x * A_head] = static_cast<float>(sum);
}
}  // namespace core_llm_efficiency::ssd
