// Relational attention on CUDA, backward: a block takes molecules in turn, large ones first, and keeps the sums over their pairs to itself,
// which a second kernel adds up, so that the same input gives the same gradients. Of a tile of pairs its threads make the features, the
// slopes of all logits (one query and head a thread, then one key and head), the gradient of the features (one atom and some
// channels a thread), and take that through the perceptron (on the matrix units, or one pair a thread).
#include "add_up.cuh"
#include "backward_attention.cuh"
#include "backward_pairs.cuh"
#include "backward_pairs_mma.cuh"

namespace core_3d_molecule {
namespace relational {
namespace {
constexpr int parts = 264;  // not the device's number, so that sums are the same on each

template <class C, int N>
using Pairs = std::conditional_t<C::exact, MatrixPairs<C, N>, ScalarPairs<C, N>>;

template <class C, int N>
__global__ void __launch_bounds__(threads, C::exact ? 2 : 1)
    backward_kernel(Operands o, Sizes s, const Span* spans, const int* bad, const int* order, Given given, Gradients to, float* all_sums) {
  extern __shared__ float4 shared4[];
  const int t = static_cast<int>(threadIdx.x);
  const Sums at(s);
  float* const sums = all_sums + int64_t{blockIdx.x} * at.count;
  if (*bad) {
    const float nan = __int_as_float(0x7fffffff);
    const int64_t first = int64_t{blockIdx.x} * threads + t, step = int64_t{gridDim.x} * threads, atoms = s.atoms;
    for (int64_t i = first; i < atoms * s.H * s.D; i += step) to.q[i] = to.k[i] = to.v[i] = nan;
    for (int64_t i = first; i < atoms * s.H * s.E; i += step) to.q_edge[i] = to.k_edge[i] = nan;
    for (int64_t i = first; i < atoms * 3; i += step) to.positions[i] = nan;
    for (int i = t; i < at.count; i += threads) sums[i] = nan;
    return;
  }
  typename Pairs<C, N>::Net net;
  const Work<C, N> w(net.load(reinterpret_cast<float*>(shared4), o, s), s.G);
  Pairs<C, N> pairs{o, s, net, w, at, sums};
  pairs.begin();
  const AttentionBackward<C, N> attention{o, s, given, to, w};
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  for (int turn = 0;; ++turn) {  // to and fro, so that a block with a large molecule gets a small one next
    const int b = turn * blocks + (turn % 2 ? blocks - 1 - block : block);
    if (b >= s.molecules) break;
    const Span m = spans[order[b]];
    for (int i = t; i < m.n * 3; i += threads) to.positions[int64_t{m.begin} * 3 + i] = 0.f;
    for (int i0 = 0; i0 < m.n; i0 += N) {
      bool seen = false;  // whether these queries had a tile before
      for_tiles<N>(m.n, i0, [&](const Tile& tile) {
        __syncthreads();
        net.fill(o, s, m, tile, w.square);
        __syncthreads();
        attention.queries(m, tile, seen);
        __syncthreads();
        attention.keys(m, tile, i0 > 0);
        if (C::exact) __syncthreads();  // the gradient takes the features' place
        attention.by_query(m, tile, false);
        __syncthreads();
        attention.by_query(m, tile, true);
        attention.by_key(m, tile);
        __syncthreads();
        pairs.tile(m, tile);
        attention.positions(m, tile);
        seen = true;
      });
    }
  }
  __syncthreads();
  pairs.finish();
}

/// Where the sums go, in the order of `Sums`.
struct Totals {
  static constexpr int tensors = 7;
  float* to[tensors];
  int first[tensors + 1];
};

__global__ void __launch_bounds__(add_up_threads) totals_kernel(const float* parts, int number_of_parts, Totals totals) {
  float sum;
  const int i = add_up(parts, totals.first[Totals::tensors], number_of_parts, sum);
  if (i < 0) return;
#pragma unroll
  for (int x = 0; x < Totals::tensors; ++x)
    if (i >= totals.first[x] && i < totals.first[x + 1]) totals.to[x][i - totals.first[x]] = sum;
}

template <class C, int N>
void launch(const char* op, const Operands& o, const Sizes& s, const Span* spans, const int* bad, const int* order, const Given& given,
            const Gradients& to, float* sums, cudaStream_t stream) {
  static_assert(N * C::H <= threads && N % 2 == 0);
  const int bytes = (Pairs<C, N>::Net::floats(s) + Work<C, N>::floats(s.G)) * 4;
  if (bytes > most_shared) refuse(op, "w1", "have fewer columns on CUDA");
  auto* kernel = backward_kernel<C, N>;
  core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(parts), threads, bytes, stream>>>(o, s, spans, bad, order, given, to, sums);
  core::check_cuda(op, cudaGetLastError(), "differentiating");
}
}  // namespace
}  // namespace relational

void relational_attention_backward_cuda(Tensor<const float, 3> q, Tensor<const float, 3> k, Tensor<const float, 3> v,
                                        Tensor<const float, 3> q_edge, Tensor<const float, 3> k_edge, Tensor<const float, 2> form,
                                        Tensor<const float, 2> positions, Tensor<const std::uint8_t, 1> bonds,
                                        Tensor<const int64_t, 1> offsets, Tensor<const float, 1> centres, Tensor<const float, 1> widths,
                                        Tensor<const float, 2> w1, Tensor<const float, 1> b1, Tensor<const float, 2> w2,
                                        Tensor<const float, 1> b2, Tensor<const float, 3> out, Tensor<const float, 3> out_edge,
                                        Tensor<const float, 2> lse, Tensor<const float, 3> grad_out, Tensor<const float, 3> grad_out_edge,
                                        Tensor<const float, 2> grad_lse, Tensor<float, 3> grad_q, Tensor<float, 3> grad_k,
                                        Tensor<float, 3> grad_v, Tensor<float, 3> grad_q_edge, Tensor<float, 3> grad_k_edge,
                                        Tensor<float, 2> grad_form, Tensor<float, 2> grad_positions, Tensor<float, 1> grad_centres,
                                        Tensor<float, 1> grad_widths, Tensor<float, 2> grad_w1, Tensor<float, 1> grad_b1,
                                        Tensor<float, 2> grad_w2, Tensor<float, 1> grad_b2, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_attention_backward";
  const Sizes s = sizes_of(op, q, q_edge, form, bonds, offsets, centres, w1);
  const core::OnDevice guard(op, grad_q.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const DenseOperands operands(op, stream, q, k, v, q_edge, k_edge, form, positions, bonds, offsets, centres, widths, w1, b1, w2, b2);
  const Operands o = operands.get();
  const Dense out_(op, out, stream), out_edge_(op, out_edge, stream);
  const Dense lse_(op, lse, stream);
  const Dense grad_out_(op, grad_out, stream), grad_out_edge_(op, grad_out_edge, stream);
  const Dense grad_lse_(op, grad_lse, stream);
  const Dense to_q(op, grad_q, stream), to_k(op, grad_k, stream), to_v(op, grad_v, stream), to_q_edge(op, grad_q_edge, stream);
  const Dense to_k_edge(op, grad_k_edge, stream);
  const Dense to_positions(op, grad_positions, stream), to_w1(op, grad_w1, stream), to_w2(op, grad_w2, stream),
      to_form(op, grad_form, stream);
  const Dense to_b1(op, grad_b1, stream), to_b2(op, grad_b2, stream), to_centres(op, grad_centres, stream),
      to_widths(op, grad_widths, stream);
  const Given given{out_.get(), out_edge_.get(), lse_.get(), grad_out_.get(), grad_out_edge_.get(), grad_lse_.get()};
  const Gradients to{to_q.get(), to_k.get(), to_v.get(), to_q_edge.get(), to_k_edge.get(), to_positions.get()};
  const Sums at(s);
  const core::DeviceScratch scratch(op, grad_q.device_id, stream,
                                    (s.molecules + 1) * static_cast<int64_t>(sizeof(Span)) + (int64_t{parts} * at.count + s.molecules) * 4);
  Span* spans = scratch.get<Span>();
  int* bad = reinterpret_cast<int*>(spans + s.molecules);
  float* sums = reinterpret_cast<float*>(spans + s.molecules + 1);
  int* order = reinterpret_cast<int*>(sums + int64_t{parts} * at.count);
  find_spans(op, operands.offsets.get(), s, spans, bad, order, stream);
  with_shape(op, s, [&]<class C>(C) {
    if constexpr (C::exact) {
      launch<C, 26>(op, o, s, spans, bad, order, given, to, sums, stream);
    } else {
      launch<C, 16>(op, o, s, spans, bad, order, given, to, sums, stream);
    }
  });
  const Totals totals{{to_w1.get(), to_b1.get(), to_w2.get(), to_b2.get(), to_form.get(), to_centres.get(), to_widths.get()},
                      {at.w1, at.b1, at.w2, at.b2, at.form, at.centres, at.widths, at.count}};
  totals_kernel<<<static_cast<unsigned>((at.count + add_up_outputs - 1) / add_up_outputs), add_up_threads, 0, stream>>>(sums, parts,
                                                                                                                        totals);
  core::check_cuda(op, cudaGetLastError(), "adding up");
  to_w1.finish(), to_b1.finish(), to_w2.finish(), to_b2.finish(), to_form.finish(), to_centres.finish(), to_widths.finish();
  to_q.finish(), to_k.finish(), to_v.finish(), to_q_edge.finish(), to_k_edge.finish(), to_positions.finish();
}
}  // namespace core_3d_molecule
