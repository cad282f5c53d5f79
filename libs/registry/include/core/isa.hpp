// core/isa.hpp - one source, several x86-64 levels, chosen at run time.
//
//   static void row(const float* x, float* y, long n) { ... ordinary loops ... }
//   core::multiversion<&row>(x, y, n);
//
// `row` and all that it calls is compiled at levels v2, v3 (AVX2, FMA) and v4 (AVX-512).
// It must be inlinable: static or in an unnamed namespace, loops over local tiles.
// CORE_ISA=v2|v3|v4 forces a level. Elsewhere than on x86-64, and under
// ThreadSanitizer, there is one version.
#pragma once
#include <core/tensor.hpp>

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && !defined(__CUDACC__)
#define CORE_HAS_ISA_LEVELS 1
#else
#define CORE_HAS_ISA_LEVELS 0
#endif

namespace core {
inline namespace v1 {
enum class Isa : int { v2 = 2, v3 = 3, v4 = 4 };

/// The best level of this processor.
inline Isa best_isa() {
#if CORE_HAS_ISA_LEVELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::v4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
    return Isa::v3;
#endif
  return Isa::v2;
}

/// The level in use: best_isa(), or what CORE_ISA asks for.
/// Throws if CORE_ISA is not v2, v3 or v4, or is above what the processor has.
inline Isa isa() {
  static const Isa chosen = [] {
    const char* e = std::getenv("CORE_ISA");
    const Isa best = best_isa();
    if (!e || !*e) return best;
    for (Isa i : {Isa::v2, Isa::v3, Isa::v4}) {
      const char name[] = {'v', static_cast<char>('0' + static_cast<int>(i)), 0};
      if (std::strcmp(e, name)) continue;
      if (i > best)
        throw Error("RuntimeError", std::string("CORE_ISA=") + e + " asks for more than this processor has (v" +
                                        std::to_string(static_cast<int>(best)) + ")");
      return i;
    }
    throw Error("RuntimeError", std::string("CORE_ISA must be v2, v3 or v4, got '") + e + "'");
  }();
  return chosen;
}

#if CORE_HAS_ISA_LEVELS
// The release tool allows AVX instructions only in functions whose name holds isa_v3 or isa_v4.
namespace isa_v3 {
template <auto F, class... A>
__attribute__((target("arch=x86-64-v3"), flatten, noinline)) auto run(A... a) {
  return F(a...);
}
}  // namespace isa_v3
namespace isa_v4 {
template <auto F, class... A>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"), flatten, noinline)) auto run(A... a) {
  return F(a...);
}
}  // namespace isa_v4
#endif

template <auto F, class... A>
auto multiversion(A... a) {
#if CORE_HAS_ISA_LEVELS
  switch (isa()) {
    case Isa::v4: return isa_v4::run<F, A...>(a...);
    case Isa::v3: return isa_v3::run<F, A...>(a...);
    case Isa::v2: break;
  }
#endif
  return F(a...);
}
}  // namespace v1
}  // namespace core
