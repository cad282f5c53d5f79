// What the kernels of the gradients of block-sparse attention on CUDA share.
//
// A unit is a tile of queries, or of keys, whose gradient a thread block finds while it walks over the blocks of keys, or of
// queries, that belong to it. The gradient of keys is uneven work, since every query reads the first keys, so a unit with many
// blocks falls into parts, each with room for its sums, which are then added in their order: the same bits at every run.
#pragma once
#include "attention.cuh"

namespace core_llm_efficiency {
/// Blocks [begin, end) of a unit's; into a place for sums, or the gradient itself if negative.
struct Work {
  int unit, begin, end, place;
};
struct SplitUnit {
  int unit, place, parts;
};
struct Progress {
  unsigned long long blocks;  // of all key blocks
  int places, units;          // places for sums that are taken, and units that are split
};

/// How the gradient of keys is shared out.
struct Plan {
  int tiles, units, processors;  // units: tiles * key blocks * heads of keys * batch
  const int* counts;             // [batch, group, key block]: query blocks that read it, of all heads
  Progress* progress;
  Work* works;        // [4 * processors]
  SplitUnit* splits;  // [2 * processors]
  float* sums;        // [place][2][rows][columns]
  __host__ __device__ int most_places() const { return 4 * processors; }
  /// A unit of more blocks is split. So at most two places a processor and unit of its share are taken.
  __device__ int limit() const {
    const unsigned long long share = progress->blocks * static_cast<unsigned>(tiles) / (2 * static_cast<unsigned>(processors)) + 1;
    return share < 16 ? 16 : static_cast<int>(share);
  }
  /// The work of thread block i of most_places() + units, false if there is none.
  __device__ bool work(int i, Work& w) const {
    if (i < most_places()) {
      if (i < progress->places) w = works[i];
      return i < progress->places;
    }
    w = {i - most_places(), 0, INT32_MAX, -1};
    return counts[w.unit / tiles] <= limit();
  }
};

template <class T>
struct Gradients : Blocks<T> {
  View<const T> grad_out;
  View<T> grad_q, grad_k, grad_v;
  const float2* rows;             // [batch, head, row of `rows_of_head`]: lse in powers of two, delta; infinite where nothing is seen
  const std::uint32_t* key_bits;  // [batch, head, key block, q_words]: the mask's bits, transposed
  int rows_of_head, q_words;
  Plan plan;
};

/// Calls f(block) for those set bits of a list that are a work's. All lanes of a warp call it. at: bits before the list.
template <class F>
__device__ inline void each_listed(const std::uint32_t* list, int words, const Work& work, int& at, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = 0; base < words; base += 32) {
    const std::uint32_t mine = base + lane < words ? list[base + lane] : 0;
    for (unsigned some = __ballot_sync(~0u, mine != 0); some; some &= some - 1) {
      const int w = __ffs(static_cast<int>(some)) - 1;
      std::uint32_t word = __shfl_sync(~0u, mine, w);
      if (at >= work.end || at + __popc(word) <= work.begin) {
        at += __popc(word);
        continue;
      }
      for (; word; word &= word - 1, ++at)
        if (at >= work.begin && at < work.end) f((base + w) * 32 + __ffs(static_cast<int>(word)) - 1);
    }
  }
}

/// Decides how units of the plan's `tiles` are split.
void queue_plan(const Plan& plan, cudaStream_t stream);
/// Adds up the sums of split units, each of `rows` keys and `columns` channels.
template <class T>
void queue_sums(const Gradients<T>& g, int rows, int columns, cudaStream_t stream);
/// Queues the kernels for sm_90a; false if these operands are none of theirs.
template <class T>
bool differentiate_hopper(Gradients<T> g, int device, cudaStream_t stream);
}  // namespace core_llm_efficiency
