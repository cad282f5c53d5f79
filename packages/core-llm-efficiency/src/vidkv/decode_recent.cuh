// Attention over the tokens that are not packed yet, and what comes before and after the packed ones': the query transformed,
// and the parts merged.
#pragma once
#include "decode.cuh"

namespace core_llm_efficiency::decode {
/// One thread block a query head, of each tile: the Fourier transform of the channels [c, d), all scaled by a power of two to
/// at most 1.
constexpr int preparers = most_channels;
__global__ void __launch_bounds__(preparers) prepare(const __grid_constant__ Operands p) {
  __shared__ float plain[most_channels], ordered[most_channels], cosine[most_channels], sine[most_channels], packed[most_channels + 32];
  __shared__ float tops[preparers / 32];
  let_next_start();
  const Unit u(p, static_cast<int>(blockIdx.x) / tile_heads * p.sets);
  const int h = static_cast<int>(blockIdx.x) % tile_heads, x = static_cast<int>(threadIdx.x), n = p.d - p.c;
  std::int32_t from = 0;
  if (x < p.d) {
    from = p.channels[u.b * p.channels_row + x * p.channels_col];
    plain[x] = h < u.count ? load(p.q, u.b * p.q_batch + (u.first_head + h) * p.q_head + x * p.q_col, p.kind) : 0.f;
  }
  if (x < n) sincospif(2.f * static_cast<float>(x) / static_cast<float>(n), &sine[x], &cosine[x]);
  __syncthreads();
  if (x < p.d) ordered[x] = from >= 0 && from < p.d ? plain[from] : NAN;
  __syncthreads();
  if (x < p.wide) packed[x] = x < p.c ? ordered[x] : 0.f;
  for (int i = x; i < 4 * p.signs; i += preparers) {  // four threads a coefficient
    const int f = i / 4, part = i % 4;
    float y = 0;
    if (f < n) {
      const float* const wave = f % 2 || f == 0 ? cosine : sine;
      const int once = (f + 1) / 2, step = 4 * once % n;
      int turn = part * once % n;
#pragma unroll 8
      for (int j = part; j < n; j += 4) {
        y += ordered[p.c + j] * wave[turn];
        turn += step;
        turn -= turn >= n ? n : 0;
      }
      y *= sqrtf((f == 0 || (f == n - 1 && n % 2 == 0) ? 1.f : 2.f) / static_cast<float>(n));
    }
    y += __shfl_xor_sync(~0u, y, 1);
    y += __shfl_xor_sync(~0u, y, 2);
    if (part == 0) packed[p.wide + f] = y;
  }
  __syncthreads();
  const int positions = p.wide + p.signs;
  float most = 0;
  for (int i = x; i < positions; i += preparers) most = fmaxf(most, fabsf(packed[i]));
  for (int o = 16; o; o /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, o));
  if (x % 32 == 0) tops[x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < preparers / 32; ++i) most = fmaxf(most, tops[i]);
  const int power = power_above(most);
  Prepared& to = p.prepared[u.tile];
  if (x == 0) to.factor[h] = p.scale * two_to(power);
  for (int i = x; i < positions; i += preparers) to.put(h, i, packed[i] * two_to(-power));
}

/// What `prepare` found for a tile, into shared memory; the caller synchronises.
template <int Warps>
__device__ inline void fetch_query(const Prepared& from, int positions, Prepared& q) {
  wait_for_last();
  const int eights = positions / 8;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * tile_heads * eights; i += 32 * Warps) {
    const int row = i / eights, x = i % eights * 8;
    *reinterpret_cast<uint4*>(&q.split[row / tile_heads][row % tile_heads][x]) =
        __ldcg(reinterpret_cast<const uint4*>(&from.split[row / tile_heads][row % tile_heads][x]));
  }
  if (threadIdx.x < tile_heads) q.factor[threadIdx.x] = __ldcg(&from.factor[threadIdx.x]);
}

/// Tokens in full precision: four threads a token, then one a channel.
template <int Warps>
__device__ __noinline__ void attend_recent(const Operands& p, const Unit& u, int split, const Found& found) {
  constexpr int threads = 32 * Warps;
  __shared__ float query[tile_heads][most_channels];
  __shared__ float weights[tile_heads][recent_tokens];
  const int thread = static_cast<int>(threadIdx.x), first = split * recent_tokens, count = min(recent_tokens, p.recent - first);
  const std::int64_t keys = u.b * p.rk[0] + u.g * p.rk[1], values = u.b * p.rv[0] + u.g * p.rv[1];
#pragma unroll 1
  for (int i = thread; i < tile_heads * p.d; i += threads) {
    const int h = i / p.d, x = i % p.d;
    query[h][x] = h < u.count ? load(p.q, u.b * p.q_batch + (u.first_head + h) * p.q_head + x * p.q_col, p.kind) : 0.f;
  }
  __syncthreads();
  if (const int t = thread / 4, part = thread % 4; t < recent_tokens) {
    float sum[tile_heads] = {};
    if (t < count)
#pragma unroll 4
      for (int x = part; x < p.d; x += 4) {
        const float k = load(p.recent_k, keys + (first + t) * p.rk[2] + x * p.rk[3], p.kind);
#pragma unroll
        for (int h = 0; h < tile_heads; ++h) sum[h] += query[h][x] * k;
      }
    const bool seen = t < count && (!p.seen || p.seen[u.b * p.seen_row + (p.packed + first + t) * p.seen_col]);
#pragma unroll
    for (int h = 0; h < tile_heads; ++h) {
      const float x = quad_sum(sum[h]) * p.scale;
      if (part == 0) weights[h][t] = seen ? x : -INFINITY;
    }
  }
  __syncthreads();
  if (const int h = thread / 32, lane = thread % 32; h < tile_heads) {
    const float x = weights[h][lane], y = weights[h][lane + 32];
    float top = fmaxf(x, y);
    for (int o = 16; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    const float base = top == -INFINITY ? 0.f : top, wx = exp2_fast(x - base), wy = exp2_fast(y - base);
    weights[h][lane] = wx, weights[h][lane + 32] = wy;
    float sum = wx + wy;
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (lane == 0 && h < u.count) found.tops[h * found.tops_step] = {top, sum};
  }
  __syncthreads();
  for (int x = thread; x < p.e; x += threads) {
    float out[tile_heads] = {};
#pragma unroll 4
    for (int t = 0; t < count; ++t) {
      const float v = load(p.recent_v, values + (first + t) * p.rv[2] + x * p.rv[3], p.kind);
#pragma unroll
      for (int h = 0; h < tile_heads; ++h) out[h] += weights[h][t] * v;
    }
#pragma unroll
    for (int h = 0; h < tile_heads; ++h)
      if (h < u.count) found.parts[h * found.parts_step + x] = out[h];
  }
}

/// One thread block for each query head: the weighted mean of its parts. Eight threads share a channel's parts.
constexpr int sharers = 8, merged_channels = 64;
template <class T>
__global__ void __launch_bounds__(sharers* merged_channels)
    merge(const float2* tops, const float* parts, int splits, int heads, int e, T* out, std::int64_t out_batch, std::int64_t out_head,
          std::int64_t out_col) {
  __shared__ float sums[sharers][merged_channels];
  wait_for_last();
  const std::int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32, channel = static_cast<int>(threadIdx.x) % merged_channels,
            sharer = static_cast<int>(threadIdx.x) / merged_channels, x = static_cast<int>(blockIdx.y) * merged_channels + channel;
  tops += row * splits, parts += row * splits * e;
  const int each = (splits + sharers - 1) / sharers, first = sharer * each, last = min(first + each, splits);
  constexpr int ahead = 8;  // parts on their way while the weights are found
  float part[ahead];
#pragma unroll
  for (int i = 0; i < ahead; ++i) part[i] = x < e && first + i < last ? parts[std::int64_t{first + i} * e + x] : 0.f;
  float top = -INFINITY, total = 0;
  for (int i = lane; i < splits; i += 32) top = fmaxf(top, tops[i].x);
  for (int o = 16; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  const auto weight = [&](float y) { return y == -INFINITY ? 1.f : exp2_fast(y - top); };  // parts that saw nothing are zero, or NaN
  for (int i = lane; i < splits; i += 32) total += tops[i].y * weight(tops[i].x);
  for (int o = 16; o; o /= 2) total += __shfl_xor_sync(~0u, total, o);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < ahead; ++i)
    if (first + i < last) sum += part[i] * weight(tops[first + i].x);
  for (int i = first + ahead; i < last && x < e; ++i) sum += parts[std::int64_t{i} * e + x] * weight(tops[i].x);
  sums[sharer][channel] = sum;
  __syncthreads();
  if (sharer || x >= e) return;
#pragma unroll
  for (int i = 1; i < sharers; ++i) sum += sums[i][channel];
  out[row / heads * out_batch + row % heads * out_head + x * out_col] = T(total == 0 ? 0.f : sum / total);
}

}  // namespace core_llm_efficiency::decode
