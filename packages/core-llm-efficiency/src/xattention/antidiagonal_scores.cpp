#include <core/isa.hpp>

#include <algorithm>
#include <core_llm_efficiency/xattention.hpp>

#include "tile.hpp"

namespace core_llm_efficiency {
namespace {
/// What the tasks of one key head share.
struct Keys {
  std::int64_t n, m, d, stride, block, k_tiles, offset;
  bool causal;
  float scale;
  const float* packed;  // [k_tiles / lanes][stride d][lanes]
};

/// Packs key tiles [16 p, 16 p + 16): column j holds the keys of tile 16 p + j in order, zero past the last key.
void pack(const Keys* s, Rows k, float* out, std::int64_t p) {
  float* panel = out + p * lanes * s->stride * s->d;
  for (std::int64_t r = 0; r < s->stride; ++r)
    for (std::int64_t x = 0; x < s->d; ++x)
      for (std::int64_t j = 0; j < lanes; ++j) {
        const std::int64_t key = (p * lanes + j) * s->stride + r;
        panel[(r * s->d + x) * lanes + j] = key < s->m ? k.data[key * k.row + x * k.col] : 0.f;
      }
}

/// The scores of one query block. work: room for 12 rows of query tiles, in pieces of `deepest`, and of logits.
void score(const Keys* shared, Rows q, std::int64_t q_block, float* scores, std::int64_t step, float* work) {
  const Keys& s = *shared;
  const std::int64_t depth = s.stride * s.d, per_block = s.block / s.stride, width = round_up(s.k_tiles, lanes);
  const std::int64_t k_blocks = ceil_div(s.m, s.block);
  const std::int64_t begin = q_block * per_block, end = std::min(begin + per_block, ceil_div(s.n, s.stride));
  float* const tiles = work;
  float* const logits = work + ceil_div(depth, deepest) * rows_of_tile * row_step;
  for (std::int64_t b = 0; b < k_blocks; ++b) scores[b * step] = 0;
  for (std::int64_t i = begin; i < end;) {
    const int height = tile_rows(end - i);
    const int rows = static_cast<int>(std::min<std::int64_t>(height, end - i));
    for (std::int64_t r = 0; r < s.stride; ++r)
      for (std::int64_t x = 0; x < s.d; ++x)
        for (int j = 0; j < height; ++j) {
          const std::int64_t query = (i + j) * s.stride + s.stride - 1 - r, column = r * s.d + x;
          tiles[(column / deepest * rows_of_tile + j) * row_step + column % deepest] =
              query < s.n ? s.scale * q.data[query * q.row + x * q.col] : 0.f;
        }
    const auto seen = [&](std::int64_t row) {  // key tiles that start at or before the row's last query
      return s.causal ? (s.offset + std::min((row + 1) * s.stride, s.n) - 1) / s.stride + 1 : s.k_tiles;
    };
    const std::int64_t most = round_up(seen(i + rows - 1), lanes);
    with_rows(height, [&]<int R> {
      for (std::int64_t j = 0; j < most; j += lanes)
        multiply_deep<R>(depth, tiles, rows_of_tile * row_step, s.packed + j * depth, logits + j, width);
    });
    for (int r = 0; r < rows; ++r) {
      float* row = logits + r * width;
      const std::int64_t visible = seen(i + r), padded = round_up(visible, lanes);
      std::fill(row + visible, row + padded, minus_infinity);
      float sums[lanes] = {};
      const float top = row_max(row, padded);
      exp_row(row, padded, top == minus_infinity ? 0.f : top, 0.f, sums);
      float sum = 0;
      for (float x : sums) sum += x;
      for (std::int64_t b = 0; b * per_block < visible; ++b) {
        float mass[4] = {};  // four sums, since the compiler may not reorder one
        const std::int64_t last = std::min((b + 1) * per_block, visible);
        for (std::int64_t j = b * per_block; j < last; ++j) mass[j % 4] += row[j];
        scores[b * step] += ((mass[0] + mass[1]) + (mass[2] + mass[3])) / sum;
      }
    }
    i += rows;
  }
}
}  // namespace

void antidiagonal_scores(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k, std::int64_t stride, std::int64_t block,
                         double scale, bool causal, core::Tensor<float, 4> scores) {
  const char* op = "antidiagonal_scores";
  const auto [batch, heads, n, d] = q.shape;
  const std::int64_t groups = k.shape[1], m = k.shape[2];
  check_blocks(op, n, m, block, causal, "scores", scores.shape[2], scores.shape[3]);
  check_heads(op, heads, groups, scale);
  if (stride < 1 || block % stride)
    refuse(op, "stride", "a divisor of block = " + std::to_string(block) + ", got " + std::to_string(stride));
  if (scores.numel() == 0) return;
  const std::int64_t k_tiles = ceil_div(m, stride), width = round_up(k_tiles, lanes);
  const std::int64_t depth = core::checked_mul(stride, d, "antidiagonal_scores: scratch");
  const Scratch packed(core::checked_mul(width, depth, "antidiagonal_scores: scratch"));
  const Keys s{n, m, d, stride, block, k_tiles, m - n, causal, static_cast<float>(scale / static_cast<double>(stride)), packed.get()};
  const std::int64_t share = heads / groups, q_blocks = scores.shape[2];
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t g = 0; g < groups; ++g) {
      core::parallel_for(width / lanes, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) core::multiversion<&pack>(&s, head(k, b, g), packed.get(), p);
      });
      core::parallel_for(share * q_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        const Scratch work(core::checked_mul(rows_of_tile, ceil_div(depth, deepest) * row_step + width, "antidiagonal_scores: scratch"));
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t h = g * share + i % share, q_block = q_blocks - 1 - i / share;  // the longest first
          core::multiversion<&score>(&s, head(q, b, h), q_block, &scores(b, h, q_block, 0), scores.stride[3], work.get());
        }
      });
    }
}
}  // namespace core_llm_efficiency
