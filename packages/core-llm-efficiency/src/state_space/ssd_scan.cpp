// Chunks of 64 steps as matrix products. With c the running sum of dt A inside the chunk, k the decay since the
// chunk's start, exp(c[i]), and w[i,j] = exp(c[i] - c[j]) (j <= i, else 0):
//   out = ((C B^T) . w) (dt x) + k C S^T,   S <- k[last] S + (dt x)^T (w[last,.] B).
// Where seq_idx changes, w between its two sides and k beyond it are 0.
#include <core/isa.hpp>
#include <core_llm_efficiency/state_space.hpp>
#include <utility>

#include "checks.hpp"
#include "exp_lanes.hpp"

namespace core_llm_efficiency {
namespace {
constexpr std::int64_t chunk = 64, slabs = 8;  // a slab: the heads whose gradients of B and C one task sums up

/// A matrix with any strides.
template <class T>
struct Matrix {
  T* data;
  std::int64_t row, col;
};

/// One head of one sequence.
struct Head {
  std::int64_t steps, p, n;  // p, n: of x and of the state
  Matrix<const float> x, B, C;
  const float* dt;
  std::int64_t dt_step;
  float A;
  const std::int32_t* seq;  // null: one sequence
  std::int64_t seq_step;
  Matrix<const float> initial;  // [p][n]; data may be null
};

struct Gradients {
  Matrix<const float> out, final;  // final.data may be null
  Matrix<float> x, initial;
  float* dt;
  std::int64_t dt_step;
  float* A;
  float *B, *C;  // [step][n], added to
};

/// Rows of a product's left factor, `row_step` apart, their number rounded up to 4 with zeros.
void rows_of(const Matrix<const float>& m, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t i = 0; i < round_up(rows, 4); ++i)
    for (std::int64_t j = 0; j < cols; ++j) to[i * row_step + j] = i < rows ? m.data[i * m.row + j * m.col] : 0.f;
}
/// A product's right factor, [column / 16][row][16], columns rounded up with zeros.
void panels_of(const Matrix<const float>& m, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t first = 0; first < cols; first += lanes)
    for (std::int64_t i = 0; i < rows; ++i, to += lanes)
      for (std::int64_t j = 0; j < lanes; ++j) to[j] = first + j < cols ? m.data[i * m.row + (first + j) * m.col] : 0.f;
}
Matrix<const float> turned(const Matrix<const float>& m) { return {m.data, m.col, m.row}; }
Matrix<const float> after(const Matrix<const float>& m, std::int64_t row) { return {m.data + row * m.row, m.row, m.col}; }
Matrix<const float> matrix(const float* rows) { return {rows, row_step, 1}; }

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

/// One chunk of a head: its length, dt and decays.
struct Chunk {
  std::int64_t first, count;
  float dt[chunk], since_start[chunk], to_end[chunk], between[chunk * chunk];  // between[i][j]
  float whole() const { return since_start[count - 1]; }
};

void exp_all(const float* x, float* e, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += lanes) exp_lanes(x + j, e + j);
}

void enter(const Head& s, std::int64_t first, Chunk& c) {
  c.first = first;
  c.count = std::min(chunk, s.steps - first);
  float powers[chunk * chunk + chunk], *sum = powers + chunk * chunk;
  std::int64_t start[chunk];  // of the step's sequence; -1: it began before the chunk
  float running = 0;
  std::int64_t begin = -1;
  for (std::int64_t t = 0; t < chunk; ++t) {
    c.dt[t] = t < c.count ? s.dt[(first + t) * s.dt_step] : 0.f;
    running += c.dt[t] * s.A;
    sum[t] = running;
    if (s.seq && t < c.count && first + t > 0 && s.seq[(first + t) * s.seq_step] != s.seq[(first + t - 1) * s.seq_step]) begin = t;
    start[t] = begin;
  }
  for (std::int64_t i = 0; i < chunk; ++i)
    for (std::int64_t j = 0; j < chunk; ++j) powers[i * chunk + j] = sum[i] - sum[j];
  core::multiversion<&exp_all>(static_cast<const float*>(sum), c.since_start, chunk);
  core::multiversion<&exp_all>(static_cast<const float*>(powers), c.between, chunk * chunk);
  for (std::int64_t i = 0; i < chunk; ++i) {
    c.since_start[i] = start[i] < 0 ? c.since_start[i] : 0.f;
    for (std::int64_t j = 0; j < chunk; ++j) c.between[i * chunk + j] = j >= start[i] && j <= i ? c.between[i * chunk + j] : 0.f;
  }
  std::copy_n(c.between + (c.count - 1) * chunk, chunk, c.to_end);
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

constexpr std::int64_t forward_matrices = 6;
void forward(const Head& s, const Matrix<float>& out, const Matrix<float>& final, float* work) {
  Room room(s, work);
  float *left = room.matrix(), *right = room.matrix(), *weights = room.matrix(), *x = room.matrix(), *y = room.matrix();
  float* state = room.matrix();
  Chunk c;
  load_state(s.initial, s.p, s.n, state);
  for (std::int64_t first = 0; first < s.steps; first += chunk) {
    enter(s, first, c);
    weigh(s, c, left, right, weights);
    scale_rows(c.count, s.n, c.since_start, left);
    panels_of(matrix(state), s.n, s.p, right);
    product(c.count, s.n, s.p, left, right, y);
    weighted_x(s, c, left);
    panels_of(matrix(left), c.count, s.p, x);
    add_product(c.count, c.count, s.p, weights, x, 1.f, y);
    for (std::int64_t i = 0; i < c.count; ++i)
      for (std::int64_t j = 0; j < s.p; ++j) out.data[(first + i) * out.row + j * out.col] = y[i * row_step + j];
    advance(s, c, x, left, state);
  }
  store_state(state, s.p, s.n, final);
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

template <class T>
Matrix<T> steps_of(const core::Tensor<T, 4>& x, std::int64_t b, std::int64_t h) {
  return {x.data + b * x.stride[0] + h * x.stride[2], x.stride[1], x.stride[3]};
}
template <class T>
Matrix<T> state_of(const core::Tensor<T, 4>& x, std::int64_t b, std::int64_t h) {
  return {x.data + b * x.stride[0] + h * x.stride[1], x.stride[2], x.stride[3]};
}

/// The inputs.
struct Inputs {
  const core::Tensor<const float, 4>&x, &B, &C;
  const core::Tensor<const float, 3>& dt;
  const core::Tensor<const float, 1>& A;
  const std::optional<core::Tensor<const float, 4>>& initial;
  const std::optional<core::Tensor<const std::int32_t, 2>>& seq;
  std::int64_t batch = x.shape[0], steps = x.shape[1], heads = x.shape[2], p = x.shape[3], groups = B.shape[2], n = B.shape[3];

  std::int64_t room(std::int64_t matrices) const { return matrices * Room::room(p, n); }
  Head head(std::int64_t b, std::int64_t h) const {
    const std::int64_t g = h / (heads / groups);
    return {steps,
            p,
            n,
            steps_of(x, b, h),
            steps_of(B, b, g),
            steps_of(C, b, g),
            dt.data + b * dt.stride[0] + h * dt.stride[2],
            dt.stride[1],
            A(h),
            seq ? seq->data + b * seq->stride[0] : nullptr,
            seq ? seq->stride[1] : 0,
            initial ? state_of(*initial, b, h) : Matrix<const float>{}};
  }
};
}  // namespace

void ssd_scan(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
              core::Tensor<const float, 4> B, core::Tensor<const float, 4> C, std::optional<core::Tensor<const float, 4>> initial_states,
              std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<float, 4> out, core::Tensor<float, 4> final_states) {
  const Inputs in{x, B, C, dt, A, initial_states, seq_idx};
  check_ssd("ssd_scan", in.heads, in.groups, in.p, in.n);
  core::parallel_for(in.batch * in.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch work(in.room(forward_matrices));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / in.heads, h = i % in.heads;
      const Head head = in.head(b, h);
      const auto y = steps_of(out, b, h), last = state_of(final_states, b, h);
      forward(head, y, last, work.get());
    }
  });
}

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
    const Scratch work(in.room(backward_matrices)), states(starts);
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
