// The experts in float32 and float64.
#include "experts.cuh"

namespace core_diffusion {
using core::Tensor;
using std::int64_t;

void expert_ffn_cuda_f32(Tensor<const float, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                         Tensor<const float, 2> gates, Tensor<const float, 3> up, std::optional<Tensor<const float, 2>> up_bias,
                         Tensor<const float, 3> down, std::optional<Tensor<const float, 2>> down_bias, const char* activation,
                         std::optional<Tensor<float, 2>> hidden, Tensor<float, 2> out, core::Stream stream) {
  experts::forward(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, hidden, out, stream);
}
void expert_ffn_backward_cuda_f32(Tensor<const float, 2> dout, Tensor<const float, 2> x, Tensor<const int64_t, 1> tokens,
                                  Tensor<const int64_t, 1> offsets, Tensor<const float, 2> gates, Tensor<const float, 3> up,
                                  Tensor<const float, 3> down, std::optional<Tensor<const float, 2>> down_bias,
                                  Tensor<const float, 2> hidden, const char* activation, Tensor<float, 2> dx, Tensor<float, 2> dgates,
                                  Tensor<float, 3> dup, std::optional<Tensor<float, 2>> dup_bias, Tensor<float, 3> ddown,
                                  std::optional<Tensor<float, 2>> ddown_bias, core::Stream stream) {
  experts::backward(dout, x, tokens, offsets, gates, up, down, down_bias, hidden, activation, dx, dgates, dup, dup_bias, ddown, ddown_bias,
                    stream);
}

void expert_ffn_cuda_f64(Tensor<const double, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                         Tensor<const double, 2> gates, Tensor<const double, 3> up, std::optional<Tensor<const double, 2>> up_bias,
                         Tensor<const double, 3> down, std::optional<Tensor<const double, 2>> down_bias, const char* activation,
                         std::optional<Tensor<double, 2>> hidden, Tensor<double, 2> out, core::Stream stream) {
  experts::forward(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, hidden, out, stream);
}
void expert_ffn_backward_cuda_f64(Tensor<const double, 2> dout, Tensor<const double, 2> x, Tensor<const int64_t, 1> tokens,
                                  Tensor<const int64_t, 1> offsets, Tensor<const double, 2> gates, Tensor<const double, 3> up,
                                  Tensor<const double, 3> down, std::optional<Tensor<const double, 2>> down_bias,
                                  Tensor<const double, 2> hidden, const char* activation, Tensor<double, 2> dx, Tensor<double, 2> dgates,
                                  Tensor<double, 3> dup, std::optional<Tensor<double, 2>> dup_bias, Tensor<double, 3> ddown,
                                  std::optional<Tensor<double, 2>> ddown_bias, core::Stream stream) {
  experts::backward(dout, x, tokens, offsets, gates, up, down, down_bias, hidden, activation, dx, dgates, dup, dup_bias, ddown, ddown_bias,
                    stream);
}
}  // namespace core_diffusion
