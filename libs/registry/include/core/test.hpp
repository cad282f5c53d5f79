// core/test.hpp - C++ tests without a framework: one executable per file that includes this.
//
//   CORE_TEST(adds) { CHECK(1 + 1 == 2); CHECK_NEAR(0.1 + 0.2, 0.3, 1e-12); CHECK_THROWS(f(), "ValueError"); }
//
// ./test_x [part of a name] runs the tests whose name holds it; the exit code is 0 when all passed.
#pragma once
#include <core/tensor.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace core::test {
struct Registered {
  const char* name;
  void (*body)();
};
inline std::vector<Registered>& tests() {
  static std::vector<Registered> t;
  return t;
}
inline int& failures() {
  static int n = 0;
  return n;
}
inline bool add(const char* name, void (*body)()) {
  tests().push_back({name, body});
  return true;
}
inline void fail(const char* file, int line, const char* what, const char* detail = "") {
  std::printf("%s:%d: failed: %s %s\n", file, line, what, detail);
  ++failures();
}
}  // namespace core::test

#define CORE_TEST(name)                                                                 \
  static void core_test_##name();                                                       \
  static const bool core_test_added_##name = core::test::add(#name, &core_test_##name); \
  static void core_test_##name()

#define CHECK(...) ((__VA_ARGS__) ? (void)0 : core::test::fail(__FILE__, __LINE__, #__VA_ARGS__))

#define CHECK_NEAR(a, b, tolerance)                                                                                   \
  do {                                                                                                                \
    const double core_a = static_cast<double>(a), core_b = static_cast<double>(b);                                    \
    char core_text[80];                                                                                               \
    std::snprintf(core_text, sizeof core_text, "(%.9g against %.9g)", core_a, core_b);                                \
    if (!(std::abs(core_a - core_b) <= (tolerance))) core::test::fail(__FILE__, __LINE__, #a " near " #b, core_text); \
  } while (0)

#define CHECK_THROWS(expression, error_kind)                                                                      \
  do {                                                                                                            \
    try {                                                                                                         \
      (void)(expression);                                                                                         \
      core::test::fail(__FILE__, __LINE__, #expression, "threw nothing");                                         \
    } catch (const core::Error& core_e) {                                                                         \
      if (std::strcmp(core_e.kind, error_kind)) core::test::fail(__FILE__, __LINE__, #expression, core_e.what()); \
    }                                                                                                             \
  } while (0)

int main(int argc, char** argv) {
  int run = 0;
  for (const auto& t : core::test::tests()) {
    if (argc > 1 && !std::strstr(t.name, argv[1])) continue;
    ++run;
    try {
      t.body();
    } catch (const std::exception& e) {
      core::test::fail(t.name, 0, "unexpected exception:", e.what());
    }
  }
  std::printf("%d tests, %d failed checks\n", run, core::test::failures());
  return core::test::failures() || run == 0;
}
