// The quadratic form and the perceptron of pairs backward, one pair a thread, for any sizes; sums in the block's device memory.
#pragma once
#include "backward_work.cuh"

namespace core_3d_molecule::relational {
__device__ inline float over_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

template <class C, int N>
struct ScalarPairs {
  using Net = Network<C>;
  const Operands& o;
  const Sizes& s;
  const Net& net;
  const Work<C, N>& w;
  const Sums& at;
  float* sums;
  const int t = static_cast<int>(threadIdx.x), H = s.H, E = s.E;

  __device__ void begin() const {
    for (int i = t; i < at.count; i += threads) sums[i] = 0.f;
    for (int i = t; i < 2 * warps * s.G; i += threads) w.gaussians[i] = 0.f;
  }

  /// The form and the perceptron of all pairs of a tile.
  __device__ void tile(const Span& m, const Tile& tile) const {
    const int count = tile.pairs();
    for (int first = 0; first < count; first += threads) {
      const int p = first + t, here = min(threads, count - first);
      const bool mine = t < here;
      int i = 0, j = 0, bond = 0;
      float squared = 0.f, hidden[C::F], derivative[C::F], e[C::E], grad[C::E];
      if (mine) {
        tile.atoms(p, i, j);
        squared = pair_of(o, s, m, tile.i0 + i, tile.j0 + j, bond);
        bond = max(bond, 0);
        float* pair = w.square + p * w.channels;
        float value[C::H];
#pragma unroll
        for (int h = 0; h < C::H; ++h) {
          value[h] = 0.f;
          if (!C::exact && h >= H) continue;
          value[h] = w.slope(i, j, h).x;
          if (tile.diagonal() && i != j) value[h] += w.slope(j, i, h).x;
        }
        load<C::E, true>(e, pair, C::E);
        load<C::E, true>(grad, w.gradient + p * w.width, C::E);
        int at_product = 0;
#pragma unroll
        for (int a = 0; a < C::E; ++a)
#pragma unroll
          for (int b = a; b < C::E; ++b, ++at_product) {
            float x = 0.f;
#pragma unroll
            for (int h = 0; h < C::H; ++h) x += value[h] * net.form[at_product * C::H + h];
            grad[a] += x * e[b], grad[b] += x * e[a];
          }
        net.hidden(squared, bond, hidden, &derivative);
        store<C::H, true>(pair + C::E, value, C::H);
        store<C::E, true>(w.gradient + p * w.width, grad, C::E);
#pragma unroll
        for (int f = 0; f < C::F; ++f) w.row[t * w.span + f] = hidden[f];
        w.bond[t] = static_cast<std::uint8_t>(bond);
      }
      __syncthreads();
      second_layer(first, here);
      __syncthreads();
      perceptron(p, mine, squared, grad, derivative, hidden);
      __syncthreads();
      first_layer(first, here);
      __syncthreads();
    }
  }

  /// Sums for the form, w2 and b2: one product of channels, or one hidden unit and four channels, a thread.
  __device__ void second_layer(int first, int here) const {
    constexpr int quads = C::E / 4;
    for (int task = t; task < C::S + C::F * quads; task += threads) {
      if (task < C::S) {
        const int a = net.pairs[2 * task], b = net.pairs[2 * task + 1];
        if (b >= E) continue;
        float sum[C::H] = {};
        for (int p = 0; p < here; ++p) {
          const float* pair = w.square + (first + p) * w.channels;
          const float product = pair[a] * pair[b];
          float value[C::H];
          load<C::H, true>(value, pair + C::E, C::H);
#pragma unroll
          for (int h = 0; h < C::H; ++h) sum[h] += product * value[h];
        }
        const int product = a * E - triangle(a) + b, all = triangle(E);
#pragma unroll
        for (int h = 0; h < C::H; ++h)
          if (C::exact || h < H) sums[at.form + h * all + product] += sum[h];
      } else {
        const int f = (task - C::S) / quads, c = (task - C::S) % quads * 4;
        if (f >= s.F) continue;
        float sum[4] = {}, bias[4] = {};
        for (int p = 0; p < here; ++p) {
          float grad[4];
          load<4, true>(grad, w.gradient + (first + p) * w.width + c, 4);
          const float hidden = w.row[p * w.span + f];
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += hidden * grad[i], bias[i] += grad[i];
        }
        for (int i = 0; i < 4; ++i)
          if (c + i < E) {
            sums[at.w2 + (c + i) * s.F + f] += sum[i];
            if (f == 0) sums[at.b2 + c + i] += bias[i];
          }
      }
    }
  }

  /// From the gradient of the features to that of the hidden layer and of the squared distance.
  __device__ void perceptron(int p, bool mine, float squared, const float (&grad)[C::E], const float (&derivative)[C::F],
                             float (&pre)[C::F]) const {
    if (mine) {
#pragma unroll
      for (int f = 0; f < C::F; ++f) {
        float sum = 0.f;
#pragma unroll
        for (int c = 0; c < C::E; ++c) sum += net.w2[f * C::E + c] * grad[c];
        pre[f] = sum * derivative[f];
      }
      store<C::F, true>(w.gradient + p * w.width, pre, C::F);
    }
    float at_squared = 0.f;
    if (mine) {
#pragma unroll
      for (int f = 0; f < C::F; ++f) at_squared += net.w1[f] * pre[f];
      w.row[t * w.span] = squared;
    }
    for (int g = 0; g < net.G; ++g) {
      float slope_here = 0.f, z = 0.f;
      if (mine) {
        const float y = net.gaussian(squared, g, z);
        float sum = 0.f;
#pragma unroll
        for (int f = 0; f < C::F; ++f) sum += net.w1[(1 + g) * C::F + f] * pre[f];
        slope_here = sum * y * z * net.inverse[g];
        at_squared -= slope_here;
        w.row[t * w.span + 1 + g] = y;
      }
      const float centre = over_warp(slope_here), width = over_warp(slope_here * z);
      if (t % 32 == 0) {
        w.gaussians[t / 32 * 2 * net.G + g] += centre;
        w.gaussians[(t / 32 * 2 + 1) * net.G + g] += width;
      }
    }
    if (mine) w.distance[p] = at_squared;
  }

  /// Sums for w1 and b1: one input, class or the bias and four hidden units a thread.
  __device__ void first_layer(int first, int here) const {
    constexpr int quads = C::F / 4;
    const int inputs = 1 + net.G, I = inputs + s.classes;
    for (int task = t; task < (I + 1) * quads; task += threads) {
      const int input = task / quads, f = task % quads * 4;
      float sum[4] = {};
      for (int p = 0; p < here; ++p) {
        const float x = input < inputs ? w.row[p * w.span + input] : input < I ? (w.bond[p] == input - inputs ? 1.f : 0.f) : 1.f;
        float grad[4];
        load<4, true>(grad, w.gradient + (first + p) * w.width + f, 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += x * grad[i];
      }
      for (int i = 0; i < 4; ++i)
        if (f + i < s.F) sums[input < I ? at.w1 + (f + i) * I + input : at.b1 + f + i] += sum[i];
    }
  }

  __device__ void finish() const {
    for (int g = t; g < 2 * s.G; g += threads) {
      float sum = 0.f;
      for (int warp = 0; warp < warps; ++warp) sum += w.gaussians[warp * 2 * s.G + g];
      sums[at.centres + g] = sum;
    }
  }
};
}  // namespace core_3d_molecule::relational
