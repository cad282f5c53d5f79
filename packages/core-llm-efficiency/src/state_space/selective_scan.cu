// Mamba-1's scan on CUDA.
#include "selective_scan.cuh"

namespace core_llm_efficiency {
namespace {
using namespace selective;

template <class T, class Shape>
__global__ void __launch_bounds__(threads) scan(const __grid_constant__ Scan<T> s) {
  scan_channels<T, Shape, false>(s, nullptr);
}

template <class T>
void scan_on(core::Tensor<const T, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A, core::Tensor<const T, 4> B,
             core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 3>> initial, core::Tensor<T, 3> out,
             core::Tensor<float, 3> last, core::Stream queue) {
  const char* op = "selective_scan";
  auto s = describe(op, u, delta, A, B, C, initial);
  if (u.shape[0] == 0 || u.shape[1] == 0 || (s.steps == 0 && s.n == 0)) return;
  const OnDevice on(op, u.device_id);
  s.out = rows_of(out), s.last = states_of(last);
  with_shape(s.n, [&]<class Shape>(Shape) {
    const std::int64_t blocks = plan<Shape>(op, s, u.shape[0]);
    const auto kernel = &scan<element<T>, Shape>;
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, series_bytes<Shape>),
               "asking for shared memory");
    kernel<<<static_cast<unsigned>(blocks), threads, series_bytes<Shape>, static_cast<cudaStream_t>(queue.handle)>>>(s);
    check_cuda(op, cudaGetLastError(), "scanning");
  });
}
}  // namespace

#define CORE_SELECTIVE_SCAN(name, T)                                                                                                    \
  void name(core::Tensor<const T, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A, core::Tensor<const T, 4> B, \
            core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<T, 3> out,              \
            core::Tensor<float, 3> last_state, core::Stream stream) {                                                                   \
    scan_on(u, delta, A, B, C, initial_state, out, last_state, stream);                                                                 \
  }
CORE_SELECTIVE_SCAN(selective_scan_fp32, float)
CORE_SELECTIVE_SCAN(selective_scan_fp16, core::float16)
CORE_SELECTIVE_SCAN(selective_scan_bf16, core::bfloat16)
#undef CORE_SELECTIVE_SCAN
}  // namespace core_llm_efficiency
