// Nearest codes: products over packed panels, the place of the best looked up afterwards.
#pragma once
#include <core/isa.hpp>
#include <core/parallel.hpp>

#include <algorithm>
#include <limits>
#include <vector>

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using Matrix = Tensor<const float, 2>;

constexpr int lanes = 16;
constexpr int64_t sum_rows = 1024;  // rows whose shares are added as one number: sums do not depend on threads
constexpr float infinity = std::numeric_limits<float>::infinity();

inline std::size_t index_of(int64_t i) { return static_cast<std::size_t>(i); }
inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t tile_rows = 12, block_rows = 48;
constexpr int64_t group_panels = 8;  // panels after which the place of the best is noted

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
      if constexpr (First) {
        low[i * lanes + j] = sums[i][j];
      } else {
        const float old = low[i * lanes + j];
        low[i * lanes + j] = sums[i][j] < old ? sums[i][j] : old;
      }
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

/// The nearest code of each row.
void assign(Matrix x, Matrix codes, std::vector<int64_t>& nearest) {
  const Panels panels(codes);
  core::parallel_for(ceil_div(x.shape[0], block_rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> work(index_of(block_rows * panels.depth));
    Best best;
    for (int64_t b = begin; b < end; ++b)
      core::multiversion<&nearest_block>(&panels, &x, b * block_rows, work.data(), &best, nearest.data());
  });
}

/// The squared distance of each row to its code.
std::vector<double> distances(Matrix x, Matrix codes, const std::vector<int64_t>& nearest) {
  std::vector<double> found(nearest.size());
  core::parallel_for(x.shape[0], sum_rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) found[index_of(i)] = squared_distance(x, i, codes, nearest[index_of(i)]);
  });
  return found;
}
}  // namespace
}  // namespace core_diffusion
