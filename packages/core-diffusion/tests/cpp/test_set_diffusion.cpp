#include <core/test.hpp>
#include <core_diffusion/philox.hpp>
#include <core_diffusion/set_diffusion.hpp>

#include <cstdlib>
#include <map>
#include <numeric>
#include <string>

using core::tensor;
using core_diffusion::fixed_sum_bridge;
using core_diffusion::fixed_sum_sample;
using std::int32_t;
using std::int64_t;

namespace {
/// Relative frequencies of the rows of `n` draws from one table of weights.
std::map<std::vector<int32_t>, double> frequencies(const std::vector<float>& probs, int64_t codes, int64_t counts, int64_t total,
                                                   int64_t n) {
  std::vector<float> all;
  for (int64_t b = 0; b < n; ++b) all.insert(all.end(), probs.begin(), probs.end());
  std::vector<int64_t> totals(static_cast<std::size_t>(n), total);
  std::vector<int32_t> out(static_cast<std::size_t>(n * codes));
  fixed_sum_sample(tensor(static_cast<const float*>(all.data()), n, codes, counts), tensor(static_cast<const int64_t*>(totals.data()), n),
                   1, 5, tensor(out.data(), n, codes));
  std::map<std::vector<int32_t>, double> f;
  for (int64_t b = 0; b < n; ++b) f[{out.begin() + b * codes, out.begin() + (b + 1) * codes}] += 1.0 / static_cast<double>(n);
  return f;
}
}  // namespace

CORE_TEST(philox_gives_the_published_blocks) {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(core_diffusion::philox({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(core_diffusion::philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(core_diffusion::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

CORE_TEST(conditional_law_of_two_codes) {
  const auto f = frequencies({.5f, .3f, .2f, .1f, .6f, .3f}, 2, 3, 2, 100000);
  const double a = .5 * .3, b = .3 * .6, c = .2 * .1, z = a + b + c;
  CHECK(f.size() == 3);
  CHECK_NEAR(f.at({0, 2}), a / z, .006);
  CHECK_NEAR(f.at({1, 1}), b / z, .006);
  CHECK_NEAR(f.at({2, 0}), c / z, .006);
}

CORE_TEST(an_unlikely_total_is_still_exact) {
  // 200 codes that are 1 with probability 1e-30: a total of 100 has a probability of about 1e-2941.
  const int64_t codes = 200, n = 2000;
  std::vector<float> one(static_cast<std::size_t>(2 * codes));
  for (int64_t k = 0; k < codes; ++k) one[static_cast<std::size_t>(2 * k)] = 1, one[static_cast<std::size_t>(2 * k + 1)] = 1e-30f;
  double first = 0;
  for (const auto& [row, p] : frequencies(one, codes, 2, 100, n)) {
    CHECK(std::accumulate(row.begin(), row.end(), 0) == 100);
    first += row[0] * p;
  }
  CHECK_NEAR(first, .5, .05);
}

CORE_TEST(a_table_in_blocks_draws_the_same_law) {
  // 3000 codes by 1000 tokens: more than one block.
  const int64_t codes = 3000, total = 1000;
  std::vector<float> probs(static_cast<std::size_t>(codes * 3));
  for (int64_t k = 0; k < codes; ++k)
    for (int64_t c = 0; c < 3; ++c) probs[static_cast<std::size_t>(3 * k + c)] = static_cast<float>(1 + (k * 7 + c * 3) % 5);
  std::vector<int32_t> out(static_cast<std::size_t>(codes));
  for (int64_t seed = 0; seed < 3; ++seed) {
    fixed_sum_sample(tensor(static_cast<const float*>(probs.data()), 1, codes, 3), tensor(static_cast<const int64_t*>(&total), 1), 1, seed,
                     tensor(out.data(), 1, codes));
    CHECK(std::accumulate(out.begin(), out.end(), int64_t{0}) == total);
  }
}

CORE_TEST(bridge_keeps_the_sum_and_ends_at_the_data) {
  const int64_t codes = 500, tokens = 60;
  std::vector<int32_t> x0(codes), x1(codes), out(codes);
  for (int64_t i = 0; i < tokens; ++i) {
    x0[static_cast<std::size_t>(i * 7 % codes)] += 1;
    x1[static_cast<std::size_t>(i * i % 11)] += 1;
  }
  const auto step = [&](double t, double sigma, int64_t most, int64_t seed) {
    fixed_sum_bridge(tensor(static_cast<const int32_t*>(x0.data()), 1, codes), tensor(static_cast<const int32_t*>(x1.data()), 1, codes),
                     tensor(static_cast<const double*>(&t), 1), sigma, most, seed, tensor(out.data(), 1, codes));
  };
  for (int i = 0; i <= 20; ++i)
    for (double sigma : {0., 1e-9, .25, 5., 1e300}) {
      step(i / 20., sigma, tokens, i);
      CHECK(std::accumulate(out.begin(), out.end(), int64_t{0}) == tokens);
      for (int32_t c : out) CHECK(c >= 0 && c <= tokens);
    }
  step(1, 0, tokens, 3);
  CHECK(out == x1);
  step(0, 0, tokens, 3);
  CHECK(out == x0);
  CHECK_THROWS(step(-.1, .25, tokens, 0), "ValueError");
  CHECK_THROWS(step(NAN, .25, tokens, 0), "ValueError");
  CHECK_THROWS(step(.5, INFINITY, tokens, 0), "ValueError");
  CHECK_THROWS(step(.5, .25, 0, 0), "ValueError");
  ++x1[3];
  CHECK_THROWS(step(.5, .25, tokens, 0), "ValueError");
}

CORE_TEST(infeasible_totals_and_bad_weights_are_refused) {
  const auto draw = [](std::vector<float> probs, int64_t total, double top_p) {
    std::vector<int32_t> out(2);
    fixed_sum_sample(tensor(static_cast<const float*>(probs.data()), 1, 2, 3), tensor(static_cast<const int64_t*>(&total), 1), top_p, 1,
                     tensor(out.data(), 1, 2));
    return out;
  };
  const std::vector<float> p{.5f, .5f, 0, 0, .5f, .5f};
  for (int64_t total : {int64_t{0}, int64_t{4}, int64_t{-1}, INT64_MIN, INT64_MAX}) CHECK_THROWS(draw(p, total, 1), "ValueError");
  CHECK_THROWS(draw({1, 0, 1, 1, 0, 1}, 3, 1), "ValueError");  // between the least and the largest sum, but odd
  CHECK_THROWS(draw({1, 0, 1, 0, 0, 0}, 2, 1), "ValueError");
  CHECK_THROWS(draw({1, NAN, 1, 1, 0, 1}, 2, 1), "ValueError");
  CHECK_THROWS(draw({1, 0, 1, 1, -1e-9f, 1}, 2, 1), "ValueError");
  CHECK_THROWS(draw({1, 0, INFINITY, 1, 0, 1}, 2, 1), "ValueError");
  CHECK_THROWS(draw(p, 2, 0), "ValueError");
  CHECK_THROWS(draw(p, 2, 1.5), "ValueError");
  CHECK((draw({.9f, .05f, .05f, .05f, .9f, .05f}, 1, .8) == std::vector<int32_t>{0, 1}));
  const auto widened = draw({.9f, .05f, .05f, .05f, .9f, .05f}, 3, .8);
  CHECK(widened[0] + widened[1] == 3);
}
