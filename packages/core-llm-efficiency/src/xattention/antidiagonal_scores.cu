// The antidiagonal estimator on CUDA: a matrix product whose epilogue keeps, of each row of tiles, the log2 of the
// sum of exponentials of every unit (a block's tiles, at most 64 at a time), and a second pass that normalises.
#include <algorithm>

#include "antidiagonal.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int threads = 128, edge = 64, padded = edge + 8;

/// One tile of 64 rows by as many whole units as fit into 64 columns.
template <class T>
__global__ void __launch_bounds__(threads) estimate(View<const T> q, View<const T> k, Estimate e, float* partial) {
  __shared__ alignas(16) T a_tile[edge * padded], b_tile[edge * padded];
  __shared__ float logits[edge][edge + 1];
  const int units_here = min(e.units_of_tile, e.units - static_cast<int>(blockIdx.x) * e.units_of_tile);
  const int unit = static_cast<int>(blockIdx.x) * e.units_of_tile, row = static_cast<int>(blockIdx.y) * edge;
  const std::int64_t pair = e.first_head + blockIdx.z, b = pair / e.heads, h = pair % e.heads;
  const std::int64_t column = e.unit_column(unit);
  if (column >= e.seen(min(row + edge, e.rows) - 1)) return;
  const T *from_q = q.at(b, h), *from_k = k.at(b, h / e.share);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float c[8][4] = {};
  for (int r = 0; r < e.stride; ++r)
    for (int x = 0; x < e.dim; x += edge) {
      __syncthreads();
      load_tile<T, edge, edge, padded, threads>(a_tile, from_q, q.row, q.col, q.wide, std::int64_t{row} * e.stride + e.stride - 1 - r,
                                                e.stride, e.n, x, e.dim);
      load_tile<T, edge, edge, padded, threads>(b_tile, from_k, k.row, k.col, k.wide, column * e.stride + r, e.stride, e.m, x, e.dim);
      __syncthreads();
      for (int s = 0; s < edge && x + s < e.dim; s += 16) {
        std::uint32_t a[4];
        load_matrices(a, a_tile + (warp * 16 + lane % 16) * padded + s + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          std::uint32_t y[4];
          load_matrices(y, b_tile + (j * 16 + lane / 16 * 8 + lane % 8) * padded + s + lane / 8 % 2 * 8);
          multiply_add<T>(c[2 * j], a, y[0], y[1]);
          multiply_add<T>(c[2 * j + 1], a, y[2], y[3]);
        }
      }
    }
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) logits[warp * 16 + lane / 4 + i / 2 * 8][j * 8 + lane % 4 * 2 + i % 2] = e.scale * c[j][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < edge * units_here; i += threads) {
    const int r = i / units_here, u = unit + i % units_here;
    if (row + r >= e.rows) continue;
    const std::int64_t begin = e.unit_column(u), end = std::min(e.unit_end(u), e.seen(row + r));
    float top = -INFINITY, sum = 0;
    for (std::int64_t j = begin; j < end; ++j) top = fmaxf(top, logits[r][j - column]);
    const float base = top == -INFINITY ? 0.f : top;
    for (std::int64_t j = begin; j < end; ++j) sum += exp2f(logits[r][j - column] - base);
    partial[(std::int64_t{blockIdx.z} * e.rows + row + r) * e.units + u] = base + log2f(sum);
  }
}

/// One thread block for one query block: its rows' exponentials, in shared memory (Kept) or where they were, and their
/// sums; then its scores.
template <bool Kept>
__global__ void __launch_bounds__(256) normalise(Estimate e, float* partial, core::Tensor<float, 4> scores) {
  extern __shared__ float inverse[];  // of each row's sum
  const std::int64_t pair = e.first_head + blockIdx.y, b = pair / e.heads, h = pair % e.heads;
  const int first = static_cast<int>(blockIdx.x) * e.per, count = min(e.per, e.rows - first), blocks = static_cast<int>(scores.shape[3]);
  const int visible = (e.units_seen(first + count - 1) + e.units_of_block - 1) / e.units_of_block, end = visible * e.units_of_block;
  float* const rows = partial + (std::int64_t{blockIdx.y} * e.rows + first) * e.units;
  float* const powers = Kept ? inverse + e.per : rows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < count; r += 8) {
    const float* const from = rows + std::int64_t{r} * e.units;
    float* const row = powers + std::int64_t{r} * e.units;
    const int units = e.units_seen(first + r);
    float top = -INFINITY, sum = 0;
#pragma unroll 8
    for (int u = lane; u < end; u += 32) {
      const float x = u < units ? from[u] : -INFINITY;
      row[u] = x;
      top = fmaxf(top, x);
    }
    for (int i = 16; i; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
    const float base = top == -INFINITY ? 0.f : top;
#pragma unroll 8
    for (int u = lane; u < end; u += 32) sum += row[u] = exp2_fast(row[u] - base);
    for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    if (lane == 0) inverse[r] = 1.f / sum;
  }
  __syncthreads();
  float* const to = scores.data + b * scores.stride[0] + h * scores.stride[1] + blockIdx.x * scores.stride[2];
  for (int j = static_cast<int>(threadIdx.x); j < blocks; j += 256) {
    float mass = 0;
    if (j < visible)
#pragma unroll 8
      for (int r = 0; r < count; ++r)
        for (int u = 0; u < e.units_of_block; ++u) mass += powers[std::int64_t{r} * e.units + j * e.units_of_block + u] * inverse[r];
    to[j * scores.stride[3]] = mass;
  }
}

template <class T>
void antidiagonal_scores_on(core::Tensor<const T, 4> q, core::Tensor<const T, 4> k, std::int64_t stride, std::int64_t block, double scale,
                            bool causal, core::Tensor<float, 4> scores, core::Stream queue) {
  const char* op = "antidiagonal_scores";
  const auto [batch, heads, n, d] = q.shape;
  const std::int64_t groups = k.shape[1], m = k.shape[2];
  check_blocks(op, n, m, block, causal, "scores", scores.shape[2], scores.shape[3]);
  check_heads(op, heads, groups, scale);
  if (stride < 1 || block % stride)
    refuse(op, "stride", "a divisor of block = " + std::to_string(block) + ", got " + std::to_string(stride));
  if (n > INT32_MAX / 2 || m > INT32_MAX / 2 || d > 65536) refuse(op, "q", "of at most 2^30 positions and 65,536 channels");
  if (scores.numel() == 0) return;
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OnDevice on(op, q.device_id);

  Estimate e{};
  e.n = static_cast<int>(n), e.m = static_cast<int>(m), e.dim = static_cast<int>(d), e.heads = static_cast<int>(heads);
  e.share = static_cast<int>(heads / groups), e.stride = static_cast<int>(stride), e.per = static_cast<int>(block / stride);
  e.rows = static_cast<int>(ceil_div(n, stride)), e.columns = static_cast<int>(ceil_div(m, stride));
  e.units_of_block = static_cast<int>(ceil_div(e.per, edge));
  e.units = static_cast<int>(scores.shape[3]) * e.units_of_block;
  e.units_of_tile = std::max(1, edge / e.per);
  e.offset = static_cast<int>(m - n), e.causal = causal;
  e.scale = static_cast<float>(scale / static_cast<double>(stride)) * log2_e;

  const std::int64_t of_head = core::checked_mul(e.rows, e.units, "antidiagonal_scores: scratch") * std::int64_t{sizeof(float)};
  const std::int64_t all = batch * heads,
                     at_once = std::clamp<std::int64_t>((std::int64_t{1} << 30) / of_head, 1, std::min<std::int64_t>(all, 65535));
  const DeviceScratch scratch(op, q.device_id, stream, core::checked_mul(of_head, at_once, "antidiagonal_scores: scratch"));
  auto* partial = scratch.get<float>();
  const std::size_t of_sums = static_cast<std::size_t>(e.per) * 4, of_rows = of_sums * static_cast<std::size_t>(e.units);
  const bool kept = of_sums + of_rows <= 48 * 1024;  // what every kernel may have
  for (std::int64_t first = 0; first < all; first += at_once) {
    e.first_head = static_cast<int>(first);
    const auto pairs = static_cast<unsigned>(std::min(at_once, all - first));
    if (!estimate_hopper(view(q), view(k), e, static_cast<int>(batch), static_cast<int>(pairs), q.device_id, partial, stream)) {
      const dim3 tiles(static_cast<unsigned>(ceil_div(e.units, e.units_of_tile)), static_cast<unsigned>(ceil_div(e.rows, edge)), pairs);
      estimate<<<tiles, threads, 0, stream>>>(view(q), view(k), e, partial);
      check_cuda(op, cudaGetLastError(), "estimating");
    }
    const dim3 grid(static_cast<unsigned>(scores.shape[2]), pairs);
    if (kept)
      normalise<true><<<grid, 256, of_sums + of_rows, stream>>>(e, partial, scores);
    else
      normalise<false><<<grid, 256, of_sums, stream>>>(e, partial, scores);
    check_cuda(op, cudaGetLastError(), "normalising");
  }
}
}  // namespace

void antidiagonal_scores_bf16(core::Tensor<const core::bfloat16, 4> q, core::Tensor<const core::bfloat16, 4> k, std::int64_t stride,
                              std::int64_t block, double scale, bool causal, core::Tensor<float, 4> scores, core::Stream stream) {
  antidiagonal_scores_on(q, k, stride, block, scale, causal, scores, stream);
}
void antidiagonal_scores_fp16(core::Tensor<const core::float16, 4> q, core::Tensor<const core::float16, 4> k, std::int64_t stride,
                              std::int64_t block, double scale, bool causal, core::Tensor<float, 4> scores, core::Stream stream) {
  antidiagonal_scores_on(q, k, stride, block, scale, causal, scores, stream);
}
}  // namespace core_llm_efficiency
