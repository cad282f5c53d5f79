// The laws of a row's codes on the CPU, and their tilt towards a total.
#pragma once
#include <core/tensor.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace core_diffusion::fixed_sum {
using std::int64_t;

inline constexpr int64_t lanes = 4;                       // laws and table rows are padded by as many zeros
inline constexpr int64_t max_scratch = int64_t{1} << 29;  // doubles of one row's laws, and of its table: 4 GiB

[[gnu::cold, noreturn]] inline void too_large(const char* op, const char* what, int64_t doubles) {
  throw core::Error("MemoryError",
                    std::string(op) + ": " + what + " of one row needs " + std::to_string(doubles / 131072) + " MiB, more than 4096 MiB");
}

/// The random codes of one row: code[i] has low[i] + k with a probability in proportion to
/// weight[first[i] + k], 0 <= k <= span[i].
struct Laws {
  std::vector<int64_t> code, low, span, first;
  std::vector<double> weight, log_weight;
  int64_t residual = 0;  // the total less all least counts
  int64_t reach = 0;     // the sum of all spans
  const char* op;        // the operator's name, for messages

  explicit Laws(const char* op) : op(op) {}

  int64_t size() const { return static_cast<int64_t>(code.size()); }
  void reset(int64_t total) {
    for (auto* v : {&code, &low, &span, &first}) v->clear();
    weight.clear();
    log_weight.clear();
    residual = total;
    reach = 0;
  }
  /// Appends a code with counts lowest..highest; its weights are zero.
  double* add(int64_t of, int64_t lowest, int64_t highest) {
    const auto at = weight.size();
    const int64_t padded = (highest - lowest + lanes) / lanes * lanes;
    if (static_cast<int64_t>(at) + padded > max_scratch) too_large(op, "the laws", static_cast<int64_t>(at) + padded);
    code.push_back(of);
    low.push_back(lowest);
    span.push_back(highest - lowest);
    first.push_back(static_cast<int64_t>(at));
    weight.resize(at + static_cast<std::size_t>(padded));
    residual -= lowest;
    reach += highest - lowest;
    return weight.data() + at;
  }
  double* law(int64_t i) { return weight.data() + first[static_cast<std::size_t>(i)]; }
  const double* law(int64_t i) const { return weight.data() + first[static_cast<std::size_t>(i)]; }

  void normalise() {
    for (int64_t i = 0; i < size(); ++i) {
      double* p = law(i);
      const int64_t n = span[static_cast<std::size_t>(i)] + 1;
      double most = 0, sum = 0;
      for (int64_t k = 0; k < n; ++k) most = std::max(most, p[k]);
      for (int64_t k = 0; k < n; ++k) sum += p[k] /= most;
      for (int64_t k = 0; k < n; ++k) p[k] /= sum;
    }
  }

  /// weight = exp(log_weight + lambda k), each law scaled to sum 1; returns mean and variance of the sum.
  std::pair<double, double> tilt_by(double lambda) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < size(); ++i) {
      double* p = law(i);
      const double* l = log_weight.data() + first[static_cast<std::size_t>(i)];
      const int64_t n = span[static_cast<std::size_t>(i)] + 1;
      double most = -std::numeric_limits<double>::infinity(), sum = 0, m1 = 0, m2 = 0;
      for (int64_t k = 0; k < n; ++k) most = std::max(most, l[k] + lambda * static_cast<double>(k));
      for (int64_t k = 0; k < n; ++k) sum += p[k] = std::exp(l[k] + lambda * static_cast<double>(k) - most);
      for (int64_t k = 0; k < n; ++k) m1 += static_cast<double>(k) * (p[k] /= sum);
      for (int64_t k = 0; k < n; ++k) m2 += (static_cast<double>(k) - m1) * (static_cast<double>(k) - m1) * p[k];
      mean += m1;
      variance += m2;
    }
    return {mean, variance};
  }

  /// Tilts the laws until the residual is within a standard deviation of the mean of the sum.
  /// Needs 0 < residual < reach.
  void tilt() {
    if (log_weight.empty())
      for (double w : weight) log_weight.push_back(std::log(w));
    double lambda = 0, below = -std::numeric_limits<double>::infinity(), above = -below, step = 1;
    for (int iteration = 0; iteration < 400; ++iteration) {
      const auto [mean, variance] = tilt_by(lambda);
      const double excess = mean - static_cast<double>(residual);
      if (std::abs(excess) <= std::max(0.5, std::sqrt(variance))) return;
      (excess > 0 ? above : below) = lambda;
      const double newton = variance > 0 ? -excess / variance : excess > 0 ? -step : step;
      lambda += std::clamp(newton, -step, step);
      if (lambda <= below || lambda >= above) lambda = below + (above - below) / 2;
      step *= 4;
    }
  }
};
}  // namespace core_diffusion::fixed_sum
