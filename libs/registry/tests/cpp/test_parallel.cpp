// The thread pool: coverage, exceptions, nesting, concurrency, forking, a lent parallel_for.
#include <sys/wait.h>
#include <unistd.h>
#include <core/parallel.hpp>
#include <core/test.hpp>

#include <numeric>

namespace {
/// Whether every index of [0, n) is visited once.
bool covers(std::int64_t n, std::int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
  core::parallel_for(n, grain, [&](std::int64_t b, std::int64_t e) {
    for (auto i = b; i < e; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  return std::all_of(seen.begin(), seen.end(), [](const auto& s) { return s == 1; });
}
std::atomic<int> lent{0};
void serial(std::int64_t n, std::int64_t, void (*body)(std::int64_t, std::int64_t, void*), void* ctx) {
  ++lent;
  body(0, n, ctx);
}
}  // namespace

CORE_TEST(visits_all_once) {
  for (std::int64_t n : {0, 1, 7, 64, 1000, 100003})
    for (std::int64_t grain : {1, 3, 64, 5000}) CHECK(covers(n, grain));
}

CORE_TEST(throws_to_the_caller) {
  const auto fails = [] {
    core::parallel_for(1000, 1, [](std::int64_t b, std::int64_t) {
      if (b > 0) throw core::Error("ValueError", "part failed");
    });
  };
  if (core::num_threads() > 1) CHECK_THROWS((fails(), 0), "ValueError");
  CHECK(covers(1000, 1));
}

CORE_TEST(nests_and_overlaps) {
  std::atomic<int> inner{0};
  core::parallel_for(8, 1, [&](std::int64_t b, std::int64_t e) {
    for (auto i = b; i < e; ++i) core::parallel_for(100, 1, [&](std::int64_t x, std::int64_t y) { inner += static_cast<int>(y - x); });
  });
  CHECK(inner == 800);
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) good += covers(257, 1);
    });
  for (auto& c : callers) c.join();
  CHECK(good == 200);
}

CORE_TEST(survives_fork) {
  CHECK(covers(1000, 1));
#if !defined(__SANITIZE_THREAD__)  // TSan forbids threads in a forked child
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    _exit(covers(1000, 1) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}

CORE_TEST(takes_the_hosts) {
  const core_host host{sizeof host, 5, &serial};
  core::detail::host().store(&host);
  CHECK(core::num_threads() == 5);
  CHECK(covers(1000, 1) && lent == 1);
  core::detail::host().store(nullptr);
  CHECK(covers(1000, 1) && lent == 1);
}
