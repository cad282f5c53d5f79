// Attention over packed keys and values on CUDA: thread blocks share the tokens of a warps query heads, warps take blocks of
// 32 tokens each with a softmax of its own, and what they found is merged in a fixed order.
#include <algorithm>

#include "decode_fixed.cuh"
#include "decode_recent.cuh"

namespace core_llm_efficiency {
namespace {
using namespace decode;

/// How packed keys and values, and the query, come to a thread block whatever the sizes; a warp takes the blocks [first, last).
template <class Digits>
class AnyFeed {
 public:
  struct Shared {
    alignas(16) float2 bases[warps][16][tile_heads];
    Sources sources;
  };
  __device__ AnyFeed(const Operands& p, const Values& v, const Unit& u, const Lane& l, const Any& s, int first, int last, Shared& shared)
      : p_(p),
        v_(v),
        u_(u),
        s_(s),
        at_(s.wide, s.signs, s.width, s.e, std::is_same_v<Digits, TwoBits>, false),
        l_(l),
        first_(first),
        last_(last),
        shared_(shared) {
    if (threadIdx.x == 0) shared.sources.find(p, v, u.b, u.g);
    __syncthreads();
  }

  __device__ void bring(int block, char* stage) const { fetch(p_, v_, shared_.sources, s_, at_, block, stage, l_.lane); }

  __device__ void query(Prepared& q) const {
    if (const int run = (v_.first + first_ + l_.lane) >> p_.run; s_.flat && l_.lane < 16 && first_ + l_.lane < last_) {  // for `bases`
      const auto soon = [](const __half* row) { asm volatile("prefetch.global.L2 [%0];" ::"l"(row)); };
      for (int x = 0; x < s_.c; x += 64) soon(p_.zeros.at(u_.b, u_.g, run) + x);
      for (int x = 0; x < s_.d; x += 64) soon(p_.scales.at(u_.b, u_.g, run) + x);
    }
    fetch_query<warps>(p_.prepared[u_.tile], s_.wide + s_.signs, q);
  }

  __device__ void bases(const Prepared& q, const char*, int block, float (&every)[2], float (&last)[2]) const {
    auto* const base = shared_.bases[threadIdx.x / 32];
    const int i = (block - first_) % 16;
    if (i == 0) find_bases(l_, p_, s_, q, u_.b, u_.g, v_.first + block, v_.first + last_, base);
    const float4 x = *reinterpret_cast<const float4*>(&base[i][l_.head()]);
    every[0] = x.x, last[0] = x.y, every[1] = x.z, last[1] = x.w;
  }

 private:
  const Operands& p_;
  const Values& v_;
  const Unit& u_;
  const Any& s_;
  const Stage at_;
  const Lane& l_;
  int first_, last_;
  Shared& shared_;
};
template <class Digits, class Shape>
using Feed = std::conditional_t<Shape::known, FixedFeed<Digits, Shape>, AnyFeed<Digits>>;

/// What a thread block's warps keep beside the query: the largest logit and the sum of weights, of a warp and of all.
struct Kept {
  float2 tops[warps][tile_heads], whole[tile_heads];
};

/// Packed tokens whose values are of one kind: blocks [begin, end) of them.
template <class Digits, class Shape, bool Exact>
__device__ void attend_packed(const Operands& p, const Values& v, const Unit& u, int begin, int end, Prepared& q, Kept& kept,
                              typename Feed<Digits, Shape>::Shared& fed, char* shared, const Found& found) {
  constexpr int threads = 32 * warps;
  const Shape s(p, v);
  const Lane l;
  const int warp = static_cast<int>(threadIdx.x) / 32, each = (end - begin + warps - 1) / warps, set = Shape::known ? 0 : u.set;
  const int first = min(begin + warp * each, end), last = min(first + each, end);
  const Stage at(s.wide, s.signs, s.width, s.e, std::is_same_v<Digits, TwoBits>, Shape::known);
  char* const ring = shared + warp * stages * at.bytes;
  const auto stage_of = [&](int i) { return ring + static_cast<unsigned>(i - first) % stages * at.bytes; };
  const Feed<Digits, Shape> feed(p, v, u, l, s, first, last, fed);
  const auto bring = [&](int i) {
    if (i < last) feed.bring(i, stage_of(i));
    commit();
  };
#pragma unroll 1
  for (int i = 0; i < stages; ++i) bring(first + i);
  feed.query(q);
  __syncthreads();
  const KeyProduct<Shape, Exact> product(l, s, q);
  const float factor[2] = {q.factor[l.head()], q.factor[l.head() + 1]};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, out[Digits::planes][4] = {};
#pragma unroll 1
  for (int i = first; i < last; ++i) {
    wait_copies<stages - 1>();
    __syncwarp();
    const char* const stage = stage_of(i);
    bool seen[2] = {true, true};
    if (p.seen) {
      const bool* from = p.seen + u.b * p.seen_row + (std::int64_t{v.first + i} * 32 + l.row + 16 * l.half()) * p.seen_col;
      seen[0] = from[0], seen[1] = from[8 * p.seen_col];
    }
    float x[4], base[2], more[2];
    product(stage, reinterpret_cast<const __half*>(stage + at.scales), x);
    feed.bases(q, stage, i, base, more);
    bool higher = false;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x[k] += k / 2 && l.last ? base[k % 2] + more[k % 2] : base[k % 2];
      x[k] = seen[k / 2] ? x[k] * factor[k % 2] : -INFINITY;
      higher |= x[k] > top[k % 2] + 8;  // float16 holds weights up to 2^15
    }
    if (__any_sync(~0u, higher)) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        float now = fmaxf(top[k], fmaxf(x[k], x[k + 2]));
#pragma unroll
        for (int o = 2; o < 32; o *= 2) now = fmaxf(now, __shfl_xor_sync(~0u, now, o));
        const float keep = top[k] == now ? 1.f : exp2_fast(top[k] - now);
        top[k] = now, sum[k] *= keep;
#pragma unroll
        for (int d = 0; d < Digits::planes; ++d) out[d][k] *= keep, out[d][k + 2] *= keep;
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x[k] = exp2_fast(x[k] - (top[k % 2] == -INFINITY ? 0.f : top[k % 2]));
      sum[k % 2] += x[k];
    }
    std::uint32_t high[2], low[2] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      high[k] = pack<__half>(x[2 * k], x[2 * k + 1]);
      if constexpr (Exact) {
        const float2 y = __half22float2(halves(high[k]));
        low[k] = pack<__half>(x[2 * k] - y.x, x[2 * k + 1] - y.y);
      }
    }
    Digits::template add<Exact>(l, s.width, at, stage, set, high, low, out);
    __syncwarp();
    bring(i + stages);
  }
  wait_copies<0>();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int o = 2; o < 32; o *= 2) sum[k] += __shfl_xor_sync(~0u, sum[k], o);
    if (l.lane < 2) kept.tops[warp][l.head() + k] = {top[k], sum[k]};
  }
  __syncthreads();
  if (warp < tile_heads) {
    const float2 mine = l.lane < warps ? kept.tops[l.lane][warp] : float2{-INFINITY, 0.f};
    float most = mine.x;
    for (int o = 16; o; o /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, o));
    float total = mine.x == -INFINITY ? mine.y : mine.y * exp2_fast(mine.x - most);
    for (int o = 16; o; o /= 2) total += __shfl_xor_sync(~0u, total, o);
    if (l.lane == 0) kept.whole[warp] = {most, total};
  }
  __syncthreads();
  auto* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int h = l.head() + k % 2, w = set * tile_bytes + 2 * (l.row + k / 2 * 8) + l.half();
    const float keep = (top[k % 2] == -INFINITY ? 1.f : exp2_fast(top[k % 2] - kept.whole[h].x)) / Digits::template unit<Exact>;
#pragma unroll
    for (int d = 0; d < Digits::planes; ++d)
      if (const int x = w + d * s.width; w < s.width && x < s.e) sums[(warp * tile_heads + h) * s.e + x] = out[d][k] * keep;
  }
  __syncthreads();
  if (set == 0 && threadIdx.x < static_cast<unsigned>(u.count)) found.tops[threadIdx.x * found.tops_step] = kept.whole[threadIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < u.count * s.e; i += threads) {
    const int h = i / s.e, x = i % s.e;
    if (x % s.width / tile_bytes != set) continue;
    float sum_of_warps = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum_of_warps += sums[(w * tile_heads + h) * s.e + x];
    found.parts[h * found.parts_step + x] = sum_of_warps;
  }
}

/// Three levels: after the recent tokens' thread blocks. Two bits: none but its own.
template <class Digits, class Shape, bool Exact>
__global__ void __launch_bounds__(32 * warps, 2) attend(const __grid_constant__ Operands p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ alignas(16) Prepared q;
  __shared__ Kept kept;
  __shared__ typename Feed<Digits, Shape>::Shared fed;
  let_next_start();
  constexpr bool two = std::is_same_v<Digits, TwoBits>;
  const Values& v = p.values[two ? 0 : 1];
  const int units = p.batch * p.groups * p.tiles * p.sets, part = static_cast<int>(blockIdx.x) / units;
  const Unit u(p, static_cast<int>(blockIdx.x) % units);
  if (!two && part < p.recent_splits) {
    if (u.set == 0) attend_recent<warps>(p, u, part, Found(p, u, part));
    return wait_for_last();  // whoever waits for this kernel waits for those before it
  }
  const int own = two ? part : part - p.recent_splits, begin = own * p.per_split;
  attend_packed<Digits, Shape, Exact>(p, v, u, begin, min(begin + p.per_split, v.blocks), q, kept, fed, shared,
                                      Found(p, u, p.recent_splits + (two ? 0 : p.values[0].splits) + own));
  if constexpr (Shape::known) wait_for_last();
}

/// Where `early`, beside the kernel before.
template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, int bytes, bool early, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization, attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(static_cast<unsigned>(threads)), config.stream = stream;
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes), config.attrs = &attribute, config.numAttrs = early ? 1 : 0;
  check_cuda("packed_attention", cudaLaunchKernelEx(&config, kernel, arguments...), "attending");
}

template <class Digits, class Shape, bool Exact>
void launch(const Operands& p, bool early, cudaStream_t stream) {
  const char* op = "packed_attention";
  constexpr bool two = std::is_same_v<Digits, TwoBits>;
  const Values& v = p.values[two ? 0 : 1];
  const int splits = v.splits + (two ? 0 : p.recent_splits);
  const std::int64_t blocks = std::int64_t{p.batch} * p.groups * p.tiles * p.sets * splits;
  if (blocks == 0) return;
  if (blocks > INT32_MAX) refuse(op, "q", "of fewer batches, heads and tokens on CUDA");
  const int bytes = std::max(warps * stages * Stage(p.wide, p.signs, v.width, p.e, two, Shape::known).bytes, warps * tile_heads * p.e * 4);
  check_cuda(op, cudaFuncSetAttribute(attend<Digits, Shape, Exact>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "asking for shared memory");
  launch_kernel(attend<Digits, Shape, Exact>, dim3(static_cast<unsigned>(blocks)), 32 * warps, bytes, early, stream, p);
}

/// Channels of the fixed shape that operands with such values are of, or 0.
template <bool Exact>
int fixed_channels(const Operands& p, const Values& v) {
  const bool fixed = !Exact && p.flat && v.flat && p.e == p.d && p.sets == 1 && p.wide == p.signs && (p.d == 64 || p.d == 128);
  return fixed ? p.d : 0;
}

template <class Digits, bool Exact>
void launch_any(const Operands& p, bool early, cudaStream_t stream) {
  const int fixed = fixed_channels<Exact>(p, p.values[std::is_same_v<Digits, TwoBits> ? 0 : 1]);
  if constexpr (!Exact) {
    if (fixed == 128) return launch<Digits, Fixed<64, 64, Digits::planes>, false>(p, early, stream);
    if (fixed == 64) return launch<Digits, Fixed<32, 32, Digits::planes>, false>(p, early, stream);
  }
  launch<Digits, Any, Exact>(p, early, stream);
}

bool aligned(const void* p, std::initializer_list<std::int64_t> bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 &&
         std::all_of(bytes.begin(), bytes.end(), [](std::int64_t x) { return x % 16 == 0; });
}
template <class T>
bool rows_aligned(const Array<T>& x) {
  constexpr std::int64_t size = sizeof(T);
  return x.col == 1 && x.row >= 0 && x.row <= UINT32_MAX / size && aligned(x.data, {x.batch * size, x.head * size, x.row * size});
}

Values values_of(const core::Tensor<const std::uint8_t, 4>& codes, const core::Tensor<const core::float16, 4>& scales,
                 const core::Tensor<const core::float16, 4>* zeros, int e, std::int64_t first) {
  Values v{array<std::uint8_t>(codes), array<__half>(scales), zeros ? array<__half>(*zeros) : Array<__half>{}, 0, 0, 0, 0, false};
  v.width = static_cast<int>(codes.shape[3]), v.first = static_cast<int>(first / word), v.blocks = static_cast<int>(codes.shape[2] / word);
  v.flat = v.codes.col == 1 && v.codes.row == v.width && aligned(v.codes.data, {v.codes.batch, v.codes.head}) && e % 8 == 0 &&
           rows_aligned(v.scales) && (!zeros || rows_aligned(v.zeros));
  return v;
}

template <class T>
void attention_on(core::Tensor<const T, 3> q, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                  core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                  core::Tensor<const core::float16, 4> zeros, core::Tensor<const std::uint8_t, 4> codes2,
                  core::Tensor<const core::float16, 4> scales2, core::Tensor<const core::float16, 4> zeros2,
                  core::Tensor<const std::uint8_t, 4> codes3, core::Tensor<const core::float16, 4> scales3,
                  core::Tensor<const T, 4> recent_k, core::Tensor<const T, 4> recent_v, std::optional<core::Tensor<const bool, 2>> seen,
                  double scale, core::Tensor<T, 3> out, core::Stream queue) {
  const char* op = "packed_attention";
  const auto [batch, heads, d] = q.shape;
  const std::int64_t groups = planes.shape[1], e = out.shape[2], two = codes2.shape[2], n = two + codes3.shape[2], c = zeros.shape[3];
  check_packed_attention(op, q, group, planes, scales, zeros, codes2, scales2, codes3, scales3, recent_k, seen, scale, e);
  if (d > most_channels || e > most_channels) refuse(op, "q", "of at most 256 channels on CUDA, and out");
  if (batch * heads > INT32_MAX / 1024 || n + recent_k.shape[2] > INT32_MAX / 2)
    refuse(op, "q", "of at most 2^21 batches and heads, and 2^30 tokens on CUDA");
  if (out.numel() == 0) return;
  const OnDevice on(op, q.device_id);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  constexpr bool exact = std::is_same_v<T, float>;

  Operands p{};
  p.q = q.data, p.q_batch = q.stride[0], p.q_head = q.stride[1], p.q_col = q.stride[2];
  p.recent_k = recent_k.data, p.recent_v = recent_v.data;
  std::copy(recent_k.stride.begin(), recent_k.stride.end(), p.rk);
  std::copy(recent_v.stride.begin(), recent_v.stride.end(), p.rv);
  p.kind = exact ? Kind::fp32 : std::is_same_v<T, core::float16> ? Kind::fp16 : Kind::bf16;
  p.channels = channels.data, p.channels_row = channels.stride[0], p.channels_col = channels.stride[1];
  p.planes = array<std::int32_t>(planes), p.scales = array<__half>(scales), p.zeros = array<__half>(zeros);
  if (seen) p.seen = seen->data, p.seen_row = seen->stride[0], p.seen_col = seen->stride[1];
  const auto small = [](std::int64_t x) { return static_cast<int>(x); };
  p.batch = small(batch), p.heads = small(heads), p.groups = small(groups), p.share = small(heads / groups);
  p.tiles = small(ceil_div(p.share, tile_heads)), p.d = small(d), p.e = small(e), p.c = small(c);
  p.wide = small(round_up(c, 16)), p.signs = small(round_up(d - c, 16)), p.run = group == 32 ? 0 : group == 64 ? 1 : 2, p.packed = small(n);
  p.recent = small(recent_k.shape[2]), p.recent_splits = small(ceil_div(p.recent, recent_tokens));
  p.flat = p.wide == c && p.signs == d - c && rows_aligned(p.planes) && rows_aligned(p.scales) && rows_aligned(p.zeros);
  p.values[0] = values_of(codes2, scales2, &zeros2, p.e, 0), p.values[1] = values_of(codes3, scales3, nullptr, p.e, two);
  p.sets = small(ceil_div(std::max(two ? p.values[0].width : 0, p.values[1].width), tile_bytes));
  p.scale = static_cast<float>(scale) * log2_e;

  int processors = 0;
  check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, q.device_id), "asking for the device");
  const std::int64_t units = batch * groups * p.tiles * p.sets, room = std::max<std::int64_t>(1, 2 * processors / units - p.recent_splits);
  p.per_split = small(round_up(std::max<std::int64_t>(1, ceil_div(n / word, room)), warps));
  p.splits = p.recent_splits;
  for (Values& v : p.values) p.splits += v.splits = small(ceil_div(v.blocks, p.per_split));
  using Out = std::conditional_t<exact, float, std::conditional_t<std::is_same_v<T, core::float16>, __half, __nv_bfloat16>>;
  const std::int64_t rows = batch * heads * p.splits, of_query = batch * groups * p.tiles;
  const DeviceScratch scratch(op, q.device_id, stream,
                              of_query * std::int64_t{sizeof(Prepared)} + core::checked_mul(rows, e + 2, "packed_attention: scratch") * 4);
  p.prepared = scratch.get<Prepared>(), p.tops = reinterpret_cast<float2*>(p.prepared + of_query);
  p.parts = reinterpret_cast<float*>(p.tops + rows);
  int major = 0;
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q.device_id), "asking for the device");
  const bool prepared = std::any_of(p.values, p.values + 2, [&](const Values& v) { return v.blocks && !fixed_channels<exact>(p, v); });
  if (prepared) launch_kernel(prepare, dim3(static_cast<unsigned>(of_query * tile_heads)), preparers, 0, false, stream, p);
  launch_any<TwoBits, exact>(p, major >= 9 && prepared, stream);
  launch_any<Ternary, exact>(p, major >= 9 && (prepared || two), stream);
  const dim3 merged(static_cast<unsigned>(batch * heads), static_cast<unsigned>(ceil_div(e, merged_channels)));
  launch_kernel(merge<Out>, merged, sharers * merged_channels, 0, major >= 9, stream, static_cast<const float2*>(p.tops),
                static_cast<const float*>(p.parts), p.splits, p.heads, p.e, reinterpret_cast<Out*>(out.data), out.stride[0], out.stride[1],
                out.stride[2]);
}
}  // namespace

#define CORE_PACKED_ATTENTION(name, T)                                                                                                   \
  void name(core::Tensor<const T, 3> q, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,                                \
            core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,                                     \
            core::Tensor<const core::float16, 4> zeros, core::Tensor<const std::uint8_t, 4> codes2,                                      \
            core::Tensor<const core::float16, 4> scales2, core::Tensor<const core::float16, 4> zeros2,                                   \
            core::Tensor<const std::uint8_t, 4> codes3, core::Tensor<const core::float16, 4> scales3, core::Tensor<const T, 4> recent_k, \
            core::Tensor<const T, 4> recent_v, std::optional<core::Tensor<const bool, 2>> seen, double scale, core::Tensor<T, 3> out,    \
            core::Stream stream) {                                                                                                       \
    attention_on(q, channels, group, planes, scales, zeros, codes2, scales2, zeros2, codes3, scales3, recent_k, recent_v, seen, scale,   \
                 out, stream);                                                                                                           \
  }
CORE_PACKED_ATTENTION(packed_attention_fp32, float)
CORE_PACKED_ATTENTION(packed_attention_fp16, core::float16)
CORE_PACKED_ATTENTION(packed_attention_bf16, core::bfloat16)
#undef CORE_PACKED_ATTENTION
}  // namespace core_llm_efficiency
