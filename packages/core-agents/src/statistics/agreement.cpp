#include "../errors.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_agents/agreement.hpp>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace core_agents {
namespace {

using Index = std::size_t;

std::string quoted(std::string_view text) { return std::string(1, '\'').append(text).append(1, '\''); }

enum class Statistic { cohen, fleiss, krippendorff };

Statistic statistic_of(const char* op, std::string_view name) {
  if (name == "cohen") return Statistic::cohen;
  if (name == "fleiss") return Statistic::fleiss;
  if (name == "krippendorff") return Statistic::krippendorff;
  bad(op, "statistic", "'cohen', 'fleiss' or 'krippendorff'", quoted(name));
}

/// How many numbers a table holds; also checks the sizes.
std::int64_t width(const char* op, Statistic s, std::int64_t classes, std::int64_t raters) {
  if (classes < 1 || classes > 1024) bad(op, "classes", "from 1 to 1024", std::to_string(classes));
  if (raters < 2 || raters > 1024) bad(op, "raters", "from 2 to 1024", std::to_string(raters));
  if (s == Statistic::fleiss) return classes + 2;
  return classes * classes * (s == Statistic::cohen ? raters * (raters - 1) / 2 : 1);
}

void check_width(const char* op, std::int64_t got, std::int64_t wanted) {
  if (got != wanted) bad(op, "tables", "of " + std::to_string(wanted) + " numbers a table", std::to_string(got));
}

std::uint64_t splitmix64(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}
constexpr std::uint64_t golden = 0x9e3779b97f4a7c15ULL;

void add_scaled(const double* rows, const std::uint32_t* weights, std::int64_t n, std::int64_t m, double* sums) {
  if (m == 4) {
    double s[4] = {};
    for (std::int64_t i = 0; i < n; ++i)
      for (int j = 0; j < 4; ++j) s[j] += weights[i] * rows[4 * i + j];
    std::copy(s, s + 4, sums);
    return;
  }
  std::fill(sums, sums + m, 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    if (!weights[i]) continue;
    for (std::int64_t j = 0; j < m; ++j) sums[j] += weights[i] * rows[i * m + j];
  }
}

constexpr double undefined = std::numeric_limits<double>::quiet_NaN();

/// 1 - observed / expected disagreement; not defined where chance leaves nothing to disagree about.
double corrected(double observed, double expected) { return expected > 0 ? 1 - observed / expected : undefined; }

double cohen(const double* table, Index k, const std::vector<double>& weights) {
  std::vector<double> rows(k), columns(k);
  double n = 0;
  for (Index i = 0; i < k; ++i)
    for (Index j = 0; j < k; ++j) rows[i] += table[i * k + j], columns[j] += table[i * k + j], n += table[i * k + j];
  double observed = 0, expected = 0;
  for (Index i = 0; i < k; ++i)
    for (Index j = 0; j < k; ++j) observed += weights[i * k + j] * table[i * k + j], expected += weights[i * k + j] * rows[i] * columns[j];
  return corrected(observed, expected / n);
}

double fleiss(const double* table, Index k, double raters) {
  const double labels = table[k + 1], total = labels * raters;
  double chance = 0;
  for (Index i = 0; i < k; ++i) chance += table[i] / total * (table[i] / total);
  return corrected(1 - (table[k] - total) / (total * (raters - 1)), 1 - chance);
}

enum class Metric { nominal, linear, quadratic, ordinal, interval, ratio };

double krippendorff(const double* table, Index k, Metric metric, const std::vector<double>& values) {
  std::vector<double> count(k), below(k + 1);
  for (Index i = 0; i < k; ++i) {
    for (Index j = 0; j < k; ++j) count[i] += table[i * k + j];
    below[i + 1] = below[i] + count[i];
  }
  const auto distance = [&](Index i, Index j) {  // i < j
    double d = 1;
    if (metric == Metric::ordinal) d = below[j + 1] - below[i] - (count[i] + count[j]) / 2;
    if (metric == Metric::interval) d = values[i] - values[j];
    if (metric == Metric::ratio) d = values[i] + values[j] == 0 ? 0 : (values[i] - values[j]) / (values[i] + values[j]);
    return d * d;
  };
  double observed = 0, expected = 0;
  for (Index i = 0; i < k; ++i)
    for (Index j = i + 1; j < k; ++j) {
      const double d = distance(i, j);
      observed += d * (table[i * k + j] + table[j * k + i]);
      expected += d * 2 * count[i] * count[j];
    }
  return corrected(observed, expected / (below[k] - 1));
}

}  // namespace

void agreement_tables(core::Tensor<const std::int32_t, 3> ratings, std::int64_t classes, const char* statistic,
                      core::Tensor<double, 3> tables) {
  const char* op = "agreement_tables";
  const Statistic s = statistic_of(op, statistic);
  const auto [units, labels, raters] = ratings.shape;
  check_width(op, tables.shape[2], width(op, s, classes, raters));
  const std::int64_t groups = tables.shape[1];
  if (groups != 1 && groups != labels) bad(op, "tables", "of 1 or " + std::to_string(labels) + " tables a unit", std::to_string(groups));
  const std::int32_t least = s == Statistic::krippendorff ? -1 : 0;
  std::atomic<bool> wrong{false};
  core::parallel_for(units, 4096 / (labels * raters + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> given(static_cast<Index>(raters));
    std::vector<double> count(static_cast<Index>(classes));
    for (std::int64_t n = begin; n < end; ++n) {
      for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t c = 0; c < tables.shape[2]; ++c) tables(n, g, c) = 0;
      for (std::int64_t l = 0; l < labels; ++l) {
        const std::int64_t g = groups == 1 ? 0 : l;
        std::fill(count.begin(), count.end(), 0.0);
        double present = 0;
        for (std::int64_t r = 0; r < raters; ++r) {
          const std::int32_t c = given[static_cast<Index>(r)] = ratings(n, l, r);
          if (c < least || c >= classes) {
            wrong = true;
            return;
          }
          if (c >= 0) ++count[static_cast<Index>(c)], ++present;
        }
        if (s == Statistic::cohen) {
          std::int64_t pair = 0;
          for (Index a = 0; a < given.size(); ++a)
            for (Index b = a + 1; b < given.size(); ++b, ++pair) ++tables(n, g, (pair * classes + given[a]) * classes + given[b]);
        } else if (s == Statistic::fleiss) {
          for (std::int64_t c = 0; c < classes; ++c) {
            const double k = count[static_cast<Index>(c)];
            tables(n, g, c) += k;
            tables(n, g, classes) += k * k;
          }
          ++tables(n, g, classes + 1);
        } else if (present > 1) {
          for (std::int64_t a = 0; a < classes; ++a)
            for (std::int64_t b = 0; b < classes; ++b)
              tables(n, g, a * classes + b) += count[static_cast<Index>(a)] * (count[static_cast<Index>(b)] - (a == b)) / (present - 1);
        }
      }
    }
  });
  if (!wrong) return;
  for (std::int64_t n = 0; n < units; ++n)
    for (std::int64_t l = 0; l < labels; ++l)
      for (std::int64_t r = 0; r < raters; ++r)
        if (const std::int32_t c = ratings(n, l, r); c < least || c >= classes)
          bad(op, "ratings", "in [" + std::to_string(least) + ", " + std::to_string(classes) + ")",
              std::to_string(c) + " at [" + std::to_string(n) + ", " + std::to_string(l) + ", " + std::to_string(r) + "]");
}

void bootstrap_sums(core::Tensor<const double, 2> rows, std::int64_t seed, core::Tensor<double, 2> sums) {
  const std::int64_t n = rows.shape[0], m = rows.shape[1], replicates = sums.shape[0];
  if (n == 0 && replicates > 0) bad("bootstrap_sums", "rows", "at least one row", "none");
  if (n > std::int64_t{1} << 31) bad("bootstrap_sums", "rows", "at most 2^31 rows", std::to_string(n));
  std::vector<double> packed(static_cast<Index>(core::checked_mul(n, m, "bootstrap_sums: the size of 'rows'")));
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j) packed[static_cast<Index>(i * m + j)] = rows(i, j);
  const std::uint64_t start = splitmix64(static_cast<std::uint64_t>(seed) + golden);
  core::parallel_for(replicates, 16384 / (n + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint32_t> weights(static_cast<Index>(n));
    std::vector<double> sum(static_cast<Index>(m));
    for (std::int64_t b = begin; b < end; ++b) {
      std::fill(weights.begin(), weights.end(), 0U);
      std::uint64_t state = start ^ splitmix64(static_cast<std::uint64_t>(b) + golden);
      for (std::int64_t i = 0; i < n; ++i) {
        state += golden;
        const auto at = static_cast<unsigned __int128>(splitmix64(state)) * static_cast<std::uint64_t>(n) >> 64;
        ++weights[static_cast<Index>(at)];
      }
      core::multiversion<&add_scaled>(static_cast<const double*>(packed.data()), static_cast<const std::uint32_t*>(weights.data()), n, m,
                                      sum.data());
      for (std::int64_t j = 0; j < m; ++j) sums(b, j) = sum[static_cast<Index>(j)];
    }
  });
}

void agreement(core::Tensor<const double, 2> tables, core::Tensor<const double, 1> values, std::int64_t raters, const char* statistic,
               const char* metric, core::Tensor<double, 1> out) {
  const char* op = "agreement";
  const Statistic s = statistic_of(op, statistic);
  const std::int64_t classes = values.shape[0];
  check_width(op, tables.shape[1], width(op, s, classes, raters));
  constexpr std::string_view names[] = {"nominal", "linear", "quadratic", "ordinal", "interval", "ratio"};
  const auto found = std::find(std::begin(names), std::end(names), std::string_view(metric)) - std::begin(names);
  const bool known = found == 0 || (s == Statistic::cohen && found <= 2) || (s == Statistic::krippendorff && found >= 3 && found <= 5);
  if (!known) bad(op, "metric", "one that the statistic has", quoted(metric) + " for " + quoted(statistic));
  const auto m = static_cast<Metric>(found);
  const auto k = static_cast<Index>(classes);
  std::vector<double> value(k), weights(s == Statistic::cohen ? k * k : 0);
  for (Index i = 0; i < k; ++i) {
    value[i] = values(i);
    if (!std::isfinite(value[i])) bad(op, "values", "finite", std::to_string(value[i]));
  }
  for (Index i = 0; i < weights.size(); ++i) {
    const Index row = i / k, column = i % k;
    const auto d = static_cast<double>(std::max(row, column) - std::min(row, column));
    weights[i] = m == Metric::nominal ? d != 0 : m == Metric::linear ? d : d * d;
  }
  core::parallel_for(tables.shape[0], 4096 / tables.shape[1] + 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> table(static_cast<Index>(tables.shape[1]));
    for (std::int64_t b = begin; b < end; ++b) {
      for (Index c = 0; c < table.size(); ++c) table[c] = tables(b, static_cast<std::int64_t>(c));
      if (s == Statistic::fleiss) {
        out(b) = fleiss(table.data(), k, static_cast<double>(raters));
      } else if (s == Statistic::krippendorff) {
        out(b) = krippendorff(table.data(), k, m, value);
      } else {
        double sum = 0;
        const Index pairs = table.size() / (k * k);
        for (Index p = 0; p < pairs; ++p) sum += cohen(table.data() + p * k * k, k, weights);
        out(b) = sum / static_cast<double>(pairs);
      }
    }
  });
}

}  // namespace core_agents
