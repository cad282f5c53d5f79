#include <array>
#include <core/test.hpp>
#include <core_agents/trajectories.hpp>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../src/evaluation/canonical.hpp"

using namespace core_agents;

namespace {

std::string canonical(const std::string& text) {
  const std::vector<char> bytes(text.begin(), text.end());  // no terminating zero, so that a read beyond the end shows
  std::string out;
  json::Canonical().object({bytes.data(), bytes.size()}, out);
  return out;
}
bool same(const std::string& a, const std::string& b) { return canonical("{\"x\":" + a + "}") == canonical("{\"x\":" + b + "}"); }

/// One run of one message with one call on each side, whose arguments are these; the row of the first is changed as asked.
bool match(const std::string& ours, const std::string& theirs, std::int64_t column = 0, std::int64_t value = 0) {
  std::array<std::vector<std::int64_t>, 2> rows;
  std::array<std::vector<std::uint8_t>, 2> texts{std::vector<std::uint8_t>(ours.begin(), ours.end()),
                                                 std::vector<std::uint8_t>(theirs.begin(), theirs.end())};
  for (std::size_t side = 0; side < 2; ++side) {
    rows[side].assign(18 * 2, -1);
    for (const std::size_t c : {0, 1, 2, 3}) rows[side][c * 2] = rows[side][c * 2 + 1] = 0;
    rows[side][2 * 2 + 1] = 1;
    rows[side][10 * 2 + 1] = 0, rows[side][11 * 2 + 1] = static_cast<std::int64_t>(texts[side].size());
  }
  rows[0][static_cast<std::size_t>(column) * 2 + 1] = column ? value : 0;
  std::array<bool, 7> modes{};
  std::array<std::int64_t, 3> counts{};
  match_trajectories(
      core::tensor<const std::int64_t>(rows[0].data(), 18, 2), core::tensor<const std::uint8_t>(texts[0].data(), texts[0].size()),
      core::tensor<const std::int64_t>(rows[1].data(), 18, 2), core::tensor<const std::uint8_t>(texts[1].data(), texts[1].size()), false,
      core::tensor(modes.data(), 1, 7), core::tensor(counts.data(), 1, 3));
  return modes[0];
}

}  // namespace

CORE_TEST(equal_values_have_one_form) {
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{{"1", "1.0"},
                                                                             {"1", "10e-1"},
                                                                             {"0", "-0.0"},
                                                                             {"-0", "0"},
                                                                             {"1e22", "10000000000000000000000"},
                                                                             {"1e999", "Infinity"},
                                                                             {"1e-999", "0"},
                                                                             {"-1E+999", "-Infinity"},
                                                                             {"0.5", "5e-1"},
                                                                             {"\"a\"", "\"\\u0061\""},
                                                                             {"{\"a\":1,\"b\":2}", "{ \"b\" : 2 , \"a\" : 1 }"},
                                                                             {"{\"a\":1,\"a\":2}", "{\"a\":2}"},
                                                                             {"[1, {\"b\":0,\"a\":NaN}]", "[1.0,{\"a\":NaN,\"b\":0}]"},
                                                                             {"0.000e9999999999999999999", "0"}})
    CHECK(same(a, b));
}

CORE_TEST(different_values_have_different_forms) {
  const std::vector<std::string> values{"1",
                                        "2",
                                        "true",
                                        "false",
                                        "null",
                                        "NaN",
                                        "Infinity",
                                        "-Infinity",
                                        "\"1\"",
                                        "\"\"",
                                        "[]",
                                        "{}",
                                        "[1,12]",
                                        "[11,2]",
                                        "[[1],2]",
                                        "[1,[2]]",
                                        "9007199254740993",
                                        "9007199254740992.0",
                                        "0.1",
                                        "0.10000000000000002",
                                        "{\"a\":1}",
                                        "{\"a\":\"1\"}",
                                        "{\"b\":1}",
                                        "\"\\u0000\"",
                                        "1e23",
                                        "100000000000000000000000"};
  for (std::size_t i = 0; i < values.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) CHECK(!same(values[i], values[j]));
}

CORE_TEST(what_is_no_object_is_refused) {
  for (const char* text : {"", "1", "[]", "{", "{\"a\":}", "{} {}", "nul", "{\"a\":01}"}) {
    bool refused = false;
    try {
      canonical(text);
    } catch (const json::Refused&) {
      refused = true;
    }
    CHECK(refused);
  }
  CHECK_THROWS(match("[]", "{}"), "ValueError");
}

CORE_TEST(rows_out_of_range_are_refused) {
  CHECK(match("{\"a\": 1}", "{\"a\": 1.0}"));
  CHECK(!match("{\"a\": 1}", "{\"a\": 2}"));
  for (const std::int64_t value : {std::int64_t{-2}, std::int64_t{100}, INT64_MAX, INT64_MIN})
    CHECK_THROWS(match("{}", "{}", 11, value), "ValueError");
  CHECK_THROWS(match("{}", "{}", 10, 3), "ValueError");
}

CORE_TEST(mutated_arguments_stay_inside) {
  std::mt19937_64 rng(0);
  const std::string whole = "{\"q\": [1, -2.5e3, {\"b\": \"x\\u00e9\", \"a\": null}], \"to\": \"\xc3\xa9\", \"n\": 123456789012345678901}";
  const int count = std::getenv("CORE_TEST_ALL") ? 100000 : 3000;
  int read = 0;
  for (int i = 0; i < count; ++i) {
    std::string text = whole;
    for (auto n = 1 + rng() % 3; n-- > 0 && !text.empty();) {
      const std::size_t at = rng() % text.size();
      switch (rng() % 4) {
        case 0: text[at] = static_cast<char>(rng()); break;
        case 1: text.erase(at, 1 + rng() % 9); break;
        case 2: text.insert(at, text.substr(rng() % text.size(), rng() % 20)); break;
        default: text[at] = "{}[]\",:-.e0"[rng() % 11];
      }
    }
    bool refused = false;
    try {
      CHECK(canonical(text) == canonical(" " + text + "\n"));
    } catch (const json::Refused&) {
      refused = true;
    }
    read += refused ? 0 : 1;
  }
  CHECK(read > count / 100);
}
