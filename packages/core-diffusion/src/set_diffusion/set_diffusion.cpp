// Exact fixed-sum sampling; see include/core_diffusion/set_diffusion.hpp for the method. This file is
// compiled without contraction to FMA, so that every instruction set gives the same bits.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_diffusion/set_diffusion.hpp>

#include <cfloat>

#include "table.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using fixed_sum::draw, fixed_sum::Laws, fixed_sum::Table;
using std::int64_t;

constexpr double least_sigma = 1e-3;

struct Scan {
  double sum, most;
  bool good;
};

/// Copies weights to double; good if all are finite and none is negative.
template <class T>
Scan scan(const T* from, int64_t stride, int64_t n, double* to) {
  constexpr int64_t w = 8;
  double sum[w]{}, most[w]{};
  bool good[w];
  std::fill_n(good, w, true);
  const auto step = [&](int64_t lane, int64_t c, double v) {
    to[c] = v;
    sum[lane] += v;
    most[lane] = v > most[lane] ? v : most[lane];
    good[lane] &= (v >= 0) & (v <= static_cast<double>(std::numeric_limits<T>::max()));
  };
  int64_t c = 0;
  if (stride == 1)
    for (; c + w <= n; c += w)
      for (int64_t lane = 0; lane < w; ++lane) step(lane, c + lane, static_cast<double>(from[c + lane]));
  for (; c < n; ++c) step(c % w, c, static_cast<double>(from[c * stride]));
  Scan s{0, 0, true};
  for (int64_t lane = 0; lane < w; ++lane) s = {s.sum + sum[lane], std::max(s.most, most[lane]), s.good && good[lane]};
  return s;
}

/// Zeroes all but the fewest largest weights whose sum reaches `mass`; of equal ones the first stay.
void keep_nucleus(std::vector<double>& weight, double mass, std::vector<int64_t>& order) {
  order.clear();
  for (std::size_t c = 0; c < weight.size(); ++c)
    if (weight[c] > 0) order.push_back(static_cast<int64_t>(c));
  const auto later = [&](int64_t a, int64_t b) {
    const double wa = weight[static_cast<std::size_t>(a)], wb = weight[static_cast<std::size_t>(b)];
    return wa < wb || (wa == wb && a > b);
  };
  std::make_heap(order.begin(), order.end(), later);
  auto end = order.end();
  for (double kept = 0; end != order.begin() && kept < mass; --end) {
    kept += weight[static_cast<std::size_t>(order.front())];
    std::pop_heap(order.begin(), end, later);
  }
  for (auto dropped = order.begin(); dropped != end; ++dropped) weight[static_cast<std::size_t>(*dropped)] = 0;
}

[[gnu::cold, noreturn]] void bad_value(const char* op, const char* argument, const std::string& must, const std::string& got, int64_t b) {
  throw core::Error("ValueError",
                    std::string(op) + ": argument '" + argument + "' must " + must + ", got " + got + " in row " + std::to_string(b));
}
std::string text(double v) {
  char s[32];
  std::snprintf(s, sizeof s, "%g", v);
  return s;
}

template <class T>
class Sampler {
 public:
  Sampler(const Tensor<const T, 3>& probs, const Tensor<const int64_t, 1>& totals, double top_p, int64_t seed,
          const Tensor<std::int32_t, 2>& out)
      : probs_(probs), totals_(totals), top_p_(top_p), seed_(seed), out_(out), weight_(static_cast<std::size_t>(probs.shape[2])) {}

  void row(int64_t b) {
    if (totals_(b) < 0) bad_value(name, "totals", "be >= 0", std::to_string(totals_(b)), b);
    read(b, top_p_);
    const auto put = [&](int64_t i, int64_t k) {
      const auto at = static_cast<std::size_t>(i);
      out_(b, laws_.code[at]) = static_cast<std::int32_t>(laws_.low[at] + k);
    };
    if (draw(laws_, table_, seed_, b, put)) return;
    if (top_p_ < 1) {
      read(b, 1);
      if (draw(laws_, table_, seed_, b, put)) return;
    }
    const int64_t least_sum = totals_(b) - laws_.residual, most_sum = least_sum + laws_.reach;
    const bool outside = laws_.residual < 0 || laws_.residual > laws_.reach;
    bad_value(name, "totals", "be sums that counts of positive weight can make up",
              std::to_string(totals_(b)) + (outside ? " (possible: " + std::to_string(least_sum) + " to " + std::to_string(most_sum) + ")"
                                                    : " (less likely than 1e-280)"),
              b);
  }

 private:
  static constexpr const char* name = "fixed_sum_sample";

  void read(int64_t b, double top_p) {
    laws_.reset(totals_(b));
    for (int64_t k = 0; k < probs_.shape[1]; ++k) {
      const T* from = probs_.data + b * probs_.stride[0] + k * probs_.stride[1];
      const auto s = core::multiversion<&scan<T>>(from, probs_.stride[2], probs_.shape[2], weight_.data());
      if (!s.good || s.most == 0) refuse(b, k);
      auto first = weight_.cbegin(), last = weight_.cend() - 1;
      if (top_p < 1 && s.most >= top_p * s.sum) {
        first = last = std::find(weight_.cbegin(), weight_.cend(), s.most);
      } else {
        if (top_p < 1) keep_nucleus(weight_, top_p * s.sum, order_);
        while (*first == 0) ++first;
        while (*last == 0) --last;
      }
      const int64_t low = first - weight_.cbegin();
      if (first == last) {
        out_(b, k) = static_cast<std::int32_t>(low);
        laws_.residual -= low;
      } else {
        std::copy(first, last + 1, laws_.add(k, low, last - weight_.cbegin()));
      }
    }
  }

  [[gnu::cold, noreturn]] void refuse(int64_t b, int64_t k) const {
    const std::string where = " for code " + std::to_string(k);
    for (int64_t c = 0; c < probs_.shape[2]; ++c)
      if (const auto v = static_cast<double>(probs_(b, k, c)); !(v >= 0 && v <= static_cast<double>(std::numeric_limits<T>::max())))
        bad_value(name, "probs", "be finite and >= 0", text(v) + where + ", count " + std::to_string(c), b);
    bad_value(name, "probs", "have a positive sum over the counts", "0" + where, b);
  }

  const Tensor<const T, 3>& probs_;
  const Tensor<const int64_t, 1>& totals_;
  double top_p_;
  int64_t seed_;
  const Tensor<std::int32_t, 2>& out_;
  std::vector<double> weight_;
  std::vector<int64_t> order_;
  Laws laws_{name};
  Table table_;
};

template <class T>
void sample(const Tensor<const T, 3>& probs, const Tensor<const int64_t, 1>& totals, double top_p, int64_t seed,
            const Tensor<std::int32_t, 2>& out) {
  if (!(top_p > 0 && top_p <= 1))
    throw core::Error("ValueError", "fixed_sum_sample: argument 'top_p' must be in (0, 1], got " + text(top_p));
  if (probs.shape[2] == 0 || probs.shape[2] - 1 > std::numeric_limits<std::int32_t>::max())
    throw core::Error("ValueError", "fixed_sum_sample: argument 'probs' must hold 1 to 2^31 counts, got " + std::to_string(probs.shape[2]));
  core::parallel_for(probs.shape[0], 1, [&](int64_t begin, int64_t end) {
    Sampler<T> sampler(probs, totals, top_p, seed, out);
    for (int64_t b = begin; b < end; ++b) sampler.row(b);
  });
}

/// Adds to `laws` the law of a code on the way from x0 to x1.
void add_step(Laws& laws, int64_t code, int64_t x0, int64_t x1, double t, double sigma, int64_t max_count) {
  const double way = static_cast<double>(x1 - x0), most = static_cast<double>(max_count);
  const double mean = std::clamp(static_cast<double>(x0) + t * way, 0.0, most), s = std::max(sigma * std::abs(way), least_sigma);
  const auto low = static_cast<int64_t>(std::max(0.0, std::min(std::ceil(mean - 6 * s), std::floor(mean))));
  const auto high = static_cast<int64_t>(std::min(most, std::max(std::floor(mean + 6 * s), std::ceil(mean))));
  double* weight = laws.add(code, low, high);
  laws.log_weight.resize(laws.weight.size(), -std::numeric_limits<double>::infinity());
  double* log_weight = laws.log_weight.data() + laws.first.back();
  double nearest = -std::numeric_limits<double>::infinity();
  for (int64_t k = low; k <= high; ++k) {
    const double z = (static_cast<double>(k) - mean) / s;
    nearest = std::max(nearest, log_weight[k - low] = -0.5 * z * z);
  }
  for (int64_t k = 0; k <= high - low; ++k) weight[k] = std::exp(log_weight[k] - nearest);
}

template <class T>
void bridge(const Tensor<const T, 2>& x0, const Tensor<const T, 2>& x1, const Tensor<const double, 1>& t, double sigma, int64_t max_count,
            int64_t seed, const Tensor<std::int32_t, 2>& out) {
  static constexpr const char* name = "fixed_sum_bridge";
  for (int64_t b = 0; b < t.shape[0]; ++b)
    if (!(t(b) >= 0 && t(b) <= 1)) bad_value(name, "t", "be in [0, 1]", text(t(b)), b);
  if (!(sigma >= 0 && sigma <= DBL_MAX))
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'sigma' must be finite and >= 0, got " + text(sigma));
  if (max_count < 0 || max_count > std::numeric_limits<std::int32_t>::max())
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'max_count' must be in 0..2^31-1, got " + std::to_string(max_count));
  core::parallel_for(out.shape[0], 1, [&](int64_t begin, int64_t end) {
    Laws laws(name);
    Table table;
    for (int64_t b = begin; b < end; ++b) {
      laws.reset(0);
      int64_t sum0 = 0, sum1 = 0;
      for (int64_t k = 0; k < out.shape[1]; ++k) {
        const int64_t from = x0(b, k), to = x1(b, k);
        if (std::min(from, to) < 0 || std::max(from, to) > max_count) {
          const bool first = from < 0 || from > max_count;
          bad_value(name, first ? "x0" : "x1", "hold counts in 0.." + std::to_string(max_count),
                    std::to_string(first ? from : to) + " for code " + std::to_string(k), b);
        }
        sum0 += from;
        sum1 += to;
        if (from == to) {
          out(b, k) = static_cast<std::int32_t>(from);
          laws.residual -= from;
        } else {
          add_step(laws, k, from, to, t(b), sigma, max_count);
        }
      }
      if (sum0 != sum1) bad_value(name, "x1", "have the row sums of x0", std::to_string(sum1) + " instead of " + std::to_string(sum0), b);
      laws.residual += sum0;
      if (!draw(laws, table, seed, b, [&](int64_t i, int64_t k) {
            const auto at = static_cast<std::size_t>(i);
            out(b, laws.code[at]) = static_cast<std::int32_t>(laws.low[at] + k);
          }))
        throw core::Error("RuntimeError", "fixed_sum_bridge: row " + std::to_string(b) + " left the range of double; please report it");
    }
  });
}
}  // namespace

void fixed_sum_sample(Tensor<const float, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                      Tensor<std::int32_t, 2> out) {
  sample(probs, totals, top_p, seed, out);
}
void fixed_sum_sample_f64(Tensor<const double, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                          Tensor<std::int32_t, 2> out) {
  sample(probs, totals, top_p, seed, out);
}

void fixed_sum_bridge(Tensor<const std::int32_t, 2> x0, Tensor<const std::int32_t, 2> x1, Tensor<const double, 1> t, double sigma,
                      int64_t max_count, int64_t seed, Tensor<std::int32_t, 2> out) {
  bridge(x0, x1, t, sigma, max_count, seed, out);
}
void fixed_sum_bridge_i64(Tensor<const int64_t, 2> x0, Tensor<const int64_t, 2> x1, Tensor<const double, 1> t, double sigma,
                          int64_t max_count, int64_t seed, Tensor<std::int32_t, 2> out) {
  bridge(x0, x1, t, sigma, max_count, seed, out);
}
}  // namespace core_diffusion
