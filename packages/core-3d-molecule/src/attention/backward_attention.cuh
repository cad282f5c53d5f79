// Relational attention backward, but for the features of the pairs: slopes and weights of logits, gradients of queries, keys and
// values, and of the features as far as these give them.
#pragma once
#include "backward_work.cuh"

namespace core_3d_molecule::relational {
template <class C, int N>
struct AttentionBackward {
  const Operands& o;
  const Sizes& s;
  const Given& given;
  const Gradients& to;
  const Work<C, N>& w;
  const int t = static_cast<int>(threadIdx.x), H = C::exact ? C::H : s.H, D = C::exact ? C::D : s.D, E = C::exact ? C::E : s.E;

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
      const float weight = exponential(logit - lse), at_logit = part * weight;
      w.slope(i, j, h) = {at_logit, weight};
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
#pragma unroll(C::exact ? 2 : 1)
    for (int i = 0; i < tile.ni; ++i) {
      const int64_t query = row(m, tile.i0 + i, h);
      const float2 at_logit = w.slope(i, j, h);
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
        const auto* own = reinterpret_cast<const float4*>(&w.slope(i, j, 0));  // of two heads
        const auto* other = reinterpret_cast<const float4*>(&w.slope(j, i, 0));
#pragma unroll
        for (int h = 0; h < C::H; h += 2) {
          if (!C::exact && h >= H) break;
          const float4 a = own[h / 2];
          sum.x += a.x * q[h].x + a.y * g[h].x, sum.y += a.x * q[h].y + a.y * g[h].y;
          if (C::exact || h + 1 < H) sum.x += a.z * q[h + 1].x + a.w * g[h + 1].x, sum.y += a.z * q[h + 1].y + a.w * g[h + 1].y;
          if (diagonal) {
            const float4 b = other[h / 2];
            sum.x += b.x * k[h].x, sum.y += b.x * k[h].y;
            if (C::exact || h + 1 < H) sum.x += b.z * k[h + 1].x, sum.y += b.z * k[h + 1].y;
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
        for (int h = 0; h < H; ++h) sum += w.slope(i, j, h).x * o.k_edge[row(m, tile.j0 + j, h) * E + c];
        w.gradient[tile.pair(i, j) * w.width + c] += sum;
      }
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
#pragma unroll 4
      for (int x = 0; x < others; ++x) {
        const int pair = query ? tile.pair(own, x) : tile.pair(x, own);
        const float there = o.positions[(int64_t{m.begin} + (query ? tile.j0 : tile.i0) + x) * 3 + axis];
        sum += 2.f * w.distance[pair] * (here - there);
      }
      to.positions[mine] += sum;
    }
  }
};
}  // namespace core_3d_molecule::relational
