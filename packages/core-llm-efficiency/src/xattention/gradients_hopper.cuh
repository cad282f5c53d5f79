// The gradients of block-sparse attention for sm_90a, head dimension 128, blocks of a multiple of 128. 128 keys (or queries)
// stay in shared memory; one warp feeds the queries (or keys) through the copy engine, 64 at a time; two warpgroups of 64
// resident rows multiply. The weights and their gradients never leave registers.
#pragma once
#include "gradients.cuh"
#include "hopper.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int dim = 128, resident = 128, streamed = 64, stages = 4;
constexpr int half_resident = resident * 64, half_streamed = streamed * 64;  // elements of 64 channels

template <class T>
struct Shared {
  alignas(1024) T x[2 * half_resident];
  T y[2 * half_resident], x_stream[stages][2 * half_streamed], y_stream[stages][2 * half_streamed];
  float2 rows[stages][streamed];
  int first[stages];  // row of a stage, negative after the last
  hopper::Barrier ready, full[stages], empty[stages];
};

struct Maps {
  CUtensorMap x, y, x_stream, y_stream;
};

/// Where a thread block's resident rows lie, and its share of the blocks that belong to them.
struct Task {
  int first, head, batch;
  Work work;
};

template <bool Keys, class T>
__device__ void feed(const Gradients<T>& g, const Maps& maps, Shared<T>& s, const Task& t) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) {
    hopper::expect(&s.ready, 2 * resident * dim * static_cast<int>(sizeof(T)));
    for (int i = 0; i < 4; ++i) {
      hopper::copy(s.x + i * half_streamed, &maps.x, &s.ready, i / 2 * 64, t.first + i % 2 * 64, t.head, t.batch);
      hopper::copy(s.y + i * half_streamed, &maps.y, &s.ready, i / 2 * 64, t.first + i % 2 * 64, t.head, t.batch);
    }
  }
  int i = 0, at = 0;
  const auto walk = [&](int h, const std::uint32_t* list, int words) {
    const std::int64_t row = (std::int64_t{t.batch} * g.heads + h) * g.rows_of_head;
    each_listed(list, words, t.work, at, [&](int block) {
      if (lane) return;
      const int end = min((block + 1) * g.block, Keys ? g.n : g.m);
      for (int from = block * g.block; from < end; from += streamed) {
        // all of these queries before the keys, or all of these keys after the queries
        if (g.causal && (Keys ? g.offset + from + streamed - 1 < t.first : from >= g.offset + t.first + resident)) continue;
        const int stage = i % stages;
        hopper::wait(&s.empty[stage], i / stages % 2 ^ 1);
        s.first[stage] = from;
        hopper::expect(&s.full[stage], 2 * streamed * dim * static_cast<int>(sizeof(T)) + (Keys ? streamed * 8 : 0));
        for (int j = 0; j < 2; ++j) {
          hopper::copy(s.x_stream[stage] + j * half_streamed, &maps.x_stream, &s.full[stage], j * 64, from, h, t.batch);
          hopper::copy(s.y_stream[stage] + j * half_streamed, &maps.y_stream, &s.full[stage], j * 64, from, h, t.batch);
        }
        if (Keys) hopper::copy(s.rows[stage], g.rows + row + from, streamed * 8, &s.full[stage]);
        ++i;
      }
    });
  };
  const int block = t.first / g.block;
  if constexpr (Keys)
    for (int h = t.head * g.share; h < (t.head + 1) * g.share; ++h)
      walk(h, g.key_bits + ((std::int64_t{t.batch} * g.heads + h) * g.k_blocks + block) * g.q_words, g.q_words);
  else
    walk(t.head / g.share, g.bits + ((std::int64_t{t.batch} * g.heads + t.head) * g.q_blocks + block) * g.words, g.words);
  if (lane == 0) {
    hopper::wait(&s.empty[i % stages], i / stages % 2 ^ 1);
    s.first[i % stages] = -1;
    hopper::arrive(&s.full[i % stages]);
  }
}

template <bool Keys, class T>
__device__ void differentiate(const Gradients<T>& g, Shared<T>& s, const Task& t) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, row = group * 64 + warp * 16 + lane / 4;
  const int end = Keys ? g.m : g.n;
  float of_x[64] = {}, of_y[Keys ? 64 : 1] = {}, p[32], ds[32];
  std::uint32_t left[4][4];
  float2 of_row[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    of_row[r] = Keys ? float2{} : g.rows[(std::int64_t{t.batch} * g.heads + t.head) * g.rows_of_head + min(t.first + row + r * 8, g.n)];

  const auto multiply = [&](float (&c)[32], const T* a, const T* b) {
    hopper::hold(c);
    hopper::begin_products();
#pragma unroll
    for (int x = 0; x < 8; ++x)
      hopper::product_of_rows<T>(c, hopper::matrix(a + x / 4 * half_resident + group * 64 * 64 + x % 4 * 16),
                                 hopper::matrix(b + x / 4 * half_streamed + x % 4 * 16), x > 0);
    hopper::commit();
  };
  const auto accumulate = [&](float (&sum)[64], const float (&c)[32], const T* b) {
#pragma unroll
    for (int x = 0; x < 4; ++x)
#pragma unroll
      for (int y = 0; y < 4; ++y) left[x][y] = pack<T>(c[x * 8 + y * 2], c[x * 8 + y * 2 + 1]);
    hopper::hold(sum);
    hopper::begin_products();
#pragma unroll
    for (int x = 0; x < 4; ++x) hopper::product<T>(sum, left[x], hopper::matrix(b + x * 16 * 64, half_streamed * 2));
    hopper::commit();
  };

  hopper::wait(&s.ready, 0);
  for (int i = 0;; ++i) {
    const int stage = i % stages;
    hopper::wait(&s.full[stage], i / stages % 2);
    const int from = s.first[stage];
    if (from < 0) break;
    multiply(p, s.x, s.x_stream[stage]);
    multiply(ds, s.y, s.y_stream[stage]);
    hopper::wait_products<1>();
    hopper::hold(p);
    const int mine = t.first + group * 64;
    const bool masked = Keys ? g.causal && mine + 63 > g.offset + from : from + streamed > g.m || (g.causal && from + 63 > g.offset + mine);
    const auto stat = [&](int j, int x, bool delta) {
      if constexpr (!Keys) return delta ? of_row[x / 2].y : of_row[x / 2].x;
      const float4 two = *reinterpret_cast<const float4*>(&s.rows[stage][j * 8 + lane % 4 * 2]);
      return delta ? (x % 2 ? two.w : two.y) : (x % 2 ? two.z : two.x);
    };
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        float& y = p[j * 4 + x];
        y = exp2_fast(y * g.scale - stat(j, x, false));
        if (masked) {
          const int r = t.first + row + x / 2 * 8, column = from + j * 8 + lane % 4 * 2 + x % 2;
          const int key = Keys ? r : column, query = Keys ? column : r;
          if (key >= g.m || (g.causal && key > g.offset + query)) y = 0;
        }
      }
    if constexpr (Keys) accumulate(of_y, p, s.y_stream[stage]);
    hopper::wait_products<0>();
    hopper::hold(ds);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int x = 0; x < 4; ++x) ds[j * 4 + x] = p[j * 4 + x] * (ds[j * 4 + x] - stat(j, x, true));
    accumulate(of_x, ds, s.x_stream[stage]);
    hopper::wait_products<0>();
    hopper::hold(of_x);
    if constexpr (Keys) hopper::hold(of_y);
    if (lane == 0) hopper::arrive(&s.empty[stage]);
  }

  const auto write = [&](const float (&sum)[64], const View<T>& to, float factor, float* place) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float x = sum[j * 4 + r * 2] * factor, y = sum[j * 4 + r * 2 + 1] * factor;
        const int at = row + r * 8, column = j * 8 + lane % 4 * 2;
        if (Keys && t.work.place >= 0)
          *reinterpret_cast<float2*>(place + at * dim + column) = {x, y};
        else if (t.first + at < end)
          *reinterpret_cast<std::uint32_t*>(to.at(t.batch, t.head) + (t.first + at) * to.row + column) = pack<T>(x, y);
      }
  };
  float* const place = Keys ? g.plan.sums + std::int64_t{t.work.place} * 2 * resident * dim : nullptr;
  write(of_x, Keys ? g.grad_k : g.grad_q, g.scale * ln_2, place);
  if constexpr (Keys) write(of_y, g.grad_v, 1.f, place + resident * dim);
}

template <class T, bool Keys>
__global__ void __launch_bounds__(384, 1) differentiate_tiles(const __grid_constant__ Maps maps, const __grid_constant__ Gradients<T> g) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  auto& s = *reinterpret_cast<Shared<T>*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  const int tiles = g.block / resident;
  Task t{0, 0, 0, {static_cast<int>(blockIdx.x), 0, INT32_MAX, -1}};
  if constexpr (Keys) {
    if (!g.plan.work(t.work.unit, t.work)) return;
    const int unit = t.work.unit / tiles, groups = g.heads / g.share;
    t.first = unit % g.k_blocks * g.block + t.work.unit % tiles * resident;
    t.head = unit / g.k_blocks % groups, t.batch = unit / g.k_blocks / groups;
  } else {
    // The heads that read the same keys run side by side, the longest query blocks first.
    int x = t.work.unit;
    const int within = x % g.share, rows = g.q_blocks * tiles;
    t.first = (rows - 1 - x / g.share % rows) * resident;
    x = x / g.share / rows;
    t.head = x % (g.heads / g.share) * g.share + within, t.batch = x / (g.heads / g.share);
  }
  if (t.first >= (Keys ? g.m : g.n)) return;
  if (threadIdx.x == 0) {
    hopper::init(&s.ready, 1);
    for (int i = 0; i < stages; ++i) hopper::init(&s.full[i], 1), hopper::init(&s.empty[i], 8);
    asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < 32) feed<Keys>(g, maps, s, t);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    differentiate<Keys>(g, s, t);
  }
#endif
}
}  // namespace

template <class T>
bool differentiate_hopper(Gradients<T> g, int device, cudaStream_t stream) {
  const char* op = "block_sparse_attention_backward";
  int major = 0;
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
  if (major != 9 || g.block % resident || g.d != dim || g.e != dim || g.m == 0 || g.n == 0) return false;
  if (!g.grad_q.wide || !g.grad_k.wide || !g.grad_v.wide) return false;
  const std::int64_t groups = g.heads / g.share;
  const auto describe = [&](CUtensorMap* map, const View<const T>& x, std::int64_t heads, std::int64_t rows) {
    return x.wide && hopper::describe<T, 4>(map, x.data, {dim, rows, heads, g.batch}, {1, x.row, x.head, x.batch}, {64, streamed, 1, 1});
  };
  Maps of_keys{}, of_queries{};
  if (!describe(&of_queries.x, g.q, g.heads, g.n) || !describe(&of_queries.y, g.grad_out, g.heads, g.n) ||
      !describe(&of_keys.x, g.k, groups, g.m) || !describe(&of_keys.y, g.v, groups, g.m))
    return false;
  of_keys.x_stream = of_queries.x, of_keys.y_stream = of_queries.y, of_queries.x_stream = of_keys.x, of_queries.y_stream = of_keys.y;
  g.plan.tiles = g.block / resident;
  g.plan.units = static_cast<int>(g.batch * groups) * g.k_blocks * g.plan.tiles;
  queue_plan(g.plan, stream);
  constexpr int bytes = static_cast<int>(sizeof(Shared<T>)) + 1024;
  const auto run = [&](auto* kernel, const Maps& maps, std::int64_t units) {
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
    kernel<<<static_cast<unsigned>(units), 384, bytes, stream>>>(maps, g);
    check_cuda(op, cudaGetLastError(), "differentiating");
  };
  run(&differentiate_tiles<T, true>, of_keys, std::int64_t{g.plan.units} + g.plan.most_places());
  run(&differentiate_tiles<T, false>, of_queries, std::int64_t{g.batch} * g.heads * g.q_blocks * g.plan.tiles);
  queue_sums(g, resident, dim, stream);
  return true;
}
}  // namespace core_llm_efficiency
