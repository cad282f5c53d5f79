// What the parts of relational attention backward share: operands, sums, shared memory.
#pragma once
#include "relational.cuh"

namespace core_3d_molecule::relational {
/// What the forward call gave and the gradients of that.
struct Given {
  const float *out, *out_edge, *lse, *grad_out, *grad_out_edge, *grad_lse;
};
struct Gradients {
  float *q, *k, *v, *q_edge, *k_edge, *positions;
};

/// Sums over pairs: w1 [F][I], b1 [F], w2 [E][F], b2 [E], form [H][products], centres [G], widths [G].
struct Sums {
  int w1, b1, w2, b2, form, centres, widths, count;
  __host__ __device__ explicit Sums(const Sizes& s) {
    const int I = 1 + s.G + s.classes;
    w1 = 0, b1 = w1 + s.F * I, w2 = b1 + s.F, b2 = w2 + s.E * s.F, form = b2 + s.E, centres = form + s.H * s.products();
    widths = centres + s.G, count = widths + s.G;
  }
};

/// Shared memory of a block behind the network.
template <class C, int N>
struct Work {
  static constexpr int pairs = triangle(N), channels = C::E + C::H, rows = (pairs + 15) / 16 * 16;
  static constexpr int stride = N * C::H + 2;  // of slopes: those of one key and of queries side by side lie in different banks
  static constexpr int width = C::exact ? channels : C::E > C::F ? C::E : C::F;
  float* square;       ///< [rows][E + H]: features, and the form's value, later its gradient
  float2* slopes;      ///< [N][N][H], rows `stride` apart: slope of a logit and weight
  float* gradient;     ///< [rows][width]: of the features, then of the hidden layer before silu; with matrix units in square's place
  float* row;          ///< [threads][span]: the hidden layer, then what the perceptron reads; with matrix units [warps][16][16]
  float* distance;     ///< [pairs]: gradient of the squared distance
  float* gaussians;    ///< [warps][2 G]: sums for centres and widths; not with matrix units
  std::uint8_t* bond;  ///< [threads]; not with matrix units
  int span;

  static __host__ __device__ int span_of(int G) { return (C::F > 1 + G ? C::F : 1 + G) | 1; }
  static __host__ __device__ int row_floats(int G) { return C::exact ? warps * 256 : up4(threads * span_of(G)); }
  static __host__ __device__ int floats(int G) {
    return rows * channels + 2 * N * stride + row_floats(G) + up4(pairs) + (C::exact ? 0 : rows * width + up4(2 * warps * G) + threads / 4);
  }
  __device__ Work(float* at, int G) : span(span_of(G)) {
    square = gradient = at, at += rows * channels;
    slopes = reinterpret_cast<float2*>(at), at += 2 * N * stride;
    if (!C::exact) gradient = at, at += rows * width;
    row = at, at += row_floats(G);
    distance = at, at += up4(pairs);
    gaussians = at, at += up4(2 * warps * G);
    bond = reinterpret_cast<std::uint8_t*>(at);
  }
  __device__ float2& slope(int i, int j, int h) const { return slopes[i * stride + j * C::H + h]; }
};
}  // namespace core_3d_molecule::relational
