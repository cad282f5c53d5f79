// What the kernels of Mamba-2's scan on CUDA share: chunks of 64 steps, whose products run on the tensor cores in bfloat16.
// Operands of other types, and what is computed from them, are two bfloat16 numbers each, and three products stand for one.
#pragma once
#include "operands.cuh"

namespace core_llm_efficiency::ssd {
using namespace scan;
constexpr int chunk = 64;
using Bf16 = __nv_bfloat16;

/// An operand [batch, step, head or group, column].
struct Steps {
  void* data;
  std::int64_t batch, step, head, col;
  bool flat;  // rows are contiguous bfloat16 and start at multiples of 16 bytes
};
/// States [batch, head, channel, state]; data may be null.
struct States {
  float* data;
  std::int64_t batch, head, row, col;
};

struct Scan {
  Steps x, B, C, out;
  Kind kind;
  const float *dt, *A;
  std::int64_t dt_batch, dt_step, dt_head, A_head;
  States initial, final;
  const std::int32_t* seq;
  std::int64_t seq_batch, seq_step;
  int batch, steps, heads, share, p, n, slices, buffers;
};

__device__ inline void copy_piece(void* to, const void* from, bool inside) {  // 16 bytes, or zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void wait_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

/// A matrix of bfloat16 in shared memory, with what rounding took away behind it.
struct Pair {
  Bf16* high;
  Bf16* low;
};

/// The parts of a number.
__device__ inline void split(float x, Bf16& high, Bf16& low) {
  high = __float2bfloat16_rn(x);
  low = __float2bfloat16_rn(x - __bfloat162float(high));
}
__device__ inline float low_half(std::uint32_t x) { return __uint_as_float(x << 16); }
__device__ inline float high_half(std::uint32_t x) { return __uint_as_float(x & 0xffff0000u); }

/// Two floats as bfloat16, and what that rounding took away.
__device__ inline void split(float x, float y, std::uint32_t& high, std::uint32_t& low) {
  high = pack<Bf16>(x, y);
  low = pack<Bf16>(x - low_half(high), y - high_half(high));
}

template <bool Exact>
struct Fragment {
  std::uint32_t high[4], low[Exact ? 4 : 1];
};
template <bool Exact, bool Turned>
__device__ inline void load_fragment(Fragment<Exact>& f, const Pair& m, int at) {
  const auto read = [](std::uint32_t (&r)[4], const Bf16* from) {
    if constexpr (Turned)
      load_matrices_transposed(r, from);
    else
      load_matrices(r, from);
  };
  read(f.high, m.high + at);
  if constexpr (Exact) read(f.low, m.low + at);
}
/// c += a b; columns `half` of the two that b holds.
template <bool Exact>
__device__ inline void add_product(float (&c)[4], const Fragment<Exact>& a, const Fragment<Exact>& b, int half) {
  multiply_add<Bf16>(c, a.high, b.high[2 * half], b.high[2 * half + 1]);
  if constexpr (Exact) {
    multiply_add<Bf16>(c, a.high, b.low[2 * half], b.low[2 * half + 1]);
    multiply_add<Bf16>(c, a.low, b.high[2 * half], b.high[2 * half + 1]);
  }
}

/// A chunk's decays: sum, the running sum of dt A in powers of two; begin, the first step of the step's sequence, or -1.
struct Decays {
  float dt[chunk], sum[chunk];
  int begin[chunk];
};

/// A chunk of an operand's rows, `width` columns from `first` on, to shared memory; zero beyond.
template <int Width, int Pad, bool Exact>
__device__ void fetch(const Pair& to, const Steps& m, Kind kind, int b, int h, int step, int steps, int first, int end) {
  const std::int64_t base = b * m.batch + h * m.head;
  if (!Exact && m.flat) {
    constexpr int pieces = Width / 8;
    for (int i = static_cast<int>(threadIdx.x); i < chunk * pieces; i += static_cast<int>(blockDim.x)) {
      const int r = i / pieces, c = i % pieces * 8;
      const bool inside = step + r < steps && first + c < end;
      const Bf16* from = static_cast<const Bf16*>(m.data) + (inside ? base + (step + r) * m.step + first + c : 0);
      copy_piece(to.high + r * Pad + c, from, inside);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < chunk * Width; i += static_cast<int>(blockDim.x)) {
    const int r = i / Width, c = i % Width;
    const bool inside = step + r < steps && first + c < end;
    const float x = inside ? load(m.data, base + (step + r) * m.step + (first + c) * m.col, kind) : 0.f;
    if constexpr (Exact)
      split(x, to.high[r * Pad + c], to.low[r * Pad + c]);
    else
      to.high[r * Pad + c] = __float2bfloat16_rn(x);
  }
}

/// What a chunk's decays are found from, two steps a lane; of step 2 lane + i whether a sequence begins there.
struct DecayInputs {
  float dt[2];
  bool begins[2];
  __device__ void read(const Scan& s, int b, int h, int step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = step + 2 * (static_cast<int>(threadIdx.x) % 32) + i;
      dt[i] = at < s.steps ? s.dt[b * s.dt_batch + at * s.dt_step + h * s.dt_head] : 0.f;
      const std::int32_t* seq = s.seq + b * s.seq_batch;
      begins[i] = s.seq && at > 0 && at < s.steps && seq[at * s.seq_step] != seq[(at - 1) * s.seq_step];
    }
  }
};

/// One warp: the decays of a chunk.
__device__ inline void find_decays(const Scan& s, int h, const DecayInputs& in, Decays& d) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float A = s.A[h * s.A_head] * log2_e;
  const int begin[2] = {in.begins[0] ? 2 * lane : -1, in.begins[1] ? 2 * lane + 1 : -1};
  float sum = (in.dt[0] + in.dt[1]) * A;
  int last = max(begin[0], begin[1]);
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const float before = __shfl_up_sync(~0u, sum, o);
    const int earlier = __shfl_up_sync(~0u, last, o);
    if (lane >= o) sum += before, last = max(last, earlier);
  }
  const float before = __shfl_up_sync(~0u, sum, 1);
  const int earlier = __shfl_up_sync(~0u, last, 1);
  const float base = lane ? before : 0.f;
  d.dt[2 * lane] = in.dt[0], d.dt[2 * lane + 1] = in.dt[1];
  d.sum[2 * lane] = base + in.dt[0] * A, d.sum[2 * lane + 1] = sum;
  d.begin[2 * lane] = max(lane ? earlier : -1, begin[0]), d.begin[2 * lane + 1] = last;
}
__device__ inline void find_decays(const Scan& s, int b, int h, int step, Decays& d) {
  DecayInputs in;
  in.read(s, b, h, step);
  find_decays(s, h, in, d);
}

template <class T>
Steps steps_of(const core::Tensor<T, 4>& x) {
  using Element = std::remove_const_t<T>;
  const auto& s = x.stride;
  const bool flat = std::is_same_v<Element, core::bfloat16> && s[3] == 1 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
                    s[0] % 8 == 0 && s[1] % 8 == 0 && s[2] % 8 == 0 && x.shape[3] % 8 == 0;
  return {const_cast<Element*>(x.data), s[0], s[1], s[2], s[3], flat};
}
template <class T>
States states_of(const core::Tensor<T, 4>& x) {
  return {const_cast<float*>(x.data), x.stride[0], x.stride[1], x.stride[2], x.stride[3]};
}

/// The operands that forward and backward share.
template <class T>
Scan describe(const char* op, const core::Tensor<const T, 4>& x, const core::Tensor<const float, 3>& dt,
              const core::Tensor<const float, 1>& A, const core::Tensor<const T, 4>& B, const core::Tensor<const T, 4>& C,
              const std::optional<core::Tensor<const float, 4>>& initial, const std::optional<core::Tensor<const std::int32_t, 2>>& seq) {
  const auto [batch, steps, heads, p] = x.shape;
  const std::int64_t groups = B.shape[2], n = B.shape[3];
  check_ssd(op, heads, groups, p, n);
  if (steps > INT32_MAX / 2 || heads > INT32_MAX / 2 || batch > INT32_MAX / 2) refuse(op, "x", "of at most 2^30 steps, heads and batches");
  Scan s{};
  s.x = steps_of(x), s.B = steps_of(B), s.C = steps_of(C), s.kind = kind_of<T>;
  s.dt = dt.data, s.dt_batch = dt.stride[0], s.dt_step = dt.stride[1], s.dt_head = dt.stride[2], s.A = A.data, s.A_head = A.stride[0];
  if (initial) s.initial = states_of(*initial);
  if (seq) s.seq = seq->data, s.seq_batch = seq->stride[0], s.seq_step = seq->stride[1];
  s.batch = static_cast<int>(batch), s.steps = static_cast<int>(steps), s.heads = static_cast<int>(heads),
  s.share = groups ? static_cast<int>(heads / groups) : 0;
  s.p = static_cast<int>(p), s.n = static_cast<int>(n);
  return s;
}
}  // namespace core_llm_efficiency::ssd
