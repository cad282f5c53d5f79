#include "program.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

namespace core_agents {
namespace {

struct Node {
  std::int32_t parent = -1, depth = 0, row = -1, counter = -1;
  bool may_run = false;
};

[[noreturn]] void bad(const char* op, const char* argument, std::int64_t node, const std::string& why, const char* what = "node") {
  throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' at " + what + " " + std::to_string(node) + " " + why);
}

bool composite(int kind) { return kind <= PARALLEL_ONE; }
bool leaf(int kind) { return kind == CONDITION || kind == ACTION || kind == ACTION_WHILE; }
bool unary(int operation) { return operation >= NOT; }
bool reads(int kind) { return kind == CONDITION || kind == GUARD || kind == ACTION_WHILE; }

/// Shape of the tree: every subtree inside its parent's, children as many as the kind takes.
std::vector<Node> check_shape(const char* op, const ProgramView& p) {
  const std::int64_t n = p.kinds.shape[0];
  if (n == 0) throw core::Error("ValueError", std::string(op) + ": argument 'kinds' must hold at least one node, got none");
  if (n >= 1 << 28) throw core::Error("ValueError", std::string(op) + ": argument 'kinds' must hold fewer than 2^28 nodes");
  std::vector<Node> nodes(static_cast<std::size_t>(n));
  std::vector<std::int32_t> open;
  for (std::int32_t i = 0; i < n; ++i) {
    const int kind = p.kinds(i);
    const std::int32_t end = p.ends(i);
    if (kind >= NUM_KINDS) bad(op, "kinds", i, "must be below " + std::to_string(NUM_KINDS) + ", got " + std::to_string(kind));
    while (!open.empty() && p.ends(open.back()) == i) open.pop_back();
    const std::int64_t limit = open.empty() ? n : p.ends(open.back());
    if (i == 0 ? end != n : end <= i || end > limit)
      bad(op, "ends", i,
          (i == 0 ? "must be " + std::to_string(n) : "must be in [" + std::to_string(i + 1) + ", " + std::to_string(limit) + "]") +
              ", got " + std::to_string(end));
    if (leaf(kind) && end != i + 1) bad(op, "ends", i, "gives children to a leaf");
    if (!leaf(kind) && !composite(kind) && (end == i + 1 || p.ends(i + 1) != end))
      bad(op, "ends", i, "must give the decorator exactly one child");
    if (open.size() >= static_cast<std::size_t>(max_depth))
      bad(op, "ends", i, "nests the tree deeper than " + std::to_string(max_depth) + " levels");
    nodes[static_cast<std::size_t>(i)].parent = open.empty() ? -1 : open.back();
    nodes[static_cast<std::size_t>(i)].depth = static_cast<std::int32_t>(open.size());
    open.push_back(i);
  }
  return nodes;
}

void check_code(const char* op, const ProgramView& p, std::int64_t num_features) {
  const std::int64_t n = p.code_ops.shape[0];
  if (n > max_code)
    throw core::Error("ValueError", std::string(op) + ": argument 'code_ops' must hold at most " + std::to_string(max_code) +
                                        " instructions, got " + std::to_string(n));
  for (std::int64_t k = 0; k < n; ++k) {
    const int operation = p.code_ops(k);
    const auto fail = [&](const char* argument, const std::string& why) { bad(op, argument, k, why, "instruction"); };
    if (operation >= NUM_OPERATIONS)
      fail("code_ops", "must be below " + std::to_string(NUM_OPERATIONS) + ", got " + std::to_string(operation));
    bool constant = false;
    const auto operand = [&](const char* argument, std::int64_t column) {
      if (column < -1 || column >= num_features + k)
        fail(argument, "must be -1 or a column below " + std::to_string(num_features + k) + ", got " + std::to_string(column));
      constant |= column == -1;
    };
    operand("code_lefts", p.code_lefts(k));
    if (!unary(operation)) operand("code_rights", p.code_rights(k));
    if (constant && std::isnan(p.code_values(k))) fail("code_values", "must not be NaN");
  }
}

void check_values(const char* op, const ProgramView& p, std::int64_t num_features) {
  for (std::int64_t i = 0; i < p.kinds.shape[0]; ++i) {
    const int kind = p.kinds(i), param = p.params(i);
    const auto at_least = [&](std::int64_t least) {
      if (param < least) bad(op, "params", i, "must be at least " + std::to_string(least) + ", got " + std::to_string(param));
    };
    if (reads(kind)) {
      const std::int64_t columns = num_features + p.code_ops.shape[0];
      if (p.features(i) < 0 || p.features(i) >= columns)
        bad(op, "features", i,
            "must be in [0, " + std::to_string(columns) + ") to name a column of the observations or an instruction, got " +
                std::to_string(p.features(i)));
      if (p.comparisons(i) > NE) bad(op, "comparisons", i, "must be at most 5, got " + std::to_string(p.comparisons(i)));
      if (std::isnan(p.thresholds(i))) bad(op, "thresholds", i, "must not be NaN");
    }
    if (kind == ACTION || kind == ACTION_WHILE) {
      if (p.action_ids(i) < -1) bad(op, "action_ids", i, "must be at least -1, got " + std::to_string(p.action_ids(i)));
      if (p.results(i) < SUCCESS || p.results(i) > RUNNING)
        bad(op, "results", i, "must be 1 (SUCCESS), 2 (FAILURE) or 3 (RUNNING), got " + std::to_string(p.results(i)));
    }
    if (kind == ACTION) at_least(0);
    if (kind == TIMEOUT) at_least(0);
    if (kind == RETRY) at_least(1);
    if (kind == REPEAT && param != -1) at_least(1);
    if (kind == ONE_SHOT && (param < 0 || param > 1)) bad(op, "params", i, "must be 0 or 1, got " + std::to_string(param));
  }
}

}  // namespace

Compiled compile(const char* op, const ProgramView& p, std::int64_t num_features) {
  if (num_features < 0 || num_features > 1 << 30)
    throw core::Error("ValueError",
                      std::string(op) + ": argument 'num_features' must be in [0, 2^30], got " + std::to_string(num_features));
  std::vector<Node> nodes = check_shape(op, p);
  check_code(op, p, num_features);
  check_values(op, p, num_features);
  const auto n = static_cast<std::int32_t>(nodes.size());
  const auto at = [&](std::int32_t i) -> Node& { return nodes[static_cast<std::size_t>(i)]; };

  // A node can be RUNNING if it makes that status itself or passes a child's on.
  for (std::int32_t i = n; i-- > 0;) {
    const int kind = p.kinds(i);
    Node& node = at(i);
    if (kind == ACTION)
      node.may_run = p.params(i) > 0 || p.results(i) == RUNNING;
    else if (kind == ACTION_WHILE || kind == FAILURE_IS_RUNNING || kind == SUCCESS_IS_RUNNING || kind == REPEAT || kind == RETRY)
      node.may_run = true;
    else if (kind == RUNNING_IS_FAILURE || kind == RUNNING_IS_SUCCESS)
      node.may_run = false;
    if (node.may_run && node.parent >= 0) at(node.parent).may_run = true;
  }

  Compiled c;
  c.steps.reserve(4 * nodes.size());                      // begin and end of each, child and join around it
  std::vector<std::int32_t> first_row(nodes.size() + 1);  // rows of the nodes before i
  for (std::int32_t i = 0; i < n; ++i) {
    const int kind = p.kinds(i);
    Node& node = at(i);
    first_row[static_cast<std::size_t>(i)] = c.rows;
    c.depth = std::max(c.depth, node.depth + 1);
    if (node.may_run || kind == ONE_SHOT || (node.parent >= 0 && p.kinds(node.parent) == PARALLEL_ALL_SYNC)) node.row = c.rows++;
    if (kind == REPEAT || kind == RETRY || kind == TIMEOUT || (kind == ACTION && p.params(i) > 0)) node.counter = c.counters++;
  }
  first_row.back() = c.rows;

  std::map<std::int32_t, std::int32_t> tile;  // column of the tile for each feature that is read
  const auto load = [&](std::int32_t feature) {
    if (feature < 0 || feature >= num_features) return;
    if (tile.emplace(feature, static_cast<std::int32_t>(c.columns.size())).second) c.columns.push_back(feature);
  };
  for (std::int32_t i = 0; i < n; ++i)
    if (reads(p.kinds(i))) load(p.features(i));
  for (std::int64_t k = 0; k < p.code_ops.shape[0]; ++k) {
    load(p.code_lefts(k));
    if (!unary(p.code_ops(k))) load(p.code_rights(k));
  }
  const auto column = [&](std::int32_t feature) {
    if (feature < 0) return -1;
    return feature < num_features ? tile.at(feature)
                                  : static_cast<std::int32_t>(static_cast<std::int64_t>(c.columns.size()) + feature - num_features);
  };
  for (std::int64_t k = 0; k < p.code_ops.shape[0]; ++k) {
    const std::uint8_t operation = p.code_ops(k);
    c.code.push_back({operation, column(p.code_lefts(k)), unary(operation) ? -1 : column(p.code_rights(k)), p.code_values(k)});
  }
  const auto make = [&](Code code, std::int32_t i) {
    const Node& node = at(i);
    const int kind = p.kinds(i);
    Step s{.code = code, .kind = static_cast<std::uint8_t>(kind)};
    if (kind == PARALLEL_ONE && p.ends(i) == i + 1) s.kind = SEQUENCE;  // without children both succeed
    s.node = i, s.depth = node.depth, s.row = node.row, s.counter = node.counter, s.may_run = node.may_run;
    s.below = first_row[static_cast<std::size_t>(i) + 1], s.row_end = first_row[static_cast<std::size_t>(p.ends(i))];
    s.action = p.action_ids(i), s.result = p.results(i), s.param = p.params(i);
    if (reads(kind)) {
      s.column = column(p.features(i)), s.comparison = p.comparisons(i), s.threshold = p.thresholds(i);
    }
    c.steps.push_back(s);
  };
  const auto link = [&](Code code, std::int32_t i) {  // between a node and its parent
    Step s{.code = code, .kind = p.kinds(at(i).parent)};
    s.node = i, s.depth = at(i).depth - 1, s.row = at(i).row, s.may_run = at(i).may_run;
    s.below = first_row[static_cast<std::size_t>(i)], s.row_end = first_row[static_cast<std::size_t>(p.ends(i))];
    c.steps.push_back(s);
  };
  std::vector<std::pair<std::int32_t, std::size_t>> open;  // node, its child step
  const auto close = [&](std::int32_t i, std::size_t child) {
    if (!leaf(p.kinds(i))) make(Code::end, i);
    if (at(i).parent < 0) return;
    c.steps[child].join = static_cast<std::int32_t>(c.steps.size());
    link(Code::join, i);
  };
  for (std::int32_t i = 0; i < n; ++i) {
    for (; !open.empty() && p.ends(open.back().first) == i; open.pop_back()) close(open.back().first, open.back().second);
    open.emplace_back(i, c.steps.size());
    if (at(i).parent >= 0) link(Code::child, i);
    make(leaf(p.kinds(i)) ? Code::leaf : Code::begin, i);
  }
  for (; !open.empty(); open.pop_back()) close(open.back().first, open.back().second);
  return c;
}

}  // namespace core_agents
