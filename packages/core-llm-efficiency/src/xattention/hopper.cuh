// Hopper's own instructions: memory barriers, bulk tensor copies and warpgroup matrix products.
#pragma once
#include <cuda.h>

#include "device.cuh"

namespace core_llm_efficiency::hopper {

/// Tells the copy engine how an operand lies in memory: `size` and, but for the first, `step` in elements of each
/// dimension, boxes of 64 columns, swizzled over their 128 bytes. False if it cannot be told so.
template <class T, std::size_t Rank>
bool describe(CUtensorMap* map, const T* data, const std::array<std::int64_t, Rank>& size, const std::array<std::int64_t, Rank>& step,
              const std::array<cuuint32_t, Rank>& box) {
  const auto find = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      f = nullptr;
    cudaGetLastError();
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
  };
  static const auto encode = find();
  if (!encode) return false;
  cuuint64_t sizes[Rank], bytes[Rank];
  cuuint32_t every[Rank];
  for (std::size_t i = 0; i < Rank; ++i) {
    if (step[i] <= 0 && size[i] > 1) return false;
    sizes[i] = static_cast<cuuint64_t>(size[i]), every[i] = 1;
    bytes[i] = size[i] > 1 ? static_cast<cuuint64_t>(step[i]) * sizeof(T) : 16;
  }
  return encode(map, std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                static_cast<cuuint32_t>(Rank), const_cast<T*>(data), sizes, bytes + 1, box.data(), every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

using Barrier = std::uint64_t;

__device__ inline void init(Barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals));
}
__device__ inline void expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ inline void arrive(Barrier* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory"); }
__device__ inline void wait(Barrier* b, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @done bra ready;\n bra again;\n"
      "ready:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

/// Copies one box to shared memory; the barrier counts its bytes. What lies outside of the operand is zero.
__device__ inline void copy(void* to, const CUtensorMap* map, Barrier* b, int column, int row, int head, int batch) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(b)), "r"(column), "r"(row), "r"(head), "r"(batch)
               : "memory");
}

__device__ inline void copy(void* to, const CUtensorMap* map, Barrier* b, int column, int row, int tile, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(b)), "r"(column), "r"(row), "r"(tile), "r"(head), "r"(batch)
      : "memory");
}

/// Copies a piece of memory whose place and size are multiples of 16 bytes.
__device__ inline void copy(void* to, const void* from, int bytes, Barrier* b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(b))
               : "memory");
}

/// A matrix in shared memory, of rows of 128 swizzled bytes. leading: bytes between pieces of 64 columns, where those run
/// along the product's free dimension.
__device__ inline std::uint64_t matrix(const void* p, int leading = 16) {
  return static_cast<std::uint64_t>((shared_address(p) & 0x3ffff) >> 4) | static_cast<std::uint64_t>(leading >> 4) << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Left>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
/// Keeps the compiler from moving uses of accumulators across a wait.
template <int N>
__device__ inline void hold(float (&c)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

#define CORE_FLOATS_8(c, i) \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define CORE_FLOATS_64(c)                                                                                                           \
  CORE_FLOATS_8(c, 0), CORE_FLOATS_8(c, 8), CORE_FLOATS_8(c, 16), CORE_FLOATS_8(c, 24), CORE_FLOATS_8(c, 32), CORE_FLOATS_8(c, 40), \
      CORE_FLOATS_8(c, 48), CORE_FLOATS_8(c, 56)
#define CORE_ACCUMULATORS_64                                                                                                        \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33," \
  "%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define CORE_PRODUCT_SHARED(type)                                                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " " CORE_ACCUMULATORS_64 ", %64, %65, p, 1, 1, 0, 0;\n}"                                               \
               : CORE_FLOATS_64(c)                                                                                    \
               : "l"(a), "l"(b), "r"(add))
#define CORE_FLOATS_32(c) CORE_FLOATS_8(c, 0), CORE_FLOATS_8(c, 8), CORE_FLOATS_8(c, 16), CORE_FLOATS_8(c, 24)
#define CORE_ACCUMULATORS_32 \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define CORE_NARROW_PRODUCT_SHARED(type)                                                                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " " CORE_ACCUMULATORS_32 ", %32, %33, p, 1, 1, 0, 0;\n}"                                              \
               : CORE_FLOATS_32(c)                                                                                   \
               : "l"(a), "l"(b), "r"(add))
#define CORE_FLOATS_128(c)                                                                                                         \
  CORE_FLOATS_64(c), CORE_FLOATS_8(c, 64), CORE_FLOATS_8(c, 72), CORE_FLOATS_8(c, 80), CORE_FLOATS_8(c, 88), CORE_FLOATS_8(c, 96), \
      CORE_FLOATS_8(c, 104), CORE_FLOATS_8(c, 112), CORE_FLOATS_8(c, 120)
#define CORE_ACCUMULATORS_128                                                                                                             \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%"  \
  "35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%"  \
  "68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%" \
  "101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"
#define CORE_WIDE_PRODUCT_SHARED(type)                                                                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type \
               " " CORE_ACCUMULATORS_128 ", %128, %129, p, 1, 1, 0, 0;\n}"                                             \
               : CORE_FLOATS_128(c)                                                                                    \
               : "l"(a), "l"(b), "r"(add))
#define CORE_PRODUCT_REGISTERS(type)                                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " CORE_ACCUMULATORS_64 \
               ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                                               \
               : CORE_FLOATS_64(c)                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/// c = a b^T, or c += a b^T with `add`; a[64 x 16], b[128 x 16].
template <class T>
__device__ inline void product_of_rows(float (&c)[64], std::uint64_t a, std::uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>)
    CORE_PRODUCT_SHARED("f16");
  else
    CORE_PRODUCT_SHARED("bf16");
}
/// The same with b[64 x 16].
template <class T>
__device__ inline void product_of_rows(float (&c)[32], std::uint64_t a, std::uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>)
    CORE_NARROW_PRODUCT_SHARED("f16");
  else
    CORE_NARROW_PRODUCT_SHARED("bf16");
}
/// The same with b[256 x 16].
template <class T>
__device__ inline void product_of_rows(float (&c)[128], std::uint64_t a, std::uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>)
    CORE_WIDE_PRODUCT_SHARED("f16");
  else
    CORE_WIDE_PRODUCT_SHARED("bf16");
}
/// c += a b; a[64 x 16] in registers, b[16 x 128].
template <class T>
__device__ inline void product(float (&c)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>)
    CORE_PRODUCT_REGISTERS("f16");
  else
    CORE_PRODUCT_REGISTERS("bf16");
}
#undef CORE_PRODUCT_SHARED
#undef CORE_PRODUCT_REGISTERS
#undef CORE_WIDE_PRODUCT_SHARED
#undef CORE_NARROW_PRODUCT_SHARED

}  // namespace core_llm_efficiency::hopper
