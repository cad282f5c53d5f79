// Greedy k-means++ over rows that lie sixteen beside each other.
#pragma once
#include <numeric>

#include "nearest.hpp"

namespace core_diffusion {
namespace {
constexpr double least_gain = 1 - 1e-5;  // a candidate must be better by more than float32 rounds

/// Rows of x sixteen beside each other, [block][depth][lanes]; the last block is filled up with the last row.
std::vector<float> transpose_blocks(Matrix x, int64_t depth) {
  std::vector<float> out(index_of(core::checked_mul(ceil_div(x.shape[0], lanes) * lanes, depth, "kmeans_init: scratch")));
  core::parallel_for(ceil_div(x.shape[0], lanes), 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      for (int64_t d = 0; d < x.shape[1]; ++d)
        for (int64_t j = 0; j < lanes; ++j) out[index_of((b * depth + d) * lanes + j)] = x(std::min(b * lanes + j, x.shape[0] - 1), d);
  });
  return out;
}

/// What would be left of `least` in blocks [begin, end) if a candidate became a center, summed; T candidates, [depth][T], at a time.
template <int T>
void try_candidates(const float* blocks, int64_t depth, int64_t begin, int64_t end, const float* candidates, const float* least,
                    double* sums) {
  double total[T][lanes] = {};
  for (int64_t b = begin; b < end; ++b) {
    const float *x = blocks + b * depth * lanes, *before = least + b * lanes;
    float left[T][lanes];
    for (int j = 0; j < lanes; ++j) {
      float sum[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sum[t] = 0;
      int64_t d = 0;
      do {  // as in `tile`
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const float difference = x[d * lanes + j] - candidates[d * T + t];
          sum[t] += difference * difference;
        }
      } while (++d < depth);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) left[t][j] = sum[t];
    }
    for (int t = 0; t < T; ++t)
      for (int j = 0; j < lanes; ++j) left[t][j] = left[t][j] < before[j] ? left[t][j] : before[j];
    for (int t = 0; t < T; ++t)
      for (int j = 0; j < lanes; ++j) total[t][j] += static_cast<double>(left[t][j]);
  }
  for (int t = 0; t < T; ++t) sums[t] = std::accumulate(total[t], total[t] + lanes, 0.0);
}

/// Takes a center: `least` becomes what is left of it in blocks [begin, end).
void take_center(const float* blocks, int64_t depth, int64_t begin, int64_t end, const float* center, float* least) {
  for (int64_t b = begin; b < end; ++b) {
    const float* x = blocks + b * depth * lanes;
    float sums[lanes];
    for (int j = 0; j < lanes; ++j) {
      float sum = 0;
      int64_t d = 0;
      do {  // as in `tile`
        const float difference = x[d * lanes + j] - center[d];
        sum += difference * difference;
      } while (++d < depth);
      sums[j] = sum;
    }
    for (int j = 0; j < lanes; ++j) least[b * lanes + j] = sums[j] < least[b * lanes + j] ? sums[j] : least[b * lanes + j];
  }
}

class PlusPlus {
 public:
  explicit PlusPlus(Matrix x)
      : x_(x),
        rows_(x.shape[0]),
        depth_(std::max<int64_t>(1, x.shape[1])),
        blocks_(transpose_blocks(x, depth_)),
        least_(index_of(ceil_div(rows_, lanes) * lanes), infinity),
        candidates_(index_of(4 * depth_)),
        parts_(index_of(ceil_div(rows_, sum_rows))) {
    std::fill(least_.begin() + rows_, least_.end(), 0.f);  // rows that are not there have no share
  }

  /// Makes the best of the rows a center; of rows equal but for rounding the first. Returns it.
  int64_t take(const std::vector<int64_t>& offered) {
    constexpr int64_t together = 4;
    std::size_t best = 0;
    std::vector<double> parts, chosen;
    double least_total = 0;
    for (std::size_t first = 0; first < offered.size(); first += together) {
      const auto many = static_cast<int64_t>(std::min<std::size_t>(together, offered.size() - first));
      for (int64_t t = 0; t < together; ++t)
        for (int64_t d = 0; d < x_.shape[1]; ++d)
          candidates_[index_of(d * together + t)] = x_(offered[first + index_of(std::min(t, many - 1))], d);
      parts.assign(parts_.size() * together, 0.0);
      each_part([&](int64_t p, int64_t begin, int64_t end) {
        core::multiversion<&try_candidates<together>>(static_cast<const float*>(blocks_.data()), depth_, begin, end,
                                                      static_cast<const float*>(candidates_.data()),
                                                      static_cast<const float*>(least_.data()), parts.data() + p * together);
      });
      for (int64_t t = 0; t < many; ++t) {
        double total = 0;
        for (std::size_t p = 0; p < parts_.size(); ++p) total += parts[p * together + index_of(t)];
        if (first + index_of(t) > 0 && total >= least_total * least_gain) continue;
        best = first + index_of(t);
        least_total = total;
        chosen.resize(parts_.size());
        for (std::size_t p = 0; p < parts_.size(); ++p) chosen[p] = parts[p * together + index_of(t)];
      }
    }
    parts_.swap(chosen);
    for (int64_t d = 0; d < x_.shape[1]; ++d) candidates_[index_of(d)] = x_(offered[best], d);
    each_part([&](int64_t, int64_t begin, int64_t end) {
      core::multiversion<&take_center>(static_cast<const float*>(blocks_.data()), depth_, begin, end,
                                       static_cast<const float*>(candidates_.data()), least_.data());
    });
    return offered[best];
  }
  /// The row at share u of the sum of squared distances; the first row if that is 0.
  int64_t draw(double u) const {
    double target = u * std::accumulate(parts_.begin(), parts_.end(), 0.0);
    std::size_t p = 0;
    while (p + 1 < parts_.size() && target >= parts_[p]) target -= parts_[p++];
    int64_t last = 0;
    for (int64_t i = static_cast<int64_t>(p) * sum_rows; i < std::min(rows_, static_cast<int64_t>(p + 1) * sum_rows); ++i) {
      const auto share = static_cast<double>(least_[index_of(i)]);
      if (share > 0) {
        last = i;
        if (target < share) return i;
      }
      target -= share;
    }
    return last;
  }

 private:
  /// f(p, begin, end) of the blocks of each part.
  template <class F>
  void each_part(F&& f) {
    core::parallel_for(static_cast<int64_t>(parts_.size()), 8, [&](int64_t begin, int64_t end) {
      constexpr int64_t step = sum_rows / lanes;
      for (int64_t p = begin; p < end; ++p) f(p, p * step, std::min((p + 1) * step, ceil_div(rows_, lanes)));
    });
  }

  Matrix x_;
  int64_t rows_, depth_;
  std::vector<float> blocks_, least_, candidates_;
  std::vector<double> parts_;
};
}  // namespace
}  // namespace core_diffusion
