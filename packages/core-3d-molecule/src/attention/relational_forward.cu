// Relational attention on CUDA, forward: a block takes molecules in turn. Its threads make the features of a tile of pairs in
// shared memory, on the matrix units or one pair a thread, then attend, one query and head a thread.
#include "pair_mma.cuh"

namespace core_3d_molecule {
namespace relational {
namespace {
constexpr int span_threads = 1024;

/// A stable counting sort, warp by warp.
__device__ inline void by_size(const int64_t* offsets, int molecules, int* order) {
  constexpr int sizes = 32, warps_here = span_threads / 32;
  static_assert(sizes * warps_here == span_threads);
  __shared__ int before[sizes * warps_here];  // [size, falling][warp]: molecules, then those before
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const int share = (molecules + warps_here - 1) / warps_here, first = min(warp * share, molecules), last = min(first + share, molecules);
  before[t] = 0;
  __syncthreads();
  const auto place = [&](int b) {
    const unsigned here = __ballot_sync(0xffffffff, b < last);
    const int64_t n = b < last ? offsets[b + 1] - offsets[b] : 0;
    int* const count = before + (sizes - 1 - static_cast<int>(max(int64_t{0}, min(n, int64_t{sizes - 1})))) * warps_here + warp;
    const unsigned same = __match_any_sync(0xffffffff, b < last ? static_cast<int>(count - before) : -1) & here;
    const int at = *count + __popc(same & ((1u << lane) - 1));
    __syncwarp();
    if (b < last && lane == 31 - __clz(same)) *count = at + 1;
    __syncwarp();
    return at;
  };
  for (int b = first; b < last; b += 32) place(b + lane);
  __syncthreads();
  const int own = before[t];
  for (int step = 1; step < span_threads; step *= 2) {
    const int left = t >= step ? before[t - step] : 0;
    __syncthreads();
    before[t] += left;
    __syncthreads();
  }
  before[t] -= own;
  __syncthreads();
  for (int b = first; b < last; b += 32) {
    const int at = place(b + lane);
    if (b + lane < last) order[at] = b + lane;
  }
}

/// One block: sums of n^2 over the molecules before each, and whether the offsets and the number of bonds fit.
__global__ void __launch_bounds__(span_threads) spans_kernel(const int64_t* offsets, Sizes s, Span* spans, int* bad, int* order) {
  __shared__ int64_t sums[span_threads];
  const int t = static_cast<int>(threadIdx.x), share = (s.molecules + span_threads - 1) / span_threads;
  const int first = min(t * share, s.molecules), last = min(first + share, s.molecules);
  int64_t sum = 0;
  bool wrong = t == 0 && (offsets[0] != 0 || offsets[s.molecules] != s.atoms);
  for (int b = first; b < last; ++b) {
    const int64_t begin = offsets[b], n = offsets[b + 1] - begin;
    wrong |= n < 0 || n > relational_attention_atoms || begin < 0 || begin + n > s.atoms;
    sum += n * n;
  }
  sums[t] = sum;
  __syncthreads();
  for (int step = 1; step < span_threads; step *= 2) {
    const int64_t before = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  wrong |= sums[span_threads - 1] != s.bonds;
  const int any = __syncthreads_or(wrong);
  if (t == 0) *bad = any;
  int64_t at = sums[t] - sum;
  for (int b = first; b < last; ++b) {
    const int64_t begin = offsets[b], n = offsets[b + 1] - begin;
    spans[b] = {static_cast<int>(begin), static_cast<int>(n), at};
    at += n * n;
  }
  if (order) by_size(offsets, s.molecules, order);
}

struct Outputs {
  float *out, *out_edge, *lse;
};

template <class C>
using Net = std::conditional_t<C::exact, PairNetwork<false>, Network<C>>;

/// N: queries of a tile.
template <class C, int N>
__global__ void __launch_bounds__(threads, C::exact ? 2 : 1)
    forward_kernel(Operands o, Sizes s, const Span* spans, const int* bad, Outputs out) {
  extern __shared__ float4 shared4[];
  const int t = static_cast<int>(threadIdx.x), H = C::exact ? C::H : s.H, D = C::exact ? C::D : s.D, E = C::exact ? C::E : s.E;
  if (*bad) {
    const float nan = __int_as_float(0x7fffffff);
    const int64_t first = int64_t{blockIdx.x} * threads + t, step = int64_t{gridDim.x} * threads;
    for (int64_t i = first; i < s.atoms * H * D; i += step) out.out[i] = nan;
    for (int64_t i = first; i < s.atoms * H * E; i += step) out.out_edge[i] = nan;
    for (int64_t i = first; i < s.atoms * H; i += step) out.lse[i] = nan;
    return;
  }
  Net<C> net;
  float* square = net.load(reinterpret_cast<float*>(shared4), o, s);
  for (int b = static_cast<int>(blockIdx.x); b < s.molecules; b += static_cast<int>(gridDim.x)) {
    const Span m = spans[b];
    for (int i0 = 0; i0 < m.n; i0 += N) {
      const int i = t / H, h = t % H;
      const bool mine = i < min(N, m.n - i0);
      const int64_t row = mine ? (int64_t{m.begin + i0 + i}) * H + h : 0;
      float q[C::D], q_edge[C::E], sum[C::D] = {}, edge_sum[C::E] = {}, most_logit = -INFINITY, total = 0.f;
      load<C::D, C::exact>(q, o.q + row * D, D);
      load<C::E, C::exact>(q_edge, o.q_edge + row * E, E);
      for_tiles<N>(m.n, i0, [&](const Tile& tile) {
        __syncthreads();
        net.fill(o, s, m, tile, square);
        __syncthreads();
        if (!mine) return;
        for (int j = 0; j < tile.nj; ++j) {
          const float* pair = square + tile.pair(i, j) * (C::E + C::H);
          const int64_t key = int64_t{m.begin + tile.j0 + j} * H + h;
          float e[C::E], x[C::D], k_edge[C::E];
          load<C::E, true>(e, pair, C::E);
          load<C::D, C::exact>(x, o.k + key * D, D);
          load<C::E, C::exact>(k_edge, o.k_edge + key * E, E);
          float logit = dot(q, x, pair[C::E + h]);
#pragma unroll
          for (int c = 0; c < C::E; ++c) logit += (q_edge[c] + k_edge[c]) * e[c];
          if (!(logit <= most_logit)) {  // NaN, too
            const float shrink = exponential(most_logit - logit);
            total *= shrink, most_logit = logit;
#pragma unroll
            for (int d = 0; d < C::D; ++d) sum[d] *= shrink;
#pragma unroll
            for (int c = 0; c < C::E; ++c) edge_sum[c] *= shrink;
          }
          const float weight = exponential(logit - most_logit);
          load<C::D, C::exact>(x, o.v + key * D, D);
          total += weight;
#pragma unroll
          for (int d = 0; d < C::D; ++d) sum[d] += weight * x[d];
#pragma unroll
          for (int c = 0; c < C::E; ++c) edge_sum[c] += weight * e[c];
        }
      });
      if (mine) {
        const float inverse = 1.f / total;
#pragma unroll
        for (int d = 0; d < C::D; ++d) sum[d] *= inverse;
#pragma unroll
        for (int c = 0; c < C::E; ++c) edge_sum[c] *= inverse;
        store<C::D, C::exact>(out.out + row * D, sum, D);
        store<C::E, C::exact>(out.out_edge + row * E, edge_sum, E);
        out.lse[row] = most_logit + logf(total);
      }
    }
  }
}

template <class C, int N>
void launch(const char* op, const Operands& o, const Sizes& s, const Span* spans, const int* bad, const Outputs& out, cudaStream_t stream) {
  static_assert(N * C::H <= threads);
  const int bytes = (Net<C>::floats(s) + triangle(N) * (C::E + C::H)) * 4;
  if (bytes > most_shared) refuse(op, "w1", "have fewer columns on CUDA");
  auto* kernel = forward_kernel<C, N>;
  core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(std::clamp(s.molecules, 1, 4096)), threads, bytes, stream>>>(o, s, spans, bad, out);
  core::check_cuda(op, cudaGetLastError(), "attending");
}
}  // namespace

void find_spans(const char* op, const int64_t* offsets, const Sizes& s, Span* spans, int* bad, int* order, cudaStream_t stream) {
  spans_kernel<<<1, span_threads, 0, stream>>>(offsets, s, spans, bad, order);
  core::check_cuda(op, cudaGetLastError(), "finding molecules");
}
}  // namespace relational

void relational_attention_cuda(Tensor<const float, 3> q, Tensor<const float, 3> k, Tensor<const float, 3> v, Tensor<const float, 3> q_edge,
                               Tensor<const float, 3> k_edge, Tensor<const float, 2> form, Tensor<const float, 2> positions,
                               Tensor<const std::uint8_t, 1> bonds, Tensor<const int64_t, 1> offsets, Tensor<const float, 1> centres,
                               Tensor<const float, 1> widths, Tensor<const float, 2> w1, Tensor<const float, 1> b1,
                               Tensor<const float, 2> w2, Tensor<const float, 1> b2, Tensor<float, 3> out, Tensor<float, 3> out_edge,
                               Tensor<float, 2> lse, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_attention";
  const Sizes s = sizes_of(op, q, q_edge, form, bonds, offsets, centres, w1);
  if (s.atoms == 0) return;
  const core::OnDevice guard(op, out.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const DenseOperands operands(op, stream, q, k, v, q_edge, k_edge, form, positions, bonds, offsets, centres, widths, w1, b1, w2, b2);
  const Operands o = operands.get();
  const Dense out_(op, out, stream), out_edge_(op, out_edge, stream);
  const Dense lse_(op, lse, stream);
  const core::DeviceScratch scratch(op, out.device_id, stream, s.molecules * static_cast<int64_t>(sizeof(Span)) + 16);
  Span* spans = scratch.get<Span>();
  int* bad = reinterpret_cast<int*>(spans + s.molecules);
  find_spans(op, operands.offsets.get(), s, spans, bad, nullptr, stream);
  const Outputs outputs{out_.get(), out_edge_.get(), lse_.get()};
  with_shape(op, s, [&]<class C>(C) {
    if constexpr (C::exact) {
      launch<C, 32>(op, o, s, spans, bad, outputs, stream);
    } else {
      launch<C, 16>(op, o, s, spans, bad, outputs, stream);
    }
  });
  out_.finish(), out_edge_.finish(), lse_.finish();
}
}  // namespace core_3d_molecule
