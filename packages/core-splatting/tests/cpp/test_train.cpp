#include <core_splatting/train.hpp>

#include <core/test.hpp>

#include <vector>

CORE_TEST(an_image_is_like_itself_and_the_gradient_is_zero) {
  std::vector<float> image(70 * 9), out(70 * 9), partials(3 * 70 * 9), ones(70 * 9, 1.f), v(70 * 9, 9.f);
  for (std::size_t i = 0; i < image.size(); ++i) image[i] = static_cast<float>(i * 37 % 101) / 101.f;
  const auto in = [](const std::vector<float>& x) { return core::tensor(x.data(), 1, 1, 70, 9); };
  core_splatting::ssim(in(image), in(image), core::tensor(out.data(), 1, 1, 70, 9), core::tensor(partials.data(), 3, 1, 1, 70, 9));
  for (float x : out) CHECK_NEAR(x, 1, 1e-5);
  const float* const p = partials.data();
  core_splatting::ssim_backward(in(image), in(image), core::tensor(p, 3, 1, 1, 70, 9), in(ones), core::tensor(v.data(), 1, 1, 70, 9));
  for (float x : v) CHECK_NEAR(x, 0, 1e-3);
}

CORE_TEST(constant_images_have_the_similarity_of_the_formula) {
  std::vector<float> a(30 * 30, 0.5f), b(30 * 30, 0.25f), out(30 * 30);
  const float *x = a.data(), *y = b.data();
  core_splatting::ssim(core::tensor(x, 1, 1, 30, 30), core::tensor(y, 1, 1, 30, 30), core::tensor(out.data(), 1, 1, 30, 30), std::nullopt);
  CHECK_NEAR(out[15 * 30 + 15], (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4), 1e-4);
}

CORE_TEST(adam_moves_only_what_is_visible) {
  std::vector<float> p{1, 2, 3, 4}, g{1, -1, 1, 1}, m(4), v(4);
  std::vector<std::int32_t> steps{0, 5};
  const bool visible[] = {true, false};
  const float* const gradient = g.data();
  std::optional<core::Tensor<const float, 1>> rates;
  const auto step = [&](double beta) {
    core_splatting::selective_adam(core::tensor(p.data(), 2, 2), core::tensor(gradient, 2, 2), core::tensor(m.data(), 2, 2),
                                   core::tensor(v.data(), 2, 2), core::tensor(steps.data(), 2), core::tensor(visible, 2), rates, 0.1, beta,
                                   0.999, 1e-15);
  };
  step(0.9);
  CHECK_NEAR(p[0], 0.9, 1e-6);  // the first step is of length lr
  CHECK_NEAR(p[1], 2.1, 1e-6);
  CHECK(p[2] == 3 && p[3] == 4 && m[2] == 0 && steps[0] == 1 && steps[1] == 5);
  const float twice_and_none[] = {2, 0};
  rates = core::tensor(twice_and_none, 2);
  step(0.9);
  CHECK_NEAR(p[0], 0.7, 1e-5);
  CHECK_NEAR(p[1], 2.1, 1e-6);
  CHECK_THROWS(step(1.0), "ValueError");
  steps[1] = -1;
  CHECK_THROWS(step(0.9), "ValueError");
}
