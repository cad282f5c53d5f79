// The experts' products in plain tiles: any of the four dtypes, any widths, any GPU of compute capability 8.0 or more.
//
// A block multiplies a tile of 128 x 128, and steps of 64 bytes of the depth come through a ring of buffers. Numbers of 16
// bits are multiplied by tensor cores, the others by multiply-adds of 8 x 8 a thread.
#pragma once
#include <cuda_runtime.h>

#include "product.cuh"

namespace core_diffusion::tiles {
using std::int64_t;
using std::uint32_t;

constexpr int tile = padding, threads = 256, stages = 3;
constexpr int line = 64, padded_line = line + 16;  // bytes; the padding keeps reads off each other's banks
constexpr int operand_bytes = tile * padded_line;  // the other side, (line / size) x (tile * size + 16), is less
constexpr int shared_bytes = stages * 2 * operand_bytes;
template <class T>
constexpr int step = line / sizeof(T);  // of the depth

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

/// An operand's part of the depth that a step needs; past the ends are zeros. `whole`: chunks of 16 bytes hold no ends.
template <Side side, class T>
__device__ void load(unsigned char* to, const T* from, int stride, int free, int depth, bool whole) {
  constexpr int across = side == Side::columns ? step<T> : tile, down = side == Side::columns ? tile : step<T>;
  constexpr int width = across / chunk<T>, room = across * static_cast<int>(sizeof(T)) + 16;
  const int rows = side == Side::columns ? free : depth, columns = side == Side::columns ? depth : free;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < down * width; i += threads) {
    const int row = i / width, column = i % width * chunk<T>, valid = row < rows ? columns - column : 0;
    const T* source = from + static_cast<int64_t>(row) * stride + column;
    unsigned char* const place = to + row * room + column * static_cast<int>(sizeof(T));
    if (whole) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(place)), "l"(valid > 0 ? source : from),
                   "r"(valid > 0 ? 16 : 0)
                   : "memory");
    } else {
      Chunk<T, chunk<T>> v;
#pragma unroll
      for (int j = 0; j < chunk<T>; ++j) v.at[j] = j < valid ? source[j] : T(0.f);
      *reinterpret_cast<Chunk<T, chunk<T>>*>(place) = v;
    }
  }
}

/// A thread's 8 x 8 sums, by multiply-adds.
template <class T, Side a_side, Side b_side>
struct Sums {
  static constexpr int run = 1, sharers = 16, parts = 1, w = chunk<T>;
  T v[8][8] = {};

  template <Side side>
  static __device__ int place(int at, int i) {
    return side == Side::columns ? at + 16 * i : i / w * 16 * w + at * w + i % w;
  }
  static __device__ int row(int r) { return place<a_side>(static_cast<int>(threadIdx.x) / 16, r); }
  static __device__ int column(int c) { return place<b_side>(static_cast<int>(threadIdx.x) % 16, c); }
  static __device__ int part() { return 0; }
  __device__ T& at(int r, int c) { return v[r][c]; }

  /// w numbers along the free side, from the g-th group of them, and as many along the depth.
  template <Side side>
  static __device__ void read(const unsigned char* from, int at, int k, int g, T (&to)[w][w]) {
#pragma unroll
    for (int i = 0; i < w; ++i) {
      const int number = side == Side::columns ? place<side>(at, g * w + i) * (padded_line / static_cast<int>(sizeof(T))) + k
                                               : (k + i) * (tile + w) + place<side>(at, g * w);
      const auto x = *reinterpret_cast<const Chunk<T, w>*>(from + number * static_cast<int>(sizeof(T)));
#pragma unroll
      for (int j = 0; j < w; ++j) (side == Side::columns ? to[i][j] : to[j][i]) = x.at[j];
    }
  }
  __device__ void add(const unsigned char* a, const unsigned char* b) {
    constexpr int groups = 8 / w;
#pragma unroll 1
    for (int k = 0; k < step<T>; k += w) {
      T x[w][w], y[groups][w][w];
#pragma unroll
      for (int g = 0; g < groups; ++g) read<b_side>(b, static_cast<int>(threadIdx.x) % 16, k, g, y[g]);
#pragma unroll
      for (int g = 0; g < groups; ++g) {
        read<a_side>(a, static_cast<int>(threadIdx.x) / 16, k, g, x);
#pragma unroll
        for (int j = 0; j < w; ++j)
#pragma unroll
          for (int r = 0; r < w; ++r)
#pragma unroll
            for (int c = 0; c < 8; ++c) v[g * w + r][c] += x[r][j] * y[c / w][c % w][j];
      }
    }
  }
};

/// A thread's share of its warp's 64 x 32 sums, by tensor cores.
template <class T, Side a_side, Side b_side>
  requires(sizeof(T) == 2)
struct Sums<T, a_side, b_side> {
  static constexpr int run = 2, sharers = 4, parts = 4;
  float v[4][4][4] = {};  // [16 rows][8 columns][row of 2, column of 2]

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int down() { return static_cast<int>(threadIdx.x) / 128 * 64; }
  static __device__ int part() { return static_cast<int>(threadIdx.x) / 32 % 4; }
  static __device__ int row(int r) { return down() + r / 2 * 16 + r % 2 * 8 + lane() / 4; }
  static __device__ int column(int c) { return part() * 32 + c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  __device__ float& at(int r, int c) { return v[r / 2][c / 2][2 * (r % 2) + c % 2]; }

  /// Four matrices of 8 x 8: free or depth first by 8, then the other.
  template <Side side>
  static __device__ void read(const unsigned char* from, int free, int depth, uint32_t (&to)[4]) {
    const int at = side == Side::columns ? free * padded_line + depth * 2 : depth * (tile * 2 + 16) + free * 2;
    const uint32_t address = shared_address(from + at);
    if constexpr (side == Side::columns)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(address));
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(address));
  }
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  __device__ void add(const unsigned char* a, const unsigned char* b) {
    const int in = lane() % 8, near = lane() / 8 % 2 * 8, far = lane() / 16 * 8;
    // Which of a lane's address bits walk along the depth depends on whether the matrices arrive turned.
    const int a_free = a_side == Side::columns ? in + near : near, a_depth = a_side == Side::columns ? far : in + far;
    const int b_free = b_side == Side::columns ? in + far : far, b_depth = b_side == Side::columns ? near : in + near;
#pragma unroll
    for (int k = 0; k < step<T>; k += 16) {
      uint32_t x[4][4], y[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) read<a_side>(a, down() + 16 * i + a_free, k + a_depth, x[i]);
#pragma unroll
      for (int i = 0; i < 2; ++i) read<b_side>(b, part() * 32 + 16 * i + b_free, k + b_depth, y[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(v[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
    }
  }
};

template <class S>
struct Activated {
  S value, slope;
};
/// x s(z(x)) with s the logistic function, and its derivative: z = x for SiLU, a cubic for GELU in its tanh form.
template <class S>
__device__ Activated<S> activate(S x, bool silu) {
  constexpr S slope = S(1.5957691216057308), cubic = S(0.044715);
  const S z = silu ? x : slope * (x + cubic * x * x * x), dz = silu ? S(1) : slope * (1 + 3 * cubic * x * x);
  const S s = 1 / (1 + exp(-z)), value = x * s;
  return {value, s + value * (1 - s) * dz};
}

template <class T, Group group, After after, class Accumulated>
__device__ void finish(const Product<T>& p, int expert, int m, int n, bool silu, bool whole, Accumulated& sums) {
  constexpr int run = Accumulated::run;
  const int parts = (p.n + tile - 1) / tile * Accumulated::parts, part = n / tile * Accumulated::parts + sums.part();
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int row = m + sums.row(r);
    if (group == Group::depth && row >= p.m) continue;
    const int64_t base = (group == Group::depth ? int64_t{expert} * p.m + row : row) * static_cast<int64_t>(p.n);
    const Sum<T> gate = after == After::activation_backward ? p.gates[row] : Sum<T>(1);
    Sum<T> share = 0;
#pragma unroll
    for (int c = 0; c < 8; c += run) {
      const int column = n + sums.column(c), valid = p.n - column;
      Chunk<T, run> out, second, third;
      if (after == After::activation_backward) second = get<run>(p.second + base + column, valid, whole);
#pragma unroll
      for (int j = 0; j < run; ++j) {
        Sum<T> v = sums.at(r, c + j);
        if (after == After::activation_backward) {
          const auto [value, slope] = activate(wide(second.at[j]), silu);
          if (j < valid) share += v * value;
          out.at[j] = narrow<T>(gate * v * slope);
          third.at[j] = narrow<T>(gate * value);
        } else {
          if (group == Group::rows && p.bias && j < valid) v += wide(p.bias[static_cast<int64_t>(expert) * p.n + column + j]);
          second.at[j] = narrow<T>(v);
          out.at[j] = narrow<T>(after == After::activation ? activate(v, silu).value : v);
        }
      }
      put(p.out + base + column, out, valid, whole);
      if (after == After::activation && p.second) put(p.second + base + column, second, valid, whole);
      if (after == After::activation_backward) put(p.third + base + column, third, valid, whole);
    }
    if (after == After::activation_backward) {
#pragma unroll
      for (int i = Accumulated::sharers / 2; i; i /= 2) share += __shfl_xor_sync(~0u, share, i);
      if (threadIdx.x % Accumulated::sharers == 0) p.shares[static_cast<int64_t>(row) * parts + part] = share;
    }
  }
}

/// Blocks take tiles in turn. starts[e]: the first tile of expert e's rows.
template <class T, Side b_side, Group group, After after>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 1 : 2)
    multiply(const __grid_constant__ Product<T> p, const int* starts, int experts, bool silu, bool whole) {
  constexpr Side a_side = group == Group::rows ? Side::columns : Side::rows;
  extern __shared__ __align__(16) unsigned char memory[];
  const int across = (p.n + tile - 1) / tile, down = (p.m + tile - 1) / tile;
  const int items = across * (group == Group::rows ? starts[experts] : experts * down);
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const int n = item % across * tile;
    int expert = 0, m = item / across, begin = 0, depth = p.k;
    if (group == Group::rows) {
      for (int end = experts; end - expert > 1;) {  // the last expert that does not begin behind this tile
        const int middle = (expert + end) / 2;
        (starts[middle] <= m ? expert : end) = middle;
      }
    } else {
      expert = m / down, m %= down;
      begin = starts[expert] * tile, depth = starts[expert + 1] * tile - begin;
    }
    m *= tile;
    const T* const a = group == Group::rows ? p.a + static_cast<int64_t>(m) * p.k : p.a + static_cast<int64_t>(begin) * p.m + m;
    const T* b = p.b;
    if (group == Group::depth)
      b += static_cast<int64_t>(begin) * p.n + n;
    else if (b_side == Side::columns)
      b += (static_cast<int64_t>(expert) * p.n + n) * p.k;
    else
      b += static_cast<int64_t>(expert) * p.k * p.n + n;
    const int a_stride = group == Group::rows ? p.k : p.m, b_stride = b_side == Side::columns ? p.k : p.n;
    const int a_free = group == Group::rows ? tile : p.m - m, steps = (depth + step<T> - 1) / step<T>;
    const auto fetch = [&](int i) {
      unsigned char* const to = memory + i % stages * 2 * operand_bytes;
      const int64_t k = int64_t{i} * step<T>;
      const int left = depth - static_cast<int>(k);
      if (i < steps) {
        load<a_side>(to, a + k * (a_side == Side::columns ? 1 : a_stride), a_stride, a_free, left, whole);
        load<b_side>(to + operand_bytes, b + k * (b_side == Side::columns ? 1 : b_stride), b_stride, p.n - n, left, whole);
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
    };
    Sums<T, a_side, b_side> sums;
    __syncthreads();  // the tile before is read
    for (int i = 0; i < stages - 1; ++i) fetch(i);
    for (int i = 0; i < steps; ++i) {
      asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2) : "memory");
      __syncthreads();
      fetch(i + stages - 1);
      const unsigned char* const from = memory + i % stages * 2 * operand_bytes;
      sums.add(from, from + operand_bytes);
    }
    finish<T, group, after>(p, expert, m, n, silu, whole, sums);
  }
}

/// How many sums of each row a product with After::activation_backward leaves.
template <class T>
int parts_of(int64_t n) {
  return static_cast<int>((n + tile - 1) / tile) * Sums<T, Side::columns, Side::rows>::parts;
}
}  // namespace core_diffusion::tiles
