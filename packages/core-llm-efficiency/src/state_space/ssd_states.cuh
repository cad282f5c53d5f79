// The states that the gradients of Mamba-2's scan start from: the state before every chunk, and its gradient after every
// chunk. Chunks write what they add, all at once; a pass over them in order turns that into states.
#pragma once
#include "ssd_scan.cuh"

namespace core_llm_efficiency::ssd {
constexpr int slice = 64, pad_p = slice + 8;  // channels that are worked on at once

struct Backward {
  Scan scan;  // its `slices`: of 64 channels
  Steps grad_out, grad_x, grad_B, grad_C;
  States grad_final, grad_initial;
  float* grad_dt;
  std::int64_t grad_dt_batch, grad_dt_step, grad_dt_head;
  int chunks, first, groups;  // first: the first pair of batch and group that is worked on
  void *before, *after;       // [pair, head][chunk][channel][state]: the state before a chunk, the gradient after it
  float *whole, *of_A;        // [pair, head][chunk], [batch, head][chunk]
};

/// States16: sixteens of states, a multiple of 4. Warps: of 16 steps or channels, and of 64 states.
template <int States16, bool Exact>
struct Layout {
  static constexpr int states = 16 * States16, pad_n = states + 8, quarters = States16 / 4, warps = 4 * quarters, threads = 32 * warps;
  static constexpr int parts = Exact ? 2 : 1, series = chunk * pad_n, rows = chunk * pad_p, share = slice / quarters;
  static constexpr int of_states = 2 * parts * (rows + series);             // bytes that writing states takes
  static constexpr int of_gradients = 2 * parts * (4 * series + 3 * rows);  // bytes that the gradients take
  static constexpr std::int64_t of_slice = std::int64_t{slice} * states;
  using Element = std::conditional_t<Exact, float, Bf16>;  // of stored states
};

/// The decay from a step to the chunk's end, and from its start to a step.
__device__ inline float to_end(const Decays& d, int t) { return t >= d.begin[chunk - 1] ? exp2_fast(d.sum[chunk - 1] - d.sum[t]) : 0.f; }
__device__ inline float since_start(const Decays& d, int t) { return d.begin[t] < 0 ? exp2_fast(d.sum[t]) : 0.f; }
__device__ inline float whole_of(const Decays& d) { return since_start(d, chunk - 1); }
__device__ inline float between(const Decays& d, int t, int j) { return j <= t && j >= d.begin[t] ? exp2_fast(d.sum[t] - d.sum[j]) : 0.f; }

template <bool Exact>
__device__ inline Pair pair_at(Bf16*& memory, int size) {
  const Pair p{memory, memory + (Exact ? size : 0)};
  memory += Exact ? 2 * size : size;
  return p;
}
/// Two neighbouring numbers.
template <bool Exact>
__device__ inline float2 two(const Pair& m, int at) {
  const std::uint32_t high = *reinterpret_cast<const std::uint32_t*>(m.high + at);
  float2 x{low_half(high), high_half(high)};
  if constexpr (Exact) {
    const std::uint32_t low = *reinterpret_cast<const std::uint32_t*>(m.low + at);
    x.x += low_half(low), x.y += high_half(low);
  }
  return x;
}
template <bool Exact>
__device__ inline void put_two(const Pair& m, int at, float x, float y) {
  std::uint32_t high, low;
  split(x, y, high, low);
  *reinterpret_cast<std::uint32_t*>(m.high + at) = high;
  if constexpr (Exact) *reinterpret_cast<std::uint32_t*>(m.low + at) = low;
}
/// Scales register r of a fragment.
template <bool Exact>
__device__ inline void scale(Fragment<Exact>& f, int r, float x, float y) {
  float v[2] = {low_half(f.high[r]), high_half(f.high[r])};
  if constexpr (Exact) v[0] += low_half(f.low[r]), v[1] += high_half(f.low[r]);
  std::uint32_t low;
  split(v[0] * x, v[1] * y, f.high[r], low);
  if constexpr (Exact) f.low[r] = low;
}

/// Left operands: rows from `row` on, depth from `k` on, of m[row][depth] or, turned, of m[depth][row].
template <bool Exact>
__device__ inline void left(Fragment<Exact>& f, const Pair& m, int pad, int row, int k, int lane) {
  load_fragment<Exact, false>(f, m, (row + lane % 16) * pad + k + lane / 16 * 8);
}
template <bool Exact>
__device__ inline void left_turned(Fragment<Exact>& f, const Pair& m, int pad, int row, int k, int lane) {
  load_fragment<Exact, true>(f, m, (k + lane / 16 * 8 + lane % 8) * pad + row + lane / 8 % 2 * 8);
}
/// Right operands of 16 columns from `column` on: of m[column][depth] or, turned, of m[depth][column].
template <bool Exact>
__device__ inline void right(Fragment<Exact>& f, const Pair& m, int pad, int column, int k, int lane) {
  load_fragment<Exact, false>(f, m, (column + lane / 16 * 8 + lane % 8) * pad + k + lane / 8 % 2 * 8);
}
template <bool Exact>
__device__ inline void right_turned(Fragment<Exact>& f, const Pair& m, int pad, int column, int k, int lane) {
  load_fragment<Exact, true>(f, m, (k + lane % 16) * pad + column + lane / 16 * 8);
}
/// c[j], c[j + 1] += a times the two halves of b.
template <bool Exact, int N>
__device__ inline void add_both(float (&c)[N][4], int j, const Fragment<Exact>& a, const Fragment<Exact>& b) {
  add_product<Exact>(c[j], a, b, 0);
  add_product<Exact>(c[j + 1], a, b, 1);
}

/// c += a times the right operand of all its columns, turned or not.
template <bool Turned, bool Exact, int N>
__device__ inline void add_products(float (&c)[N][4], const Fragment<Exact>& a, const Pair& m, int pad, int column, int k, int lane) {
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    Fragment<Exact> z;
    if constexpr (Turned)
      right_turned<Exact>(z, m, pad, column + j * 8, k, lane);
    else
      right<Exact>(z, m, pad, column + j * 8, k, lane);
    add_both<Exact>(c, j, a, z);
  }
}

/// What a chunk adds to the state, or to the gradient of the state before it.
template <int States16, bool Exact>
__global__ void __launch_bounds__(Layout<States16, Exact>::threads) write_states(const __grid_constant__ Backward g, bool gradient) {
  using L = Layout<States16, Exact>;
  extern __shared__ __align__(16) char shared[];
  __shared__ Decays d;
  auto* memory = reinterpret_cast<Bf16*>(shared);
  const Pair x = pair_at<Exact>(memory, L::rows), series = pair_at<Exact>(memory, L::series);
  const Scan& s = g.scan;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int c = static_cast<int>(blockIdx.x) % g.chunks, part = static_cast<int>(blockIdx.x) / g.chunks % s.slices;
  const int at = static_cast<int>(blockIdx.x) / g.chunks / s.slices, pair = g.first + at / s.share, b = pair / g.groups,
            of = pair % g.groups;
  const int h = of * s.share + at % s.share, step = c * chunk;
  fetch<slice, pad_p, Exact>(x, gradient ? g.grad_out : s.x, s.kind, b, h, step, s.steps, part * slice, s.p);
  fetch<L::states, L::pad_n, Exact>(series, gradient ? s.C : s.B, s.kind, b, of, step, s.steps, 0, s.n);
  if (warp == 0) find_decays(s, b, h, step, d);
  commit_copies();
  wait_copies();
  __syncthreads();
  const int of_p = warp % 4 * 16, of_n = warp / 4 * 64;
  float sum[8][4] = {};
#pragma unroll
  for (int k = 0; k < chunk; k += 16) {
    Fragment<Exact> a;
    left_turned<Exact>(a, x, pad_p, of_p, k, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = k + i * 8 + lane % 4 * 2;
      float by[2];
#pragma unroll
      for (int u = 0; u < 2; ++u) by[u] = gradient ? since_start(d, t + u) : to_end(d, t + u) * d.dt[t + u];
      scale<Exact>(a, 2 * i, by[0], by[1]);
      scale<Exact>(a, 2 * i + 1, by[0], by[1]);
    }
    add_products<true>(sum, a, series, L::pad_n, of_n, k, lane);
  }
  const std::int64_t place = std::int64_t{at} * g.chunks + c;
  auto* to = static_cast<typename L::Element*>(gradient ? g.after : g.before) + (place * s.slices + part) * L::of_slice;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      auto* row = to + (of_p + lane / 4 + r * 8) * L::states + of_n + j * 8 + lane % 4 * 2;
      if constexpr (Exact)
        *reinterpret_cast<float2*>(row) = {sum[j][2 * r], sum[j][2 * r + 1]};
      else
        *reinterpret_cast<std::uint32_t*>(row) = pack<Bf16>(sum[j][2 * r], sum[j][2 * r + 1]);
    }
  if (threadIdx.x == 0 && part == 0) g.whole[place] = whole_of(d);
}

/// What chunks add becomes the state before, or with Reverse the gradient after, each of them. A thread has two states.
template <class Element, bool Reverse>
__global__ void __launch_bounds__(256) pass_states(const __grid_constant__ Backward g, int states, std::int64_t all) {
  const std::int64_t i = (blockIdx.x * std::int64_t{256} + threadIdx.x) * 2;
  if (i >= all) return;
  const Scan& s = g.scan;
  const std::int64_t size = std::int64_t{s.slices} * slice * states, at = i / size;
  const int p = static_cast<int>(i % size / states), n = static_cast<int>(i % states), pair = g.first + static_cast<int>(at) / s.share;
  const int b = pair / g.groups, h = pair % g.groups * s.share + static_cast<int>(at) % s.share;
  Element* const from = static_cast<Element*>(Reverse ? g.after : g.before) + at * g.chunks * size + i % size;
  const float* const whole = g.whole + at * g.chunks;
  const States& first = Reverse ? g.grad_final : s.initial;
  float x[2] = {};
  const auto state = [&](const States& m, int k) -> float& { return m.data[b * m.batch + h * m.head + p * m.row + (n + k) * m.col]; };
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (first.data && p < s.p && n + k < s.n) x[k] = state(first, k);
  constexpr int ahead = 8;  // chunks read before any is written
  using Two = std::conditional_t<std::is_same_v<Element, float>, float2, std::uint32_t>;
#pragma unroll 1
  for (int base = 0; base < g.chunks; base += ahead) {
    Two add[ahead];
    float kept[ahead];
    const auto chunk_of = [&](int j) { return Reverse ? g.chunks - 1 - base - j : base + j; };
#pragma unroll
    for (int j = 0; j < ahead; ++j)
      if (base + j < g.chunks) add[j] = *reinterpret_cast<const Two*>(from + chunk_of(j) * size), kept[j] = whole[chunk_of(j)];
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      if (base + j >= g.chunks) break;
      Two* const here = reinterpret_cast<Two*>(from + chunk_of(j) * size);
      if constexpr (std::is_same_v<Element, float>) {
        *here = {x[0], x[1]};
        x[0] = kept[j] * x[0] + add[j].x, x[1] = kept[j] * x[1] + add[j].y;
      } else {
        *here = pack<Bf16>(x[0], x[1]);
        x[0] = kept[j] * x[0] + low_half(add[j]), x[1] = kept[j] * x[1] + high_half(add[j]);
      }
    }
  }
  if (Reverse)
#pragma unroll
    for (int k = 0; k < 2; ++k)
      if (p < s.p && n + k < s.n) state(g.grad_initial, k) = x[k];
}
}  // namespace core_llm_efficiency::ssd
