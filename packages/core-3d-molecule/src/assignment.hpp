// The assignment of rows to columns of least cost (Kuhn 1955; shortest augmenting paths after Jonker and Volgenant 1987).
#pragma once
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace core_3d_molecule {
/// The buffers are kept from call to call.
class Assignment {
 public:
  /// The column of each row of an n x n matrix of finite costs.
  const std::vector<std::size_t>& operator()(const std::vector<double>& cost, std::size_t n) {
    constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
    column_.assign(n, none), row_.assign(n, none);
    u_.assign(n, 0), v_.assign(n, 0);
    std::size_t assigned = 0;
    for (std::size_t i = 0; i < n; ++i) {  // each row's least is feasible, and optimal where no two rows share it
      std::size_t best = 0;
      for (std::size_t j = 1; j < n; ++j)
        if (cost[i * n + j] < cost[i * n + best]) best = j;
      u_[i] = cost[i * n + best];
      if (row_[best] == none) row_[best] = i, column_[i] = best, ++assigned;
    }
    for (std::size_t start = 0; start < n && assigned < n; ++start) {
      if (column_[start] != none) continue;
      least_.assign(n, std::numeric_limits<double>::infinity());
      before_.assign(n, start);
      done_.assign(n, 0);
      std::size_t i = start, end = none;
      double reached = 0;
      reached_.clear();
      while (end == none) {
        std::size_t next = none;
        for (std::size_t j = 0; j < n; ++j) {
          if (done_[j]) continue;
          const double d = reached + cost[i * n + j] - u_[i] - v_[j];
          if (d < least_[j]) least_[j] = d, before_[j] = i;
          if (next == none || least_[j] < least_[next]) next = j;
        }
        reached = least_[next];
        done_[next] = 1;
        reached_.push_back(next);
        if (row_[next] == none) {
          end = next;
        } else {
          i = row_[next];
        }
      }
      u_[start] += reached;
      for (std::size_t j : reached_) {
        if (j == end) continue;
        u_[row_[j]] += reached - least_[j];
        v_[j] -= reached - least_[j];
      }
      for (std::size_t j = end;;) {
        const std::size_t r = before_[j];
        row_[j] = r;
        std::swap(column_[r], j);
        if (r == start) break;
      }
      ++assigned;
    }
    return column_;
  }

 private:
  std::vector<std::size_t> column_, row_, before_, reached_;
  std::vector<double> u_, v_, least_;
  std::vector<char> done_;
};
}  // namespace core_3d_molecule
