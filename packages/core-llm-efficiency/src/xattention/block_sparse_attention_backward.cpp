#include <core/isa.hpp>

#include <algorithm>
#include <core_llm_efficiency/xattention.hpp>
#include <utility>

#include "tile.hpp"

namespace core_llm_efficiency {
namespace {
constexpr std::int64_t columns_of_tile = 128;  // at most `deepest`

/// The rows of a matrix as a right factor, twice: as [rows / lanes][width][lanes], of which a panel holds 16 rows, and as
/// [width / lanes][rows][lanes], of which a panel holds 16 columns.
struct Packed {
  std::int64_t rows, width;  // rows: rounded up to lanes
  std::unique_ptr<float[]> by_rows, by_columns;
  Packed(std::int64_t n, std::int64_t width) : rows(round_up(n, lanes)), width(width) {
    const auto room = [&](std::int64_t columns) {
      const std::int64_t size = core::checked_mul(rows, columns, "block_sparse_attention_backward: scratch");
      return std::unique_ptr<float[]>(new float[static_cast<std::size_t>(size)]);
    };
    by_rows = room(width), by_columns = room(round_up(width, lanes));
  }
};

/// Packs rows [16 p, 16 p + 16) of x, zero past the last row.
void pack(const Packed* to, Rows x, std::int64_t n, std::int64_t p) {
  const std::int64_t first = p * lanes, count = std::min<std::int64_t>(lanes, n - first);
  float* const rows = to->by_rows.get() + first * to->width;
  for (std::int64_t c = 0; c < to->width; ++c)
    for (std::int64_t j = 0; j < lanes; ++j) rows[c * lanes + j] = j < count ? x.data[(first + j) * x.row + c * x.col] : 0.f;
  for (std::int64_t c = 0; c < to->width; c += lanes) {
    float* const columns = to->by_columns.get() + (c * to->rows) + first * lanes;
    const std::int64_t wide = std::min<std::int64_t>(lanes, to->width - c);
    for (std::int64_t i = 0; i < lanes; ++i)
      for (std::int64_t j = 0; j < lanes; ++j)
        columns[i * lanes + j] = i < count && j < wide ? x.data[(first + i) * x.row + (c + j) * x.col] : 0.f;
  }
}

void pack_all(const Packed& to, Rows x, std::int64_t n) {
  core::parallel_for(to.rows / lanes, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) core::multiversion<&pack>(&to, x, n, p);
  });
}

/// What the tasks of one query head share.
struct Head {
  std::int64_t n, m, d, e, block, offset;  // offset: keys before query 0, or m where not causal
  bool causal, wide;
  float scale;
  const Packed *q, *k, *v, *grad_out;
  const float *lse, *delta;  // [n padded]: lse is infinite where no key is seen
  const bool* mask;
  std::int64_t mask_row, mask_col;
};

/// Rows of a left factor, in pieces of `deepest` columns that lie `piece` floats apart.
struct Left {
  float* data;
  std::int64_t width, piece;
  void fill(Rows x, float factor, std::int64_t first, std::int64_t count, std::int64_t rows) const {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < width; ++c)
        data[c / deepest * piece + r * row_step + c % deepest] = r < count ? factor * x.data[(first + r) * x.row + c * x.col] : 0.f;
  }
};

constexpr float ones[rows_of_tall_tile] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/// c[i][j] = left[row + i] . rows[first + j], j < columns.
template <int R>
inline void inner(bool wide, const Left& left, std::int64_t row, const Packed& right, std::int64_t first, std::int64_t columns, float* c) {
  if (left.width == 0)
    for (int i = 0; i < R; ++i) std::fill_n(c + i * row_step, columns, 0.f);
  const float* a = left.data + row * row_step;
  for (std::int64_t x = 0; x < left.width; x += deepest, a += left.piece) {
    const float* const b = right.by_rows.get() + first * left.width + x * lanes;
    const std::int64_t depth = std::min(deepest, left.width - x);
    if (x == 0)
      multiply_panels<R, false>(wide, columns / lanes, depth, a, b, left.width * lanes, c, row_step, ones);
    else
      multiply_panels<R, true>(wide, columns / lanes, depth, a, b, left.width * lanes, c, row_step, ones);
  }
}

/// c[i] += weights[i] . columns of right, over rows [first, first + depth).
template <int R>
inline void outer(bool wide, const float* weights, const Packed& right, std::int64_t first, std::int64_t depth, float* c) {
  const std::int64_t width = round_up(right.width, lanes);
  multiply_panels<R, true>(wide, width / lanes, depth, weights, right.by_columns.get() + first * lanes, right.rows * lanes, c, width, ones);
}

/// p = exp(p - lse) and ds = p (dp - delta), elementwise.
inline void soften(std::int64_t count, float* __restrict p, float* __restrict ds, const float* __restrict lse, std::int64_t step,
                   const float* __restrict delta) {
  for (std::int64_t j = 0; j < count; ++j) {
    const float y = p[j] - lse[j * step], low = y < lowest ? lowest : y;
    p[j] = low > -lowest ? -lowest : low;
  }
  for (std::int64_t j = 0; j < count; ++j) p[j] = exp_clamped(p[j]);
  for (std::int64_t j = 0; j < count; ++j) ds[j] = p[j] * (ds[j] - delta[j * step]);
}

/// Which block of rows a task does, and where its results go.
struct Task {
  std::int64_t at;
  Left a, b;  // of queries: scaled q and grad_out; of keys: scaled k and v
  float *p, *ds, *first, *second;
};

/// The gradients of one block of queries (first: grad_q) or of keys (first: grad_k, second: grad_v), added to. Rows are
/// that block's, columns the other side's.
template <bool Keys>
void differentiate(const Head* shared, const Task* task) {
  const Head& s = *shared;
  const Task& t = *task;
  const std::int64_t rows_end = Keys ? s.m : s.n, columns_end = Keys ? s.n : s.m;
  const std::int64_t first = t.at * s.block, count = std::min(s.block, rows_end - first);
  const Packed &x = Keys ? *s.q : *s.k, &y = Keys ? *s.grad_out : *s.v;
  const std::int64_t width = round_up(s.d, lanes), value_width = round_up(s.e, lanes);
  for (std::int64_t other = 0; other * s.block < columns_end; ++other) {
    if (!(Keys ? s.mask[other * s.mask_row + t.at * s.mask_col] : s.mask[t.at * s.mask_row + other * s.mask_col])) continue;
    const std::int64_t end = std::min((other + 1) * s.block, columns_end);
    for (std::int64_t column = other * s.block; column < end; column += columns_of_tile) {
      const std::int64_t columns = std::min(columns_of_tile, end - column), padded = round_up(columns, lanes);
      for (std::int64_t r = 0; r < count;) {
        const int height = tall_rows(count - r);
        const std::int64_t row = first + r, last = std::min<std::int64_t>(row + height, first + count) - 1;
        const bool seen = !s.causal || (Keys ? row <= s.offset + column + columns - 1 : column <= s.offset + last);
        if (seen)
          with_tall_rows(height, [&]<int R> {
            inner<R>(s.wide, t.a, r, x, column, padded, t.p);
            inner<R>(s.wide, t.b, r, y, column, padded, t.ds);
            for (int i = 0; i < R; ++i) {
              float* const p = t.p + i * row_step;
              // of keys, columns before the first query that sees the row; of queries, from the first key not seen
              const std::int64_t edge =
                  s.causal ? std::clamp<std::int64_t>(Keys ? row + i - s.offset - column : s.offset + row + i + 1 - column, 0, columns)
                  : Keys   ? 0
                           : columns;
              if constexpr (Keys)
                std::fill(p, p + edge, minus_infinity);
              else
                std::fill(p + edge, p + padded, minus_infinity);
              if constexpr (Keys)
                soften(padded, p, t.ds + i * row_step, s.lse + column, 1, s.delta + column);
              else
                soften(padded, p, t.ds + i * row_step, s.lse + std::min(row + i, s.n - 1), 0, s.delta + std::min(row + i, s.n - 1));
            }
            outer<R>(s.wide, t.ds, x, column, columns, t.first + r * width);
            if constexpr (Keys) outer<R>(s.wide, t.p, y, column, columns, t.second + r * value_width);
          });
        r += height;
      }
    }
  }
}

/// Adds factor times a block of rows to x, or sets it.
void store(const float* from, std::int64_t width, float factor, bool add, float* to, std::int64_t row, std::int64_t col, std::int64_t count,
           std::int64_t columns) {
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      float& x = to[r * row + c * col];
      x = (add ? x : 0.f) + factor * from[r * width + c];
    }
}
}  // namespace

void block_sparse_attention_backward(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k, core::Tensor<const float, 4> v,
                                     core::Tensor<const bool, 4> mask, std::int64_t block, double scale, bool causal,
                                     core::Tensor<const float, 4> out, core::Tensor<const float, 3> lse,
                                     core::Tensor<const float, 4> grad_out, std::optional<core::Tensor<const float, 3>> grad_lse,
                                     core::Tensor<float, 4> grad_q, core::Tensor<float, 4> grad_k, core::Tensor<float, 4> grad_v) {
  const char* op = "block_sparse_attention_backward";
  const auto [batch, heads, n, d] = q.shape;
  const std::int64_t groups = k.shape[1], m = k.shape[2], e = v.shape[3];
  check_blocks(op, n, m, block, causal, "mask", mask.shape[2], mask.shape[3]);
  check_heads(op, heads, groups, scale);
  const std::int64_t share = groups ? heads / groups : 0, queries = n, width = d, values = e;
  const Packed packed_q(n, d), packed_grad(n, e), packed_k(m, d), packed_v(m, e);
  const Scratch rows(core::checked_mul(2, packed_q.rows, "block_sparse_attention_backward: scratch"));
  const std::int64_t tall = round_up(block, 12), wide = round_up(d, lanes), wide_value = round_up(e, lanes);
  const std::int64_t pieces = ceil_div(d, deepest) + ceil_div(e, deepest);
  const std::int64_t work = core::checked_mul(tall, pieces * row_step + wide + wide_value, "block_sparse_attention_backward: scratch") +
                            2 * rows_of_tall_tile * row_step;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t g = 0; g < groups; ++g) {
      pack_all(packed_k, head(k, b, g), m);
      pack_all(packed_v, head(v, b, g), m);
      if (share == 0 || n == 0)
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t c = 0; c < d; ++c) grad_k(b, g, i, c) = 0;
          for (std::int64_t c = 0; c < e; ++c) grad_v(b, g, i, c) = 0;
        }
      for (std::int64_t h = g * share; h < (g + 1) * share; ++h) {
        pack_all(packed_q, head(q, b, h), n);
        pack_all(packed_grad, head(grad_out, b, h), n);
        float *const lses = rows.get(), *const deltas = lses + packed_q.rows;
        for (std::int64_t i = 0; i < packed_q.rows; ++i) {
          const bool inside = i < queries;
          lses[i] = inside && lse(b, h, i) != minus_infinity ? lse(b, h, i) : -minus_infinity;
          deltas[i] = inside && grad_lse ? -(*grad_lse)(b, h, i) : 0.f;
          for (std::int64_t c = 0; inside && c < values; ++c) deltas[i] += grad_out(b, h, i, c) * out(b, h, i, c);
        }
        const Head s{n,
                     m,
                     d,
                     e,
                     block,
                     m - n,
                     causal,
                     core::isa() == core::Isa::v4,
                     static_cast<float>(scale),
                     &packed_q,
                     &packed_k,
                     &packed_v,
                     &packed_grad,
                     lses,
                     deltas,
                     &mask(b, h, 0, 0),
                     mask.stride[2],
                     mask.stride[3]};
        const std::int64_t q_blocks = mask.shape[2], k_blocks = mask.shape[3];
        core::parallel_for(q_blocks + k_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
          const Scratch scratch(work);
          for (std::int64_t at = begin; at < end; ++at) {
            const bool of_keys = at >= q_blocks;
            Task t{of_keys ? at - q_blocks : q_blocks - 1 - at, {}, {}, nullptr, nullptr, nullptr, nullptr};
            float* room = scratch.get();
            const auto take = [&](std::int64_t size) { return std::exchange(room, room + size); };
            t.a = {take(ceil_div(width, deepest) * tall * row_step), width, tall * row_step};
            t.b = {take(ceil_div(values, deepest) * tall * row_step), values, tall * row_step};
            t.p = take(rows_of_tall_tile * row_step), t.ds = take(rows_of_tall_tile * row_step);
            t.first = take(tall * wide), t.second = take(tall * wide_value);
            std::fill(t.first, room, 0.f);
            const std::int64_t first = t.at * block, count = std::min(block, (of_keys ? s.m : s.n) - first);
            t.a.fill(of_keys ? head(k, b, g) : head(q, b, h), s.scale, first, count, tall);
            t.b.fill(of_keys ? head(v, b, g) : head(grad_out, b, h), 1.f, first, count, tall);
            if (of_keys) {
              core::multiversion<&differentiate<true>>(&s, const_cast<const Task*>(&t));
              const bool add = h % share != 0;
              store(t.first, wide, s.scale, add, &grad_k(b, g, first, 0), grad_k.stride[2], grad_k.stride[3], count, width);
              store(t.second, wide_value, 1.f, add, &grad_v(b, g, first, 0), grad_v.stride[2], grad_v.stride[3], count, values);
            } else {
              core::multiversion<&differentiate<false>>(&s, const_cast<const Task*>(&t));
              store(t.first, wide, s.scale, false, &grad_q(b, h, first, 0), grad_q.stride[2], grad_q.stride[3], count, width);
            }
          }
        });
      }
    }
}
}  // namespace core_llm_efficiency
