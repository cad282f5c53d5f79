// Matrix products whose operands arrive in pieces that the caller packs, gathers or transposes while they are cached:
// strips of the left one's rows and panels of the right one's columns, as many as a tile of sums in registers has.
#pragma once
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core/tensor.hpp>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

namespace core_diffusion::products {
using std::int64_t;

/// A piece of a strip by rows has this much of the depth, so that the tile's operands stay in the first cache.
constexpr int64_t depth_piece = 384, row_step = depth_piece + 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Uninitialised scratch, aligned to cache lines.
class Scratch {
 public:
  Scratch(int64_t rows, int64_t columns)
      : data_(static_cast<float*>(::operator new(
            sizeof(float) * static_cast<std::size_t>(core::checked_mul(rows, columns, "expert_ffn: scratch")), alignment))) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, alignment); }
  };
  std::unique_ptr<float, Free> data_;
};

/// The tile of sums: its rows are a strip, its lanes a panel.
struct Tile {
  int64_t rows, lanes;
};
inline Tile tile() { return core::isa() == core::Isa::v4 ? Tile{12, 32} : Tile{6, 16}; }

/// Where a product goes: element (i, j) of panel p is data[i * row + j * col + p * panel].
struct Target {
  float* data;
  int64_t row, col, panel;
};

struct Job {
  int64_t depth;
  const float *a, *b;
  float* c;
  int64_t row, col, rows, width;
  bool add;
};

/// c = a b or c += a b for R rows and L lanes, or the first half of the lanes. The loop over lanes is the outermost one
/// and is what the compiler vectorises, so that all sums stay in registers.
template <int R, int L, bool whole, bool by_depth>
void multiply_tile(const Job* job) {
  constexpr int half = L / 2, lanes = whole ? L : half;
  constexpr int64_t a_row = by_depth ? 1 : row_step, a_depth = by_depth ? R : 1;
  const Job& p = *job;
  const float *a = p.a, *b = p.b;
  float sums[R][lanes];
  for (int j = 0; j < half; ++j) {
    float low[R], high[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) low[i] = high[i] = 0;
    int64_t k = 0;
    do {  // a test before the first pass would keep the compiler from vectorising the loop over j
      const float x = b[k * L + j], y = whole ? b[k * L + half + j] : 0.f;
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) {
        low[i] += a[i * a_row + k * a_depth] * x;
        if (whole) high[i] += a[i * a_row + k * a_depth] * y;
      }
    } while (++k < p.depth);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      sums[i][j] = low[i];
      if (whole) sums[i][half + j] = high[i];
    }
  }
  if (p.col == 1 && p.width == lanes) {
    for (int64_t i = 0; i < p.rows; ++i)
      for (int j = 0; j < lanes; ++j) p.c[i * p.row + j] = (p.add ? p.c[i * p.row + j] : 0.f) + sums[i][j];
    return;
  }
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t j = 0; j < p.width; ++j) {
      float& c = p.c[i * p.row + j * p.col];
      c = (p.add ? c : 0.f) + sums[i][j];
    }
}

template <int R, int L, bool by_depth>
void multiply_tile(const Job& job) {
  if constexpr (by_depth)
    core::multiversion<&multiply_tile<R, L, true, true>>(&job);
  else if (job.width <= L / 2)
    core::multiversion<&multiply_tile<R, L, false, false>>(&job);
  else if (job.rows > R * 2 / 3)
    core::multiversion<&multiply_tile<R, L, true, false>>(&job);
  else if (job.rows > R / 3)
    core::multiversion<&multiply_tile<R * 2 / 3, L, true, false>>(&job);
  else
    core::multiversion<&multiply_tile<R / 3, L, true, false>>(&job);
}

/// c (=, +=) a b. The operand `on_the_way` (true: a) is packed piece by piece by the thread that multiplies it, with all
/// of the other one, which is packed before: so each thread reads it once.
///
/// strip(i, k, n, room) returns rows i.. of a at depths k .. k + n - 1, as [rows][row_step], or [n][rows] if by_depth;
/// panel(j, k, n, room) columns j.. of b as [n][lanes]; in `room` or where they lie so already. Past the last row they
/// may hold anything, past the last column too. by_depth takes the depth in one piece.
template <bool by_depth, bool on_the_way, class Strip, class Panel>
void multiply(int64_t rows, int64_t columns, int64_t depth, Strip&& strip, Panel&& panel, Target c, bool add = false) {
  const Tile t = tile();
  const int64_t strips = ceil_div(rows, t.rows), panels = ceil_div(columns, t.lanes), most = by_depth ? depth : depth_piece;
  const int64_t strip_size = t.rows * (by_depth ? round_up(depth, 16) : row_step), panel_size = t.lanes * most;
  const int64_t before = on_the_way ? panels : strips, outer = on_the_way ? strips : panels;
  const Scratch all(before, on_the_way ? panel_size : strip_size);
  std::vector<const float*> ready(static_cast<std::size_t>(before));
  for (int64_t i = 0; i < rows && depth == 0 && !add; ++i)
    for (int64_t j = 0; j < columns; ++j) c.data[i * c.row + j / t.lanes * c.panel + j % t.lanes * c.col] = 0;
  for (int64_t at = 0; at < depth; at += most) {
    const int64_t n = std::min(most, depth - at);
    core::parallel_for(before, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        ready[static_cast<std::size_t>(i)] =
            on_the_way ? panel(i * t.lanes, at, n, all.get() + i * panel_size) : strip(i * t.rows, at, n, all.get() + i * strip_size);
    });
    core::parallel_for(outer, 1, [&](int64_t begin, int64_t end) {
      const Scratch mine(1, on_the_way ? strip_size : panel_size);
      for (int64_t o = begin; o < end; ++o) {
        const float* here = on_the_way ? strip(o * t.rows, at, n, mine.get()) : panel(o * t.lanes, at, n, mine.get());
        for (int64_t i = 0; i < before; ++i) {
          const float* there = ready[static_cast<std::size_t>(i)];
          const int64_t s = on_the_way ? o : i, p = on_the_way ? i : o;
          const Job job{n,
                        on_the_way ? here : there,
                        on_the_way ? there : here,
                        c.data + s * t.rows * c.row + p * c.panel,
                        c.row,
                        c.col,
                        std::min(t.rows, rows - s * t.rows),
                        std::min(t.lanes, columns - p * t.lanes),
                        add || at > 0};
          t.lanes == 32 ? multiply_tile<12, 32, by_depth>(job) : multiply_tile<6, 16, by_depth>(job);
        }
      }
    });
  }
}

/// to[j][i] = from[i][j] for `rows` by `columns` of from; both contiguous along their second axis.
inline void transpose(int64_t rows, int64_t columns, const float* from, int64_t from_row, float* to, int64_t to_row) {
  constexpr int side = 16;
  float in[side * side], out[side * side];
  for (int64_t i = 0; i < rows; i += side)
    for (int64_t j = 0; j < columns; j += side) {
      const float* source = from + i * from_row + j;
      float* goal = to + j * to_row + i;
      if (rows - i < side || columns - j < side) {
        for (int64_t r = 0; r < std::min<int64_t>(side, rows - i); ++r)
          for (int64_t c = 0; c < std::min<int64_t>(side, columns - j); ++c) goal[c * to_row + r] = source[r * from_row + c];
        continue;
      }
      for (int r = 0; r < side; ++r)
        for (int c = 0; c < side; ++c) in[r * side + c] = source[r * from_row + c];
      for (int r = 0; r < side; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < side; ++c) out[c * side + r] = in[r * side + c];
      for (int c = 0; c < side; ++c)
        for (int r = 0; r < side; ++r) goal[c * to_row + r] = out[c * side + r];
    }
}
}  // namespace core_diffusion::products
