// The probabilities of partial sums from behind, and draws from them, on the CPU.
#pragma once
#include <core/isa.hpp>
#include <core_diffusion/philox.hpp>

#include <memory>

#include "laws.hpp"

namespace core_diffusion::fixed_sum {
using std::int64_t;

inline constexpr int64_t whole_table = int64_t{1} << 21;  // doubles; a larger table is kept in sqrt(n) marks
inline constexpr double sure = 1e-150, least = 1e-280;    // P(total) above which no bits are lost; and to be had at all

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
}  // namespace core_diffusion::fixed_sum
