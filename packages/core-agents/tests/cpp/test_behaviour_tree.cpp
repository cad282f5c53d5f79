#include <core_agents/behaviour_tree.hpp>

#include <core/test.hpp>
#include <limits>
#include <random>
#include <vector>

using namespace core_agents;

namespace {
struct Tree {
  std::vector<std::uint8_t> kinds{}, comparisons{}, results{};
  std::vector<std::int32_t> ends{}, features{}, action_ids{}, params{};
  std::vector<float> thresholds{};
  std::vector<std::uint8_t> code_ops{};
  std::vector<std::int32_t> code_lefts{}, code_rights{};
  std::vector<float> code_values{};

  void compute(int op, int left, int right, float value = 0) {
    code_ops.push_back(static_cast<std::uint8_t>(op)), code_lefts.push_back(left);
    code_rights.push_back(right), code_values.push_back(value);
  }
  int add(int kind, int param = 0, int action = -1, int result = SUCCESS, int feature = 0, int comparison = GE, float threshold = 0) {
    kinds.push_back(static_cast<std::uint8_t>(kind)), comparisons.push_back(static_cast<std::uint8_t>(comparison));
    results.push_back(static_cast<std::uint8_t>(result)), features.push_back(feature), action_ids.push_back(action);
    params.push_back(param), thresholds.push_back(threshold), ends.push_back(size());
    return size() - 1;
  }
  void close(int node) { ends[static_cast<std::size_t>(node)] = size(); }
  int size() const { return static_cast<int>(kinds.size()); }

  template <class T>
  static core::Tensor<const T, 1> view(const std::vector<T>& v) {
    return core::tensor<const T>(v.data(), v.size());
  }
  std::vector<std::int64_t> check(std::int64_t num_features) const {
    std::vector<std::int64_t> sizes(2);
    std::vector<std::int32_t> rows(kinds.size());
    check_program(view(kinds), view(ends), view(features), view(comparisons), view(thresholds), view(action_ids), view(results),
                  view(params), view(code_ops), view(code_lefts), view(code_rights), view(code_values), num_features,
                  core::tensor(rows.data(), rows.size()), core::tensor(sizes.data(), 2));
    return sizes;
  }
};

/// Agents of one tree; observations [A, F].
struct Crowd {
  const Tree& tree;
  std::int64_t agents, features;
  bool scalar = false;
  std::vector<std::int64_t> sizes = tree.check(features);
  std::vector<std::uint8_t> state = std::vector<std::uint8_t>(static_cast<std::size_t>(sizes[0] * agents));
  std::vector<std::int32_t> counters = std::vector<std::int32_t>(static_cast<std::size_t>(sizes[1] * agents));
  std::vector<std::int32_t> actions = std::vector<std::int32_t>(static_cast<std::size_t>(agents), 99);
  std::vector<std::uint8_t> statuses = std::vector<std::uint8_t>(static_cast<std::size_t>(agents), 99);
  std::vector<std::uint8_t> log = std::vector<std::uint8_t>(tree.kinds.size() * static_cast<std::size_t>(agents), 99);

  void tick(const std::vector<float>& observations, const bool* mask = nullptr) {
    std::optional<core::Tensor<const bool, 1>> m;
    if (mask) m = core::tensor(mask, agents);
    const auto op = scalar ? core_agents::tick_scalar : core_agents::tick;
    op(Tree::view(tree.kinds), Tree::view(tree.ends), Tree::view(tree.features), Tree::view(tree.comparisons), Tree::view(tree.thresholds),
       Tree::view(tree.action_ids), Tree::view(tree.results), Tree::view(tree.params), Tree::view(tree.code_ops),
       Tree::view(tree.code_lefts), Tree::view(tree.code_rights), Tree::view(tree.code_values),
       core::tensor<const float>(observations.data(), agents, features), m, core::tensor(state.data(), sizes[0], agents),
       core::tensor(counters.data(), sizes[1], agents), core::tensor(actions.data(), agents), core::tensor(statuses.data(), agents),
       core::tensor(log.data(), tree.size(), agents));
  }
};

/// Selector [Sequence [obs[0] >= 1, action 7], action 1 for two ticks].
Tree alarm() {
  Tree t;
  const int root = t.add(SELECTOR), guarded = t.add(SEQUENCE);
  t.add(CONDITION, 0, -1, SUCCESS, 0, GE, 1.f);
  t.add(ACTION, 0, 7);
  t.close(guarded);
  t.add(ACTION, 2, 1);
  t.close(root);
  return t;
}
}  // namespace

CORE_TEST(a_higher_priority_halts_what_runs) {
  const Tree t = alarm();
  Crowd c{t, 300, 1};
  const auto expect = [&](float alarm, int status, int action) {
    c.tick(std::vector<float>(300, alarm));
    CHECK(c.statuses[0] == status && c.actions[0] == action);
    CHECK(c.statuses[299] == status && c.actions[299] == action);
  };
  expect(0, RUNNING, 1);
  expect(0, RUNNING, 1);
  expect(1, SUCCESS, 7);
  for (int i = 0; i < 2; ++i) expect(0, RUNNING, 1);
  expect(0, SUCCESS, 1);
}

CORE_TEST(a_masked_agent_keeps_everything) {
  const Tree t = alarm();
  Crowd c{t, 2, 1};
  const bool first[] = {true, false};
  c.tick({0, 0}, first);
  CHECK(c.statuses[0] == RUNNING && c.actions[0] == 1);
  CHECK(c.statuses[1] == 99 && c.actions[1] == 99);
  for (std::int64_t r = 0; r < c.sizes[0]; ++r) CHECK(c.state[static_cast<std::size_t>(2 * r + 1)] == 0);
}

CORE_TEST(hostile_programs_are_refused) {
  CHECK_THROWS(Tree{}.check(1), "ValueError");
  const auto damaged = [](auto change) {
    Tree t = alarm();
    change(t);
    CHECK_THROWS(t.check(1), "ValueError");
  };
  for (const std::int32_t bad :
       {-1, 0, 3, 6, 1 << 30, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()}) {
    damaged([&](Tree& t) { t.ends[0] = bad; });
    if (bad != 3) damaged([&](Tree& t) { t.ends[2] = bad; });
  }
  damaged([](Tree& t) { t.kinds[0] = NUM_KINDS; });
  damaged([](Tree& t) { t.kinds[0] = 255; });
  damaged([](Tree& t) { t.kinds[0] = INVERTER; });
  damaged([](Tree& t) { t.kinds[2] = INVERTER; });
  damaged([](Tree& t) { t.features[2] = 1; });
  damaged([](Tree& t) { t.features[2] = -1; });
  damaged([](Tree& t) { t.comparisons[2] = 6; });
  damaged([](Tree& t) { t.thresholds[2] = std::numeric_limits<float>::quiet_NaN(); });
  damaged([](Tree& t) { t.results[3] = 0; });
  damaged([](Tree& t) { t.action_ids[3] = -2; });
  damaged([](Tree& t) { t.params[4] = -1; });
  CHECK_THROWS(alarm().check(-1), "ValueError");
  damaged([](Tree& t) { t.compute(NUM_OPERATIONS, 0, 0); });
  damaged([](Tree& t) { t.compute(ADD, 1, 0); });
  damaged([](Tree& t) { t.compute(ADD, 0, -2); });
  damaged([](Tree& t) { t.compute(ADD, 0, -1, std::numeric_limits<float>::quiet_NaN()); });
  damaged([](Tree& t) { t.compute(NOT, -1, 77, std::numeric_limits<float>::quiet_NaN()); });
  damaged([](Tree& t) {
    for (int i = 0; i <= max_code; ++i) t.compute(ADD, 0, 0);
  });
  damaged([](Tree& t) { t.compute(ADD, 0, 0), t.features[2] = 2; });

  Tree deep;
  for (int i = 0; i < 100000; ++i) deep.add(INVERTER);
  deep.add(ACTION);
  for (int i = 0; i < 100000; ++i) deep.close(i);
  CHECK_THROWS(deep.check(0), "ValueError");
}

CORE_TEST(code_makes_columns_and_the_log_tells_every_node) {
  Tree t = alarm();
  t.compute(MUL, 0, -1, 2.f);     // column 1: 2 x
  t.compute(MAXIMUM, 1, 0);       // column 2: max(2 x, x)
  t.compute(NEGATE, 2, 1 << 20);  // column 3; the right operand is not used
  t.compute(ABSOLUTE, 3, -5);
  t.features[2] = 4, t.thresholds[2] = 5.f;
  Crowd c{t, 3, 1};
  c.tick({2, 3, -1});
  CHECK(c.statuses[0] == RUNNING && c.statuses[1] == SUCCESS && c.actions[1] == 7 && c.statuses[2] == RUNNING);
  const std::uint8_t expected[] = {RUNNING, SUCCESS, RUNNING, FAILURE, SUCCESS, FAILURE, FAILURE, SUCCESS,
                                   FAILURE, INVALID, SUCCESS, INVALID, RUNNING, INVALID, RUNNING};
  for (std::size_t i = 0; i < 15; ++i) CHECK(c.log[i] == expected[i]);
  const bool none[] = {false, false, true};
  c.tick({2, 3, -1}, none);
  CHECK(c.log[0] == INVALID && c.log[2] == RUNNING);
}

CORE_TEST(random_bytes_as_program_and_state_are_safe) {
  std::mt19937 rng(5);
  const auto upto = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Tree t;
    const int nodes = 1 + upto(5);
    for (int i = 0; i < nodes; ++i) t.add(upto(NUM_KINDS), 1, upto(4) - 1, 1 + upto(3), upto(2), upto(6), 0.5f);
    for (int i = 0; i < nodes; ++i) t.ends[static_cast<std::size_t>(i)] = i == 0 ? nodes : i + 1 + upto(nodes - i);
    for (int i = upto(4); i > 0; --i) t.compute(upto(NUM_OPERATIONS), upto(4) - 1, upto(4) - 1, static_cast<float>(upto(3)) - 1);
    for (auto& f : t.features) f = upto(2 + static_cast<int>(t.code_ops.size()));
    try {
      t.check(2);
    } catch (const core::Error&) {
      continue;
    }
    ++accepted;
    Crowd c{t, 5, 2}, d{t, 5, 2, true};
    for (auto& b : c.state) b = static_cast<std::uint8_t>(rng());
    for (auto& n : c.counters) n = static_cast<std::int32_t>(rng());
    d.state = c.state, d.counters = c.counters;
    std::vector<float> observations(10);
    for (auto& x : observations) x = static_cast<float>(upto(3)) - 1;
    for (int i = 0; i < 3; ++i) c.tick(observations), d.tick(observations);
    for (const Crowd* k : {&c, &d}) {
      for (const auto s : k->statuses) CHECK(s >= SUCCESS && s <= RUNNING);
      for (const auto a : k->actions) CHECK(a >= -1 && a < 3);
    }
  }
  CHECK(accepted > 500);
}

CORE_TEST(one_by_one_equals_all_at_once) {
  std::mt19937 rng(6);
  const auto upto = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Tree t;
    const int nodes = 1 + upto(7);
    for (int i = 0; i < nodes; ++i) t.add(upto(NUM_KINDS), 1 + upto(2), upto(4) - 1, 1 + upto(3), upto(2), upto(6), 0.5f);
    for (int i = 0; i < nodes; ++i) t.ends[static_cast<std::size_t>(i)] = i == 0 ? nodes : i + 1 + upto(nodes - i);
    try {
      t.check(2);
    } catch (const core::Error&) {
      continue;
    }
    ++accepted;
    Crowd c{t, 5, 2}, d{t, 5, 2, true};
    for (int i = 0; i < 8; ++i) {
      std::vector<float> observations(10);
      for (auto& x : observations) x = static_cast<float>(upto(3)) - 1;
      const bool mask[] = {true, upto(2) == 0, upto(2) == 0, true, upto(2) == 0};
      c.tick(observations, mask), d.tick(observations, mask);
      CHECK(c.statuses == d.statuses && c.actions == d.actions && c.log == d.log);
      CHECK(c.state == d.state && c.counters == d.counters);
    }
  }
  CHECK(accepted > 300);
}

CORE_TEST(state_of_the_wrong_size_is_refused) {
  const Tree t = alarm();
  Crowd c{t, 2, 1};
  c.sizes[0] -= 1;
  CHECK_THROWS(c.tick({0, 0}), "ValueError");
}

CORE_TEST(no_agents_is_fine) {
  const Tree t = alarm();
  Crowd c{t, 0, 1};
  c.tick({});
}
