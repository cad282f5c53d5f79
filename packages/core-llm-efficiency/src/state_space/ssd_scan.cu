// Mamba-2's scan on CUDA: a thread block carries the state of some channels of a head in registers from chunk to chunk; the
// products are those of ssd_scan.cpp. Where there are too few heads for the device, the sequence falls into segments: first
// all but the last find what they add to the state, then all start from the state before them.
#include <algorithm>

#include "ssd_step.cuh"

namespace core_llm_efficiency {
namespace {
using namespace ssd;
constexpr int slice = 32;  // channels of a group of four warps, each of which has 16 steps

/// States: sixteens of states, rounded up. Groups: of four warps and `slice` channels each.
template <int States16, int Groups, bool Exact>
struct Layout {
  static constexpr int channels = slice * Groups, states = 16 * States16;
  static constexpr int pad_n = states + 8, pad_p = channels + 8, parts = Exact ? 2 : 1;
  static constexpr int of_buffer = parts * chunk * (2 * pad_n + pad_p), of_state = parts * channels * pad_n;  // elements
  static constexpr int bytes(int buffers) { return 2 * (buffers * of_buffer + of_state); }
};

struct Segments {
  int count, steps;  // steps: of a segment, a multiple of the chunk
  float* states;     // [segment][batch][head][channel][state]: what a segment adds, then the state before it
  float* kept;       // [segment][batch][head]: how much of the state before a segment is left after it
};

/// With Add a segment only finds what it adds.
template <int States16, int Groups, bool Exact, bool Add>
__global__ void __launch_bounds__(128 * Groups, !Exact && States16 <= 8 ? 2 : 1)
    scan_chunks(const __grid_constant__ Scan s, const Segments segments) {
  using L = Layout<States16, Groups, Exact>;
  constexpr int halves = States16 / 2;  // sixteens of states of a warp's part of the state
  extern __shared__ __align__(16) char shared[];
  __shared__ Decays decays[2];
  auto* const memory = reinterpret_cast<Bf16*>(shared);
  const auto part = [&](int at, int size) { return Pair{memory + at, memory + at + (Exact ? size : 0)}; };
  const Pair carried = part(s.buffers * L::of_buffer, L::channels * L::pad_n);
  const auto x_of = [&](int i) { return part(i * L::of_buffer, chunk * L::pad_p); };
  const auto B_of = [&](int i) { return part(i * L::of_buffer + L::parts * chunk * L::pad_p, chunk * L::pad_n); };
  const auto C_of = [&](int i) { return part(i * L::of_buffer + L::parts * chunk * (L::pad_p + L::pad_n), chunk * L::pad_n); };

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first = static_cast<int>(blockIdx.x) % s.slices * L::channels, h = static_cast<int>(blockIdx.x) / s.slices % s.heads;
  const int rest = static_cast<int>(blockIdx.x) / s.slices / s.heads, b = rest % s.batch, segment = rest / s.batch, g = h / s.share;
  const int begin_step = segment * segments.steps, end_step = min(begin_step + segments.steps, s.steps);
  const std::int64_t place = (std::int64_t{segment} * s.batch + b) * s.heads + h;
  const int rows = (warp / 4 ? 3 - warp % 4 : warp % 4) * 16, columns = warp / 4 * slice;  // of a chunk's output; late rows are more work
  const int of_p = warp % (2 * Groups) * 16, of_n = warp / (2 * Groups) * halves * 16;     // of the state
  DecayInputs next;                                                                        // a chunk ahead of what is brought
  if (warp == 0) next.read(s, b, h, begin_step);
  const auto bring = [&](int step) {
    const int i = s.buffers == 2 ? step / chunk % 2 : 0;
    if (step < end_step) {
      fetch<L::channels, L::pad_p, Exact>(x_of(i), s.x, s.kind, b, h, step, s.steps, first, s.p);
      fetch<L::states, L::pad_n, Exact>(B_of(i), s.B, s.kind, b, g, step, s.steps, 0, s.n);
      if (!Add) fetch<L::states, L::pad_n, Exact>(C_of(i), s.C, s.kind, b, g, step, s.steps, 0, s.n);
      if (warp == 0) {
        find_decays(s, h, next, decays[step / chunk % 2]);
        next.read(s, b, h, step + chunk);
      }
    }
    commit_copies();
  };

  float state[2 * halves][4];
  const auto each_state = [&](auto f) {
#pragma unroll
    for (int j = 0; j < 2 * halves; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (const int p = first + of_p + lane / 4 + i / 2 * 8, n = of_n + j * 8 + lane % 4 * 2 + i % 2; p < s.p && n < s.n)
          f(state[j][i], p, n);
  };
  const auto in = [&](const States& m, int p, int n) -> float& {
    return m.data[std::int64_t{b} * m.batch + h * m.head + p * m.row + n * m.col];
  };
  float* const stored = segments.states + place * s.p * s.n;
#pragma unroll
  for (int j = 0; j < 2 * halves; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[j][i] = 0;
  if (!Add && segments.count > 1)
    each_state([&](float& x, int p, int n) { x = stored[p * s.n + n]; });
  else if (!Add && s.initial.data)
    each_state([&](float& x, int p, int n) { x = in(s.initial, p, n); });
  float kept = 1;
  if (s.buffers == 2) bring(begin_step);

  for (int step = begin_step; step < end_step; step += chunk) {
    if (s.buffers == 1) {
      __syncthreads();
      bring(step);
    }
    wait_copies();
    __syncthreads();
    if (s.buffers == 2) bring(step + chunk);
    const int buffer = s.buffers == 2 ? step / chunk % 2 : 0;
    const Pair x = x_of(buffer), B = B_of(buffer), C = C_of(buffer);
    const Decays& d = decays[step / chunk % 2];
    if constexpr (!Add) {
#pragma unroll
      for (int j = 0; j < 2 * halves; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          std::uint32_t high, low;
          split(state[j][2 * r], state[j][2 * r + 1], high, low);
          const int at = (of_p + lane / 4 + r * 8) * L::pad_n + of_n + j * 8 + lane % 4 * 2;
          *reinterpret_cast<std::uint32_t*>(carried.high + at) = high;
          if constexpr (Exact) *reinterpret_cast<std::uint32_t*>(carried.low + at) = low;
        }
      __syncthreads();

      float scores[8][4] = {}, y[4][4] = {};
#pragma unroll 2
      for (int k = 0; k < L::states; k += 16) {
        Fragment<Exact> a, z;
        load_fragment<Exact, false>(a, C, (rows + lane % 16) * L::pad_n + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j * 16 <= rows) {
            load_fragment<Exact, false>(z, B, (j * 16 + lane / 16 * 8 + lane % 8) * L::pad_n + k + lane / 8 % 2 * 8);
            add_product<Exact>(scores[2 * j], a, z, 0);
            add_product<Exact>(scores[2 * j + 1], a, z, 1);
          }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          load_fragment<Exact, false>(z, carried, (columns + j * 16 + lane / 16 * 8 + lane % 8) * L::pad_n + k + lane / 8 % 2 * 8);
          add_product<Exact>(y[2 * j], a, z, 0);
          add_product<Exact>(y[2 * j + 1], a, z, 1);
        }
      }
      float sum[2];
      int begin[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] = d.sum[rows + lane / 4 + r * 8], begin[r] = d.begin[rows + lane / 4 + r * 8];
        const float since = begin[r] < 0 ? exp2_fast(sum[r]) : 0.f;
#pragma unroll
        for (int j = 0; j < 4; ++j) y[j][2 * r] *= since, y[j][2 * r + 1] *= since;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (j * 16 <= rows) {
          Fragment<Exact> weights, z;
#pragma unroll
          for (int k = 0; k < 4; ++k) {  // register k of the fragment: rows lane / 4 + 8 (k % 2), columns 8 (k / 2) + ...
            float w[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int r = k % 2, column = j * 16 + k / 2 * 8 + lane % 4 * 2 + i, row = rows + lane / 4 + r * 8;
              const float between = exp2_fast(sum[r] - d.sum[column]) * d.dt[column];
              w[i] = column <= row && column >= begin[r] ? scores[2 * j + k / 2][2 * r + i] * between : 0.f;
            }
            std::uint32_t low;
            split(w[0], w[1], weights.high[k], low);
            if constexpr (Exact) weights.low[k] = low;
          }
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            load_fragment<Exact, true>(z, x, (j * 16 + lane % 16) * L::pad_p + columns + c * 16 + lane / 16 * 8);
            add_product<Exact>(y[2 * c], weights, z, 0);
            add_product<Exact>(y[2 * c + 1], weights, z, 1);
          }
        }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (const int t = step + rows + lane / 4 + r * 8; t < s.steps)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int p = first + columns + j * 8 + lane % 4 * 2;
            const std::int64_t at = b * s.out.batch + t * s.out.step + h * s.out.head;
            if (s.out.flat && p + 1 < s.p) {
              *reinterpret_cast<std::uint32_t*>(static_cast<Bf16*>(s.out.data) + at + p) = pack<Bf16>(y[j][2 * r], y[j][2 * r + 1]);
            } else {
              if (p < s.p) store(s.out.data, at + p * s.out.col, s.kind, y[j][2 * r]);
              if (p + 1 < s.p) store(s.out.data, at + (p + 1) * s.out.col, s.kind, y[j][2 * r + 1]);
            }
          }
    }
    const float end = d.sum[chunk - 1];
    const int living = d.begin[chunk - 1];
    const float whole = living < 0 ? exp2_fast(end) : 0.f;
    kept *= whole;
#pragma unroll
    for (int j = 0; j < 2 * halves; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) state[j][i] *= whole;
#pragma unroll
    for (int k = 0; k < chunk; k += 16) {
      Fragment<Exact> a, z;
      load_fragment<Exact, true>(a, x, (k + lane / 16 * 8 + lane % 8) * L::pad_p + of_p + lane / 8 % 2 * 8);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = k + i * 8 + lane % 4 * 2;
        float scale[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) scale[u] = t + u >= living ? exp2_fast(end - d.sum[t + u]) * d.dt[t + u] : 0.f;
#pragma unroll
        for (int r = 2 * i; r < 2 * i + 2; ++r) {
          float v[2] = {low_half(a.high[r]), high_half(a.high[r])};
          if constexpr (Exact) v[0] += low_half(a.low[r]), v[1] += high_half(a.low[r]);
          std::uint32_t low;
          split(v[0] * scale[0], v[1] * scale[1], a.high[r], low);
          if constexpr (Exact) a.low[r] = low;
        }
      }
#pragma unroll
      for (int j = 0; j < halves; ++j) {
        load_fragment<Exact, true>(z, B, (k + lane % 16) * L::pad_n + of_n + j * 16 + lane / 16 * 8);
        add_product<Exact>(state[2 * j], a, z, 0);
        add_product<Exact>(state[2 * j + 1], a, z, 1);
      }
    }
  }
  if constexpr (Add) {
    each_state([&](float x, int p, int n) { stored[p * s.n + n] = x; });
    if (threadIdx.x == 0 && first == 0) segments.kept[place] = kept;
  } else if (segment + 1 == segments.count) {
    each_state([&](float x, int p, int n) { in(s.final, p, n) = x; });
  }
}

/// What segments add becomes the state before each of them.
__global__ void __launch_bounds__(256) pass_segments(const __grid_constant__ Scan s, const Segments segments, std::int64_t all) {
  const std::int64_t i = blockIdx.x * std::int64_t{256} + threadIdx.x;
  if (i >= all) return;
  const std::int64_t n = i % s.n, p = i / s.n % s.p, row = i / s.n / s.p, b = row / s.heads, h = row % s.heads;
  float x = s.initial.data ? s.initial.data[b * s.initial.batch + h * s.initial.head + p * s.initial.row + n * s.initial.col] : 0.f;
#pragma unroll 4
  for (int segment = 0; segment < segments.count; ++segment) {
    const bool last = segment + 1 == segments.count;
    const float add = last ? 0.f : segments.states[segment * all + i],
                kept = last ? 0.f : segments.kept[segment * std::int64_t{s.batch} * s.heads + row];
    segments.states[segment * all + i] = x;
    x = kept * x + add;
  }
}

template <int States16, int Groups, bool Exact>
void launch(Scan s, int device, int processors, int room, cudaStream_t stream) {
  using L = Layout<States16, Groups, Exact>;
  const char* op = "ssd_scan";
  s.buffers = L::bytes(2) + 2048 <= room ? 2 : 1;
  s.slices = static_cast<int>(ceil_div(s.p, L::channels));
  const std::int64_t of_segment = std::int64_t{s.batch} * s.heads * s.slices, chunks = ceil_div(s.steps, chunk);
  const int bytes = L::bytes(s.buffers), at_once = 2 * (bytes + 3072) <= room ? 2 * processors : processors;
  if (bytes + 2048 > room) refuse(op, "B", "of fewer states on this device");
  Segments segments{1, s.steps, nullptr, nullptr};
  if (const std::int64_t most = std::min<std::int64_t>(at_once / of_segment, chunks / 8); most > 1 && of_segment <= processors) {
    segments.steps = static_cast<int>(ceil_div(chunks, most) * chunk);
    segments.count = static_cast<int>(ceil_div(s.steps, segments.steps));
  }
  const std::int64_t rows = std::int64_t{s.batch} * s.heads, states = core::checked_mul(rows * s.p, s.n, "ssd_scan: scratch");
  const DeviceScratch scratch(op, device, stream, segments.count > 1 ? segments.count * (states + rows) * 4 : 0);
  segments.states = scratch.template get<float>(), segments.kept = segments.states + segments.count * states;
  const auto scan = [&](auto kernel, std::int64_t blocks) {
    if (blocks > INT32_MAX) refuse(op, "x", "of fewer batches and heads on CUDA");
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    kernel<<<static_cast<unsigned>(blocks), 128 * Groups, static_cast<std::size_t>(bytes), stream>>>(s, segments);
    check_cuda(op, cudaGetLastError(), "scanning");
  };
  if (segments.count > 1) {
    scan(&scan_chunks<States16, Groups, Exact, true>, of_segment * (segments.count - 1));
    pass_segments<<<static_cast<unsigned>(ceil_div(states, 256)), 256, 0, stream>>>(s, segments, states);
    check_cuda(op, cudaGetLastError(), "passing states");
  }
  scan(&scan_chunks<States16, Groups, Exact, false>, of_segment * segments.count);
}

template <class T>
void scan_on(core::Tensor<const T, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A, core::Tensor<const T, 4> B,
             core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 4>> initial,
             std::optional<core::Tensor<const std::int32_t, 2>> seq, core::Tensor<T, 4> out, core::Tensor<float, 4> final,
             core::Stream queue) {
  const char* op = "ssd_scan";
  const auto [batch, steps, heads, p] = x.shape;
  const std::int64_t n = B.shape[3];
  Scan s = describe(op, x, dt, A, B, C, initial, seq);
  if (final.numel() == 0 && out.numel() == 0) return;
  const OnDevice on(op, x.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  s.out = steps_of(out), s.final = states_of(final);
  if (s.steps == 1) return step<element<T>>(s, stream);
  int processors = 0, room = 0;
  check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.device_id), "asking for the device");
  check_cuda(op, cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.device_id), "asking for the device");
  constexpr bool exact = !std::is_same_v<T, core::bfloat16>;
  const bool many = p > slice && 10 * batch * heads * ceil_div(p, 2 * slice) >= 9 * processors;
  const auto go = [&]<int States16>(std::integral_constant<int, States16>) {
    many ? launch<States16, 2, exact>(s, x.device_id, processors, room, stream)
         : launch<States16, 1, exact>(s, x.device_id, processors, room, stream);
  };
  if (n <= 64) return go(std::integral_constant<int, 4>{});
  if (n <= 128) return go(std::integral_constant<int, 8>{});
  go(std::integral_constant<int, 16>{});
}
}  // namespace

void ssd_scan_fp32(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                   core::Tensor<const float, 4> B, core::Tensor<const float, 4> C, std::optional<core::Tensor<const float, 4>> initial,
                   std::optional<core::Tensor<const std::int32_t, 2>> seq, core::Tensor<float, 4> out, core::Tensor<float, 4> final,
                   core::Stream stream) {
  scan_on(x, dt, A, B, C, initial, seq, out, final, stream);
}
void ssd_scan_fp16(core::Tensor<const core::float16, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                   core::Tensor<const core::float16, 4> B, core::Tensor<const core::float16, 4> C,
                   std::optional<core::Tensor<const float, 4>> initial, std::optional<core::Tensor<const std::int32_t, 2>> seq,
                   core::Tensor<core::float16, 4> out, core::Tensor<float, 4> final, core::Stream stream) {
  scan_on(x, dt, A, B, C, initial, seq, out, final, stream);
}
void ssd_scan_bf16(core::Tensor<const core::bfloat16, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                   core::Tensor<const core::bfloat16, 4> B, core::Tensor<const core::bfloat16, 4> C,
                   std::optional<core::Tensor<const float, 4>> initial, std::optional<core::Tensor<const std::int32_t, 2>> seq,
                   core::Tensor<core::bfloat16, 4> out, core::Tensor<float, 4> final, core::Stream stream) {
  scan_on(x, dt, A, B, C, initial, seq, out, final, stream);
}
}  // namespace core_llm_efficiency
