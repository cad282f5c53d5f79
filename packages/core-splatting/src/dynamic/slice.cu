// 4D Gaussians on CUDA: one thread per Gaussian.
#include <core/cuda.hpp>

#include "slice.hpp"

namespace core_splatting {
namespace {

constexpr int block = 128;

template <class F>
__global__ void __launch_bounds__(block) each(std::int64_t n, F f) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x;
  if (i < n) f(i);
}

template <class F>
void launch(const char* op, std::int64_t n, core::Stream queue, F f) {
  if (n == 0) return;
  each<<<static_cast<unsigned>((n + block - 1) / block), block, 0, static_cast<cudaStream_t>(queue.handle)>>>(n, f);
  core::check_cuda(op, cudaGetLastError(), "starting a kernel");
}

struct Write {
  Dynamic in;
  SliceOutputs out;
  __device__ void operator()(std::int64_t row) const { write_slice(in, out, row); }
};
struct Clear {
  SliceGradients g;
  __device__ void operator()(std::int64_t n) const { write_gradient(g.out, DynamicGradient{}, n); }
};
struct Differentiate {
  Dynamic in;
  SliceGradients g;
  __device__ void operator()(std::int64_t row) const { write_slice_backward(in, g, row); }
};
struct Vary {
  Dynamic in;
  In<1> times;
  Out<1> out;
  __device__ void operator()(std::int64_t n) const { at(out, n) = variation_of(in, times, n); }
};

}  // namespace

void slice_4d_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                   double min_weight, double prefilter_var, Out<2> out_means, Out<2> out_covars, Out<1> out_opacities, Out<1> out_weights,
                   core::Stream queue) {
  const char* const op = "slice_4d";
  const std::int64_t rows = out_opacities.shape[0];
  const Dynamic in =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  const core::OnDevice guard(op, out_means.device_id);
  launch(op, rows, queue, Write{in, {out_means, out_covars, out_opacities, out_weights}});
}

void slice_4d_backward_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                            double min_weight, double prefilter_var, In<2> v_out_means, In<2> v_out_covars, In<1> v_out_opacities,
                            Out<2> v_means, Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities, core::Stream queue) {
  const char* const op = "slice_4d_backward";
  const std::int64_t rows = v_out_opacities.shape[0];
  const Dynamic in =
      check_slice(op, {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight, prefilter_var, rows);
  const SliceGradients g{v_out_means, v_out_covars, v_out_opacities, {v_means, v_scales, v_quats_l, v_quats_r, v_opacities}};
  const core::OnDevice guard(op, v_means.device_id);
  launch(op, opacities.shape[0], queue, Clear{g});
  launch(op, rows, queue, Differentiate{in, g});
}

void temporal_variation_cuda(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> times, Out<1> out, core::Stream queue) {
  const Dynamic in{means, scales, quats_l, quats_r, {}, {}, true, 0.f, 0.f, 0.f};
  const core::OnDevice guard("temporal_variation", out.device_id);
  launch("temporal_variation", out.shape[0], queue, Vary{in, times, out});
}

}  // namespace core_splatting
