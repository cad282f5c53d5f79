// core/parallel.hpp - one small thread pool per plugin library, torch's or the host's.
//
// Workers sleep between regions (no spinning), so a second runtime in the same process is not
// starved; where that is torch's OpenMP, its threads do the work if they can (see openmp.hpp).
// A forked child starts with a fresh pool. Nested and concurrent regions run inline.
// CORE_NUM_THREADS sets the size; default: the affinity.
#pragma once
#include <core/abi.h>
#include <pthread.h>
#include <sched.h>
#include <core/openmp.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>

namespace core {
inline namespace v1 {
namespace detail {

/// What the host lent, see core_plugin::attach.
inline std::atomic<const core_host*>& host() {
  static std::atomic<const core_host*> h{nullptr};
  return h;
}

class Pool {
 public:
  using Body = void (*)(std::int64_t, std::int64_t, void*);

  static Pool& get() {
    Pool* p = slot().load(std::memory_order_acquire);
    return p ? *p : create();
  }
  int size() const { return workers_ + 1; }

  void run(std::int64_t n, std::int64_t grain, Body body, void* ctx) {
    const std::int64_t chunks = std::min<std::int64_t>(size() * 4, (n - 1) / std::max<std::int64_t>(grain, 1) + 1);
    std::unique_lock busy(busy_, std::defer_lock);
    if (chunks <= 1 || workers_ == 0 || nested() || !busy.try_lock()) return body(0, n, ctx);
    body_ = body;
    ctx_ = ctx;
    n_ = n;
    chunks_ = chunks;
    next_ = 0;
    if (openmp_.run(size(), [](void* pool) { static_cast<Pool*>(pool)->work(); }, this)) return;
    {
      std::lock_guard l(m_);
      open_ = true;
      ++epoch_;
    }
    cv_.notify_all();
    work();
    std::unique_lock l(m_);
    open_ = false;
    done_.wait(l, [&] { return active_ == 0; });
  }

 private:
  static std::atomic<Pool*>& slot() {
    static std::atomic<Pool*> s{nullptr};
    return s;
  }
  static std::mutex& creation() {
    static std::mutex m;
    return m;
  }
  static bool& nested() {
    static thread_local bool v = false;
    return v;
  }
  static Pool& create() {
    static const int once = pthread_atfork(nullptr, nullptr, [] {
      slot().store(nullptr);  // the parent's pool is left alone: its threads do not exist here
      new (&creation()) std::mutex;
      nested() = false;
    });
    (void)once;
    std::lock_guard l(creation());
    if (Pool* p = slot().load()) return *p;
    Pool* p = new Pool;  // never destroyed: no join at exit
    slot().store(p, std::memory_order_release);
    return *p;
  }
  static int wanted_threads() {
    if (const char* e = std::getenv("CORE_NUM_THREADS"))
      if (const int n = std::atoi(e); n > 0) return std::min(n, 1024);
    cpu_set_t s;
    CPU_ZERO(&s);
    return sched_getaffinity(0, sizeof s, &s) == 0 ? CPU_COUNT(&s) : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  Pool() {
    for (int want = wanted_threads() - 1; workers_ < want; ++workers_) try {
        std::thread([this] { loop(); }).detach();
      } catch (const std::system_error&) {
        break;  // fewer threads than wanted are enough
      }
  }
  void loop() {
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock l(m_);
        cv_.wait(l, [&] { return epoch_ != seen; });
        seen = epoch_;
        if (!open_) continue;
        ++active_;
      }
      work();
      std::lock_guard l(m_);
      if (--active_ == 0) done_.notify_one();
    }
  }
  void work() {
    nested() = true;
    for (std::int64_t c; (c = next_.fetch_add(1)) < chunks_; openmp_.ended()) {
      const auto at = [&](std::int64_t i) { return n_ / chunks_ * i + n_ % chunks_ * i / chunks_; };
      body_(at(c), at(c + 1), ctx_);
    }
    nested() = false;
  }

  OpenMp openmp_;  // under busy_
  std::mutex busy_, m_;
  std::condition_variable cv_, done_;
  std::atomic<std::int64_t> next_{0};
  std::int64_t n_ = 0, chunks_ = 0;
  int active_ = 0, workers_ = 0;
  bool open_ = false;
  std::uint64_t epoch_ = 0;
  Body body_ = nullptr;
  void* ctx_ = nullptr;
};
}  // namespace detail

/// The number of threads that parallel_for may use, the caller's included.
inline int num_threads() {
  const core_host* h = detail::host().load(std::memory_order_acquire);
  return h && h->parallel_for ? static_cast<int>(h->num_threads) : detail::Pool::get().size();
}

/// Runs f(begin, end) over [0, n) in parts of at least `grain`. The first exception that a
/// part throws is thrown to the caller once all parts have ended.
template <class F>
void parallel_for(std::int64_t n, std::int64_t grain, F&& f) {
  if (n <= 0) return;
  if (n <= grain) return f(std::int64_t{0}, n);
  struct Context {
    std::remove_reference_t<F>* f;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
  } ctx{&f};
  const auto body = [](std::int64_t b, std::int64_t e, void* p) {
    auto& c = *static_cast<Context*>(p);
    if (c.failed.load(std::memory_order_relaxed)) return;
    try {
      (*c.f)(b, e);
    } catch (...) {
      if (!c.failed.exchange(true)) c.error = std::current_exception();
    }
  };
  const core_host* h = detail::host().load(std::memory_order_acquire);
  if (h && h->parallel_for)
    h->parallel_for(n, grain, body, &ctx);
  else
    detail::Pool::get().run(n, grain, body, &ctx);
  if (ctx.error) std::rethrow_exception(ctx.error);
}
}  // namespace v1
}  // namespace core
