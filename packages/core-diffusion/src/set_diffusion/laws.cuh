// The laws of a row's codes on CUDA: read from probabilities by a warp a code, or made from the path's ends by a thread a code.
#pragma once
#include <core/cuda.hpp>

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
}  // namespace
}  // namespace core_diffusion
