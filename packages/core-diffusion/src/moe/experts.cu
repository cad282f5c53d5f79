// The experts of a mixture on Hopper, in bfloat16: rows gathered for each expert, four kinds of grouped products, rows added up.
#include <core/cuda.hpp>
#include <core_diffusion/moe.hpp>

#include <algorithm>
#include <cstring>

#include "checks.hpp"
#include "grouped_gemm.cuh"

namespace core_diffusion {
namespace {
using core::bfloat16;
using core::Tensor;
using grouped::After;
using grouped::Arguments;
using grouped::Group;
using grouped::Side;
using std::int64_t;
using std::uint32_t;

constexpr int tile = grouped::tile_m;
constexpr int per_block = 256, warps = per_block / 32;

__device__ const __nv_bfloat16* native(const bfloat16* p) { return reinterpret_cast<const __nv_bfloat16*>(p); }
__device__ __nv_bfloat16* native(bfloat16* p) { return reinterpret_cast<__nv_bfloat16*>(p); }

/// starts[e]: the first tile of expert e's rows.
__global__ void find_starts(const int64_t* offsets, int experts, int* starts) {
  const int lane = threadIdx.x;
  int total = 0;
  if (lane == 0) starts[0] = 0;
  for (int base = 0; base < experts; base += 32) {
    const int e = base + lane;
    int tiles = e < experts ? static_cast<int>((offsets[e + 1] - offsets[e] + tile - 1) / tile) : 0;
    for (int i = 1; i < 32; i *= 2) {
      const int before = __shfl_up_sync(~0u, tiles, i);
      if (lane >= i) tiles += before;
    }
    if (e < experts) starts[e + 1] = total + tiles;
    total += __shfl_sync(~0u, tiles, 31);
  }
}

struct Route {
  const int64_t *tokens, *offsets;
  const bfloat16* gates;  // [T, E]
  const int* starts;
  int experts;
};

/// Rows of x, expert by expert, zeros to the end of each one's last tile. Optional: each row's gate, each pair's row.
__global__ void __launch_bounds__(per_block) gather(Route r, const bfloat16* x, int width, bfloat16* rows, float* gates, int* places) {
  const int lane = threadIdx.x % 32, last = __ldg(r.starts + r.experts) * tile;
  for (int row = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / 32; row < last;
       row += static_cast<int>(gridDim.x) * warps) {
    int low = 0, high = r.experts;  // the last expert that does not begin behind this row
    while (high - low > 1) (__ldg(r.starts + (low + high) / 2) <= row / tile ? low : high) = (low + high) / 2;
    const int64_t at = r.offsets[low] + row - __ldg(r.starts + low) * tile;
    const int64_t token = at < r.offsets[low + 1] ? r.tokens[at] : -1;
    if (lane == 0 && gates) gates[row] = token < 0 ? 0.f : __bfloat162float(native(r.gates)[token * r.experts + low]);
    if (lane == 0 && places && token >= 0) places[token * r.experts + low] = row;
    const auto* from = reinterpret_cast<const uint4*>(x + (token < 0 ? 0 : token) * width);
    auto* to = reinterpret_cast<uint4*>(rows + static_cast<int64_t>(row) * width);
    for (int i = lane; i < width / 8; i += 32) to[i] = token < 0 ? uint4{} : __ldg(from + i);
  }
}

/// out[t] = the sum of the rows of t's pairs, times their gates if there are some. A warp for each token.
__global__ void __launch_bounds__(per_block)
    add_up(const bfloat16* rows, const int* places, const bfloat16* gates, int64_t count, int experts, int width, bfloat16* out) {
  const int lane = threadIdx.x % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  if (t >= count) return;
  for (int first = 0; first < width; first += 256) {
    const int column = min(first + lane * 8, width - 8);  // each lane holds some experts' places, past the last column too
    float sum[8] = {};
    for (int base = 0; base < experts; base += 32) {
      const int e = base + lane, place = e < experts ? places[t * experts + e] : -1;
      for (unsigned left = __ballot_sync(~0u, place >= 0); left; left &= left - 1) {
        const int from = __ffs(left) - 1;
        const int row = __shfl_sync(~0u, place, from);
        const float gate = gates ? __bfloat162float(native(gates)[t * experts + base + from]) : 1.f;
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(rows + static_cast<int64_t>(row) * width + column));
        const uint32_t words[] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < 4; ++i) {
          const float2 f = grouped::unpack(words[i]);
          sum[2 * i] = fmaf(gate, f.x, sum[2 * i]), sum[2 * i + 1] = fmaf(gate, f.y, sum[2 * i + 1]);
        }
      }
    }
    *reinterpret_cast<uint4*>(out + t * width + column) = {grouped::pack(sum[0], sum[1]), grouped::pack(sum[2], sum[3]),
                                                           grouped::pack(sum[4], sum[5]), grouped::pack(sum[6], sum[7])};
  }
}

/// dgates[t, e]: the sum of the pair's shares, and the bias's part; 0 where not selected. A thread for each t and e.
__global__ void __launch_bounds__(per_block) gate_gradients(const float* shares, int parts, const int* places, const bfloat16* dout,
                                                            const bfloat16* bias, int64_t count, int experts, int width, bfloat16* dgates) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x;
  const int lane = threadIdx.x % 32, row = i < count * experts ? places[i] : -1;
  float sum = 0;
  for (int p = 0; row >= 0 && p < parts; ++p) sum += shares[static_cast<int64_t>(row) * parts + p];
  for (unsigned left = bias ? __ballot_sync(~0u, row >= 0) : 0u; left; left &= left - 1) {  // the warp does pair after pair
    const int64_t pair = i - lane + __ffs(left) - 1;
    const __nv_bfloat16 *g = native(dout) + pair / experts * width, *b = native(bias) + pair % experts * width;
    float part = 0;
    for (int d = lane; d < width; d += 32) part = fmaf(__bfloat162float(g[d]), __bfloat162float(b[d]), part);
    for (int k = 16; k; k /= 2) part += __shfl_xor_sync(~0u, part, k);
    if (lane == __ffs(left) - 1) sum += part;
  }
  if (i < count * experts) native(dgates)[i] = __float2bfloat16(sum);
}

/// sums[e, c]: over the rows of expert e, times their gates if there are some. 64 columns a block.
__global__ void __launch_bounds__(per_block)
    add_columns(const bfloat16* rows, const float* gates, const int* starts, int width, bfloat16* sums) {
  __shared__ float2 part[warps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, e = blockIdx.y, column = static_cast<int>(blockIdx.x) * 64 + 2 * lane;
  float2 sum{0, 0};
  for (int row = starts[e] * tile + warp; column < width && row < starts[e + 1] * tile; row += warps) {
    const float gate = gates ? gates[row] : 1.f;
    const float2 v = grouped::unpack(__ldg(reinterpret_cast<const uint32_t*>(rows + static_cast<int64_t>(row) * width + column)));
    sum.x = fmaf(gate, v.x, sum.x), sum.y = fmaf(gate, v.y, sum.y);
  }
  part[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= width) return;
  for (int w = 1; w < warps; ++w) sum.x += part[w][lane].x, sum.y += part[w][lane].y;
  *reinterpret_cast<uint32_t*>(sums + static_cast<int64_t>(e) * width + column) = grouped::pack(sum.x, sum.y);
}

/// How the copy engine reads and writes a row-major [depth, rows, columns] in boxes of 64 x 64.
CUtensorMap map_of(const char* op, const bfloat16* data, int64_t depth, int64_t rows, int64_t columns) {
  static const auto encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) != cudaSuccess) f = nullptr;
    cudaGetLastError();
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
  }();
  const auto of = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[] = {of(columns), of(rows), of(depth)}, steps[] = {of(2 * columns), of(2 * columns * rows)};
  const cuuint32_t box[] = {grouped::box, grouped::box, 1}, every[] = {1, 1, 1};
  CUtensorMap map;
  if (!encode || encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bfloat16*>(data), sizes, steps, box, every,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw core::Error("RuntimeError", std::string(op) + ": the driver does not describe a matrix of " + std::to_string(rows) + " x " +
                                          std::to_string(columns) + " to the copy engine");
  return map;
}

bool is_silu(const char* op, const char* name) {
  if (std::strcmp(name, "gelu_tanh") && std::strcmp(name, "silu"))
    throw core::Error("ValueError", std::string(op) + ": argument 'activation' must be 'gelu_tanh' or 'silu', got '" + name + "'");
  return !std::strcmp(name, "silu");
}

/// What both passes share: sizes, checks, the route in tiles, launches.
struct Pass {
  const char* op;
  int device;
  cudaStream_t stream;
  int64_t count, width, experts, inner, rows;  // rows: upper bound of all experts' rows in whole tiles
  Route route{};

  Pass(const char* op, Tensor<const bfloat16, 2> x, int64_t pairs, int64_t experts, int64_t inner, cudaStream_t stream)
      : op(op),
        device(x.device_id),
        stream(stream),
        count(x.shape[0]),
        width(x.shape[1]),
        experts(experts),
        inner(inner),
        rows(padded_rows(pairs, experts)) {
    int major = 0;
    core::check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
    if (major != 9) throw core::Error("NotImplementedError", std::string(op) + ": bfloat16 needs a GPU of compute capability 9.0");
    if (width % 8 || inner % 8)
      throw core::Error("NotImplementedError", std::string(op) + ": arguments 'x' and 'up' must have widths that are multiples of 8, got " +
                                                   std::to_string(width) + " and " + std::to_string(inner));
    for (const int64_t n : {rows * std::max(width, inner), experts * inner * width, count * experts})
      if (n < 0 || rows > INT32_MAX / 2)
        throw core::Error("ValueError", std::string(op) + ": argument 'tokens' has too many entries: " + std::to_string(pairs));
  }
  template <class T>
  void contiguous(const char* name, const T& tensor) const {
    if (!tensor.contiguous() || reinterpret_cast<std::uintptr_t>(tensor.data) % 16)
      throw core::Error("NotImplementedError", std::string(op) + ": argument '" + name + "' must be contiguous and begin at 16 bytes");
  }
  int processors() const {
    int n = 0;
    core::check_cuda(op, cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "asking for the device");
    return n;
  }
  void start(Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets, const bfloat16* gates, int* starts) {
    contiguous("tokens", tokens), contiguous("offsets", offsets);
    route = {tokens.data, offsets.data, gates, starts, static_cast<int>(experts)};
    find_starts<<<1, 32, 0, stream>>>(offsets.data, static_cast<int>(experts), starts);
  }
  void gather_rows(const bfloat16* from, bfloat16* to, float* gates, int* places) const {
    if (places) core::check_cuda(op, cudaMemsetAsync(places, 0xff, static_cast<std::size_t>(4 * count * experts), stream), "clearing");
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((rows + warps - 1) / warps, 8 * processors()));
    gather<<<blocks, per_block, 0, stream>>>(route, from, static_cast<int>(width), to, gates, places);
  }
  unsigned blocks_of_tokens() const { return static_cast<unsigned>((count + warps - 1) / warps); }

  template <Side a_side, Side b_side, Group group, After after, bool silu = false>
  void product(Arguments& p) const {
    const auto kernel = grouped::multiply<a_side, b_side, group, after, silu>;
    p.starts = route.starts, p.experts = static_cast<int>(experts);
    core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grouped::shared_bytes), "shared memory");
    kernel<<<static_cast<unsigned>(processors() / 2 * 2), grouped::threads, grouped::shared_bytes, stream>>>(p);
    core::check_cuda(op, cudaGetLastError(), "multiplying");
  }
};

/// Consecutive pieces of one allocation.
class Pieces {
 public:
  template <class T>
  void add(T*& to, int64_t n) {
    places_[count_++] = {reinterpret_cast<void**>(&to), bytes_};
    bytes_ += (n * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  }
  int64_t bytes() const { return bytes_; }
  void assign(void* base) const {
    for (int i = 0; i < count_; ++i) *places_[i].first = static_cast<char*>(base) + places_[i].second;
  }

 private:
  std::pair<void**, int64_t> places_[12];
  int count_ = 0;
  int64_t bytes_ = 0;
};
}  // namespace

void expert_ffn_bf16(Tensor<const bfloat16, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                     Tensor<const bfloat16, 2> gates, Tensor<const bfloat16, 3> up, std::optional<Tensor<const bfloat16, 2>> up_bias,
                     Tensor<const bfloat16, 3> down, std::optional<Tensor<const bfloat16, 2>> down_bias, const char* activation,
                     std::optional<Tensor<bfloat16, 2>> hidden, Tensor<bfloat16, 2> out, core::Stream stream) {
  const char* op = "expert_ffn";
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const bool silu = is_silu(op, activation);
  check_offsets(op, offsets.shape[0], up.shape[0]);
  const core::OnDevice on(op, x.device_id);
  Pass pass(op, x, tokens.shape[0], up.shape[0], up.shape[1], s);
  pass.contiguous("x", x), pass.contiguous("gates", gates), pass.contiguous("up", up), pass.contiguous("down", down),
      pass.contiguous("out", out);
  if (up_bias) pass.contiguous("up_bias", *up_bias);
  if (down_bias) pass.contiguous("down_bias", *down_bias);
  if (hidden) pass.contiguous("hidden", *hidden), check_hidden(op, hidden->shape[0], pass.rows);
  const int64_t T = pass.count, D = pass.width, E = pass.experts, H = pass.inner, R = pass.rows;
  if (T == 0 || D == 0) return;
  if (H == 0 || E == 0) {
    core::check_cuda(op, cudaMemsetAsync(out.data, 0, static_cast<std::size_t>(2 * T * D), s), "clearing");
    if (E == 0 || !down_bias) return;
    throw core::Error("NotImplementedError", "expert_ffn: argument 'up' must have H > 0 on CUDA where there are biases");
  }
  Pieces pieces;
  int *starts = nullptr, *places = nullptr;
  bfloat16 *rows = nullptr, *act = nullptr;
  pieces.add(starts, E + 1), pieces.add(places, T * E), pieces.add(rows, R * D), pieces.add(act, R * H);
  const core::DeviceScratch scratch(op, x.device_id, s, pieces.bytes());
  pieces.assign(scratch.get<void>());
  pass.start(tokens, offsets, gates.data, starts);
  pass.gather_rows(x.data, rows, nullptr, places);
  Arguments p{};
  p.a = map_of(op, rows, 1, R, D), p.b = map_of(op, up.data, E, H, D), p.out = map_of(op, act, 1, R, H);
  p.keep = hidden.has_value();
  p.second = p.keep ? map_of(op, hidden->data, 1, R, H) : p.out;
  p.bias = up_bias ? reinterpret_cast<const __nv_bfloat16*>(up_bias->data) : nullptr;
  p.n = static_cast<int>(H), p.k = static_cast<int>(D);
  if (silu)
    pass.product<Side::columns, Side::columns, Group::rows, After::activation, true>(p);
  else
    pass.product<Side::columns, Side::columns, Group::rows, After::activation, false>(p);
  Arguments q{};
  q.a = p.out, q.b = map_of(op, down.data, E, D, H), q.out = p.a;  // in place of the gathered rows
  q.bias = down_bias ? reinterpret_cast<const __nv_bfloat16*>(down_bias->data) : nullptr;
  q.n = static_cast<int>(D), q.k = static_cast<int>(H);
  pass.product<Side::columns, Side::columns, Group::rows, After::nothing>(q);
  add_up<<<pass.blocks_of_tokens(), per_block, 0, s>>>(rows, places, gates.data, T, static_cast<int>(E), static_cast<int>(D), out.data);
  core::check_cuda(op, cudaGetLastError(), "adding up");
}

void expert_ffn_backward_bf16(Tensor<const bfloat16, 2> dout, Tensor<const bfloat16, 2> x, Tensor<const int64_t, 1> tokens,
                              Tensor<const int64_t, 1> offsets, Tensor<const bfloat16, 2> gates, Tensor<const bfloat16, 3> up,
                              Tensor<const bfloat16, 3> down, std::optional<Tensor<const bfloat16, 2>> down_bias,
                              Tensor<const bfloat16, 2> hidden, const char* activation, Tensor<bfloat16, 2> dx, Tensor<bfloat16, 2> dgates,
                              Tensor<bfloat16, 3> dup, std::optional<Tensor<bfloat16, 2>> dup_bias, Tensor<bfloat16, 3> ddown,
                              std::optional<Tensor<bfloat16, 2>> ddown_bias, core::Stream stream) {
  const char* op = "expert_ffn_backward";
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const bool silu = is_silu(op, activation);
  check_offsets(op, offsets.shape[0], up.shape[0]);
  const core::OnDevice on(op, x.device_id);
  Pass pass(op, x, tokens.shape[0], up.shape[0], up.shape[1], s);
  pass.contiguous("dout", dout), pass.contiguous("x", x), pass.contiguous("gates", gates), pass.contiguous("up", up);
  pass.contiguous("down", down), pass.contiguous("hidden", hidden), pass.contiguous("dx", dx), pass.contiguous("dgates", dgates);
  pass.contiguous("dup", dup), pass.contiguous("ddown", ddown);
  if (down_bias) pass.contiguous("down_bias", *down_bias);
  if (dup_bias) pass.contiguous("dup_bias", *dup_bias);
  if (ddown_bias) pass.contiguous("ddown_bias", *ddown_bias);
  check_hidden(op, hidden.shape[0], pass.rows);
  const int64_t T = pass.count, D = pass.width, E = pass.experts, H = pass.inner, R = pass.rows;
  if (T == 0 || D == 0 || H == 0 || E == 0) {
    const auto clear = [&](const auto& t) {
      if (t.numel()) core::check_cuda(op, cudaMemsetAsync(t.data, 0, static_cast<std::size_t>(2 * t.numel()), s), "clearing");
    };
    clear(dx), clear(dgates), clear(dup), clear(ddown);
    if (dup_bias) clear(*dup_bias);
    if (ddown_bias) clear(*ddown_bias);
    return;
  }
  const int parts = static_cast<int>((H + grouped::tile_n - 1) / grouped::tile_n);
  Pieces pieces;
  int *starts = nullptr, *places = nullptr;
  float *weights = nullptr, *shares = nullptr;
  bfloat16 *rows = nullptr, *grads = nullptr, *slopes = nullptr, *act = nullptr;
  pieces.add(starts, E + 1), pieces.add(places, T * E), pieces.add(weights, R), pieces.add(shares, R * parts);
  pieces.add(rows, R * D), pieces.add(grads, R * D), pieces.add(slopes, R * H), pieces.add(act, R * H);
  const core::DeviceScratch scratch(op, x.device_id, s, pieces.bytes());
  pieces.assign(scratch.get<void>());
  pass.start(tokens, offsets, gates.data, starts);
  pass.gather_rows(x.data, rows, nullptr, nullptr);
  pass.gather_rows(dout.data, grads, weights, places);
  const int d = static_cast<int>(D), h = static_cast<int>(H);
  const CUtensorMap of_rows = map_of(op, rows, 1, R, D), of_grads = map_of(op, grads, 1, R, D), of_slopes = map_of(op, slopes, 1, R, H);

  Arguments p{};  // the gradient before the activation, and gate times activation
  p.a = of_grads, p.b = map_of(op, down.data, E, D, H), p.out = of_slopes, p.second = map_of(op, hidden.data, 1, R, H);
  p.third = map_of(op, act, 1, R, H), p.gates = weights, p.shares = shares, p.n = h, p.k = d;
  if (silu)
    pass.product<Side::columns, Side::rows, Group::rows, After::activation_backward, true>(p);
  else
    pass.product<Side::columns, Side::rows, Group::rows, After::activation_backward, false>(p);
  Arguments of_down{};
  of_down.a = of_grads, of_down.b = p.third, of_down.out = map_of(op, ddown.data, E, D, H), of_down.m = d, of_down.n = h;
  pass.product<Side::rows, Side::rows, Group::depth, After::nothing>(of_down);
  Arguments of_up{};
  of_up.a = of_slopes, of_up.b = of_rows, of_up.out = map_of(op, dup.data, E, H, D), of_up.m = h, of_up.n = d;
  pass.product<Side::rows, Side::rows, Group::depth, After::nothing>(of_up);
  const dim3 of_columns_d(static_cast<unsigned>((D + 63) / 64), static_cast<unsigned>(E));
  const dim3 of_columns_h(static_cast<unsigned>((H + 63) / 64), static_cast<unsigned>(E));
  if (ddown_bias) add_columns<<<of_columns_d, per_block, 0, s>>>(grads, weights, starts, d, ddown_bias->data);
  if (dup_bias) add_columns<<<of_columns_h, per_block, 0, s>>>(slopes, nullptr, starts, h, dup_bias->data);
  Arguments of_x{};
  of_x.a = of_slopes, of_x.b = map_of(op, up.data, E, H, D), of_x.out = of_rows, of_x.n = d, of_x.k = h;  // rows are free now
  pass.product<Side::columns, Side::rows, Group::rows, After::nothing>(of_x);
  const int e = static_cast<int>(E);
  add_up<<<pass.blocks_of_tokens(), per_block, 0, s>>>(rows, places, nullptr, T, e, d, dx.data);
  gate_gradients<<<static_cast<unsigned>((T * E + per_block - 1) / per_block), per_block, 0, s>>>(
      shares, parts, places, dout.data, down_bias ? down_bias->data : nullptr, T, e, d, dgates.data);
  core::check_cuda(op, cudaGetLastError(), "adding up");
}
}  // namespace core_diffusion
