// facades PYTHON: a C++ program that embeds Python and calls the facades of two packages.
#include <core/embed.hpp>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <thread>

int main(int argc, char** argv) {
  using core::embed::Array;
  if (argc != 2) return 2;
  const core::embed::Interpreter python(argv[1]);

  // core_diffusion: counts of 4 codes that add up to 5, in C++ memory on both sides.
  const std::vector<double> probs(4 * 3, 1.0);
  const auto counts =
      python.call("core_diffusion.fixed_sum_sample", core::embed::numpy(probs.data(), {4, 3}), 5, core::embed::named("seed", 1));
  const Array<std::int32_t> c(counts);
  const int sum = std::accumulate(c.begin(), c.end(), 0);
  std::printf("core_diffusion: %zu counts, sum %d\n", c.size(), sum);
  if (c.size() != 4 || sum != 5) return 1;

  // A Python exception arrives as a C++ one.
  try {
    python.call("core_diffusion.fixed_sum_sample", core::embed::numpy(probs.data(), {4, 3}), 1000);
    return 1;
  } catch (const core::embed::Error& e) {
    std::printf("refused: %s: %s\n", e.kind.c_str(), e.what());
    if (e.kind != "ValueError") return 1;
  }

  // Another thread may call, too.
  int from_thread = 0;
  std::thread([&] {
    const auto again =
        python.call("core_diffusion.fixed_sum_sample", core::embed::numpy(probs.data(), {4, 3}), 5, core::embed::named("seed", 1));
    const Array<std::int32_t> same(again);
    from_thread = std::equal(c.begin(), c.end(), same.begin());
  }).join();
  if (!from_thread) return 1;

  return 0;
}
