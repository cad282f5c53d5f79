// What the kernels of attention over packed keys and values on CUDA get, and the pieces they are made of.
#pragma once
#include <core_llm_efficiency/vidkv.hpp>

#include "../xattention/device.cuh"
#include "checks.hpp"

namespace core_llm_efficiency::decode {
constexpr int stages = 4;
constexpr int tile_heads = 4;       // query heads of a thread block
constexpr int tile_bytes = 32;      // of a token's packed values that a thread block reads, in pairs
constexpr int recent_tokens = 64;   // of a thread block
constexpr int most_channels = 256;  // of keys and of values

enum class Kind { fp32, fp16, bf16 };

/// Element i of an array of any of the types that queries have.
__device__ inline float load(const void* data, std::int64_t i, Kind kind) {
  if (kind == Kind::fp32) return static_cast<const float*>(data)[i];
  if (kind == Kind::fp16) return __half2float(static_cast<const __half*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}

/// A 4-dimensional operand [batch, head, row, column].
template <class T>
struct Array {
  const T* data;
  std::int64_t batch, head, row, col;
  __host__ __device__ const T* at(std::int64_t b, std::int64_t h, std::int64_t r) const { return data + b * batch + h * head + r * row; }
};
template <class To, class From>
Array<To> array(const core::Tensor<From, 4>& t) {
  return {reinterpret_cast<const To*>(t.data), t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

/// Packed values of one kind. A block is 32 tokens.
struct Values {
  Array<std::uint8_t> codes;
  Array<__half> scales, zeros;
  int width, first, blocks, splits;  // bytes a token; the first block among the keys'; how many; thread blocks that share them
  bool flat;                         // a block is one piece of memory whose parts start at multiples of 16 bytes
};

struct Operands {
  const void* q;
  std::int64_t q_batch, q_head, q_col;
  const void *recent_k, *recent_v;
  std::int64_t rk[4], rv[4];  // strides
  Kind kind;
  const std::int32_t* channels;
  std::int64_t channels_row, channels_col;
  Array<std::int32_t> planes;
  Array<__half> scales, zeros;
  bool flat;
  Values values[2];  // two bits, three levels
  const bool* seen;
  std::int64_t seen_row, seen_col;
  int batch, heads, groups, share, tiles, sets;               // tiles: of a group's heads; sets: of a token's bytes
  int d, e, c, wide, signs;                                   // wide, signs: c and d - c rounded up to 16
  int run, packed, recent, per_split, recent_splits, splits;  // 1 << run: blocks that share a scale; packed: tokens
  float scale;                                                // of a logit, in powers of two
  float2* tops;                                               // [batch, head, split]: the largest logit and the sum of weights
  float* parts;                                               // [batch, head, split, e]
};

/// The sizes of a kernel's work where the compiler knows them: as many channels of values as of keys, every operand flat.
template <int Wide, int Signs, int PerByte>
struct Fixed {
  static constexpr bool known = true, flat = true;
  static constexpr int wide = Wide, signs = Signs, c = Wide, d = Wide + Signs, e = d, width = (e + PerByte - 1) / PerByte;
  __device__ Fixed(const Operands&, const Values&) {}
};
/// The sizes of any other work.
struct Any {
  static constexpr bool known = false;
  int wide, signs, c, d, e, width;
  bool flat;
  __device__ Any(const Operands& p, const Values& v)
      : wide(p.wide), signs(p.signs), c(p.c), d(p.d), e(p.e), width(v.width), flat(p.flat && v.flat) {}
};

/// Where a block's parts lie in shared memory.
struct Stage {
  int scales, codes, value_scales, value_zeros, bytes;
  __host__ __device__ constexpr Stage(int wide, int signs, int width, int e, bool with_zeros)
      : scales(4 * (2 * wide + signs)),
        codes(scales + up(2 * (wide + signs))),
        value_scales(codes + up(32 * width + tile_bytes)),  // a tile reads past the last token
        value_zeros(value_scales + up(2 * (e + 40))),       // and past the last channel
        bytes(value_zeros + (with_zeros ? up(2 * (e + 40)) : 0)) {}

 private:
  static __host__ __device__ constexpr int up(int x) { return (x + 15) / 16 * 16; }
};

__device__ inline void copy_flat(void* to, const void* from, int bytes, int lane) {
  const std::uint32_t base = shared_address(to) + static_cast<std::uint32_t>(lane) * 16;
  const char* const source = static_cast<const char*>(from) + lane * 16;
#pragma unroll
  for (int i = 0; i < bytes; i += 512)
    if (i + 512 <= bytes || i + lane * 16 < bytes)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(base + static_cast<std::uint32_t>(i)), "l"(source + i) : "memory");
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

__device__ inline __half2 halves(std::uint32_t x) {
  __half2 h;
  memcpy(&h, &x, 4);
  return h;
}
__device__ inline std::uint32_t bits(__half2 h) {
  std::uint32_t x;
  memcpy(&x, &h, 4);
  return x;
}
/// The value of a float16 of which one bit alone is set.
__device__ inline float bit_value(int j) { return __half2float(__ushort_as_half(static_cast<unsigned short>(1u << j))); }

/// Where a head's first block lies.
struct Sources {
  const std::int32_t* planes;
  const __half *scales, *value_scales, *value_zeros;
  const std::uint8_t* codes;
  __device__ void find(const Operands& p, const Values& v, int b, int g) {
    planes = p.planes.at(b, g, v.first), scales = p.scales.at(b, g, v.first >> p.run);
    codes = v.codes.at(b, g, 0), value_scales = v.scales.at(b, g, 0), value_zeros = v.zeros.data ? v.zeros.at(b, g, 0) : nullptr;
  }
};

/// One warp brings a block's keys and values into shared memory.
template <class Shape>
__device__ inline void fetch(const Operands& p, const Values& v, const Sources& from, const Shape& s, const Stage& at, int block,
                             char* stage, int lane) {
  const int run = block >> p.run;  // v.first is a multiple of a run's blocks
  const std::int32_t* planes = from.planes + block * p.planes.row;
  const __half *scales = from.scales + run * p.scales.row, *value_scales = from.value_scales + run * v.scales.row;
  const __half* zeros = from.value_zeros ? from.value_zeros + run * v.zeros.row : nullptr;
  const std::uint8_t* codes = from.codes + block * 32 * v.codes.row;
  if (s.flat) {
    copy_flat(stage, planes, 4 * (2 * s.wide + s.signs), lane);
    copy_flat(stage + at.scales, scales, 2 * (s.wide + s.signs), lane);
    copy_flat(stage + at.codes, codes, 32 * s.width, lane);
    copy_flat(stage + at.value_scales, value_scales, 2 * s.e, lane);
    if (zeros) copy_flat(stage + at.value_zeros, zeros, 2 * s.e, lane);
    return;
  }
  auto* words = reinterpret_cast<std::int32_t*>(stage);
  auto* to = reinterpret_cast<__half*>(stage + at.scales);
#pragma unroll 1
  for (int i = lane; i < s.wide; i += 32) {
    words[i] = i < s.c ? planes[i * p.planes.col] : 0;
    words[s.wide + i] = i < s.c ? planes[(s.c + i) * p.planes.col] : 0;
    to[i] = i < s.c ? scales[i * p.scales.col] : __half(0.f);
  }
#pragma unroll 1
  for (int i = lane; i < s.signs; i += 32) {
    const bool inside = i < s.d - s.c;
    words[2 * s.wide + i] = inside ? planes[(2 * s.c + i) * p.planes.col] : 0;
    to[s.wide + i] = inside ? scales[(s.c + i) * p.scales.col] : __half(0.f);
  }
#pragma unroll 1
  for (int i = lane; i < 32 * s.width; i += 32)
    stage[at.codes + i] = static_cast<char>(codes[i / s.width * v.codes.row + i % s.width * v.codes.col]);
#pragma unroll 1
  for (int i = lane; i < s.e; i += 32) {
    reinterpret_cast<__half*>(stage + at.value_scales)[i] = value_scales[i * v.scales.col];
    if (zeros) reinterpret_cast<__half*>(stage + at.value_zeros)[i] = zeros[i * v.zeros.col];
  }
}

/// Four neighbouring numbers of a row, zero from `end` on.
__device__ inline uint2 four(const __half* row, std::int64_t col, int first, int end, bool flat) {
  if (flat) return *reinterpret_cast<const uint2*>(row + first);
  __half x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = first + i < end ? row[(first + i) * col] : __half(0.f);
  return {bits(__halves2half2(x[0], x[1])), bits(__halves2half2(x[2], x[3]))};
}

/// The query in shared memory: as it came, and transformed, in the order of the packed channels, as two float16 numbers.
struct Query {
  float plain[tile_heads][most_channels];
  float packed[tile_heads][most_channels + 32];
  __half split[2][tile_heads][most_channels + 32];
  float factor[tile_heads];  // what brings a product to a logit in powers of two
};

template <int Warps>
__device__ inline void load_query(const Operands& p, int d, int b, int first_head, int count, Query& q) {
  for (int x = static_cast<int>(threadIdx.x) * 32; x < d; x += 32 * 32 * Warps)  // for transform_query
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p.channels + b * p.channels_row + x * p.channels_col));
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tile_heads * d; i += 32 * Warps) {
    const int h = i / d, x = i % d;
    q.plain[h][x] = h < count ? load(p.q, b * p.q_batch + (first_head + h) * p.q_head + x * p.q_col, p.kind) : 0.f;
  }
  __syncthreads();
}

/// The Fourier transform of the channels [c, d), all scaled by a power of two to at most 1.
template <int Warps, class Shape>
__device__ inline void transform_query(const Operands& p, const Shape& s, int b, Query& q) {
  __shared__ float cosine[most_channels], sine[most_channels], ordered[tile_heads][most_channels];
  constexpr int threads = 32 * Warps;
  const int thread = static_cast<int>(threadIdx.x), n = s.d - s.c;
#pragma unroll 1
  for (int m = thread; m < n; m += threads) sincospif(2.f * static_cast<float>(m) / static_cast<float>(n), &sine[m], &cosine[m]);
#pragma unroll 1
  for (int x = thread; x < s.d; x += threads) {
    const std::int32_t from = p.channels[b * p.channels_row + x * p.channels_col];
#pragma unroll
    for (int h = 0; h < tile_heads; ++h) ordered[h][x] = from >= 0 && from < s.d ? q.plain[h][from] : NAN;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < tile_heads * s.wide; i += threads) {
    const int h = i / s.wide, x = i % s.wide;
    q.packed[h][x] = x < s.c ? ordered[h][x] : 0.f;
  }
#pragma unroll 1
  for (int i = thread; i < 2 * tile_heads * s.signs; i += threads) {  // two threads a coefficient: every other channel
    const int h = i / 2 / s.signs, f = i / 2 % s.signs;
    float y = 0;
    if (f < n) {
      const float* const wave = f % 2 || f == 0 ? cosine : sine;
      const int once = (f + 1) / 2, step = 2 * once % n;
      int turn = i % 2 ? once % n : 0;
#pragma unroll 8
      for (int j = i % 2; j < n; j += 2) {
        y += ordered[h][s.c + j] * wave[turn];
        turn += step;
        turn -= turn >= n ? n : 0;
      }
      y *= sqrtf((f == 0 || (f == n - 1 && n % 2 == 0) ? 1.f : 2.f) / static_cast<float>(n));
    }
    y += __shfl_xor_sync(~0u, y, 1);
    if (i % 2 == 0) q.packed[h][s.wide + f] = y;
  }
  __syncthreads();
  if (const int h = thread / 32, positions = s.wide + s.signs; h < tile_heads) {
    float most = 0;
#pragma unroll 1
    for (int x = thread % 32; x < positions; x += 32) most = fmaxf(most, fabsf(q.packed[h][x]));
    for (int o = 16; o; o /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, o));
    const int power = most > 0 && most < INFINITY ? min(__float_as_int(most) / (1 << 23) - 126, 126) : 0;
    const float down = __int_as_float((127 - power) << 23);
    if (thread % 32 == 0) q.factor[h] = p.scale * __int_as_float((127 + power) << 23);
#pragma unroll 1
    for (int x = thread % 32; x < positions; x += 32) {
      const float y = q.packed[h][x] * down;
      const __half high = __float2half_rn(y);
      q.split[0][h][x] = high;
      q.split[1][h][x] = __float2half_rn(y - __half2float(high));
    }
  }
  __syncthreads();
}
}  // namespace core_llm_efficiency::decode
