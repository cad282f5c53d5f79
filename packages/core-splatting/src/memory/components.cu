// Principal scene components on CUDA; see include/core_splatting/memory.hpp.
//
// Candidates go in chunks. Their cosines with the rows that are taken come first: a candidate near one of these is out, and
// its cosines with the others are never computed, nor are those of a tile whose candidates all are out. Of the rest one block
// follows the greedy rule in the bits of who is near. Cosines that float32 cannot decide are computed again in float64.
#include <core/cuda.hpp>
#include <core_splatting/memory.hpp>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "components.hpp"
#include "tiles.cuh"

namespace core_splatting {
namespace {

constexpr int chunk = 256, tile_candidates = 64, tile_rows = 128;
constexpr int pitch = depth_step + 4;  // of a row in a tile: lanes that read together meet in no bank, rows begin at 16 bytes
constexpr float doubtful = 1e-4f;      // a cosine this near to the threshold is computed again

/// What the device knows of the search. The rows in `taken` and those in `rest` together are all rows.
struct State {
  int next;                     // the first row that was no candidate yet
  int taken, rest, other_rest;  // how many rows there are of each
  int candidates, alive;        // and of these
  unsigned bad;                 // a row that is not finite
};

struct Search {
  Matrix features;
  double threshold;
  int64_t depth;  // of a unit row, a multiple of depth_step, zeros at its end
  float* unit;
  double* norms;
  int *taken, *rest, *other_rest;
  int *candidates, *alive;          // rows
  std::uint8_t *is_taken, *out;     // of a row; of a candidate
  std::uint32_t *near, *now_taken;  // bits: [alive][words], [words], of the places in `rest`
  State* state;
};

__device__ double sum_over_warp(double sum) {
  for (int bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

/// One warp a row: its length, and the row divided by it.
__global__ void __launch_bounds__(threads) measure_kernel(Search s, core::Tensor<bool, 1> selected) {
  const int64_t row = (int64_t{blockIdx.x} * threads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= s.features.shape[0]) return;
  double sum = 0;
  for (int64_t d = lane; d < s.features.shape[1]; d += 32) {
    const double value = at(s.features, row, d);
    sum += value * value;
  }
  sum = sum_over_warp(sum);
  const double norm = sqrt(sum);
  for (int64_t d = lane; d < s.depth; d += 32)
    s.unit[row * s.depth + d] = d < s.features.shape[1] && norm > 0 ? static_cast<float>(at(s.features, row, d) / norm) : 0.f;
  if (lane) return;
  if (!(sum <= static_cast<double>(std::numeric_limits<float>::max()))) atomicMin(&s.state->bad, static_cast<unsigned>(row));
  s.norms[row] = norm;
  s.rest[row] = static_cast<int>(row);
  s.is_taken[row] = 0;
  at(selected, row) = false;
}

/// One block: the next rows that are not taken become candidates.
__global__ void __launch_bounds__(1024) choose_kernel(Search s, int rows) {
  __shared__ int of_warps[32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  int found = 0, next = s.state->next;
  for (; next < rows && found < chunk; next += 1024) {
    const int row = next + thread;
    const bool fits = row < rows && !s.is_taken[row] && s.norms[row] > 0;
    const unsigned of_warp = __ballot_sync(0xffffffffu, fits);
    if (lane == 0) of_warps[thread / 32] = __popc(of_warp);
    __syncthreads();
    int before = found, all = 0;
    for (int w = 0; w < 32; ++w) before += w < thread / 32 ? of_warps[w] : 0, all += of_warps[w];
    const int place = before + __popc(of_warp & ((1u << lane) - 1));
    if (fits && place < chunk) s.candidates[place] = row, s.out[place] = 0;
    if (fits && place == chunk) s.state->next = row;
    found += all;
    __syncthreads();
  }
  if (thread) return;
  s.state->candidates = min(found, chunk);
  if (found <= chunk) s.state->next = min(next, rows);
  s.state->rest = s.state->other_rest;
}

/// Whether the cosine of two rows reaches the threshold, by a warp.
__device__ bool reaches(const Search& s, int i, int j) {
  double sum = 0;
  for (int64_t d = threadIdx.x % 32; d < s.features.shape[1]; d += 32)
    sum += static_cast<double>(at(s.features, i, d)) * static_cast<double>(at(s.features, j, d));
  sum = sum_over_warp(sum);
  const double norms = s.norms[i] * s.norms[j];
  return i == j || (norms > 0 && sum >= (s.threshold - slack) * norms);
}

/// A tile of candidates and rows. `Rest`: who of the rest is near, as bits, for the candidates that are alive; else which
/// candidates are near a taken row. A warp has 32 by 32 of the cosines.
template <bool Rest>
__global__ void __launch_bounds__(threads, 2) near_kernel(Search s, int64_t words) {
  extern __shared__ __align__(16) float tiles[];  // [2][candidates, then rows][pitch]
  constexpr int tall = tile_candidates + tile_rows, pieces = depth_step / 4, copies = tall * pieces / threads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int count = Rest ? s.state->alive : s.state->candidates, row_count = Rest ? s.state->rest : s.state->taken;
  const int first = static_cast<int>(blockIdx.y) * tile_candidates, first_row = static_cast<int>(blockIdx.x) * tile_rows;
  const int *const candidates = Rest ? s.alive : s.candidates, *const rows = Rest ? s.rest : s.taken;
  if (first >= count || first_row >= row_count) return;
  if (!Rest && __syncthreads_and(thread >= tile_candidates || first + thread >= count ||
                                 *static_cast<volatile std::uint8_t*>(s.out + first + thread)))
    return;

  const float* from[copies];
#pragma unroll
  for (int j = 0; j < copies; ++j) {
    const int i = (j * threads + thread) / pieces, of_row = first_row + i - tile_candidates;
    const int row = i < tile_candidates ? candidates[min(first + i, count - 1)] : rows[min(of_row, row_count - 1)];
    from[j] = s.unit + int64_t{row} * s.depth + thread % pieces * 4;
  }
  const auto begin = [&](int64_t k, int buffer) {
#pragma unroll
    for (int j = 0; j < copies; ++j)
      begin_copy_16(tiles + (buffer * tall + (j * threads + thread) / pieces) * pitch + thread % pieces * 4, from[j] + k, true);
  };
  const int top = warp / 4 * 32, side = warp % 4 * 32;
  float cosines[2][4][4] = {};
  begin(0, 0);
  commit();
  for (int64_t k = 0; k < s.depth; k += depth_step) {
    const int now = static_cast<int>(k / depth_step % 2);
    if (k + depth_step < s.depth) begin(k + depth_step, 1 - now);
    commit();
    wait_for_all_but_one();
    __syncthreads();
    const float *const a = tiles + (now * tall + top) * pitch, *const b = tiles + (now * tall + tile_candidates + side) * pitch;
    multiply_tile<2, 4, depth_step>(
        cosines, [&](int r, int d) { return a[r * pitch + d]; }, [&](int d, int n) { return b[n * pitch + d]; });
    __syncthreads();
  }

  const float low = static_cast<float>(s.threshold) - doubtful, high = static_cast<float>(s.threshold) + doubtful;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + top + 16 * m + lane / 4 + 8 * half;
      std::uint32_t bits = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * n + 2 * (lane % 4) + e, of_row = first_row + side + column;
          const float cosine = cosines[m][n][2 * half + e];
          const bool there = place < count && of_row < row_count;
          bool is_near = there && cosine > high;
          for (unsigned doubts = __ballot_sync(0xffffffffu, there && !is_near && cosine >= low); doubts; doubts &= doubts - 1) {
            const int owner = __ffs(static_cast<int>(doubts)) - 1;
            const int i = __shfl_sync(0xffffffffu, place, owner), j = __shfl_sync(0xffffffffu, of_row, owner);
            const bool exact = reaches(s, candidates[i], rows[j]);
            if (lane == owner) is_near = exact;
          }
          bits |= std::uint32_t{is_near} << column;
        }
      bits |= __shfl_xor_sync(0xffffffffu, bits, 1);
      bits |= __shfl_xor_sync(0xffffffffu, bits, 2);
      if (lane % 4 || place >= count) continue;
      if constexpr (Rest)
        s.near[place * words + (first_row + side) / 32] = bits;
      else if (bits)
        s.out[place] = 1;
    }
}

/// One block of `chunk` threads: the candidates that are not out, in their order.
__global__ void __launch_bounds__(chunk) keep_kernel(Search s) {
  __shared__ int of_warps[chunk / 32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const bool stays = thread < s.state->candidates && !s.out[thread];
  const unsigned of_warp = __ballot_sync(0xffffffffu, stays);
  if (lane == 0) of_warps[thread / 32] = __popc(of_warp);
  __syncthreads();
  int place = __popc(of_warp & ((1u << lane) - 1)), all = 0;
  for (int w = 0; w < chunk / 32; ++w) place += w < thread / 32 ? of_warps[w] : 0, all += of_warps[w];
  if (stays) s.alive[place] = s.candidates[thread];
  if (thread == 0) s.state->alive = all;
}

/// One block: the greedy rule. A thread has every 1024th word of the bits to itself.
__global__ void __launch_bounds__(1024) resolve_kernel(Search s, core::Tensor<bool, 1> selected, int64_t words) {
  const int64_t used = (s.state->rest + 31) / 32;
  if (threadIdx.x == 0) s.state->other_rest = 0;
  for (int64_t w = threadIdx.x; w < used; w += 1024) s.now_taken[w] = 0;
  for (int i = 0, alive = s.state->alive; i < alive; ++i) {
    const std::uint32_t* const near = s.near + i * words;
    bool touched = false;
    for (int64_t w = threadIdx.x; w < used; w += 1024) touched |= (near[w] & s.now_taken[w]) != 0;
    if (__syncthreads_or(touched)) continue;
    for (int64_t w = threadIdx.x; w < used; w += 1024) s.now_taken[w] |= near[w];
    if (threadIdx.x == 0) at(selected, s.alive[i]) = true;
  }
}

/// The rows of the rest that are taken now go to `taken`, the others to `other_rest`, in any order.
__global__ void __launch_bounds__(threads) divide_kernel(Search s) {
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= s.state->rest) return;
  const int row = s.rest[i];
  const bool now = s.now_taken[i / 32] >> (i % 32) & 1;
  if (now) {
    s.is_taken[row] = 1;
    s.taken[atomicAdd(&s.state->taken, 1)] = row;
  } else {
    s.other_rest[atomicAdd(&s.state->other_rest, 1)] = row;
  }
}

}  // namespace

void principal_components_cuda(Matrix features, double threshold, core::Tensor<bool, 1> selected, core::Stream queue) {
  const char* const op = "principal_components";
  check_threshold(threshold);
  const int64_t count = features.shape[0];
  if (count >= std::numeric_limits<int>::max() - tile_rows)
    throw core::Error("ValueError", std::string(op) + ": argument 'features' must have less than 2^31 rows on CUDA");
  if (!count) return;
  const int rows = static_cast<int>(count), device = selected.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const auto room = [&](int64_t elements, int64_t each) {
    return core::DeviceScratch(op, device, stream, core::checked_mul(elements, each, "principal_components: scratch"));
  };
  const int64_t depth = std::max<int64_t>((features.shape[1] + depth_step - 1) / depth_step, 1) * depth_step;
  const int64_t words = int64_t{blocks(count, tile_rows)} * tile_rows / 32;
  const auto unit = room(core::checked_mul(count, depth, op), 4), norms = room(count, 8), flags = room(count + chunk, 1);
  const auto lists = room(3 * count + 2 * chunk, 4), bits = room((chunk + 1) * words, 4), state = room(1, sizeof(State));
  int* const list = lists.get<int>();
  Search s{features,
           threshold,
           depth,
           unit.get<float>(),
           norms.get<double>(),
           list,
           list + count,
           list + 2 * count,
           list + 3 * count,
           list + 3 * count + chunk,
           flags.get<std::uint8_t>(),
           flags.get<std::uint8_t>() + count,
           bits.get<std::uint32_t>(),
           bits.get<std::uint32_t>() + chunk * words,
           state.get<State>()};
  State now{0, 0, rows, rows, 0, 0, std::numeric_limits<unsigned>::max()};
  core::check_cuda(op, cudaMemcpyAsync(s.state, &now, sizeof now, cudaMemcpyHostToDevice, stream), "starting");
  constexpr int bytes = 2 * (tile_candidates + tile_rows) * pitch * static_cast<int>(sizeof(float));
  for (const auto kernel : {&near_kernel<false>, &near_kernel<true>})
    core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  measure_kernel<<<blocks(count, threads / 32), threads, 0, stream>>>(s, selected);
  for (;; std::swap(s.rest, s.other_rest)) {
    choose_kernel<<<1, 1024, 0, stream>>>(s, rows);
    core::check_cuda(op, cudaMemcpyAsync(&now, s.state, sizeof now, cudaMemcpyDeviceToHost, stream), "reading how far it is");
    core::check_cuda(op, cudaStreamSynchronize(stream), "waiting");
    if (now.bad != std::numeric_limits<unsigned>::max()) throw not_finite(now.bad);
    if (!now.candidates) return;
    const unsigned down = blocks(now.candidates, tile_candidates);
    if (now.taken) near_kernel<false><<<dim3(blocks(now.taken, tile_rows), down), threads, bytes, stream>>>(s, words);
    keep_kernel<<<1, chunk, 0, stream>>>(s);
    near_kernel<true><<<dim3(blocks(now.rest, tile_rows), down), threads, bytes, stream>>>(s, words);
    resolve_kernel<<<1, 1024, 0, stream>>>(s, selected, words);
    divide_kernel<<<blocks(now.rest, threads), threads, 0, stream>>>(s);
    core::check_cuda(op, cudaGetLastError(), "starting a kernel");
  }
}

}  // namespace core_splatting
