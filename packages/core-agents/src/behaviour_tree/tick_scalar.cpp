#include <core/parallel.hpp>

#include <algorithm>
#include <cmath>

#include "checks.hpp"
#include "program.hpp"

namespace core_agents {
namespace {

bool holds(float x, std::uint8_t comparison, float y) {
  switch (comparison) {
    case LT: return x < y;
    case LE: return x <= y;
    case GT: return x > y;
    case GE: return x >= y;
    case EQ: return x == y;
    default: return x != y;
  }
}

float apply(std::uint8_t op, float x, float y) {
  switch (op) {
    case ADD: return x + y;
    case SUB: return x - y;
    case MUL: return x * y;
    case DIV: return x / y;
    case MINIMUM: return y < x ? y : x;
    case MAXIMUM: return x < y ? y : x;
    case AND: return x != 0 && y != 0 ? 1.f : 0.f;
    case OR: return x != 0 || y != 0 ? 1.f : 0.f;
    case NOT: return x == 0 ? 1.f : 0.f;
    case NEGATE: return -x;
    case ABSOLUTE: return std::fabs(x);
    default: return holds(x, static_cast<std::uint8_t>(op - IS_LT), y) ? 1.f : 0.f;
  }
}

/// One agent, whose rows are `step` elements apart.
struct Agent {
  const Step* nodes;  ///< in pre-order
  const std::int32_t* ends;
  const float* columns;
  std::uint8_t* state;
  std::int64_t state_step;
  std::int32_t* counters;
  std::int64_t counter_step;
  std::uint8_t* log;  ///< or nullptr
  std::int64_t log_step;
  std::int32_t action = -1;

  std::uint8_t& row(std::int32_t r) const { return state[r * state_step]; }
  bool running(const Step& s) const { return s.may_run && row(s.row) & 1; }
  bool condition(const Step& s) const { return holds(columns[s.column], s.comparison, s.threshold); }
  std::uint8_t test(const Step& s) const { return condition(s) ? SUCCESS : FAILURE; }

  void halt(std::int32_t first, std::int32_t last) const {
    for (std::int32_t r = first; r < last; ++r) row(r) &= static_cast<std::uint8_t>(~1);
  }
  static std::int32_t first_row(const Step& s) { return s.row >= 0 ? s.row : s.below; }
  void halt(std::int32_t node) const { halt(first_row(nodes[node]), nodes[node].row_end); }

  /// The node's counter, restarted if the node was not RUNNING, plus `more`.
  std::int32_t count(const Step& s, bool more) const {
    std::int32_t& n = counters[s.counter * counter_step];
    const bool fresh = s.row < 0 || !(row(s.row) & 1);
    n = static_cast<std::int32_t>((fresh ? 0 : static_cast<std::uint32_t>(n)) + more);
    return n;
  }

  std::uint8_t act(const Step& s) {
    if (s.action >= 0) action = s.action;
    if (s.kind == ACTION_WHILE) return condition(s) ? static_cast<std::uint8_t>(RUNNING) : s.result;
    return s.counter >= 0 && count(s, true) <= s.param ? static_cast<std::uint8_t>(RUNNING) : s.result;
  }

  std::uint8_t in_order(std::int32_t node, std::uint8_t onward) {
    const Step& s = nodes[node];
    bool waits = (s.kind == SEQUENCE_MEMORY || s.kind == SELECTOR_MEMORY) && running(s);  // for its RUNNING child
    bool pending = !waits;
    for (std::int32_t c = node + 1; c < ends[node]; c = ends[c]) {
      if (waits && running(nodes[c])) waits = false, pending = true;
      if (!pending) {
        halt(c);
        continue;
      }
      const std::uint8_t r = child(c);
      if (r == onward) continue;
      if (s.below < s.row_end && ends[c] < ends[node]) halt(first_row(nodes[ends[c]]), s.row_end);
      return r;
    }
    if (pending) return onward;
    return FAILURE;  // only a state that tick did not write still waits
  }

  std::uint8_t all(std::int32_t node) {
    const Step& s = nodes[node];
    const bool synchronised = s.kind == PARALLEL_ALL_SYNC, goes_on = synchronised && running(s);
    bool failed = false, every = true, one = false;
    for (std::int32_t c = node + 1; c < ends[node]; c = ends[c]) {
      std::uint8_t r = SUCCESS;
      if (!(goes_on && row(nodes[c].row) & 2)) {
        r = visit(c);
        if (synchronised) row(nodes[c].row) = static_cast<std::uint8_t>((row(nodes[c].row) & ~2) | (r == SUCCESS ? 2 : 0));
      }
      failed |= r == FAILURE, every &= r == SUCCESS, one |= r == SUCCESS;
    }
    return failed ? FAILURE : (s.kind == PARALLEL_ONE ? one : every) ? SUCCESS : RUNNING;
  }

  std::uint8_t decorate(std::int32_t node) {
    const Step& s = nodes[node];
    const auto kept = static_cast<std::uint8_t>(s.kind == ONE_SHOT ? row(s.row) >> 2 & 3 : 0);
    if (kept || (s.kind == GUARD && !condition(s))) {
      halt(node + 1);
      return kept ? kept : static_cast<std::uint8_t>(FAILURE);
    }
    const std::uint8_t r = visit(node + 1);
    switch (s.kind) {
      case INVERTER: return r == RUNNING ? RUNNING : r == SUCCESS ? FAILURE : SUCCESS;
      case FAILURE_IS_RUNNING: return r == FAILURE ? static_cast<std::uint8_t>(RUNNING) : r;
      case FAILURE_IS_SUCCESS: return r == FAILURE ? static_cast<std::uint8_t>(SUCCESS) : r;
      case RUNNING_IS_FAILURE: return r == RUNNING ? static_cast<std::uint8_t>(FAILURE) : r;
      case RUNNING_IS_SUCCESS: return r == RUNNING ? static_cast<std::uint8_t>(SUCCESS) : r;
      case SUCCESS_IS_FAILURE: return r == SUCCESS ? static_cast<std::uint8_t>(FAILURE) : r;
      case SUCCESS_IS_RUNNING: return r == SUCCESS ? static_cast<std::uint8_t>(RUNNING) : r;
      case REPEAT: return count(s, r == SUCCESS) != s.param && r == SUCCESS ? static_cast<std::uint8_t>(RUNNING) : r;
      case RETRY: return count(s, r == FAILURE) < s.param && r == FAILURE ? static_cast<std::uint8_t>(RUNNING) : r;
      case TIMEOUT: return count(s, true) > s.param && r == RUNNING ? static_cast<std::uint8_t>(FAILURE) : r;
      case ONE_SHOT:
        if (r == SUCCESS || (r == FAILURE && s.param == 0)) row(s.row) |= static_cast<std::uint8_t>(r << 2);
        return r;
      default: return r;
    }
  }

  /// Ticks a child; leaves without memory need no call.
  std::uint8_t child(std::int32_t node) {  // NOLINT(misc-no-recursion)
    const Step& s = nodes[node];
    if (s.kind > ACTION || log) return visit(node);
    if (s.kind == CONDITION) return test(s);
    if (s.kind != ACTION || s.may_run) return visit(node);
    if (s.action >= 0) action = s.action;
    return s.result;
  }

  /// Ticks a node; trees are at most max_depth deep.
  std::uint8_t visit(std::int32_t node) {  // NOLINT(misc-no-recursion)
    const Step& s = nodes[node];
    std::uint8_t result = 0;
    switch (s.kind) {
      case SEQUENCE:
      case SEQUENCE_MEMORY: result = in_order(node, SUCCESS); break;
      case SELECTOR:
      case SELECTOR_MEMORY: result = in_order(node, FAILURE); break;
      case CONDITION: result = test(s); break;
      case ACTION:
      case ACTION_WHILE: result = act(s); break;
      default:
        result = s.kind <= PARALLEL_ONE ? all(node) : decorate(node);
        if (result != RUNNING) halt(s.below, s.row_end);
    }
    if (s.may_run && s.kind != CONDITION) {
      std::uint8_t& r = row(s.row);
      r = static_cast<std::uint8_t>((r & ~1) | (result == RUNNING ? 1 : 0));
    }
    if (log) log[node * log_step] = result;
    return result;
  }
};

}  // namespace

void tick_scalar(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                 core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                 core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                 core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                 core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                 core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values,
                 core::Tensor<const float, 2> observations, std::optional<core::Tensor<const bool, 1>> mask,
                 core::Tensor<std::uint8_t, 2> state, core::Tensor<std::int32_t, 2> counters, core::Tensor<std::int32_t, 1> actions,
                 core::Tensor<std::uint8_t, 1> statuses, std::optional<core::Tensor<std::uint8_t, 2>> log) {
  const Compiled c =
      compile("tick_scalar",
              {kinds, ends, features, comparisons, thresholds, action_ids, results, params, code_ops, code_lefts, code_rights, code_values},
              observations.shape[1]);
  check_rows("tick_scalar", state.shape[0], c.rows, counters.shape[0], c.counters);
  std::vector<Step> nodes;
  std::vector<std::int32_t> last;
  nodes.reserve(static_cast<std::size_t>(ends.shape[0])), last.reserve(static_cast<std::size_t>(ends.shape[0]));
  for (const Step& s : c.steps)
    if (s.code == Code::leaf || s.code == Code::begin) nodes.push_back(s), last.push_back(ends(s.node));
  const std::size_t loaded = c.columns.size();
  core::parallel_for(observations.shape[0], 512, [&](std::int64_t first, std::int64_t end) {
    std::vector<float> columns(loaded + c.code.size());
    for (std::int64_t a = first; a < end; ++a) {
      if (log)
        for (std::int64_t i = 0; i < log->shape[0]; ++i) (*log)(i, a) = INVALID;
      if (mask && !reinterpret_cast<const std::uint8_t*>(mask->data)[a * mask->stride[0]]) continue;
      for (std::size_t j = 0; j < loaded; ++j) columns[j] = observations(a, c.columns[j]);
      for (std::size_t k = 0; k < c.code.size(); ++k) {
        const Instruction& i = c.code[k];
        const auto operand = [&](std::int32_t column) { return column < 0 ? i.value : columns[static_cast<std::size_t>(column)]; };
        columns[loaded + k] = apply(i.op, operand(i.left), operand(i.right));
      }
      Agent agent{nodes.data(),
                  last.data(),
                  columns.data(),
                  state.data + a * state.stride[1],
                  state.stride[0],
                  counters.data + a * counters.stride[1],
                  counters.stride[0],
                  log ? log->data + a * log->stride[1] : nullptr,
                  log ? log->stride[0] : 0};
      statuses(a) = agent.visit(0);
      actions(a) = agent.action;
    }
  });
}

}  // namespace core_agents
