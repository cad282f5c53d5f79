// Exact fixed-sum sampling; see include/core_diffusion/set_diffusion.hpp for the method. This file is
// compiled without contraction to FMA, so that every instruction set gives the same bits.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_diffusion/philox.hpp>
#include <core_diffusion/set_diffusion.hpp>

#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t lanes = 4;                       // laws and table rows are padded by as many zeros
constexpr int64_t max_scratch = int64_t{1} << 29;  // doubles of one row's laws, and of its table: 4 GiB
constexpr int64_t whole_table = int64_t{1} << 21;  // doubles; a larger table is kept in sqrt(n) marks
constexpr double sure = 1e-150, least = 1e-280;    // P(total) above which no bits are lost; and to be had at all
constexpr double least_sigma = 1e-3;

[[gnu::cold, noreturn]] void too_large(const char* op, const char* what, int64_t doubles) {
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

/// T_i(r) for all suffixes i of the laws and all r in lo_[i]..hi_[i], the sums that the codes before and
/// behind can both reach. Rows are held for one block of suffixes; of the other blocks only the first
/// row is (one block is all, unless the table is large).
class Table {
 public:
  /// Fills the table; returns T_0(residual), the probability of the total. `laws` must outlive the draw.
  double build(const Laws& laws) {
    laws_ = &laws;
    const int64_t n = laws.size();
    lo_.assign(static_cast<std::size_t>(n) + 1, 0);
    hi_.assign(static_cast<std::size_t>(n) + 1, 0);
    int64_t before = 0, behind = laws.reach, width = 1;
    for (int64_t i = 0; i <= n; ++i) {
      const auto at = static_cast<std::size_t>(i);
      lo_[at] = std::max<int64_t>(0, laws.residual - before);
      hi_[at] = std::min(laws.residual, behind);
      width = std::max(width, hi_[at] - lo_[at] + 1);
      if (i < n) before += laws.span[at], behind -= laws.span[at];
    }
    stride_ = width + 2 * lanes;
    block_ = std::max<int64_t>(n, 1);
    const std::string what = std::string(laws.op) + ": the table";
    if (core::checked_mul(n + 1, stride_, what.c_str()) > whole_table)
      block_ = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(n))));
    const int64_t needed = core::checked_mul(block_ + 1 + n / block_ + 1, stride_, what.c_str());
    if (needed > max_scratch) too_large(laws.op, "the table", needed);
    if (needed > capacity_) {
      cells_.reset();
      cells_.reset(new double[static_cast<std::size_t>(needed)]);
      capacity_ = needed;
    }
    for (int64_t start = (n - 1) / block_ * block_; start >= 0; start -= block_) fill(start);
    return row(0)[lanes];
  }

  /// Draws all codes; put(i, k) receives the k of law i.
  template <class Put>
  void draw(int64_t seed, int64_t b, Put&& put) {
    int64_t r = laws_->residual;
    for (int64_t i = 0; i < laws_->size(); ++i) {
      if (i == start_ + block_) fill(i);
      const auto at = static_cast<std::size_t>(i);
      const double* p = laws_->law(i);
      const double* next = row(i + 1) + lanes + r - lo_[at + 1];  // next[-k] = T_{i+1}(r - k)
      const int64_t k0 = std::max<int64_t>(0, r - hi_[at + 1]), k1 = std::min(laws_->span[at], r - lo_[at + 1]);
      double sum = 0, passed = 0;
      for (int64_t k = k0; k <= k1; ++k) sum += p[k] * next[-k];
      const double target = uniform(seed, b, laws_->code[at]) * sum;
      int64_t drawn = k0;
      for (int64_t k = k0; k <= k1 && passed <= target; ++k) {
        const double term = p[k] * next[-k];
        if (term > 0) drawn = k;
        passed += term;
      }
      put(i, drawn);
      r -= drawn;
    }
  }

 private:
  double* row(int64_t i) { return cells_.get() + (i - start_) * stride_; }
  double* mark(int64_t i) { return cells_.get() + (block_ + 1 + i / block_) * stride_; }

  /// Rows start..start+block from the mark behind them.
  void fill(int64_t start) {
    const int64_t n = laws_->size(), end = std::min(start + block_, n);
    start_ = start;
    if (end < n) {
      std::copy_n(mark(end), stride_, row(end));
    } else {
      std::fill_n(row(n), 2 * lanes + 1, 0.0);
      row(n)[lanes] = 1;
    }
    for (int64_t i = end; i-- > start;) {
      const auto at = static_cast<std::size_t>(i);
      core::multiversion<&convolve>(laws_->law(i), laws_->span[at], static_cast<const double*>(row(i + 1)), lo_[at + 1], hi_[at + 1],
                                    row(i), lo_[at], hi_[at]);
    }
    if (start > 0) std::copy_n(row(start), stride_, mark(start));
  }

  /// to(r) = sum_k p[k] from(r - k) for r in lo..hi; `from` is known in from_lo..from_hi and zero
  /// elsewhere. Both start with `lanes` zeros and end with as many.
  static void convolve(const double* __restrict p, int64_t span, const double* __restrict from, int64_t from_lo, int64_t from_hi,
                       double* __restrict to, int64_t lo, int64_t hi) {
    std::fill_n(to, hi - lo + 1 + 2 * lanes, 0.0);
    for (int64_t k = 0; k <= span; k += lanes) {
      const double p0 = p[k], p1 = p[k + 1], p2 = p[k + 2], p3 = p[k + 3];
      const int64_t begin = std::max(lo, from_lo + k), n = std::min(hi, from_hi + k + lanes - 1) - begin + 1;
      double* __restrict y = to + lanes + begin - lo;
      const double* __restrict x = from + lanes + begin - k - from_lo;
      for (int64_t r = 0; r < n; ++r) y[r] = (((y[r] + p0 * x[r]) + p1 * x[r - 1]) + p2 * x[r - 2]) + p3 * x[r - 3];
    }
  }

  const Laws* laws_ = nullptr;
  std::vector<int64_t> lo_, hi_;
  int64_t stride_ = 0, block_ = 1, start_ = 0, capacity_ = 0;
  std::unique_ptr<double[]> cells_;
};

/// Draws the codes of `laws` so that they sum to the residual; false if that cannot be.
template <class Put>
bool draw(Laws& laws, Table& table, int64_t seed, int64_t b, Put&& put) {
  if (laws.residual < 0 || laws.residual > laws.reach) return false;
  if (laws.residual == 0 || laws.residual == laws.reach) {
    for (int64_t i = 0; i < laws.size(); ++i) put(i, laws.residual ? laws.span[static_cast<std::size_t>(i)] : 0);
    return true;
  }
  laws.normalise();
  if (table.build(laws) < sure) {
    laws.tilt();
    if (table.build(laws) < least) return false;
  }
  table.draw(seed, b, put);
  return true;
}

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
