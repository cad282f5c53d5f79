// The experts of a mixture on CUDA: rows gathered for each expert, four kinds of products over all of them, rows added up.
// On Hopper numbers of 16 bits are multiplied by `grouped_gemm.cuh`, all others by `tiles.cuh`; the host waits for nothing.
#pragma once
#include <core/cuda.hpp>
#include <core_diffusion/moe.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "checks.hpp"
#include "grouped_gemm.cuh"
#include "tiles.cuh"

namespace core_diffusion::experts {
using core::Tensor;
using std::int64_t;

constexpr int per_block = 256, warps = per_block / 32;

/// starts[e]: the first tile of expert e's rows.
static __global__ void find_starts(const int64_t* offsets, int experts, int* starts) {
  const int lane = threadIdx.x;
  int total = 0;
  if (lane == 0) starts[0] = 0;
  for (int base = 0; base < experts; base += 32) {
    const int e = base + lane;
    int tiles = e < experts ? static_cast<int>((offsets[e + 1] - offsets[e] + padding - 1) / padding) : 0;
    for (int i = 1; i < 32; i *= 2) {
      const int before = __shfl_up_sync(~0u, tiles, i);
      if (lane >= i) tiles += before;
    }
    if (e < experts) starts[e + 1] = total + tiles;
    total += __shfl_sync(~0u, tiles, 31);
  }
}

template <class T>
struct Route {
  const int64_t *tokens, *offsets;
  const T* gates;  // [T, E]
  const int* starts;
  int experts;
};

/// f(column) for each column of a row at which a lane's chunk begins.
template <class T, class F>
__device__ void each_chunk(int width, F&& f) {
  for (int column = static_cast<int>(threadIdx.x) % 32 * chunk<T>; column < width; column += 32 * chunk<T>) f(column);
}

/// Rows of x, expert by expert, zeros to the end of each one's last tile. Optional: each row's gate, each pair's row.
template <class T>
__global__ void __launch_bounds__(per_block) gather(Route<T> r, const T* x, int width, bool whole, T* rows, Sum<T>* gates, int* places) {
  const int lane = threadIdx.x % 32, last = __ldg(r.starts + r.experts) * padding;
  for (int row = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / 32; row < last;
       row += static_cast<int>(gridDim.x) * warps) {
    int low = 0, high = r.experts;  // the last expert that does not begin behind this row
    while (high - low > 1) (__ldg(r.starts + (low + high) / 2) <= row / padding ? low : high) = (low + high) / 2;
    const int64_t at = r.offsets[low] + row - __ldg(r.starts + low) * padding;
    const int64_t token = at < r.offsets[low + 1] ? r.tokens[at] : -1;
    if (lane == 0 && gates) gates[row] = token < 0 ? Sum<T>(0) : wide(r.gates[token * r.experts + low]);
    if (lane == 0 && places && token >= 0) places[token * r.experts + low] = row;
    const T* const from = x + (token < 0 ? 0 : token) * width;
    T* const to = rows + static_cast<int64_t>(row) * width;
    each_chunk<T>(width, [&](int column) {
      const int valid = width - column;
      put(to + column, get<chunk<T>>(from + column, token < 0 ? 0 : valid, whole), valid, whole);
    });
  }
}

/// out[t] = the sum of the rows of t's pairs, times their gates if there are some. A warp for each token.
template <class T>
__global__ void __launch_bounds__(per_block)
    add_up(const T* rows, const int* places, const T* gates, int64_t count, int experts, int width, bool whole, T* out) {
  const int lane = threadIdx.x % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  if (t >= count) return;
  for (int first = 0; first < width; first += 32 * chunk<T>) {
    const int column = first + lane * chunk<T>, valid = width - column;
    Sum<T> sum[chunk<T>] = {};
    for (int base = 0; base < experts; base += 32) {  // each lane holds an expert's place, past the last column too
      const int e = base + lane, place = e < experts ? places[t * experts + e] : -1;
      for (unsigned left = __ballot_sync(~0u, place >= 0); left; left &= left - 1) {
        const int from = __ffs(left) - 1;
        const int row = __shfl_sync(~0u, place, from);
        const Sum<T> gate = gates ? wide(gates[t * experts + base + from]) : Sum<T>(1);
        const auto v = get<chunk<T>>(rows + static_cast<int64_t>(row) * width + column, valid, whole);
#pragma unroll
        for (int i = 0; i < chunk<T>; ++i) sum[i] += gate * wide(v.at[i]);
      }
    }
    Chunk<T, chunk<T>> v;
#pragma unroll
    for (int i = 0; i < chunk<T>; ++i) v.at[i] = narrow<T>(sum[i]);
    put(out + t * width + column, v, valid, whole);
  }
}

/// dgates[t, e]: the sum of the pair's shares, and the bias's part; 0 where not selected. A thread for each t and e.
template <class T>
__global__ void __launch_bounds__(per_block) gate_gradients(const Sum<T>* shares, int parts, const int* places, const T* dout,
                                                            const T* bias, int64_t count, int experts, int width, T* dgates) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x;
  const int lane = threadIdx.x % 32, row = i < count * experts ? places[i] : -1;
  Sum<T> sum = 0;
  for (int p = 0; row >= 0 && p < parts; ++p) sum += shares[static_cast<int64_t>(row) * parts + p];
  for (unsigned left = bias ? __ballot_sync(~0u, row >= 0) : 0u; left; left &= left - 1) {  // the warp does pair after pair
    const int64_t pair = i - lane + __ffs(left) - 1;
    const T *g = dout + pair / experts * width, *b = bias + pair % experts * width;
    Sum<T> part = 0;
    for (int d = lane; d < width; d += 32) part += wide(g[d]) * wide(b[d]);
    for (int k = 16; k; k /= 2) part += __shfl_xor_sync(~0u, part, k);
    if (lane == __ffs(left) - 1) sum += part;
  }
  if (i < count * experts) dgates[i] = narrow<T>(sum);
}

/// sums[e, c]: over the rows of expert e, times their gates if there are some. 64 columns a block.
template <class T>
__global__ void __launch_bounds__(per_block)
    add_columns(const T* rows, const Sum<T>* gates, const int* starts, int width, bool whole, T* sums) {
  __shared__ Sum<T> part[warps][64];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, e = blockIdx.y, column = static_cast<int>(blockIdx.x) * 64 + 2 * lane;
  Sum<T> x = 0, y = 0;
  for (int row = starts[e] * padding + warp; row < starts[e + 1] * padding; row += warps) {
    const Sum<T> gate = gates ? gates[row] : Sum<T>(1);
    const auto v = get<2>(rows + static_cast<int64_t>(row) * width + column, width - column, whole);
    x += gate * wide(v.at[0]), y += gate * wide(v.at[1]);
  }
  part[warp][2 * lane] = x, part[warp][2 * lane + 1] = y;
  __syncthreads();
  if (warp != 0) return;
  for (int w = 1; w < warps; ++w) x += part[w][2 * lane], y += part[w][2 * lane + 1];
  put(sums + static_cast<int64_t>(e) * width + column, Chunk<T, 2>{narrow<T>(x), narrow<T>(y)}, width - column, whole);
}

/// How the copy engine reads and writes a row-major [depth, rows, columns] of 16-bit numbers in boxes of 64 x 64.
template <class T>
CUtensorMap map_of(const char* op, const T* data, int64_t depth, int64_t rows, int64_t columns) {
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
  constexpr auto dtype = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  if (!encode || encode(&map, dtype, 3, const_cast<T*>(data), sizes, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw core::Error("RuntimeError", std::string(op) + ": the driver does not describe a matrix of " + std::to_string(rows) + " x " +
                                          std::to_string(columns) + " to the copy engine");
  return map;
}

inline bool is_silu(const char* op, const char* name) {
  if (std::strcmp(name, "gelu_tanh") && std::strcmp(name, "silu"))
    throw core::Error("ValueError", std::string(op) + ": argument 'activation' must be 'gelu_tanh' or 'silu', got '" + name + "'");
  return !std::strcmp(name, "silu");
}

/// What both passes share: sizes, checks, the route in tiles, launches.
template <class T>
struct Pass {
  const char* op;
  int device;
  cudaStream_t stream;
  int64_t count, width, experts, inner, rows;  // rows: upper bound of all experts' rows in whole tiles
  bool silu;
  bool whole;  // every row begins at a multiple of 16 bytes
  Route<T> route{};

  template <class Stored>
  Pass(const char* op, Tensor<const Stored, 2> x, int64_t pairs, int64_t experts, int64_t inner, const char* activation,
       cudaStream_t stream)
      : op(op),
        device(x.device_id),
        stream(stream),
        count(x.shape[0]),
        width(x.shape[1]),
        experts(experts),
        inner(inner),
        rows(padded_rows(pairs, experts)),
        silu(is_silu(op, activation)),
        whole(width % chunk<T> == 0 && inner % chunk<T> == 0) {
    for (const int64_t n : {rows * std::max(width, inner), experts * inner * width, count * experts})
      if (n < 0 || rows > INT32_MAX / 2)
        throw core::Error("ValueError", std::string(op) + ": argument 'tokens' has too many entries: " + std::to_string(pairs));
  }
  int asked(cudaDeviceAttr what) const {
    int n = 0;
    core::check_cuda(op, cudaDeviceGetAttribute(&n, what, device), "asking for the device");
    return n;
  }
  template <class Argument>
  void contiguous(const char* name, const Argument& tensor) {
    if (!tensor.contiguous()) throw core::Error("NotImplementedError", std::string(op) + ": argument '" + name + "' must be contiguous");
    whole = whole && reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  }
  /// Whether the products are those of `grouped_gemm.cuh`.
  bool on_hopper() const {
    const char* newest = std::getenv("CORE_SM");
    if (sizeof(T) != 2 || !whole || width == 0 || inner == 0 || (newest && std::atoi(newest) < 90)) return false;
    return asked(cudaDevAttrComputeCapabilityMajor) == 9;
  }
  void start(Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets, const T* gates, int* starts) {
    route = {tokens.data, offsets.data, gates, starts, static_cast<int>(experts)};
    find_starts<<<1, 32, 0, stream>>>(offsets.data, static_cast<int>(experts), starts);
  }
  void gather_rows(const T* from, T* to, Sum<T>* gates, int* places) const {
    if (places) core::check_cuda(op, cudaMemsetAsync(places, 0xff, static_cast<std::size_t>(4 * count * experts), stream), "clearing");
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((rows + warps - 1) / warps, 8 * asked(cudaDevAttrMultiProcessorCount)));
    gather<<<blocks, per_block, 0, stream>>>(route, from, static_cast<int>(width), whole, to, gates, places);
  }
  void add_rows(const T* from, const int* places, const T* gates, T* out) const {
    const auto blocks = static_cast<unsigned>((count + warps - 1) / warps);
    add_up<<<blocks, per_block, 0, stream>>>(from, places, gates, count, static_cast<int>(experts), static_cast<int>(width), whole, out);
    core::check_cuda(op, cudaGetLastError(), "adding up");
  }
  void add_to_bias(const T* from, const Sum<T>* gates, int64_t columns, T* sums) const {
    const dim3 blocks(static_cast<unsigned>((columns + 63) / 64), static_cast<unsigned>(experts));
    if (columns) add_columns<<<blocks, per_block, 0, stream>>>(from, gates, route.starts, static_cast<int>(columns), whole, sums);
  }
  /// How many sums of each row the product with After::activation_backward leaves.
  int parts() const { return on_hopper() ? static_cast<int>((inner + grouped::tile_n - 1) / grouped::tile_n) : tiles::parts_of<T>(inner); }

  template <Side b_side, Group group, After after>
  void product(const Product<T>& p) const {
    constexpr Side a_side = group == Group::rows ? Side::columns : Side::rows;
    const int processors = asked(cudaDevAttrMultiProcessorCount);
    const auto launch = [&](auto kernel, int bytes, int64_t blocks, int threads, auto... arguments) {
      core::check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
      kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), stream>>>(arguments...);
      core::check_cuda(op, cudaGetLastError(), "multiplying");
    };
    if constexpr (sizeof(T) == 2)
      if (on_hopper()) {
        grouped::Arguments<T> q{};
        const auto of_rows = [&](const T* data, int columns) { return map_of(op, data, 1, rows, columns); };
        q.a = of_rows(p.a, group == Group::rows ? p.k : p.m);
        if (group == Group::depth)
          q.b = of_rows(p.b, p.n);
        else if (b_side == Side::columns)
          q.b = map_of(op, p.b, experts, p.n, p.k);
        else
          q.b = map_of(op, p.b, experts, p.k, p.n);
        q.out = group == Group::rows ? of_rows(p.out, p.n) : map_of(op, p.out, experts, p.m, p.n);
        if (p.second) q.second = of_rows(p.second, p.n);
        if (p.third) q.third = of_rows(p.third, p.n);
        q.starts = route.starts, q.experts = static_cast<int>(experts), q.bias = p.bias, q.gates = p.gates, q.shares = p.shares;
        q.m = p.m, q.n = p.n, q.k = p.k, q.keep = p.second;
        const auto start = [&](auto kernel) { launch(kernel, grouped::shared_bytes, processors / 2 * 2, grouped::threads, q); };
        if constexpr (after != After::nothing)
          if (silu) return start(grouped::multiply<a_side, b_side, group, after, true, T>);
        return start(grouped::multiply<a_side, b_side, group, after, false, T>);
      }
    const int64_t down = group == Group::rows ? rows / padding : experts * ((p.m + padding - 1) / padding);
    const int64_t items = (p.n + padding - 1) / padding * down;
    if (items > INT32_MAX / 2)
      throw core::Error("ValueError", std::string(op) + ": argument 'up' is too large: " + std::to_string(items) + " tiles");
    if (items)
      launch(tiles::multiply<T, b_side, group, after>, tiles::shared_bytes, std::min<int64_t>(items, 4 * processors), tiles::threads, p,
             route.starts, static_cast<int>(experts), silu, whole);
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
}  // namespace core_diffusion::experts

namespace core_diffusion {
using namespace experts;

template <class Stored>
void expert_ffn_cuda(Tensor<const Stored, 2> x, Tensor<const int64_t, 1> tokens, Tensor<const int64_t, 1> offsets,
                     Tensor<const Stored, 2> gates, Tensor<const Stored, 3> up, std::optional<Tensor<const Stored, 2>> up_bias,
                     Tensor<const Stored, 3> down, std::optional<Tensor<const Stored, 2>> down_bias, const char* activation,
                     std::optional<Tensor<Stored, 2>> hidden, Tensor<Stored, 2> out, core::Stream stream) {
  using T = Native<Stored>;
  const char* op = "expert_ffn";
  const auto s = static_cast<cudaStream_t>(stream.handle);
  check_offsets(op, offsets.shape[0], up.shape[0]);
  const core::OnDevice on(op, x.device_id);
  Pass<T> pass(op, x, tokens.shape[0], up.shape[0], up.shape[1], activation, s);
  pass.contiguous("x", x), pass.contiguous("tokens", tokens), pass.contiguous("offsets", offsets), pass.contiguous("gates", gates);
  pass.contiguous("up", up), pass.contiguous("down", down), pass.contiguous("out", out);
  if (up_bias) pass.contiguous("up_bias", *up_bias);
  if (down_bias) pass.contiguous("down_bias", *down_bias);
  if (hidden) pass.contiguous("hidden", *hidden), check_hidden(op, hidden->shape[0], pass.rows);
  const int64_t E = pass.experts, R = pass.rows;
  if (out.numel() == 0) return;
  if (E == 0) return core::check_cuda(op, cudaMemsetAsync(out.data, 0, sizeof(T) * static_cast<std::size_t>(out.numel()), s), "clearing");
  const int D = static_cast<int>(pass.width), H = static_cast<int>(pass.inner);
  Pieces pieces;
  int *starts = nullptr, *places = nullptr;
  T *rows = nullptr, *act = nullptr;
  pieces.add(starts, E + 1), pieces.add(places, pass.count * E), pieces.add(rows, R * D), pieces.add(act, R * H);
  const core::DeviceScratch scratch(op, x.device_id, s, pieces.bytes());
  pieces.assign(scratch.get<void>());
  pass.start(tokens, offsets, native(gates.data), starts);
  pass.gather_rows(native(x.data), rows, nullptr, places);
  Product<T> of_up{.a = rows, .b = native(up.data), .out = act, .n = H, .k = D};
  of_up.second = hidden ? native(hidden->data) : nullptr;
  of_up.bias = up_bias ? native(up_bias->data) : nullptr;
  pass.template product<Side::columns, Group::rows, After::activation>(of_up);
  Product<T> of_down{.a = act, .b = native(down.data), .out = rows, .n = D, .k = H};  // in place of the gathered rows
  of_down.bias = down_bias ? native(down_bias->data) : nullptr;
  pass.template product<Side::columns, Group::rows, After::nothing>(of_down);
  pass.add_rows(rows, places, native(gates.data), native(out.data));
}

template <class Stored>
void expert_ffn_backward_cuda(Tensor<const Stored, 2> dout, Tensor<const Stored, 2> x, Tensor<const int64_t, 1> tokens,
                              Tensor<const int64_t, 1> offsets, Tensor<const Stored, 2> gates, Tensor<const Stored, 3> up,
                              Tensor<const Stored, 3> down, std::optional<Tensor<const Stored, 2>> down_bias,
                              Tensor<const Stored, 2> hidden, const char* activation, Tensor<Stored, 2> dx, Tensor<Stored, 2> dgates,
                              Tensor<Stored, 3> dup, std::optional<Tensor<Stored, 2>> dup_bias, Tensor<Stored, 3> ddown,
                              std::optional<Tensor<Stored, 2>> ddown_bias, core::Stream stream) {
  using T = Native<Stored>;
  const char* op = "expert_ffn_backward";
  const auto s = static_cast<cudaStream_t>(stream.handle);
  check_offsets(op, offsets.shape[0], up.shape[0]);
  const core::OnDevice on(op, x.device_id);
  Pass<T> pass(op, x, tokens.shape[0], up.shape[0], up.shape[1], activation, s);
  pass.contiguous("dout", dout), pass.contiguous("x", x), pass.contiguous("tokens", tokens), pass.contiguous("offsets", offsets);
  pass.contiguous("gates", gates), pass.contiguous("up", up);
  pass.contiguous("down", down), pass.contiguous("hidden", hidden), pass.contiguous("dx", dx), pass.contiguous("dgates", dgates);
  pass.contiguous("dup", dup), pass.contiguous("ddown", ddown);
  if (down_bias) pass.contiguous("down_bias", *down_bias);
  if (dup_bias) pass.contiguous("dup_bias", *dup_bias);
  if (ddown_bias) pass.contiguous("ddown_bias", *ddown_bias);
  check_hidden(op, hidden.shape[0], pass.rows);
  const int64_t count = pass.count, E = pass.experts, R = pass.rows;
  const int D = static_cast<int>(pass.width), H = static_cast<int>(pass.inner), parts = pass.parts();
  if (count == 0 || D == 0 || E == 0) {
    const auto clear = [&](const auto& t) {
      if (t.numel()) core::check_cuda(op, cudaMemsetAsync(t.data, 0, sizeof(T) * static_cast<std::size_t>(t.numel()), s), "clearing");
    };
    clear(dx), clear(dgates), clear(dup), clear(ddown);
    if (dup_bias) clear(*dup_bias);
    if (ddown_bias) clear(*ddown_bias);
    return;
  }
  Pieces pieces;
  int *starts = nullptr, *places = nullptr;
  Sum<T>*weights = nullptr, *shares = nullptr;
  T *rows = nullptr, *grads = nullptr, *slopes = nullptr, *act = nullptr;
  pieces.add(starts, E + 1), pieces.add(places, count * E), pieces.add(weights, R), pieces.add(shares, R * parts);
  pieces.add(rows, R * D), pieces.add(grads, R * D), pieces.add(slopes, R * H), pieces.add(act, R * H);
  const core::DeviceScratch scratch(op, x.device_id, s, pieces.bytes());
  pieces.assign(scratch.get<void>());
  pass.start(tokens, offsets, native(gates.data), starts);
  pass.gather_rows(native(x.data), rows, nullptr, nullptr);
  pass.gather_rows(native(dout.data), grads, weights, places);

  Product<T> of_act{.a = grads, .b = native(down.data), .out = slopes, .n = H, .k = D};  // the gradient before the activation,
  of_act.second = const_cast<T*>(native(hidden.data)), of_act.third = act;               // and gate times activation
  of_act.gates = weights, of_act.shares = shares;
  pass.template product<Side::rows, Group::rows, After::activation_backward>(of_act);
  pass.template product<Side::rows, Group::depth, After::nothing>({.a = grads, .b = act, .out = native(ddown.data), .m = D, .n = H});
  pass.template product<Side::rows, Group::depth, After::nothing>({.a = slopes, .b = rows, .out = native(dup.data), .m = H, .n = D});
  if (ddown_bias) pass.add_to_bias(grads, weights, D, native(ddown_bias->data));
  if (dup_bias) pass.add_to_bias(slopes, nullptr, H, native(dup_bias->data));
  pass.template product<Side::rows, Group::rows, After::nothing>({.a = slopes, .b = native(up.data), .out = rows, .n = D, .k = H});
  pass.add_rows(rows, places, nullptr, native(dx.data));  // the gathered rows were free
  gate_gradients<T><<<static_cast<unsigned>((count * E + per_block - 1) / per_block), per_block, 0, s>>>(
      shares, parts, places, native(dout.data), down_bias ? native(down_bias->data) : nullptr, count, static_cast<int>(E), D,
      native(dgates.data));
  core::check_cuda(op, cudaGetLastError(), "adding up");
}
}  // namespace core_diffusion
