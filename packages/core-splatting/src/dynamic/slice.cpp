// 4D Gaussians on the CPU.
#include "slice.hpp"

#include <core/parallel.hpp>

#include <string>

namespace core_splatting {

Dynamic check_slice(const char* op, const Dynamic& arrays, const Indices& indices, double time, double min_weight, double prefilter_var,
                    std::int64_t rows) {
  const auto refuse = [op](const char* name, const std::string& wanted, const std::string& got) {
    throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must be " + wanted + ", got " + got);
  };
  if (!(std::abs(time) <= 1e30)) refuse("time", "finite", std::to_string(time));
  if (!(min_weight >= 0 && min_weight < 1)) refuse("min_weight", "at least 0 and less than 1", std::to_string(min_weight));
  if (!(prefilter_var >= 0 && prefilter_var <= 1e30)) refuse("prefilter_var", "at least 0 and finite", std::to_string(prefilter_var));
  const std::int64_t count = arrays.opacities.shape[0];
  if (!indices && rows != count)
    refuse("indices", "given unless the outputs have all " + std::to_string(count) + " rows", std::to_string(rows) + " rows");
  Dynamic in = arrays;
  in.all = !indices;
  if (indices) in.indices = *indices;
  in.time = static_cast<float>(time), in.min_weight = static_cast<float>(min_weight), in.prefilter_var = static_cast<float>(prefilter_var);
  return in;
}

void check_indices(const char* op, const Dynamic& in) {
  if (in.all) return;
  std::int64_t before = -1;
  for (std::int64_t i = 0; i < in.indices.shape[0]; ++i) {
    const std::int64_t index = in.indices(i);
    if (index <= before || index >= in.opacities.shape[0])
      throw core::Error("ValueError", std::string(op) + ": argument 'indices' must rise from at least 0 to less than " +
                                          std::to_string(in.opacities.shape[0]) + ", got " + std::to_string(index) + " after " +
                                          std::to_string(before));
    before = index;
  }
}

namespace {

template <class F>
void for_each(std::int64_t n, F&& f) {
  core::parallel_for(n, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace

void slice_4d(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time, double min_weight,
              double prefilter_var, Out<2> out_means, Out<2> out_covars, Out<1> out_opacities, Out<1> out_weights) {
  const std::int64_t rows = out_opacities.shape[0];
  const Dynamic in = check_slice("slice_4d", {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time, min_weight,
                                 prefilter_var, rows);
  check_indices("slice_4d", in);
  const SliceOutputs out{out_means, out_covars, out_opacities, out_weights};
  for_each(rows, [&](std::int64_t row) { write_slice(in, out, row); });
}

void slice_4d_backward(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> opacities, Indices indices, double time,
                       double min_weight, double prefilter_var, In<2> v_out_means, In<2> v_out_covars, In<1> v_out_opacities,
                       Out<2> v_means, Out<2> v_scales, Out<2> v_quats_l, Out<2> v_quats_r, Out<1> v_opacities) {
  const std::int64_t rows = v_out_opacities.shape[0];
  const Dynamic in = check_slice("slice_4d_backward", {means, scales, quats_l, quats_r, opacities, {}, {}, {}, {}, {}}, indices, time,
                                 min_weight, prefilter_var, rows);
  check_indices("slice_4d_backward", in);
  const SliceGradients g{v_out_means, v_out_covars, v_out_opacities, {v_means, v_scales, v_quats_l, v_quats_r, v_opacities}};
  for_each(opacities.shape[0], [&](std::int64_t n) { write_gradient(g.out, DynamicGradient{}, n); });
  for_each(rows, [&](std::int64_t row) { write_slice_backward(in, g, row); });
}

void temporal_variation(In<2> means, In<2> scales, In<2> quats_l, In<2> quats_r, In<1> times, Out<1> out) {
  const Dynamic in{means, scales, quats_l, quats_r, {}, {}, true, 0.f, 0.f, 0.f};
  for_each(out.shape[0], [&](std::int64_t n) { out(n) = variation_of(in, times, n); });
}

}  // namespace core_splatting
