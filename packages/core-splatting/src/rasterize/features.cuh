// Blending of many channels on CUDA.
#pragma once
#include "device.cuh"

namespace core_splatting {

/// Blends any number of channels, of float32 or float16.
template <class T>
void blend_features(const Lists& lists, const Options& o, const core::Tensor<const T, 3>& colors,
                    const core::Tensor<const float, 2>& backgrounds, const core::Tensor<T, 4>& out_colors, const Out<3>& out_alphas,
                    cudaStream_t stream);

}  // namespace core_splatting
