// The tick on CUDA. A warp ticks a tile of 32 * groups agents; lane g holds the g-th 32 of them as the bits of words, so
// that one instruction of the tree's logic serves them all. What differs by agent (observations, counters, actions) is
// walked 32 agents at a time and brought into words by ballots. The walk over the steps is that of tick.cpp.
#include <core/cuda.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "checks.hpp"
#include "program.hpp"

namespace core_agents {
namespace {
using core::Tensor;
using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint8_t;

constexpr uint32_t all = ~0u;
constexpr int planes_of_row = 4;  // RUNNING, done, the two bits of a OneShot's final status

/// A word per lane.
struct Frame {
  uint32_t active[32], pending[32], waiting[32], extra[32], low[32], high[32];  // low, high: bits of the status
};

struct Agents {
  Tensor<const float, 2> observations;
  const uint8_t* mask;  // null: all tick
  int64_t mask_step;
  Tensor<uint8_t, 2> state;
  Tensor<int32_t, 2> counters;
  Tensor<int32_t, 1> actions;
  Tensor<uint8_t, 1> statuses;
  uint8_t* log;  // null: none
  int64_t log_step, log_agent;
};

/// What all tiles walk, in device memory. A column below the number of features is an observation's, from there on an
/// instruction's.
struct Walk {
  const Step* steps;
  const Instruction* code;
  int num_steps, num_instructions, num_nodes, num_rows, depth;
};

__device__ float result_of(uint8_t op, float x, float y) {
  switch (op) {
    case ADD: return __fadd_rn(x, y);
    case SUB: return __fsub_rn(x, y);
    case MUL: return __fmul_rn(x, y);
    case DIV: return __fdiv_rn(x, y);
    case MINIMUM: return y < x ? y : x;
    case MAXIMUM: return x < y ? y : x;
    case IS_LT: return x < y;
    case IS_LE: return x <= y;
    case IS_GT: return x > y;
    case IS_GE: return x >= y;
    case IS_EQ: return x == y;
    case IS_NE: return x != y;
    case AND: return x != 0 && y != 0;
    case OR: return x != 0 || y != 0;
    case NOT: return x == 0;
    case NEGATE: return -x;
    default: return fabsf(x);
  }
}

template <int groups>
struct Tile {
  const Agents& a;
  Frame* frames;
  int32_t* emitted;  // [groups][32]
  uint32_t* rows;    // [state rows][planes_of_row][32]
  float* made;       // [instructions][groups][32]
  int64_t first, last;
  int lane;

  __device__ uint32_t& plane(int row, int k) const { return rows[(row * planes_of_row + k) * 32 + lane]; }
  /// An agent of the tile; the lane's own one of group g. Beyond the last agent: the last.
  __device__ int64_t agent(int g) const { return min(first + g * 32 + lane, last); }
  /// The word of the group's agents, from what each says of itself.
  template <class Says>
  __device__ uint32_t gather(Says says) const {
    uint32_t mine = 0;
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const uint32_t word = __ballot_sync(all, says(g));
      if (lane == g) mine = word;
    }
    return mine;
  }
  __device__ bool bit(uint32_t word, int g) const { return __shfl_sync(all, word, g) >> lane & 1; }

  __device__ float operand(int column, float constant, int g) const {
    if (column < 0) return constant;
    if (column < a.observations.shape[1])
      return a.observations.data[agent(g) * a.observations.stride[0] + column * a.observations.stride[1]];
    return made[((column - a.observations.shape[1]) * groups + g) * 32 + lane];
  }
  __device__ void evaluate(const Walk& w) const {
    for (int k = 0; k < w.num_instructions; ++k) {
      const Instruction c = w.code[k];
      for (int g = 0; g < groups; ++g)
        made[(k * groups + g) * 32 + lane] = result_of(c.op, operand(c.left, c.value, g), operand(c.right, c.value, g));
    }
  }
  __device__ void record(int node, uint32_t low, uint32_t high) const {
    for (int g = 0; g < groups; ++g) {
      const auto status = static_cast<uint8_t>(bit(low, g) | bit(high, g) << 1);
      if (first + g * 32 + lane <= last) a.log[node * a.log_step + agent(g) * a.log_agent] = status;
    }
  }

  template <class Holds>
  __device__ uint32_t compare(const Step& s, Holds holds) const {
    if (s.column >= a.observations.shape[1]) return gather([&](int g) { return holds(operand(s.column, 0, g), s.threshold); });
    const float* column = a.observations.data + s.column * a.observations.stride[1];
    return gather([&](int g) { return holds(column[agent(g) * a.observations.stride[0]], s.threshold); });
  }
  __device__ uint32_t condition(const Step& s) const {
    switch (s.comparison) {
      case LT: return compare(s, [](float x, float t) { return x < t; });
      case LE: return compare(s, [](float x, float t) { return x <= t; });
      case GT: return compare(s, [](float x, float t) { return x > t; });
      case GE: return compare(s, [](float x, float t) { return x >= t; });
      case EQ: return compare(s, [](float x, float t) { return x == t; });
      default: return compare(s, [](float x, float t) { return x != t; });
    }
  }

  __device__ void halt(int from, int to, uint32_t who) const {
    for (int r = from; r < to; ++r) plane(r, 0) &= ~who;
  }
  __device__ void remember(const Step& s, const Frame& f) const {
    if (!s.may_run) return;
    const uint32_t active = f.active[lane];
    plane(s.row, 0) = (plane(s.row, 0) & ~active) | (active & f.low[lane] & f.high[lane]);
  }
  /// The node's counter: restarts for agents that were not RUNNING, counts one for each of `who`; where `holds(counter)`.
  template <class Holds>
  __device__ uint32_t count(const Step& s, uint32_t active, uint32_t who, Holds holds) const {
    const uint32_t restarts = active & ~(s.row >= 0 ? plane(s.row, 0) : 0u);
    int32_t* row = a.counters.data + s.counter * a.counters.stride[0];
    return gather([&](int g) {
      int32_t* at = row + agent(g) * a.counters.stride[1];
      const bool ticks = bit(active, g), again = bit(restarts, g), more = bit(who, g);
      const auto n = static_cast<int32_t>((again ? 0u : static_cast<uint32_t>(*at)) + more);
      if (ticks) *at = n;
      return holds(n);
    });
  }

  __device__ void leaf(const Step& s, Frame& f) const {
    const uint32_t active = f.active[lane];
    uint32_t low = s.result & 1 ? all : 0u, high = s.result & 2 ? all : 0u;
    if (s.kind == CONDITION) {
      low = condition(s);
      high = ~low;
    } else if (s.kind == ACTION_WHILE || s.counter >= 0) {
      const uint32_t runs = s.kind == ACTION_WHILE ? condition(s) : count(s, active, active, [&](int32_t n) { return n <= s.param; });
      low |= runs;
      high |= runs;
    }
    f.low[lane] = active & low;
    f.high[lane] = active & high;
    if (s.kind == CONDITION) return;
    if (s.action >= 0)
      for (int g = 0; g < groups; ++g)
        if (bit(active, g)) emitted[g * 32 + lane] = s.action;
    remember(s, f);
  }

  __device__ void begin(const Step& s, Frame& f) const {
    const uint32_t active = f.active[lane];
    uint32_t pending = active, waiting = 0, extra = 0;
    switch (s.kind) {
      case SEQUENCE_MEMORY:
      case SELECTOR_MEMORY:
        if (s.may_run) waiting = active & plane(s.row, 0);
        pending = active & ~waiting;
        break;
      case PARALLEL_ALL_SYNC: pending = s.may_run ? plane(s.row, 0) : 0u; [[fallthrough]];  // the children's done bits still hold
      case PARALLEL_ALL: extra = all; break;
      case GUARD: pending = active & condition(s); break;
      case ONE_SHOT: pending = active & ~(plane(s.row, 2) | plane(s.row, 3)); break;
      default: break;
    }
    f.pending[lane] = pending;
    f.waiting[lane] = waiting;
    f.extra[lane] = extra;
    f.low[lane] = f.high[lane] = 0;
  }

  /// Which agents tick the child; the others that are active in the parent leave it. False if none does.
  __device__ bool child(const Step& s, Frame& f, Frame& g) const {
    const uint32_t active = f.active[lane];
    uint32_t pending = f.pending[lane];
    switch (s.kind) {
      case SEQUENCE_MEMORY:
      case SELECTOR_MEMORY:
        if (s.may_run) {
          const uint32_t here = f.waiting[lane] & plane(s.row, 0);
          f.pending[lane] = pending |= here;
          f.waiting[lane] &= ~here;
        }
        break;
      case PARALLEL_ALL:
      case PARALLEL_ONE: g.active[lane] = active; return true;
      case PARALLEL_ALL_SYNC: g.active[lane] = active & ~(pending & plane(s.row, 1)); return __any_sync(all, g.active[lane] != 0);
      default: break;
    }
    halt(s.below, s.row_end, active & ~pending);
    g.active[lane] = pending;
    return __any_sync(all, pending != 0);
  }

  __device__ void join(const Step& s, Frame& f, const Frame& g) const {
    const uint32_t low = g.low[lane], high = g.high[lane];
    const uint32_t success = low & ~high, failure = high & ~low;
    switch (s.kind) {
      case SEQUENCE:
      case SEQUENCE_MEMORY:
        f.pending[lane] = success;
        f.low[lane] |= low & ~success;
        f.high[lane] |= high;
        break;
      case SELECTOR:
      case SELECTOR_MEMORY:
        f.pending[lane] = failure;
        f.low[lane] |= low;
        f.high[lane] |= high & ~failure;
        break;
      case PARALLEL_ONE:
        f.waiting[lane] |= failure;
        f.extra[lane] |= success;
        break;
      case PARALLEL_ALL_SYNC: plane(s.row, 1) = (plane(s.row, 1) & ~(low | high)) | success; [[fallthrough]];
      case PARALLEL_ALL:
        f.waiting[lane] |= failure;
        f.extra[lane] &= success | ~(low | high);
        break;
      default: break;
    }
  }

  __device__ void end(const Step& s, Frame& f, const Frame& g) const {
    const uint32_t active = f.active[lane], low = g.low[lane], high = g.high[lane];
    const uint32_t success = low & ~high, failure = high & ~low, running = low & high;
    uint32_t succeeds = success, fails = failure, runs = running;
    switch (s.kind) {
      case SEQUENCE:
      case SEQUENCE_MEMORY:
      case SELECTOR:
      case SELECTOR_MEMORY: {
        const bool sequence = s.kind == SEQUENCE || s.kind == SEQUENCE_MEMORY;
        f.low[lane] |= sequence ? f.pending[lane] : 0u;
        f.high[lane] |= (sequence ? 0u : f.pending[lane]) | f.waiting[lane];  // waiting: only in a state that tick did not write
        remember(s, f);
        return;
      }
      case PARALLEL_ALL:
      case PARALLEL_ALL_SYNC:
      case PARALLEL_ONE:
        fails = active & f.waiting[lane];
        succeeds = active & ~fails & f.extra[lane];
        runs = active & ~fails & ~succeeds;
        break;
      case GUARD: fails |= active & ~f.pending[lane]; break;
      case INVERTER: succeeds = failure, fails = success; break;
      case FAILURE_IS_RUNNING: fails = 0, runs |= failure; break;
      case FAILURE_IS_SUCCESS: fails = 0, succeeds |= failure; break;
      case RUNNING_IS_FAILURE: runs = 0, fails |= running; break;
      case RUNNING_IS_SUCCESS: runs = 0, succeeds |= running; break;
      case SUCCESS_IS_FAILURE: succeeds = 0, fails |= success; break;
      case SUCCESS_IS_RUNNING: succeeds = 0, runs |= success; break;
      case REPEAT:
        succeeds &= count(s, active, success, [&](int32_t n) { return n == s.param; });
        runs |= success & ~succeeds;
        break;
      case RETRY:
        fails &= count(s, active, failure, [&](int32_t n) { return n >= s.param; });
        runs |= failure & ~fails;
        break;
      case TIMEOUT:
        runs &= count(s, active, active, [&](int32_t n) { return n <= s.param; });
        fails |= running & ~runs;
        break;
      case ONE_SHOT: {
        const uint32_t low_kept = plane(s.row, 2), high_kept = plane(s.row, 3), kept = low_kept | high_kept;
        succeeds = active & ((low_kept & ~high_kept) | (success & ~kept));
        fails = active & ((high_kept & ~low_kept) | (failure & ~kept));
        runs = active & ((low_kept & high_kept) | (running & ~kept));
        plane(s.row, 2) |= succeeds & ~kept;
        if (s.param == 0) plane(s.row, 3) |= fails & ~kept;
        break;
      }
      default: break;
    }
    f.low[lane] = succeeds | runs;
    f.high[lane] = fails | runs;
    halt(s.below, s.row_end, active & ~runs);
    remember(s, f);
  }

  __device__ void load_rows(int num_rows) const {
    for (int r = 0; r < num_rows; ++r) {
      const uint8_t* row = a.state.data + r * a.state.stride[0];
      uint32_t mine[planes_of_row] = {};
#pragma unroll 8
      for (int g = 0; g < groups; ++g) {
        const uint32_t byte = row[agent(g) * a.state.stride[1]];
        for (int k = 0; k < planes_of_row; ++k) {
          const uint32_t word = __ballot_sync(all, byte >> k & 1);
          if (lane == g) mine[k] = word;
        }
      }
      for (int k = 0; k < planes_of_row; ++k) plane(r, k) = mine[k];
    }
  }
  __device__ void store_rows(int num_rows, uint32_t ticks) const {
    for (int r = 0; r < num_rows; ++r) {
      uint8_t* row = a.state.data + r * a.state.stride[0];
      for (int g = 0; g < groups; ++g) {
        uint32_t byte = 0;
        for (int k = 0; k < planes_of_row; ++k) byte |= static_cast<uint32_t>(bit(plane(r, k), g)) << k;
        uint8_t* at = row + agent(g) * a.state.stride[1];
        if (bit(ticks, g)) *at = static_cast<uint8_t>((*at & 0xf0) | byte);
      }
    }
  }
};

template <int groups>
__global__ void __launch_bounds__(32)
    tick_tiles(__grid_constant__ const Walk walk, __grid_constant__ const Agents agents, uint32_t* far_rows, float* made) {
  extern __shared__ uint32_t shared[];
  auto* const frames = reinterpret_cast<Frame*>(shared);
  auto* const emitted = reinterpret_cast<int32_t*>(frames + walk.depth + 1);
  const int64_t count = agents.observations.shape[0];
  for (int64_t tile = blockIdx.x; tile * groups * 32 < count; tile += gridDim.x) {
    const int lane = static_cast<int>(threadIdx.x);
    uint32_t* const rows = far_rows ? far_rows + static_cast<int64_t>(blockIdx.x) * walk.num_rows * planes_of_row * 32
                                    : reinterpret_cast<uint32_t*>(emitted + groups * 32);
    float* const columns = made + static_cast<int64_t>(blockIdx.x) * walk.num_instructions * groups * 32;
    const Tile<groups> t{agents, frames, emitted, rows, columns, tile * groups * 32, count - 1, lane};
    t.load_rows(walk.num_rows);
    t.evaluate(walk);
    const uint32_t ticks = t.gather(
        [&](int g) { return t.first + g * 32 + lane <= t.last && (!agents.mask || agents.mask[t.agent(g) * agents.mask_step] != 0); });
    for (int g = 0; g < groups; ++g) emitted[g * 32 + lane] = -1;
    for (int n = 0; agents.log && n < walk.num_nodes; ++n) t.record(n, 0, 0);
    frames[0].active[lane] = ticks;
    for (int at = 0; at < walk.num_steps; ++at) {
      const Step s = walk.steps[at];
      Frame& f = frames[s.depth];
      Frame& g = frames[s.depth + 1];
      switch (s.code) {
        case Code::leaf: t.leaf(s, f); break;
        case Code::begin: t.begin(s, f); break;
        case Code::child:
          if (!t.child(s, f, g)) {
            g.low[lane] = g.high[lane] = 0;
            at = s.join;
          }
          break;
        case Code::join: t.join(s, f, g); break;
        case Code::end: t.end(s, f, g); break;
      }
      if (agents.log && (s.code == Code::leaf || s.code == Code::end)) t.record(s.node, f.low[lane], f.high[lane]);
    }
    t.store_rows(walk.num_rows, ticks);
    for (int g = 0; g < groups; ++g) {
      const auto status = static_cast<uint8_t>(t.bit(frames[0].low[lane], g) | t.bit(frames[0].high[lane], g) << 1);
      if (!t.bit(ticks, g)) continue;
      agents.actions.data[t.agent(g) * agents.actions.stride[0]] = emitted[g * 32 + lane];
      agents.statuses.data[t.agent(g) * agents.statuses.stride[0]] = status;
    }
  }
}

/// The elements of a program's arrays, one array after the other.
struct Packed {
  struct {
    const void* data;
    int64_t count, stride, size, offset;
  } arrays[12];
};

__global__ void pack(__grid_constant__ const Packed p, unsigned char* to) {
  const auto& a = p.arrays[blockIdx.y];
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < a.count; i += int64_t{gridDim.x} * blockDim.x) {
    if (a.size == 4)
      reinterpret_cast<uint32_t*>(to + a.offset)[i] = static_cast<const uint32_t*>(a.data)[i * a.stride];
    else
      to[a.offset + i] = static_cast<const uint8_t*>(a.data)[i * a.stride];
  }
}

/// The checked program. Its arrays come to the host: a program is small, and so is the check the same as on the CPU.
Compiled fetch(ProgramView p, int64_t num_features, int device, cudaStream_t stream) {
  Packed packed{};
  int used = 0;
  int64_t bytes = 0;
  const auto each = [](ProgramView& v, auto f) {
    f(v.ends), f(v.features), f(v.thresholds), f(v.action_ids), f(v.params), f(v.code_lefts), f(v.code_rights), f(v.code_values);
    f(v.kinds), f(v.comparisons), f(v.results), f(v.code_ops);
  };
  each(p, [&](auto& t) {
    const auto size = static_cast<int64_t>(sizeof(*t.data));
    packed.arrays[used++] = {t.data, t.shape[0], t.stride[0], size, bytes};
    bytes += core::checked_mul(t.shape[0], size, "tick: the program's size");
  });
  std::vector<unsigned char> host(static_cast<std::size_t>(bytes));
  if (bytes > 0) {
    const core::DeviceScratch there("tick", device, stream, bytes);
    const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(bytes / 4096, 1, 256));
    pack<<<dim3(blocks, 12), 256, 0, stream>>>(packed, there.get<unsigned char>());
    core::check_cuda("tick", cudaGetLastError(), "packing the program");
    core::check_cuda("tick", cudaMemcpyAsync(host.data(), there.get<void>(), host.size(), cudaMemcpyDeviceToHost, stream),
                     "reading the program");
    core::check_cuda("tick", cudaStreamSynchronize(stream), "reading the program");
  }
  used = 0;
  each(p, [&](auto& t) {
    t.data = reinterpret_cast<decltype(t.data)>(host.data() + packed.arrays[used++].offset);
    t.stride[0] = 1;
  });
  Compiled c = compile("tick", p, num_features);
  const auto column = [&](int32_t& at) {
    const auto loaded = static_cast<int32_t>(c.columns.size());
    if (at >= 0) at = at < loaded ? c.columns[static_cast<std::size_t>(at)] : static_cast<int32_t>(num_features) + at - loaded;
  };
  for (Step& s : c.steps) column(s.column);
  for (Instruction& i : c.code) column(i.left), column(i.right);
  return c;
}

template <int groups>
void launch(const Compiled& c, const Agents& agents, int64_t num_nodes, int device, cudaStream_t stream) {
  const int64_t tiles = (agents.observations.shape[0] + groups * 32 - 1) / (groups * 32);
  const auto frames = static_cast<int64_t>(sizeof(Frame)) * (c.depth + 1) + groups * 32 * 4;
  const int64_t rows = int64_t{c.rows} * planes_of_row * 32 * 4, made = static_cast<int64_t>(c.code.size()) * groups * 32 * 4;
  const bool fits = frames + rows <= 96 * 1024;
  const int64_t shared = frames + (fits ? rows : 0);
  const int64_t blocks = std::min<int64_t>(tiles, fits && made == 0 ? 1 << 20 : 1024);
  const auto steps = static_cast<int64_t>(c.steps.size() * sizeof(Step)), code = static_cast<int64_t>(c.code.size() * sizeof(Instruction));
  const core::DeviceScratch program("tick", device, stream, steps + code), far_rows("tick", device, stream, fits ? 0 : blocks * rows),
      columns("tick", device, stream, blocks * made);
  const auto send = [&](int64_t offset, const void* from, int64_t bytes) {
    core::check_cuda(
        "tick",
        cudaMemcpyAsync(program.get<unsigned char>() + offset, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream),
        "sending the program");
  };
  send(0, c.steps.data(), steps);
  if (code) send(steps, c.code.data(), code);
  const Walk walk{program.get<Step>(),
                  reinterpret_cast<const Instruction*>(program.get<unsigned char>() + steps),
                  static_cast<int>(c.steps.size()),
                  static_cast<int>(c.code.size()),
                  static_cast<int>(num_nodes),
                  c.rows,
                  c.depth};
  core::check_cuda("tick", cudaFuncSetAttribute(tick_tiles<groups>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                   "asking for shared memory");
  tick_tiles<groups><<<static_cast<unsigned>(blocks), 32, static_cast<std::size_t>(shared), stream>>>(
      walk, agents, far_rows.get<uint32_t>(), columns.get<float>());
  core::check_cuda("tick", cudaGetLastError(), "launching the kernel");
}

}  // namespace

void tick_cuda(Tensor<const uint8_t, 1> kinds, Tensor<const int32_t, 1> ends, Tensor<const int32_t, 1> features,
               Tensor<const uint8_t, 1> comparisons, Tensor<const float, 1> thresholds, Tensor<const int32_t, 1> action_ids,
               Tensor<const uint8_t, 1> results, Tensor<const int32_t, 1> params, Tensor<const uint8_t, 1> code_ops,
               Tensor<const int32_t, 1> code_lefts, Tensor<const int32_t, 1> code_rights, Tensor<const float, 1> code_values,
               Tensor<const float, 2> observations, std::optional<Tensor<const bool, 1>> mask, Tensor<uint8_t, 2> state,
               Tensor<int32_t, 2> counters, Tensor<int32_t, 1> actions, Tensor<uint8_t, 1> statuses, std::optional<Tensor<uint8_t, 2>> log,
               core::Stream stream) {
  const int device = observations.device_id;
  const core::OnDevice here("tick", device);
  auto* const on = static_cast<cudaStream_t>(stream.handle);
  const Compiled c =
      fetch({kinds, ends, features, comparisons, thresholds, action_ids, results, params, code_ops, code_lefts, code_rights, code_values},
            observations.shape[1], device, on);
  check_rows("tick", state.shape[0], c.rows, counters.shape[0], c.counters);
  if (observations.shape[0] == 0) return;
  const Agents agents{observations,
                      mask ? reinterpret_cast<const uint8_t*>(mask->data) : nullptr,
                      mask ? mask->stride[0] : 0,
                      state,
                      counters,
                      actions,
                      statuses,
                      log ? log->data : nullptr,
                      log ? log->stride[0] : 0,
                      log ? log->stride[1] : 0};
  if (observations.shape[0] >= 1 << 19)
    launch<32>(c, agents, kinds.shape[0], device, on);
  else
    launch<16>(c, agents, kinds.shape[0], device, on);
}

}  // namespace core_agents
