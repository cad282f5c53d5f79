// The experts in numbers of 16 bits.
#include "experts.cuh"

namespace core_diffusion {
using core::bfloat16;
using core::float16;
using core::Tensor;
using std::int64_t;

void expert_ffn_bf16(Tensor<const bfloat16, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                     Tensor<const bfloat16, 2> gates, Tensor<const bfloat16, 3> up, std::optional<Tensor<const bfloat16, 2>> up_bias,
                     Tensor<const bfloat16, 3> down, std::optional<Tensor<const bfloat16, 2>> down_bias, const char* activation,
                     std::optional<Tensor<bfloat16, 2>> hidden, Tensor<bfloat16, 2> out, core::Stream stream) {
  experts::forward(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, hidden, out, stream);
}
void expert_ffn_backward_bf16(Tensor<const bfloat16, 2> dout, Tensor<const bfloat16, 2> x, Tensor<const int64_t, 1> tokens,
                              Tensor<const int64_t, 1> offsets, Tensor<const bfloat16, 2> gates, Tensor<const bfloat16, 3> up,
                              Tensor<const bfloat16, 3> down, std::optional<Tensor<const bfloat16, 2>> down_bias,
                              Tensor<const bfloat16, 2> hidden, const char* activation, Tensor<bfloat16, 2> dx, Tensor<bfloat16, 2> dgates,
                              Tensor<bfloat16, 3> dup, std::optional<Tensor<bfloat16, 2>> dup_bias, Tensor<bfloat16, 3> ddown,
                              std::optional<Tensor<bfloat16, 2>> ddown_bias, core::Stream stream) {
  experts::backward(dout, x, tokens, offsets, gates, up, down, down_bias, hidden, activation, dx, dgates, dup, dup_bias, ddown, ddown_bias,
                    stream);
}

void expert_ffn_f16(Tensor<const float16, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                    Tensor<const float16, 2> gates, Tensor<const float16, 3> up, std::optional<Tensor<const float16, 2>> up_bias,
                    Tensor<const float16, 3> down, std::optional<Tensor<const float16, 2>> down_bias, const char* activation,
                    std::optional<Tensor<float16, 2>> hidden, Tensor<float16, 2> out, core::Stream stream) {
  experts::forward(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, hidden, out, stream);
}
void expert_ffn_backward_f16(Tensor<const float16, 2> dout, Tensor<const float16, 2> x, Tensor<const int64_t, 1> tokens,
                             Tensor<const int64_t, 1> offsets, Tensor<const float16, 2> gates, Tensor<const float16, 3> up,
                             Tensor<const float16, 3> down, std::optional<Tensor<const float16, 2>> down_bias,
                             Tensor<const float16, 2> hidden, const char* activation, Tensor<float16, 2> dx, Tensor<float16, 2> dgates,
                             Tensor<float16, 3> dup, std::optional<Tensor<float16, 2>> dup_bias, Tensor<float16, 3> ddown,
                             std::optional<Tensor<float16, 2>> ddown_bias, core::Stream stream) {
  experts::backward(dout, x, tokens, offsets, gates, up, down, down_bias, hidden, activation, dx, dgates, dup, dup_bias, ddown, ddown_bias,
                    stream);
}
}  // namespace core_diffusion
