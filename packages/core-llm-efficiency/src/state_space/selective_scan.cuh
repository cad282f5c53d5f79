// What the kernels of Mamba-1's scan on CUDA share. Some lanes of a warp hold the states of a channel, each a few in registers,
// and go through the steps; a tile of steps at a time lies in shared memory while the next one is under way.
#pragma once
#include <algorithm>

#include "operands.cuh"

namespace core_llm_efficiency::selective {
using namespace scan;
constexpr int threads = 128, piece = 8;  // piece: steps that a thread brings at once

/// An operand [batch, channel, step].
template <class T>
struct Rows {
  T* data;
  std::int64_t batch, row, step;
  bool flat;  // steps are contiguous, rows start at multiples of 16 bytes
  __device__ T* at(std::int64_t b, std::int64_t r, std::int64_t t) const { return data + b * batch + r * row + t * step; }
};
/// An operand [batch, group, state, step].
template <class T>
struct Series {
  T* data;
  std::int64_t batch, group, state, step;
  bool flat;
  __device__ T* at(std::int64_t b, int g, int j, int t) const { return data + b * batch + g * group + j * state + t * step; }
};
/// States [batch, channel, state]; data may be null.
struct States {
  float* data;
  std::int64_t batch, channel, state;
  __device__ float& at(std::int64_t b, std::int64_t d, int j) const { return data[b * batch + d * channel + j * state]; }
};

template <class T>
struct Scan {
  Rows<const T> u;
  Rows<const float> delta;
  Rows<T> out;
  Series<const T> B, C;
  States A, initial, last;              // A: batch 0
  int steps, groups, share, n, blocks;  // share: channels of a group; blocks: thread blocks of a group
};

/// States of a lane, and lanes of a channel.
template <int S, int L>
struct Shape {
  static constexpr int states = S, lanes = L, width = S * L, channels = threads / L, of_warp = 32 / L;
  static constexpr int vector = S < 4 ? S : 4;  // states of a lane that lie side by side
  static constexpr int tile = width <= 16 ? 32 : width <= 64 ? 16 : 8, pitch = tile + 4;
  static constexpr int together = L < 8 ? L : 8;  // steps whose sums over lanes are formed at once
  /// Which state is the lane's i-th.
  static __device__ constexpr int state(int i, int lane) { return i / vector * (vector * L) + lane * vector + i % vector; }
};

/// Where a thread block works.
template <class Shape>
struct Place {
  std::int64_t b, first;  // first: channel
  int g, count, channel, lane;
  template <class T>
  __device__ explicit Place(const Scan<T>& s) {
    g = static_cast<int>(blockIdx.x) / s.blocks % s.groups, b = blockIdx.x / s.blocks / s.groups;
    const int begin = static_cast<int>(blockIdx.x) % s.blocks * Shape::channels;
    count = min(Shape::channels, s.share - begin), first = std::int64_t{g} * s.share + begin;
    channel = static_cast<int>(threadIdx.x) / Shape::lanes, lane = static_cast<int>(threadIdx.x) % Shape::lanes;
  }
  __device__ bool holds(int state, int n) const { return channel < count && state < n; }
};

/// Neighbouring steps of a row, zero beyond.
template <class T>
struct alignas(16) Piece {
  T x[piece];
  __device__ void read(const T* from, std::int64_t step, int count, bool flat) {
    if (flat && count >= piece) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(x) / 16); ++i)
        reinterpret_cast<uint4*>(x)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < piece; ++i) x[i] = i < count ? from[i * step] : T(0.f);
  }
  __device__ void write(T* to, std::int64_t step, int count, bool flat) const {
    if (flat && count >= piece) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(x) / 16); ++i) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(x)[i];
      return;
    }
#pragma unroll
    for (int i = 0; i < piece; ++i)
      if (i < count) to[i * step] = x[i];
  }
};

/// Calls f(piece's channel, first step within the tile, pieces so far) for the thread's pieces of a tile's rows.
template <class Shape, class F>
__device__ inline void each_row_piece(F f) {
  constexpr int per_row = Shape::tile / piece, all = Shape::channels * per_row;
#pragma unroll
  for (int i = 0; i < (all + threads - 1) / threads; ++i)
    if (const int at = static_cast<int>(threadIdx.x) + i * threads; all % threads == 0 || at < all)
      f(at / per_row, at % per_row * piece, i);
}
template <class Shape>
constexpr int row_pieces = (Shape::channels * (Shape::tile / piece) + threads - 1) / threads;
template <class Shape>
constexpr int series_pieces = 2 * Shape::width * (Shape::tile / piece) / threads;

/// A tile of B and C on its way to shared memory, [step][state] each, C behind B.
template <class T, class Shape>
struct SeriesTile {
  Piece<T> next[series_pieces<Shape>];
  template <class F>
  __device__ static void each(F f) {
#pragma unroll
    for (int i = 0; i < series_pieces<Shape>; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * threads;
      f(at % Shape::width, at / Shape::width % (Shape::tile / piece) * piece, at / Shape::width / (Shape::tile / piece), i);
    }
  }
  __device__ void bring(const Scan<T>& s, std::int64_t b, int g, int step) {
    each([&](int j, int t, int which, int i) {
      const Series<const T>& m = which ? s.C : s.B;
      next[i].read(m.at(b, g, j, step + t), m.step, j < s.n ? s.steps - step - t : 0, m.flat);
    });
  }
  __device__ void put(float* to) const {
    each([&](int j, int t, int which, int i) {
#pragma unroll
      for (int k = 0; k < piece; ++k) to[(which * Shape::tile + t + k) * Shape::width + j] = number(next[i].x[k]);
    });
  }
};

/// A tile of rows on its way to shared memory.
template <class T, class Shape>
struct RowTile {
  Piece<T> next[row_pieces<Shape>];
  __device__ void bring(const Rows<const T>& m, std::int64_t b, std::int64_t first, int channels, int step, int steps) {
    each_row_piece<Shape>(
        [&](int c, int t, int i) { next[i].read(m.at(b, first + c, step + t), m.step, c < channels ? steps - step - t : 0, m.flat); });
  }
  __device__ void put(float* to) const {
    each_row_piece<Shape>([&](int c, int t, int i) {
#pragma unroll
      for (int k = 0; k < piece; ++k) to[c * Shape::pitch + t + k] = number(next[i].x[k]);
    });
  }
};
/// A tile of rows from shared memory.
template <class T, class Shape>
__device__ inline void write_rows(const float* from, const Rows<T>& m, std::int64_t b, std::int64_t first, int channels, int step,
                                  int steps) {
  each_row_piece<Shape>([&](int c, int t, int) {
    if (c >= channels || step + t >= steps) return;
    Piece<T> p;
#pragma unroll
    for (int k = 0; k < piece; ++k) p.x[k] = T(from[c * Shape::pitch + t + k]);
    p.write(m.at(b, first + c, step + t), m.step, steps - step - t, m.flat);
  });
}

/// What lies side by side, from shared memory.
template <int N>
__device__ inline void read_vector(float (&to)[N], const float* from) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const float4 x = reinterpret_cast<const float4*>(from)[i];
      to[4 * i] = x.x, to[4 * i + 1] = x.y, to[4 * i + 2] = x.z, to[4 * i + 3] = x.w;
    }
  } else {
    static_assert(N == 2);
    const float2 x = *reinterpret_cast<const float2*>(from);
    to[0] = x.x, to[1] = x.y;
  }
}
/// A lane's states of a step.
template <class Shape>
__device__ inline void read_states(float (&to)[Shape::states], const float* step, int lane) {
#pragma unroll
  for (int i = 0; i < Shape::states; i += Shape::vector) {
    float x[Shape::vector];
    read_vector(x, step + Shape::state(i, lane));
#pragma unroll
    for (int k = 0; k < Shape::vector; ++k) to[i + k] = x[k];
  }
}

/// Sums a channel's lanes, a step each; the index of the step whose sum comes back in v[0].
template <class Shape>
__device__ inline int sum_lanes(float (&v)[Shape::together], int lane) {
  constexpr int levels = log_2(Shape::together);
  const int step = sum_shared<levels>(v, lane, 1);
#pragma unroll
  for (int bit = Shape::together; bit < Shape::lanes; bit *= 2) v[0] += __shfl_xor_sync(~0u, v[0], bit);
  return step;
}

/// The scan; with Keep the states before every tile instead of outputs, starts[block][tile][state of a lane][thread].
template <class T, class Shape, bool Keep>
__device__ inline void scan_channels(const Scan<T>& s, float* starts) {
  constexpr int S = Shape::states, tile = Shape::tile, pitch = Shape::pitch, together = Shape::together;
  constexpr bool early = Shape::width <= 64;  // the next tile of B and C waits in registers
  __shared__ __align__(16) float x[Shape::channels * pitch], delta[Shape::channels * pitch], y[Keep ? 1 : Shape::channels * pitch];
  extern __shared__ __align__(16) float series[];
  const Place<Shape> p(s);
  RowTile<T, Shape> next_u;
  RowTile<float, Shape> next_delta;
  SeriesTile<T, Shape> next_series;
  const auto bring_rows = [&](int step) {
    next_u.bring(s.u, p.b, p.first, p.count, step, s.steps);
    next_delta.bring(s.delta, p.b, p.first, p.count, step, s.steps);
    if (early) next_series.bring(s, p.b, p.g, step);
  };
  float A[S], h[S];
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const int j = Shape::state(i, p.lane);
    const bool inside = p.holds(j, s.n);
    A[i] = inside ? s.A.at(0, p.first + p.channel, j) * log2_e : 0.f;
    h[i] = inside && s.initial.data ? s.initial.at(p.b, p.first + p.channel, j) : 0.f;
  }
  if (s.steps) bring_rows(0);
  const int tiles = (s.steps + tile - 1) / tile;
#pragma unroll 1
  for (int index = 0; index < tiles; ++index) {
    const int step = index * tile;
    if (Keep)
#pragma unroll
      for (int i = 0; i < S; ++i) starts[((std::int64_t{blockIdx.x} * tiles + index) * S + i) * threads + threadIdx.x] = h[i];
    __syncthreads();
    if (!early) next_series.bring(s, p.b, p.g, step);
    next_delta.put(delta);
    each_row_piece<Shape>([&](int c, int t, int i) {
#pragma unroll
      for (int k = 0; k < piece; ++k) x[c * pitch + t + k] = next_delta.next[i].x[k] * number(next_u.next[i].x[k]);
    });
    next_series.put(series);
    __syncthreads();
    if (step + tile < s.steps) bring_rows(step + tile);
#pragma unroll
    for (int first = 0; first < tile; first += together) {  // past the last step delta and x are zero and the state stays
      float dt[together], in[together], sums[together] = {};
      read_vector(dt, delta + p.channel * pitch + first);
      read_vector(in, x + p.channel * pitch + first);
#pragma unroll
      for (int k = 0; k < together; ++k) {
        float B[S], C[S] = {};
        read_states<Shape>(B, series + (first + k) * Shape::width, p.lane);
        if (!Keep) read_states<Shape>(C, series + (tile + first + k) * Shape::width, p.lane);
#pragma unroll
        for (int i = 0; i < S; ++i) {
          h[i] = exp2_fast(dt[k] * A[i]) * h[i] + in[k] * B[i];
          if (!Keep) sums[k] += C[i] * h[i];
        }
      }
      if (!Keep) {
        const int at = sum_lanes<Shape>(sums, p.lane);
        if (p.lane < together) y[p.channel * pitch + first + at] = sums[0];
      }
    }
    if (!Keep) {
      __syncthreads();
      write_rows<T, Shape>(y, s.out, p.b, p.first, p.count, step, s.steps);
    }
  }
  if (!Keep)
#pragma unroll
    for (int i = 0; i < S; ++i)
      if (const int j = Shape::state(i, p.lane); p.holds(j, s.n)) s.last.at(p.b, p.first + p.channel, j) = h[i];
}

/// Calls f with the shape for n states.
template <class F>
void with_shape(std::int64_t n, F f) {
  if (n <= 16) return f(Shape<4, 4>{});
  if (n <= 64) return f(Shape<8, 8>{});
  f(Shape<8, 32>{});
}

inline bool aligned(const void* data, std::initializer_list<std::int64_t> bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 &&
         std::all_of(bytes.begin(), bytes.end(), [](std::int64_t x) { return x % 16 == 0; });
}
template <class T>
Rows<element<T>> rows_of(const core::Tensor<T, 3>& x) {
  constexpr std::int64_t size = sizeof(T);
  const auto& s = x.stride;
  return {reinterpret_cast<element<T>*>(x.data), s[0], s[1], s[2], s[2] == 1 && aligned(x.data, {s[0] * size, s[1] * size})};
}
template <class T>
Series<element<T>> series_of(const core::Tensor<T, 4>& x) {
  constexpr std::int64_t size = sizeof(T);
  const auto& s = x.stride;
  return {
      reinterpret_cast<element<T>*>(x.data), s[0], s[1], s[2], s[3], s[3] == 1 && aligned(x.data, {s[0] * size, s[1] * size, s[2] * size})};
}
template <class T>
States states_of(const core::Tensor<T, 3>& x) {
  return {const_cast<float*>(x.data), x.stride[0], x.stride[1], x.stride[2]};
}

/// The operands that forward and backward share; `blocks` is left open.
template <class T>
Scan<element<T>> describe(const char* op, const core::Tensor<const T, 3>& u, const core::Tensor<const float, 3>& delta,
                          const core::Tensor<const float, 2>& A, const core::Tensor<const T, 4>& B, const core::Tensor<const T, 4>& C,
                          const std::optional<core::Tensor<const float, 3>>& initial) {
  const auto [batch, width, steps] = u.shape;
  const std::int64_t groups = B.shape[1], n = A.shape[1];
  check_groups(op, "channels", width, groups);
  if (n > widest_state) refuse(op, "A", "of at most 256 states on CUDA, got " + std::to_string(n));
  if (steps > INT32_MAX / 2 || width > INT32_MAX / 2) refuse(op, "u", "of at most 2^30 channels and steps");
  Scan<element<T>> s{};
  s.u = rows_of(u), s.delta = rows_of(delta), s.B = series_of(B), s.C = series_of(C);
  s.A = {const_cast<float*>(A.data), 0, A.stride[0], A.stride[1]};
  if (initial) s.initial = states_of(*initial);
  s.steps = static_cast<int>(steps), s.groups = static_cast<int>(groups), s.share = groups ? static_cast<int>(width / groups) : 0;
  s.n = static_cast<int>(n);
  return s;
}

/// Thread blocks of a scan.
template <class Shape, class T>
std::int64_t plan(const char* op, Scan<T>& s, std::int64_t batch) {
  s.blocks = static_cast<int>(ceil_div(s.share, Shape::channels));
  const std::int64_t blocks = batch * s.groups * s.blocks;
  if (blocks > INT32_MAX) refuse(op, "u", "of fewer batches and channels on CUDA");
  return blocks;
}

template <class Shape>
constexpr int series_bytes = 2 * Shape::tile * Shape::width * 4;
}  // namespace core_llm_efficiency::selective
