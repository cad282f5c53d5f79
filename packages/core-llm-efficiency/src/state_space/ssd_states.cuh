// The states that the gradients of Mamba-2's scan start from: the state before every chunk, and its gradient after every
// chunk. A thread block carries 64 channels of a head's state, or of its gradient, from chunk to chunk in registers. Where there
// are too few heads for the device, the chunks fall into segments, as in ssd_scan.cu.
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
  int buffers;                // of what find_gradients reads for a head
  void *before, *after;       // [pair, head][chunk][channel][state]: the state before a chunk, the gradient after it
  float* of_A;                // [batch, head][chunk]
};

/// States16: sixteens of states, a multiple of 4. Warps: of 16 steps or channels, and of 64 states.
template <int States16, bool Exact>
struct Layout {
  static constexpr int states = 16 * States16, pad_n = states + 8, quarters = States16 / 4, warps = 4 * quarters, threads = 32 * warps;
  static constexpr int parts = Exact ? 2 : 1, series = chunk * pad_n, rows = chunk * pad_p, share = slice / quarters;
  static constexpr int of_states = 4 * parts * (rows + series);  // bytes that carrying states takes, and that the gradients take:
  static constexpr int of_gradients(int buffers) { return 2 * parts * (2 * series + rows + 2 * buffers * (series + rows)); }
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

/// Gives lane i of four what lane k held in v[i] as v[k].
__device__ inline void turn_quad(std::uint32_t (&v)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (!(k & bit)) {
        const bool upper = lane & bit;
        const std::uint32_t got = __shfl_xor_sync(~0u, upper ? v[k] : v[k + bit], bit);
        v[k] = upper ? got : v[k], v[k + bit] = upper ? v[k + bit] : got;
      }
}

/// Grid: head and slice of channels; the state (0) or its gradient (1), which walks back; segment. With `adding` a segment only
/// finds what it adds.
template <int States16, bool Exact>
__global__ void __launch_bounds__(Layout<States16, Exact>::threads)
    carry_states(const __grid_constant__ Backward g, const Segments segments, bool adding) {
  using L = Layout<States16, Exact>;
  extern __shared__ __align__(16) char shared[];
  __shared__ Decays decays[2];
  const Scan& s = g.scan;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int at = static_cast<int>(blockIdx.x) / s.slices, part = static_cast<int>(blockIdx.x) % s.slices;
  const int pair = g.first + at / s.share, b = pair / g.groups, of = pair % g.groups, h = of * s.share + at % s.share;
  const bool gradient = blockIdx.y;
  const int segment = static_cast<int>(blockIdx.z), of_segment = segments.steps / chunk, begin = segment * of_segment,
            end = min(begin + of_segment, g.chunks);
  const int of_p = warp % 4 * 16, of_n = warp / 4 * 64;
  const auto chunk_of = [&](int i) { return gradient ? g.chunks - 1 - i : i; };
  const auto pair_of = [&](int i, int from, int size) {
    Bf16* const high = reinterpret_cast<Bf16*>(shared) + (i * (L::rows + L::series) + from) * L::parts;
    return Pair{high, high + (Exact ? size : 0)};
  };
  const auto x_of = [&](int i) { return pair_of(i % 2, 0, L::rows); };
  const auto series_of = [&](int i) { return pair_of(i % 2, L::rows, L::series); };
  DecayInputs next;
  if (warp == 0 && begin < end) next.read(s, b, h, chunk_of(begin) * chunk);
  const auto bring = [&](int i) {
    if (i < end) {
      const int step = chunk_of(i) * chunk;
      fetch<slice, pad_p, Exact>(x_of(i), gradient ? g.grad_out : s.x, s.kind, b, h, step, s.steps, part * slice, s.p);
      fetch<L::states, L::pad_n, Exact>(series_of(i), gradient ? s.C : s.B, s.kind, b, of, step, s.steps, 0, s.n);
      if (warp == 0) {
        find_decays(s, h, next, decays[i % 2]);
        if (i + 1 < end) next.read(s, b, h, chunk_of(i + 1) * chunk);
      }
    }
    commit_copies();
  };

  float sum[8][4] = {}, kept = 1;
  const auto each_state = [&](auto f) {  // with its channel within the slice and its number
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(sum[j][i], of_p + lane / 4 + i / 2 * 8, of_n + j * 8 + lane % 4 * 2 + i % 2);
  };
  const auto each_of = [&](const States& m, auto f) {
    if (m.data)
      each_state([&](float& x, int p, int n) {
        if ((p += part * slice) < s.p && n < s.n) f(x, m.data[b * m.batch + h * m.head + p * m.row + n * m.col]);
      });
  };
  const std::int64_t row = blockIdx.y * std::int64_t{gridDim.x} + blockIdx.x, all = 2 * std::int64_t{gridDim.x};
  float* const stored = segments.states + (segment * all + row) * L::of_slice;
  if (segment == 0)
    each_of(gradient ? g.grad_final : s.initial, [](float& x, float from) { x = from; });
  else if (!adding)
    each_state([&](float& x, int p, int n) { x = stored[p * L::states + n]; });
  bring(begin);
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    wait_copies();
    __syncthreads();
    bring(i + 1);
    const Pair x = x_of(i), series = series_of(i);
    const Decays& d = decays[i % 2];
    if (!adding) {
      auto* const to = static_cast<typename L::Element*>(gradient ? g.after : g.before) +
                       ((std::int64_t{at} * g.chunks + chunk_of(i)) * s.slices + part) * L::of_slice + of_n;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        auto* const line = to + (of_p + lane / 4 + r * 8) * L::states;
        if constexpr (Exact) {
#pragma unroll
          for (int j = 0; j < 8; ++j) *reinterpret_cast<float2*>(line + j * 8 + lane % 4 * 2) = {sum[j][2 * r], sum[j][2 * r + 1]};
        } else {
#pragma unroll
          for (int j = 0; j < 8; j += 4) {
            std::uint32_t v[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) v[k] = pack<Bf16>(sum[j + k][2 * r], sum[j + k][2 * r + 1]);
            turn_quad(v, lane);
            *reinterpret_cast<uint4*>(line + (j + lane % 4) * 8) = {v[0], v[1], v[2], v[3]};
          }
        }
      }
    }
    const float whole = whole_of(d);
    kept *= whole;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[j][k] *= whole;
#pragma unroll
    for (int k = 0; k < chunk; k += 16) {
      Fragment<Exact> a;
      left_turned<Exact>(a, x, pad_p, of_p, k, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = k + half * 8 + lane % 4 * 2;
        float by[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) by[u] = gradient ? since_start(d, t + u) : to_end(d, t + u) * d.dt[t + u];
        scale<Exact>(a, 2 * half, by[0], by[1]);
        scale<Exact>(a, 2 * half + 1, by[0], by[1]);
      }
      add_products<true>(sum, a, series, L::pad_n, of_n, k, lane);
    }
  }
  if (adding) {
    each_state([&](float x, int p, int n) { stored[p * L::states + n] = x; });
    if (threadIdx.x == 0) segments.kept[segment * all + row] = kept;
  } else if (gradient && segment + 1 == segments.count) {
    each_of(g.grad_initial, [](float x, float& to) { to = x; });
  }
}
}  // namespace core_llm_efficiency::ssd
