// What the CPU and the CUDA versions of the training operators share.
#pragma once
#include <core_splatting/train.hpp>

#include <string>

#if defined(__CUDACC__)
#define CORE_SPLATTING_BOTH __host__ __device__
#else
#define CORE_SPLATTING_BOTH
#endif

namespace core_splatting {

constexpr int window = 11, reach = window / 2;
/// exp(-i^2 / (2 1.5^2)) for i = -5 .. 5, of sum 1.
constexpr float window_weights[window] = {0.00102838008f, 0.00759875814f, 0.0360007721f, 0.109360690f,   0.213005538f,  0.266011725f,
                                          0.213005538f,   0.109360690f,   0.0360007721f, 0.00759875814f, 0.00102838008f};

struct Similarity {
  float value, by_mean, by_square, by_product;
};

/// From the windowed means of x, y, x^2, y^2 and x y.
CORE_SPLATTING_BOTH inline Similarity similarity(float mx, float my, float xx, float yy, float xy) {
  constexpr float c1 = 0.01f * 0.01f, c2 = 0.03f * 0.03f;
  const float a = 2.f * mx * my + c1, b = 2.f * (xy - mx * my) + c2;
  const float c = mx * mx + my * my + c1, d = (xx - mx * mx) + (yy - my * my) + c2;
  const float over = 1.f / (c * d), value = a * b * over;
  const float by_square = -value / d, by_product = 2.f * a * over;
  const float by_mean = 2.f * (my * b * over - mx * value / c - by_square * mx) - by_product * my;
  return {value, by_mean, by_square, by_product};
}

inline void check_adam(double lr, double beta1, double beta2, double eps) {
  const auto refuse = [](const char* name, const char* must, double got) {
    throw core::Error("ValueError",
                      std::string("selective_adam: argument '") + name + "' must be " + must + ", got " + std::to_string(got));
  };
  if (!(lr >= 0) || lr > 3e38) refuse("lr", "finite and not negative", lr);
  if (!(eps >= 0) || eps > 3e38) refuse("eps", "finite and not negative", eps);
  if (!(beta1 >= 0 && beta1 < 1)) refuse("beta1", "in [0, 1)", beta1);
  if (!(beta2 >= 0 && beta2 < 1)) refuse("beta2", "in [0, 1)", beta2);
}

}  // namespace core_splatting
