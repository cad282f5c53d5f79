// link FRAME.ppm: an application that links Core::splatting and renders a ring of Gaussians.
#include <core_splatting/rasterize.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  constexpr std::int64_t count = 60, width = 96, height = 64;
  std::vector<float> means, quats, scales, opacities(count, 0.8F), colors;
  for (int i = 0; i < count; ++i) {
    const float angle = 2 * 3.14159265F * static_cast<float>(i) / count;
    means.insert(means.end(), {1.6F * std::cos(angle), std::sin(angle), 4});
    quats.insert(quats.end(), {std::cos(angle / 2), 0, 0, std::sin(angle / 2)});
    scales.insert(scales.end(), {0.02F, 0.12F, 0.05F});
    colors.insert(colors.end(), {0.5F + 0.5F * std::cos(angle), 0.5F + 0.5F * std::sin(angle), 0.4F});
  }
  const float view[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  const float camera[9] = {90, 0, width / 2.0F, 0, 90, height / 2.0F, 0, 0, 1};
  std::vector<float> frame(height * width * 3), alphas(height * width);

  const auto render = [&](std::int64_t rows) {
    core_splatting::rasterize(core::tensor<const float>(means.data(), count, 3), core::tensor<const float>(quats.data(), count, 4),
                              core::tensor<const float>(scales.data(), count, 3), std::nullopt,
                              core::tensor<const float>(opacities.data(), count), core::tensor<const float>(colors.data(), 1, count, 3),
                              core::tensor(view, 1, 4, 4), core::tensor(camera, 1, 3, 3), std::nullopt, 0.01, 1e10, 0, 0.3, 0.999, false,
                              "pinhole", 1, core::tensor(frame.data(), 1, rows, width, 3), core::tensor(alphas.data(), 1, rows, width));
  };
  render(height);
  const float most = *std::max_element(alphas.begin(), alphas.end());
  std::printf("rendered %d Gaussians, largest alpha %.3f\n", static_cast<int>(count), static_cast<double>(most));
  if (!(most > 0.7F && most <= 1)) return 1;

  std::ofstream file(argv[1], std::ios::binary);
  file << "P6\n" << width << ' ' << height << "\n255\n";
  for (const float v : frame) file.put(static_cast<char>(std::lround(255 * std::clamp(v, 0.0F, 1.0F))));
  file.close();
  return file ? 0 : 1;
}
