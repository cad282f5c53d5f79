// The gradients of Mamba-2's scan on CUDA.
#include <algorithm>

#include "ssd_gradients.cuh"

namespace core_llm_efficiency {
namespace {
using namespace ssd;

constexpr const char* op = "ssd_scan_backward";

template <class Kernel, class... Args>
void launch(Kernel kernel, std::int64_t blocks, int threads, int bytes, cudaStream_t stream, const char* what, Args... args) {
  if (blocks > INT32_MAX) refuse(op, "x", "of fewer batches, heads and steps on CUDA");
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), stream>>>(args...);
  check_cuda(op, cudaGetLastError(), what);
}

/// The gradients of some pairs of batch and group at a time, so that what is stored stays below a gigabyte or so.
template <int States16, bool Exact, class Finish>
void run(Backward g, std::int64_t batch, int device, cudaStream_t stream, Finish finish) {
  using L = Layout<States16, Exact>;
  using Element = typename L::Element;
  const Scan& s = g.scan;
  const char* what = "ssd_scan_backward: scratch";
  const std::int64_t pairs = batch * g.groups, places = core::checked_mul(s.share, g.chunks, what),
                     of_pair = core::checked_mul(places, s.slices * L::of_slice, what), most = std::int64_t{1} << 29;
  const std::int64_t at_once =
      std::clamp<std::int64_t>(most / std::max<std::int64_t>(1, of_pair * std::int64_t{sizeof(Element)}), 1, pairs);
  const std::int64_t stored = core::checked_mul(of_pair, at_once * std::int64_t{sizeof(Element)}, what);
  const std::int64_t floats = core::checked_mul(places, at_once, what) + core::checked_mul(batch * s.heads, g.chunks, what);
  const DeviceScratch scratch(op, device, stream, core::checked_mul(stored, 2, what) + 4 * floats);
  auto* const memory = scratch.template get<char>();
  g.before = memory, g.after = memory + stored;
  g.whole = reinterpret_cast<float*>(memory + 2 * stored), g.of_A = g.whole + places * at_once;
  for (std::int64_t first = 0; first < pairs; first += at_once) {
    const std::int64_t count = std::min(at_once, pairs - first), heads = count * s.share, all = heads * s.slices * L::of_slice;
    g.first = static_cast<int>(first);
    for (const bool gradient : {false, true})
      if (g.chunks)
        launch(&write_states<States16, Exact>, heads * s.slices * g.chunks, L::threads, L::of_states, stream, "writing states", g,
               gradient);
    launch(&pass_states<Element, false>, ceil_div(all, 512), 256, 0, stream, "passing states", g, L::states, all);
    launch(&pass_states<Element, true>, ceil_div(all, 512), 256, 0, stream, "passing gradients", g, L::states, all);
    if (g.chunks) launch(&find_gradients<States16, Exact>, count * g.chunks, L::threads, L::of_gradients, stream, "finding gradients", g);
  }
  finish(g.of_A);
}

template <class T>
void back_on(core::Tensor<const T, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A, core::Tensor<const T, 4> B,
             core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 4>> initial,
             std::optional<core::Tensor<const std::int32_t, 2>> seq, core::Tensor<const T, 4> grad_out,
             std::optional<core::Tensor<const float, 4>> grad_final, core::Tensor<T, 4> grad_x, core::Tensor<float, 3> grad_dt,
             core::Tensor<float, 1> grad_A, core::Tensor<T, 4> grad_B, core::Tensor<T, 4> grad_C, core::Tensor<float, 4> grad_initial,
             core::Stream queue) {
  constexpr bool exact = !std::is_same_v<T, core::bfloat16>;
  const auto [batch, steps, heads, p] = x.shape;
  const std::int64_t groups = B.shape[2], n = B.shape[3];
  Backward g{};
  g.scan = describe(op, x, dt, A, B, C, initial, seq);
  const OnDevice on(op, x.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  g.grad_out = steps_of(grad_out), g.grad_x = steps_of(grad_x), g.grad_B = steps_of(grad_B), g.grad_C = steps_of(grad_C);
  if (grad_final) g.grad_final = states_of(*grad_final);
  g.grad_initial = states_of(grad_initial);
  g.grad_dt = grad_dt.data, g.grad_dt_batch = grad_dt.stride[0], g.grad_dt_step = grad_dt.stride[1], g.grad_dt_head = grad_dt.stride[2];
  g.chunks = static_cast<int>(ceil_div(steps, chunk)), g.groups = static_cast<int>(groups);
  g.scan.slices = static_cast<int>(std::max<std::int64_t>(1, ceil_div(p, slice)));
  const auto finish = [&](const float* parts) {
    if (heads == 0) return;
    sum_A<<<static_cast<unsigned>(heads), 32, 0, stream>>>(parts, static_cast<int>(batch), static_cast<int>(heads), g.chunks, grad_A.data,
                                                           grad_A.stride[0]);
    check_cuda(op, cudaGetLastError(), "summing");
  };
  if (batch == 0 || heads == 0) return finish(nullptr);
  const auto go = [&]<int States16>(std::integral_constant<int, States16>) {
    if constexpr (!exact || States16 < 16) run<States16, exact>(g, batch, x.device_id, stream, finish);
  };
  if (n <= 64) return go(std::integral_constant<int, 4>{});
  if (n <= 128) return go(std::integral_constant<int, 8>{});
  go(std::integral_constant<int, 16>{});
}
/// Columns [first, first + count) of an operand.
template <class T, int N>
core::Tensor<T, N> columns_of(core::Tensor<T, N> x, std::int64_t first, std::int64_t count) {
  x.data += x.data ? first * x.stride[N - 1] : 0;
  x.shape[N - 1] = count;
  return x;
}
template <class T>
auto columns_of(const std::optional<T>& x, std::int64_t first, std::int64_t count) {
  return x ? std::optional(columns_of(*x, first, count)) : x;
}

template <class T>
__global__ void __launch_bounds__(256) add_to(core::Tensor<T, 4> to, const element<T>* from, std::int64_t all) {
  const std::int64_t i = blockIdx.x * std::int64_t{256} + threadIdx.x;
  if (i >= all) return;
  std::int64_t rest = i, at = 0;
#pragma unroll
  for (int d = 3; d >= 0; --d) at += rest % to.shape[d] * to.stride[d], rest /= to.shape[d];
  auto& y = reinterpret_cast<element<T>*>(to.data)[at];
  y = element<T>(number(y) + number(from[i]));
}

constexpr std::int64_t exact_states = 128;  // of which shared memory holds two parts

/// Of more states, in two halves: the gradients are linear in the scores, which are sums over states.
template <class T>
void back_in_parts(core::Tensor<const T, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A, core::Tensor<const T, 4> B,
                   core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 4>> initial,
                   std::optional<core::Tensor<const std::int32_t, 2>> seq, core::Tensor<const T, 4> grad_out,
                   std::optional<core::Tensor<const float, 4>> grad_final, core::Tensor<T, 4> grad_x, core::Tensor<float, 3> grad_dt,
                   core::Tensor<float, 1> grad_A, core::Tensor<T, 4> grad_B, core::Tensor<T, 4> grad_C, core::Tensor<float, 4> grad_initial,
                   core::Stream queue) {
  const auto [batch, steps, heads, p] = x.shape;
  const std::int64_t n = B.shape[3];
  const auto on_part = [&](std::int64_t first, std::int64_t count, core::Tensor<T, 4> of_x, core::Tensor<float, 3> of_dt,
                           core::Tensor<float, 1> of_A) {
    const auto part = [&](const auto& m) { return columns_of(m, first, count); };
    back_on(x, dt, A, part(B), part(C), part(initial), seq, grad_out, part(grad_final), of_x, of_dt, of_A, part(grad_B), part(grad_C),
            part(grad_initial), queue);
  };
  if (std::is_same_v<T, core::bfloat16> || n <= exact_states) return on_part(0, n, grad_x, grad_dt, grad_A);
  const OnDevice on(op, x.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const std::int64_t of_dt = batch * steps * heads, of_x = of_dt * p;
  const DeviceScratch scratch(op, x.device_id, stream, 4 * (of_dt + heads) + std::int64_t{sizeof(T)} * of_x);
  auto* const memory = scratch.template get<float>();
  auto more_dt = core::tensor(memory, batch, steps, heads);
  auto more_A = core::tensor(memory + of_dt, heads);
  auto more_x = core::tensor(reinterpret_cast<T*>(memory + of_dt + heads), batch, steps, heads, p);
  on_part(0, exact_states, grad_x, grad_dt, grad_A);
  on_part(exact_states, n - exact_states, more_x, more_dt, more_A);
  const auto add = [&]<class E>(core::Tensor<E, 4> to, const E* from) {
    const std::int64_t all = to.numel();
    if (all) add_to<E><<<static_cast<unsigned>(ceil_div(all, 256)), 256, 0, stream>>>(to, reinterpret_cast<const element<E>*>(from), all);
    check_cuda(op, cudaGetLastError(), "adding");
  };
  const auto wide = [](float* data, std::array<std::int64_t, 4> shape, std::array<std::int64_t, 4> stride) {
    return core::Tensor<float, 4>{data, shape, stride};
  };
  add(grad_x, static_cast<const T*>(more_x.data));
  add(wide(grad_dt.data, {batch, steps, heads, 1}, {grad_dt.stride[0], grad_dt.stride[1], grad_dt.stride[2], 1}),
      static_cast<const float*>(more_dt.data));
  add(wide(grad_A.data, {1, 1, heads, 1}, {0, 0, grad_A.stride[0], 1}), static_cast<const float*>(more_A.data));
}
}  // namespace

#define CORE_SSD_SCAN_BACKWARD(name, T)                                                                                               \
  void name(core::Tensor<const T, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A, core::Tensor<const T, 4> B,  \
            core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 4>> initial_states,                                   \
            std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<const T, 4> grad_out,                            \
            std::optional<core::Tensor<const float, 4>> grad_final_states, core::Tensor<T, 4> grad_x, core::Tensor<float, 3> grad_dt, \
            core::Tensor<float, 1> grad_A, core::Tensor<T, 4> grad_B, core::Tensor<T, 4> grad_C,                                      \
            core::Tensor<float, 4> grad_initial_states, core::Stream stream) {                                                        \
    back_in_parts(x, dt, A, B, C, initial_states, seq_idx, grad_out, grad_final_states, grad_x, grad_dt, grad_A, grad_B, grad_C,      \
                  grad_initial_states, stream);                                                                                       \
  }
CORE_SSD_SCAN_BACKWARD(ssd_scan_backward_fp32, float)
CORE_SSD_SCAN_BACKWARD(ssd_scan_backward_fp16, core::float16)
CORE_SSD_SCAN_BACKWARD(ssd_scan_backward_bf16, core::bfloat16)
#undef CORE_SSD_SCAN_BACKWARD
}  // namespace core_llm_efficiency
