// Selection and lists of tokens on CUDA, without a word to the host. Rows of many scores are shared by many blocks
// that pass the digits of a radix selection together, in one cooperative launch.
#include <core/cuda.hpp>
#include <core_diffusion/moe.hpp>

#include <cooperative_groups.h>

#include <algorithm>
#include <utility>

#include "checks.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using std::uint32_t;

constexpr int threads = 1024, warps = threads / 32;
constexpr int short_row = 128;             // scores of a row that one warp ranks
constexpr int kept = 8;                    // scores a thread keeps
constexpr int per_block = kept * threads;  // scores of a long row that are worth a block
constexpr int list_threads = 256, list_warps = list_threads / 32;
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

struct Digit {
  int value, larger, equal;  // of the counted: how many have a larger digit, how many this one
};

/// The digit in which the rank-th largest of the counted falls. The same in every thread.
__device__ Digit digit_of(const uint32_t* counts, uint32_t rank, int* room, Digit* found) {
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
  if (before < rank && rank <= before + first) *found = {high, static_cast<int>(before), static_cast<int>(first)};
  if (before + first < rank && rank <= before + first + second)
    *found = {high - 1, static_cast<int>(before + first), static_cast<int>(second)};
  __syncthreads();
  return *found;
}

/// `parts` blocks a row, which keep their scores' keys in registers as far as they fit. scratch: of each row in flight
/// 3 * bins counts, then `parts` counts of ties.
__global__ void __launch_bounds__(threads)
    select_long(Tensor<const float, 2> scores, int k, Tensor<bool, 2> mask, Tensor<float, 1> kth, int parts, uint32_t* scratch) {
  const auto grid = cooperative_groups::this_grid();
  __shared__ uint32_t local[bins];
  __shared__ int room[warps];
  __shared__ Digit found[3];
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
    auto cleared = grid.barrier_arrive();
    uint32_t keys[kept];
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const int c = begin + i * threads + thread;
      keys[i] = busy && c < end ? key_of(__ldg(from + c * scores.stride[1])) : 0u;
    }
    const auto each = [&](auto f) {  // f(column, key)
#pragma unroll
      for (int i = 0; i < kept; ++i)
        if (const int c = begin + i * threads + thread; busy && c < end) f(c, keys[i]);
      for (int c = begin + kept * threads + thread; busy && c < end; c += threads) f(c, key_of(__ldg(from + c * scores.stride[1])));
    };
    uint32_t prefix = 0, left = static_cast<uint32_t>(k), mine = 0;
    bool all = true;  // scores that equal the limit are taken
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, width = pass == 2 ? 10 : 11;
      for (int i = thread; i < bins; i += threads) local[i] = 0;
      __syncthreads();
      each([&](int, uint32_t key) {
        if (pass == 0 || key >> (shift + width) == prefix) atomicAdd(local + (key >> shift & ((1u << width) - 1)), 1u);
      });
      if (pass == 0)
        grid.barrier_wait(std::move(cleared));
      else
        __syncthreads();
      for (int i = thread; i < bins; i += threads)
        if (local[i]) atomicAdd(counts + pass * bins + i, local[i]);
      grid.sync();
      if (busy) {
        const Digit digit = digit_of(counts + pass * bins, left, room, found + pass);
        prefix = prefix << width | static_cast<uint32_t>(digit.value);
        left -= static_cast<uint32_t>(digit.larger);
        all = static_cast<int>(left) == digit.equal;
        mine = local[digit.value];  // in the last pass: this part's scores that equal the limit
      }
      __syncthreads();
    }
    if (part == 0 && thread == 0 && busy) kth.data[row * kth.stride[0]] = number_of(prefix);
    const auto write = [&](int c, bool keep) { mask.data[row * mask.stride[0] + c * mask.stride[1]] = keep; };
    if (thread == 0) ties[part] = mine;
    if (__syncthreads_or(!all) || groups > 1) grid.sync();  // with one row in flight all blocks know the same
    if (busy && all) {
      each([&](int c, uint32_t key) { write(c, key >= prefix); });
    } else if (busy) {
      int before = 0;
      for (int p = thread; p < part; p += threads) before += static_cast<int>(__ldcg(ties + p));
      int quota = static_cast<int>(left) - sum_all(before, room);
      for (int base = begin; base < end; base += threads) {
        const int c = base + thread;
        const uint32_t key = c < end ? key_of(__ldg(from + c * scores.stride[1])) : 0u;
        const bool tie = c < end && key == prefix;
        int here = 0;
        const int rank = rank_of(tie, here, room);
        if (c < end) write(c, key > prefix || (tie && rank < quota));
        quota -= here;
      }
    }
    if (round + groups < rows) grid.sync();  // the next round writes over the counts
  }
}

__global__ void none(Tensor<bool, 2> mask, Tensor<float, 1> kth) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t columns = mask.shape[1];
  for (int64_t i = first; i < mask.shape[0] * columns; i += step)
    mask.data[i / columns * mask.stride[0] + i % columns * mask.stride[1]] = false;
  for (int64_t r = first; r < mask.shape[0]; r += step) kth.data[r * kth.stride[0]] = __uint_as_float(0x7f800000u);
}

/// A block for each `share` of tokens, in pieces of 32 experts: ballots count, and later rank, a warp's tokens.
__global__ void __launch_bounds__(list_threads)
    list_tokens(Tensor<const bool, 2> mask, Tensor<int64_t, 1> offsets, Tensor<int64_t, 1> tokens, int* counts) {
  const auto grid = cooperative_groups::this_grid();
  __shared__ int of_warp[32][list_warps + 1];  // [expert][warp]: tokens, then tokens before
  __shared__ int64_t first[32];                // place of the expert's first token of this block
  const int parts = static_cast<int>(gridDim.x), part = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  const int lane = thread % 32, warp = thread / 32;
  const int count = static_cast<int>(mask.shape[0]), experts = static_cast<int>(mask.shape[1]);
  const int share = ((count + parts - 1) / parts + 31) / 32 * 32, begin = min(part * share, count), end = min(begin + share, count);
  const int each = (share / 32 + list_warps - 1) / list_warps * 32;  // tokens of a warp
  const int mine = min(begin + warp * each, end), stop = min(mine + each, end);
  const auto chosen = [&](int t, int base) {  // bits of the experts of a piece
    unsigned bits = 0;
    const bool* row = mask.data + t * mask.stride[0] + base * mask.stride[1];
    for (int e = 0; t < stop && e < min(32, experts - base); ++e) bits |= static_cast<unsigned>(row[e * mask.stride[1]]) << e;
    return bits;
  };
  const auto count_warp = [&](int base) {
    int sum = 0;  // lane e: of expert base + e
    for (int t = mine; t < stop; t += 32) {
      const unsigned bits = chosen(t + lane, base);
      for (int e = 0; e < min(32, experts - base); ++e) {
        const int n = __popc(__ballot_sync(~0u, bits >> e & 1));
        if (lane == e) sum += n;
      }
    }
    of_warp[lane][warp] = sum;
    __syncthreads();
  };
  for (int base = 0; base < experts; base += 32) {
    count_warp(base);
    if (thread < min(32, experts - base)) {
      int sum = 0;
      for (int w = 0; w < list_warps; ++w) sum += of_warp[thread][w];
      counts[static_cast<int64_t>(base + thread) * parts + part] = sum;
    }
    __syncthreads();
  }
  grid.sync();
  const int64_t space = tokens.shape[0];
  int64_t start = 0;
  for (int base = 0; base < experts; base += 32) {
    if (experts > 32) count_warp(base);                                 // else they still stand
    for (int e = warp; e < min(32, experts - base); e += list_warps) {  // a warp adds up an expert's blocks
      int all = 0, before = 0;
      for (int p = lane; p < parts; p += 32) {
        const int n = __ldcg(counts + static_cast<int64_t>(base + e) * parts + p);
        all += n, before += p < part ? n : 0;
      }
      all = __reduce_add_sync(~0u, all), before = __reduce_add_sync(~0u, before);
      if (lane == 0) first[e] = before, of_warp[e][list_warps] = all;
    }
    __syncthreads();
    if (thread == 0)
      for (int e = 0; e < min(32, experts - base); ++e) {
        if (part == 0) offsets.data[(base + e) * offsets.stride[0]] = min(start, space);
        first[e] += start;
        start += of_warp[e][list_warps];
      }
    if (thread < 32) {
      int before = 0;
      for (int w = 0; w < list_warps; ++w) before += std::exchange(of_warp[thread][w], before);
    }
    __syncthreads();
    int64_t at = lane < experts - base ? first[lane] + of_warp[lane][warp] : 0;  // lane e: next place of expert base + e
    for (int t = mine; t < stop; t += 32) {
      const unsigned bits = chosen(t + lane, base);
      for (int e = 0; e < min(32, experts - base); ++e) {
        const unsigned of_expert = __ballot_sync(~0u, bits >> e & 1);
        const int64_t place = __shfl_sync(~0u, at, e) + __popc(of_expert & ((1u << lane) - 1));
        if ((bits >> e & 1) && place < space) tokens.data[place * tokens.stride[0]] = t + lane;
        if (lane == e) at += __popc(of_expert);
      }
    }
    __syncthreads();
  }
  if (thread == 0) {
    if (part == 0) offsets.data[experts * offsets.stride[0]] = min(start, space);
    first[0] = start;
  }
  __syncthreads();
  for (int64_t a = first[0] + static_cast<int64_t>(part) * list_threads + thread; a < space;
       a += static_cast<int64_t>(parts) * list_threads)
    tokens.data[a * tokens.stride[0]] = -1;
}

/// How many blocks of a kernel the device holds at once.
template <class Kernel>
int resident(const char* op, int device, Kernel kernel, int size = threads) {
  int processors = 0, each = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  core::check_cuda(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, size, 0), "asking for the device");
  return processors * std::max(each, 1);
}

template <class Kernel, class... Args>
void launch_together(const char* op, Kernel kernel, int blocks, int size, cudaStream_t stream, Args... args) {
  void* pointers[] = {&args...};
  core::check_cuda(
      op, cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(size)), pointers, 0, stream),
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
    launch_together(op, select_long, groups * parts, threads, s, scores, static_cast<int>(k), mask, kth, parts, scratch.get<uint32_t>());
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
  const int most = std::min(resident(op, offsets.device_id, list_tokens, list_threads), 512);
  const int parts = static_cast<int>(std::clamp<int64_t>((count - 1) / (2 * list_threads) + 1, 1, most));
  const core::DeviceScratch scratch(op, offsets.device_id, s, core::checked_mul(experts, int64_t{4} * parts, "moe_route: scratch"));
  launch_together(op, list_tokens, parts, list_threads, s, mask, offsets, tokens, scratch.get<int>());
}
}  // namespace core_diffusion
