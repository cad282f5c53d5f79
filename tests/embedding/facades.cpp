// facades PYTHON: a C++ program that embeds Python and calls the facades of two packages.
#include <core/embed.hpp>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <thread>

int main(int argc, char** argv) {
  using core::embed::Array, core::embed::named, core::embed::numpy;
  if (argc != 2) return 2;
  const core::embed::Interpreter python(argv[1]);

  // core_diffusion: counts of 4 codes that add up to 5, in C++ memory on both sides.
  const std::vector<double> probs(4 * 3, 1.0);
  const auto counts = python.call("core_diffusion.fixed_sum_sample", numpy(probs.data(), {4, 3}), 5, named("seed", 1));
  const Array<std::int32_t> c(counts);
  const int sum = std::accumulate(c.begin(), c.end(), 0);
  std::printf("core_diffusion: %zu counts, sum %d\n", c.size(), sum);
  if (c.size() != 4 || sum != 5) return 1;

  // A Python exception arrives as a C++ one.
  try {
    python.call("core_diffusion.fixed_sum_sample", numpy(probs.data(), {4, 3}), 1000);
    return 1;
  } catch (const core::embed::Error& e) {
    std::printf("refused: %s: %s\n", e.kind.c_str(), e.what());
    if (e.kind != "ValueError") return 1;
  }

  // Another thread may call, too.
  int from_thread = 0;
  std::thread([&] {
    const auto again = python.call("core_diffusion.fixed_sum_sample", numpy(probs.data(), {4, 3}), 5, named("seed", 1));
    const Array<std::int32_t> same(again);
    from_thread = std::equal(c.begin(), c.end(), same.begin());
  }).join();
  if (!from_thread) return 1;

  // core_splatting: one red Gaussian before one camera.
  const float mean[3] = {0, 0, 3}, quat[4] = {1, 0, 0, 0}, scale[3] = {0.2F, 0.2F, 0.2F}, opacity[1] = {0.9F}, red[3] = {1, 0, 0};
  const float view[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, camera[9] = {40, 0, 16, 0, 40, 12, 0, 0, 1};
  const auto rendered = python.call("core_splatting.rasterization", numpy(mean, {1, 3}), numpy(quat, {1, 4}), numpy(scale, {1, 3}),
                                    numpy(opacity, {1}), numpy(red, {1, 3}), numpy(view, {1, 4, 4}), numpy(camera, {1, 3, 3}), 32, 24);
  const Array<float> image(rendered[0]);
  const float* centre = image.data() + (12 * 32 + 16) * 3;
  std::printf("core_splatting: %zu values, centre %.2f %.2f %.2f\n", image.size(), static_cast<double>(centre[0]),
              static_cast<double>(centre[1]), static_cast<double>(centre[2]));
  return image.size() == 24 * 32 * 3 && centre[0] > 0.7F && centre[1] == 0 ? 0 : 1;
}
