// What the kernels of attention over packed keys and values on CUDA get, and the pieces they are made of.
#pragma once
#include <core_llm_efficiency/vidkv.hpp>

#include "../xattention/device.cuh"
#include "checks.hpp"

namespace core_llm_efficiency::decode {
constexpr int warps = 8;            // of a thread block
constexpr int stages = 4;           // blocks on their way to a warp
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
  struct Prepared* prepared;                                  // [batch, group, tile]
};

/// The sizes of a kernel's work where the compiler knows them: as many channels of values as of keys, every operand flat, a query
/// of 16 bits a number.
template <int Wide, int Signs, int PerByte>
struct Fixed {
  static constexpr bool known = true;
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
  int scales, codes, value_scales, value_zeros, zeros, bytes;
  __host__ __device__ constexpr Stage(int wide, int signs, int width, int e, bool values_have_zeros, bool with_zeros)
      : scales(4 * (2 * wide + signs)),
        codes(scales + up(2 * (wide + signs))),
        value_scales(codes + up(32 * width + tile_bytes)),  // a tile reads past the last token
        value_zeros(value_scales + up(2 * (e + 40))),       // and past the last channel
        zeros(value_zeros + (values_have_zeros ? up(2 * (e + 40)) : 0)),
        bytes(zeros + (with_zeros ? up(2 * wide) : 0)) {}

 private:
  static __host__ __device__ constexpr int up(int x) { return (x + 15) / 16 * 16; }
};

__device__ inline void copy_piece(std::uint32_t to, const char* from) {  // 16 bytes
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copy_flat(void* to, const void* from, int bytes, int lane) {
  const std::uint32_t base = shared_address(to) + static_cast<std::uint32_t>(lane) * 16;
  const char* const source = static_cast<const char*>(from) + lane * 16;
#pragma unroll
  for (int i = 0; i < bytes; i += 512)
    if (i + 512 <= bytes || i + lane * 16 < bytes) copy_piece(base + static_cast<std::uint32_t>(i), source + i);
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
__device__ inline void fetch(const Operands& p, const Values& v, const Sources& from, const Any& s, const Stage& at, int block, char* stage,
                             int lane) {
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

/// The power of two that numbers up to `most` are below.
__device__ inline int power_above(float most) { return most > 0 && most < INFINITY ? min(__float_as_int(most) / (1 << 23) - 126, 126) : 0; }
__device__ inline float two_to(int power) { return __int_as_float((127 + power) << 23); }

/// The query transformed, in the order of the packed channels, as two float16 numbers.
struct Prepared {
  __half split[2][tile_heads][most_channels + 32];
  float factor[tile_heads];  // what brings a product to a logit in powers of two
  __device__ void put(int h, int i, float x) {
    const __half high = __float2half_rn(x);
    split[0][h][i] = high, split[1][h][i] = __float2half_rn(x - __half2float(high));
  }
};

/// What a thread block works on.
struct Unit {
  int set, tile, b, g, first_head, count;
  __device__ Unit(const Operands& p, int unit) {
    set = unit % p.sets, tile = unit / p.sets;  // of all groups and batches
    const int own = tile % p.tiles;
    g = tile / p.tiles % p.groups, b = tile / p.tiles / p.groups;
    first_head = g * p.share + own * tile_heads, count = min(tile_heads, p.share - own * tile_heads);
  }
  __device__ std::int64_t row(const Operands& p, int h, int split) const {
    return (std::int64_t{b} * p.heads + first_head + h) * p.splits + split;
  }
};

/// Where a thread block leaves its largest logits and sums of weights, and its weighted sums; steps from head to head.
struct Found {
  float2* tops;
  float* parts;
  int tops_step, parts_step;
  __device__ Found(const Operands& p, const Unit& u, int split)
      : tops(p.tops + u.row(p, 0, split)), parts(p.parts + u.row(p, 0, split) * p.e), tops_step(p.splits), parts_step(p.splits * p.e) {}
};

// A kernel that is launched early starts beside the one before it and waits for it where it needs its results.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
}  // namespace core_llm_efficiency::decode
