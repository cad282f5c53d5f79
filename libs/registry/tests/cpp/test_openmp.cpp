// Borrowed threads: what they are asked for, when they are refused.
#include <sys/wait.h>
#include <unistd.h>
#include <core/openmp.hpp>
#include <core/test.hpp>

#include <thread>
#include <vector>

namespace {
using core::detail::OpenMp;
std::atomic<int> regions{0};
std::atomic<int> late_ms{0};
int offered = 3;

/// As libgomp: the region ends when each thread has; the last one begins late.
void parallel(OpenMp::Work work, void* context, unsigned threads, unsigned) {
  ++regions;
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t)
    others.emplace_back([=] {
      std::this_thread::sleep_for(std::chrono::milliseconds(late_ms));
      work(context);
    });
  work(context);
  for (auto& t : others) t.join();
}
const OpenMp::Library library{&parallel, [] { return offered; }};

struct Region {
  OpenMp threads{library};
  std::atomic<int> calls{0}, left{0};
  bool run(int wanted, int parts) {
    left = parts;
    return threads.run(
        wanted,
        [](void* p) {
          auto& r = *static_cast<Region*>(p);
          for (++r.calls; r.left-- > 0; r.threads.ended()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        },
        this);
  }
};
}  // namespace

CORE_TEST(runs_on_each_thread_once) {
  Region r;
  late_ms = 0;
  CHECK(r.run(3, 6));
  CHECK(r.calls == 3 && r.left < 0);
}

CORE_TEST(refuses_another_number_of_threads) {
  Region r;
  CHECK(!r.run(2, 2) && !r.run(4, 4));
  CHECK(r.calls == 0);
}

CORE_TEST(refuses_for_a_while_after_waiting) {
  Region r;
  late_ms = 30;
  const int before = regions;
  CHECK(r.run(3, 1));
  CHECK(regions == before + 1);
  CHECK(!r.run(3, 1) && !r.run(3, 1));
  CHECK(regions == before + 1 && r.calls == 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(40));
  late_ms = 0;
  CHECK(r.run(3, 1));
}

CORE_TEST(asks_nothing_in_a_forked_process) {
#if !defined(__SANITIZE_THREAD__)
  const pid_t child = fork();
  if (child == 0) {
    OpenMp torchs;
    int calls = 0;
    _exit(torchs.run(2, [](void* p) { ++*static_cast<int*>(p); }, &calls) || calls);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}
