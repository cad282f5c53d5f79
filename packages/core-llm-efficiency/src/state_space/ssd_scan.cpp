// Mamba-2's scan on the CPU. Heads that share B and C go through the chunks side by side: C B^T and the rows of B and C are made
// once for all of them. A head's state lies as the panels of a right factor, [p / 16][n][16], and is added to where it lies.
#include "ssd_chunks.hpp"

namespace core_llm_efficiency {
namespace {
using namespace ssd;
constexpr std::int64_t together = 8;  // heads that go side by side at most

std::int64_t panels(std::int64_t columns) { return ceil_div(columns, lanes); }
/// A state's size; its rows are rounded up to 4, its columns to 16.
std::int64_t state_size(std::int64_t p, std::int64_t n) { return round_up(n, 4) * round_up(p, lanes); }

void load_state(const Matrix<const float>& m, std::int64_t p, std::int64_t n, float* state) {
  const std::int64_t rows = round_up(n, 4);
  for (std::int64_t j = 0; j < round_up(p, lanes); ++j)
    for (std::int64_t i = 0; i < rows; ++i)
      state[(j / lanes * rows + i) * lanes + j % lanes] = m.data && i < n && j < p ? m.data[j * m.row + i * m.col] : 0.f;
}
void store_state(const float* state, std::int64_t p, std::int64_t n, const Matrix<float>& m) {
  for (std::int64_t j = 0; j < p; ++j)
    for (std::int64_t i = 0; i < n; ++i) m.data[j * m.row + i * m.col] = state[(j / lanes * round_up(n, 4) + i) * lanes + j % lanes];
}

/// The matrices of a chunk. Rows of a left factor lie `row_step` apart.
struct Work {
  float *C, *B, *B_turned;                      // of the group: rows [step][n], panels of B^T, rows [n][step]
  float *scores, *weights, *x, *written, *out;  // C B^T; then of a head: times the decays, panels of dt x, also decayed to the end
  bool wide;
  static constexpr std::int64_t square = chunk * row_step;
  static std::int64_t size(std::int64_t p, std::int64_t n) {
    return 4 * square + round_up(n, 4) * row_step + chunk * n + 2 * chunk * round_up(p, lanes);
  }
  Work(float* memory, std::int64_t p, std::int64_t n) : wide(core::isa() == core::Isa::v4) {
    C = memory, scores = C + square, weights = scores + square, out = weights + square, B_turned = out + square;
    B = B_turned + round_up(n, 4) * row_step, x = B + chunk * n, written = x + chunk * round_up(p, lanes);
  }
};

/// Calls f.template operator()<R>(first row) for tiles of R = 4, 8 or 12 of `rows` rows.
template <class F>
inline void each_tile(std::int64_t rows, F f) {
  for (std::int64_t i = 0; i < rows;) {
    const int height = tile_rows(rows - i);
    with_rows(height, [&]<int R> { f.template operator()<R>(i); });
    i += height;
  }
}

void share(const Head* s, std::int64_t first, std::int64_t count, const Work* w) {
  rows_of(after(s->C, first), count, s->n, w->C);
  rows_of(turned(after(s->B, first)), s->n, count, w->B_turned);
  panels_of(turned(after(s->B, first)), s->n, count, w->B);
  each_tile(count, [&]<int R>(std::int64_t i) {  // up to the diagonal
    constexpr float none[R] = {};
    multiply_panels<R, false>(w->wide, panels(std::min(count, i + R)), s->n, w->C + i * row_step, w->B, s->n * lanes,
                              w->scores + i * row_step, row_step, none);
  });
}

void step(const Head* s, const Chunk* c, const Work* w, const Matrix<float>* out, float* state) {
  const std::int64_t count = c->count, p = s->p, n = s->n, rows = round_up(n, 4);
  const Matrix<const float> from = after(s->x, c->first);
  for (std::int64_t first = 0, at = 0; first < p; first += lanes)
    for (std::int64_t t = 0; t < count; ++t, at += lanes) {
      const float *row = from.data + t * from.row + first * from.col, dt = c->dt[t], to_end = c->to_end[t];
      float* const x = w->x + at;
      if (first + lanes <= p)
        for (int j = 0; j < lanes; ++j) x[j] = dt * row[j * from.col];
      else
        for (int j = 0; j < lanes; ++j) x[j] = first + j < p ? dt * row[j * from.col] : 0.f;
      for (int j = 0; j < lanes; ++j) w->written[at + j] = to_end * x[j];
    }
  each_tile(count, [&]<int R>(std::int64_t i) {
    const std::int64_t depth = std::min(count, i + R);
    float* const weights = w->weights + i * row_step;
    for (int r = 0; r < R; ++r)
      for (std::int64_t j = 0; j < depth; ++j)
        weights[r * row_step + j] = w->scores[(i + r) * row_step + j] * c->between[(i + r) * chunk + j];
    float* const y = w->out + i * row_step;
    multiply_panels<R, false>(w->wide, panels(p), n, w->C + i * row_step, state, rows * lanes, y, row_step, c->since_start + i);
    multiply_panels<R, true>(w->wide, panels(p), depth, weights, w->x, count * lanes, y, row_step, c->since_start + i);
  });
  for (std::int64_t t = 0; t < count; ++t)
    for (std::int64_t j = 0; j < p; ++j) out->data[(c->first + t) * out->row + j * out->col] = w->out[t * row_step + j];
  float keep[rows_of_tile];
  std::fill_n(keep, rows_of_tile, c->whole());
  for (std::int64_t panel = 0; panel < panels(p); ++panel)
    each_tile(n, [&]<int R>(std::int64_t i) {
      multiply_block<R, 1, true>(count, w->B_turned + i * row_step, w->written + panel * count * lanes, 0,
                                 state + (panel * rows + i) * lanes, lanes, keep);
    });
}
}  // namespace

void ssd_scan(core::Tensor<const float, 4> x, core::Tensor<const float, 3> dt, core::Tensor<const float, 1> A,
              core::Tensor<const float, 4> B, core::Tensor<const float, 4> C, std::optional<core::Tensor<const float, 4>> initial_states,
              std::optional<core::Tensor<const std::int32_t, 2>> seq_idx, core::Tensor<float, 4> out, core::Tensor<float, 4> final_states) {
  const Inputs in{x, B, C, dt, A, initial_states, seq_idx};
  check_ssd("ssd_scan", in.heads, in.groups, in.p, in.n);
  if (in.n == 0) {
    for (std::int64_t i = 0; i < out.numel(); ++i)
      out(i / in.p / in.heads / in.steps, i / in.p / in.heads % in.steps, i / in.p % in.heads, i % in.p) = 0;
    return;
  }
  const std::int64_t all = in.batch * in.heads, grain = std::min(ceil_div(all, core::num_threads()), together);
  core::parallel_for(all, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t of_state = state_size(in.p, in.n);
    const Scratch memory(Work::size(in.p, in.n) + together * of_state);
    const Work work(memory.get(), in.p, in.n);
    float* const states = memory.get() + Work::size(in.p, in.n);
    for (std::int64_t i = begin, next; i < end; i = next) {
      const std::int64_t of_group = in.heads / in.groups;
      next = std::min({end, i + together, (i / of_group + 1) * of_group});  // heads of one group
      const auto each = [&](auto f) {
        for (std::int64_t k = i; k < next; ++k)
          f(in.head(k / in.heads, k % in.heads), k / in.heads, k % in.heads, states + (k - i) * of_state);
      };
      each([&](const Head& s, auto, auto, float* state) { load_state(s.initial, s.p, s.n, state); });
      const Head any = in.head(i / in.heads, i % in.heads);
      for (std::int64_t first = 0; first < in.steps; first += chunk) {
        core::multiversion<&share>(&any, first, std::min(chunk, in.steps - first), &work);
        each([&](const Head& s, std::int64_t b, std::int64_t h, float* state) {
          Chunk c;
          enter(s, first, c);
          const auto to = steps_of(out, b, h);
          core::multiversion<&step>(&s, static_cast<const Chunk*>(&c), &work, &to, state);
        });
      }
      each(
          [&](const Head& s, std::int64_t b, std::int64_t h, float* state) { store_state(state, s.p, s.n, state_of(final_states, b, h)); });
    }
  });
}
}  // namespace core_llm_efficiency
