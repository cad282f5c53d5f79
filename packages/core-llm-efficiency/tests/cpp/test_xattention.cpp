#include <algorithm>
#include <core/test.hpp>
#include <core_llm_efficiency/xattention.hpp>
#include <limits>
#include <memory>
#include <random>

using namespace core_llm_efficiency;

namespace {
struct Problem {
  std::int64_t batch, heads, groups, n, m, d, e, block;
  std::vector<float> q, k, v;
  double scale;
  Problem(std::int64_t batch, std::int64_t heads, std::int64_t groups, std::int64_t n, std::int64_t m, std::int64_t d, std::int64_t e,
          std::int64_t block)
      : batch(batch),
        heads(heads),
        groups(groups),
        n(n),
        m(m),
        d(d),
        e(e),
        block(block),
        q(static_cast<std::size_t>(batch * heads * n * d)),
        k(static_cast<std::size_t>(batch * groups * m * d)),
        v(static_cast<std::size_t>(batch * groups * m * e)),
        scale(1 / std::sqrt(static_cast<double>(d))) {
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (auto* x : {&q, &k, &v})
      for (float& y : *x) y = normal(rng);
  }
  std::int64_t q_blocks() const { return (n + block - 1) / block; }
  std::int64_t k_blocks() const { return (m + block - 1) / block; }
  auto Q() const { return core::tensor(q.data(), batch, heads, n, d); }
  auto K() const { return core::tensor(k.data(), batch, groups, m, d); }
  auto V() const { return core::tensor(v.data(), batch, groups, m, e); }
  double dot(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    double s = 0;
    for (std::int64_t x = 0; x < d; ++x)
      s += static_cast<double>(Q()(b, h, i, x)) * static_cast<double>(K()(b, h / (heads / groups), j, x));
    return s;
  }
};

double attention_error(const Problem& p, bool causal, double keep) {
  const auto blocks = static_cast<std::size_t>(p.batch * p.heads * p.q_blocks() * p.k_blocks());
  const std::unique_ptr<bool[]> mask(new bool[blocks]);
  std::mt19937 rng(3);
  for (std::size_t i = 0; i < blocks; ++i) mask[i] = std::uniform_real_distribution<>()(rng) < keep;
  const auto M = core::tensor(mask.get(), p.batch, p.heads, p.q_blocks(), p.k_blocks());
  std::vector<float> out(static_cast<std::size_t>(p.batch * p.heads * p.n * p.e), 9.f),
      lse(static_cast<std::size_t>(p.batch * p.heads * p.n));
  const auto O = core::tensor(out.data(), p.batch, p.heads, p.n, p.e);
  const auto L = core::tensor(lse.data(), p.batch, p.heads, p.n);
  block_sparse_attention(p.Q(), p.K(), p.V(),
                         core::tensor(static_cast<const bool*>(mask.get()), p.batch, p.heads, p.q_blocks(), p.k_blocks()), p.block, p.scale,
                         causal, O, L);
  double worst = 0;
  for (std::int64_t b = 0; b < p.batch; ++b)
    for (std::int64_t h = 0; h < p.heads; ++h)
      for (std::int64_t i = 0; i < p.n; ++i) {
        std::vector<double> weight(static_cast<std::size_t>(p.m), 0.0), want(static_cast<std::size_t>(p.e), 0.0);
        double sum = 0;
        for (std::int64_t j = 0; j < p.m; ++j)
          if (M(b, h, i / p.block, j / p.block) && (!causal || j <= i + p.m - p.n))
            sum += weight[static_cast<std::size_t>(j)] = std::exp(p.scale * p.dot(b, h, i, j));
        for (std::int64_t j = 0; j < p.m && sum > 0; ++j)
          for (std::int64_t x = 0; x < p.e; ++x)
            want[static_cast<std::size_t>(x)] +=
                weight[static_cast<std::size_t>(j)] / sum * static_cast<double>(p.V()(b, h / (p.heads / p.groups), j, x));
        for (std::int64_t x = 0; x < p.e; ++x)
          worst = std::max(worst, std::abs(want[static_cast<std::size_t>(x)] - static_cast<double>(O(b, h, i, x))));
        if (sum > 0)
          worst = std::max(worst, std::abs(std::log(sum) - static_cast<double>(L(b, h, i))));
        else
          CHECK(std::isinf(L(b, h, i)));
      }
  return worst;
}
}  // namespace

CORE_TEST(attention_agrees_with_double_precision) {
  for (bool causal : {false, true})
    for (double keep : {0.5, 1.0}) {
      CHECK_NEAR(attention_error({1, 2, 1, 200, 200, 64, 64, 64}, causal, keep), 0, 2e-5);
      CHECK_NEAR(attention_error({2, 3, 1, 77, 150, 80, 40, 16}, causal, keep), 0, 2e-5);
      CHECK_NEAR(attention_error({1, 1, 1, 130, 301, 13, 7, 128}, causal, keep), 0, 2e-5);
      CHECK_NEAR(attention_error({1, 1, 1, 40, 500, 256, 96, 256}, causal, keep), 0, 2e-5);
    }
}

CORE_TEST(gradients_agree_with_double_precision) {
  for (bool causal : {false, true}) {
    const Problem p(1, 2, 1, 70, 101, 24, 20, 32);
    const auto blocks = static_cast<std::size_t>(p.heads * p.q_blocks() * p.k_blocks());
    const std::unique_ptr<bool[]> kept(new bool[blocks]);
    std::mt19937 rng(5);
    for (std::size_t i = 0; i < blocks; ++i) kept[i] = std::uniform_real_distribution<>()(rng) < 0.6;
    const auto mask = core::tensor(static_cast<const bool*>(kept.get()), p.batch, p.heads, p.q_blocks(), p.k_blocks());
    const auto room = [](std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(n)); };
    auto out = room(p.heads * p.n * p.e), lse = room(p.heads * p.n), of_out = room(p.heads * p.n * p.e), of_lse = room(p.heads * p.n);
    auto of_q = room(p.heads * p.n * p.d), of_k = room(p.m * p.d), of_v = room(p.m * p.e);
    std::normal_distribution<float> normal;
    for (auto* x : {&of_out, &of_lse})
      for (float& y : *x) y = normal(rng);
    const auto O = core::tensor(out.data(), p.batch, p.heads, p.n, p.e);
    block_sparse_attention(p.Q(), p.K(), p.V(), mask, p.block, p.scale, causal, O, core::tensor(lse.data(), p.batch, p.heads, p.n));
    block_sparse_attention_backward(p.Q(), p.K(), p.V(), mask, p.block, p.scale, causal,
                                    core::tensor(static_cast<const float*>(out.data()), p.batch, p.heads, p.n, p.e),
                                    core::tensor(static_cast<const float*>(lse.data()), p.batch, p.heads, p.n),
                                    core::tensor(static_cast<const float*>(of_out.data()), p.batch, p.heads, p.n, p.e),
                                    core::tensor(static_cast<const float*>(of_lse.data()), p.batch, p.heads, p.n),
                                    core::tensor(of_q.data(), p.batch, p.heads, p.n, p.d),
                                    core::tensor(of_k.data(), p.batch, p.groups, p.m, p.d),
                                    core::tensor(of_v.data(), p.batch, p.groups, p.m, p.e));
    std::vector<double> want_q(of_q.size()), want_k(of_k.size()), want_v(of_v.size());
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    for (std::int64_t h = 0; h < p.heads; ++h)
      for (std::int64_t i = 0; i < p.n; ++i)
        for (std::int64_t j = 0; j < p.m; ++j) {
          if (!mask(0, h, i / p.block, j / p.block) || (causal && j > i + p.m - p.n)) continue;
          const std::int64_t row = h * p.n + i;
          const double weight = std::exp(p.scale * p.dot(0, h, i, j) - static_cast<double>(lse[at(row)]));
          double of_weight = static_cast<double>(of_lse[at(row)]);
          for (std::int64_t x = 0; x < p.e; ++x) {
            const double g = static_cast<double>(of_out[at(row * p.e + x)]);
            of_weight += g * static_cast<double>(p.V()(0, 0, j, x) - out[at(row * p.e + x)]);
            want_v[at(j * p.e + x)] += weight * g;
          }
          for (std::int64_t x = 0; x < p.d; ++x) {
            want_q[at(row * p.d + x)] += p.scale * weight * of_weight * static_cast<double>(p.K()(0, 0, j, x));
            want_k[at(j * p.d + x)] += p.scale * weight * of_weight * static_cast<double>(p.Q()(0, h, i, x));
          }
        }
    for (std::size_t i = 0; i < want_q.size(); ++i) CHECK_NEAR(of_q[i], want_q[i], 1e-4);
    for (std::size_t i = 0; i < want_k.size(); ++i) CHECK_NEAR(of_k[i], want_k[i], 1e-4);
    for (std::size_t i = 0; i < want_v.size(); ++i) CHECK_NEAR(of_v[i], want_v[i], 1e-4);
  }
}

CORE_TEST(scores_agree_with_the_definition) {
  for (bool causal : {false, true})
    for (std::int64_t stride : {1, 4, 8, 16})
      for (std::int64_t n : {200, 133}) {
        const Problem p(1, 2, 1, n, 200 + 8 * (n == 133), 64, 64, 64);
        std::vector<float> scores(static_cast<std::size_t>(2 * p.q_blocks() * p.k_blocks()), 9.f);
        const auto S = core::tensor(scores.data(), 1, 2, p.q_blocks(), p.k_blocks());
        antidiagonal_scores(p.Q(), p.K(), stride, p.block, p.scale, causal, S);
        for (std::int64_t h = 0; h < 2; ++h) {
          std::vector<double> want(static_cast<std::size_t>(p.q_blocks() * p.k_blocks()), 0.0);
          for (std::int64_t i = 0; i * stride < p.n; ++i) {
            std::vector<double> row;
            for (std::int64_t j = 0; j * stride < p.m; ++j) {
              if (causal && j * stride > std::min((i + 1) * stride, p.n) - 1 + p.m - p.n) break;
              double logit = 0;
              for (std::int64_t r = 0; r < stride; ++r)
                if (const std::int64_t a = i * stride + stride - 1 - r, b = j * stride + r; a < p.n && b < p.m) logit += p.dot(0, h, a, b);
              row.push_back(std::exp(logit * p.scale / static_cast<double>(stride)));
            }
            double sum = 0;
            for (double x : row) sum += x;
            for (std::size_t j = 0; j < row.size(); ++j)
              want[static_cast<std::size_t>(i * stride / p.block * p.k_blocks() + static_cast<std::int64_t>(j) * stride / p.block)] +=
                  row[j] / sum;
          }
          for (std::size_t j = 0; j < want.size(); ++j) CHECK_NEAR(scores[static_cast<std::size_t>(h) * want.size() + j], want[j], 1e-4);
        }
      }
}

CORE_TEST(selection_keeps_sink_diagonal_and_the_crossing_block) {
  const std::vector<float> scores{9, 9, 9, 9, 9, 1, 1, 9, 9, 9, 0, 1, 6, 9, 9, 1, 2, 2, 4, 1}, thresholds{0.65f};
  const std::unique_ptr<bool[]> mask(new bool[20]);
  const auto run = [&](float threshold, bool causal) {
    select_blocks(core::tensor(scores.data(), 1, 1, 4, 5), core::tensor(const_cast<const float*>(&threshold), 1), 16, 64, 80, causal,
                  core::tensor(mask.get(), 1, 1, 4, 5));
    std::string kept;
    for (int i = 15; i < 20; ++i) kept += mask[static_cast<std::size_t>(i)] ? '1' : '0';
    return kept;
  };
  CHECK(run(0.0f, true) == "10001");  // last row 1 2 2 4 1, sum 10: sink and diagonal hold 2
  CHECK(run(0.3f, true) == "10011");
  CHECK(run(0.59f, true) == "10011");
  CHECK(run(0.65f, true) == "11011");  // of two equal blocks the lower index
  CHECK(run(1.0f, true) == "11111");
  CHECK(run(0.0f, false) == "00010");
  CHECK(run(0.5f, false) == "01010");
}

CORE_TEST(bad_values_are_refused) {
  const Problem p(1, 2, 1, 64, 64, 8, 8, 16);
  std::vector<float> out(1024);
  const std::unique_ptr<bool[]> mask(new bool[32]());
  const auto M = core::tensor(static_cast<const bool*>(mask.get()), 1, 2, 4, 4);
  const auto O = core::tensor(out.data(), 1, 2, 64, 8);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS(block_sparse_attention(p.Q(), p.K(), p.V(), M, 24, 1, true, O, {}), "ValueError");
  CHECK_THROWS(block_sparse_attention(p.Q(), p.K(), p.V(), M, 32, 1, true, O, {}), "ValueError");
  CHECK_THROWS(block_sparse_attention(p.Q(), p.K(), p.V(), M, 16, nan, true, O, {}), "ValueError");
  const auto S = core::tensor(out.data(), 1, 2, 4, 4);
  CHECK_THROWS(antidiagonal_scores(p.Q(), p.K(), 3, 16, 1, true, S), "ValueError");
  CHECK_THROWS(antidiagonal_scores(p.Q(), p.K(), 0, 16, 1, true, S), "ValueError");
  const float negative[] = {-1.f, 0.5f};
  CHECK_THROWS(select_blocks(core::tensor(static_cast<const float*>(out.data()), 1, 2, 4, 4), core::tensor(negative, 2), 16, 64, 64, true,
                             core::tensor(const_cast<bool*>(mask.get()), 1, 2, 4, 4)),
               "ValueError");
}

CORE_TEST(nan_keeps_every_visible_block) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores{1, 0, nan, 1}, threshold{0.1f};
  bool mask[4];
  select_blocks(core::tensor(scores.data(), 1, 1, 2, 2), core::tensor(threshold.data(), 1), 16, 32, 32, true,
                core::tensor(mask, 1, 1, 2, 2));
  CHECK(mask[0] && !mask[1] && mask[2] && mask[3]);
}
