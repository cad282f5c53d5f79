// Mamba-1's scan on CUDA: four lanes a channel hold its states in registers and go through the steps, of which a tile at a
// time lies in shared memory while the next one is under way.
#include "operands.cuh"

namespace core_llm_efficiency {
namespace {
using namespace scan;
constexpr int threads = 128, lanes = 4, channels = threads / lanes, tile = 32;  // tile: steps
constexpr int pitch = tile + 1, each = channels * tile / threads;               // each: numbers of a tile that a thread brings

struct Scan {
  const void *u, *B, *C;
  void* out;
  Kind kind;
  std::int64_t u_batch, u_channel, u_step, out_batch, out_channel, out_step;
  const float *delta, *A, *initial;
  std::int64_t delta_batch, delta_channel, delta_step, A_channel, A_state, initial_batch, initial_channel, initial_state;
  std::int64_t B_batch, B_group, B_state, B_step, C_batch, C_group, C_state, C_step;
  float* last;
  std::int64_t last_batch, last_channel, last_state;
  int steps, groups, share, n, blocks;  // share: channels of a group; blocks: thread blocks of a group
};

/// States: of a lane.
template <int States>
__global__ void __launch_bounds__(threads) scan_channels(const __grid_constant__ Scan s) {
  constexpr int width = States * lanes;
  __shared__ float u[channels * pitch], delta[channels * pitch], y[channels * pitch];
  extern __shared__ __align__(16) float shared[];  // B, then C: [step][state]
  float *const B = shared, *const C = shared + tile * width;
  const int thread = static_cast<int>(threadIdx.x), channel = thread / lanes, lane = thread % lanes;
  const int g = static_cast<int>(blockIdx.x) / s.blocks % s.groups;
  const std::int64_t b = blockIdx.x / s.blocks / s.groups;
  const int first = static_cast<int>(blockIdx.x) % s.blocks * channels, count = min(channels, s.share - first);
  const std::int64_t d = std::int64_t{g} * s.share + first;  // of the first channel
  float next_u[each], next_delta[each], next_B[States], next_C[States];
  const auto bring = [&](int step) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = thread + i * threads, c = at / tile, t = step + at % tile;
      const bool inside = c < count && t < s.steps;
      next_u[i] = inside ? load(s.u, b * s.u_batch + (d + c) * s.u_channel + t * s.u_step, s.kind) : 0.f;
      next_delta[i] = inside ? s.delta[b * s.delta_batch + (d + c) * s.delta_channel + t * s.delta_step] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < States; ++i) {
      const int at = thread + i * threads, j = at / tile, t = step + at % tile;
      const bool inside = j < s.n && t < s.steps;
      next_B[i] = inside ? load(s.B, b * s.B_batch + g * s.B_group + j * s.B_state + t * s.B_step, s.kind) : 0.f;
      next_C[i] = inside ? load(s.C, b * s.C_batch + g * s.C_group + j * s.C_state + t * s.C_step, s.kind) : 0.f;
    }
  };
  float A[States], h[States];
#pragma unroll
  for (int i = 0; i < States; ++i) {
    const int j = lane * States + i;
    const bool inside = channel < count && j < s.n;
    A[i] = inside ? s.A[(d + channel) * s.A_channel + j * s.A_state] * log2_e : 0.f;
    h[i] = inside && s.initial ? s.initial[b * s.initial_batch + (d + channel) * s.initial_channel + j * s.initial_state] : 0.f;
  }
  bring(0);
  for (int step = 0; step < s.steps; step += tile) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = thread + i * threads;
      u[at / tile * pitch + at % tile] = next_u[i], delta[at / tile * pitch + at % tile] = next_delta[i];
    }
#pragma unroll
    for (int i = 0; i < States; ++i) {
      const int at = thread + i * threads;
      B[at % tile * width + at / tile] = next_B[i], C[at % tile * width + at / tile] = next_C[i];
    }
    __syncthreads();
    if (step + tile < s.steps) bring(step + tile);
#pragma unroll 4
    for (int t = 0; t < tile; ++t) {  // past the last step delta and u are zero and the state stays
      const float dt = delta[channel * pitch + t], x = dt * u[channel * pitch + t];
      const float *const of_B = B + t * width + lane * States, *const of_C = C + t * width + lane * States;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < States; i += 4) {
        const float4 in = *reinterpret_cast<const float4*>(of_B + i), out = *reinterpret_cast<const float4*>(of_C + i);
        h[i] = exp2_fast(dt * A[i]) * h[i] + x * in.x, sum += out.x * h[i];
        h[i + 1] = exp2_fast(dt * A[i + 1]) * h[i + 1] + x * in.y, sum += out.y * h[i + 1];
        h[i + 2] = exp2_fast(dt * A[i + 2]) * h[i + 2] + x * in.z, sum += out.z * h[i + 2];
        h[i + 3] = exp2_fast(dt * A[i + 3]) * h[i + 3] + x * in.w, sum += out.w * h[i + 3];
      }
      sum = quad_sum(sum);
      if (lane == 0) y[channel * pitch + t] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = thread + i * threads, c = at / tile, t = step + at % tile;
      if (c < count && t < s.steps)
        store(s.out, b * s.out_batch + (d + c) * s.out_channel + t * s.out_step, s.kind, y[c * pitch + at % tile]);
    }
  }
#pragma unroll
  for (int i = 0; i < States; ++i)
    if (const int j = lane * States + i; channel < count && j < s.n)
      s.last[b * s.last_batch + (d + channel) * s.last_channel + j * s.last_state] = h[i];
}

template <int States>
void launch(const Scan& s, std::int64_t blocks, cudaStream_t stream) {
  constexpr int bytes = 2 * tile * States * lanes * 4;
  const char* op = "selective_scan";
  check_cuda(op, cudaFuncSetAttribute(scan_channels<States>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory");
  scan_channels<States><<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(s);
  check_cuda(op, cudaGetLastError(), "scanning");
}

template <class T>
void scan_on(core::Tensor<const T, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A, core::Tensor<const T, 4> B,
             core::Tensor<const T, 4> C, std::optional<core::Tensor<const float, 3>> initial, core::Tensor<T, 3> out,
             core::Tensor<float, 3> last, core::Stream queue) {
  const char* op = "selective_scan";
  const auto [batch, width, steps] = u.shape;
  const std::int64_t groups = B.shape[1], n = A.shape[1];
  check_groups(op, "channels", width, groups);
  if (n > widest_state) refuse(op, "A", "of at most 256 states on CUDA, got " + std::to_string(n));
  if (steps > INT32_MAX / 2 || width > INT32_MAX / 2) refuse(op, "u", "of at most 2^30 channels and steps");
  if (batch == 0 || width == 0 || (steps == 0 && n == 0)) return;
  const OnDevice on(op, u.device_id);
  Scan s{};
  s.u = u.data, s.u_batch = u.stride[0], s.u_channel = u.stride[1], s.u_step = u.stride[2], s.kind = kind_of<T>;
  s.delta = delta.data, s.delta_batch = delta.stride[0], s.delta_channel = delta.stride[1], s.delta_step = delta.stride[2];
  s.A = A.data, s.A_channel = A.stride[0], s.A_state = A.stride[1];
  s.B = B.data, s.B_batch = B.stride[0], s.B_group = B.stride[1], s.B_state = B.stride[2], s.B_step = B.stride[3];
  s.C = C.data, s.C_batch = C.stride[0], s.C_group = C.stride[1], s.C_state = C.stride[2], s.C_step = C.stride[3];
  if (initial)
    s.initial = initial->data, s.initial_batch = initial->stride[0], s.initial_channel = initial->stride[1],
    s.initial_state = initial->stride[2];
  s.out = out.data, s.out_batch = out.stride[0], s.out_channel = out.stride[1], s.out_step = out.stride[2];
  s.last = last.data, s.last_batch = last.stride[0], s.last_channel = last.stride[1], s.last_state = last.stride[2];
  s.steps = static_cast<int>(steps), s.groups = static_cast<int>(groups), s.share = static_cast<int>(width / groups);
  s.n = static_cast<int>(n), s.blocks = static_cast<int>(ceil_div(s.share, channels));
  const std::int64_t blocks = batch * groups * s.blocks;
  if (blocks > INT32_MAX) refuse(op, "u", "of fewer batches and channels on CUDA");
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  if (n <= 16) return launch<4>(s, blocks, stream);
  if (n <= 64) return launch<16>(s, blocks, stream);
  launch<64>(s, blocks, stream);
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
