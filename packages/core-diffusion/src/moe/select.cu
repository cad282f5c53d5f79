// Selection and lists of tokens on CUDA, without a word to the host. Rows of many scores are shared by many blocks
// that pass the digits of a radix selection together, in one cooperative launch.
#include <core/cuda.hpp>
#include <core_diffusion/moe.hpp>

#include <cooperative_groups.h>

#include <algorithm>

#include "checks.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint32_t;

constexpr int threads = 1024, warps = threads / 32;
constexpr int short_row = 128;   // scores of a row that one warp ranks
constexpr int per_block = 4096;  // scores of a long row that are worth a block
constexpr int bins = 2048;
constexpr int of_row = 3 * bins;  // counts of a row in scratch

/// An integer in the order of the numbers: NaN below all others, -0 and 0 the same.
__device__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);
  return x != x ? 0u : bits ^ (bits >> 31 ? ~0u : 0x80000000u);
}
__device__ float number_of(uint32_t key) { return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key); }

__global__ void __launch_bounds__(threads) rank_short(Tensor<const float, 2> scores, int k, Tensor<bool, 2> mask, Tensor<float, 1> kth) {
  const int columns = static_cast<int>(scores.shape[1]), lane = threadIdx.x % 32;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; row < scores.shape[0];
       row += static_cast<int64_t>(gridDim.x) * warps) {
    uint32_t keys[short_row / 32];
    int ranks[short_row / 32] = {};
    for (int i = 0; i < short_row / 32; ++i)
      keys[i] = i * 32 + lane < columns ? key_of(scores.data[row * scores.stride[0] + (i * 32 + lane) * scores.stride[1]]) : 0u;
    for (int i = 0; i < short_row / 32; ++i)
      for (int j = 0; j < 32 && i * 32 + j < columns; ++j) {
        const uint32_t other = __shfl_sync(~0u, keys[i], j);
        for (int m = 0; m < short_row / 32; ++m) ranks[m] += other > keys[m] || (other == keys[m] && i * 32 + j < m * 32 + lane);
      }
    for (int i = 0; i < short_row / 32; ++i) {
      const int c = i * 32 + lane;
      if (c >= columns) continue;
      mask.data[row * mask.stride[0] + c * mask.stride[1]] = ranks[i] < k;
      if (ranks[i] == k - 1) kth.data[row * kth.stride[0]] = number_of(keys[i]);
    }
    if (k == 0 && lane == 0) kth.data[row * kth.stride[0]] = __uint_as_float(0x7f800000u);
  }
}

/// The sum over the block, in every thread.
__device__ int sum_all(int x, int* room) {
  x = __reduce_add_sync(~0u, x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  return __reduce_add_sync(~0u, room[threadIdx.x % 32]);
}

/// How many threads before this one have the flag; `total`: how many of all.
__device__ int rank_of(bool flag, int& total, int* room) {
  const unsigned warp = __ballot_sync(~0u, flag);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = __popc(warp);
  __syncthreads();
  const int lane = threadIdx.x % 32, of_lane = room[lane];
  total = __reduce_add_sync(~0u, of_lane);
  const int before = __reduce_add_sync(~0u, lane < static_cast<int>(threadIdx.x) / 32 ? of_lane : 0);
  return before + __popc(warp & ((1u << lane) - 1));
}

/// The digit in which the rank-th largest of the counted falls, and how many have a larger one. The same in every thread.
__device__ int2 digit_of(const uint32_t* counts, uint32_t rank, int* room, int2* found) {
  const int lane = threadIdx.x % 32, high = bins - 1 - 2 * static_cast<int>(threadIdx.x);  // largest digits first
  const uint32_t first = __ldcg(counts + high), second = __ldcg(counts + high - 1);
  uint32_t sum = first + second;
  for (int i = 1; i < 32; i *= 2) {
    const uint32_t x = __shfl_up_sync(~0u, sum, i);
    if (lane >= i) sum += x;
  }
  __syncthreads();
  if (lane == 31) room[threadIdx.x / 32] = static_cast<int>(sum);
  __syncthreads();
  uint32_t before = sum - first - second;
  before += __reduce_add_sync(~0u, lane < static_cast<int>(threadIdx.x) / 32 ? static_cast<uint32_t>(room[lane]) : 0u);
  if (before < rank && rank <= before + first) *found = {high, static_cast<int>(before)};
  if (before + first < rank && rank <= before + first + second) *found = {high - 1, static_cast<int>(before + first)};
  __syncthreads();
  const int2 result = *found;
  __syncthreads();
  return result;
}

/// `parts` blocks a row. scratch: of each row in flight 3 * bins counts, then `parts` counts of ties.
__global__ void __launch_bounds__(threads)
    select_long(Tensor<const float, 2> scores, int k, Tensor<bool, 2> mask, Tensor<float, 1> kth, int parts, uint32_t* scratch) {
  const auto grid = cooperative_groups::this_grid();
  __shared__ uint32_t local[bins];
  __shared__ int room[warps];
  __shared__ int2 found;
  const int columns = static_cast<int>(scores.shape[1]), thread = threadIdx.x;
  const int part = static_cast<int>(blockIdx.x) % parts, group = static_cast<int>(blockIdx.x) / parts;
  const int64_t groups = gridDim.x / parts, rows = scores.shape[0];
  const int share = (columns + parts - 1) / parts, begin = min(part * share, columns), end = min(begin + share, columns);
  uint32_t* const counts = scratch + static_cast<int64_t>(group) * (of_row + parts);
  uint32_t* const ties = counts + of_row;
  for (int64_t round = 0; round < rows; round += groups) {  // all blocks take part in every round
    const int64_t row = round + group;
    const bool busy = row < rows;
    const float* from = scores.data + row * scores.stride[0];
    for (int i = part * threads + thread; i < of_row; i += parts * threads) counts[i] = 0;
    grid.sync();
    uint32_t prefix = 0, left = static_cast<uint32_t>(k), mine = 0;
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, width = pass == 2 ? 10 : 11;
      for (int i = thread; i < bins; i += threads) local[i] = 0;
      __syncthreads();
      for (int c = begin + thread; busy && c < end; c += threads) {
        const uint32_t key = key_of(from[c * scores.stride[1]]);
        if (pass == 0 || key >> (shift + width) == prefix) atomicAdd(local + (key >> shift & ((1u << width) - 1)), 1u);
      }
      __syncthreads();
      for (int i = thread; i < bins; i += threads)
        if (local[i]) atomicAdd(counts + pass * bins + i, local[i]);
      grid.sync();
      if (busy) {
        const int2 digit = digit_of(counts + pass * bins, left, room, &found);
        prefix = prefix << width | static_cast<uint32_t>(digit.x);
        left -= static_cast<uint32_t>(digit.y);
        mine = local[digit.x];  // in the last pass: this part's scores that equal the limit
      }
      __syncthreads();
    }
    if (thread == 0) ties[part] = mine;
    grid.sync();
    if (busy) {
      int before = 0;
      for (int p = thread; p < part; p += threads) before += static_cast<int>(__ldcg(ties + p));
      int quota = static_cast<int>(left) - sum_all(before, room);
      if (part == 0 && thread == 0) kth.data[row * kth.stride[0]] = number_of(prefix);
      const bool all = quota >= static_cast<int>(mine);
      for (int base = begin; base < end; base += threads) {
        const int c = base + thread;
        const uint32_t key = c < end ? key_of(from[c * scores.stride[1]]) : 0u;
        const bool tie = c < end && key == prefix;
        bool keep = key > prefix || (tie && all);
        if (!all && quota > 0) {
          int here = 0;
          const int rank = rank_of(tie, here, room);
          keep |= tie && rank < quota;
          quota -= here;
        }
        if (c < end) mask.data[row * mask.stride[0] + c * mask.stride[1]] = keep;
      }
    }
    grid.sync();  // the next round writes over the counts
  }
}

__global__ void none(Tensor<bool, 2> mask, Tensor<float, 1> kth) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t columns = mask.shape[1];
  for (int64_t i = first; i < mask.shape[0] * columns; i += step)
    mask.data[i / columns * mask.stride[0] + i % columns * mask.stride[1]] = false;
  for (int64_t r = first; r < mask.shape[0]; r += step) kth.data[r * kth.stride[0]] = __uint_as_float(0x7f800000u);
}

__global__ void __launch_bounds__(threads)
    list_tokens(Tensor<const bool, 2> mask, Tensor<int64_t, 1> offsets, Tensor<int64_t, 1> tokens, int* counts) {
  const auto grid = cooperative_groups::this_grid();
  __shared__ int room[warps];
  const int parts = static_cast<int>(gridDim.x), part = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  const int count = static_cast<int>(mask.shape[0]), experts = static_cast<int>(mask.shape[1]);
  const int share = (count + parts - 1) / parts, begin = min(part * share, count), end = min(begin + share, count);
  const auto chosen = [&](int t, int e) { return t < end && mask.data[t * mask.stride[0] + e * mask.stride[1]]; };
  for (int e = 0; e < experts; ++e) {
    int mine = 0;
    for (int base = begin; base < end; base += threads) mine += __syncthreads_count(chosen(base + thread, e));
    if (thread == 0) counts[static_cast<int64_t>(e) * parts + part] = mine;
  }
  grid.sync();
  const int64_t space = tokens.shape[0];
  int64_t start = 0;
  for (int e = 0; e < experts; ++e) {
    int all = 0, before = 0;
    for (int p = thread; p < parts; p += threads) {
      const int n = __ldcg(counts + static_cast<int64_t>(e) * parts + p);
      all += n, before += p < part ? n : 0;
    }
    int64_t at = start + sum_all(before, room);
    if (part == 0 && thread == 0) offsets.data[e * offsets.stride[0]] = min(start, space);
    start += sum_all(all, room);
    for (int base = begin; base < end; base += threads) {
      int here = 0;
      const bool flag = chosen(base + thread, e);
      const int64_t place = at + rank_of(flag, here, room);
      if (flag && place < space) tokens.data[place * tokens.stride[0]] = base + thread;
      at += here;
    }
  }
  if (part == 0 && thread == 0) offsets.data[experts * offsets.stride[0]] = min(start, space);
  for (int64_t a = start + static_cast<int64_t>(part) * threads + thread; a < space; a += static_cast<int64_t>(parts) * threads)
    tokens.data[a * tokens.stride[0]] = -1;
}

/// How many blocks of a kernel the device holds at once.
template <class Kernel>
int resident(const char* op, int device, Kernel kernel) {
  int processors = 0, each = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  core::check_cuda(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0), "asking for the device");
  return processors * std::max(each, 1);
}

template <class Kernel, class... Args>
void launch_together(const char* op, Kernel kernel, int blocks, cudaStream_t stream, Args... args) {
  void* pointers[] = {&args...};
  core::check_cuda(op, cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), pointers, 0, stream),
                   "launching");
}
}  // namespace

void topk_mask_cuda(Tensor<const float, 2> scores, int64_t k, Tensor<bool, 2> mask, Tensor<float, 1> kth, core::Stream stream) {
  const char* op = "topk_mask";
  const int64_t rows = scores.shape[0], columns = scores.shape[1];
  check_k(k, columns);
  if (columns > INT32_MAX - threads)
    throw core::Error("ValueError",
                      "topk_mask: argument 'scores' must have fewer than 2^31 - 1024 columns, got " + std::to_string(columns));
  if (rows == 0) return;
  const core::OnDevice on(op, scores.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const int many = resident(op, scores.device_id, select_long);
  if (k == 0)
    none<<<static_cast<unsigned>(std::clamp<int64_t>(rows * columns / threads, 1, many)), threads, 0, s>>>(mask, kth);
  else if (columns <= short_row)
    rank_short<<<static_cast<unsigned>(std::clamp<int64_t>((rows - 1) / warps + 1, 1, 4 * many)), threads, 0, s>>>(
        scores, static_cast<int>(k), mask, kth);
  else {
    const int parts =
        static_cast<int>(std::clamp<int64_t>((columns - 1) / per_block + 1, 1, std::max<int64_t>(1, many / std::min<int64_t>(rows, many))));
    const int groups = static_cast<int>(std::min<int64_t>(rows, many / parts));
    const core::DeviceScratch scratch(op, scores.device_id, s, int64_t{4} * groups * (of_row + parts));
    launch_together(op, select_long, groups * parts, s, scores, static_cast<int>(k), mask, kth, parts, scratch.get<uint32_t>());
  }
  core::check_cuda(op, cudaGetLastError(), "selecting");
}

void moe_route_cuda(Tensor<const bool, 2> mask, Tensor<int64_t, 1> offsets, Tensor<int64_t, 1> tokens, core::Stream stream) {
  const char* op = "moe_route";
  const int64_t count = mask.shape[0], experts = mask.shape[1];
  check_offsets(op, offsets.shape[0], experts);
  if (count > INT32_MAX - threads || experts > INT32_MAX - 1)
    throw core::Error("ValueError", "moe_route: argument 'mask' must have fewer than 2^31 - 1024 rows and columns");
  const core::OnDevice on(op, offsets.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const int parts = static_cast<int>(std::clamp<int64_t>((count - 1) / threads + 1, 1, resident(op, offsets.device_id, list_tokens)));
  const core::DeviceScratch scratch(op, offsets.device_id, s, core::checked_mul(experts, int64_t{4} * parts, "moe_route: scratch"));
  launch_together(op, list_tokens, parts, s, mask, offsets, tokens, scratch.get<int>());
}
}  // namespace core_diffusion
