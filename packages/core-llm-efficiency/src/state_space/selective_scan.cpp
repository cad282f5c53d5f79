// A tile is 16 channels of one group, one lane each; time runs in chunks whose inputs are packed [step][lane].
#include <core/isa.hpp>
#include <core_llm_efficiency/state_space.hpp>

#include "checks.hpp"
#include "exp_lanes.hpp"

namespace core_llm_efficiency {
namespace {
constexpr std::int64_t chunk = 64, slabs = 8;  // a slab: the tiles whose gradients of B and C one task sums up

template <class T>
struct Lanes {  // the tile's channels of one sequence, [channel][step] with any strides
  T* data;
  std::int64_t channel, step;
};
template <class T>
struct Series {  // one group's B or C of one sequence, [state][step]
  T* data;
  std::int64_t state, step;
};
template <class T>
struct State {  // the tile's rows, [channel][state]
  T* data;
  std::int64_t channel, state;
};

struct Tile {
  std::int64_t width, states, steps;  // width: channels in use, at most `lanes`
  Lanes<const float> u, delta;
  State<const float> A;
  Series<const float> B, C;
  State<const float> initial;  // data may be null
};

struct Gradients {
  Lanes<const float> out;
  State<const float> last;  // data may be null
  Lanes<float> u, delta;
  State<float> A, initial;
  float *B, *C;  // [step][state], added to
};

/// Unused lanes hold zeros.
void pack_lanes(const Lanes<const float>& from, std::int64_t width, std::int64_t first, std::int64_t count, float* to) {
  for (std::int64_t t = 0; t < count; ++t)
#pragma GCC unroll 1
    for (int j = 0; j < lanes; ++j) to[t * lanes + j] = j < width ? from.data[j * from.channel + (first + t) * from.step] : 0.f;
}
void unpack_lanes(const float* from, std::int64_t width, std::int64_t first, std::int64_t count, const Lanes<float>& to) {
  for (std::int64_t j = 0; j < width; ++j)
    for (std::int64_t t = 0; t < count; ++t) to.data[j * to.channel + (first + t) * to.step] = from[t * lanes + j];
}
void pack_series(const Series<const float>& from, std::int64_t states, std::int64_t first, std::int64_t count, float* to) {
  for (std::int64_t n = 0; n < states; ++n)
    for (std::int64_t t = 0; t < count; ++t) to[t * states + n] = from.data[n * from.state + (first + t) * from.step];
}
void pack_state(const State<const float>& from, std::int64_t width, std::int64_t states, float* to) {
  for (std::int64_t n = 0; n < states; ++n)
#pragma GCC unroll 1
    for (int j = 0; j < lanes; ++j) to[n * lanes + j] = from.data && j < width ? from.data[j * from.channel + n * from.state] : 0.f;
}
void unpack_state(const float* from, std::int64_t width, std::int64_t states, const State<float>& to) {
  for (std::int64_t j = 0; j < width; ++j)
    for (std::int64_t n = 0; n < states; ++n) to.data[j * to.channel + n * to.state] = from[n * lanes + j];
}

/// One chunk's inputs, packed.
struct Packed {
  float *u, *delta, *B, *C;
};
constexpr std::int64_t packed_size(std::int64_t states) { return 2 * chunk * (lanes + states); }
Packed pack(const Tile& t, std::int64_t first, std::int64_t count, float* work) {
  const Packed p{work, work + chunk * lanes, work + 2 * chunk * lanes, work + 2 * chunk * lanes + chunk * t.states};
  pack_lanes(t.u, t.width, first, count, p.u);
  pack_lanes(t.delta, t.width, first, count, p.delta);
  pack_series(t.B, t.states, first, count, p.B);
  pack_series(t.C, t.states, first, count, p.C);
  return p;
}

/// h <- one step; decay[j] = exp(delta A). Where `sum` is given, it becomes C h.
inline void step(std::int64_t states, const float* A, const float* u, const float* delta, const float* B, const float* C, float* h,
                 float* decay, std::int64_t decay_step, float* sum) {
  float input[lanes], y[lanes];
#pragma GCC unroll 1
  for (int j = 0; j < lanes; ++j) input[j] = delta[j] * u[j], y[j] = 0;
  for (std::int64_t n = 0; n < states; ++n) {
    float x[lanes];
    float* e = decay + n * decay_step;
#pragma GCC unroll 1
    for (int j = 0; j < lanes; ++j) x[j] = delta[j] * A[n * lanes + j];
    exp_lanes(x, e);
#pragma GCC unroll 1
    for (int j = 0; j < lanes; ++j) {
      const float now = e[j] * h[n * lanes + j] + input[j] * B[n];
      h[n * lanes + j] = now;
      y[j] += now * C[n];
    }
  }
#pragma GCC unroll 1
  for (int j = 0; j < lanes; ++j) sum[j] = y[j];
}

std::int64_t forward_size(std::int64_t states) { return packed_size(states) + 2 * states * lanes + chunk * lanes; }

void forward(const Tile* tile, const Lanes<float>* out, const State<float>* last, float* work) {
  const Tile& t = *tile;
  float* A = work + packed_size(t.states);
  float* h = A + t.states * lanes;
  float* y = h + t.states * lanes;
  float decay[lanes];
  pack_state(t.A, t.width, t.states, A);
  pack_state(t.initial, t.width, t.states, h);
  for (std::int64_t first = 0; first < t.steps; first += chunk) {
    const std::int64_t count = std::min(chunk, t.steps - first);
    const Packed p = pack(t, first, count, work);
    for (std::int64_t s = 0; s < count; ++s)
      step(t.states, A, p.u + s * lanes, p.delta + s * lanes, p.B + s * t.states, p.C + s * t.states, h, decay, 0, y + s * lanes);
    unpack_lanes(y, t.width, first, count, *out);
  }
  unpack_state(h, t.width, t.states, *last);
}

/// Four sums side by side, which the compiler keeps in one register.
inline float sum_lanes(const float* x) {
  float part[4];
  for (int j = 0; j < 4; ++j) part[j] = (x[j] + x[j + 4]) + (x[j + 8] + x[j + 12]);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

std::int64_t backward_size(std::int64_t states, std::int64_t steps) {
  const std::int64_t chunks = ceil_div(steps, chunk);
  return core::checked_mul(states * lanes, chunks + 2 * chunk + 6, "selective_scan_backward: scratch") + packed_size(states) +
         4 * chunk * lanes;
}

/// The states at the chunks' starts are kept; a chunk's own states and decays are computed again when its turn comes.
void backward(const Tile* tile, const Gradients* gradients, float* work) {
  const Tile& t = *tile;
  const Gradients& g = *gradients;
  const std::int64_t size = t.states * lanes, chunks = ceil_div(t.steps, chunk);
  float* A = work + packed_size(t.states);
  float* starts = A + size;                      // [chunks + 1][states][lanes]
  float* states = starts + (chunks + 1) * size;  // [chunk][states][lanes]: before each step
  float* decays = states + chunk * size;         // [chunk][states][lanes]
  float* h = decays + chunk * size;
  float* carried = h + size;  // the gradient of the state after a step
  float* grad_A = carried + size;
  float* grad_out = grad_A + size;  // [chunk][lanes], as the three below
  float* grad_u = grad_out + chunk * lanes;
  float* grad_delta = grad_u + chunk * lanes;
  float* y = grad_delta + chunk * lanes;
  pack_state(t.A, t.width, t.states, A);
  pack_state(t.initial, t.width, t.states, h);
  pack_state(g.last, t.width, t.states, carried);
  std::fill_n(grad_A, size, 0.f);
  for (std::int64_t c = 0; c < chunks; ++c) {
    const std::int64_t first = c * chunk, count = std::min(chunk, t.steps - first);
    std::copy_n(h, size, starts + c * size);
    const Packed p = pack(t, first, count, work);
    for (std::int64_t s = 0; s < count; ++s)
      step(t.states, A, p.u + s * lanes, p.delta + s * lanes, p.B + s * t.states, p.C + s * t.states, h, decays, 0, y);
  }
  for (std::int64_t c = chunks; c-- > 0;) {
    const std::int64_t first = c * chunk, count = std::min(chunk, t.steps - first);
    const Packed p = pack(t, first, count, work);
    pack_lanes(g.out, t.width, first, count, grad_out);
    std::copy_n(starts + c * size, size, h);
    for (std::int64_t s = 0; s < count; ++s) {
      std::copy_n(h, size, states + s * size);
      step(t.states, A, p.u + s * lanes, p.delta + s * lanes, p.B + s * t.states, p.C + s * t.states, h, decays + s * size, lanes, y);
    }
    for (std::int64_t s = count; s-- > 0;) {
      const float* __restrict u = p.u + s * lanes, * __restrict delta = p.delta + s * lanes, * __restrict dy = grad_out + s * lanes;
      float du[lanes], dd[lanes];
#pragma GCC unroll 1
      for (int j = 0; j < lanes; ++j) du[j] = dd[j] = 0;
      for (std::int64_t n = 0; n < t.states; ++n) {
        const float b = p.B[s * t.states + n], c_n = p.C[s * t.states + n];
        const float* __restrict before = states + s * size + n * lanes, * __restrict decay = decays + s * size + n * lanes;
        const float* __restrict a = A + n * lanes;
        float* __restrict dh = carried + n * lanes, * __restrict da = grad_A + n * lanes;
        float of_B[lanes], of_C[lanes];
#pragma GCC unroll 1
        for (int j = 0; j < lanes; ++j) {
          const float input = delta[j] * u[j], whole = dh[j] + c_n * dy[j];
          const float now = decay[j] * before[j] + input * b;
          const float of_exponent = whole * decay[j] * before[j];
          of_C[j] = dy[j] * now;
          of_B[j] = whole * input;
          du[j] += whole * b;
          dd[j] += of_exponent * a[j];
          da[j] += of_exponent * delta[j];
          dh[j] = whole * decay[j];
        }
        g.B[(first + s) * t.states + n] += sum_lanes(of_B);
        g.C[(first + s) * t.states + n] += sum_lanes(of_C);
      }
#pragma GCC unroll 1
      for (int j = 0; j < lanes; ++j) {
        grad_u[s * lanes + j] = du[j] * delta[j];
        grad_delta[s * lanes + j] = dd[j] + du[j] * u[j];
      }
    }
    unpack_lanes(grad_u, t.width, first, count, g.u);
    unpack_lanes(grad_delta, t.width, first, count, g.delta);
  }
  unpack_state(grad_A, t.width, t.states, g.A);
  unpack_state(carried, t.width, t.states, g.initial);
}

template <class T>
Lanes<T> lanes_of(const core::Tensor<T, 3>& x, std::int64_t b, std::int64_t channel) {
  return {x.data + b * x.stride[0] + channel * x.stride[1], x.stride[1], x.stride[2]};
}
template <class T>
State<T> state_of(const core::Tensor<T, 3>& x, std::int64_t b, std::int64_t channel) {
  return {x.data + b * x.stride[0] + channel * x.stride[1], x.stride[1], x.stride[2]};
}
Series<const float> series_of(const core::Tensor<const float, 4>& x, std::int64_t b, std::int64_t group) {
  return {x.data + b * x.stride[0] + group * x.stride[1], x.stride[2], x.stride[3]};
}

/// The sizes, and how the channels of a group fall into tiles.
struct Plan {
  std::int64_t batch, channels, groups, states, steps, per_group, tiles;
  Plan(const char* op, const core::Tensor<const float, 3>& u, const core::Tensor<const float, 4>& B)
      : batch(u.shape[0]), channels(u.shape[1]), groups(B.shape[1]), states(B.shape[2]), steps(u.shape[2]) {
    check_groups(op, "channels", channels, groups);
    per_group = groups ? channels / groups : 0;
    tiles = ceil_div(per_group, lanes);
    core::checked_mul(states, lanes * 4 * chunk, op);
  }
  Tile tile(const core::Tensor<const float, 3>& u, const core::Tensor<const float, 3>& delta, const core::Tensor<const float, 2>& A,
            const core::Tensor<const float, 4>& B, const core::Tensor<const float, 4>& C,
            const std::optional<core::Tensor<const float, 3>>& initial, std::int64_t b, std::int64_t g, std::int64_t i) const {
    const std::int64_t channel = this->channel(g, i);
    return {std::min<std::int64_t>(lanes, (g + 1) * per_group - channel),
            states,
            steps,
            lanes_of(u, b, channel),
            lanes_of(delta, b, channel),
            {A.data + channel * A.stride[0], A.stride[0], A.stride[1]},
            series_of(B, b, g),
            series_of(C, b, g),
            initial ? state_of(*initial, b, channel) : State<const float>{}};
  }
  std::int64_t channel(std::int64_t g, std::int64_t i) const { return g * per_group + i * lanes; }
};
}  // namespace

void selective_scan(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
                    core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                    std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<float, 3> out,
                    core::Tensor<float, 3> last_state) {
  const Plan p("selective_scan", u, B);
  core::parallel_for(p.batch * p.groups * p.tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch work(forward_size(p.states));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / (p.groups * p.tiles), g = i / p.tiles % p.groups;
      const Tile tile = p.tile(u, delta, A, B, C, initial_state, b, g, i % p.tiles);
      const auto y = lanes_of(out, b, p.channel(g, i % p.tiles));
      const auto last = state_of(last_state, b, p.channel(g, i % p.tiles));
      core::multiversion<&forward>(&tile, &y, &last, work.get());
    }
  });
}

void selective_scan_backward(core::Tensor<const float, 3> u, core::Tensor<const float, 3> delta, core::Tensor<const float, 2> A,
                             core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                             std::optional<core::Tensor<const float, 3>> initial_state, core::Tensor<const float, 3> grad_out,
                             std::optional<core::Tensor<const float, 3>> grad_last_state, core::Tensor<float, 3> grad_u,
                             core::Tensor<float, 3> grad_delta, core::Tensor<float, 2> grad_A, core::Tensor<float, 4> grad_B,
                             core::Tensor<float, 4> grad_C, core::Tensor<float, 3> grad_initial_state) {
  const char* op = "selective_scan_backward";
  const Plan p(op, u, B);
  const std::int64_t parts = std::min(slabs, p.tiles);
  const std::int64_t series = core::checked_mul(p.states, p.steps, op);
  const std::int64_t tasks = p.batch * p.groups * parts;
  const Scratch sums_B(core::checked_mul(series, tasks, op)), sums_C(core::checked_mul(series, tasks, op));
  const Scratch sums_A(core::checked_mul(p.batch * p.channels, p.states, op));
  const std::int64_t room = backward_size(p.states, p.steps);
  core::parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch work(room);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t part = task % parts, g = task / parts % p.groups, b = task / parts / p.groups;
      float *of_B = sums_B.get() + task * series, *of_C = sums_C.get() + task * series;
      std::fill_n(of_B, series, 0.f);
      std::fill_n(of_C, series, 0.f);
      for (std::int64_t i = p.tiles * part / parts; i < p.tiles * (part + 1) / parts; ++i) {
        const std::int64_t channel = p.channel(g, i);
        const Tile tile = p.tile(u, delta, A, B, C, initial_state, b, g, i);
        const Gradients gradients{lanes_of(grad_out, b, channel),
                                  grad_last_state ? state_of(*grad_last_state, b, channel) : State<const float>{},
                                  lanes_of(grad_u, b, channel),
                                  lanes_of(grad_delta, b, channel),
                                  {sums_A.get() + (b * p.channels + channel) * p.states, p.states, 1},
                                  state_of(grad_initial_state, b, channel),
                                  of_B,
                                  of_C};
        core::multiversion<&backward>(&tile, &gradients, work.get());
      }
    }
  });
  for (std::int64_t i = 0; i < p.channels; ++i)
    for (std::int64_t n = 0; n < p.states; ++n) {
      float sum = 0;
      for (std::int64_t b = 0; b < p.batch; ++b) sum += sums_A.get()[(b * p.channels + i) * p.states + n];
      grad_A(i, n) = sum;
    }
  core::parallel_for(p.batch * p.groups * p.steps, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / (p.groups * p.steps), g = i / p.steps % p.groups, t = i % p.steps;
      for (std::int64_t n = 0; n < p.states; ++n) {
        float of_B = 0, of_C = 0;
        for (std::int64_t part = 0; part < parts; ++part) {
          const std::int64_t at = ((b * p.groups + g) * parts + part) * series + t * p.states + n;
          of_B += sums_B.get()[at], of_C += sums_C.get()[at];
        }
        grad_B(b, g, n, t) = of_B;
        grad_C(b, g, n, t) = of_C;
      }
    }
  });
}
}  // namespace core_llm_efficiency
