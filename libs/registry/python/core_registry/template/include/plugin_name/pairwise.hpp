// plugin_name/pairwise.hpp - the C++ face of this plugin.
#pragma once
#include <core/tensor.hpp>

namespace plugin_name {
/// out[i, j] = sum_d (x[i, d] - y[j, d])^2 for x[N, D], y[M, D] and out[N, M]; any strides.
CORE_EXPORT void pairwise_sqdist(core::Tensor<const float, 2> x, core::Tensor<const float, 2> y, core::Tensor<float, 2> out);
}  // namespace plugin_name
