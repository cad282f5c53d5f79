// The gradients of block-sparse attention on CUDA for any sizes and strides: tiles of 64 queries and 64 keys, mma.sync.
#include <algorithm>

#include "attention_blocks.cuh"
#include "gradients.cuh"

namespace core_llm_efficiency {
namespace {
constexpr const char* op = "block_sparse_attention_backward";
constexpr int threads = 128, edge = 64;
constexpr std::int64_t largest_sums = 2 * 128 * 128;  // floats of a place

/// One warp a row: what the weights and their gradients need of it.
template <class T>
__global__ void __launch_bounds__(256)
    prepare_rows(View<const T> out, View<const T> grad_out, core::Tensor<const float, 3> lse, core::Tensor<const float, 3> grad_lse,
                 int heads, int n, int e, int rows_of_head, std::int64_t all, float2* rows) {
  const std::int64_t at = blockIdx.x * std::int64_t{8} + threadIdx.x / 32;
  if (at >= all) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, i = static_cast<int>(at % rows_of_head);
  const std::int64_t h = at / rows_of_head % heads, b = at / rows_of_head / heads;
  float2 row{INFINITY, 0};
  if (i < n) {
    const float x = lse.data[b * lse.stride[0] + h * lse.stride[1] + i * lse.stride[2]];
    const T *o = out.at(b, h) + i * out.row, *g = grad_out.at(b, h) + i * grad_out.row;
    float delta = 0;
    for (int c = lane; c < e; c += 32) delta += float(g[c * grad_out.col]) * float(o[c * out.col]);
    for (int s = 16; s; s /= 2) delta += __shfl_xor_sync(~0u, delta, s);
    if (grad_lse.data) delta -= grad_lse.data[b * grad_lse.stride[0] + h * grad_lse.stride[1] + i * grad_lse.stride[2]];
    if (x != -INFINITY) row = {x * log2_e, delta};
  }
  if (lane == 0) rows[at] = row;
}

/// One warp for 32 query blocks and 32 key blocks of a head.
__global__ void __launch_bounds__(256)
    transpose_mask(const std::uint32_t* bits, int words, int q_blocks, int q_words, int k_blocks, int share, std::int64_t all,
                   std::uint32_t* key_bits, int* counts, unsigned long long* blocks) {
  const std::int64_t at = blockIdx.x * std::int64_t{8} + threadIdx.x / 32;
  if (at >= all) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, w = static_cast<int>(at % words), q_word = static_cast<int>(at / words % q_words);
  const std::int64_t head = at / words / q_words;
  const int row = q_word * 32 + lane, key = w * 32 + lane;
  const std::uint32_t word = row < q_blocks ? bits[(head * q_blocks + row) * words + w] : 0;
  std::uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const std::uint32_t column = __ballot_sync(~0u, word >> i & 1);
    if (lane == i) mine = column;
  }
  if (key < k_blocks) {
    key_bits[(head * k_blocks + key) * q_words + q_word] = mine;
    if (mine) atomicAdd(counts + head / share * k_blocks + key, __popc(mine));
  }
  const int count = __reduce_add_sync(~0u, __popc(mine));
  if (lane == 0 && count) atomicAdd(blocks, count);
}

__global__ void __launch_bounds__(256) split_units(const Plan plan) {
  const int unit = static_cast<int>(blockIdx.x * 256 + threadIdx.x), limit = plan.limit();
  const int count = unit < plan.units ? plan.counts[unit / plan.tiles] : 0;
  if (count <= limit) return;
  const int parts = (count + limit - 1) / limit, place = atomicAdd(&plan.progress->places, parts);
  plan.splits[atomicAdd(&plan.progress->units, 1)] = {unit, place, parts};
  for (int i = 0; i < parts; ++i) plan.works[place + i] = {unit, i * limit, min(count, (i + 1) * limit), place + i};
}

/// Where a unit of keys lies.
struct KeyTile {
  int group, batch, first, end;
  template <class T>
  __device__ KeyTile(const Gradients<T>& g, int unit, int rows) {
    const int tile = unit % g.plan.tiles, groups = g.heads / g.share;
    unit /= g.plan.tiles;
    const int block = unit % g.k_blocks;
    unit /= g.k_blocks;
    group = unit % groups, batch = unit / groups;
    first = block * g.block + tile * rows, end = min(min((block + 1) * g.block, g.m), first + rows);
  }
};

template <class T>
__global__ void __launch_bounds__(256) add_sums(const Gradients<T> g, int rows, int columns) {
  if (static_cast<int>(blockIdx.x) >= g.plan.progress->units) return;
  const SplitUnit s = g.plan.splits[blockIdx.x];
  const KeyTile t(g, s.unit, rows);
  for (int i = static_cast<int>(blockIdx.y) * 256 + static_cast<int>(threadIdx.x); i < 2 * rows * columns;
       i += static_cast<int>(gridDim.y) * 256) {
    const bool of_v = i >= rows * columns;
    const int row = i / columns % rows, column = i % columns;
    const View<T>& to = of_v ? g.grad_v : g.grad_k;
    if (t.first + row >= t.end || column >= (of_v ? g.e : g.d)) continue;
    float sum = 0;
    for (int part = 0; part < s.parts; ++part) sum += g.plan.sums[std::int64_t{s.place + part} * 2 * rows * columns + i];
    to.at(t.batch, t.group)[(t.first + row) * to.row + column * to.col] = T(sum);
  }
}

/// 64 keys (Keys) or queries, 16 a warp, resident, against what streams by: queries, or keys. Width: head dimension, rounded up.
template <class T, int Width, bool Keys>
__global__ void __launch_bounds__(threads) differentiate(const Gradients<T> g) {
  constexpr int padded = Width + 8, columns = Keys && Width > 128 ? 128 : Width;  // columns of a thread block's gradients
  extern __shared__ __align__(16) char shared[];
  __shared__ float2 rows[edge];
  T *const x_tile = reinterpret_cast<T*>(shared), *const y_tile = x_tile + edge * padded;
  T *const x_stream = y_tile + edge * padded, *const y_stream = x_stream + edge * padded;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int tiles = (g.block + edge - 1) / edge, first_column = Keys ? static_cast<int>(blockIdx.y) * columns : 0;
  Work work{static_cast<int>(blockIdx.x), 0, INT32_MAX, -1};
  if (Keys && !g.plan.work(work.unit, work)) return;
  int first, end, head, batch, block = 0;
  if constexpr (Keys) {
    const KeyTile t(g, work.unit, edge);
    first = t.first, end = t.end, head = t.group, batch = t.batch, block = t.first / g.block;
  } else {
    const int unit = static_cast<int>(gridDim.x) - 1 - work.unit;  // the longest first
    const int pair = unit % (g.heads * g.batch), rest = unit / (g.heads * g.batch);
    head = pair % g.heads, batch = pair / g.heads, block = rest / tiles;
    first = block * g.block + rest % tiles * edge, end = min(min((block + 1) * g.block, g.n), first + edge);
  }
  if (first >= end) return;
  const View<const T>&x = Keys ? g.k : g.q, &y = Keys ? g.v : g.grad_out, &x_other = Keys ? g.q : g.k, &y_other = Keys ? g.grad_out : g.v;
  load_tile<T, edge, Width, padded, threads>(x_tile, x.at(batch, head), x.row, x.col, x.wide, first, 1, end, 0, g.d);
  load_tile<T, edge, Width, padded, threads>(y_tile, y.at(batch, head), y.row, y.col, y.wide, first, 1, end, 0, g.e);
  const int row = warp * 16 + lane / 4;
  float2 of_row[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    of_row[r] = !Keys && first + row + r * 8 < end ? g.rows[(std::int64_t{batch} * g.heads + head) * g.rows_of_head + first + row + r * 8]
                                                   : float2{INFINITY, 0};

  float of_x[columns / 8][4] = {}, of_y[Keys ? columns / 8 : 1][4] = {};
  const auto against = [&](int h, int from, int last) {
    __syncthreads();
    load_tile<T, edge, Width, padded, threads>(x_stream, x_other.at(batch, h), x_other.row, x_other.col, x_other.wide, from, 1, last, 0,
                                               g.d);
    load_tile<T, edge, Width, padded, threads>(y_stream, y_other.at(batch, h), y_other.row, y_other.col, y_other.wide, from, 1, last, 0,
                                               g.e);
    if (const int i = from + static_cast<int>(threadIdx.x); Keys && threadIdx.x < edge)
      rows[threadIdx.x] = i < last ? g.rows[(std::int64_t{batch} * g.heads + h) * g.rows_of_head + i] : float2{INFINITY, 0};
    __syncthreads();
    float p[8][4] = {}, ds[8][4] = {};
    const auto multiply = [&](float (&c)[8][4], const T* a, const T* b, int depth) {
#pragma unroll
      for (int step = 0; step < Width; step += 16) {
        if (step >= depth) break;
        std::uint32_t left[4];
        load_matrices(left, a + (warp * 16 + lane % 16) * padded + step + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          std::uint32_t right[4];
          load_matrices(right, b + (j * 16 + lane / 16 * 8 + lane % 8) * padded + step + lane / 8 % 2 * 8);
          multiply_add<T>(c[2 * j], left, right[0], right[1]);
          multiply_add<T>(c[2 * j + 1], left, right[2], right[3]);
        }
      }
    };
    multiply(p, x_tile, x_stream, g.d);
    multiply(ds, y_tile, y_stream, g.e);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = j * 8 + lane % 4 * 2 + i % 2;
        const int key = Keys ? first + row + i / 2 * 8 : from + column, query = Keys ? from + column : first + row + i / 2 * 8;
        const bool seen = (Keys || key < last) && (!g.causal || key <= g.offset + query);
        const float2 of_query = Keys ? rows[column] : of_row[i / 2];
        p[j][i] = seen ? exp2_fast(p[j][i] * g.scale - of_query.x) : 0.f;
        ds[j][i] = p[j][i] * (ds[j][i] - of_query.y);
      }
    const auto accumulate = [&](float (&sum)[columns / 8][4], const float (&c)[8][4], const T* b) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const std::uint32_t left[4] = {pack<T>(c[2 * step][0], c[2 * step][1]), pack<T>(c[2 * step][2], c[2 * step][3]),
                                       pack<T>(c[2 * step + 1][0], c[2 * step + 1][1]), pack<T>(c[2 * step + 1][2], c[2 * step + 1][3])};
#pragma unroll
        for (int j = 0; j < columns / 16; ++j) {
          std::uint32_t right[4];
          load_matrices_transposed(right, b + (step * 16 + lane % 16) * padded + first_column + j * 16 + lane / 16 * 8);
          multiply_add<T>(sum[2 * j], left, right[0], right[1]);
          multiply_add<T>(sum[2 * j + 1], left, right[2], right[3]);
        }
      }
    };
    accumulate(of_x, ds, x_stream);
    if constexpr (Keys) accumulate(of_y, p, y_stream);
  };
  int at = 0;
  if constexpr (Keys) {
    for (int h = head * g.share; h < (head + 1) * g.share; ++h)
      each_listed(g.key_bits + ((std::int64_t{batch} * g.heads + h) * g.k_blocks + block) * g.q_words, g.q_words, work, at, [&](int other) {
        const int last = min((other + 1) * g.block, g.n);
        for (int from = other * g.block; from < last; from += edge)
          if (!g.causal || first <= g.offset + min(from + edge, last) - 1) against(h, from, last);
      });
  } else {
    const int visible = g.causal ? min(g.m, g.offset + end) : g.m;
    each_listed(g.bits + ((std::int64_t{batch} * g.heads + head) * g.q_blocks + block) * g.words, g.words, work, at, [&](int other) {
      const int last = min((other + 1) * g.block, visible);
      for (int from = other * g.block; from < last; from += edge) against(head / g.share, from, last);
    });
  }

  const auto write = [&](const float (&sum)[columns / 8][4], const View<T>& to, int dim, float factor, float* place) {
#pragma unroll
    for (int j = 0; j < columns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + i / 2 * 8, column = first_column + j * 8 + lane % 4 * 2 + i % 2;
        if (Keys && work.place >= 0)
          place[r * Width + column] = sum[j][i] * factor;
        else if (first + r < end && column < dim)
          to.at(batch, head)[(first + r) * to.row + column * to.col] = T(sum[j][i] * factor);
      }
  };
  float* const place = Keys ? g.plan.sums + std::int64_t{work.place} * 2 * edge * Width : nullptr;
  write(of_x, Keys ? g.grad_k : g.grad_q, g.d, g.scale * ln_2, place);
  if constexpr (Keys) write(of_y, g.grad_v, g.e, 1.f, place + edge * Width);
}

template <class T, int Width>
void differentiate_portable(Gradients<T> g, cudaStream_t stream) {
  constexpr int bytes = 4 * edge * (Width + 8) * int{sizeof(T)};
  g.plan.tiles = (g.block + edge - 1) / edge;
  g.plan.units = g.batch * (g.heads / g.share) * g.k_blocks * g.plan.tiles;
  queue_plan(g.plan, stream);
  const auto run = [&](auto* kernel, std::int64_t units, int columns) {
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    kernel<<<dim3(static_cast<unsigned>(units), static_cast<unsigned>(columns)), threads, bytes, stream>>>(g);
    check_cuda(op, cudaGetLastError(), "differentiating");
  };
  if (g.plan.units) run(&differentiate<T, Width, true>, std::int64_t{g.plan.units} + g.plan.most_places(), Width > 128 ? Width / 128 : 1);
  if (g.n) run(&differentiate<T, Width, false>, std::int64_t{g.batch} * g.heads * g.q_blocks * g.plan.tiles, 1);
  queue_sums(g, edge, Width, stream);
}

template <class T>
__global__ void write_zeros(View<T> x, std::int64_t heads, std::int64_t rows, std::int64_t columns, std::int64_t all) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < all; i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::int64_t row = i / columns, pair = row / rows;
    x.at(pair / heads, pair % heads)[row % rows * x.row + i % columns * x.col] = T(0.f);
  }
}
template <class T>
void clear(const core::Tensor<T, 4>& x, cudaStream_t stream) {
  if (x.numel() == 0) return;
  write_zeros<<<static_cast<unsigned>(std::min<std::int64_t>(ceil_div(x.numel(), 256), 4096)), 256, 0, stream>>>(
      view(x), x.shape[1], x.shape[2], x.shape[3], x.numel());
  check_cuda(op, cudaGetLastError(), "clearing gradients");
}

template <class T>
void gradients_on(core::Tensor<const T, 4> q, core::Tensor<const T, 4> k, core::Tensor<const T, 4> v, core::Tensor<const bool, 4> mask,
                  std::int64_t block, double scale, bool causal, core::Tensor<const T, 4> out, core::Tensor<const float, 3> lse,
                  core::Tensor<const T, 4> grad_out, std::optional<core::Tensor<const float, 3>> grad_lse, core::Tensor<T, 4> grad_q,
                  core::Tensor<T, 4> grad_k, core::Tensor<T, 4> grad_v, core::Stream queue) {
  check_attention(op, q, k, v, mask, block, scale, causal);
  const std::int64_t batch = q.shape[0], heads = q.shape[1], n = q.shape[2], groups = k.shape[1], m = k.shape[2];
  if (batch == 0 || groups == 0 || (n == 0 && m == 0)) return;
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  const OnDevice on(op, q.device_id);
  if (heads == 0) return clear(grad_k, stream), clear(grad_v, stream);
  int processors = 0;
  check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, q.device_id), "asking for the device");
  const std::int64_t q_blocks = mask.shape[2], k_blocks = mask.shape[3], pairs = batch * heads;
  const std::int64_t q_words = ceil_div(q_blocks, 32), rows_of_head = round_up(n, edge) + edge, lists = batch * groups * k_blocks;
  if (core::checked_mul(pairs * std::max(q_blocks, k_blocks), ceil_div(block, edge), op) > INT32_MAX / 2)
    refuse(op, "q", "of at most 2^30 tiles of 64 rows on CUDA");

  const std::int64_t of_rows = 8 * core::checked_mul(pairs, rows_of_head, op), of_sums = 4 * 4 * processors * largest_sums;
  const std::int64_t of_works = 16 * 4 * processors, of_splits = 16 * 2 * processors, of_zero = 16 + round_up(4 * lists, 16);
  const std::int64_t of_mask = 4 * words_of_mask(op, mask), of_keys = 4 * core::checked_mul(pairs * k_blocks, q_words, op);
  const DeviceScratch scratch(op, q.device_id, stream, of_rows + of_sums + of_works + of_splits + of_zero + of_mask + of_keys);
  char* room = scratch.template get<char>();
  const auto take = [&]<class X>(std::int64_t bytes, X*& to) { to = reinterpret_cast<X*>(std::exchange(room, room + bytes)); };
  float2* rows;
  Plan plan{};
  Progress* zero;
  std::uint32_t *bits, *key_bits;
  take(of_rows, rows), take(of_sums, plan.sums), take(of_works, plan.works), take(of_splits, plan.splits);
  take(of_zero, zero), take(of_keys, key_bits), take(of_mask, bits);
  int* const counts = reinterpret_cast<int*>(zero + 1);
  plan.progress = zero, plan.counts = counts, plan.processors = processors;
  check_cuda(op, cudaMemsetAsync(zero, 0, static_cast<std::size_t>(of_zero), stream), "clearing counts");

  using N = typename native<T>::type;
  Gradients<N> g{read_blocks(op, q, k, v, mask, block, scale, causal, bits, stream)};
  if (n) {
    const std::int64_t all = pairs * rows_of_head, words = pairs * q_words * g.words;
    prepare_rows<N><<<static_cast<unsigned>(ceil_div(all, 8)), 256, 0, stream>>>(
        view(out), view(grad_out), lse, grad_lse ? *grad_lse : core::Tensor<const float, 3>{}, g.heads, g.n, g.e,
        static_cast<int>(rows_of_head), all, rows);
    check_cuda(op, cudaGetLastError(), "preparing rows");
    if (words)
      transpose_mask<<<static_cast<unsigned>(ceil_div(words, 8)), 256, 0, stream>>>(
          bits, g.words, g.q_blocks, static_cast<int>(q_words), g.k_blocks, g.share, words, key_bits, counts, &zero->blocks);
    check_cuda(op, cudaGetLastError(), "transposing the mask");
  }
  g.grad_out = view(grad_out), g.grad_q = view(grad_q), g.grad_k = view(grad_k), g.grad_v = view(grad_v);
  g.rows = rows, g.rows_of_head = static_cast<int>(rows_of_head), g.key_bits = key_bits, g.q_words = static_cast<int>(q_words);
  g.plan = plan;
  if (differentiate_hopper(g, q.device_id, stream)) return;
  const int width = std::max(g.d, g.e);
  if (width <= 64) return differentiate_portable<N, 64>(g, stream);
  if (width <= 128) return differentiate_portable<N, 128>(g, stream);
  differentiate_portable<N, 256>(g, stream);
}
}  // namespace

void queue_plan(const Plan& plan, cudaStream_t stream) {
  if (plan.units) split_units<<<static_cast<unsigned>(ceil_div(plan.units, 256)), 256, 0, stream>>>(plan);
  check_cuda(op, cudaGetLastError(), "sharing out the work");
}

template <class T>
void queue_sums(const Gradients<T>& g, int rows, int columns, cudaStream_t stream) {
  add_sums<T><<<dim3(static_cast<unsigned>(2 * g.plan.processors), 8), 256, 0, stream>>>(g, rows, columns);
  check_cuda(op, cudaGetLastError(), "adding up");
}
template void queue_sums(const Gradients<__nv_bfloat16>&, int, int, cudaStream_t);
template void queue_sums(const Gradients<__half>&, int, int, cudaStream_t);

#define CORE_ATTENTION_BACKWARD(name, T)                                                                                          \
  void name(core::Tensor<const T, 4> q, core::Tensor<const T, 4> k, core::Tensor<const T, 4> v, core::Tensor<const bool, 4> mask, \
            std::int64_t block, double scale, bool causal, core::Tensor<const T, 4> out, core::Tensor<const float, 3> lse,        \
            core::Tensor<const T, 4> grad_out, std::optional<core::Tensor<const float, 3>> grad_lse, core::Tensor<T, 4> grad_q,   \
            core::Tensor<T, 4> grad_k, core::Tensor<T, 4> grad_v, core::Stream stream) {                                          \
    gradients_on(q, k, v, mask, block, scale, causal, out, lse, grad_out, grad_lse, grad_q, grad_k, grad_v, stream);              \
  }
CORE_ATTENTION_BACKWARD(block_sparse_attention_backward_bf16, core::bfloat16)
CORE_ATTENTION_BACKWARD(block_sparse_attention_backward_fp16, core::float16)
#undef CORE_ATTENTION_BACKWARD
}  // namespace core_llm_efficiency
