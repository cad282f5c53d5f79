// The quadratic form and the perceptron of pairs backward on the matrix units: see pair_mma.cuh.
#pragma once
#include "backward_work.cuh"
#include "pair_mma.cuh"

namespace core_3d_molecule::relational {
/// Sums over the pairs of all molecules of a block, in registers: of a warp's own tiles, but `form`, the warp's head over all.
struct PairSums {
  Cells w2, w1, form;               ///< [E][F], [F][inputs], [E][E]
  float classes[4];                 ///< [F][8]
  float b2[2];                      ///< channels g and g + 8, of pairs t and t + 4 of eight
  float centre[2][2], width[2][2];  ///< [n][column]
};

template <class C, int N>
struct MatrixPairs {
  using Net = PairNetwork<true>;
  static constexpr int E = Net::E, F = Net::F, H = Net::H, inputs = Net::inputs, channels = E + H;
  static constexpr int results = F * inputs + F * Net::most_classes + E * F + E + 2 * inputs;  ///< a warp's sums in shared memory
  static_assert(warps == H && C::E == E && C::F == F && C::H == H);

  const Operands& o;
  const Sizes& s;
  const Net& net;
  const Work<C, N>& w;
  const Sums& at;
  float* to;  ///< in device memory
  PairSums sums{};

  __device__ void begin() const {}

  /// Of all pairs of a tile: the gradients of their squared distances; sums.
  __device__ void tile(const Span& m, const Tile& tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll 1
    for (int first = warp * 16; first < tile.pairs(); first += warps * 16) sixteen(m, tile, first, lane, w.row + warp * 16 * F);
    __syncthreads();
    form(tile.pairs(), warp, lane);
  }

  __device__ void sixteen(const Span& m, const Tile& tile, int first, int lane, float* own) {
    const int g = lane / 4, t = lane % 4;
    const LanePairs pairs(o, s, m, tile, first, g);
    const Cells x = net.input(pairs, t);
    Cells derivative;
    const Cells hidden = net.hidden(x, pairs, lane, &derivative);
    const Cells e = net.features(hidden, lane);
    Cells grad{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float* square = w.square + pairs.p[r] * channels;
      const bool both = tile.diagonal() && pairs.i[r] != pairs.j[r];
      const float4 own = *reinterpret_cast<const float4*>(&w.slope(pairs.i[r], pairs.j[r], 2 * t));
      const float4 other =
          *reinterpret_cast<const float4*>(&w.slope(both ? pairs.j[r] : pairs.i[r], both ? pairs.i[r] : pairs.j[r], 2 * t));
      const float2 value{both ? own.x + other.x : own.x, both ? own.z + other.z : own.z};
      if (pairs.here[r]) *reinterpret_cast<float2*>(square + E + 2 * t) = value;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 b = *reinterpret_cast<const float2*>(square + 8 * n + 2 * t);
        grad.at[n][2 * r] = pairs.here[r] ? b.x : 0.f, grad.at[n][2 * r + 1] = pairs.here[r] ? b.y : 0.f;
      }
    }
    __syncwarp();
    net.for_forms(e, lane, [&](int h, const Cells& y) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float value = pairs.here[r] ? w.square[pairs.p[r] * channels + E + h] : 0.f;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) grad.at[n][2 * r + c] += value * y.at[n][2 * r + c];
      }
    });
    float* const rows = w.square + first * channels;
    put<channels>(rows, grad, g, t), put<F>(own, hidden, g, t);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float *one = rows + (8 * k + t) * channels + g, *other = one + 4 * channels;
      accumulate(sums.w2, Left(one[0], one[8], other[0], other[8]), own, k, g, t);
      sums.b2[0] += one[0] + other[0], sums.b2[1] += one[8] + other[8];
    }
    Cells pre{};
    multiply(pre, LeftCells(grad).a, net.w2_back.at, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) pre.at[n][c] *= derivative.at[n][c];
    inputs_backward(x, pre, pairs, lane);
    __syncwarp();
    put<channels>(rows, pre, g, t), put<F>(own, x, g, t);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float *one = rows + (8 * k + t) * channels + g, *other = one + 4 * channels;
      const Left a(one[0], one[8], other[0], other[8]);
      accumulate(sums.w1, a, own, k, g, t);
      const int bond = __shfl_sync(0xffffffff, pairs.bond[k], 4 * t), next = __shfl_sync(0xffffffff, pairs.bond[k], 4 * (t + 4));
      a.times_exact(sums.classes, bond == g ? 1.f : 0.f, next == g ? 1.f : 0.f);
    }
    __syncwarp();
    put<channels>(rows, e, g, t);  // for `form`
    __syncwarp();
  }

  /// From the gradient of the hidden layer before silu to those of Gaussians and of the squared distances.
  __device__ void inputs_backward(const Cells& x, const Cells& pre, const LanePairs& pairs, int lane) {
    const int t = lane % 4;
    Cells grad{};
    multiply(grad, LeftCells(pre).a, net.w1_back.at, lane);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float at_squared = 0.f;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * n + 2 * t + c, i = 2 * r + c;
          if (column == 0) {
            at_squared += grad.at[n][i];
          } else {
            const float z = (pairs.squared[r] - net.centres[column]) * net.inverse[column];
            const float slope = grad.at[n][i] * x.at[n][i] * z * net.inverse[column];
            sums.centre[n][c] += slope, sums.width[n][c] += slope * z;
            at_squared -= slope;
          }
        }
      at_squared += __shfl_xor_sync(0xffffffff, at_squared, 1);
      at_squared += __shfl_xor_sync(0xffffffff, at_squared, 2);
      if (t == 0 && pairs.here[r]) w.distance[pairs.p[r]] = at_squared;
    }
  }

  /// Rows of 16 pairs in shared memory, `stride` apart.
  template <int stride>
  __device__ static void put(float* to, const Cells& x, int g, int t) {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(to + (g + 8 * r) * stride + 8 * n + 2 * t) = {x.at[n][2 * r], x.at[n][2 * r + 1]};
  }
  __device__ static void accumulate(Cells& sum, const Left& a, const float* from, int k, int g, int t) {
    const float *one = from + (8 * k + t) * 16 + g, *other = one + 4 * 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) a.times(sum.at[n], split(one[8 * n]), split(other[8 * n]));
  }

  /// The gradient of the form of head `warp`.
  __device__ void form(int count, int warp, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int first = t; first - t < count; first += 8) {
      float e[2][2] = {}, value[2] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (first + 4 * r >= count) continue;
        const float* square = w.square + (first + 4 * r) * channels;
        e[r][0] = square[g], e[r][1] = square[g + 8], value[r] = square[E + warp];
      }
      const Left a(value[0] * e[0][0], value[0] * e[0][1], value[1] * e[1][0], value[1] * e[1][1]);
#pragma unroll
      for (int n = 0; n < 2; ++n) a.times(sums.form.at[n], split(e[0][n]), split(e[1][n]));
    }
  }

  /// The block's sums to device memory.
  __device__ void finish() const {
    static_assert(warps * results <= Work<C, N>::pairs * channels);
    float* const shared = w.square;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    float* const own = shared + warp * results;
    float* const w1 = own;
    float* const classes = w1 + F * inputs;
    float* const w2 = classes + F * Net::most_classes;
    float* const b2 = w2 + E * F;
    float* const centre = b2 + E;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int row = g + c / 2 * 8, column = 2 * t + c % 2;
      classes[row * Net::most_classes + column] = sums.classes[c];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        w1[row * inputs + 8 * n + column] = sums.w1.at[n][c], w2[row * F + 8 * n + column] = sums.w2.at[n][c];
        if (row <= 8 * n + column) {
          const int product = row * E - triangle(row) + 8 * n + column;
          to[at.form + warp * triangle(E) + product] = sums.form.at[n][c];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = sums.b2[r];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      if (t == 0) b2[g + 8 * r] = sum;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float x = sums.centre[n][c], y = sums.width[n][c];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffff, x, step), y += __shfl_xor_sync(0xffffffff, y, step);
        if (g == 0) centre[8 * n + 2 * t + c] = x, centre[inputs + 8 * n + 2 * t + c] = y;
      }
    __syncthreads();
    const int I = 1 + s.G + s.classes;
    const auto over_warps = [&](const float* first) {
      float sum = 0.f;
      for (int i = 0; i < warps; ++i) sum += first[i * results];
      return sum;
    };
    const float *all_w1 = shared, *all_classes = all_w1 + F * inputs, *all_w2 = all_classes + F * Net::most_classes;
    const float *all_b2 = all_w2 + E * F, *all_centres = all_b2 + E;
    for (int i = thread; i < F * I; i += threads) {
      const int f = i / I, x = i % I;
      to[at.w1 + i] = over_warps(x <= s.G ? all_w1 + f * inputs + x : all_classes + f * Net::most_classes + x - 1 - s.G);
    }
    for (int f = thread; f < F; f += threads) {
      float sum = 0.f;
      for (int x = 0; x < s.classes; ++x) sum += over_warps(all_classes + f * Net::most_classes + x);
      to[at.b1 + f] = sum;
    }
    for (int i = thread; i < E * F; i += threads) to[at.w2 + i] = over_warps(all_w2 + i);
    for (int i = thread; i < E; i += threads) to[at.b2 + i] = over_warps(all_b2 + i);
    for (int i = thread; i < s.G; i += threads)
      to[at.centres + i] = over_warps(all_centres + 1 + i), to[at.widths + i] = over_warps(all_centres + inputs + 1 + i);
  }
};
}  // namespace core_3d_molecule::relational
