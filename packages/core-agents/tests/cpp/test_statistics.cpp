#include <core_agents/agreement.hpp>
#include <core_agents/traces.hpp>

#include <array>
#include <cmath>
#include <core/test.hpp>
#include <string>
#include <vector>

using namespace core_agents;

CORE_TEST(kappa_of_a_known_table) {
  // 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5.
  std::vector<std::int32_t> ratings;
  const auto add = [&](int times, std::int32_t a, std::int32_t b) {
    for (int i = 0; i < times; ++i) ratings.push_back(a), ratings.push_back(b);
  };
  add(20, 1, 1), add(5, 1, 0), add(10, 0, 1), add(15, 0, 0);
  const std::int64_t n = static_cast<std::int64_t>(ratings.size()) / 2;
  std::vector<double> tables(static_cast<std::size_t>(n) * 4), rows(4), sums(3 * 4);
  agreement_tables(core::tensor<const std::int32_t>(ratings.data(), n, 1, 2), 2, "cohen", core::tensor<double>(tables.data(), n, 1, 4));
  for (std::size_t i = 0; i < tables.size(); ++i) rows[i % 4] += tables[i];
  const std::array<double, 2> values{0, 1};
  double kappa = 0;
  agreement(core::tensor<const double>(rows.data(), 1, 4), core::tensor<const double>(values.data(), 2), 2, "cohen", "nominal",
            core::tensor<double>(&kappa, 1));
  CHECK_NEAR(kappa, 0.4, 1e-12);
  bootstrap_sums(core::tensor<const double>(tables.data(), n, 4), 7, core::tensor<double>(sums.data(), 3, 4));
  for (std::size_t b = 0; b < 3; ++b) CHECK_NEAR(sums[4 * b] + sums[4 * b + 1] + sums[4 * b + 2] + sums[4 * b + 3], 50, 0);
}

CORE_TEST(one_class_is_not_defined) {
  const std::array<double, 4> table{9, 0, 0, 0};
  const std::array<double, 2> values{0, 1};
  double kappa = 0;
  agreement(core::tensor<const double>(table.data(), 1, 4), core::tensor<const double>(values.data(), 2), 2, "cohen", "nominal",
            core::tensor<double>(&kappa, 1));
  CHECK(std::isnan(kappa));
  CHECK_THROWS(agreement(core::tensor<const double>(table.data(), 1, 4), core::tensor<const double>(values.data(), 2), 2, "cohen", "ratio",
                         core::tensor<double>(&kappa, 1)),
               "ValueError");
}

CORE_TEST(the_same_text_is_found_again) {
  const std::string first = "Open the file, then read it.", second = "open THE file then... read it!";
  const std::string text = first + second + "something else is said here";
  const auto middle = static_cast<std::int64_t>(first.size()), last = middle + static_cast<std::int64_t>(second.size());
  const std::array<std::int64_t, 4> offsets{0, middle, last, static_cast<std::int64_t>(text.size())};
  std::array<std::int64_t, 3 * 16> sketches{};
  std::array<std::int32_t, 3> agents{}, earlier{};
  text_sketches(core::tensor<const std::uint8_t>(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()),
                core::tensor<const std::int64_t>(offsets.data(), 4), core::tensor<std::int64_t>(sketches.data(), 3, 16));
  near_duplicates(core::tensor<const std::int64_t>(sketches.data(), 3, 16), core::tensor<const std::int32_t>(agents.data(), 3), 0.9,
                  core::tensor<std::int32_t>(earlier.data(), 3));
  CHECK(earlier[0] == -1 && earlier[1] == 0 && earlier[2] == -1);
}
