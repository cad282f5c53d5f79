// Nearest codes and k-means; see include/core_diffusion/codebook.hpp.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_diffusion/codebook.hpp>
#include <core_diffusion/philox.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using Matrix = Tensor<const float, 2>;

constexpr int lanes = 16;
constexpr int64_t tile_rows = 12, block_rows = 48;
constexpr int64_t group_panels = 8;      // panels after which the place of the best is noted
constexpr int64_t sum_rows = 1024;       // rows whose shares are added as one number: sums do not depend on threads
constexpr double largest_norm = 1e37;    // of a row, squared; float32 holds four times as much
constexpr double least_gain = 1 - 1e-5;  // a candidate must be better by more than float32 rounds
constexpr int64_t most_trials = 1000;
constexpr float infinity = std::numeric_limits<float>::infinity();

std::size_t index_of(int64_t i) { return static_cast<std::size_t>(i); }
int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

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

double squared_distance(Matrix x, int64_t i, Matrix y, int64_t k) {
  double sum = 0;
  for (int64_t d = 0; d < x.shape[1]; ++d) {
    const double difference = static_cast<double>(x(i, d)) - static_cast<double>(y(k, d));
    sum += difference * difference;
  }
  return sum;
}

/// Codes less their mean, sixteen beside each other: panel p has [depth + 1][lanes] floats, the last row half the squared norms.
struct Panels {
  int64_t codes, dim, depth;
  std::vector<float> mean, data;

  explicit Panels(Matrix c) : codes(c.shape[0]), dim(c.shape[1]), depth(std::max<int64_t>(1, dim)), mean(index_of(depth)) {
    for (int64_t d = 0; d < dim; ++d) {
      double sum = 0;
      for (int64_t k = 0; k < codes; ++k) sum += static_cast<double>(c(k, d));
      mean[index_of(d)] = static_cast<float>(sum / static_cast<double>(codes));
    }
    data.resize(index_of(core::checked_mul(count() * lanes, depth + 1, "nearest_codes: scratch")));
    core::parallel_for(count(), 1 + 4096 / (depth * lanes), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin * lanes; k < end * lanes; ++k) {
        float* out = data.data() + k / lanes * lanes * (depth + 1) + k % lanes;
        double norm = 0;
        for (int64_t d = 0; d < dim && k < codes; ++d) {
          const float v = out[d * lanes] = c(k, d) - mean[index_of(d)];
          norm += static_cast<double>(v) * static_cast<double>(v);
        }
        out[depth * lanes] = k < codes ? static_cast<float>(norm / 2) : infinity;
      }
    });
  }
  int64_t count() const { return ceil_div(codes, lanes); }
};

/// Lanes' least values of half the squared norm less the product: over all groups of panels so far, and of one group.
struct Best {
  float value[block_rows * lanes], low[block_rows * lanes];
  std::int32_t group[block_rows * lanes];
};

/// The least values of R rows over one panel, kept in `low`; the loop over lanes is the one that is vectorised, so that all
/// sums stay in registers. Which code it was is found later: to keep that here costs as much as the products.
template <int R, bool First>
inline void tile(int64_t depth, const float* x, const float* panel, float* low) {
  const float* half = panel + depth * lanes;
  float sums[R][lanes];
  for (int j = 0; j < lanes; ++j) {
    float sum[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sum[i] = half[j];
    int64_t k = 0;
    do {  // a test before the first pass would keep the compiler from vectorising the loop over j
      const float c = panel[k * lanes + j];
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) sum[i] -= x[i * depth + k] * c;
    } while (++k < depth);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) sums[i][j] = sum[i];
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < lanes; ++j) {
      const float old = low[i * lanes + j];
      low[i * lanes + j] = First || sums[i][j] < old ? sums[i][j] : old;
    }
}

/// The first of the best codes for x in a lane of a group of panels.
inline int64_t find(const Panels& codes, const float* x, int64_t group, int64_t lane) {
  const int64_t depth = codes.depth, size = lanes * (depth + 1), end = std::min((group + 1) * group_panels, codes.count());
  float least = infinity;
  int64_t code = 0;
  for (int64_t p = group * group_panels; p < end; ++p) {
    const float* c = codes.data.data() + p * size + lane;
    float value = c[depth * lanes];
    for (int64_t k = 0; k < depth; ++k) value -= x[k] * c[k * lanes];
    if (value < least) least = value, code = p * lanes + lane;
  }
  return code;
}

/// The nearest codes of rows [first, first + block_rows) of x. work: room for block_rows * depth floats.
void nearest_block(const Panels* codes, const Matrix* rows, int64_t first, float* work, Best* best, int64_t* nearest) {
  const Matrix& x = *rows;
  const int64_t n = std::min(block_rows, x.shape[0] - first), depth = codes->depth, size = lanes * (depth + 1), count = codes->count();
  const int64_t used = ceil_div(n, tile_rows) * tile_rows * lanes;
  std::fill_n(work, block_rows * depth, 0.f);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < codes->dim; ++d) work[i * depth + d] = x(first + i, d) - codes->mean[index_of(d)];
  std::fill_n(best->value, used, infinity);
  std::fill_n(best->group, used, 0);
  for (int64_t g = 0; g * group_panels < count; ++g) {
    const float* panel = codes->data.data() + g * group_panels * size;
    const int64_t panels = std::min(group_panels, count - g * group_panels);
    for (int64_t i = 0; i < n; i += tile_rows) {
      tile<tile_rows, true>(depth, work + i * depth, panel, best->low + i * lanes);
      for (int64_t p = 1; p < panels; ++p) tile<tile_rows, false>(depth, work + i * depth, panel + p * size, best->low + i * lanes);
    }
    const auto mark = static_cast<std::int32_t>(g);
    for (int64_t i = 0; i < used; ++i) {
      const float low = best->low[i], old = best->value[i];
      const std::int32_t at = best->group[i];
      best->value[i] = low < old ? low : old;
      best->group[i] = low < old ? mark : at;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const float* value = best->value + i * lanes;
    float least = value[0];
    for (int64_t j = 1; j < lanes; ++j) least = value[j] < least ? value[j] : least;
    int64_t code = std::numeric_limits<int64_t>::max();
    for (int64_t j = 0; j < lanes; ++j)
      if (value[j] == least) code = std::min(code, find(*codes, work + i * depth, best->group[i * lanes + j], j));
    nearest[first + i] = code;
  }
}

/// Index of and squared distance to the nearest code of each row.
void assign(Matrix x, Matrix codes, std::vector<int64_t>& nearest, std::vector<double>& distance) {
  const Panels panels(codes);
  core::parallel_for(ceil_div(x.shape[0], block_rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> work(index_of(block_rows * panels.depth));
    Best best;
    for (int64_t b = begin; b < end; ++b)
      core::multiversion<&nearest_block>(&panels, &x, b * block_rows, work.data(), &best, nearest.data());
    for (int64_t i = begin * block_rows; i < std::min(end * block_rows, x.shape[0]); ++i)
      distance[index_of(i)] = squared_distance(x, i, codes, nearest[index_of(i)]);
  });
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

// ---- k-means++

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

// ---- Lloyd's rounds

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
std::vector<std::pair<int64_t, int64_t>> fill_empty(std::vector<int64_t>& labels, std::vector<double>& distance, int64_t clusters) {
  std::vector<int64_t> size(index_of(clusters)), order;
  for (const int64_t k : labels) ++size[index_of(k)];
  const auto empty = std::count(size.begin(), size.end(), 0);
  std::vector<std::pair<int64_t, int64_t>> moved;
  if (empty == 0) return moved;
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
    distance[index_of(row)] = 0;
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
  std::vector<double> squared(nearest.size());
  assign(x, codes, nearest, squared);
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
  std::vector<double> distance(nearest.size());
  const double least_move = tol > 0 ? tol * mean_variance(x) : 0;
  int64_t round = 0;
  for (double move = infinity; round < max_iter && move > least_move; ++round) {
    assign(x, read_only(centers), nearest, distance);
    fill_empty(nearest, distance, clusters);
    if (nearest == before) break;
    before = nearest;
    move = update(x, nearest, centers);
  }
  for (int64_t attempt = 0; attempt <= clusters; ++attempt) {
    assign(x, read_only(centers), nearest, distance);
    const auto moved = fill_empty(nearest, distance, clusters);
    for (const auto& [k, row] : moved)
      for (int64_t d = 0; d < x.shape[1]; ++d) centers(k, d) = x(row, d);
    if (moved.empty()) break;
  }
  for (int64_t i = 0; i < rows; ++i) labels(i) = nearest[index_of(i)];
  inertia(0) = sum_over(rows, [&](int64_t i) { return distance[index_of(i)]; });
  rounds(0) = round;
}

}  // namespace core_diffusion
