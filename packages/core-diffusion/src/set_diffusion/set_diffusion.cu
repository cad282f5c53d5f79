// Exact fixed-sum sampling on CUDA; see include/core_diffusion/set_diffusion.hpp for the method and set_diffusion.cpp for
// the CPU. Compiled without contraction: sums are taken in the CPU's order, so that the draws are the CPU's.
#include <core/cuda.hpp>
#include <core_diffusion/philox.hpp>
#include <core_diffusion/set_diffusion.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int32_t;
using std::int64_t;

constexpr int threads = 256, warps = threads / 32;
constexpr int64_t most_scratch = int64_t{1} << 30;  // bytes, unless a single row needs more
constexpr int64_t most_of_a_row = int64_t{1} << 32;
constexpr double sure = 1e-150, least = 1e-280, least_sigma = 1e-3;  // as on the CPU

enum Problem : int { negative_total, bad_weight, no_mass, impossible, bad_time, bad_x0, bad_x1, unequal_sums, problems };

/// What the device tells the host. `error`: the first bad row times `problems` plus its problem.
struct Report {
  unsigned long long error, most_total;
};

__device__ void fail(Report* report, int64_t row, Problem problem) {
  atomicMin(&report->error, static_cast<unsigned long long>(row * problems + problem));
}

/// Scratch of the rows in flight. The law of code k of a row has `span[k] + 1` weights from count low[k] on, at weight[k * width].
struct Rows {
  int64_t codes, width, most;  // codes of a row, weights of a code, largest sum of a table
  double *weight, *log_weight, *table;
  int32_t *low, *span, *list, *before;
  bool* done;  // whether the row was refused by what filled it

  __host__ __device__ int64_t cells() const { return (codes + 1) * (most + 1); }
  /// Bytes of one row.
  __host__ __device__ int64_t bytes() const { return 8 * (2 * codes * width + cells()) + 4 * (4 * codes + 1) + 8; }
  __host__ void place(char* memory, int64_t rows) {
    weight = reinterpret_cast<double*>(memory);
    log_weight = weight + rows * codes * width;
    table = log_weight + rows * codes * width;
    low = reinterpret_cast<int32_t*>(table + rows * cells());
    span = low + rows * codes;
    list = span + rows * codes;
    before = list + rows * codes;
    done = reinterpret_cast<bool*>(before + rows * (codes + 1));
  }
  /// The same, of one row.
  __device__ Rows of(int64_t row) const {
    Rows r = *this;
    r.weight += row * codes * width, r.log_weight += row * codes * width, r.table += row * cells();
    r.low += row * codes, r.span += row * codes, r.list += row * codes, r.before += row * (codes + 1), r.done += row;
    return r;
  }
};

// ---- laws from probabilities: a warp a code

/// Keeps the fewest largest weights whose sum reaches `mass`, of equal ones the first; zeroes the others. w: [n], of this warp.
__device__ void keep_nucleus(double* w, int n, double mass) {
  const int lane = threadIdx.x % 32;
  for (double kept = 0; kept < mass;) {
    double most = 0;
    int at = n;
    for (int c = lane; c < n; c += 32)
      if (w[c] > most) most = w[c], at = c;
    for (int i = 16; i; i /= 2) {
      const double other = __shfl_xor_sync(~0u, most, i);
      const int its = __shfl_xor_sync(~0u, at, i);
      if (other > most || (other == most && its < at)) most = other, at = its;
    }
    if (at == n) break;
    kept += most;
    if (at % 32 == lane) w[at] = -most;  // taken
    __syncwarp();
  }
  for (int c = lane; c < n; c += 32) w[c] = w[c] < 0 ? -w[c] : 0;
  __syncwarp();
}

/// Reads code k of a row into its law.
template <class T>
__device__ void read_code(const Tensor<const T, 3>& probs, int64_t b, int64_t k, double top_p, const Rows& row, Report* report) {
  const int lane = threadIdx.x % 32, n = static_cast<int>(probs.shape[2]);
  const T* from = probs.data + b * probs.stride[0] + k * probs.stride[1];
  const int64_t stride = probs.stride[2];
  T most = 0;
  double sum = 0;
  bool good = true;
  for (int c = lane; c < n; c += 32) {
    const T v = from[c * stride];
    good &= v >= 0 && v <= std::numeric_limits<T>::max();
    most = v > most ? v : most;
    sum += static_cast<double>(v);
  }
  for (int i = 16; i; i /= 2) {
    const T other = __shfl_xor_sync(~0u, most, i);
    most = other > most ? other : most;
    sum += __shfl_xor_sync(~0u, sum, i);
  }
  good = __all_sync(~0u, good);
  if (!good || most == 0) {
    if (lane == 0) {
      fail(report, b, good ? no_mass : bad_weight);
      *row.done = true;
      row.low[k] = row.span[k] = 0;
    }
    return;
  }
  double* w = row.weight + k * row.width;
  const double peak = static_cast<double>(most);
  const auto find = [&] {  // the first count of the largest weight
    for (int c = lane; c - lane < n; c += 32) {
      const unsigned hit = __ballot_sync(~0u, c < n && from[c * stride] == most);
      if (hit) return c - lane + __ffs(static_cast<int>(hit)) - 1;
    }
    return 0;
  };
  if (top_p < 1 && peak >= top_p * sum * (1 + 1e-9)) {  // for certain, whatever the order of the sum
    const int at = find();
    if (lane == 0) row.low[k] = at, row.span[k] = 0;
    return;
  }
  for (int c = lane; c < n; c += 32) w[c] = static_cast<double>(from[c * stride]);
  __syncwarp();
  if (top_p < 1) {
    double part = 0;  // in the CPU's order: eight sums, then theirs
    if (lane < 8)
      for (int c = lane; c < n; c += 8) part += w[c];
    sum = 0;
    for (int i = 0; i < 8; ++i) sum += __shfl_sync(~0u, part, i);
    if (peak >= top_p * sum) {
      const int at = find();
      if (lane == 0) row.low[k] = at, row.span[k] = 0;
      return;
    }
    keep_nucleus(w, n, top_p * sum);
  }
  int low = n, high = -1;
  for (int c = lane; c < n; c += 32)
    if (w[c] > 0) low = min(low, c), high = c;
  low = __reduce_min_sync(~0u, low);
  high = __reduce_max_sync(~0u, high);
  for (int c = lane; low && c - lane < n - low; c += 32) {
    const double v = c + low < n ? w[c + low] : 0;
    __syncwarp();
    if (c + low < n) w[c] = v;
    __syncwarp();
  }
  if (lane == 0) row.low[k] = low, row.span[k] = high - low;
}

template <class T>
__global__ void __launch_bounds__(threads)
    read_laws(Tensor<const T, 3> probs, double top_p, int64_t first, int64_t count, Rows rows, Report* report) {
  const int64_t all = count * rows.codes;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; at < all; at += static_cast<int64_t>(gridDim.x) * warps) {
    const int64_t row = at / rows.codes;
    read_code(probs, first + row, at - row * rows.codes, top_p, rows.of(row), report);
  }
}

// ---- laws of the path: a thread a code

__global__ void __launch_bounds__(threads) make_laws(Tensor<const int32_t, 2> x0, Tensor<const int32_t, 2> x1, Tensor<const double, 1> t,
                                                     double sigma, int64_t max_count, int64_t first, int64_t count, Rows rows) {
  const int64_t all = count * rows.codes;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; at < all; at += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t row = at / rows.codes, k = at - row * rows.codes, b = first + row;
    const Rows r = rows.of(row);
    const int64_t from = x0.data[b * x0.stride[0] + k * x0.stride[1]], to = x1.data[b * x1.stride[0] + k * x1.stride[1]];
    if (from == to) {
      r.low[k] = static_cast<int32_t>(from), r.span[k] = 0;
      continue;
    }
    const double way = static_cast<double>(to - from), most = static_cast<double>(max_count);
    const double mean = fmin(fmax(static_cast<double>(from) + t.data[b * t.stride[0]] * way, 0.0), most);
    const double s = fmax(sigma * fabs(way), least_sigma);
    const auto low = static_cast<int64_t>(fmax(0.0, fmin(ceil(mean - 6 * s), floor(mean))));
    const auto high = static_cast<int64_t>(fmin(most, fmax(floor(mean + 6 * s), ceil(mean))));
    double *w = r.weight + k * r.width, *l = r.log_weight + k * r.width, nearest = -INFINITY;
    for (int64_t c = low; c <= high; ++c) {
      const double z = (static_cast<double>(c) - mean) / s;
      l[c - low] = -0.5 * z * z;
      nearest = fmax(nearest, l[c - low]);
    }
    for (int64_t c = 0; c <= high - low; ++c) w[c] = exp(l[c] - nearest);
    r.low[k] = static_cast<int32_t>(low), r.span[k] = static_cast<int32_t>(high - low);
  }
}

// ---- the draw: a block a row

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

/// `cells` doubles of dynamic shared memory hold a small table.
template <class T>
__global__ void __launch_bounds__(threads)
    sample_rows(Tensor<const T, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed, Tensor<int32_t, 2> out,
                int64_t first, int64_t count, Rows rows, int64_t cells, Report* report) {
  extern __shared__ double room[];
  __shared__ Shared s;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t b = first + row;
    const Rows r = rows.of(row);
    const int64_t total = totals.data[b * totals.stride[0]];
    if (*r.done) continue;
    bool found = solve_row(r, total, seed, b, out, false, room, cells, s);
    if (!found && top_p < 1) {
      __syncthreads();
      for (int64_t k = threadIdx.x / 32; k < r.codes; k += warps) read_code(probs, b, k, 1, r, report);
      __syncthreads();
      found = solve_row(r, total, seed, b, out, false, room, cells, s);
    }
    if (!found && threadIdx.x == 0) fail(report, b, impossible);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(threads) bridge_rows(Tensor<const int32_t, 2> x0, int64_t seed, Tensor<int32_t, 2> out, int64_t first,
                                                       int64_t count, Rows rows, int64_t cells, Report* report) {
  extern __shared__ double room[];
  __shared__ Shared s;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t b = first + row;
    double total = 0, none = 0;
    for (int64_t k = threadIdx.x; k < rows.codes; k += threads) total += x0.data[b * x0.stride[0] + k * x0.stride[1]];
    sum_all(total, none, s);
    __syncthreads();
    if (!solve_row(rows.of(row), static_cast<int64_t>(total), seed, b, out, true, room, cells, s) && threadIdx.x == 0)
      fail(report, b, impossible);
    __syncthreads();
  }
}

// ---- what is asked before

__global__ void check_totals(Tensor<const int64_t, 1> totals, Report* report) {
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; b < totals.shape[0];
       b += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t total = totals.data[b * totals.stride[0]];
    if (total < 0)
      fail(report, b, negative_total);
    else
      atomicMax(&report->most_total, static_cast<unsigned long long>(total));
  }
}

__global__ void __launch_bounds__(threads)
    check_path(Tensor<const int32_t, 2> x0, Tensor<const int32_t, 2> x1, Tensor<const double, 1> t, int64_t max_count, Report* report) {
  __shared__ Shared s;
  for (int64_t b = blockIdx.x; b < x0.shape[0]; b += gridDim.x) {
    double sum0 = 0, sum1 = 0;  // exact: integers below 2^53
    bool good0 = true, good1 = true;
    for (int64_t k = threadIdx.x; k < x0.shape[1]; k += threads) {
      const int32_t from = x0.data[b * x0.stride[0] + k * x0.stride[1]], to = x1.data[b * x1.stride[0] + k * x1.stride[1]];
      good0 &= from >= 0 && from <= max_count;
      good1 &= to >= 0 && to <= max_count;
      sum0 += from, sum1 += to;
    }
    if (!good0) fail(report, b, bad_x0);
    if (!good1) fail(report, b, bad_x1);
    sum_all(sum0, sum1, s);
    if (threadIdx.x == 0) {
      const double time = t.data[b * t.stride[0]];
      if (!(time >= 0 && time <= 1)) fail(report, b, bad_time);
      if (sum0 != sum1) fail(report, b, unequal_sums);
      atomicMax(&report->most_total, static_cast<unsigned long long>(fmax(sum0, 0.0)));
    }
  }
}

[[noreturn]] void refuse(const char* op, unsigned long long error, int64_t max_count) {
  const auto row = static_cast<int64_t>(error / problems);
  const std::string text[problems] = {"'totals' must be >= 0, got a negative one",
                                      "'probs' must be finite and >= 0, got a value that is not",
                                      "'probs' must have a positive sum over the counts of each code, got 0",
                                      "'totals' must be sums that counts of positive weight can make up, got another",
                                      "'t' must be in [0, 1], got a value outside",
                                      "'x0' must hold counts in 0.." + std::to_string(max_count) + ", got another value",
                                      "'x1' must hold counts in 0.." + std::to_string(max_count) + ", got another value",
                                      "'x1' must have the row sums of x0, got another sum"};
  throw core::Error("ValueError", std::string(op) + ": argument " + text[error % problems] + " in row " + std::to_string(row));
}

Report read_report(const char* op, const Report* report, cudaStream_t stream, int64_t max_count) {
  Report found;
  core::check_cuda(op, cudaMemcpyAsync(&found, report, sizeof found, cudaMemcpyDeviceToHost, stream), "reading the report");
  core::check_cuda(op, cudaStreamSynchronize(stream), "running");
  if (found.error != ~0ull) refuse(op, found.error, max_count);
  return found;
}

int processors(const char* op, int device) {
  int count = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  return count;
}

unsigned blocks_for(int64_t work, int64_t most) { return static_cast<unsigned>(std::clamp<int64_t>(work, 1, most)); }

/// Calls each(first, count, rows, shared_bytes) on as many rows at a time as scratch allows.
template <class Each>
void in_parts(const char* op, int device, cudaStream_t stream, int64_t batch, Rows rows, Each&& each) {
  const int64_t cells = core::checked_mul(rows.codes + 1, rows.most + 1, op), weights = core::checked_mul(rows.codes, rows.width, op);
  if (cells > most_of_a_row / 8 || weights > most_of_a_row / 8)
    throw core::Error("MemoryError",
                      std::string(op) + ": one row needs " + std::to_string(std::max(cells, weights) >> 17) + " MiB, more than 4096 MiB");
  const int64_t part = std::clamp<int64_t>(most_scratch / rows.bytes(), 1, batch);
  const core::DeviceScratch scratch(op, device, stream, core::checked_mul(part, rows.bytes(), op) + 64);
  rows.place(scratch.get<char>(), part);
  int largest = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&largest, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the device");
  const int64_t shared = part <= processors(op, device) ? largest - 2048 : largest / 2 - 2048;  // one or two blocks a processor
  for (int64_t first = 0; first < batch; first += part) {
    core::check_cuda(op, cudaMemsetAsync(rows.done, 0, static_cast<std::size_t>(part), stream), "clearing");
    each(first, std::min(part, batch - first), rows, std::min(shared, 8 * cells) / 8 * 8);
  }
  core::check_cuda(op, cudaGetLastError(), "launching");
}
template <class T>
void sample(Tensor<const T, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed, Tensor<int32_t, 2> out,
            core::Stream stream) {
  const char* op = "fixed_sum_sample";
  const int64_t batch = probs.shape[0], codes = probs.shape[1], counts = probs.shape[2];
  if (!(top_p > 0 && top_p <= 1)) throw core::Error("ValueError", "fixed_sum_sample: argument 'top_p' must be in (0, 1]");
  if (counts == 0 || counts - 1 > INT32_MAX || codes >= INT32_MAX)
    throw core::Error("ValueError", "fixed_sum_sample: argument 'probs' must hold 1 to 2^31 counts of fewer than 2^31 codes");
  if (batch == 0) return;
  const core::OnDevice on(op, out.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const core::DeviceScratch told(op, out.device_id, s, sizeof(Report));
  Report* report = told.get<Report>();
  const Report fresh{~0ull, 0};
  core::check_cuda(op, cudaMemcpyAsync(report, &fresh, sizeof fresh, cudaMemcpyHostToDevice, s), "clearing");
  const int64_t many = 16 * processors(op, out.device_id);
  check_totals<<<blocks_for(batch / threads + 1, many), threads, 0, s>>>(totals, report);
  const auto most = static_cast<int64_t>(read_report(op, report, s, 0).most_total);
  Rows shape{};
  shape.codes = codes, shape.width = counts, shape.most = std::min(most, core::checked_mul(codes, counts - 1, op));
  in_parts(op, out.device_id, s, batch, shape, [&](int64_t first, int64_t count, const Rows& rows, int64_t shared) {
    read_laws<T><<<blocks_for(count * codes / warps + 1, many), threads, 0, s>>>(probs, top_p, first, count, rows, report);
    core::check_cuda(op, cudaFuncSetAttribute(sample_rows<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                     "preparing");
    sample_rows<T><<<blocks_for(count, many), threads, static_cast<std::size_t>(shared), s>>>(probs, totals, top_p, seed, out, first, count,
                                                                                              rows, shared / 8, report);
  });
  read_report(op, report, s, 0);
}
}  // namespace

void fixed_sum_sample_cuda(Tensor<const float, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                           Tensor<int32_t, 2> out, core::Stream stream) {
  sample(probs, totals, top_p, seed, out, stream);
}
void fixed_sum_sample_cuda_f64(Tensor<const double, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                               Tensor<int32_t, 2> out, core::Stream stream) {
  sample(probs, totals, top_p, seed, out, stream);
}

void fixed_sum_bridge_cuda(Tensor<const int32_t, 2> x0, Tensor<const int32_t, 2> x1, Tensor<const double, 1> t, double sigma,
                           int64_t max_count, int64_t seed, Tensor<int32_t, 2> out, core::Stream stream) {
  const char* op = "fixed_sum_bridge";
  const int64_t batch = x0.shape[0], codes = x0.shape[1];
  if (!(sigma >= 0 && sigma <= 1.7976931348623157e308))
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'sigma' must be finite and >= 0");
  if (max_count < 0 || max_count > INT32_MAX || codes >= INT32_MAX)
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'max_count' must be in 0..2^31-1, got " + std::to_string(max_count));
  if (batch == 0 || codes == 0) return;
  const core::OnDevice on(op, out.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const core::DeviceScratch told(op, out.device_id, s, sizeof(Report));
  Report* report = told.get<Report>();
  const Report fresh{~0ull, 0};
  core::check_cuda(op, cudaMemcpyAsync(report, &fresh, sizeof fresh, cudaMemcpyHostToDevice, s), "clearing");
  const int64_t many = 16 * processors(op, out.device_id);
  check_path<<<blocks_for(batch, many), threads, 0, s>>>(x0, x1, t, max_count, report);
  const auto most = static_cast<int64_t>(read_report(op, report, s, max_count).most_total);
  Rows shape{};
  shape.codes = codes, shape.width = max_count + 1, shape.most = most;
  in_parts(op, out.device_id, s, batch, shape, [&](int64_t first, int64_t count, const Rows& rows, int64_t shared) {
    make_laws<<<blocks_for(count * codes / threads + 1, many), threads, 0, s>>>(x0, x1, t, sigma, max_count, first, count, rows);
    core::check_cuda(op, cudaFuncSetAttribute(bridge_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                     "preparing");
    bridge_rows<<<blocks_for(count, many), threads, static_cast<std::size_t>(shared), s>>>(x0, seed, out, first, count, rows, shared / 8,
                                                                                           report);
  });
  read_report(op, report, s, max_count);
}
}  // namespace core_diffusion
