// Block-sparse attention for sm_90a, head dimension 128, blocks of 128: one query block a thread block. One warp feeds
// keys and values through the copy engine; two warpgroups of 64 queries take turns at the tensor cores, and each
// runs the softmax of a block while its product with the values before is under way.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

namespace core_llm_efficiency {
namespace {
constexpr int tile = 128, half_tile = tile * 64, stages = 2, tile_bytes = tile * tile * 2;

template <class T>
struct Shared {
  alignas(1024) T q[2 * half_tile];
  T k[stages][2 * half_tile], v[stages][2 * half_tile];
  hopper::Barrier q_full, k_full[stages], v_full[stages], k_empty[stages], v_empty[stages];
};

struct Maps {
  CUtensorMap q, k, v;
};

template <class T>
__device__ void feed(const Attention<T>& a, const Maps& maps, Shared<T>& s, const std::uint32_t* bits, int q_block, int h, int b) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = h / a.share;
  const auto both = [&](T* to, const CUtensorMap* map, hopper::Barrier* full, int row, int head) {
    hopper::expect(full, tile_bytes);
    hopper::copy(to, map, full, 0, row, head, b);
    hopper::copy(to + half_tile, map, full, 64, row, head, b);
  };
  if (lane == 0) both(s.q, &maps.q, &s.q_full, q_block * tile, h);
  int i = 0;
  for (int base = (a.words - 1) / 32 * 32; base >= 0; base -= 32) {
    const std::uint32_t mine = base + lane < a.words ? bits[base + lane] : 0;
    for (unsigned some = __ballot_sync(~0u, mine != 0); some;) {
      const int w = 31 - __clz(static_cast<int>(some));
      some ^= 1u << w;
      for (std::uint32_t word = __shfl_sync(~0u, mine, w); word; ++i) {
        const int bit = 31 - __clz(static_cast<int>(word)), key = ((base + w) * 32 + bit) * tile;
        word ^= 1u << bit;
        if (lane) continue;
        const int stage = i % stages, parity = i / stages % 2 ^ 1;
        hopper::wait(&s.k_empty[stage], parity);
        both(s.k[stage], &maps.k, &s.k_full[stage], key, g);
        hopper::wait(&s.v_empty[stage], parity);
        both(s.v[stage], &maps.v, &s.v_full[stage], key, g);
      }
    }
  }
}

template <class T>
__device__ void consume(const Attention<T>& a, Shared<T>& s, const std::uint32_t* bits, int count, int q_block, int h, int b) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const int row = group * 64 + warp * 16 + lane / 4, first = q_block * tile;
  const int position = a.causal ? a.offset + first : a.m;  // of the first query
  // The blocks from `partial` on hold keys that not every query sees, or none at all. They come first.
  const int partial = a.causal ? min((position + 1) / tile, a.m / tile) : a.m / tile;
  const auto chosen = [&](int j) { return j / 32 < a.words && bits[j / 32] >> j % 32 & 1; };
  const int later = chosen(partial + 1), masked = later + chosen(partial);
  float out[64] = {}, c[64], top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, keep[2];
  std::uint32_t weights[8][4];

  const auto multiply_keys = [&](int stage) {
    hopper::hold(c);
    hopper::begin_products();
#pragma unroll
    for (int x = 0; x < 8; ++x)
      hopper::product_of_rows<T>(c, hopper::matrix(s.q + x / 4 * half_tile + group * 64 * 64 + x % 4 * 16),
                                 hopper::matrix(s.k[stage] + x / 4 * half_tile + x % 4 * 16), x > 0);
    hopper::commit();
  };
  const auto multiply_values = [&](int stage) {
    hopper::hold(out);
    hopper::begin_products();
#pragma unroll
    for (int x = 0; x < 8; ++x) hopper::product<T>(out, weights[x], hopper::matrix(s.v[stage] + x * 16 * 64, half_tile * 2));
    hopper::commit();
  };
  const auto release = [&](hopper::Barrier* empty) {
    if (lane == 0) hopper::arrive(empty);
  };
  const auto soften = [&](int i) {
    if (i < masked) {
      const int key = (partial + (later && i == 0)) * tile;
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int x = 0; x < 4; ++x)
          if (key + j * 8 + lane % 4 * 2 + x % 2 >= min(a.m, position + row + x / 2 * 8 + 1)) c[j * 4 + x] = -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int j = 0; j < 16; ++j) most = fmaxf(most, fmaxf(c[j * 4 + r * 2], c[j * 4 + r * 2 + 1]));
      most = quad_max(most);
      const float base = most == -INFINITY ? 0.f : most * a.scale;
      keep[r] = exp2_fast(top[r] * a.scale - base);
      top[r] = most;
      float added = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& y = c[j * 4 + r * 2 + x];
          y = exp2_fast(y * a.scale - base);
          added += y;
        }
      sum[r] = sum[r] * keep[r] + added;
    }
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int x = 0; x < 8; ++x)
#pragma unroll
      for (int y = 0; y < 4; ++y) weights[x][y] = pack<T>(c[x * 8 + y * 2], c[x * 8 + y * 2 + 1]);
  };
  const auto take_turn = [&] { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); };
  const auto give_turn = [&] { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); };

  if (count) {
    if (group == 1) give_turn();
    hopper::wait(&s.q_full, 0);
    hopper::wait(&s.k_full[0], 0);
    take_turn();
    multiply_keys(0);
    give_turn();
    hopper::wait_products<0>();
    hopper::hold(c);
    release(&s.k_empty[0]);
    soften(0);
    pack_weights();
    for (int i = 1; i < count; ++i) {
      const int now = i % stages, before = (i - 1) % stages;
      hopper::wait(&s.k_full[now], i / stages % 2);
      take_turn();
      multiply_keys(now);
      hopper::wait(&s.v_full[before], (i - 1) / stages % 2);
      multiply_values(before);
      give_turn();
      hopper::wait_products<1>();
      hopper::hold(c);
      release(&s.k_empty[now]);
      soften(i);
      hopper::wait_products<0>();
      hopper::hold(out);
      release(&s.v_empty[before]);
#pragma unroll
      for (int j = 0; j < 64; ++j) out[j] *= keep[j / 2 % 2];
      pack_weights();
    }
    hopper::wait(&s.v_full[(count - 1) % stages], (count - 1) / stages % 2);
    multiply_values((count - 1) % stages);
    hopper::wait_products<0>();
    hopper::hold(out);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = first + row + r * 8;
    const float total = quad_sum(sum[r]), inverse = total == 0 ? 0.f : 1.f / total;
    if (at >= a.n) continue;
    T* to = a.out.at(b, h) + at * a.out.row + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j)
      *reinterpret_cast<std::uint32_t*>(to + j * 8) = pack<T>(out[j * 4 + r * 2] * inverse, out[j * 4 + r * 2 + 1] * inverse);
    if (a.lse && lane % 4 == 0)
      a.lse[b * a.lse_batch + h * a.lse_head + at * a.lse_row] = total == 0 ? -INFINITY : (top[r] * a.scale + log2f(total)) * ln_2;
  }
}

template <class T>
__global__ void __launch_bounds__(384, 1) attend_tiles(const __grid_constant__ Maps maps, const Attention<T> a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  auto& s = *reinterpret_cast<Shared<T>*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  // The heads that read the same keys run side by side, the longest query blocks first.
  int x = static_cast<int>(blockIdx.x);
  const int within = x % a.share, q_block = a.q_blocks - 1 - x / a.share % a.q_blocks;
  x = x / a.share / a.q_blocks;
  const int groups = a.heads / a.share, h = x % groups * a.share + within, b = x / groups;
  const std::int64_t row = (std::int64_t{b} * a.heads + h) * a.q_blocks + q_block;
  const std::uint32_t* bits = a.bits + row * a.words;
  if (threadIdx.x == 0) {
    hopper::init(&s.q_full, 1);
    for (int i = 0; i < stages; ++i) {
      hopper::init(&s.k_full[i], 1), hopper::init(&s.v_full[i], 1);
      hopper::init(&s.k_empty[i], 8), hopper::init(&s.v_empty[i], 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
  }
  const int count = a.counts[row];
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < 32 && count) feed(a, maps, s, bits, q_block, h, b);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume(a, s, bits, count, q_block, h, b);
  }
#endif
}
}  // namespace

template <class T>
bool attend_hopper(const Attention<T>& a, int device, cudaStream_t stream) {
  const char* op = "block_sparse_attention";
  int major = 0;
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device");
  const std::int64_t groups = a.heads / a.share;
  if (major != 9 || a.block != tile || a.d != tile || a.e != tile || a.m == 0 || !(a.scale > 0) || !a.out.wide) return false;
  const auto describe = [&](CUtensorMap* map, const View<const T>& x, std::int64_t heads, std::int64_t rows) {
    return x.wide && hopper::describe<T, 4>(map, x.data, {tile, rows, heads, a.batch}, {1, x.row, x.head, x.batch}, {64, tile, 1, 1});
  };
  Maps maps{};
  if (!describe(&maps.q, a.q, a.heads, a.n) || !describe(&maps.k, a.k, groups, a.m) || !describe(&maps.v, a.v, groups, a.m)) return false;
  constexpr int bytes = static_cast<int>(sizeof(Shared<T>)) + 1024;
  check_cuda(op, cudaFuncSetAttribute(attend_tiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  attend_tiles<T><<<static_cast<unsigned>(std::int64_t{a.batch} * a.heads * a.q_blocks), 384, bytes, stream>>>(maps, a);
  check_cuda(op, cudaGetLastError(), "attending");
  return true;
}
}  // namespace core_llm_efficiency
