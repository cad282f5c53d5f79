// Relational attention on CUDA, backward: a block takes molecules in turn and keeps the sums over their pairs in memory of its
// own, which a second kernel adds up, so that the same input gives the same gradients. Of a tile of pairs its threads make the
// features (one pair a thread), the slopes of all logits (one query and head a thread, then one key and head), the gradient of
// the features (one atom and some channels a thread), and take that through the perceptron (one pair a thread).
#include "add_up.cuh"
#include "relational.cuh"

namespace core_3d_molecule {
namespace relational {
namespace {
constexpr int parts = 264;  // not the device's number, so that sums are the same on each

/// What the forward call gave and the gradients of that.
struct Given {
  const float *out, *out_edge, *lse, *grad_out, *grad_out_edge, *grad_lse;
};
struct Gradients {
  float *q, *k, *v, *q_edge, *k_edge, *positions;
};

/// Sums over pairs: w1 [F][I], b1 [F], w2 [E][F], b2 [E], form [H][products], centres [G], widths [G].
struct Sums {
  int w1, b1, w2, b2, form, centres, widths, count;
  __host__ __device__ explicit Sums(const Sizes& s) {
    const int I = 1 + s.G + s.classes;
    w1 = 0, b1 = w1 + s.F * I, w2 = b1 + s.F, b2 = w2 + s.E * s.F, form = b2 + s.E, centres = form + s.H * s.products();
    widths = centres + s.G, count = widths + s.G;
  }
};

/// Shared memory of a block behind the network.
template <class C, int N>
struct Work {
  static constexpr int pairs = triangle(N), channels = C::E + C::H, width = C::E > C::F ? C::E : C::F;
  float* square;       ///< [pairs][E + H]: features, and the form's value, later its gradient
  float2* slopes;      ///< [N][N][H]: slope of a logit and weight
  float* gradient;     ///< [pairs][width]: of the features, then of the hidden layer before silu
  float* row;          ///< [threads][span]: the hidden layer, then what the perceptron reads
  float* distance;     ///< [pairs]: gradient of the squared distance
  float* gaussians;    ///< [warps][2 G]: sums for centres and widths
  std::uint8_t* bond;  ///< [threads]
  int span;

  static __host__ __device__ int span_of(int G) { return (C::F > 1 + G ? C::F : 1 + G) | 1; }
  static __host__ __device__ int floats(int G) {
    return pairs * channels + 2 * N * N * C::H + pairs * width + up4(threads * span_of(G)) + up4(pairs) + up4(2 * warps * G) + threads / 4;
  }
  __device__ Work(float* at, int G) : span(span_of(G)) {
    square = at, at += pairs * channels;
    slopes = reinterpret_cast<float2*>(at), at += 2 * N * N * C::H;
    gradient = at, at += pairs * width;
    row = at, at += up4(threads * span);
    distance = at, at += up4(pairs);
    gaussians = at, at += up4(2 * warps * G);
    bond = reinterpret_cast<std::uint8_t*>(at);
  }
};

__device__ inline float over_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

template <class C, int N>
struct Block {
  const Operands& o;
  const Sizes& s;
  const Given& given;
  const Gradients& to;
  const Network<C>& net;
  const Work<C, N>& w;
  float* sums;
  Sums at;
  int t, H, D, E;

  __device__ float2& slope(int i, int j, int h) const { return w.slopes[(i * N + j) * C::H + h]; }
  __device__ int64_t row(const Span& m, int atom, int h) const { return (int64_t{m.begin + atom}) * H + h; }

  /// Slopes and weights of a tile; gradients of the queries.
  __device__ void queries(const Span& m, const Tile& tile, bool add) const {
    const int i = t / H, h = t % H;
    if (i >= tile.ni) return;
    const int64_t query = row(m, tile.i0 + i, h);
    float q[C::D], g[C::D], q_edge[C::E], g_edge[C::E], grad_q[C::D] = {}, grad_q_edge[C::E] = {}, x[C::D], e[C::E];
    load<C::D, C::exact>(q, o.q + query * D, D);
    load<C::D, C::exact>(g, given.grad_out + query * D, D);
    load<C::E, C::exact>(q_edge, o.q_edge + query * E, E);
    load<C::E, C::exact>(g_edge, given.grad_out_edge + query * E, E);
    load<C::D, C::exact>(x, given.out + query * D, D);
    load<C::E, C::exact>(e, given.out_edge + query * E, E);
    const float lse = given.lse[query], mean = dot(e, g_edge, dot(x, g, -given.grad_lse[query]));
    for (int j = 0; j < tile.nj; ++j) {
      const float* pair = w.square + tile.pair(i, j) * w.channels;
      const int64_t key = row(m, tile.j0 + j, h);
      float k_edge[C::E];
      load<C::E, true>(e, pair, C::E);
      load<C::E, C::exact>(k_edge, o.k_edge + key * E, E);
      load<C::D, C::exact>(x, o.v + key * D, D);
      const float part = dot(g_edge, e, dot(g, x, -mean));
      load<C::D, C::exact>(x, o.k + key * D, D);
      float logit = dot(q, x, pair[C::E + h]);
#pragma unroll
      for (int c = 0; c < C::E; ++c) logit += (q_edge[c] + k_edge[c]) * e[c];
      const float weight = __expf(logit - lse), at_logit = part * weight;
      slope(i, j, h) = {at_logit, weight};
#pragma unroll
      for (int d = 0; d < C::D; ++d) grad_q[d] += at_logit * x[d];
#pragma unroll
      for (int c = 0; c < C::E; ++c) grad_q_edge[c] += at_logit * e[c];
    }
    store<C::D, C::exact>(to.q + query * D, grad_q, D, add);
    store<C::E, C::exact>(to.q_edge + query * E, grad_q_edge, E, add);
  }

  /// Gradients of keys and values.
  __device__ void keys(const Span& m, const Tile& tile, bool add) const {
    const int j = t / H, h = t % H;
    if (j >= tile.nj) return;
    const int64_t key = row(m, tile.j0 + j, h);
    float grad_k[C::D] = {}, grad_v[C::D] = {}, grad_k_edge[C::E] = {}, x[C::D], e[C::E];
    for (int i = 0; i < tile.ni; ++i) {
      const int64_t query = row(m, tile.i0 + i, h);
      const float2 at_logit = slope(i, j, h);
      load<C::D, C::exact>(x, o.q + query * D, D);
#pragma unroll
      for (int d = 0; d < C::D; ++d) grad_k[d] += at_logit.x * x[d];
      load<C::D, C::exact>(x, given.grad_out + query * D, D);
#pragma unroll
      for (int d = 0; d < C::D; ++d) grad_v[d] += at_logit.y * x[d];
      load<C::E, true>(e, w.square + tile.pair(i, j) * w.channels, C::E);
#pragma unroll
      for (int c = 0; c < C::E; ++c) grad_k_edge[c] += at_logit.x * e[c];
    }
    store<C::D, C::exact>(to.k + key * D, grad_k, D, add);
    store<C::D, C::exact>(to.v + key * D, grad_v, D, add);
    store<C::E, C::exact>(to.k_edge + key * E, grad_k_edge, E, add);
  }

  /// Gradients of the features but for the form: what the query's own vectors give, and on the diagonal the key's too.
  __device__ void by_query(const Span& m, const Tile& tile, bool upper) const {
    constexpr int part = C::E / 2;
    const bool diagonal = tile.diagonal();
    if (upper && !diagonal) return;
    for (int task = t; task < tile.ni * part; task += threads) {
      const int i = task / part, c = task % part * 2;
      float2 q[C::H], g[C::H], k[C::H];
#pragma unroll
      for (int h = 0; h < C::H; ++h) {
        q[h] = g[h] = k[h] = {0.f, 0.f};
        if (!C::exact && h >= H) continue;
        const int64_t at_row = row(m, tile.i0 + i, h) * E;
        const bool second = C::exact || c + 1 < E;
        if (!C::exact && c >= E) continue;
        q[h] = {o.q_edge[at_row + c], second ? o.q_edge[at_row + c + 1] : 0.f};
        g[h] = {given.grad_out_edge[at_row + c], second ? given.grad_out_edge[at_row + c + 1] : 0.f};
        if (diagonal) k[h] = {o.k_edge[at_row + c], second ? o.k_edge[at_row + c + 1] : 0.f};
      }
      const int first = diagonal && upper ? i + 1 : 0, last = diagonal && !upper ? i + 1 : tile.nj;
      for (int j = first; j < last; ++j) {
        float2 sum = {0.f, 0.f};
#pragma unroll
        for (int h = 0; h < C::H; ++h) {
          if (!C::exact && h >= H) break;
          const float2 own = slope(i, j, h);
          sum.x += own.x * q[h].x + own.y * g[h].x, sum.y += own.x * q[h].y + own.y * g[h].y;
          if (diagonal) {
            const float other = slope(j, i, h).x;
            sum.x += other * k[h].x, sum.y += other * k[h].y;
          }
        }
        float* gradient = w.gradient + tile.pair(i, j) * w.width + c;
        gradient[0] = upper ? gradient[0] + sum.x : sum.x;
        gradient[1] = upper ? gradient[1] + sum.y : sum.y;
      }
    }
  }

  /// Beside the diagonal: what the key's vectors give.
  __device__ void by_key(const Span& m, const Tile& tile) const {
    if (tile.diagonal()) return;
    for (int task = t; task < tile.nj * C::E; task += threads) {
      const int j = task / C::E, c = task % C::E;
      if (c >= E) continue;
      for (int i = 0; i < tile.ni; ++i) {
        float sum = 0.f;
        for (int h = 0; h < H; ++h) sum += slope(i, j, h).x * o.k_edge[row(m, tile.j0 + j, h) * E + c];
        w.gradient[tile.pair(i, j) * w.width + c] += sum;
      }
    }
  }

  /// The form and the perceptron of all pairs of a tile.
  __device__ void pairs(const Span& m, const Tile& tile) const {
    const int count = tile.pairs();
    for (int first = 0; first < count; first += threads) {
      const int p = first + t, here = min(threads, count - first);
      const bool mine = t < here;
      int i = 0, j = 0, bond = 0;
      float squared = 0.f, hidden[C::F], derivative[C::F], e[C::E], grad[C::E];
      if (mine) {
        tile.atoms(p, i, j);
        squared = pair_of(o, s, m, tile.i0 + i, tile.j0 + j, bond);
        bond = max(bond, 0);
        float* pair = w.square + p * w.channels;
        float value[C::H];
#pragma unroll
        for (int h = 0; h < C::H; ++h) {
          value[h] = 0.f;
          if (!C::exact && h >= H) continue;
          value[h] = slope(i, j, h).x;
          if (tile.diagonal() && i != j) value[h] += slope(j, i, h).x;
        }
        load<C::E, true>(e, pair, C::E);
        load<C::E, true>(grad, w.gradient + p * w.width, C::E);
        int at_product = 0;
#pragma unroll
        for (int a = 0; a < C::E; ++a)
#pragma unroll
          for (int b = a; b < C::E; ++b, ++at_product) {
            float x = 0.f;
#pragma unroll
            for (int h = 0; h < C::H; ++h) x += value[h] * net.form[at_product * C::H + h];
            grad[a] += x * e[b], grad[b] += x * e[a];
          }
        net.hidden(squared, bond, hidden, &derivative);
        store<C::H, true>(pair + C::E, value, C::H);
        store<C::E, true>(w.gradient + p * w.width, grad, C::E);
#pragma unroll
        for (int f = 0; f < C::F; ++f) w.row[t * w.span + f] = hidden[f];
        w.bond[t] = static_cast<std::uint8_t>(bond);
      }
      __syncthreads();
      second_layer(first, here);
      __syncthreads();
      perceptron(p, mine, squared, grad, derivative, hidden);
      __syncthreads();
      first_layer(first, here);
      __syncthreads();
    }
  }

  /// Sums for the form, w2 and b2: one product of channels, or one hidden unit and four channels, a thread.
  __device__ void second_layer(int first, int here) const {
    constexpr int quads = C::E / 4;
    for (int task = t; task < C::S + C::F * quads; task += threads) {
      if (task < C::S) {
        const int a = net.pairs[2 * task], b = net.pairs[2 * task + 1];
        if (b >= E) continue;
        float sum[C::H] = {};
        for (int p = 0; p < here; ++p) {
          const float* pair = w.square + (first + p) * w.channels;
          const float product = pair[a] * pair[b];
          float value[C::H];
          load<C::H, true>(value, pair + C::E, C::H);
#pragma unroll
          for (int h = 0; h < C::H; ++h) sum[h] += product * value[h];
        }
        const int product = a * E - triangle(a) + b, all = triangle(E);
#pragma unroll
        for (int h = 0; h < C::H; ++h)
          if (C::exact || h < H) sums[at.form + h * all + product] += sum[h];
      } else {
        const int f = (task - C::S) / quads, c = (task - C::S) % quads * 4;
        if (f >= s.F) continue;
        float sum[4] = {}, bias[4] = {};
        for (int p = 0; p < here; ++p) {
          float grad[4];
          load<4, true>(grad, w.gradient + (first + p) * w.width + c, 4);
          const float hidden = w.row[p * w.span + f];
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += hidden * grad[i], bias[i] += grad[i];
        }
        for (int i = 0; i < 4; ++i)
          if (c + i < E) {
            sums[at.w2 + (c + i) * s.F + f] += sum[i];
            if (f == 0) sums[at.b2 + c + i] += bias[i];
          }
      }
    }
  }

  /// From the gradient of the features to that of the hidden layer and of the squared distance.
  __device__ void perceptron(int p, bool mine, float squared, const float (&grad)[C::E], const float (&derivative)[C::F],
                             float (&pre)[C::F]) const {
    if (mine) {
#pragma unroll
      for (int f = 0; f < C::F; ++f) {
        float sum = 0.f;
#pragma unroll
        for (int c = 0; c < C::E; ++c) sum += net.w2[f * C::E + c] * grad[c];
        pre[f] = sum * derivative[f];
      }
      store<C::F, true>(w.gradient + p * w.width, pre, C::F);
    }
    float at_squared = 0.f;
    if (mine) {
#pragma unroll
      for (int f = 0; f < C::F; ++f) at_squared += net.w1[f] * pre[f];
      w.row[t * w.span] = squared;
    }
    for (int g = 0; g < net.G; ++g) {
      float slope_here = 0.f, z = 0.f;
      if (mine) {
        const float y = net.gaussian(squared, g, z);
        float sum = 0.f;
#pragma unroll
        for (int f = 0; f < C::F; ++f) sum += net.w1[(1 + g) * C::F + f] * pre[f];
        slope_here = sum * y * z * net.inverse[g];
        at_squared -= slope_here;
        w.row[t * w.span + 1 + g] = y;
      }
      const float centre = over_warp(slope_here), width = over_warp(slope_here * z);
      if (t % 32 == 0) {
        w.gaussians[t / 32 * 2 * net.G + g] += centre;
        w.gaussians[(t / 32 * 2 + 1) * net.G + g] += width;
      }
    }
    if (mine) w.distance[p] = at_squared;
  }

  /// Sums for w1 and b1: one input, class or the bias and four hidden units a thread.
  __device__ void first_layer(int first, int here) const {
    constexpr int quads = C::F / 4;
    const int inputs = 1 + net.G, I = inputs + s.classes;
    for (int task = t; task < (I + 1) * quads; task += threads) {
      const int input = task / quads, f = task % quads * 4;
      float sum[4] = {};
      for (int p = 0; p < here; ++p) {
        const float x = input < inputs ? w.row[p * w.span + input] : input < I ? (w.bond[p] == input - inputs ? 1.f : 0.f) : 1.f;
        float grad[4];
        load<4, true>(grad, w.gradient + (first + p) * w.width + f, 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += x * grad[i];
      }
      for (int i = 0; i < 4; ++i)
        if (f + i < s.F) sums[input < I ? at.w1 + (f + i) * I + input : at.b1 + f + i] += sum[i];
    }
  }

  /// The atoms' shares of the gradients of squared distances.
  __device__ void positions(const Span& m, const Tile& tile) const {
    const int keys = tile.diagonal() ? 0 : tile.nj;
    for (int task = t; task < (tile.ni + keys) * 3; task += threads) {
      const int atom = task / 3, axis = task % 3;
      const bool query = atom < tile.ni;
      const int own = query ? atom : atom - tile.ni, others = query ? tile.nj : tile.ni;
      const int64_t mine = (int64_t{m.begin} + (query ? tile.i0 : tile.j0) + own) * 3 + axis;
      const float here = o.positions[mine];
      float sum = 0.f;
      for (int x = 0; x < others; ++x) {
        const int pair = query ? tile.pair(own, x) : tile.pair(x, own);
        const float there = o.positions[(int64_t{m.begin} + (query ? tile.j0 : tile.i0) + x) * 3 + axis];
        sum += 2.f * w.distance[pair] * (here - there);
      }
      to.positions[mine] += sum;
    }
  }
};

template <class C, int N>
__global__ void __launch_bounds__(threads, C::exact&& N < 32 ? 2 : 1)
    backward_kernel(Operands o, Sizes s, const Span* spans, const int* bad, Given given, Gradients to, float* all_sums) {
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
  Network<C> net;
  const Work<C, N> w(net.load(reinterpret_cast<float*>(shared4), o, s), s.G);
  for (int i = t; i < at.count; i += threads) sums[i] = 0.f;
  for (int i = t; i < 2 * warps * s.G; i += threads) w.gaussians[i] = 0.f;
  const Block<C, N> block{o, s, given, to, net, w, sums, at, t, C::exact ? C::H : s.H, C::exact ? C::D : s.D, C::exact ? C::E : s.E};
  for (int b = static_cast<int>(blockIdx.x); b < s.molecules; b += static_cast<int>(gridDim.x)) {
    const Span m = spans[b];
    for (int i = t; i < m.n * 3; i += threads) to.positions[int64_t{m.begin} * 3 + i] = 0.f;
    for (int i0 = 0; i0 < m.n; i0 += N) {
      bool seen = false;  // whether these queries had a tile before
      for_tiles<N>(m.n, i0, [&](const Tile& tile) {
        __syncthreads();
        fill(net, o, s, m, tile, w.square);
        __syncthreads();
        block.queries(m, tile, seen);
        __syncthreads();
        block.keys(m, tile, i0 > 0);
        block.by_query(m, tile, false);
        __syncthreads();
        block.by_query(m, tile, true);
        block.by_key(m, tile);
        __syncthreads();
        block.pairs(m, tile);
        block.positions(m, tile);
        seen = true;
      });
    }
  }
  __syncthreads();
  for (int g = t; g < 2 * s.G; g += threads) {
    float sum = 0.f;
    for (int warp = 0; warp < warps; ++warp) sum += w.gaussians[warp * 2 * s.G + g];
    sums[at.centres + g] = sum;
  }
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
void launch(const char* op, const Operands& o, const Sizes& s, const Span* spans, const int* bad, const Given& given, const Gradients& to,
            float* sums, cudaStream_t stream) {
  static_assert(N * C::H <= threads && N % 2 == 0);
  const int bytes = (Network<C>::floats(s.G, s.classes) + Work<C, N>::floats(s.G)) * 4;
  if (bytes > most_shared) refuse(op, "w1", "have fewer columns on CUDA");
  auto* kernel = backward_kernel<C, N>;
  core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(parts), threads, bytes, stream>>>(o, s, spans, bad, given, to, sums);
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
                                    (s.molecules + 1) * static_cast<int64_t>(sizeof(Span)) + int64_t{parts} * at.count * 4);
  Span* spans = scratch.get<Span>();
  int* bad = reinterpret_cast<int*>(spans + s.molecules);
  float* sums = reinterpret_cast<float*>(spans + s.molecules + 1);
  find_spans(op, operands.offsets.get(), s, spans, bad, stream);
  with_shape(op, s, [&]<class C>(C) {
    if constexpr (C::exact) {
      launch<C, 24>(op, o, s, spans, bad, given, to, sums, stream);
    } else {
      launch<C, 16>(op, o, s, spans, bad, given, to, sums, stream);
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
