// The gradients of Mamba-1's scan on CUDA: a first kernel keeps the state before every tile of steps and, going back, its
// gradient after every segment of tiles; a second works on all segments at once, making each tile's states again. Sums over
// channels are formed within a thread block, then over blocks in order.
#include "selective_scan.cuh"

namespace core_llm_efficiency {
namespace {
using namespace selective;

template <class T>
struct Backward {
  Scan<T> scan;
  Rows<const T> grad_out;
  States grad_last, grad_initial;  // grad_last: data may be null
  Rows<T> grad_u;
  Rows<float> grad_delta;
  int tiles_of_segment, segments;
  float* starts;     // as scan_channels leaves them
  float* ends;       // [block][segment][state of a lane][thread]: gradient of the state after a segment, but the last
  float* of_series;  // [block][tile][step][B's states, C's states]
  float* of_A;       // [batch][segment][channel][state]
};

template <class Shape>
struct Shared {
  static constexpr int rows = Shape::channels * Shape::pitch, series = 2 * Shape::tile * Shape::width,
                       states = Shape::tile * Shape::states * threads, of_series = threads / 32 * series;
  static constexpr int bytes = 4 * (3 * rows + series + states + of_series);
};

/// The gradient of the state, from the last step back to the end of the first segment.
template <class T, class Shape>
__device__ inline void keep_ends(const Backward<T>& g) {
  constexpr int S = Shape::states, tile = Shape::tile, pitch = Shape::pitch, together = Shape::together;
  __shared__ __align__(16) float x[Shape::channels * pitch], delta[Shape::channels * pitch];
  extern __shared__ __align__(16) float series[];
  const Scan<T>& s = g.scan;
  const Place<Shape> p(s);
  RowTile<T, Shape> next_dy;
  RowTile<float, Shape> next_delta;
  SeriesTile<T, Shape> next_series;
  const auto bring_rows = [&](int step) {
    next_dy.bring(g.grad_out, p.b, p.first, p.count, step, s.steps);
    next_delta.bring(s.delta, p.b, p.first, p.count, step, s.steps);
  };
  float A[S], dh[S];
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const int j = Shape::state(i, p.lane);
    const bool inside = p.holds(j, s.n);
    A[i] = inside ? s.A.at(0, p.first + p.channel, j) * log2_e : 0.f;
    dh[i] = inside && g.grad_last.data ? g.grad_last.at(p.b, p.first + p.channel, j) : 0.f;
  }
  const int tiles = (s.steps + tile - 1) / tile;
  bring_rows((tiles - 1) * tile);
#pragma unroll 1
  for (int index = tiles - 1; index >= g.tiles_of_segment; --index) {
    const int step = index * tile;
    __syncthreads();
    next_series.bring(s, p.b, p.g, step);
    next_dy.put(x), next_delta.put(delta), next_series.put(series);
    __syncthreads();
    bring_rows(step - tile);
#pragma unroll
    for (int first = tile - together; first >= 0; first -= together) {
      float dt[together], in[together];
      read_vector(dt, delta + p.channel * pitch + first);
      read_vector(in, x + p.channel * pitch + first);
#pragma unroll
      for (int k = together - 1; k >= 0; --k) {
        float C[S];
        read_states<Shape>(C, series + (tile + first + k) * Shape::width, p.lane);
#pragma unroll
        for (int i = 0; i < S; ++i) dh[i] = exp2_fast(dt[k] * A[i]) * (dh[i] + in[k] * C[i]);
      }
    }
    if (index % g.tiles_of_segment == 0)
#pragma unroll
      for (int i = 0; i < S; ++i)
        g.ends[((std::int64_t{blockIdx.x} * g.segments + index / g.tiles_of_segment - 1) * S + i) * threads + threadIdx.x] = dh[i];
  }
}

/// Both ways at once.
template <class T, class Shape>
__global__ void __launch_bounds__(threads) keep_states(const __grid_constant__ Backward<T> g) {
  if (blockIdx.y)
    keep_ends<T, Shape>(g);
  else
    scan_channels<T, Shape, true>(g.scan, g.starts);
}

template <class T, class Shape>
__global__ void __launch_bounds__(threads) scan_back(const __grid_constant__ Backward<T> g) {
  constexpr int S = Shape::states, tile = Shape::tile, pitch = Shape::pitch, together = Shape::together, width = Shape::width;
  constexpr bool early = width <= 64;
  using M = Shared<Shape>;
  extern __shared__ __align__(16) float shared[];
  float *const u = shared, *const delta = u + M::rows, *const dy = delta + M::rows, *const series = dy + M::rows,
               *const states = series + M::series, *const of_series = states + M::states;
  const Scan<T>& s = g.scan;
  const Place<Shape> p(s);
  const int lane_of_warp = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int tiles = (s.steps + tile - 1) / tile, segment = static_cast<int>(blockIdx.y);
  const int begin = segment * g.tiles_of_segment, end = min(begin + g.tiles_of_segment, tiles);
  const bool last = segment + 1 == g.segments;
  const float* const ends = g.ends + (std::int64_t{blockIdx.x} * g.segments + segment) * Shape::states * threads + threadIdx.x;
  RowTile<T, Shape> next_u, next_dy;
  RowTile<float, Shape> next_delta;
  SeriesTile<T, Shape> next_series;
  const auto bring = [&](int step) {
    next_u.bring(s.u, p.b, p.first, p.count, step, s.steps);
    next_dy.bring(g.grad_out, p.b, p.first, p.count, step, s.steps);
    next_delta.bring(s.delta, p.b, p.first, p.count, step, s.steps);
    if (early) next_series.bring(s, p.b, p.g, step);
  };
  float A[S], dh[S], dA[S] = {};
#pragma unroll
  for (int i = 0; i < S; ++i) {
    const int j = Shape::state(i, p.lane);
    const bool inside = p.holds(j, s.n);
    A[i] = inside ? s.A.at(0, p.first + p.channel, j) * log2_e : 0.f;
    dh[i] = !last ? ends[i * threads] : inside && g.grad_last.data ? g.grad_last.at(p.b, p.first + p.channel, j) : 0.f;
  }
  if (begin < end) bring((end - 1) * tile);
#pragma unroll 1
  for (int index = end - 1; index >= begin; --index) {
    const int step = index * tile;
    float h[S];
#pragma unroll
    for (int i = 0; i < S; ++i) h[i] = g.starts[((std::int64_t{blockIdx.x} * tiles + index) * S + i) * threads + threadIdx.x];
    __syncthreads();
    if (!early) next_series.bring(s, p.b, p.g, step);
    next_u.put(u), next_delta.put(delta), next_dy.put(dy), next_series.put(series);
    __syncthreads();
    if (index > begin) bring(step - tile);

#pragma unroll
    for (int first = 0; first < tile; first += together) {
      float dt[together], in[together];
      read_vector(dt, delta + p.channel * pitch + first);
      read_vector(in, u + p.channel * pitch + first);
#pragma unroll
      for (int k = 0; k < together; ++k) {
        float B[S];
        read_states<Shape>(B, series + (first + k) * width, p.lane);
#pragma unroll
        for (int i = 0; i < S; ++i) {
          states[((first + k) * (S / Shape::vector) + i / Shape::vector) * (threads * Shape::vector) +
                 static_cast<int>(threadIdx.x) * Shape::vector + i % Shape::vector] = h[i];
          h[i] = exp2_fast(dt[k] * A[i]) * h[i] + dt[k] * in[k] * B[i];
        }
      }
    }
#pragma unroll 1
    for (int first = tile - together; first >= 0; first -= together) {
      float dt[together], in[together], of_y[together], of_input[together] = {}, of_exponent[together] = {};
      read_vector(dt, delta + p.channel * pitch + first);
      read_vector(in, u + p.channel * pitch + first);
      read_vector(of_y, dy + p.channel * pitch + first);
#pragma unroll
      for (int k = together - 1; k >= 0; --k) {
        const int t = first + k;
        float B[S], C[S], before[S], sums[2 * S];
        read_states<Shape>(B, series + t * width, p.lane);
        read_states<Shape>(C, series + (tile + t) * width, p.lane);
#pragma unroll
        for (int i = 0; i < S; i += Shape::vector) {
          float x[Shape::vector];
          read_vector(x, states + (t * (S / Shape::vector) + i / Shape::vector) * (threads * Shape::vector) +
                             static_cast<int>(threadIdx.x) * Shape::vector);
#pragma unroll
          for (int v = 0; v < Shape::vector; ++v) before[i + v] = x[v];
        }
        const float input = dt[k] * in[k];
#pragma unroll
        for (int i = 0; i < S; ++i) {
          const float whole = dh[i] + C[i] * of_y[k];
          sums[i] = whole * input, sums[S + i] = of_y[k] * h[i];
          of_input[k] += whole * B[i];
          dh[i] = whole * exp2_fast(dt[k] * A[i]);
          const float exponent = dh[i] * before[i];
          of_exponent[k] += exponent * A[i];
          dA[i] += exponent * dt[k];
          h[i] = before[i];
        }
        constexpr int levels = log_2(Shape::of_warp), left = 2 * S >> levels;
        const int from = sum_shared<levels>(sums, lane_of_warp, Shape::lanes);
#pragma unroll
        for (int r = 0; r < left; ++r) {
          const int i = from + r;
          of_series[(warp * tile + t) * 2 * width + (i < S ? 0 : width) + Shape::state(i % S, p.lane)] = sums[r];
        }
      }
      const int at = sum_lanes<Shape>(of_input, p.lane);
      sum_lanes<Shape>(of_exponent, p.lane);
      if (p.lane < together) {
        float du = 0, dd = 0;
#pragma unroll
        for (int k = 0; k < together; ++k)
          if (k == at) du = dt[k] * of_input[0], dd = in[k] * of_input[0] + of_exponent[0] * ln_2;
        u[p.channel * pitch + first + at] = du, delta[p.channel * pitch + first + at] = dd;
      }
    }
    __syncthreads();
    write_rows<T, Shape>(u, g.grad_u, p.b, p.first, p.count, step, s.steps);
    write_rows<float, Shape>(delta, g.grad_delta, p.b, p.first, p.count, step, s.steps);
    float* const to = g.of_series + (std::int64_t{blockIdx.x} * tiles + index) * M::series;
    for (int i = static_cast<int>(threadIdx.x); i < M::series; i += threads) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < threads / 32; ++w) sum += of_series[w * M::series + i];
      to[i] = sum;
    }
  }
#pragma unroll
  for (int i = 0; i < S; ++i)
    if (const int j = Shape::state(i, p.lane); p.holds(j, s.n)) {
      if (segment == 0) g.grad_initial.at(p.b, p.first + p.channel, j) = dh[i];
      g.of_A[((p.b * g.segments + segment) * s.groups * s.share + p.first + p.channel) * s.n + j] = dA[i];
    }
}

/// One thread block for a tile of a group: the sums over its thread blocks.
template <class T, class Shape>
__global__ void __launch_bounds__(256)
    sum_series(const float* parts, int groups, int blocks, int tiles, int n, int steps, Series<T> B, Series<T> C) {
  constexpr int tile = Shape::tile, width = Shape::width, size = 2 * tile * width;
  __shared__ float sums[size + size / 32];  // a word of padding every 32
  const int index = static_cast<int>(blockIdx.x) % tiles, of = static_cast<int>(blockIdx.x) / tiles;
  parts += (std::int64_t{of} * blocks * tiles + index) * size;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += 256) {
    float sum = 0;
#pragma unroll 8
    for (int block = 0; block < blocks; ++block) sum += parts[std::int64_t{block} * tiles * size + i];
    sums[i + i / 32] = sum;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < size; i += 256) {
    const int t = i % tile, j = i / tile % width, from = t * 2 * width + i / tile;
    if (j >= n || index * tile + t >= steps) continue;
    *(i / tile < width ? B : C).at(of / groups, of % groups, j, index * tile + t) = T(sums[from + from / 32]);
  }
}

__global__ void __launch_bounds__(256) sum_parts(const float* parts, int count, std::int64_t channels, int n, States A) {
  const std::int64_t i = blockIdx.x * std::int64_t{256} + threadIdx.x;
  if (i >= channels * n) return;
  float sum = 0;
#pragma unroll 8
  for (int part = 0; part < count; ++part) sum += parts[part * channels * n + i];
  A.at(0, i / n, static_cast<int>(i % n)) = sum;
}

template <class T>
void back_on(core::Tensor<const T, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A, core::Tensor<const T, 4> B,
             core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 3>> initial, core::Tensor<const T, 3> grad_out,
             std::optional<core::Tensor<const float, 3>> grad_last, core::Tensor<T, 3> grad_u, core::Tensor<float, 3> grad_delta,
             core::Tensor<float, 2> grad_A, core::Tensor<T, 4> grad_B, core::Tensor<T, 4> grad_C, core::Tensor<float, 3> grad_initial,
             core::Stream queue) {
  const char* op = "selective_scan_backward";
  using N = element<T>;
  Backward<N> g{};
  g.scan = describe(op, u, delta, A, B, C, initial);
  const auto [batch, channels, steps] = u.shape;
  const int n = g.scan.n;
  const OnDevice on(op, u.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  g.grad_out = rows_of(grad_out), g.grad_u = rows_of(grad_u), g.grad_delta = rows_of(grad_delta);
  g.grad_initial = states_of(grad_initial);
  if (grad_last) g.grad_last = states_of(*grad_last);
  with_shape(n, [&]<class Shape>(Shape) {
    using M = Shared<Shape>;
    const std::int64_t blocks = plan<Shape>(op, g.scan, batch), tiles = ceil_div(steps, Shape::tile);
    g.tiles_of_segment = static_cast<int>(std::max<std::int64_t>(8, ceil_div(tiles, 65535)));
    g.segments = static_cast<int>(std::max<std::int64_t>(1, ceil_div(tiles, g.tiles_of_segment)));
    const char* what = "selective_scan_backward: scratch";
    const std::int64_t starts = core::checked_mul(blocks * tiles, Shape::states * threads, what),
                       ends = core::checked_mul(blocks * g.segments, Shape::states * threads, what),
                       parts = core::checked_mul(blocks * tiles, M::series, what),
                       of_A = core::checked_mul(batch * channels * g.segments, n, what);
    const DeviceScratch scratch(op, u.device_id, stream, core::checked_mul(starts + ends + parts + of_A, 4, what));
    g.starts = scratch.template get<float>(), g.ends = g.starts + starts, g.of_series = g.ends + ends, g.of_A = g.of_series + parts;
    if (blocks && (n || steps)) {
      const auto run = [&](auto* kernel, int rows, int bytes) {
        check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
        kernel<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)), threads, bytes, stream>>>(g);
        check_cuda(op, cudaGetLastError(), "going back");
      };
      run(&keep_states<N, Shape>, g.segments > 1 ? 2 : 1, series_bytes<Shape>);
      run(&scan_back<N, Shape>, g.segments, M::bytes);
    }
    if (const std::int64_t all = batch * g.scan.groups * tiles; all && n) {
      if (all > INT32_MAX) refuse(op, "u", "of fewer batches and steps on CUDA");
      sum_series<N, Shape><<<static_cast<unsigned>(all), 256, 0, stream>>>(
          g.of_series, g.scan.groups, g.scan.blocks, static_cast<int>(tiles), n, g.scan.steps, series_of(grad_B), series_of(grad_C));
      check_cuda(op, cudaGetLastError(), "summing");
    }
    if (channels * n) {
      sum_parts<<<static_cast<unsigned>(ceil_div(channels * n, 256)), 256, 0, stream>>>(
          g.of_A, static_cast<int>(batch) * g.segments, channels, n, {grad_A.data, 0, grad_A.stride[0], grad_A.stride[1]});
      check_cuda(op, cudaGetLastError(), "summing");
    }
  });
}
}  // namespace

#define CORE_SELECTIVE_SCAN_BACKWARD(name, T)                                                                                            \
  void name(core::Tensor<const T, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A, core::Tensor<const T, 4> B,  \
            core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<const T, 3> grad_out,    \
            std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<T, 3> grad_u, core::Tensor<float, 3> grad_delta,   \
            core::Tensor<float, 2> grad_A, core::Tensor<T, 4> grad_B, core::Tensor<T, 4> grad_C,                                         \
            core::Tensor<float, 3> grad_initial_state, core::Stream stream) {                                                            \
    back_on(u, delta, A, B, C, initial_state, grad_out, grad_last_state, grad_u, grad_delta, grad_A, grad_B, grad_C, grad_initial_state, \
            stream);                                                                                                                     \
  }
CORE_SELECTIVE_SCAN_BACKWARD(selective_scan_backward_fp32, float)
CORE_SELECTIVE_SCAN_BACKWARD(selective_scan_backward_fp16, core::float16)
CORE_SELECTIVE_SCAN_BACKWARD(selective_scan_backward_bf16, core::bfloat16)
#undef CORE_SELECTIVE_SCAN_BACKWARD
}  // namespace core_llm_efficiency
