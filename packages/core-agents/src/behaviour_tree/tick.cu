// The tick on CUDA. A warp ticks a tile of 32 * groups agents; lane g holds the g-th 32 of them as the bits of words, so
// that one instruction of the tree's logic serves them all. What differs by agent (observations, counters, actions) is
// walked 32 agents at a time and brought into words by ballots. The walk over the steps is that of tick.cpp.
#include <core/cuda.hpp>

#include <cstddef>
#include <cstdlib>
#include <string>

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
};

template <int groups>
struct Tile {
  const Agents& a;
  Frame* frames;
  int32_t* emitted;  // [groups][32]
  uint32_t* rows;    // [state rows][planes_of_row][32]
  int64_t first, last;
  int lane;

  __device__ uint32_t& plane(int row, int k) const { return rows[(row * planes_of_row + k) * 32 + lane]; }
  /// An agent of the tile; the lane's own one of group g. Beyond the last agent: the last.
  __device__ int64_t agent(int g) const { return min(first + g * 32 + lane, last); }
  /// The word of the group's agents, from what each says of itself.
  template <class Says>
  __device__ uint32_t gather(Says says) const {
    uint32_t mine = 0;
#pragma unroll 8
    for (int g = 0; g < groups; ++g) {
      const uint32_t word = __ballot_sync(all, says(g));
      if (lane == g) mine = word;
    }
    return mine;
  }
  __device__ bool bit(uint32_t word, int g) const { return __shfl_sync(all, word, g) >> lane & 1; }

  template <class Holds>
  __device__ uint32_t compare(const Step& s, Holds holds) const {
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
      case PARALLEL_ALL_SYNC:
        g.active[lane] = active & ~(pending & plane(s.row, 1));
        return __any_sync(all, g.active[lane] != 0);
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
    tick_tiles(const Step* steps, int num_steps, int depth, int num_rows, __grid_constant__ const Agents agents, uint32_t* scratch) {
  extern __shared__ uint32_t shared[];
  auto* const frames = reinterpret_cast<Frame*>(shared);
  auto* const emitted = reinterpret_cast<int32_t*>(frames + depth + 1);
  const int64_t count = agents.observations.shape[0];
  for (int64_t tile = blockIdx.x; tile * groups * 32 < count; tile += gridDim.x) {
    const int lane = static_cast<int>(threadIdx.x);
    uint32_t* const rows = scratch ? scratch + static_cast<int64_t>(blockIdx.x) * num_rows * planes_of_row * 32
                                   : reinterpret_cast<uint32_t*>(emitted + groups * 32);
    const Tile<groups> t{agents, frames, emitted, rows, tile * groups * 32, count - 1, lane};
    t.load_rows(num_rows);
    const uint32_t ticks = t.gather([&](int g) {
      return t.first + g * 32 + lane <= t.last && (!agents.mask || agents.mask[t.agent(g) * agents.mask_step] != 0);
    });
    for (int g = 0; g < groups; ++g) emitted[g * 32 + lane] = -1;
    frames[0].active[lane] = ticks;
    for (int at = 0; at < num_steps; ++at) {
      const Step s = steps[at];
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
    }
    t.store_rows(num_rows, ticks);
    for (int g = 0; g < groups; ++g) {
      const auto status = static_cast<uint8_t>(t.bit(frames[0].low[lane], g) | t.bit(frames[0].high[lane], g) << 1);
      if (!t.bit(ticks, g)) continue;
      agents.actions.data[t.agent(g) * agents.actions.stride[0]] = emitted[g * 32 + lane];
      agents.statuses.data[t.agent(g) * agents.statuses.stride[0]] = status;
    }
  }
}

/// The program's arrays one after the other, those of four bytes first.
__global__ void pack(ProgramView p, int64_t nodes, unsigned char* to) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < nodes; i += int64_t{gridDim.x} * blockDim.x) {
    auto* const words = reinterpret_cast<int32_t*>(to);
    words[i] = p.ends.data[i * p.ends.stride[0]];
    words[nodes + i] = p.features.data[i * p.features.stride[0]];
    words[2 * nodes + i] = __float_as_int(p.thresholds.data[i * p.thresholds.stride[0]]);
    words[3 * nodes + i] = p.action_ids.data[i * p.action_ids.stride[0]];
    words[4 * nodes + i] = p.params.data[i * p.params.stride[0]];
    unsigned char* const bytes = to + 20 * nodes;
    bytes[i] = p.kinds.data[i * p.kinds.stride[0]];
    bytes[nodes + i] = p.comparisons.data[i * p.comparisons.stride[0]];
    bytes[2 * nodes + i] = p.results.data[i * p.results.stride[0]];
  }
}

constexpr int bytes_of_node = 23;

template <class T>
Tensor<const T, 1> host_view(const void* data, int64_t n) {
  Tensor<const T, 1> t;
  t.data = static_cast<const T*>(data);
  t.shape[0] = n;
  t.stride[0] = 1;
  return t;
}

/// The checked program. Its arrays come to the host: a program is small, and so is the check the same as on the CPU.
Compiled fetch(const ProgramView& p, int64_t num_features, int device, cudaStream_t stream) {
  const int64_t nodes = p.kinds.shape[0];
  std::vector<unsigned char> host(static_cast<std::size_t>(core::checked_mul(nodes, bytes_of_node, "tick: the program's size")));
  if (nodes > 0) {
    const core::DeviceScratch packed("tick", device, stream, nodes * bytes_of_node);
    pack<<<static_cast<unsigned>(std::min<int64_t>((nodes + 255) / 256, 1024)), 256, 0, stream>>>(p, nodes, packed.get<unsigned char>());
    core::check_cuda("tick", cudaGetLastError(), "packing the program");
    core::check_cuda("tick", cudaMemcpyAsync(host.data(), packed.get<void>(), host.size(), cudaMemcpyDeviceToHost, stream),
                     "reading the program");
    core::check_cuda("tick", cudaStreamSynchronize(stream), "reading the program");
  }
  const unsigned char* const words = host.data();
  const unsigned char* const bytes = words + 20 * nodes;
  ProgramView here;
  here.kinds = host_view<uint8_t>(bytes, nodes);
  here.ends = host_view<int32_t>(words, nodes);
  here.features = host_view<int32_t>(words + 4 * nodes, nodes);
  here.comparisons = host_view<uint8_t>(bytes + nodes, nodes);
  here.thresholds = host_view<float>(words + 8 * nodes, nodes);
  here.action_ids = host_view<int32_t>(words + 12 * nodes, nodes);
  here.results = host_view<uint8_t>(bytes + 2 * nodes, nodes);
  here.params = host_view<int32_t>(words + 16 * nodes, nodes);
  Compiled c = compile("tick", here, num_features);
  for (Step& s : c.steps)
    if (s.column >= 0) s.column = c.columns[static_cast<std::size_t>(s.column)];
  return c;
}

template <int groups>
void launch(const Compiled& c, const Agents& agents, int device, cudaStream_t stream) {
  const int64_t tiles = (agents.observations.shape[0] + groups * 32 - 1) / (groups * 32);
  const auto frames = static_cast<int64_t>(sizeof(Frame)) * (c.depth + 1) + groups * 32 * 4;
  const int64_t rows = int64_t{c.rows} * planes_of_row * 32 * 4;
  const bool fits = frames + rows <= 96 * 1024;
  const int64_t shared = frames + (fits ? rows : 0);
  const int64_t blocks = std::min<int64_t>(tiles, fits ? 1 << 20 : 512);
  const auto bytes = static_cast<int64_t>(c.steps.size() * sizeof(Step));
  const core::DeviceScratch steps("tick", device, stream, bytes), scratch("tick", device, stream, fits ? 0 : blocks * rows);
  core::check_cuda("tick", cudaMemcpyAsync(steps.get<void>(), c.steps.data(), static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream),
                   "sending the program");
  core::check_cuda("tick", cudaFuncSetAttribute(tick_tiles<groups>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                   "asking for shared memory");
  tick_tiles<groups><<<static_cast<unsigned>(blocks), 32, static_cast<std::size_t>(shared), stream>>>(
      steps.get<Step>(), static_cast<int>(c.steps.size()), c.depth, c.rows, agents, scratch.get<uint32_t>());
  core::check_cuda("tick", cudaGetLastError(), "launching the kernel");
}

}  // namespace

void tick_cuda(Tensor<const uint8_t, 1> kinds, Tensor<const int32_t, 1> ends, Tensor<const int32_t, 1> features,
               Tensor<const uint8_t, 1> comparisons, Tensor<const float, 1> thresholds, Tensor<const int32_t, 1> action_ids,
               Tensor<const uint8_t, 1> results, Tensor<const int32_t, 1> params, Tensor<const float, 2> observations,
               std::optional<Tensor<const bool, 1>> mask, Tensor<uint8_t, 2> state, Tensor<int32_t, 2> counters,
               Tensor<int32_t, 1> actions, Tensor<uint8_t, 1> statuses, core::Stream stream) {
  const int device = observations.device_id;
  const core::OnDevice here("tick", device);
  auto* const on = static_cast<cudaStream_t>(stream.handle);
  const Compiled c =
      fetch({kinds, ends, features, comparisons, thresholds, action_ids, results, params}, observations.shape[1], device, on);
  check_rows(state.shape[0], c.rows, counters.shape[0], c.counters);
  const int64_t count = observations.shape[0];
  if (count == 0) return;
  const Agents agents{observations, mask ? reinterpret_cast<const uint8_t*>(mask->data) : nullptr, mask ? mask->stride[0] : 0,
                      state, counters, actions, statuses};
  const char* forced = std::getenv("CORE_TICK_GROUPS");
  const int groups = forced ? std::atoi(forced) : 32;
  if (groups == 8)
    launch<8>(c, agents, device, on);
  else if (groups == 16)
    launch<16>(c, agents, device, on);
  else
    launch<32>(c, agents, device, on);
}

}  // namespace core_agents
