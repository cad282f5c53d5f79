// Block selection on CUDA, without sorting: one warp a row looks for the lowest score that is kept by bisecting over the
// bits of the scores, whose order as integers is their order as numbers; among all, then among the few that are left.
#include "device.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int threads = 32;
constexpr std::int64_t most_in_shared = 12 * 1024;  // scores of a row

struct Row {
  const float* scores;
  std::int64_t step;
  int visible, own;  // the blocks [own, visible) hold the row's own positions
  bool causal;
  __device__ float operator()(int j) const { return scores[j * step]; }
  __device__ bool forced(int j) const { return causal && (j == 0 || j >= own); }
};

/// The same sum in every thread, always added in the same order.
__device__ double sum_all(double x) {
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}
/// The sum of f(j) over the thread's share of a row.
template <class F>
__device__ double sum_row(int visible, F f) {
  double part[4] = {};
  int j = static_cast<int>(threadIdx.x);
  for (; j + 3 * threads < visible; j += 4 * threads)
#pragma unroll
    for (int k = 0; k < 4; ++k) part[k] += f(j + k * threads);
  for (; j < visible; j += threads) part[0] += f(j);
  return sum_all((part[0] + part[1]) + (part[2] + part[3]));
}

__global__ void __launch_bounds__(threads)
    select(core::Tensor<const float, 4> scores, core::Tensor<const float, 1> thresholds, int block, std::int64_t q_len, std::int64_t k_len,
           bool causal, core::Tensor<bool, 4> mask, bool in_shared) {
  extern __shared__ float shared[];
  const int q_blocks = static_cast<int>(scores.shape[2]), k_blocks = static_cast<int>(scores.shape[3]);
  const std::int64_t heads = scores.shape[1], b = blockIdx.x / q_blocks / heads, h = blockIdx.x / q_blocks % heads;
  const std::int64_t i = blockIdx.x % q_blocks, before = k_len - q_len;
  const float* from = scores.data + b * scores.stride[0] + h * scores.stride[1] + i * scores.stride[2];
  bool* to = mask.data + b * mask.stride[0] + h * mask.stride[1] + i * mask.stride[2];
  Row row{from, scores.stride[3], k_blocks, k_blocks, causal};
  if (causal) {
    row.own = static_cast<int>((before + i * block) / block);
    row.visible = static_cast<int>((before + min((i + 1) * block, q_len) - 1) / block + 1);
  }
  if (in_shared) {
    for (int j = threadIdx.x; j < row.visible; j += threads) shared[j] = row(j);
    row.scores = shared, row.step = 1;
    __syncwarp();
  }
  bool odd = false;
  const double sum = sum_row(row.visible, [&](int j) {
    const float x = row(j);
    odd |= !(x >= 0);
    return x;
  });
  const double mass = sum_row(row.visible, [&](int j) { return row.forced(j) ? row(j) : 0.f; });
  const float tau = thresholds.data[h * thresholds.stride[0]];
  const bool all = __any_sync(~0u, odd || !(tau >= 0 && tau < 1) || !isfinite(sum));
  const double enough = static_cast<double>(tau) * sum;
  std::uint32_t lowest = 0x7f800000u;  // the least bits whose mass above them is below `enough`: all above are kept
  double above = mass;
  int ties = 0;  // how many of the scores equal to the lowest are kept
  int best = k_blocks;
  if (!all && mass < enough) {
    __shared__ float few[threads];
    float top = 0;
    for (int j = static_cast<int>(threadIdx.x); j < row.visible; j += threads)
      if (!row.forced(j)) top = fmaxf(top, row(j));
    for (int o = 16; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    lowest = __float_as_uint(top);
    // what is below this may be left out altogether
    std::uint32_t low = __float_as_uint(static_cast<float>((1 - static_cast<double>(tau)) * sum / (2. * row.visible)));
    int left = row.visible;  // scores in [low, lowest], at most
    const auto halve = [&](std::uint32_t middle, double more, int count) {
      if (above + more < enough)
        lowest = middle, above += more, left -= count;
      else
        low = middle + 1, left = count;
    };
    while (low < lowest && left > threads) {
      const std::uint32_t middle = low + (lowest - low) / 2;
      int count = 0;
      const double more = sum_row(row.visible, [&](int j) {
        const float x = row(j);
        const bool in = __float_as_uint(fabsf(x)) > middle && __float_as_uint(fabsf(x)) <= lowest && !row.forced(j);
        count += in;
        return in ? x : 0.f;
      });
      halve(middle, more, __reduce_add_sync(~0u, count));
    }
    few[threadIdx.x] = 0;
    __syncwarp();
    int found = 0;
    for (int base = 0; low < lowest && base < row.visible; base += threads) {
      const int j = base + static_cast<int>(threadIdx.x);
      const float x = j < row.visible ? fabsf(row(j)) : 0.f;
      const bool in = j < row.visible && __float_as_uint(x) >= low && __float_as_uint(x) <= lowest && !row.forced(j);
      const unsigned which = __ballot_sync(~0u, in);
      if (in) few[found + __popc(which & ((1u << threadIdx.x) - 1))] = x;
      found += __popc(which);
    }
    __syncwarp();
    const float mine = few[threadIdx.x];
    while (low < lowest) {
      const std::uint32_t middle = low + (lowest - low) / 2;
      const bool in = __float_as_uint(mine) > middle && __float_as_uint(mine) <= lowest;
      halve(middle, sum_all(in ? mine : 0.f), 0);
    }
    const float x = __uint_as_float(lowest);
    for (double m = above; m < enough && x > 0 && ties < k_blocks; ++ties) m += x;
  }
  const bool lone = !all && !causal && enough <= 0;  // nothing is enough, but one block is always kept
  if (lone) {
    float top = 0;
    for (int j = static_cast<int>(threadIdx.x); j < row.visible; j += threads) top = fmaxf(top, row(j));
    for (int o = 16; o; o /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    for (int j = static_cast<int>(threadIdx.x); j < row.visible; j += threads)
      if (row(j) == top) best = min(best, j);
    for (int o = 16; o; o /= 2) best = min(best, __shfl_xor_sync(~0u, best, o));
  }
  for (int base = 0; base < k_blocks; base += threads) {
    const int j = base + static_cast<int>(threadIdx.x);
    const bool seen = j < row.visible;
    const std::uint32_t bits = seen ? __float_as_uint(fabsf(row(j))) : 0;
    bool keep = seen && (all || row.forced(j) || bits > lowest || (lone && j == best));
    const bool tie = seen && !all && ties > 0 && bits == lowest && !row.forced(j);
    if (const unsigned here = __ballot_sync(~0u, tie)) {
      keep |= tie && __popc(here & ((1u << threadIdx.x) - 1)) < ties;
      ties -= min(ties, __popc(here));
    }
    if (j < k_blocks) to[j * mask.stride[3]] = keep;
  }
}
}  // namespace

void select_blocks_cuda(core::Tensor<const float, 4> scores, core::Tensor<const float, 1> thresholds, std::int64_t block,
                        std::int64_t q_len, std::int64_t k_len, bool causal, core::Tensor<bool, 4> mask, core::Stream stream) {
  const char* op = "select_blocks";
  if (q_len < 0) refuse(op, "q_len", "at least 0, got " + std::to_string(q_len));
  if (k_len < 0) refuse(op, "k_len", "at least 0, got " + std::to_string(k_len));
  check_blocks(op, q_len, k_len, block, causal, "scores", scores.shape[2], scores.shape[3]);
  if (scores.numel() == 0) return;
  const std::int64_t rows = scores.numel() / scores.shape[3], row = scores.shape[3];
  if (rows > INT32_MAX || row > INT32_MAX) refuse(op, "scores", "of at most 2^31 - 1 rows and columns");
  const OnDevice on(op, scores.device_id);
  const bool in_shared = row <= most_in_shared;
  select<<<static_cast<unsigned>(rows), threads, in_shared ? static_cast<std::size_t>(row) * 4 : 0,
           static_cast<cudaStream_t>(stream.handle)>>>(scores, thresholds, static_cast<int>(block), q_len, k_len, causal, mask, in_shared);
  check_cuda(op, cudaGetLastError(), "selecting");
}
}  // namespace core_llm_efficiency
