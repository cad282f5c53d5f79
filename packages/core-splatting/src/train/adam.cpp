// Adam for the visible rows, on the CPU.
#include <core/isa.hpp>
#include <core/parallel.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "train.hpp"

namespace core_splatting {
namespace {

/// 1 - beta^t for t = 0, 1, .. until it is 1 in float32.
std::vector<float> corrections(double beta, std::int32_t most) {
  std::vector<float> table{0.f};
  for (double power = beta; table.back() < 1.f && static_cast<std::int64_t>(table.size()) <= most; power *= beta)
    table.push_back(static_cast<float>(1 - power));
  return table;
}

struct Job {
  core::Tensor<float, 2> param;
  core::Tensor<const float, 2> grad;
  core::Tensor<float, 2> exp_avg, exp_avg_sq;
  core::Tensor<std::int32_t, 1> steps;
  core::Tensor<const bool, 1> visible;
  float beta1, beta2, keep1, keep2, eps;
  const std::vector<float>*rates, *correction1, *correction2;
};

void rows(const Job* job, std::int64_t begin, std::int64_t end) {
  const Job j = *job;  // a copy, which no row that is written can change
  const std::int64_t columns = j.param.shape[1];
  const bool dense = (j.param.stride[1] == 1 && j.grad.stride[1] == 1 && j.exp_avg.stride[1] == 1 && j.exp_avg_sq.stride[1] == 1);
  for (std::int64_t n = begin; n < end; ++n) {
    if (!j.visible(n)) continue;
    const auto step = static_cast<std::size_t>(++j.steps(n));
    const float over = 1.f / (*j.correction1)[std::min(step, j.correction1->size() - 1)];
    const float over_root = 1.f / std::sqrt((*j.correction2)[std::min(step, j.correction2->size() - 1)]);
    const auto update = [&](float& p, float g, float& m, float& v, float rate) {
      m += j.keep1 * (g - m);
      v = j.beta2 * v + j.keep2 * g * g;
      p -= rate * over * m / (std::sqrt(v) * over_root + j.eps);
    };
    if (dense && columns) {
      const float* const __restrict rates = j.rates->data();
      float* const __restrict p = &j.param(n, 0);
      const float* const __restrict g = &j.grad(n, 0);
      float* const __restrict m = &j.exp_avg(n, 0);
      float* const __restrict v = &j.exp_avg_sq(n, 0);
      for (std::int64_t k = 0; k < columns; ++k) update(p[k], g[k], m[k], v[k], rates[k]);
    } else {
      for (std::int64_t k = 0; k < columns; ++k)
        update(j.param(n, k), j.grad(n, k), j.exp_avg(n, k), j.exp_avg_sq(n, k), (*j.rates)[static_cast<std::size_t>(k)]);
    }
  }
}

}  // namespace

void selective_adam(core::Tensor<float, 2> param, core::Tensor<const float, 2> grad, core::Tensor<float, 2> exp_avg,
                    core::Tensor<float, 2> exp_avg_sq, core::Tensor<std::int32_t, 1> steps, core::Tensor<const bool, 1> visible,
                    std::optional<core::Tensor<const float, 1>> rates, double lr, double beta1, double beta2, double eps) {
  check_adam(lr, beta1, beta2, eps);
  std::int32_t least = 0, most = 0;
  for (std::int64_t n = 0; n < steps.shape[0]; ++n) least = std::min(least, steps(n)), most = std::max(most, steps(n));
  if (least < 0 || most == INT32_MAX)
    throw core::Error("ValueError", "selective_adam: argument 'steps' must hold counts from 0 to 2^31 - 2, got " +
                                        std::to_string(least < 0 ? least : most));
  const std::vector<float> correction1 = corrections(beta1, most + 1), correction2 = corrections(beta2, most + 1);
  std::vector<float> of_columns(static_cast<std::size_t>(param.shape[1]), static_cast<float>(lr));
  for (std::int64_t k = 0; rates && k < param.shape[1]; ++k) of_columns[static_cast<std::size_t>(k)] *= (*rates)(k);
  const Job job{param,
                grad,
                exp_avg,
                exp_avg_sq,
                steps,
                visible,
                static_cast<float>(beta1),
                static_cast<float>(beta2),
                static_cast<float>(1 - beta1),
                static_cast<float>(1 - beta2),
                static_cast<float>(eps),
                &of_columns,
                &correction1,
                &correction2};
  core::parallel_for(steps.shape[0], 4096, [&](std::int64_t begin, std::int64_t end) { core::multiversion<&rows>(&job, begin, end); });
}

}  // namespace core_splatting
