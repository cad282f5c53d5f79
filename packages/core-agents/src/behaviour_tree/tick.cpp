#include <core/isa.hpp>
#include <core/parallel.hpp>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "checks.hpp"
#include "program.hpp"

namespace core_agents {
namespace {

/// Agents are ticked in blocks of this many, each node for the whole block at once. A mask is a byte
/// per agent, 0 or 255; a status is a byte too.
constexpr int width = 256;
using Bytes = std::uint8_t[width];

struct Frame {                // of the node that is open at this depth
  alignas(64) Bytes pending;  // agents that tick the next child; synchronised parallel: those that were RUNNING
  alignas(64) Bytes waiting;  // memory: agents whose RUNNING child is still to come; parallel: a child failed
  alignas(64) Bytes result;   // synchronised parallel: agents that tick the child, until the end
  alignas(64) Bytes extra;    // parallel: success so far; else scratch
  const std::uint8_t* active;
  bool waits;
};

struct Block {
  const Step* steps;
  std::int32_t num_steps;
  const Instruction* code;
  std::int32_t num_instructions, num_loaded;
  Frame* frames;
  float (*columns)[width];  // what is loaded, then what the code makes
  Bytes* state;
  bool* any;  // of a row of state: some agent is RUNNING
  std::int32_t (*counters)[width];
  std::int32_t* actions;
  Bytes* log;  // a row for each node, or nullptr
};

bool some(const std::uint8_t* m) {
  std::uint8_t r = 0;
  for (int i = 0; i < width; ++i) r |= m[i];
  return r != 0;
}

template <class Compare>
void compare(const float* __restrict x, float t, std::uint8_t* __restrict out, Compare holds) {
  for (int i = 0; i < width; ++i) out[i] = holds(x[i], t) ? 255 : 0;
}

void condition(const Block& b, const Step& s, std::uint8_t* out) {
  const float* x = b.columns[s.column];
  switch (s.comparison) {
    case LT: return compare(x, s.threshold, out, [](float a, float t) { return a < t; });
    case LE: return compare(x, s.threshold, out, [](float a, float t) { return a <= t; });
    case GT: return compare(x, s.threshold, out, [](float a, float t) { return a > t; });
    case GE: return compare(x, s.threshold, out, [](float a, float t) { return a >= t; });
    case EQ: return compare(x, s.threshold, out, [](float a, float t) { return a == t; });
    default: return compare(x, s.threshold, out, [](float a, float t) { return a != t; });
  }
}

template <class Operate>
void operate(const float* __restrict x, const float* __restrict y, float* __restrict out, Operate result) {
  for (int i = 0; i < width; ++i) out[i] = static_cast<float>(result(x[i], y[i]));
}

/// Makes the columns of the code.
void evaluate(const Block& b) {
  alignas(64) float constant[width];
  for (std::int32_t k = 0; k < b.num_instructions; ++k) {
    const Instruction& c = b.code[k];
    if (c.left < 0 || c.right < 0) std::fill_n(constant, width, c.value);
    const float* x = c.left < 0 ? constant : b.columns[c.left];
    const float* y = c.right < 0 ? constant : b.columns[c.right];
    float* out = b.columns[b.num_loaded + k];
    switch (c.op) {
      case ADD: operate(x, y, out, [](float p, float q) { return p + q; }); break;
      case SUB: operate(x, y, out, [](float p, float q) { return p - q; }); break;
      case MUL: operate(x, y, out, [](float p, float q) { return p * q; }); break;
      case DIV: operate(x, y, out, [](float p, float q) { return p / q; }); break;
      case MINIMUM: operate(x, y, out, [](float p, float q) { return q < p ? q : p; }); break;
      case MAXIMUM: operate(x, y, out, [](float p, float q) { return p < q ? q : p; }); break;
      case IS_LT: operate(x, y, out, [](float p, float q) { return p < q; }); break;
      case IS_LE: operate(x, y, out, [](float p, float q) { return p <= q; }); break;
      case IS_GT: operate(x, y, out, [](float p, float q) { return p > q; }); break;
      case IS_GE: operate(x, y, out, [](float p, float q) { return p >= q; }); break;
      case IS_EQ: operate(x, y, out, [](float p, float q) { return p == q; }); break;
      case IS_NE: operate(x, y, out, [](float p, float q) { return p != q; }); break;
      case AND: operate(x, y, out, [](float p, float q) { return (p != 0) & (q != 0); }); break;
      case OR: operate(x, y, out, [](float p, float q) { return (p != 0) | (q != 0); }); break;
      case NOT: operate(x, y, out, [](float p, float) { return p == 0; }); break;
      case NEGATE: operate(x, y, out, [](float p, float) { return -p; }); break;
      default: operate(x, y, out, [](float p, float) { return std::fabs(p); }); break;
    }
  }
}

/// No agent of `who` is RUNNING any more in rows [first, last).
void halt(const Block& b, int first, int last, const std::uint8_t* __restrict who) {
  for (int r = first; r < last; ++r) {
    if (!b.any[r]) continue;
    std::uint8_t* __restrict row = b.state[r];
    std::uint8_t left = 0;
    for (int i = 0; i < width; ++i) {
      row[i] &= static_cast<std::uint8_t>(~(who[i] & 1));
      left |= row[i];
    }
    b.any[r] = left & 1;
  }
}

/// Records which active agents are RUNNING in this node.
void remember(const Block& b, const Step& s, const std::uint8_t* __restrict active, const std::uint8_t* __restrict result) {
  if (!s.may_run) return;
  std::uint8_t* __restrict row = b.state[s.row];
  std::uint8_t left = 0;
  for (int i = 0; i < width; ++i) {
    const std::uint8_t runs = result[i] == RUNNING ? 1 : 0;
    row[i] = static_cast<std::uint8_t>((row[i] & ~(active[i] & 1)) | (active[i] & runs));
    left |= row[i];
  }
  b.any[s.row] = left & 1;
}

/// The node's counter: restarts for agents that were not RUNNING, then counts one for each agent of `who`.
std::int32_t* count(const Block& b, const Step& s, const std::uint8_t* __restrict active, const std::uint8_t* __restrict who) {
  std::int32_t* __restrict n = b.counters[s.counter];
  if (s.row >= 0) {
    const std::uint8_t* __restrict row = b.state[s.row];
    for (int i = 0; i < width; ++i) {
      const std::uint32_t old = active[i] && !(row[i] & 1) ? 0 : static_cast<std::uint32_t>(n[i]);
      n[i] = static_cast<std::int32_t>(old + (who[i] & 1));
    }
  } else {
    for (int i = 0; i < width; ++i) n[i] = active[i] ? who[i] & 1 : n[i];
  }
  return n;
}

void leaf(const Block& b, const Step& s, Frame& f) {
  const std::uint8_t* __restrict active = f.active;
  std::uint8_t* __restrict result = f.result;
  if (s.kind != ACTION) condition(b, s, f.pending);
  const std::uint8_t* __restrict holds = f.pending;
  const std::uint8_t done = s.result;
  if (s.kind == CONDITION) {
    for (int i = 0; i < width; ++i) result[i] = active[i] & (holds[i] ? SUCCESS : FAILURE);
    return;
  }
  if (s.kind == ACTION_WHILE) {
    for (int i = 0; i < width; ++i) result[i] = active[i] & (holds[i] ? static_cast<std::uint8_t>(RUNNING) : done);
  } else if (s.counter >= 0) {
    const std::int32_t* __restrict n = count(b, s, active, active);
    for (int i = 0; i < width; ++i) result[i] = active[i] & (n[i] <= s.param ? static_cast<std::uint8_t>(RUNNING) : done);
  } else {
    for (int i = 0; i < width; ++i) result[i] = active[i] & done;
  }
  if (s.action >= 0) {
    std::int32_t* __restrict a = b.actions;
    for (int i = 0; i < width; ++i) a[i] = active[i] ? s.action : a[i];
  }
  remember(b, s, active, result);
}

void begin(const Block& b, const Step& s, Frame& f) {
  const std::uint8_t* __restrict active = f.active;
  std::uint8_t* __restrict pending = f.pending;
  std::uint8_t* __restrict waiting = f.waiting;
  std::uint8_t* __restrict extra = f.extra;
  f.waits = false;
  switch (s.kind) {
    case SEQUENCE_MEMORY:
    case SELECTOR_MEMORY:
      if (s.may_run && b.any[s.row]) {
        const std::uint8_t* __restrict row = b.state[s.row];
        for (int i = 0; i < width; ++i) {
          waiting[i] = active[i] & (row[i] & 1 ? 255 : 0);
          pending[i] = active[i] & ~waiting[i];
        }
        f.waits = true;
        break;
      }
      [[fallthrough]];
    case SEQUENCE:
    case SELECTOR: std::copy_n(active, width, pending); break;
    case PARALLEL_ALL_SYNC:  // pending: the children's done bits still hold
      if (s.may_run) {
        const std::uint8_t* __restrict row = b.state[s.row];
        for (int i = 0; i < width; ++i) pending[i] = row[i] & 1 ? 255 : 0;
      } else {
        std::fill_n(pending, width, std::uint8_t{0});
      }
      [[fallthrough]];
    case PARALLEL_ALL:
    case PARALLEL_ONE:
      std::fill_n(waiting, width, std::uint8_t{0});
      std::fill_n(extra, width, static_cast<std::uint8_t>(s.kind == PARALLEL_ONE ? 0 : 255));
      return;
    case GUARD:
      condition(b, s, extra);
      for (int i = 0; i < width; ++i) pending[i] = active[i] & extra[i];
      return;
    case ONE_SHOT: {
      const std::uint8_t* __restrict row = b.state[s.row];
      for (int i = 0; i < width; ++i) pending[i] = active[i] & (row[i] & 12 ? 0 : 255);
      return;
    }
    default: std::copy_n(active, width, pending); return;
  }
  std::fill_n(f.result, width, std::uint8_t{0});
}

/// Which agents tick the child; the others that are active in the parent leave it. False if none does.
bool child(const Block& b, const Step& s, Frame& f, Frame& g) {
  const std::uint8_t* __restrict active = f.active;
  std::uint8_t* __restrict pending = f.pending;
  g.active = pending;
  switch (s.kind) {
    case SEQUENCE_MEMORY:
    case SELECTOR_MEMORY:
      if (f.waits && s.may_run && b.any[s.row]) {
        const std::uint8_t* __restrict row = b.state[s.row];
        std::uint8_t* __restrict waiting = f.waiting;
        for (int i = 0; i < width; ++i) {
          const std::uint8_t here = waiting[i] & (row[i] & 1 ? 255 : 0);
          pending[i] |= here;
          waiting[i] &= ~here;
        }
      }
      break;
    case PARALLEL_ALL:
    case PARALLEL_ONE: g.active = active; return true;
    case PARALLEL_ALL_SYNC: {
      const std::uint8_t* __restrict row = b.state[s.row];
      std::uint8_t* __restrict ticks = f.result;
      for (int i = 0; i < width; ++i) ticks[i] = active[i] & ~(pending[i] & (row[i] & 2 ? 255 : 0));
      g.active = ticks;
      return some(ticks);
    }
    default: break;
  }
  if (s.below < s.row_end) {
    for (int i = 0; i < width; ++i) g.result[i] = active[i] & ~pending[i];
    halt(b, s.below, s.row_end, g.result);
  }
  return some(pending);
}

/// Takes the child's result into the parent's.
void join(const Block& b, const Step& s, Frame& f, const Frame& g) {
  const std::uint8_t* __restrict r = g.result;
  std::uint8_t* __restrict pending = f.pending;
  std::uint8_t* __restrict result = f.result;
  std::uint8_t* __restrict failed = f.waiting;
  std::uint8_t* __restrict succeeded = f.extra;
  switch (s.kind) {
    case SEQUENCE:
    case SEQUENCE_MEMORY:
      for (int i = 0; i < width; ++i) {
        result[i] |= r[i] == SUCCESS ? 0 : r[i];
        pending[i] = r[i] == SUCCESS ? 255 : 0;
      }
      break;
    case SELECTOR:
    case SELECTOR_MEMORY:
      for (int i = 0; i < width; ++i) {
        result[i] |= r[i] == FAILURE ? 0 : r[i];
        pending[i] = r[i] == FAILURE ? 255 : 0;
      }
      break;
    case PARALLEL_ONE:
      for (int i = 0; i < width; ++i) {
        failed[i] |= r[i] == FAILURE ? 255 : 0;
        succeeded[i] |= r[i] == SUCCESS ? 255 : 0;
      }
      break;
    case PARALLEL_ALL_SYNC: {
      std::uint8_t* __restrict row = b.state[s.row];
      for (int i = 0; i < width; ++i) row[i] = static_cast<std::uint8_t>((row[i] & (r[i] ? ~2 : ~0)) | (r[i] == SUCCESS ? 2 : 0));
      [[fallthrough]];
    }
    case PARALLEL_ALL:
      for (int i = 0; i < width; ++i) {
        failed[i] |= r[i] == FAILURE ? 255 : 0;
        succeeded[i] &= r[i] == SUCCESS || r[i] == INVALID ? 255 : 0;
      }
      break;
    default: break;  // a decorator has one child; end reads its result
  }
}

/// The status that a stateless decorator gives for each of its child's.
void map(const std::uint8_t* __restrict r, std::uint8_t* __restrict result, std::uint8_t success, std::uint8_t failure,
         std::uint8_t running) {
  for (int i = 0; i < width; ++i)
    result[i] =
        static_cast<std::uint8_t>((r[i] == SUCCESS ? success : 0) | (r[i] == FAILURE ? failure : 0) | (r[i] == RUNNING ? running : 0));
}

void end(const Block& b, const Step& s, Frame& f, const Frame& g) {
  const std::uint8_t* __restrict active = f.active;
  const std::uint8_t* __restrict r = g.result;
  std::uint8_t* __restrict result = f.result;
  std::uint8_t* __restrict extra = f.extra;
  switch (s.kind) {
    case SEQUENCE:
    case SELECTOR:
    case SEQUENCE_MEMORY:
    case SELECTOR_MEMORY: {
      const std::uint8_t last = s.kind == SEQUENCE || s.kind == SEQUENCE_MEMORY ? SUCCESS : FAILURE;
      for (int i = 0; i < width; ++i) result[i] |= f.pending[i] & last;
      if (f.waits)  // only a state that tick did not write has no RUNNING child here
        for (int i = 0; i < width; ++i) result[i] |= f.waiting[i] & FAILURE;
      remember(b, s, active, result);
      return;
    }
    case PARALLEL_ALL:
    case PARALLEL_ALL_SYNC:
    case PARALLEL_ONE:
      for (int i = 0; i < width; ++i) result[i] = active[i] & (f.waiting[i] ? FAILURE : extra[i] ? SUCCESS : RUNNING);
      break;
    case GUARD:
      for (int i = 0; i < width; ++i) result[i] = static_cast<std::uint8_t>((r[i] & f.pending[i]) | (active[i] & ~f.pending[i] & FAILURE));
      break;
    case INVERTER: map(r, result, FAILURE, SUCCESS, RUNNING); break;
    case FAILURE_IS_RUNNING: map(r, result, SUCCESS, RUNNING, RUNNING); break;
    case FAILURE_IS_SUCCESS: map(r, result, SUCCESS, SUCCESS, RUNNING); break;
    case RUNNING_IS_FAILURE: map(r, result, SUCCESS, FAILURE, FAILURE); break;
    case RUNNING_IS_SUCCESS: map(r, result, SUCCESS, FAILURE, SUCCESS); break;
    case SUCCESS_IS_FAILURE: map(r, result, FAILURE, FAILURE, RUNNING); break;
    case SUCCESS_IS_RUNNING: map(r, result, RUNNING, FAILURE, RUNNING); break;
    case REPEAT: {
      for (int i = 0; i < width; ++i) extra[i] = r[i] == SUCCESS ? 255 : 0;
      const std::int32_t* __restrict n = count(b, s, active, extra);
      for (int i = 0; i < width; ++i) result[i] = r[i] == SUCCESS && n[i] != s.param ? static_cast<std::uint8_t>(RUNNING) : r[i];
      break;
    }
    case RETRY: {
      for (int i = 0; i < width; ++i) extra[i] = r[i] == FAILURE ? 255 : 0;
      const std::int32_t* __restrict n = count(b, s, active, extra);
      for (int i = 0; i < width; ++i) result[i] = r[i] == FAILURE && n[i] < s.param ? static_cast<std::uint8_t>(RUNNING) : r[i];
      break;
    }
    case TIMEOUT: {
      const std::int32_t* __restrict n = count(b, s, active, active);
      for (int i = 0; i < width; ++i) result[i] = r[i] == RUNNING && n[i] > s.param ? static_cast<std::uint8_t>(FAILURE) : r[i];
      break;
    }
    case ONE_SHOT: {
      std::uint8_t* __restrict row = b.state[s.row];
      for (int i = 0; i < width; ++i) {
        const std::uint8_t kept = row[i] & 12;
        const auto status = static_cast<std::uint8_t>(kept ? kept >> 2 & 3 : r[i]);
        result[i] = active[i] & status;
        const bool final = !kept && (status == SUCCESS || (status == FAILURE && s.param == 0));
        row[i] |= active[i] & (final ? static_cast<std::uint8_t>(status << 2) : 0);
      }
      break;
    }
    default: break;
  }
  if (s.below < s.row_end) {
    for (int i = 0; i < width; ++i) extra[i] = active[i] & (result[i] == RUNNING ? 0 : 255);
    halt(b, s.below, s.row_end, extra);
  }
  remember(b, s, active, result);
}

void run(const Block* block) {
  const Block& b = *block;
  evaluate(b);
  for (std::int32_t at = 0; at < b.num_steps; ++at) {
    const Step& s = b.steps[at];
    Frame& f = b.frames[s.depth];
    Frame& g = b.frames[s.depth + 1];
    switch (s.code) {
      case Code::leaf: leaf(b, s, f); break;
      case Code::begin: begin(b, s, f); break;
      case Code::child:
        if (!child(b, s, f, g)) {
          std::fill_n(g.result, width, std::uint8_t{0});
          at = s.join;
        }
        break;
      case Code::join: join(b, s, f, g); break;
      case Code::end: end(b, s, f, g); break;
    }
    if (b.log && (s.code == Code::leaf || s.code == Code::end)) std::copy_n(f.result, width, b.log[s.node]);
  }
}

using Rows = core::Tensor<std::uint8_t, 2>;
using Counters = core::Tensor<std::int32_t, 2>;

/// n elements, the steps given in elements.
template <class T>
void copy(const T* from, std::int64_t from_step, T* to, std::int64_t to_step, int n) {
  if (from_step == 1 && to_step == 1) {
    std::copy_n(from, n, to);
    return;
  }
  for (int i = 0; i < n; ++i, from += from_step, to += to_step) *to = *from;
}

/// Rows of a tensor at agents [first, first + n), to or from the block's tile.
template <class T>
void load(const core::Tensor<T, 2>& t, std::int64_t first, int n, T (*tile)[width]) {
  for (std::int64_t r = 0; r < t.shape[0]; ++r) copy(&t(r, first), t.stride[1], tile[r], 1, n);
}
template <class T>
void store(const core::Tensor<T, 2>& t, std::int64_t first, int n, T (*tile)[width]) {
  for (std::int64_t r = 0; r < t.shape[0]; ++r) copy(tile[r], 1, &t(r, first), t.stride[1], n);
}

}  // namespace

void check_program(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                   core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                   core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                   core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                   core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                   core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values, std::int64_t num_features,
                   core::Tensor<std::int32_t, 1> rows, core::Tensor<std::int64_t, 1> sizes) {
  const Compiled c =
      compile("check_program",
              {kinds, ends, features, comparisons, thresholds, action_ids, results, params, code_ops, code_lefts, code_rights, code_values},
              num_features);
  for (const Step& s : c.steps)
    if (s.code == Code::leaf || s.code == Code::begin) rows(s.node) = s.row;
  sizes(0) = c.rows;
  sizes(1) = c.counters;
}

void tick(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends, core::Tensor<const std::int32_t, 1> features,
          core::Tensor<const std::uint8_t, 1> comparisons, core::Tensor<const float, 1> thresholds,
          core::Tensor<const std::int32_t, 1> action_ids, core::Tensor<const std::uint8_t, 1> results,
          core::Tensor<const std::int32_t, 1> params, core::Tensor<const std::uint8_t, 1> code_ops,
          core::Tensor<const std::int32_t, 1> code_lefts, core::Tensor<const std::int32_t, 1> code_rights,
          core::Tensor<const float, 1> code_values, core::Tensor<const float, 2> observations,
          std::optional<core::Tensor<const bool, 1>> mask, Rows state, Counters counters, core::Tensor<std::int32_t, 1> actions,
          core::Tensor<std::uint8_t, 1> statuses, std::optional<core::Tensor<std::uint8_t, 2>> log) {
  const Compiled c = compile(
      "tick", {kinds, ends, features, comparisons, thresholds, action_ids, results, params, code_ops, code_lefts, code_rights, code_values},
      observations.shape[1]);
  check_rows("tick", state.shape[0], c.rows, counters.shape[0], c.counters);

  const std::int64_t agents = observations.shape[0], blocks = (agents + width - 1) / width;
  core::parallel_for(blocks, 8, [&](std::int64_t first_block, std::int64_t last_block) {
    const auto rows = static_cast<std::size_t>(c.rows), loaded = c.columns.size();
    const auto frames = std::make_unique<Frame[]>(static_cast<std::size_t>(c.depth) + 1);
    const auto columns = std::make_unique<float[][width]>(loaded + c.code.size());
    const auto tile = std::make_unique<Bytes[]>(rows);
    const auto any = std::make_unique<bool[]>(rows);
    const auto counts = std::make_unique<std::int32_t[][width]>(static_cast<std::size_t>(c.counters));
    const auto nodes = log ? static_cast<std::size_t>(log->shape[0]) : 0;
    const auto logged = log ? std::make_unique<Bytes[]>(nodes) : nullptr;
    alignas(64) Bytes ticks;
    alignas(64) std::int32_t emitted[width];
    const Block block{c.steps.data(),
                      static_cast<std::int32_t>(c.steps.size()),
                      c.code.data(),
                      static_cast<std::int32_t>(c.code.size()),
                      static_cast<std::int32_t>(loaded),
                      frames.get(),
                      columns.get(),
                      tile.get(),
                      any.get(),
                      counts.get(),
                      emitted,
                      logged.get()};
    for (std::int64_t k = first_block; k < last_block; ++k) {
      const std::int64_t first = k * width;
      const int n = static_cast<int>(std::min<std::int64_t>(width, agents - first));
      std::fill_n(ticks, n, std::uint8_t{255});
      std::fill(ticks + n, ticks + width, std::uint8_t{0});
      if (mask)  // read as bytes: a caller's bool may hold anything
        for (int i = 0; i < n; ++i) ticks[i] = reinterpret_cast<const std::uint8_t*>(mask->data)[(first + i) * mask->stride[0]] ? 255 : 0;
      std::fill_n(emitted, width, -1);
      for (std::size_t j = 0; j < loaded; ++j) copy(&observations(first, c.columns[j]), observations.stride[0], columns[j], 1, n);
      load(state, first, n, tile.get());
      load(counters, first, n, counts.get());
      for (std::size_t r = 0; r < rows; ++r) {
        std::uint8_t seen = 0;
        for (std::uint8_t byte : tile[r]) seen |= byte;  // NOLINT(clang-analyzer-core.uninitialized.Assign): `load` fills `rows` rows
        any[r] = seen & 1;
      }
      frames[0].active = ticks;
      if (log) std::fill_n(logged[0], nodes * width, std::uint8_t{0});
      core::multiversion<&run>(&block);
      if (log) store(*log, first, n, logged.get());
      store(state, first, n, tile.get());
      store(counters, first, n, counts.get());
      const std::uint8_t* root = frames[0].result;
      if (!mask) {
        copy<std::int32_t>(emitted, 1, &actions(first), actions.stride[0], n);
        copy<std::uint8_t>(root, 1, &statuses(first), statuses.stride[0], n);
        continue;
      }
      for (int i = 0; i < n; ++i) {
        if (!ticks[i]) continue;
        actions(first + i) = emitted[i];
        statuses(first + i) = root[i];
      }
    }
  });
}

}  // namespace core_agents
