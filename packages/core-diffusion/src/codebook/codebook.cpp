// Nearest codes and k-means; see include/core_diffusion/codebook.hpp.
#include <core_diffusion/codebook.hpp>
#include <core_diffusion/philox.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "plus_plus.hpp"

namespace core_diffusion {
namespace {
constexpr double largest_norm = 1e37;  // of a row, squared; float32 holds four times as much
constexpr int64_t most_trials = 1000;

void check_values(const char* op, const char* name, Matrix x) {
  core::parallel_for(x.shape[0], sum_rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double norm = 0;
      for (int64_t d = 0; d < x.shape[1]; ++d) norm += static_cast<double>(x(i, d)) * static_cast<double>(x(i, d));
      if (norm <= largest_norm) continue;
      int64_t d = 0;
      while (d + 1 < x.shape[1] && std::isfinite(x(i, d))) ++d;
      throw core::Error("ValueError", std::string(op) + ": argument '" + name +
                                          "' must have finite values whose squares fit into float32, got " + std::to_string(x(i, d)) +
                                          " in row " + std::to_string(i) + ", column " + std::to_string(d));
    }
  });
}

void check_clusters(const char* op, const char* name, int64_t clusters, int64_t rows) {
  if (clusters < 1 || clusters > rows)
    throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must have 1.." + std::to_string(rows) +
                                        " rows, as many as 'x' at most, got " + std::to_string(clusters));
}

/// The sum of f(i) over all rows, the same for any number of threads.
template <class F>
double sum_over(int64_t rows, F&& f) {
  std::vector<double> parts(index_of(ceil_div(rows, sum_rows)));
  core::parallel_for(static_cast<int64_t>(parts.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = p * sum_rows; i < std::min(rows, (p + 1) * sum_rows); ++i) parts[index_of(p)] += f(i);
  });
  return std::accumulate(parts.begin(), parts.end(), 0.0);
}

/// Rows by cluster: those of k are member[begin[k]] .. member[begin[k+1] - 1], ascending.
struct Members {
  std::vector<int64_t> begin, member;
  Members(const std::vector<int64_t>& labels, int64_t clusters) : begin(index_of(clusters) + 1), member(labels.size()) {
    for (const int64_t k : labels) ++begin[index_of(k) + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (std::size_t i = 0; i < labels.size(); ++i) member[index_of(next[index_of(labels[i])]++)] = static_cast<int64_t>(i);
  }
};

/// Gives each empty cluster the farthest row of a cluster that has several; returns these rows, in the order of the empty clusters.
std::vector<std::pair<int64_t, int64_t>> fill_empty(Matrix x, Matrix centers, std::vector<int64_t>& labels) {
  const int64_t clusters = centers.shape[0];
  std::vector<int64_t> size(index_of(clusters)), order;
  for (const int64_t k : labels) ++size[index_of(k)];
  const auto empty = std::count(size.begin(), size.end(), 0);
  std::vector<std::pair<int64_t, int64_t>> moved;
  if (empty == 0) return moved;
  const std::vector<double> distance = distances(x, centers, labels);
  order.resize(labels.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return distance[index_of(a)] > distance[index_of(b)]; });
  auto next = order.begin();
  for (int64_t k = 0; k < clusters; ++k) {
    if (size[index_of(k)]) continue;
    while (size[index_of(labels[index_of(*next)])] < 2) ++next;
    const int64_t row = *next++;
    --size[index_of(std::exchange(labels[index_of(row)], k))];
    size[index_of(k)] = 1;
    moved.emplace_back(k, row);
  }
  return moved;
}

/// Means of the clusters; returns the squared length by which all centers moved.
double update(Matrix x, const std::vector<int64_t>& labels, Tensor<float, 2> centers) {
  const int64_t clusters = centers.shape[0], dim = centers.shape[1];
  const Members of(labels, clusters);
  std::vector<double> moved(index_of(clusters));
  core::parallel_for(clusters, 1 + 4096 / (1 + dim * (x.shape[0] / clusters)), [&](int64_t begin, int64_t end) {
    std::vector<double> sum(index_of(dim));
    for (int64_t k = begin; k < end; ++k) {
      std::fill(sum.begin(), sum.end(), 0.0);
      const int64_t first = of.begin[index_of(k)], last = of.begin[index_of(k) + 1];
      for (int64_t m = first; m < last; ++m)
        for (int64_t d = 0; d < dim; ++d) sum[index_of(d)] += static_cast<double>(x(of.member[index_of(m)], d));
      for (int64_t d = 0; d < dim; ++d) {
        const auto mean = static_cast<float>(sum[index_of(d)] / static_cast<double>(last - first));
        const double difference = static_cast<double>(mean) - static_cast<double>(centers(k, d));
        moved[index_of(k)] += difference * difference;
        centers(k, d) = mean;
      }
    }
  });
  return std::accumulate(moved.begin(), moved.end(), 0.0);
}

double mean_variance(Matrix x) {
  double sum = 0;
  for (int64_t d = 0; d < x.shape[1]; ++d) {
    const double mean = sum_over(x.shape[0], [&](int64_t i) { return static_cast<double>(x(i, d)); }) / static_cast<double>(x.shape[0]);
    sum += sum_over(x.shape[0], [&](int64_t i) {
      const double difference = static_cast<double>(x(i, d)) - mean;
      return difference * difference;
    });
  }
  return sum / static_cast<double>(std::max<int64_t>(1, x.shape[0] * x.shape[1]));
}

Matrix read_only(Tensor<float, 2> t) {
  Matrix m;
  m.data = t.data;
  m.shape = t.shape;
  m.stride = t.stride;
  return m;
}
}  // namespace

void nearest_codes(Matrix x, Matrix codes, Tensor<int64_t, 1> index, Tensor<float, 1> distance) {
  if (codes.shape[0] < 1) throw core::Error("ValueError", "nearest_codes: argument 'codes' must have at least one row, got none");
  check_values("nearest_codes", "x", x);
  check_values("nearest_codes", "codes", codes);
  std::vector<int64_t> nearest(index_of(x.shape[0]));
  assign(x, codes, nearest);
  const std::vector<double> squared = distances(x, codes, nearest);
  for (int64_t i = 0; i < x.shape[0]; ++i) {
    index(i) = nearest[index_of(i)];
    distance(i) = static_cast<float>(squared[index_of(i)]);
  }
}

void kmeans_init(Matrix x, int64_t trials, int64_t seed, Tensor<float, 2> centers) {
  check_clusters("kmeans_init", "centers", centers.shape[0], x.shape[0]);
  if (trials < 1 || trials > most_trials)
    throw core::Error("ValueError",
                      "kmeans_init: argument 'trials' must be in 1.." + std::to_string(most_trials) + ", got " + std::to_string(trials));
  check_values("kmeans_init", "x", x);
  PlusPlus seeds(x);
  std::vector<int64_t> offered;
  for (int64_t k = 0; k < centers.shape[0]; ++k) {
    offered.clear();
    if (k == 0)
      offered.push_back(static_cast<int64_t>(uniform(seed, 0, 0) * static_cast<double>(x.shape[0])));
    else
      for (int64_t t = 0; t < trials; ++t) offered.push_back(seeds.draw(uniform(seed, k, t)));
    const int64_t row = seeds.take(offered);
    for (int64_t d = 0; d < x.shape[1]; ++d) centers(k, d) = x(row, d);
  }
}

void kmeans(Matrix x, Matrix init, int64_t max_iter, double tol, Tensor<float, 2> centers, Tensor<int64_t, 1> labels,
            Tensor<double, 1> inertia, Tensor<int64_t, 1> rounds) {
  const int64_t rows = x.shape[0], clusters = init.shape[0];
  check_clusters("kmeans", "init", clusters, rows);
  if (max_iter < 0) throw core::Error("ValueError", "kmeans: argument 'max_iter' must be >= 0, got " + std::to_string(max_iter));
  if (!(tol >= 0)) throw core::Error("ValueError", "kmeans: argument 'tol' must be >= 0, got " + std::to_string(tol));
  check_values("kmeans", "x", x);
  check_values("kmeans", "init", init);
  for (int64_t k = 0; k < clusters; ++k)
    for (int64_t d = 0; d < init.shape[1]; ++d) centers(k, d) = init(k, d);

  std::vector<int64_t> nearest(index_of(rows)), before;
  const double least_move = tol > 0 ? tol * mean_variance(x) : 0;
  int64_t round = 0;
  for (double move = infinity; round < max_iter && move > least_move; ++round) {
    assign(x, read_only(centers), nearest);
    fill_empty(x, read_only(centers), nearest);
    if (nearest == before) break;
    before = nearest;
    move = update(x, nearest, centers);
  }
  for (int64_t attempt = 0; attempt <= clusters; ++attempt) {
    assign(x, read_only(centers), nearest);
    const auto moved = fill_empty(x, read_only(centers), nearest);
    for (const auto& [k, row] : moved)
      for (int64_t d = 0; d < x.shape[1]; ++d) centers(k, d) = x(row, d);
    if (moved.empty()) break;
  }
  for (int64_t i = 0; i < rows; ++i) labels(i) = nearest[index_of(i)];
  const std::vector<double> distance = distances(x, read_only(centers), nearest);
  inertia(0) = sum_over(rows, [&](int64_t i) { return distance[index_of(i)]; });
  rounds(0) = round;
}

}  // namespace core_diffusion
