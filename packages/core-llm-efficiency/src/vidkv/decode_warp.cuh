// What a warp does with one block of 32 packed tokens: logits from the bits of the keys, sums of the digits of the values.
//
// Both products run on the tensor cores in float16. The packed side is the left operand, whose registers of two halves
// are taken from memory with hardly any work: a word of a key's bits under a mask holds the bits of two tokens, one in
// each half, as powers of two that depend on the row alone. The right operand keeps halves apart: its columns 0-3 are the
// heads for the low half (the high one times zero), columns 4-7 the same heads for the high half.
#pragma once
#include "decode.cuh"

namespace core_llm_efficiency::decode {
/// The place of a lane in the tensor cores' tiles.
struct Lane {
  int lane, row, quad;      // rows row and row + 8; column pair, or depth, quad
  std::uint32_t mask[2];    // of a word: tokens row, row + 16, and row + 8, row + 24
  std::uint32_t one;        // what turns the sign bit into a number
  float inverse[2];         // of the value of the bit in each row
  std::uint32_t select[2];  // moves a low / high half to the half of this lane's column
  bool last;                // the second row is that of the sign bit
  __device__ Lane() {
    lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quad = lane % 4;
    last = row == 7;
    mask[0] = 0x00010001u << row, mask[1] = 0x01000100u << row;
    one = last ? 0x3c003c00u : 0u;
    inverse[0] = 1.f / bit_value(row);
    inverse[1] = last ? -0.5f : 1.f / bit_value(row + 8);
    select[0] = row < 4 ? 0x4410u : 0x1044u;
    select[1] = row < 4 ? 0x4432u : 0x3244u;
  }
  __device__ int column_head() const { return row % 4; }  // of the right operand's column
  __device__ int head() const { return 2 * (quad % 2); }  // and the next one: of an accumulator's columns
  __device__ int half() const { return quad / 2; }        // which half they are for
};

/// c += the words' bits times b, for the channels of two words.
__device__ inline void add_bits(float (&c)[4], const Lane& l, std::uint32_t first, std::uint32_t second, std::uint32_t b0,
                                std::uint32_t b1) {
  const std::uint32_t a[4] = {first & l.mask[0], (first & l.mask[1]) | l.one, second & l.mask[0], (second & l.mask[1]) | l.one};
  multiply_add<__half>(c, a, b0, b1);
}

/// Four channels of a lane, each in its half of a register.
__device__ inline void spread(const Lane& l, uint2 x, std::uint32_t (&y)[4]) {
  y[0] = __byte_perm(x.x, 0, l.select[0]), y[1] = __byte_perm(x.x, 0, l.select[1]);
  y[2] = __byte_perm(x.y, 0, l.select[0]), y[3] = __byte_perm(x.y, 0, l.select[1]);
}

/// Logits, before scaling and base, of a block: x[0], x[1] of token row + 16 half, heads head and head + 1; x[2], x[3]
/// of token row + 8 + 16 half.
template <class Shape, bool Exact>
class KeyProduct {
 public:
  static constexpr bool held = Shape::known && !Exact;  // the query, in registers
  __device__ KeyProduct(const Lane& l, const Shape& s, const Prepared& q) : l_(l), s_(s), q_(q) {
    if constexpr (held) {
#pragma unroll
      for (int j = 0; j < s.d / 16; ++j) held_[j] = *from(0, j * 16);
    }
  }

  __device__ void operator()(const char* stage, const __half* scales, float (&x)[4]) const {
    const auto* words = reinterpret_cast<const std::uint32_t*>(stage);
    const int wide = s_.wide;
    float low[4] = {}, high[4] = {}, sign[4] = {};
#pragma unroll
    for (int j = 0; j < s_.wide / 16; ++j) {
      const int at = j * 16 + l_.quad * 4;
      const uint4 w = *reinterpret_cast<const uint4*>(words + at), z = *reinterpret_cast<const uint4*>(words + wide + at);
      weigh(j, scales + at, [&](const std::uint32_t (&b)[4]) {
        add_bits(low, l_, w.x, w.y, b[0], b[1]);
        add_bits(high, l_, z.x, z.y, b[0], b[1]);
        add_bits(low, l_, w.z, w.w, b[2], b[3]);
        add_bits(high, l_, z.z, z.w, b[2], b[3]);
      });
    }
#pragma unroll
    for (int j = 0; j < s_.signs / 16; ++j) {
      const int at = j * 16 + l_.quad * 4;
      const uint4 w = *reinterpret_cast<const uint4*>(words + 2 * wide + at);
      weigh(wide / 16 + j, scales + wide + at, [&](const std::uint32_t (&b)[4]) {
        add_bits(sign, l_, w.x, w.y, b[0], b[1]);
        add_bits(sign, l_, w.z, w.w, b[2], b[3]);
      });
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = (low[i] + 2 * (high[i] + sign[i])) * l_.inverse[i / 2];
  }

 private:
  __device__ const uint2* from(int part, int position) const {
    return reinterpret_cast<const uint2*>(&q_.split[part][l_.column_head()][position + l_.quad * 4]);
  }
  /// Calls add with q times scale of four channels; with Exact, also with what rounding took away.
  template <class Add>
  __device__ void weigh(int j, const __half* scales, Add add) const {
    const uint2 two = *reinterpret_cast<const uint2*>(scales);
    const auto times = [&](uint2 x) { return uint2{bits(__hmul2(halves(x.x), halves(two.x))), bits(__hmul2(halves(x.y), halves(two.y)))}; };
    std::uint32_t b[4];
    if constexpr (held) {
      spread(l_, times(held_[j]), b);
      add(b);
    } else {
      const uint2 q = *from(0, j * 16), product = times(q);
      spread(l_, product, b);
      add(b);
      if constexpr (Exact) {
        const uint2 rest = *from(1, j * 16);
        const auto left = [](std::uint32_t x, std::uint32_t y, std::uint32_t scale, std::uint32_t product) {
          return bits(__hfma2(halves(y), halves(scale), __hfma2(halves(x), halves(scale), __hneg2(halves(product)))));
        };
        spread(l_, {left(q.x, rest.x, two.x, product.x), left(q.y, rest.y, two.y, product.y)}, b);
        add(b);
      }
    }
  }

  static constexpr int sixteens() {
    if constexpr (held) return Shape::d / 16;
    return 1;
  }
  const Lane& l_;
  const Shape& s_;
  const Prepared& q_;
  uint2 held_[sixteens()];
};

/// base[i][h], for the runs of up to 16 blocks from `block` on: x what belongs to every logit, y to those in the sign
/// bit's row too.
__device__ inline void find_bases(const Lane& l, const Operands& p, const Any& s, const Prepared& q, int b, int g, int block, int end,
                                  float2 (*base)[tile_heads]) {
  float zero[4] = {}, wide[4] = {}, sign[4] = {};
  const __half *zeros[2], *scales[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int run = min(block + l.row + 8 * r, end - 1) >> p.run;
    zeros[r] = p.zeros.at(b, g, run), scales[r] = p.scales.at(b, g, run);
  }
  const auto add = [&](float (&c)[4], const __half* const(&rows)[2], std::int64_t col, int first, int limit, int position) {
    const uint2 x = four(rows[0], col, first, limit, s.flat), y = four(rows[1], col, first, limit, s.flat);
    const uint2 z = *reinterpret_cast<const uint2*>(&q.split[l.row / 4][l.column_head()][position]);
    multiply_add<__half>(c, {x.x, y.x, x.y, y.y}, z.x, z.y);
  };
#pragma unroll 4
  for (int j = 0; j < s.wide; j += 16) {
    const int at = j + l.quad * 4;
    add(zero, zeros, p.zeros.col, at, s.c, at);
    add(wide, scales, p.scales.col, at, s.c, at);
  }
#pragma unroll 4
  for (int j = 0; j < s.signs; j += 16) {
    const int at = j + l.quad * 4;
    add(sign, scales, p.scales.col, s.c + at, s.d, s.wide + at);
  }
  // columns 0-3 hold the products with the query's first part, 4-7 those with its second
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    zero[i] += __shfl_xor_sync(~0u, zero[i], 2), wide[i] += __shfl_xor_sync(~0u, wide[i], 2), sign[i] += __shfl_xor_sync(~0u, sign[i], 2);
    if (l.quad < 2) base[l.row + i / 2 * 8][2 * l.quad + i % 2] = {zero[i] - sign[i], 1.5f * wide[i] + sign[i]};
  }
  __syncwarp();
}

/// Weights of a block as the right operand: of tokens 8 step + quad and 8 step + quad + 4. pairs: weights of the two heads
/// of tokens row + 16 half and row + 8 + 16 half.
__device__ inline void weights_of(const Lane& l, const std::uint32_t (&pairs)[2], int step, std::uint32_t& b0, std::uint32_t& b1) {
  const int from = 2 * (step / 2) + l.column_head() / 2;
  const std::uint32_t select = l.row % 2 ? l.select[1] : l.select[0];
  b0 = __byte_perm(__shfl_sync(~0u, pairs[step % 2], 4 * l.quad + from), 0, select);
  b1 = __byte_perm(__shfl_sync(~0u, pairs[step % 2], 4 * (l.quad + 4) + from), 0, select);
}

/// Bytes 2 pair and 2 pair + 1 of a token's codes, one in each half under `top`.
__device__ inline std::uint32_t byte_pair(const char* token, int pair, bool even, std::uint32_t top) {
  const auto* from = reinterpret_cast<const std::uint8_t*>(token) + 2 * pair;
  const std::uint32_t raw =
      even ? *reinterpret_cast<const std::uint16_t*>(from) : static_cast<std::uint32_t>(from[0]) | static_cast<std::uint32_t>(from[1]) << 8;
  return __byte_perm(raw, top, 0x7160);
}

/// A step's bytes as the left operand: rows are pairs of bytes row and row + 8, depth its tokens.
__device__ inline void step_bytes(const Lane& l, const char* codes, int width, int step, std::uint32_t top, std::uint32_t (&u)[4]) {
  const char* const token = codes + (8 * step + l.quad) * width;
  const bool even = width % 2 == 0;
  u[0] = byte_pair(token, l.row, even, top), u[1] = byte_pair(token, l.row + 8, even, top);
  u[2] = byte_pair(token + 4 * width, l.row, even, top), u[3] = byte_pair(token + 4 * width, l.row + 8, even, top);
}

/// Values of three levels. A byte holds digits d_0 + 3 d_1 + ... + 81 d_4; what is multiplied is m_0 = byte - 121 and m_i, the
/// integer next to m_{i-1} / 3, for d_i - 1 = m_i - 3 m_{i+1}. As float16 numbers below the normal ones, integers times
/// 2^-24, products round to integers by themselves.
struct Ternary {
  static constexpr int planes = 5;  // digits of a byte
  /// Of what `add` adds. The tensor cores' sums are the less exact the further below the normal numbers their operands are.
  template <bool Exact>
  static constexpr float unit = Exact ? 1.f / (1 << 9) : 1.f / (1 << 24);
  template <bool Exact>
  static __device__ void add(const Lane& l, int width, const Stage& at, const char* stage, int set, const std::uint32_t (&high)[2],
                             const std::uint32_t (&low)[2], float (&out)[planes][4]) {
    const __half2 third = halves(0x35553555u), middle = halves(0x80798079u);  // 1/3, -121 times 2^-24
    float f[planes][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      std::uint32_t u[4], b0, b1, c0 = 0, c1 = 0;
      weights_of(l, high, step, b0, b1);
      if constexpr (Exact) weights_of(l, low, step, c0, c1);
      step_bytes(l, stage + at.codes + set * tile_bytes, width, step, 0, u);
#pragma unroll
      for (int i = 0; i < planes; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) u[k] = bits(i ? __hmul2(halves(u[k]), third) : __hadd2(halves(u[k]), middle));
        std::uint32_t a[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) a[k] = Exact ? bits(__hmul2(halves(u[k]), halves(0x78007800u))) : u[k];  // 2^15
        multiply_add<__half>(f[i], a, b0, b1);
        if constexpr (Exact) multiply_add<__half>(f[i], a, c0, c1);
      }
    }
    const auto* scales = reinterpret_cast<const __half*>(stage + at.value_scales) + set * tile_bytes + 2 * l.row + l.half();
#pragma unroll
    for (int i = 0; i < planes; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float scale = __half2float(scales[i * width + k / 2 * 16]);
        out[i][k] += scale * (i + 1 < planes ? f[i][k] - 3 * f[i + 1][k] : f[i][k]);
      }
  }
};

/// Values of two bits: a byte's four digits, the lowest first.
struct TwoBits {
  static constexpr int planes = 4;  // digits of a byte
  template <bool Exact>
  static constexpr float unit = 1;
  template <bool Exact>
  static __device__ void add(const Lane& l, int width, const Stage& at, const char* stage, int set, const std::uint32_t (&high)[2],
                             const std::uint32_t (&low)[2], float (&out)[planes][4]) {
    float f[planes][4] = {}, mass[4] = {};
    const std::uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      std::uint32_t u[4], b[2][2] = {};
      weights_of(l, high, step, b[0][0], b[0][1]);
      if constexpr (Exact) weights_of(l, low, step, b[1][0], b[1][1]);
      step_bytes(l, stage + at.codes + set * tile_bytes, width, step, 0, u);
#pragma unroll
      for (int part = 0; part < (Exact ? 2 : 1); ++part) {
        multiply_add<__half>(mass, ones, b[part][0], b[part][1]);
#pragma unroll
        for (int i = 0; i < planes; ++i) {
          const std::uint32_t mask = 0x00030003u << 2 * i;
          multiply_add<__half>(f[i], {u[0] & mask, u[1] & mask, u[2] & mask, u[3] & mask}, b[part][0], b[part][1]);
        }
      }
    }
    const int first = set * tile_bytes + 2 * l.row + l.half();
    const auto *scales = reinterpret_cast<const __half*>(stage + at.value_scales) + first,
               *zeros = reinterpret_cast<const __half*>(stage + at.value_zeros) + first;
#pragma unroll
    for (int i = 0; i < planes; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int x = i * width + k / 2 * 16;
        out[i][k] += __half2float(scales[x]) * (f[i][k] * static_cast<float>(1 << 24 >> 2 * i)) + __half2float(zeros[x]) * mass[k];
      }
  }
};
}  // namespace core_llm_efficiency::decode
