// Sorts the list of each tile on CUDA by depth and then by index, in shared memory and in place. The lists hold indices alone:
// whoever sorts one fetches the depths.
#include <cub/block/block_scan.cuh>

#include "device.cuh"

namespace core_splatting {
namespace {

/// Depth and index: a tile's list is sorted by this.
using Key = unsigned long long;

__device__ Key key_of(const Lists& lists, std::uint32_t id) { return Key{lists.depths[id]} << 32 | id; }

/// Sorts by one block, in place: the bitonic network in which every comparison puts the smaller first.
template <class T, class Before>
__device__ void sort_in_place(T* values, std::uint32_t n, Before before) {
  const auto compare = [&](std::uint32_t low, std::uint32_t high) {
    if (high >= n) return;
    const T a = values[low], b = values[high];
    if (before(b, a)) values[low] = b, values[high] = a;
  };
  for (std::uint64_t size = 2; size < 2 * std::uint64_t{n}; size *= 2) {
    for (std::uint64_t i = threadIdx.x; i < (std::uint64_t{n} + size - 1) / size * (size / 2); i += blockDim.x) {
      const std::uint64_t in_run = i % (size / 2), run = i / (size / 2) * size;
      if (run + in_run < n)
        compare(static_cast<std::uint32_t>(run + in_run), static_cast<std::uint32_t>(min(run + size - 1 - in_run, std::uint64_t{n})));
    }
    __syncthreads();
    for (std::uint64_t step = size / 4; step >= 1; step /= 2) {
      for (std::uint64_t i = threadIdx.x; i < (std::uint64_t{n} + 2 * step - 1) / (2 * step) * step; i += blockDim.x) {
        const std::uint64_t low = i / step * 2 * step + i % step;
        if (low < n) compare(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(min(low + step, std::uint64_t{n})));
      }
      __syncthreads();
    }
  }
}

/// The same of indices in device memory.
__device__ void sort_there(const Lists& lists, std::uint32_t* ids, std::uint32_t n) {
  sort_in_place(ids, n, [&](std::uint32_t a, std::uint32_t b) { return key_of(lists, a) < key_of(lists, b); });
}

/// What a block has in shared memory to sort up to Most keys.
template <int Threads, int Most>
struct Sorting {
  static constexpr int bins = 2048, each = bins / Threads, own = Most / Threads;
  using Scan = cub::BlockScan<std::uint32_t, Threads>;
  Key keys[Most];
  alignas(16) std::uint32_t begins[bins];  // then the ends
  typename Scan::TempStorage scan;
  std::uint32_t least, most;
};

/// Sorts at most Most indices: by a table of equal steps of the bits of the depth, and a place's keys by comparing all. Where
/// many have about the same depth, by comparisons alone.
template <int Threads, int Most>
__device__ void sort_by_table(const Lists& lists, std::uint32_t* ids, std::uint32_t n, Sorting<Threads, Most>& s) {
  using Own = Sorting<Threads, Most>;
  constexpr std::uint32_t crowd = 32;
  const std::uint32_t thread = threadIdx.x;
  if (thread == 0) s.least = culled, s.most = 0;
  for (std::uint32_t i = thread; i < Own::bins; i += Threads) s.begins[i] = 0;
  std::uint32_t own_ids[Own::own], own_depths[Own::own];
#pragma unroll
  for (int k = 0; k < Own::own; ++k) {
    const std::uint32_t i = thread + static_cast<std::uint32_t>(k) * Threads;
    own_ids[k] = i < n ? ids[i] : culled;
  }
  __syncthreads();
  std::uint32_t low = culled, high = 0;
#pragma unroll
  for (int k = 0; k < Own::own; ++k) {
    if (own_ids[k] == culled) continue;
    own_depths[k] = lists.depths[own_ids[k]];
    low = min(low, own_depths[k]), high = max(high, own_depths[k]);
  }
  low = __reduce_min_sync(0xffffffffu, low), high = __reduce_max_sync(0xffffffffu, high);
  if (thread % 32 == 0) atomicMin(&s.least, low), atomicMax(&s.most, high);
  __syncthreads();
  // (depth - least) * scale / 2^32 lies in [0, bins) and grows with the depth.
  const std::uint32_t least = s.least;
  const auto scale =
      static_cast<std::uint32_t>(min(std::uint64_t{0xffffffffu}, (std::uint64_t{Own::bins} << 32) / (std::uint64_t{s.most - least} + 1)));
  const auto bin_of = [&](std::uint32_t depth) { return __umulhi(depth - least, scale); };
#pragma unroll
  for (int k = 0; k < Own::own; ++k)
    if (own_ids[k] != culled) atomicAdd(s.begins + bin_of(own_depths[k]), 1u);
  __syncthreads();
  std::uint32_t counts[Own::each], fullest = 0;
#pragma unroll
  for (int k = 0; k < Own::each; ++k) counts[k] = s.begins[thread * Own::each + k], fullest = max(fullest, counts[k]);
  typename Own::Scan(s.scan).ExclusiveSum(counts, counts);
#pragma unroll
  for (int k = 0; k < Own::each; ++k) s.begins[thread * Own::each + k] = counts[k];
  const bool crowded = __syncthreads_or(fullest > crowd);
#pragma unroll
  for (int k = 0; k < Own::own; ++k)
    if (own_ids[k] != culled) s.keys[atomicAdd(s.begins + bin_of(own_depths[k]), 1u)] = Key{own_depths[k]} << 32 | own_ids[k];
  __syncthreads();
  if (crowded) {
    sort_in_place(s.keys, n, [](Key a, Key b) { return a < b; });
    for (std::uint32_t i = thread; i < n; i += Threads) ids[i] = static_cast<std::uint32_t>(s.keys[i]);
    return;
  }
  for (std::uint32_t i = thread; i < n; i += Threads) {
    const Key key = s.keys[i];
    const std::uint32_t bin = bin_of(static_cast<std::uint32_t>(key >> 32)), begin = bin ? s.begins[bin - 1] : 0, end = s.begins[bin];
    std::uint32_t place = begin;
    for (std::uint32_t k = begin; k < end; ++k) place += s.keys[k] < key;
    ids[place] = static_cast<std::uint32_t>(key);
  }
}

/// Sorts at most as many indices as there are threads, by comparing all with all.
__device__ void sort_by_ranks(const Lists& lists, std::uint32_t* ids, std::uint32_t n, Key* keys) {
  const std::uint32_t i = threadIdx.x;
  Key key = 0;
  if (i < n) keys[i] = key = key_of(lists, ids[i]);
  __syncthreads();
  if (i >= n) return;
  std::uint32_t place = 0;
#pragma unroll 4
  for (std::uint32_t k = 0; k < n; ++k) place += keys[k] < key;
  ids[place] = static_cast<std::uint32_t>(key);
}

constexpr std::uint32_t fewest = 128, few = 1024, medium = 4096, many = 12288;

/// One block per tile sorts its list if it has more than Least and at most Most Gaussians.
template <int Threads, std::uint32_t Least, std::uint32_t Most>
__global__ void __launch_bounds__(Threads, 1536 / Threads) sort_some(Lists lists) {
  __shared__ Sorting<Threads, Most> memory;
  const std::uint32_t begin = lists.begins[blockIdx.x], n = lists.begins[blockIdx.x + 1] - begin;
  if (n <= Least || n > Most || *lists.pairs > lists.capacity) return;
  if (Least == 0 && n <= fewest)
    sort_by_ranks(lists, lists.ids + begin, n, memory.keys);
  else
    sort_by_table(lists, lists.ids + begin, n, memory);
}

/// The blocks share out the tiles with more than `least`. If there was no room for the lists, one block sorts all Gaussians.
__global__ void __launch_bounds__(1024) sort_many(Lists lists, std::uint32_t least) {
  extern __shared__ __align__(16) unsigned char memory[];
  if (*lists.pairs > lists.capacity) {
    if (blockIdx.x) return;
    const auto n = static_cast<std::uint32_t>(lists.total);
    for (std::uint32_t i = threadIdx.x; i < n; i += blockDim.x) lists.order[i] = i;
    __syncthreads();
    sort_there(lists, lists.order, n);
    return;
  }
  __shared__ int large[1024], found;
  const int stride = static_cast<int>(gridDim.x);
  for (int first = static_cast<int>(blockIdx.x); first < lists.tiles; first += stride * 1024) {
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    const std::int64_t own = first + std::int64_t{stride} * threadIdx.x;
    if (own < lists.tiles && lists.begins[own + 1] - lists.begins[own] > least) large[atomicAdd(&found, 1)] = static_cast<int>(own);
    __syncthreads();
    for (int k = 0; k < found; ++k) {
      const std::uint32_t begin = lists.begins[large[k]], n = lists.begins[large[k] + 1] - begin;
      if (n <= many)
        sort_by_table(lists, lists.ids + begin, n, *reinterpret_cast<Sorting<1024, many>*>(memory));
      else
        sort_there(lists, lists.ids + begin, n);
      __syncthreads();
    }
  }
}

}  // namespace

void sort_lists(const Lists& lists, double expected, cudaStream_t stream) {
  constexpr int sorting = sizeof(Sorting<1024, many>);
  check(cudaFuncSetAttribute(&sort_many, cudaFuncAttributeMaxDynamicSharedMemorySize, sorting), "asking for shared memory");
  const auto tiles = static_cast<unsigned>(lists.tiles);
  const bool crowded = expected > few / 4.0;
  sort_some<256, 0, few><<<tiles, 256, 0, stream>>>(lists);
  if (crowded) sort_some<512, few, medium><<<tiles, 512, 0, stream>>>(lists);
  sort_many<<<std::min(tiles, 128u), 1024, sorting, stream>>>(lists, crowded ? medium : few);
  check(cudaGetLastError(), "sorting");
}

}  // namespace core_splatting
