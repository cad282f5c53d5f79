// by_name FIXTURES LIBRARY: a C++17 host that loads plugins and calls operators by name, and survives the broken ones.
#include <core/loader.hpp>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace {
int failures = 0;

void check(bool ok, const char* what) {
  std::printf("%s %s\n", ok ? "ok    " : "FAILED", what);
  failures += !ok;
}
/// Whether `f` is refused with that kind and a message that holds `part`.
template <class F>
void refused(F&& f, const std::string& kind, const std::string& part, const char* what) {
  try {
    f();
    check(false, what);
  } catch (const core::host::Error& e) {
    const bool ok = e.kind == kind && std::string(e.what()).find(part) != std::string::npos;
    check(ok, what);
    if (!ok) std::printf("       %s: %s\n", e.kind.c_str(), e.what());
  }
}

/// Two threads of the host's own, lent to plugins.
int regions = 0;
void two_threads(std::int64_t n, std::int64_t, void (*body)(std::int64_t, std::int64_t, void*), void* ctx) {
  ++regions;
  std::thread other([=] { body(0, n / 2, ctx); });
  body(n / 2, n, ctx);
  other.join();
}
}  // namespace

int main(int argc, char** argv) {
  using core::host::Tensor;
  if (argc != 3) return 2;
  const std::string fixtures = argv[1], library = argv[2];
  core::host::Registry registry;

  check(std::string(registry.load(library).name) == "core_diffusion", "loads a plugin of an installed wheel");
  check(&registry.load(library) == &registry.load(library), "loading it again changes nothing");
  const float probs[2 * 4 * 3] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1};
  const std::int64_t totals[2] = {5, 6};
  std::int32_t counts[2 * 4] = {};
  const auto sample = [&](std::initializer_list<std::int64_t> shape) {
    registry.call("core_diffusion.fixed_sum_sample", {Tensor(probs, {2, 4, 3}), Tensor(totals, {2}), 1.0, 7, Tensor(counts, shape)});
  };
  sample({2, 4});
  check(counts[0] + counts[1] + counts[2] + counts[3] == 5 && counts[4] + counts[5] + counts[6] + counts[7] == 6,
        "calls an operator by name; the sums are exact");
  refused([&] { sample({4, 2}); }, "ValueError", "argument 'out'", "a wrong shape is refused with the argument's name");
  refused([&] { registry.call("core_diffusion.fixed_sum_sample", {1.0}); }, "TypeError", "takes 5 arguments",
          "a wrong number of arguments");

  refused([&] { registry.load(fixtures + "/nowhere.so"); }, "ImportError", "cannot load", "a missing file is refused");
  refused([&] { registry.load(fixtures + "/empty.so"); }, "ImportError", "cannot load", "an empty file is refused");
  refused([&] { registry.load(fixtures + "/libno_symbol.so"); }, "ImportError", "not a Core plugin", "a library without the symbol");
  refused([&] { registry.load(fixtures + "/libwrong_major.so"); }, "ImportError", "matching releases", "a wrong ABI is refused");
  refused([&] { registry.load(fixtures + "/libforeign_prefix.so"); }, "ImportError", "own prefix", "a foreign prefix is refused");
  refused([&] { registry.at("demo.stolen"); }, "KeyError", "no operator", "a refused plugin leaves no operator behind");
  sample({2, 4});

  double out[1000] = {};
  registry.load(fixtures + "/libgood.so");
  registry.call("demo.fill", {Tensor(out, {1000}), 1.5});
  check(out[0] == 1.5 && out[999] == 1.5 && regions == 0, "a plugin in C runs");
  const core_host host = {sizeof(core_host), 2, two_threads};
  registry.attach(&host);
  registry.call("demo.fill", {Tensor(out, {1000}), 2.5});
  check(out[0] == 2.5 && out[999] == 2.5 && regions == 1, "a plugin runs on the host's threads");
  sample({2, 4});
  registry.load(fixtures + "/librival.so");
  refused([&] { registry.at("demo.fill"); }, "KeyError", "is in both", "a name in two plugins is refused");
  registry.call("demo.only_here", {Tensor(out, {1000}), 3.5});
  check(out[500] == 3.5 && regions >= 2, "the other names of the two keep working, on the host's threads too");
  registry.attach(nullptr);

  core::host::Registry found;
  const auto problems = found.load_path();
  check(found.names() == std::vector<std::string>{"demo.fill"}, "CORE_PLUGIN_PATH is searched");
  check(problems.size() == 1, "and what is broken there is reported");
  return failures != 0;
}
