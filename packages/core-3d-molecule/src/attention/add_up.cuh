// Sums of parts, in an order that is always the same.
#pragma once
#include <cstdint>

namespace core_3d_molecule::relational {
constexpr int add_up_outputs = 32, add_up_threads = 1024;

/// more + parts[0][i] + parts[1][i] + ... for add_up_outputs numbers i of `count` a block: gives i and its sum to one thread, -1 to
/// others. more(i, group, groups) gives each of the groups of threads its share of what comes to the parts.
template <class More>
__device__ int add_up(const float* parts, int count, int number_of_parts, float& total, More more) {
  constexpr int groups = add_up_threads / add_up_outputs;
  __shared__ float sums[groups][add_up_outputs + 1];
  const int lane = static_cast<int>(threadIdx.x) % add_up_outputs, group = static_cast<int>(threadIdx.x) / add_up_outputs;
  const int i = static_cast<int>(blockIdx.x) * add_up_outputs + lane;
  float sum = 0.f;
  if (i < count) {
    sum = more(i, group, groups);
#pragma unroll 8
    for (int p = group; p < number_of_parts; p += groups) sum += parts[std::int64_t{p} * count + i];
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group != 0 || i >= count) return -1;
  total = 0.f;
  for (int g = 0; g < groups; ++g) total += sums[g][lane];
  return i;
}
__device__ inline int add_up(const float* parts, int count, int number_of_parts, float& total) {
  return add_up(parts, count, number_of_parts, total, [](int, int, int) { return 0.f; });
}
}  // namespace core_3d_molecule::relational
