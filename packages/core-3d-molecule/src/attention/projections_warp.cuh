// The projections of relational attention for 8 heads, 8 channels and 16 channels of a pair: an atom a warp. Lane 4 h + n has of
// head h the four columns 4 n.. of the weights, in registers, and reads and writes rows that lie side by side.
#pragma once
#include "dense.cuh"

namespace core_3d_molecule::relational {
constexpr int warp_threads = 256, warp_warps = warp_threads / 32;

/// A lane's weights w[8][4 of 16] of its head, or sums for them.
struct LaneWeights {
  static constexpr int H = 8, D = 8, E = 16, all = H * D * E;
  float4 at[D];

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int quarter() { return lane() % 4; }

  __device__ void load(const float* weights) {
#pragma unroll
    for (int d = 0; d < D; ++d) at[d] = *reinterpret_cast<const float4*>(weights + place(d));
  }
  /// Where the lane's columns of row d are.
  static __device__ int place(int d) { return (lane() / 4 * D + d) * E + quarter() * 4; }

  /// The lane's columns of x w.
  __device__ float4 up(const float (&x)[D]) const {
    float4 y{};
#pragma unroll
    for (int d = 0; d < D; ++d) y.x += x[d] * at[d].x, y.y += x[d] * at[d].y, y.z += x[d] * at[d].z, y.w += x[d] * at[d].w;
    return y;
  }

  /// The channels 2 n and 2 n + 1 of w y, from all columns of the head.
  __device__ float2 down(const float4& y) const {
    float sum[D], half[4];
#pragma unroll
    for (int d = 0; d < D; ++d) sum[d] = y.x * at[d].x + y.y * at[d].y + y.z * at[d].z + y.w * at[d].w;
    const bool upper = quarter() & 2, odd = quarter() & 1;
    const auto exchange = [](bool second, float a, float b, int other) {
      return (second ? b : a) + __shfl_xor_sync(0xffffffff, second ? a : b, other);
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) half[i] = exchange(upper, sum[i], sum[i + 4], 2);
    return {exchange(odd, half[0], half[2], 1), exchange(odd, half[1], half[3], 1)};
  }

  /// The outer product of a row and columns is added.
  __device__ void add(const float (&x)[D], const float4& y) {
#pragma unroll
    for (int d = 0; d < D; ++d) at[d].x += x[d] * y.x, at[d].y += x[d] * y.y, at[d].z += x[d] * y.z, at[d].w += x[d] * y.w;
  }

  /// to[all] = the sums of the block's warps. For once.
  __device__ void add_up_warps(float* to) const {
    __shared__ float4 sums[warp_warps][all / 4];
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int d = 0; d < D; ++d) sums[t / 32][place(d) / 4] = at[d];
    __syncthreads();
    float4 total = sums[0][t];
#pragma unroll
    for (int w = 1; w < warp_warps; ++w) {
      const float4 x = sums[w][t];
      total.x += x.x, total.y += x.y, total.z += x.z, total.w += x.w;
    }
    reinterpret_cast<float4*>(to)[t] = total;
  }
  static_assert(all / 4 == warp_threads);
};

/// What a lane has of an atom's rows: all channels of its head, or its own two; its columns of the pair's channels.
struct LaneRows {
  static constexpr int D = LaneWeights::D;
  static __device__ int64_t first(int64_t atom) { return atom * LaneWeights::H + LaneWeights::lane() / 4; }
  static __device__ float4& columns(float* rows, int64_t atom) {
    return reinterpret_cast<float4*>(rows)[first(atom) * (LaneWeights::E / 4) + LaneWeights::quarter()];
  }
  static __device__ float4 columns(const float* rows, int64_t atom) { return columns(const_cast<float*>(rows), atom); }
  static __device__ float2& pair(float* rows, int64_t atom) {
    return reinterpret_cast<float2*>(rows)[first(atom) * (D / 2) + LaneWeights::quarter()];
  }
  static __device__ float2 pair(const float* rows, int64_t atom) { return pair(const_cast<float*>(rows), atom); }
  struct Channels {
    float at[D];
    __device__ float2 own(float scale) const {
      const int n = LaneWeights::quarter();
      const float x = n < 2 ? n < 1 ? at[0] : at[2] : n < 3 ? at[4] : at[6], y = n < 2 ? n < 1 ? at[1] : at[3] : n < 3 ? at[5] : at[7];
      return {scale * x, scale * y};
    }
  };
  static __device__ Channels channels(const float* rows, int64_t atom) {
    const auto* at = reinterpret_cast<const float4*>(rows + first(atom) * D);
    const float4 a = at[0], b = at[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
  }
};

/// f.read(atom), then f.write(atom, what it gave), for all atoms from begin to end, `depth` of each warp at a time.
template <int depth, class Read, class Write>
__device__ void for_atoms(int64_t begin, int64_t end, Read read, Write write) {
#pragma unroll 1
  for (int64_t first = begin + threadIdx.x / 32; first < end; first += depth * warp_warps) {
    decltype(read(first)) rows[depth];
#pragma unroll
    for (int i = 0; i < depth; ++i) rows[i] = read(min(first + i * warp_warps, end - 1));
#pragma unroll
    for (int i = 0; i < depth; ++i)
      if (first + i * warp_warps < end) write(first + i * warp_warps, rows[i]);
  }
}

constexpr int atoms_a_block = 4 * warp_warps;

/// The gradients that come to a row of x from y = scale x w, and of w: x and the gradients of y, and of x but for this.
struct ProjectionBackward {
  const float *weights, *x, *grad_y, *grad_x;  ///< grad_x may be null
  float* to;
};

/// y = scale x w, and scale x if it is wanted.
struct Projection {
  const float *weights, *x;
  float *y, *scaled;
};

__device__ inline void project(const Projection& p, int64_t begin, int64_t end, float scale) {
  LaneWeights w;
  w.load(p.weights);
  for_atoms<4>(
      begin, end, [&](int64_t atom) { return LaneRows::channels(p.x, atom); },
      [&](int64_t atom, const LaneRows::Channels& x) {
        const float4 y = w.up(x.at);
        LaneRows::columns(p.y, atom) = {scale * y.x, scale * y.y, scale * y.z, scale * y.w};
        if (p.scaled) LaneRows::pair(p.scaled, atom) = x.own(scale);
      });
}

__global__ void __launch_bounds__(warp_threads, 2)
    values_warp_kernel(int64_t atoms, const float* out, const float* out_edge, const float* edge_v, float* values) {
  struct Row {
    float2 out;
    float4 edge;
  };
  LaneWeights w;
  w.load(edge_v);
  const int64_t begin = int64_t{blockIdx.x} * atoms_a_block;
  for_atoms<4>(
      begin, min(begin + atoms_a_block, atoms),
      [&](int64_t atom) { return Row{LaneRows::pair(out, atom), LaneRows::columns(out_edge, atom)}; },
      [&](int64_t atom, const Row& row) {
        const float2 y = w.down(row.edge);
        LaneRows::pair(values, atom) = {row.out.x + y.x, row.out.y + y.y};
      });
}

/// A block makes the rows of its part of the atoms, and parts[block][H][D][E].
__global__ void __launch_bounds__(warp_threads, 2)
    values_backward_warp_kernel(int64_t atoms, const float* out_edge, const float* edge_v, const float* grad_values, float* grad_out_edge,
                                float* parts) {
  struct Row {
    LaneRows::Channels x;
    float4 edge;
  };
  LaneWeights w, sums{};
  w.load(edge_v);
  for_atoms<3>(
      atoms * blockIdx.x / gridDim.x, atoms * (blockIdx.x + 1) / gridDim.x,
      [&](int64_t atom) { return Row{LaneRows::channels(grad_values, atom), LaneRows::columns(out_edge, atom)}; },
      [&](int64_t atom, const Row& row) {
        LaneRows::columns(grad_out_edge, atom) = w.up(row.x.at);
        sums.add(row.x.at, row.edge);
      });
  sums.add_up_warps(parts + int64_t{blockIdx.x} * LaneWeights::all);
}

/// A block (part, side) makes the rows of one side of its part of the atoms, and parts[part][side][H][D][E], which lacks the scale.
__global__ void __launch_bounds__(warp_threads, 2)
    projections_backward_warp_kernel(int64_t atoms, ProjectionBackward first, ProjectionBackward second, float scale, float* parts) {
  struct Row {
    LaneRows::Channels x;
    float4 edge;
    float2 more;
  };
  const ProjectionBackward p = blockIdx.y ? second : first;
  LaneWeights w, sums{};
  w.load(p.weights);
  for_atoms<2>(
      atoms * blockIdx.x / gridDim.x, atoms * (blockIdx.x + 1) / gridDim.x,
      [&](int64_t atom) {
        return Row{LaneRows::channels(p.x, atom), LaneRows::columns(p.grad_y, atom),
                   p.grad_x ? LaneRows::pair(p.grad_x, atom) : float2{0.f, 0.f}};
      },
      [&](int64_t atom, const Row& row) {
        const float2 y = w.down(row.edge);
        LaneRows::pair(p.to, atom) = {scale * (row.more.x + y.x), scale * (row.more.y + y.y)};
        sums.add(row.x.at, row.edge);
      });
  sums.add_up_warps(parts + (int64_t{blockIdx.x} * 2 + blockIdx.y) * LaneWeights::all);
}
}  // namespace core_3d_molecule::relational
