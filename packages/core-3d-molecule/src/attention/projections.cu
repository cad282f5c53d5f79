// From projections of [h; e] to relational attention and back, on CUDA. Rows are those of one atom and head; sums over atoms are
// made of parts, which a second kernel adds up, so that the same input gives the same gradients.
#include <core_3d_molecule/relational_projections.hpp>

#include "add_up.cuh"
#include "dense.cuh"
#include "projection_sizes.hpp"
#include "projections_warp.cuh"

namespace core_3d_molecule {
namespace relational {
namespace {
constexpr int lanes = 16, rows_a_block = 16, outer_threads = 128, atoms_a_part = 32;
constexpr int64_t most_parts = 264;  // not the device's number of blocks, so that sums are the same on each

struct Shape3 {
  int64_t rows;  ///< atoms times heads
  int H, D, E;
  bool warps() const { return H == LaneWeights::H && D == LaneWeights::D && E == LaneWeights::E; }
};

Shape3 shape_of(const char* op, const Tensor<const float, 3>& q, const Tensor<const float, 3>& edge) {
  constexpr int64_t most = 1024;
  if (edge.shape[0] > most || edge.shape[1] > most || edge.shape[2] > most)
    refuse(op, "edge_q", "have at most 1024 heads and channels on CUDA");
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  const Shape3 s{q.shape[0] * edge.shape[0], narrow(edge.shape[0]), narrow(edge.shape[1]), narrow(edge.shape[2])};
  if (s.rows > (int64_t{1} << 34)) refuse(op, "q", "have at most 2^34 rows on CUDA");
  return s;
}

unsigned blocks_of(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

struct Rows {
  int h;
  int64_t row;
  bool here;
};
__device__ inline Rows row_of(const Shape3& s) {
  const int64_t row = int64_t{blockIdx.x} * rows_a_block + threadIdx.y;
  return {static_cast<int>(row % s.H), row, row < s.rows};
}

__device__ inline void make_form(const Shape3& s, const float* edge_q, const float* edge_k, float scale, float* form, int64_t i) {
  const int E = s.E, products = E * (E + 1) / 2;
  if (i >= int64_t{s.H} * products) return;
  const int h = static_cast<int>(i / products);
  int e = 0, f = static_cast<int>(i % products);
  while (f >= E - e) f -= E - e, ++e;
  f += e;
  float sum = 0.f;
#pragma unroll 8
  for (int d = 0; d < s.D; ++d) {
    const int64_t at = (int64_t{h} * s.D + d) * E;
    const float other = edge_q[at + f] * edge_k[at + e];
    sum += edge_q[at + e] * edge_k[at + f] + (e != f ? other : 0.f);
  }
  form[i] = scale * sum;
}

/// Blocks (., 0) make the form, the others the rows of queries and of keys.
__global__ void __launch_bounds__(warp_threads, 2) projections_warp_kernel(Shape3 s, Projection q, Projection k, float scale, float* form) {
  if (blockIdx.y == 0) return make_form(s, k.weights, q.weights, scale, form, int64_t{blockIdx.x} * warp_threads + threadIdx.x);
  const Projection side = blockIdx.y == 1 ? q : k;
  const int64_t begin = int64_t{blockIdx.x} * atoms_a_block;
  project(side, begin, min(begin + atoms_a_block, s.rows / s.H), scale);
}

/// The last blocks make the form, the others the rows.
__global__ void __launch_bounds__(lanes* rows_a_block)
    projections_kernel(Shape3 s, const float* q, const float* k, const float* edge_q, const float* edge_k, float scale, float* scaled_q,
                       float* q_edge, float* k_edge, float* form, unsigned row_blocks) {
  const int lane = static_cast<int>(threadIdx.x), D = s.D, E = s.E;
  if (blockIdx.x >= row_blocks) {
    const int64_t i = int64_t{blockIdx.x - row_blocks} * lanes * rows_a_block + threadIdx.y * lanes + lane;
    return make_form(s, edge_q, edge_k, scale, form, i);
  }
  const Rows r = row_of(s);
  if (!r.here) return;
  for (int d = lane; d < D; d += lanes) scaled_q[r.row * D + d] = scale * q[r.row * D + d];
  for (int e = lane; e < E; e += lanes) {
    float by_q = 0.f, by_k = 0.f;
#pragma unroll 8
    for (int d = 0; d < D; ++d) {
      const int64_t at = (int64_t{r.h} * D + d) * E + e;
      by_q += q[r.row * D + d] * edge_k[at], by_k += k[r.row * D + d] * edge_q[at];
    }
    q_edge[r.row * E + e] = scale * by_q, k_edge[r.row * E + e] = scale * by_k;
  }
}

__global__ void __launch_bounds__(lanes* rows_a_block)
    projections_rows_kernel(Shape3 s, const float* edge_q, const float* edge_k, float scale, const float* grad_scaled_q,
                            const float* grad_q_edge, const float* grad_k_edge, float* grad_q, float* grad_k) {
  const Rows r = row_of(s);
  if (!r.here) return;
  for (int d = static_cast<int>(threadIdx.x); d < s.D; d += lanes) {
    float by_q = grad_scaled_q[r.row * s.D + d], by_k = 0.f;
    const int64_t at = (int64_t{r.h} * s.D + d) * s.E;
#pragma unroll 8
    for (int e = 0; e < s.E; ++e)
      by_q += grad_q_edge[r.row * s.E + e] * edge_k[at + e], by_k += grad_k_edge[r.row * s.E + e] * edge_q[at + e];
    grad_q[r.row * s.D + d] = scale * by_q, grad_k[r.row * s.D + d] = scale * by_k;
  }
}

__global__ void __launch_bounds__(lanes* rows_a_block)
    values_kernel(Shape3 s, const float* out, const float* out_edge, const float* edge_v, float* values) {
  const Rows r = row_of(s);
  if (!r.here) return;
  for (int d = static_cast<int>(threadIdx.x); d < s.D; d += lanes) {
    float sum = out[r.row * s.D + d];
    const float* w = edge_v + (int64_t{r.h} * s.D + d) * s.E;
#pragma unroll 8
    for (int e = 0; e < s.E; ++e) sum += out_edge[r.row * s.E + e] * w[e];
    values[r.row * s.D + d] = sum;
  }
}

__global__ void __launch_bounds__(lanes* rows_a_block)
    values_rows_kernel(Shape3 s, const float* edge_v, const float* grad_values, float* grad_out_edge) {
  const Rows r = row_of(s);
  if (!r.here) return;
  for (int e = static_cast<int>(threadIdx.x); e < s.E; e += lanes) {
    float sum = 0.f;
#pragma unroll 8
    for (int d = 0; d < s.D; ++d) sum += grad_values[r.row * s.D + d] * edge_v[(int64_t{r.h} * s.D + d) * s.E + e];
    grad_out_edge[r.row * s.E + e] = sum;
  }
}

/// Rows x[D] and y[E] whose outer products are summed over the atoms, head by head.
struct Outer {
  const float *x, *y;
};

/// parts[part][z][H][D][E]; blocks (part, head, z).
__global__ void __launch_bounds__(outer_threads) outer_kernel(Shape3 s, Outer first, Outer second, int64_t atoms, float* parts) {
  const Outer o = blockIdx.z ? second : first;
  const int h = static_cast<int>(blockIdx.y), entries = s.D * s.E;
  const int64_t begin = atoms * blockIdx.x / gridDim.x, end = atoms * (blockIdx.x + 1) / gridDim.x;
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += outer_threads) {
    const float *x = o.x + i / s.E, *y = o.y + i % s.E;
    float sum = 0.f;
#pragma unroll 8
    for (int64_t a = begin; a < end; ++a) sum += x[(a * s.H + h) * s.D] * y[(a * s.H + h) * s.E];
    parts[((int64_t{blockIdx.x} * gridDim.z + blockIdx.z) * s.H + h) * entries + i] = sum;
  }
}

int64_t parts_of(int64_t atoms, int64_t sides) {
  return std::clamp((atoms + atoms_a_part - 1) / atoms_a_part, int64_t{1}, most_parts / sides);
}

/// The sums of all parts, and for the projections what the form gives.
__global__ void __launch_bounds__(add_up_threads)
    finish_kernel(Shape3 s, const float* parts, int count, const float* edge_q, const float* edge_k, const float* grad_form, float scale,
                  float* first, float* second) {
  const int weights = s.H * s.D * s.E, all = second ? 2 * weights : weights;
  float sum;
  const int i = add_up(parts, all, count, sum, [&](int i, int group, int groups) {
    if (!grad_form) return 0.f;
    const int at = i % weights, e = at % s.E, row = at / s.E, h = row / s.D;
    const float* other = (i < weights ? edge_k : edge_q) + int64_t{row} * s.E;
    const float* g = grad_form + int64_t{h} * (s.E * (s.E + 1) / 2);
    float sum = 0.f;
    for (int f = group; f < s.E; f += groups) sum += g[product_of(e, f, s.E)] * other[f];
    return sum;
  });
  if (i >= 0) (i < weights ? first : second)[i % weights] = scale * sum;
}
}  // namespace
}  // namespace relational

void relational_projections_cuda(Tensor<const float, 3> q, Tensor<const float, 3> k, Tensor<const float, 3> edge_q,
                                 Tensor<const float, 3> edge_k, double scale, Tensor<float, 3> scaled_q, Tensor<float, 3> q_edge,
                                 Tensor<float, 3> k_edge, Tensor<float, 2> form, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_projections";
  check_projections(op, edge_q, form);
  const Shape3 s = shape_of(op, q, edge_q);
  const core::OnDevice guard(op, form.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const Dense q_(op, q, stream), k_(op, k, stream), edge_q_(op, edge_q, stream), edge_k_(op, edge_k, stream);
  const Dense scaled_q_(op, scaled_q, stream), q_edge_(op, q_edge, stream), k_edge_(op, k_edge, stream);
  const Dense form_(op, form, stream);
  const auto scale_ = static_cast<float>(scale);
  if (s.warps()) {
    const unsigned blocks = std::max(blocks_of(q.shape[0], atoms_a_block), blocks_of(form.numel(), warp_threads));
    projections_warp_kernel<<<dim3(blocks, 3), warp_threads, 0, stream>>>(
        s, Projection{edge_k_.get(), q_.get(), q_edge_.get(), scaled_q_.get()}, Projection{edge_q_.get(), k_.get(), k_edge_.get(), nullptr},
        scale_, form_.get());
  } else {
    const unsigned blocks = blocks_of(s.rows, rows_a_block);
    projections_kernel<<<blocks + blocks_of(form.numel(), lanes * rows_a_block), dim3(lanes, rows_a_block), 0, stream>>>(
        s, q_.get(), k_.get(), edge_q_.get(), edge_k_.get(), scale_, scaled_q_.get(), q_edge_.get(), k_edge_.get(), form_.get(), blocks);
  }
  core::check_cuda(op, cudaGetLastError(), "projecting");
  scaled_q_.finish(), q_edge_.finish(), k_edge_.finish(), form_.finish();
}

void relational_projections_backward_cuda(Tensor<const float, 3> q, Tensor<const float, 3> k, Tensor<const float, 3> edge_q,
                                          Tensor<const float, 3> edge_k, double scale, Tensor<const float, 3> grad_scaled_q,
                                          Tensor<const float, 3> grad_q_edge, Tensor<const float, 3> grad_k_edge,
                                          Tensor<const float, 2> grad_form, Tensor<float, 3> grad_q, Tensor<float, 3> grad_k,
                                          Tensor<float, 3> grad_edge_q, Tensor<float, 3> grad_edge_k, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_projections_backward";
  check_projections(op, edge_q, grad_form);
  const Shape3 s = shape_of(op, q, edge_q);
  const core::OnDevice guard(op, grad_q.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const Dense q_(op, q, stream), k_(op, k, stream), edge_q_(op, edge_q, stream), edge_k_(op, edge_k, stream);
  const Dense from_q(op, grad_scaled_q, stream), from_q_edge(op, grad_q_edge, stream), from_k_edge(op, grad_k_edge, stream);
  const Dense from_form(op, grad_form, stream);
  const Dense to_q(op, grad_q, stream), to_k(op, grad_k, stream), to_edge_q(op, grad_edge_q, stream), to_edge_k(op, grad_edge_k, stream);
  const auto scale_ = static_cast<float>(scale);
  const int64_t atoms = q.shape[0], parts = parts_of(atoms, 2), weights = edge_q.numel();
  const core::DeviceScratch scratch(op, grad_q.device_id, stream, parts * 2 * weights * 4);
  if (s.warps()) {
    projections_backward_warp_kernel<<<dim3(static_cast<unsigned>(parts), 2), warp_threads, 0, stream>>>(
        atoms, ProjectionBackward{edge_q_.get(), k_.get(), from_k_edge.get(), nullptr, to_k.get()},
        ProjectionBackward{edge_k_.get(), q_.get(), from_q_edge.get(), from_q.get(), to_q.get()}, scale_, scratch.get<float>());
  } else {
    if (s.rows) {
      projections_rows_kernel<<<blocks_of(s.rows, rows_a_block), dim3(lanes, rows_a_block), 0, stream>>>(
          s, edge_q_.get(), edge_k_.get(), scale_, from_q.get(), from_q_edge.get(), from_k_edge.get(), to_q.get(), to_k.get());
      core::check_cuda(op, cudaGetLastError(), "differentiating rows");
    }
    outer_kernel<<<dim3(static_cast<unsigned>(parts), static_cast<unsigned>(s.H), 2), outer_threads, 0, stream>>>(
        s, Outer{k_.get(), from_k_edge.get()}, Outer{q_.get(), from_q_edge.get()}, atoms, scratch.get<float>());
  }
  core::check_cuda(op, cudaGetLastError(), "summing over atoms");
  finish_kernel<<<blocks_of(2 * weights, add_up_outputs), add_up_threads, 0, stream>>>(s, scratch.get<float>(), static_cast<int>(parts),
                                                                                       edge_q_.get(), edge_k_.get(), from_form.get(),
                                                                                       scale_, to_edge_q.get(), to_edge_k.get());
  core::check_cuda(op, cudaGetLastError(), "adding up");
  to_q.finish(), to_k.finish(), to_edge_q.finish(), to_edge_k.finish();
}

void relational_values_cuda(Tensor<const float, 3> out, Tensor<const float, 3> out_edge, Tensor<const float, 3> edge_v,
                            Tensor<float, 3> values, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_values";
  const Shape3 s = shape_of(op, out, edge_v);
  if (s.rows == 0) return;
  const core::OnDevice guard(op, values.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const Dense out_(op, out, stream), out_edge_(op, out_edge, stream), edge_v_(op, edge_v, stream);
  const Dense values_(op, values, stream);
  if (s.warps())
    values_warp_kernel<<<blocks_of(out.shape[0], atoms_a_block), warp_threads, 0, stream>>>(out.shape[0], out_.get(), out_edge_.get(),
                                                                                            edge_v_.get(), values_.get());
  else
    values_kernel<<<blocks_of(s.rows, rows_a_block), dim3(lanes, rows_a_block), 0, stream>>>(s, out_.get(), out_edge_.get(), edge_v_.get(),
                                                                                             values_.get());
  core::check_cuda(op, cudaGetLastError(), "adding values");
  values_.finish();
}

void relational_values_backward_cuda(Tensor<const float, 3> out_edge, Tensor<const float, 3> edge_v, Tensor<const float, 3> grad_values,
                                     Tensor<float, 3> grad_out_edge, Tensor<float, 3> grad_edge_v, core::Stream queue) {
  using namespace relational;
  const char* const op = "relational_values_backward";
  const Shape3 s = shape_of(op, out_edge, edge_v);
  const core::OnDevice guard(op, grad_out_edge.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const Dense out_edge_(op, out_edge, stream), edge_v_(op, edge_v, stream), from(op, grad_values, stream);
  const Dense to_out_edge(op, grad_out_edge, stream), to_edge_v(op, grad_edge_v, stream);
  const int64_t atoms = out_edge.shape[0], parts = parts_of(atoms, 1), weights = edge_v.numel();
  const core::DeviceScratch scratch(op, grad_out_edge.device_id, stream, parts * weights * 4);
  if (s.warps()) {
    values_backward_warp_kernel<<<static_cast<unsigned>(parts), warp_threads, 0, stream>>>(
        atoms, out_edge_.get(), edge_v_.get(), from.get(), to_out_edge.get(), scratch.get<float>());
  } else {
    if (s.rows) {
      values_rows_kernel<<<blocks_of(s.rows, rows_a_block), dim3(lanes, rows_a_block), 0, stream>>>(s, edge_v_.get(), from.get(),
                                                                                                    to_out_edge.get());
      core::check_cuda(op, cudaGetLastError(), "differentiating rows");
    }
    outer_kernel<<<dim3(static_cast<unsigned>(parts), static_cast<unsigned>(s.H), 1), outer_threads, 0, stream>>>(
        s, Outer{from.get(), out_edge_.get()}, Outer{}, atoms, scratch.get<float>());
  }
  core::check_cuda(op, cudaGetLastError(), "summing over atoms");
  finish_kernel<<<blocks_of(weights, add_up_outputs), add_up_threads, 0, stream>>>(
      s, scratch.get<float>(), static_cast<int>(parts), nullptr, nullptr, nullptr, 1.f, to_edge_v.get(), nullptr);
  core::check_cuda(op, cudaGetLastError(), "adding up");
  to_out_edge.finish(), to_edge_v.finish();
}
}  // namespace core_3d_molecule
