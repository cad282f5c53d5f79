#include <core_splatting/rasterize.hpp>

#include <core/test.hpp>

#include <limits>

namespace {

struct Scene {
  std::vector<float> means, quats, scales, opacities, colors;
  std::vector<float> view = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, K = {20, 0, 10, 0, 20, 8, 0, 0, 1};
  std::vector<float> image = std::vector<float>(20 * 16 * 3, -1.f), alphas = std::vector<float>(20 * 16, -1.f);

  void add(float x, float y, float z, float scale, float opacity, float red, float green) {
    means.insert(means.end(), {x, y, z});
    quats.insert(quats.end(), {1, 0, 0, 0});
    scales.insert(scales.end(), 3, scale);
    opacities.push_back(opacity);
    colors.insert(colors.end(), {red, green, 0});
  }
  void render(double max_alpha = 0.999, double near_plane = 0.01) {
    const auto n = static_cast<std::int64_t>(opacities.size());
    const auto in = [](const std::vector<float>& v) { return v.data(); };
    core_splatting::rasterize(core::tensor(in(means), n, 3), core::tensor(in(quats), n, 4), core::tensor(in(scales), n, 3), std::nullopt,
                              core::tensor(in(opacities), n), core::tensor(in(colors), 1, n, 3), core::tensor(in(view), 1, 4, 4),
                              core::tensor(in(K), 1, 3, 3), std::nullopt, near_plane, 1e10, 0.0, 0.3, max_alpha, false, "pinhole", 1,
                              core::tensor(image.data(), 1, 16, 20, 3), core::tensor(alphas.data(), 1, 16, 20), std::nullopt);
  }
  float alpha(int row, int column) const { return alphas[static_cast<std::size_t>(row * 20 + column)]; }
  float color(int row, int column, int channel) const { return image[static_cast<std::size_t>((row * 20 + column) * 3 + channel)]; }
};

}  // namespace

CORE_TEST(one_gaussian_has_the_alphas_of_its_formula) {
  Scene s;
  s.add(0.025f, 0.025f, 1.f, 0.05f, 0.8f, 1, 0);  // projects to (10.5, 8.5), a pixel's centre
  s.render();
  CHECK_NEAR(s.alpha(8, 10), 0.8, 1e-6);
  // The Jacobian's third column adds (f x / z^2)^2 scale^2 to the variance.
  const double variance = 0.05 * 0.05 * (400 + 0.25) + 0.3, covariance = 0.05 * 0.05 * 0.25;
  const double inverse = variance / (variance * variance - covariance * covariance);
  CHECK_NEAR(s.alpha(8, 12), 0.8 * std::exp(-0.5 * 4 * inverse), 1e-6);
  CHECK_NEAR(s.color(8, 12, 0), s.alpha(8, 12), 1e-7);
  CHECK(s.alpha(0, 0) == 0);
}

CORE_TEST(nearer_gaussians_cover_farther_ones_whatever_their_order) {
  Scene s;
  s.add(0.05f, 0.05f, 2.f, 0.3f, 0.5f, 0, 1);
  s.add(0.025f, 0.025f, 1.f, 0.3f, 0.6f, 1, 0);
  s.render();
  CHECK_NEAR(s.color(8, 10, 0), 0.6, 1e-5);
  CHECK_NEAR(s.color(8, 10, 1), 0.4 * 0.5, 1e-5);
}

CORE_TEST(the_gaussian_that_would_finish_a_pixel_does_not_contribute) {
  Scene s;
  for (int i = 0; i < 3; ++i)
    s.add(0.025f * (1 + 0.1f * static_cast<float>(i)), 0.025f * (1 + 0.1f * static_cast<float>(i)), 1 + 0.1f * static_cast<float>(i), 0.3f,
          1.f, 1, 0);
  s.render(0.99);
  CHECK_NEAR(s.alpha(8, 10), 0.99, 1e-6);  // 1 - 0.99^2 would leave 1e-4
}

CORE_TEST(nothing_to_draw) {
  Scene s;
  s.render();
  CHECK(s.alpha(3, 3) == 0 && s.color(3, 3, 1) == 0);
  s.add(std::numeric_limits<float>::quiet_NaN(), 0, 1, 1, 1, 1, 1);
  s.add(0, 0, -1, 1, 1, 1, 1);
  s.render();
  CHECK(s.alpha(3, 3) == 0 && s.color(3, 3, 1) == 0);
}

CORE_TEST(scalars_and_cameras_are_checked) {
  Scene s;
  CHECK_THROWS(s.render(1.0), "ValueError");
  CHECK_THROWS(s.render(0.9, 0.0), "ValueError");
  s.K[0] = 0;
  CHECK_THROWS(s.render(), "ValueError");
}

CORE_TEST(the_gradient_of_one_gaussian_is_that_of_its_formula) {
  Scene s;
  s.add(0.025f, 0.025f, 1.f, 0.05f, 0.8f, 1, 0);
  s.render();
  std::vector<float> v_image(20 * 16 * 3), v_alphas(20 * 16);
  v_alphas[8 * 20 + 10] = 2;       // the centre's pixel: alpha is the opacity
  v_image[(8 * 20 + 10) * 3] = 3;  // and its red is opacity times red
  std::vector<float> means(3), quats(4), scales(3), opacities(1), colors(3), view(16), means2d(4);
  const auto in = [](const std::vector<float>& v) { return v.data(); };
  core_splatting::rasterize_backward(core::tensor(in(s.means), 1, 3), core::tensor(in(s.quats), 1, 4), core::tensor(in(s.scales), 1, 3),
                                     std::nullopt, core::tensor(in(s.opacities), 1), core::tensor(in(s.colors), 1, 1, 3),
                                     core::tensor(in(s.view), 1, 4, 4), core::tensor(in(s.K), 1, 3, 3), 0.01, 1e10, 0.0, 0.3, 0.999, false,
                                     "pinhole", 1, core::tensor(in(s.image), 1, 16, 20, 3), core::tensor(in(s.alphas), 1, 16, 20),
                                     core::tensor(in(v_image), 1, 16, 20, 3), core::tensor(in(v_alphas), 1, 16, 20), std::nullopt, false,
                                     core::tensor(means.data(), 1, 3), core::tensor(quats.data(), 1, 4), core::tensor(scales.data(), 1, 3),
                                     std::nullopt, core::tensor(opacities.data(), 1), core::tensor(colors.data(), 1, 1, 3),
                                     core::tensor(view.data(), 1, 4, 4), core::tensor(means2d.data(), 1, 1, 4));
  CHECK_NEAR(opacities[0], 5, 1e-5);
  CHECK_NEAR(colors[0], 3 * 0.8, 1e-5);
  CHECK_NEAR(colors[1], 0, 1e-7);
  CHECK_NEAR(scales[0], 0, 1e-4);
  CHECK_NEAR(means2d[0], 0, 1e-4);
}
