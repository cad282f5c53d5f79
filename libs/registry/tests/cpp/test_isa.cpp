// Levels of the instruction set: the same sums at each, and CORE_ISA.
#include <core/isa.hpp>
#include <core/test.hpp>

namespace {
float dot(const float* x, std::int64_t n) {
  float lanes[16]{};
  for (std::int64_t i = 0; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += x[i + j] * 2.0f;
  float s = 0;
  for (float l : lanes) s += l;
  return s;
}
}  // namespace

CORE_TEST(dispatches) {
  float x[160];
  for (int i = 0; i < 160; ++i) x[i] = static_cast<float>(i);
  CHECK_NEAR(core::multiversion<&dot>(static_cast<const float*>(x), std::int64_t{160}), 160 * 159, 0);
}

CORE_TEST(honours_the_environment) {
  const char* e = std::getenv("CORE_ISA");
  if (e && *e)
    CHECK(std::string("v") + std::to_string(static_cast<int>(core::isa())) == e);
  else
    CHECK(core::isa() == core::best_isa());
}
