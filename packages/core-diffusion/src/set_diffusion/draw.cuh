// The suffix recursion over a row's random codes, and the draw from it: a block a row.
#pragma once
#include <core_diffusion/philox.hpp>

#include "laws.cuh"

namespace core_diffusion {
namespace {
struct Shared {
  int64_t sums[2 * warps];
  double moments[2 * warps];
  int n, verdict;
};

/// The sums of x and y over the block, in every thread.
__device__ void sum_all(double& x, double& y, Shared& s) {
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i), y += __shfl_xor_sync(~0u, y, i);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.moments[threadIdx.x / 32] = x, s.moments[warps + threadIdx.x / 32] = y;
  __syncthreads();
  x = y = 0;
  for (int i = 0; i < warps; ++i) x += s.moments[i], y += s.moments[warps + i];
}

/// Lists the random codes of the row in order, with the sum of the spans before each; returns the sums of low and of span.
__device__ longlong2 list_codes(const Rows& r, Shared& s) {
  const int64_t share = (r.codes + threads - 1) / threads, begin = min(r.codes, share * threadIdx.x), end = min(r.codes, begin + share);
  int64_t low = 0, span = 0, many = 0;
  for (int64_t k = begin; k < end; ++k) low += r.low[k], span += r.span[k], many += r.span[k] > 0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t spans = span, count = many;
  for (int i = 1; i < 32; i *= 2) {
    const int64_t a = __shfl_up_sync(~0u, spans, i), c = __shfl_up_sync(~0u, count, i);
    if (lane >= i) spans += a, count += c;
  }
  for (int i = 16; i; i /= 2) low += __shfl_xor_sync(~0u, low, i);
  __syncthreads();
  if (lane == 31) s.sums[warp] = spans, s.sums[warps + warp] = count;
  __syncthreads();
  int64_t reach = 0, n = 0;
  for (int i = 0; i < warps; ++i) {
    if (i < warp) spans += s.sums[i], count += s.sums[warps + i];
    reach += s.sums[i], n += s.sums[warps + i];
  }
  spans -= span, count -= many;
  for (int64_t k = begin; k < end; ++k)
    if (r.span[k] > 0) r.list[count] = static_cast<int32_t>(k), r.before[count++] = static_cast<int32_t>(spans), spans += r.span[k];
  __syncthreads();
  if (lane == 0) s.sums[warp] = low;
  if (threadIdx.x == 0) s.n = static_cast<int>(n), r.before[n] = static_cast<int32_t>(reach);
  __syncthreads();
  int64_t lows = 0;
  for (int i = 0; i < warps; ++i) lows += s.sums[i];
  __syncthreads();
  return {lows, reach};
}

__device__ void normalise(const Rows& r, int n) {
  for (int i = threadIdx.x; i < n; i += threads) {
    double *p = r.weight + r.list[i] * r.width, most = 0, sum = 0;
    const int last = r.span[r.list[i]];
    for (int k = 0; k <= last; ++k) most = fmax(most, p[k]);
    for (int k = 0; k <= last; ++k) sum += p[k] /= most;
    for (int k = 0; k <= last; ++k) p[k] /= sum;
  }
  __syncthreads();
}

/// weight = exp(log_weight + lambda k), each law scaled to sum 1; gives mean and variance of the sum.
__device__ void tilt_by(const Rows& r, int n, double lambda, double& mean, double& variance, Shared& s) {
  mean = variance = 0;
  for (int i = threadIdx.x; i < n; i += threads) {
    double* p = r.weight + r.list[i] * r.width;
    const double* l = r.log_weight + r.list[i] * r.width;
    const int last = r.span[r.list[i]];
    double most = -INFINITY, sum = 0, m1 = 0, m2 = 0;
    for (int k = 0; k <= last; ++k) most = fmax(most, l[k] + lambda * k);
    for (int k = 0; k <= last; ++k) sum += p[k] = exp(l[k] + lambda * k - most);
    for (int k = 0; k <= last; ++k) m1 += k * (p[k] /= sum);
    for (int k = 0; k <= last; ++k) m2 += (k - m1) * (k - m1) * p[k];
    mean += m1, variance += m2;
  }
  sum_all(mean, variance, s);
}

/// As Laws::tilt on the CPU.
__device__ void tilt(const Rows& r, int n, int64_t residual, bool with_logs, Shared& s) {
  if (!with_logs)
    for (int i = threadIdx.x; i < n; i += threads)
      for (int k = 0; k <= r.span[r.list[i]]; ++k) r.log_weight[r.list[i] * r.width + k] = log(r.weight[r.list[i] * r.width + k]);
  __syncthreads();
  double lambda = 0, below = -INFINITY, above = INFINITY, step = 1;
  for (int iteration = 0; iteration < 400; ++iteration) {
    double mean, variance;
    tilt_by(r, n, lambda, mean, variance, s);
    const double excess = mean - static_cast<double>(residual);
    if (fabs(excess) <= fmax(0.5, sqrt(variance))) break;
    (excess > 0 ? above : below) = lambda;
    const double newton = variance > 0 ? -excess / variance : excess > 0 ? -step : step;
    lambda += fmin(fmax(newton, -step), step);
    if (lambda <= below || lambda >= above) lambda = below + (above - below) / 2;
    step *= 4;
  }
  __syncthreads();
}

/// T_i(r) of all suffixes i, at table[i * stride + r - lo_i] with lo_i = max(0, residual - before_i).
struct Table {
  double* cells;
  int64_t stride, residual, reach;
  const int32_t* before;

  __device__ int64_t lo(int i) const { return max(int64_t{0}, residual - before[i]); }
  __device__ int64_t hi(int i) const { return min(residual, reach - before[i]); }
};

__device__ double build(const Rows& r, int n, const Table& t) {
  if (threadIdx.x == 0) t.cells[n * t.stride] = 1;
  __syncthreads();
  int64_t from_lo = t.lo(n), from_hi = t.hi(n);
  for (int i = n - 1; i >= 0; --i) {
    const int64_t code = r.list[i], lo = t.lo(i), hi = t.hi(i), last = r.span[code];
    const double *p = r.weight + code * r.width, *from = t.cells + (i + 1) * t.stride;
    double* to = t.cells + i * t.stride;
    for (int64_t x = lo + threadIdx.x; x <= hi; x += threads) {
      const int64_t k0 = max(int64_t{0}, x - from_hi), k1 = min(last, x - from_lo);
      double y = 0;
      for (int64_t k = k0; k <= k1; ++k) y += p[k] * from[x - k - from_lo];
      to[x - lo] = y;
    }
    from_lo = lo, from_hi = hi;
    __syncthreads();
  }
  return t.cells[0];
}

/// Draws the codes in order; one warp.
__device__ void draw(const Rows& r, int n, const Table& t, int64_t seed, int64_t b, const Tensor<int32_t, 2>& out) {
  const int lane = threadIdx.x;
  int64_t left = t.residual;
  double chance = 0, ahead = n > 0 && lane <= r.span[r.list[0]] ? r.weight[r.list[0] * r.width + lane] : 0;
  for (int i = 0; i < n; ++i) {
    if (i % 32 == 0) chance = i + lane < n ? uniform(seed, b, r.list[i + lane]) : 0;
    const int64_t code = r.list[i], lo = t.lo(i + 1), last = r.span[code];
    const double *p = r.weight + code * r.width, *next = t.cells + (i + 1) * t.stride + left - lo, here = ahead;
    if (i + 1 < n) ahead = lane <= r.span[r.list[i + 1]] ? r.weight[r.list[i + 1] * r.width + lane] : 0;
    const int64_t k0 = max(int64_t{0}, left - t.hi(i + 1)), k1 = min(last, left - lo);
    const auto term = [&](int64_t k) { return k >= k0 && k <= k1 ? (k < 32 ? here : p[k]) * next[-k] : 0; };
    const double first = term(lane);
    double sum = 0, passed = 0;
    for (int64_t base = 0; base <= k1; base += 32) {
      const double mine = base ? term(base + lane) : first;
      for (int j = 0; j < 32 && base + j <= k1; ++j) sum += __shfl_sync(~0u, mine, j);
    }
    const double target = __shfl_sync(~0u, chance, i % 32) * sum;
    int64_t drawn = k0;
    for (int64_t base = 0; base <= k1 && passed <= target; base += 32) {
      const double mine = base ? term(base + lane) : first;
      for (int j = 0; j < 32 && base + j <= k1 && passed <= target; ++j) {
        const double x = __shfl_sync(~0u, mine, j);
        if (x > 0) drawn = base + j;
        passed += x;
      }
    }
    if (lane == 0) out.data[b * out.stride[0] + code * out.stride[1]] = static_cast<int32_t>(r.low[code] + drawn);
    left -= drawn;
  }
}

/// Draws the row from its laws; false if no counts have the total.
__device__ bool solve_row(const Rows& r, int64_t total, int64_t seed, int64_t b, const Tensor<int32_t, 2>& out, bool with_logs,
                          double* room, int64_t cells, Shared& s) {
  const longlong2 sums = list_codes(r, s);
  const int64_t residual = total - sums.x, reach = sums.y;
  const int n = s.n;
  if (residual < 0 || residual > reach) return false;
  const bool whole = residual == reach;
  if (residual == 0 || whole) {
    for (int64_t k = threadIdx.x; k < r.codes; k += threads)
      out.data[b * out.stride[0] + k * out.stride[1]] = r.low[k] + (whole ? r.span[k] : 0);
    return true;
  }
  for (int64_t k = threadIdx.x; k < r.codes; k += threads)
    if (r.span[k] == 0) out.data[b * out.stride[0] + k * out.stride[1]] = r.low[k];
  // A row of the table is no wider than the sums that codes before and behind can both reach.
  const int64_t stride = min(residual, reach - residual) + 1;
  const Table t{(n + 1) * stride <= cells ? room : r.table, stride, residual, reach, r.before};
  normalise(r, n);
  double chance = build(r, n, t);
  if (chance < sure) {
    tilt(r, n, residual, with_logs, s);
    chance = build(r, n, t);
    if (chance < least) return false;
  }
  if (threadIdx.x < 32) draw(r, n, t, seed, b, out);
  return true;
}
}  // namespace
}  // namespace core_diffusion
