// core/openmp.hpp - torch's OpenMP threads, lent to the pool while their cores are free.
//
// After an operator of torch its workers spin for milliseconds: own workers beside them get half of each core, but a region
// on them starts at once. Its end waits for all of them, even one that the system has not run yet, so after such a wait
// regions are refused for a while. In a forked process, where these threads do not exist, libgomp would wait for ever: it is
// never asked there. CORE_TORCH_THREADS=0 forbids all of it.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace core {
inline namespace v1 {
namespace detail {

/// For one thread at a time.
class OpenMp {
 public:
  using Clock = std::chrono::steady_clock;
  using Work = void (*)(void*);
  struct Library {
    void (*parallel)(Work, void*, unsigned threads, unsigned flags);  // GOMP_parallel
    int (*threads)();                                                 // omp_get_max_threads
  };

  OpenMp() : refused_(forked()) {
    if (const char* e = std::getenv("CORE_TORCH_THREADS"); e && std::atoi(e) == 0) refused_ = true;
  }
  /// With a library other than torch's.
  explicit OpenMp(Library library) : library_(library) {}

  /// Has so many threads, the caller's among them, call work(context), and returns true once all have ended; false, with
  /// nothing called, where there are not so many or a region waited for one a short while ago. Who works says ended().
  bool run(int threads, Work work, void* context) {
    if (refused_ || Clock::now() < again_ || !find() || library_.threads() != threads) return false;
    ended();
    library_.parallel(work, context, static_cast<unsigned>(threads), 0);
    const auto now = Clock::now();
    if (now - Clock::time_point(Clock::duration(last_.load(std::memory_order_relaxed))) <= patience)
      pause_ = std::max(least, pause_ / 2);
    else
      again_ = now + pause_, pause_ = std::min(most, pause_ * 4);
    return true;
  }
  /// A part of the work has ended now.
  void ended() { last_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

 private:
  static constexpr Clock::duration patience = std::chrono::microseconds(100), least = std::chrono::milliseconds(20),
                                   most = std::chrono::seconds(10);

  /// Whether this process was forked, and no other program started in it. True where the system does not tell.
  static bool forked() {
    constexpr unsigned forked_without_exec = 0x40;
    unsigned flags = forked_without_exec;
    if (std::FILE* f = std::fopen("/proc/self/stat", "r")) {
      char text[512] = {};
      const std::size_t size = std::fread(text, 1, sizeof text - 1, f);
      std::fclose(f);
      const char* fields = size ? std::strrchr(text, ')') : nullptr;  // behind the program's name
      if (fields) std::sscanf(fields, ") %*c %*d %*d %*d %*d %*d %u", &flags);
    }
    return flags & forked_without_exec;
  }

  /// Looks for torch's library whenever others were loaded since the last time.
  bool find() {
    if (library_.parallel) return true;
    struct Search {
      unsigned long long seen, loads = 0;
      std::string name{};
    } search{loads_};
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* p) {
          auto& s = *static_cast<Search*>(p);
          s.loads = info->dlpi_adds;
          if (s.loads == s.seen) return 1;
          if (std::strstr(info->dlpi_name, "/torch/lib/libgomp")) s.name = info->dlpi_name;
          return 0;
        },
        &search);
    loads_ = search.loads;
    void* const torchs = search.name.empty() ? nullptr : dlopen(search.name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!torchs) return false;
    const auto parallel = reinterpret_cast<decltype(Library::parallel)>(dlsym(torchs, "GOMP_parallel"));
    const auto threads = reinterpret_cast<decltype(Library::threads)>(dlsym(torchs, "omp_get_max_threads"));
    if (parallel && threads) library_ = {parallel, threads};
    return library_.parallel;
  }

  Library library_{};
  bool refused_ = false;
  unsigned long long loads_ = 0;
  Clock::time_point again_{};
  Clock::duration pause_ = least;
  std::atomic<Clock::rep> last_{0};
};
}  // namespace detail
}  // namespace v1
}  // namespace core
