// The gradients of Mamba-2's scan on the CPU: the states before every chunk are found again, then the chunks are gone through
// from the last one back.
#include <utility>

#include "ssd_chunks.hpp"

namespace core_llm_efficiency {
namespace {
using namespace ssd;
constexpr std::int64_t slabs = 8;  // a slab: the heads whose gradients of B and C one task sums up

struct Gradients {
  Matrix<const float> out, final;  // final.data may be null
  Matrix<float> x, initial;
  float* dt;
  std::int64_t dt_step;
  float* A;
  float *B, *C;  // [step][n], added to
};

void scale_rows(std::int64_t rows, std::int64_t cols, const float* scale, float* m) {
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j) m[i * row_step + j] *= scale[i];
}
float dot(std::int64_t n, const float* a, const float* b) {
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void multiply_add(std::int64_t count, std::int64_t depth, std::int64_t cols, const float* a, const float* b, float keep, float* c) {
  float keeps[rows_of_tile];
  std::fill_n(keeps, rows_of_tile, keep);
  for (std::int64_t j = 0; j < cols; j += lanes)
    for (std::int64_t i = 0; i < count;) {
      const int height = tile_rows(count - i);
      with_rows(height, [&]<int R> { multiply<R>(depth, a + i * row_step, b + j * depth, c + i * row_step + j, row_step, keeps); });
      i += height;
    }
}
/// c = keep c + a b, of `count` rows and `cols` columns; in memory rounded up to 4 and 16. keep is 1 where depth is 0.
void add_product(std::int64_t count, std::int64_t depth, std::int64_t cols, const float* a, const float* b, float keep, float* c) {
  if (depth) core::multiversion<&multiply_add>(count, depth, cols, a, b, keep, c);
}
/// c = a b.
void product(std::int64_t count, std::int64_t depth, std::int64_t cols, const float* a, const float* b, float* c) {
  for (std::int64_t i = 0; i < round_up(count, 4); ++i) std::fill_n(c + i * row_step, round_up(cols, lanes), 0.f);
  add_product(count, depth, cols, a, b, 1.f, c);
}

/// The work of one head in matrices of equal room: at most `widest_state` columns, rows enough for a chunk, p and n.
struct Room {
  std::int64_t size;
  float* next;
  Room(const Head& s, float* work) : size(room(s.p, s.n)), next(work) {}
  static std::int64_t room(std::int64_t p, std::int64_t n) { return round_up(std::max({chunk, p, n}), 4) * row_step; }
  float* matrix() { return std::exchange(next, next + size); }
};

void load_state(const Matrix<const float>& m, std::int64_t p, std::int64_t n, float* state) {
  std::fill_n(state, Room::room(p, n), 0.f);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < p; ++j) state[i * row_step + j] = m.data ? m.data[j * m.row + i * m.col] : 0.f;
}
void store_state(const float* state, std::int64_t p, std::int64_t n, const Matrix<float>& m) {
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < p; ++j) m.data[j * m.row + i * m.col] = state[i * row_step + j];
}

/// to [n][step] = B^T with step t scaled.
void scaled_turned(const Head& s, const Matrix<const float>& m, const Chunk& c, const float* scale, float* to) {
  rows_of(turned(after(m, c.first)), s.n, c.count, to);
  for (std::int64_t n = 0; n < s.n; ++n)
    for (std::int64_t t = 0; t < c.count; ++t) to[n * row_step + t] *= scale[t];
}

/// weights = (C B^T) . between; C's rows stay in `left`.
void weigh(const Head& s, const Chunk& c, float* left, float* right, float* weights) {
  rows_of(after(s.C, c.first), c.count, s.n, left);
  panels_of(turned(after(s.B, c.first)), s.n, c.count, right);
  product(c.count, s.n, c.count, left, right, weights);
  for (std::int64_t i = 0; i < c.count; ++i)
    for (std::int64_t j = 0; j < c.count; ++j) weights[i * row_step + j] *= c.between[i * chunk + j];
}

/// to = dt x, [step][p].
void weighted_x(const Head& s, const Chunk& c, float* to) {
  rows_of(after(s.x, c.first), c.count, s.p, to);
  scale_rows(c.count, s.p, c.dt, to);
}

/// The state [n][p] at the chunk's end; x: panels of dt x.
void advance(const Head& s, const Chunk& c, const float* x, float* left, float* state) {
  scaled_turned(s, s.B, c, c.to_end, left);
  add_product(s.n, c.count, s.p, left, x, c.whole(), state);
}

constexpr std::int64_t backward_matrices = 9;
void backward(const Head& s, const Gradients& g, float* starts, float* work) {
  Room room(s, work);
  float *left = room.matrix(), *right = room.matrix(), *weights = room.matrix(), *dweights = room.matrix(), *x = room.matrix();
  float *dy = room.matrix(), *result = room.matrix(), *state = room.matrix(), *dstate = room.matrix();
  const std::int64_t size = s.n * s.p;
  Chunk c;
  load_state(s.initial, s.p, s.n, state);
  for (std::int64_t first = 0, i = 0; first < s.steps; first += chunk, ++i) {
    store_state(state, s.p, s.n, {starts + i * size, s.n, 1});
    enter(s, first, c);
    weighted_x(s, c, x);
    panels_of(matrix(x), c.count, s.p, right);
    advance(s, c, right, left, state);
  }
  load_state(g.final, s.p, s.n, dstate);
  double of_A = 0;
  for (std::int64_t i = ceil_div(s.steps, chunk); i-- > 0;) {
    enter(s, i * chunk, c);
    float dsum[chunk] = {};  // of the running sums of dt A
    load_state({starts + i * size, s.n, 1}, s.p, s.n, state);
    weigh(s, c, left, right, weights);
    weighted_x(s, c, x);
    rows_of(after(g.out, c.first), c.count, s.p, dy);

    panels_of(turned(matrix(x)), s.p, c.count, right);
    product(c.count, s.p, c.count, dy, right, dweights);
    for (std::int64_t t = 0; t < c.count; ++t)
      for (std::int64_t j = 0; j <= t; ++j) {
        const float of_decay = dweights[t * row_step + j] * weights[t * row_step + j];
        dsum[t] += of_decay;
        dsum[j] -= of_decay;
      }
    for (std::int64_t t = 0; t < c.count; ++t)
      for (std::int64_t j = 0; j < c.count; ++j) dweights[t * row_step + j] *= c.between[t * chunk + j];

    panels_of(turned(matrix(state)), s.p, s.n, right);  // C: from the state before, then from the chunk
    product(c.count, s.p, s.n, dy, right, result);
    scale_rows(c.count, s.n, c.since_start, result);
    for (std::int64_t t = 0; t < c.count; ++t) dsum[t] += dot(s.n, result + t * row_step, left + t * row_step);
    panels_of(after(s.B, c.first), c.count, s.n, right);
    add_product(c.count, c.count, s.n, dweights, right, 1.f, result);
    for (std::int64_t t = 0; t < c.count; ++t)
      for (std::int64_t n = 0; n < s.n; ++n) g.C[(c.first + t) * s.n + n] += result[t * row_step + n];

    panels_of(turned(matrix(dstate)), s.p, s.n, right);  // B: from the state after, then from the chunk
    product(c.count, s.p, s.n, x, right, result);
    scale_rows(c.count, s.n, c.to_end, result);
    panels_of(after(s.C, c.first), c.count, s.n, right);
    rows_of(turned(matrix(dweights)), c.count, c.count, left);
    add_product(c.count, c.count, s.n, left, right, 1.f, result);
    for (std::int64_t t = 0; t < c.count; ++t)
      for (std::int64_t n = 0; n < s.n; ++n) g.B[(c.first + t) * s.n + n] += result[t * row_step + n];

    rows_of(after(s.B, c.first), c.count, s.n, left);  // dt x: the same
    panels_of(matrix(dstate), s.n, s.p, right);
    product(c.count, s.n, s.p, left, right, result);
    scale_rows(c.count, s.p, c.to_end, result);
    float& dlast = dsum[c.count - 1];
    for (std::int64_t t = 0; t < c.count; ++t) {
      const float of_decay = dot(s.p, result + t * row_step, x + t * row_step);
      dsum[t] -= of_decay;
      dlast += of_decay;
    }
    for (std::int64_t n = 0; n < s.n; ++n) dlast += c.whole() * dot(s.p, dstate + n * row_step, state + n * row_step);
    rows_of(turned(matrix(weights)), c.count, c.count, left);
    panels_of(matrix(dy), c.count, s.p, right);
    add_product(c.count, c.count, s.p, left, right, 1.f, result);

    scaled_turned(s, s.C, c, c.since_start, left);
    add_product(s.n, c.count, s.p, left, right, c.whole(), dstate);

    float of_step = 0;
    for (std::int64_t t = c.count; t-- > 0;) {
      of_step += dsum[t];
      of_A += static_cast<double>(c.dt[t]) * static_cast<double>(of_step);
      float of_dt = s.A * of_step;
      for (std::int64_t j = 0; j < s.p; ++j) {
        of_dt += result[t * row_step + j] * s.x.data[(c.first + t) * s.x.row + j * s.x.col];
        g.x.data[(c.first + t) * g.x.row + j * g.x.col] = result[t * row_step + j] * c.dt[t];
      }
      g.dt[(c.first + t) * g.dt_step] = of_dt;
    }
  }
  *g.A = static_cast<float>(of_A);
  store_state(dstate, s.p, s.n, g.initial);
}
}  // namespace

void ssd_scan_backward(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
                       core::Tensor<const float, 4> B, core::Tensor<const float, 4> C,
                       std::optional<core::Tensor<const float, 4>> initial_states,
                       std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<const float, 4> grad_out,
                       std::optional<core::Tensor<const float, 4>> grad_final_states, core::Tensor<float, 4> grad_x,
                       core::Tensor<float, 3> grad_dt, core::Tensor<float, 1> grad_A, core::Tensor<float, 4> grad_B,
                       core::Tensor<float, 4> grad_C, core::Tensor<float, 4> grad_initial_states) {
  const char* op = "ssd_scan_backward";
  const Inputs in{x, B, C, dt, A, initial_states, seq_idx};
  check_ssd(op, in.heads, in.groups, in.p, in.n);
  const std::int64_t share = in.groups ? in.heads / in.groups : 0, parts = std::min(slabs, share);
  const std::int64_t tasks = in.batch * in.groups * parts, series = core::checked_mul(in.steps, in.n, op);
  const std::int64_t starts = core::checked_mul(ceil_div(in.steps, chunk), in.n * in.p, op);
  const Scratch sums_B(core::checked_mul(series, tasks, op)), sums_C(core::checked_mul(series, tasks, op)), sums_A(in.batch * in.heads);
  core::parallel_for(tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch work(backward_matrices * Room::room(in.p, in.n)), states(starts);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t part = task % parts, g = task / parts % in.groups, b = task / parts / in.groups;
      float *of_B = sums_B.get() + task * series, *of_C = sums_C.get() + task * series;
      std::fill_n(of_B, series, 0.f);
      std::fill_n(of_C, series, 0.f);
      for (std::int64_t h = g * share + share * part / parts; h < g * share + share * (part + 1) / parts; ++h) {
        const Head head = in.head(b, h);
        const Gradients gradients{steps_of(grad_out, b, h),
                                  grad_final_states ? state_of(*grad_final_states, b, h) : Matrix<const float>{},
                                  steps_of(grad_x, b, h),
                                  state_of(grad_initial_states, b, h),
                                  &grad_dt(b, 0, h),
                                  grad_dt.stride[1],
                                  sums_A.get() + b * in.heads + h,
                                  of_B,
                                  of_C};
        backward(head, gradients, states.get(), work.get());
      }
    }
  });
  for (std::int64_t h = 0; h < in.heads; ++h) {
    float sum = 0;
    for (std::int64_t b = 0; b < in.batch; ++b) sum += sums_A.get()[b * in.heads + h];
    grad_A(h) = sum;
  }
  core::parallel_for(in.batch * in.groups * in.steps, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / (in.groups * in.steps), g = i / in.steps % in.groups, t = i % in.steps;
      for (std::int64_t n = 0; n < in.n; ++n) {
        float of_B = 0, of_C = 0;
        for (std::int64_t part = 0; part < parts; ++part) {
          const std::int64_t at = ((b * in.groups + g) * parts + part) * series + t * in.n + n;
          of_B += sums_B.get()[at], of_C += sums_C.get()[at];
        }
        grad_B(b, t, g, n) = of_B;
        grad_C(b, t, g, n) = of_C;
      }
    }
  });
}
}  // namespace core_llm_efficiency
