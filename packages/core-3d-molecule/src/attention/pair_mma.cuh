// The perceptron of pairs of atoms and its quadratic form on the matrix units (mma.sync, m16n8k8), 16 pairs a warp, for 8 heads,
// 16 channels, 16 hidden units, at most 15 Gaussians and 8 bond classes. Every operand is the sum of two tf32 numbers, of which
// three products are kept: float32's precision at three times the operations, which are few.
//
// A warp holds a matrix [16 pairs][16] as Cells, the layout of the units' results: lane 4 g + t has, of the pairs g and g + 8, the
// columns 8 n + 2 t and 8 n + 2 t + 1, n = 0, 1. The same registers serve as left operand of the next product, whose sum then runs
// over the columns in another order; the right operands are laid out for that.
#pragma once
#include "relational.cuh"

namespace core_3d_molecule::relational {
struct Cells {
  float at[2][4];  ///< [n][pair, column]: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
};

/// The high part is x rounded to tf32; of the low one, the rest, the units read the upper 19 bits alone. By hand, as cvt.rna.tf32 takes
/// three times the instructions. NaN is in the low part whatever becomes of it in the high one.
struct Parts {
  unsigned high, low;
};
__device__ inline Parts split(float x) {
  const unsigned high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
  return {high, __float_as_uint(x - __uint_as_float(high))};
}

__device__ inline void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// A left operand of eight columns: rows g and g + 8 of the first, then of the second column of a lane.
struct Left {
  Parts a[4];
  __device__ Left(float a0, float a1, float a2, float a3) : a{split(a0), split(a1), split(a2), split(a3)} {}
  __device__ void times(float (&c)[4], Parts b0, Parts b1) const {
    mma(c, a[0].low, a[1].low, a[2].low, a[3].low, b0.high, b1.high);
    mma(c, a[0].high, a[1].high, a[2].high, a[3].high, b0.low, b1.low);
    mma(c, a[0].high, a[1].high, a[2].high, a[3].high, b0.high, b1.high);
  }
  /// b0 and b1 have no low part.
  __device__ void times_exact(float (&c)[4], float b0, float b1) const {
    const unsigned x = __float_as_uint(b0), y = __float_as_uint(b1);
    mma(c, a[0].low, a[1].low, a[2].low, a[3].low, x, y);
    mma(c, a[0].high, a[1].high, a[2].high, a[3].high, x, y);
  }
};

/// A right operand [16][16] in shared memory: of n, k and lane the high parts of rows 8 k + 2 t and 8 k + 2 t + 1 in column 8 n + g,
/// then the low ones.
struct Right {
  static constexpr int size = 4 * 32;
  uint4* at;

  template <class Value>
  __device__ void fill(int i, Value value) {
    const int lane = i % 32, k = i / 32 % 2, n = i / 64, column = 8 * n + lane / 4, row = 8 * k + lane % 4 * 2;
    const Parts x = split(value(row, column)), y = split(value(row + 1, column));
    at[i] = {x.high, y.high, x.low, y.low};
  }
};

/// c += a b.
__device__ inline void multiply(Cells& c, const Left (&a)[2], const uint4* b, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint4 x = b[(n * 2 + k) * 32 + lane];
      a[k].times(c.at[n], {x.x, x.z}, {x.y, x.w});
    }
}

struct LeftCells {
  Left a[2];
  __device__ explicit LeftCells(const Cells& x)
      : a{Left(x.at[0][0], x.at[0][2], x.at[0][1], x.at[0][3]), Left(x.at[1][0], x.at[1][2], x.at[1][1], x.at[1][3])} {}
};

/// Two pairs of a lane: their row in the tile, if they are there; if not, the tile's last pair stands for them.
struct LanePairs {
  int p[2], i[2], j[2], bond[2];
  float squared[2];
  bool here[2];

  __device__ LanePairs(const Operands& o, const Sizes& s, const Span& m, const Tile& tile, int first, int g) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int last = tile.pairs() - 1;
      p[r] = min(first + g + 8 * r, last), here[r] = first + g + 8 * r <= last;
      tile.atoms(p[r], i[r], j[r]);
      squared[r] = pair_of(o, s, m, tile.i0 + i[r], tile.j0 + j[r], bond[r]);
      bond[r] = max(bond[r], 0);
    }
  }
};

/// The perceptron in shared memory. `backward`: with what leads back through it.
template <bool backward>
struct PairNetwork {
  static constexpr int H = 8, E = 16, F = 16, inputs = 16, most_classes = 8;
  Right w1, w2, w1_back, w2_back, forms;
  float *classes, *b2, *centres, *inverse;  ///< [classes][F] with b1 in each; [E]; [inputs], of the Gaussians behind the distance

  static constexpr int floats(const Sizes&) { return ((backward ? 4 : 2) + H) * Right::size * 4 + most_classes * F + E + 2 * inputs; }

  __device__ float* load(float* at, const Operands& o, const Sizes& s) {
    auto* right = reinterpret_cast<uint4*>(at);
    const auto take = [&](int matrices) {
      uint4* const here = right;
      right += matrices * Right::size;
      return here;
    };
    w1.at = take(1), w2.at = take(1);
    w1_back.at = w2_back.at = nullptr;
    if constexpr (backward) w1_back.at = take(1), w2_back.at = take(1);
    forms.at = take(H);
    at = reinterpret_cast<float*>(right);
    classes = at, at += most_classes * F;
    b2 = at, at += E;
    centres = at, at += inputs;
    inverse = at, at += inputs;
    const int I = 1 + s.G + s.classes, t = static_cast<int>(threadIdx.x);
    const auto first = [&](int x, int f) { return x <= s.G ? o.w1[f * I + x] : 0.f; };
    const auto second = [&](int f, int c) { return o.w2[c * F + f]; };
    for (int i = t; i < Right::size; i += threads) {
      w1.fill(i, first), w2.fill(i, second);
      if constexpr (backward) {
        w1_back.fill(i, [&](int f, int x) { return first(x, f); });
        w2_back.fill(i, [&](int c, int f) { return second(f, c); });
      }
    }
    for (int i = t; i < H * Right::size; i += threads) {
      const int h = i / Right::size;
      Right{forms.at + h * Right::size}.fill(i % Right::size, [&](int x, int y) {
        const int a = min(x, y), b = max(x, y);
        return o.form[h * triangle(E) + a * E - triangle(a) + b] * (x == y ? 2.f : 1.f);
      });
    }
    for (int i = t; i < s.classes * F; i += threads) classes[i] = o.w1[i % F * I + 1 + s.G + i / F] + o.b1[i % F];
    for (int i = t; i < E; i += threads) b2[i] = o.b2[i];
    for (int i = t; i < inputs; i += threads) {
      const bool gaussian = i >= 1 && i <= s.G;
      centres[i] = gaussian ? o.centres[i - 1] : 0.f, inverse[i] = gaussian ? 1.f / o.widths[i - 1] : 0.f;
    }
    return at;
  }

  /// What the perceptron reads: the squared distances in column 0, the Gaussians behind it.
  __device__ Cells input(const LanePairs& pairs, int t) const {
    Cells x;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int column = 8 * n + 2 * t + c % 2;
        const float squared = pairs.squared[c / 2], z = (squared - centres[column]) * inverse[column];
        x.at[n][c] = column == 0 ? squared : exponential(-0.5f * z * z);
      }
    return x;
  }

  /// The hidden layer of `input`, and the derivative of silu.
  __device__ Cells hidden(const Cells& x, const LanePairs& pairs, int lane, Cells* derivative) const {
    Cells pre;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) pre.at[n][c] = classes[pairs.bond[c / 2] * F + 8 * n + lane % 4 * 2 + c % 2];
    multiply(pre, LeftCells(x).a, w1.at, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float a = pre.at[n][c], s = __fdividef(1.f, 1.f + exponential(-a));
        pre.at[n][c] = a * s;
        if (derivative) derivative->at[n][c] = s + a * s * (1.f - s);
      }
    return pre;
  }

  __device__ Cells features(const Cells& hidden, int lane) const {
    Cells e;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) e.at[n][c] = b2[8 * n + lane % 4 * 2 + c % 2];
    multiply(e, LeftCells(hidden).a, w2.at, lane);
    return e;
  }

  /// f(h, e (form + form^T) of head h), for all heads.
  template <class Visit>
  __device__ void for_forms(const Cells& e, int lane, Visit visit) const {
    const LeftCells left(e);
#pragma unroll 2
    for (int h = 0; h < H; ++h) {
      Cells y{};
      multiply(y, left.a, forms.at + h * Right::size, lane);
      visit(h, y);
    }
  }

  /// square[pair][E + H]: features and the form's value, of all pairs of a tile.
  __device__ void fill(const Operands& o, const Sizes& s, const Span& m, const Tile& tile, float* square) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) / 32 * 16; first < tile.pairs(); first += warps * 16) {
      const LanePairs pairs(o, s, m, tile, first, g);
      const Cells e = features(hidden(input(pairs, t), pairs, lane, nullptr), lane);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (pairs.here[r])
            *reinterpret_cast<float2*>(square + pairs.p[r] * (E + H) + 8 * n + 2 * t) = {e.at[n][2 * r], e.at[n][2 * r + 1]};
      for_forms(e, lane, [&](int h, const Cells& y) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float sum = 0.f;
#pragma unroll
          for (int n = 0; n < 2; ++n) sum += e.at[n][2 * r] * y.at[n][2 * r] + e.at[n][2 * r + 1] * y.at[n][2 * r + 1];
          sum += __shfl_xor_sync(0xffffffff, sum, 1);
          sum += __shfl_xor_sync(0xffffffff, sum, 2);
          if (t == h % 4 && pairs.here[r]) square[pairs.p[r] * (E + H) + E + h] = 0.5f * sum;
        }
      });
    }
  }
};
}  // namespace core_3d_molecule::relational
