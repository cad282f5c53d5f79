#include <core/isa.hpp>

#include <algorithm>
#include <core_llm_efficiency/xattention.hpp>

#include "tile.hpp"

namespace core_llm_efficiency {
namespace {
constexpr std::int64_t keys_of_tile = 128;  // at most `deepest`

/// What the tasks of one key/value head share.
struct Head {
  std::int64_t n, m, d, e, e_pad, block, k_blocks, offset;  // offset: keys before query 0, or m where not causal
  bool causal, wide;
  float scale;
  const float *k, *v;  // k: [m / lanes][d][lanes], v: [e / lanes][m_pad][lanes]
  std::int64_t m_pad;
};

struct Task {
  Rows q;
  const bool* mask;
  std::int64_t mask_step;
  float* out;
  std::int64_t out_row, out_col;
  float* lse;
  std::int64_t lse_step;
  std::int64_t q_block;
};

/// Packs keys [16 p, 16 p + 16) of k and v, zero past the last key.
void pack(const Head* s, Rows k, Rows v, float* k_out, float* v_out, std::int64_t p) {
  const std::int64_t first = p * lanes, count = std::min<std::int64_t>(lanes, s->m - first);
  float* kp = k_out + first * s->d;
  for (std::int64_t x = 0; x < s->d; ++x)
    for (std::int64_t j = 0; j < lanes; ++j) kp[x * lanes + j] = j < count ? k.data[(first + j) * k.row + x * k.col] : 0.f;
  for (std::int64_t x = 0; x < s->e_pad; x += lanes) {
    float* vp = v_out + x * s->m_pad + first * lanes;
    const std::int64_t width = std::min<std::int64_t>(lanes, s->e - x);
    for (std::int64_t i = 0; i < lanes; ++i)
      for (std::int64_t j = 0; j < lanes; ++j)
        vp[i * lanes + j] = i < count && j < width ? v.data[(first + i) * v.row + (x + j) * v.col] : 0.f;
  }
}

/// One tile: R queries by up to 128 keys. pos: position of the tile's first query.
template <int R>
inline void attend_tile(const Head& s, const float* q, std::int64_t q_piece, std::int64_t key, std::int64_t keys, std::int64_t pos,
                        float* logits, float* top, float* sums, float* out) {
  const std::int64_t padded = round_up(keys, lanes);
  float keep[R];
  std::fill_n(keep, R, 1.f);
  for (std::int64_t x = 0; x < s.d; x += deepest, q += q_piece) {
    const float* k = s.k + key * s.d + x * lanes;
    const std::int64_t depth = std::min(deepest, s.d - x);
    if (x == 0)
      multiply_panels<R, false>(s.wide, padded / lanes, depth, q, k, s.d * lanes, logits, row_step, keep);
    else
      multiply_panels<R, true>(s.wide, padded / lanes, depth, q, k, s.d * lanes, logits, row_step, keep);
  }
  const std::int64_t seen = pos - key + 1;  // keys that row 0 sees
  if (seen < padded || keys < padded)
    for (int i = 0; i < R; ++i)
      for (std::int64_t j = std::clamp<std::int64_t>(seen + i, 0, keys); j < padded; ++j) logits[i * row_step + j] = minus_infinity;
  for (int i = 0; i < R; ++i) {
    float* row = logits + i * row_step;
    const float before = top[i], now = std::max(before, row_max(row, padded));
    const float base = now == minus_infinity ? 0.f : now;
    keep[i] = before == now ? 1.f : exp_clamped(std::max(before - base, lowest));
    top[i] = now;
    exp_row(row, padded, base, keep[i], sums + i * lanes);
  }
  multiply_panels<R, true>(s.wide, s.e_pad / lanes, keys, logits, s.v + key * lanes, s.m_pad * lanes, out, s.e_pad, keep);
}

/// One query block. work: room for work_size() floats.
void attend(const Head* shared, const Task* task, float* work) {
  const Head& s = *shared;
  const Task& t = *task;
  const std::int64_t first = t.q_block * s.block, count = std::min(s.block, s.n - first), rows = round_up(s.block, 12);
  float* q = work;
  float* out = q + ceil_div(s.d, deepest) * rows * row_step;
  float* top = out + rows * s.e_pad;
  float* sums = top + rows;
  float* logits = sums + rows * lanes;
  const std::int64_t q_piece = rows * row_step;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t x = 0; x < s.d; ++x)
      q[x / deepest * q_piece + r * row_step + x % deepest] = r < count ? s.scale * t.q.data[(first + r) * t.q.row + x * t.q.col] : 0.f;
  std::fill_n(out, rows * s.e_pad, 0.f);
  std::fill_n(top, rows, minus_infinity);
  std::fill_n(sums, rows * lanes, 0.f);

  for (std::int64_t b = 0; b < s.k_blocks; ++b) {
    if (!t.mask[b * t.mask_step]) continue;
    const std::int64_t end = std::min((b + 1) * s.block, s.m);
    for (std::int64_t key = b * s.block; key < end; key += keys_of_tile)
      for (std::int64_t r = 0; r < count;) {
        const int height = tall_rows(count - r);
        const std::int64_t pos = s.causal ? s.offset + first + r : s.m;
        const std::int64_t keys = std::min({keys_of_tile, end - key, pos + std::min<std::int64_t>(height, count - r) - key});
        if (keys > 0)
          with_tall_rows(height, [&]<int R> {
            attend_tile<R>(s, q + r * row_step, q_piece, key, keys, pos, logits, top + r, sums + r * lanes, out + r * s.e_pad);
          });
        r += height;
      }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    float sum = 0;
    for (int j = 0; j < lanes; ++j) sum += sums[r * lanes + j];
    const float inverse = sum == 0 ? 0.f : 1.f / sum;
    for (std::int64_t x = 0; x < s.e; ++x) t.out[(first + r) * t.out_row + x * t.out_col] = inverse * out[r * s.e_pad + x];
    if (t.lse) t.lse[(first + r) * t.lse_step] = sum == 0 ? minus_infinity : top[r] + std::log(sum);
  }
}

std::int64_t work_size(const Head& s) {
  const std::int64_t rows = round_up(s.block, 12);
  return core::checked_mul(rows, ceil_div(s.d, deepest) * row_step + s.e_pad + 1 + lanes, "block_sparse_attention: scratch") +
         rows_of_tall_tile * row_step;
}
}  // namespace

void block_sparse_attention(core::Tensor<const float, 4> q, core::Tensor<const float, 4> k, core::Tensor<const float, 4> v,
                            core::Tensor<const bool, 4> mask, std::int64_t block, double scale, bool causal, core::Tensor<float, 4> out,
                            std::optional<core::Tensor<float, 3>> lse) {
  const char* op = "block_sparse_attention";
  const auto [batch, heads, n, d] = q.shape;
  const std::int64_t groups = k.shape[1], m = k.shape[2], e = v.shape[3];
  check_blocks(op, n, m, block, causal, "mask", mask.shape[2], mask.shape[3]);
  check_heads(op, heads, groups, scale);
  if (batch == 0 || heads == 0 || n == 0) return;
  Head s{n,
         m,
         d,
         e,
         round_up(e, lanes),
         block,
         mask.shape[3],
         m - n,
         causal,
         core::isa() == core::Isa::v4,
         static_cast<float>(scale),
         nullptr,
         nullptr,
         round_up(m, lanes)};
  const Scratch packed_k(core::checked_mul(s.m_pad, d, "block_sparse_attention: scratch"));
  const Scratch packed_v(core::checked_mul(s.m_pad, s.e_pad, "block_sparse_attention: scratch"));
  s.k = packed_k.get(), s.v = packed_v.get();
  const std::int64_t work = work_size(s), share = heads / groups, q_blocks = mask.shape[2];
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t g = 0; g < groups; ++g) {
      core::parallel_for(s.m_pad / lanes, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p)
          core::multiversion<&pack>(const_cast<const Head*>(&s), head(k, b, g), head(v, b, g), packed_k.get(), packed_v.get(), p);
      });
      core::parallel_for(share * q_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        const Scratch scratch(work);
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t h = g * share + i % share, q_block = q_blocks - 1 - i / share;  // the longest first
          const Task t{head(q, b, h),
                       &mask(b, h, q_block, 0),
                       mask.stride[3],
                       out.data + b * out.stride[0] + h * out.stride[1],
                       out.stride[2],
                       out.stride[3],
                       lse ? lse->data + b * lse->stride[0] + h * lse->stride[1] : nullptr,
                       lse ? lse->stride[2] : 0,
                       q_block};
          core::multiversion<&attend>(const_cast<const Head*>(&s), &t, scratch.get());
        }
      });
    }
}
}  // namespace core_llm_efficiency
