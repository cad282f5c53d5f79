#include <core/isa.hpp>

#include <core_llm_efficiency/vidkv.hpp>
#include <cstring>

#include "pack.hpp"

namespace core_llm_efficiency {
namespace {
constexpr std::int64_t chunk = 256;   // tokens whose logits are held at once
constexpr std::int64_t share = 2048;  // tokens of a task
static_assert(chunk <= deepest);

/// One run of values in place: row t of codes, and its channels' scales.
struct Values {
  const std::uint8_t* codes;
  std::int64_t row, col, bytes, digits;  // digits of a byte: 4 or 5
  const core::float16* scales;
  std::int64_t scale_run, scale_step;
  const core::float16* zeros;  // null where there are three levels
  std::int64_t zero_run, zero_step;
};

/// What one task reads. Packed tokens [begin, end), then recent ones [recent_begin, recent_end).
struct Task {
  std::int64_t d, e, c, group, begin, end, two, recent_begin, recent_end, n;
  const float* q;  // [4][d]: scaled, transformed, the channels in packed order
  const std::int32_t* planes;
  std::int64_t plane_row, plane_col;
  const core::float16 *scales, *zeros;
  std::int64_t scale_run, scale_step, zero_run, zero_step;
  Values v2, v3;
  const float* plain_q;  // [4][d]: scaled, the channels in order
  Rows k, v;
  const bool* seen;
  std::int64_t seen_step;
};

struct Work {
  float *logits, *weights, *panel, *tile, *out, *top, *sums, *sum;
  std::int32_t* words;
  std::int64_t e_pad, width;
};

/// logits[i][t] = base[i] + sum_p bit(p, t) weights[i][p] for one word of tokens. The sums go through a local array, which
/// the compiler knows to be apart from what it reads.
template <int R>
void add_bits(std::int64_t count, const std::int32_t* words, const float* weights, const float* base, float* logits) {
  for (int half = 0; half < word; half += lanes) {
    float sums[R][lanes];
    std::int32_t bits[lanes];
    for (int j = 0; j < lanes; ++j) bits[j] = static_cast<std::int32_t>(1u << (half + j));
    for (int j = 0; j < lanes; ++j) {
      float sum[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) sum[i] = base[i];
      std::int64_t p = 0;
      do {
        const float one = words[p] & bits[j] ? 1.f : 0.f;
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sum[i] += weights[i * count + p] * one;
      } while (++p < count);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) sums[i][j] = sum[i];
    }
    for (int i = 0; i < R; ++i) std::copy_n(sums[i], lanes, logits + i * row_step + half);
  }
}

template <int R>
void packed_logits(const Task& s, const Work& w, std::int64_t first, std::int64_t count) {
  const std::int64_t planes = s.d + s.c, rest = s.d - s.c;
  float* const scale = w.tile;
  float* const zero = scale + s.d;
  float base[R] = {};
  for (std::int64_t t = 0; t < count; t += word) {
    if ((first + t) % s.group == 0) {
      const std::int64_t run = (first + t) / s.group;
      widen(s.scales + run * s.scale_run, s.scale_step, s.d, scale);
      widen(s.zeros + run * s.zero_run, s.zero_step, s.c, zero);
      for (int i = 0; i < R; ++i) {
        float* const weight = w.weights + i * planes;
        const float* const q = s.q + i * s.d;
        float sum = 0;
        for (std::int64_t c = 0; c < s.c; ++c) {
          weight[c] = q[c] * scale[c];
          weight[s.c + c] = 2 * weight[c];
          sum += q[c] * zero[c];
        }
        for (std::int64_t f = 0; f < rest; ++f) {
          const float x = q[s.c + f] * scale[s.c + f];
          weight[2 * s.c + f] = 2 * x;
          sum -= x;
        }
        base[i] = sum;
      }
    }
    const std::int32_t* row = s.planes + (first + t) / word * s.plane_row;
    for (std::int64_t p = 0; p < planes; ++p) w.words[p] = row[p * s.plane_col];
    add_bits<R>(planes, w.words, w.weights, base, w.logits + t);
  }
}

// ceil(256 x / 243) = (factor x >> shift) + 1 for x in 1..242: the byte as a fraction of 256 in base 3
constexpr std::int32_t ternary_factor = 17261, ternary_shift = 14;

/// tile[(p * wide + w) / lanes][t][w % lanes] = digit p of byte w of `count` tokens, wide = round_up(bytes, lanes).
template <int Digits>
void digits(const Values& v, std::int64_t first, std::int64_t count, float* tile) {
  const std::int64_t wide = round_up(v.bytes, lanes);
  for (std::int64_t t = 0; t < count; ++t) {
    const std::uint8_t* const from = v.codes + (first + t) * v.row;
    for (std::int64_t w = 0; w < v.bytes; w += lanes) {
      const std::int64_t here = std::min<std::int64_t>(lanes, v.bytes - w);
      std::uint8_t bytes[lanes] = {};
      if (v.col == 1 && here == lanes)
        std::memcpy(bytes, from + w, lanes);
      else
        for (std::int64_t j = 0; j < here; ++j) bytes[j] = from[(w + j) * v.col];
      std::int32_t left[lanes];  // the byte as a fraction of 256, whose leading digit is the highest one
      for (int j = 0; j < lanes; ++j) {
        const std::int32_t x = bytes[j];
        left[j] = Digits == 4 ? x : (x * ternary_factor >> ternary_shift) + (x != 0);
      }
      float parts[Digits][lanes];
#pragma GCC unroll 5
      for (int p = Digits - 1; p >= 0; --p)
        for (int j = 0; j < lanes; ++j) {
          const std::int32_t x = (Digits == 4 ? 4 : 3) * left[j];
          parts[p][j] = static_cast<float>(x >> 8);
          left[j] = x & 255;
        }
#pragma GCC unroll 5
      for (int p = 0; p < Digits; ++p) std::memcpy(tile + (p * wide + w) * count + t * lanes, parts[p], sizeof parts[p]);
    }
  }
}

/// out += scale * (sum of p * digit) + zero * (sum of p), over one run that starts at token `first` of v.
template <int R>
void add_values(const Task& s, const Work& w, const Values& v, std::int64_t first, const float* p) {
  const std::int64_t wide = round_up(v.bytes, lanes), columns = v.digits * wide;
  float* const sums = w.panel;
  float* const scale = sums + R * w.width;
  float* const zero = scale + w.e_pad;
  std::fill_n(sums, R * w.width, 0.f);
  v.digits == 4 ? digits<4>(v, first, s.group, w.tile) : digits<5>(v, first, s.group, w.tile);
  for (std::int64_t c = 0; c < columns; c += lanes) accumulate<R>(s.group, p, row_step, w.tile + c * s.group, sums + c, w.width);
  const std::int64_t run = first / s.group;
  widen(v.scales + run * v.scale_run, v.scale_step, s.e, scale);
  if (v.zeros)
    widen(v.zeros + run * v.zero_run, v.zero_step, s.e, zero);
  else
    for (std::int64_t c = 0; c < s.e; ++c) zero[c] = -scale[c];
  for (int i = 0; i < R; ++i) {
    float mass = 0;
    for (std::int64_t t = 0; t < s.group; ++t) mass += p[i * row_step + t];
    float* const out = w.out + i * w.e_pad;
    for (std::int64_t c = 0; c < s.e; c += v.bytes) {
      const float* const sum = sums + i * w.width + c / v.bytes * wide;
      for (std::int64_t x = 0; x < std::min(v.bytes, s.e - c); ++x) out[c + x] += scale[c + x] * sum[x] + zero[c + x] * mass;
    }
  }
}

/// Masks and exponentiates count logits of tokens first.., and brings what was summed so far to the new maximum.
template <int R>
void soften(const Task& s, const Work& w, std::int64_t first, std::int64_t count) {
  const std::int64_t padded = round_up(count, lanes);
  for (int i = 0; i < R; ++i) {
    float* const row = w.logits + i * row_step;
    std::fill(row + count, row + padded, minus_infinity);
    if (s.seen)
      for (std::int64_t t = 0; t < count; ++t)
        if (!s.seen[(first + t) * s.seen_step]) row[t] = minus_infinity;
    const float before = w.top[i], now = std::max(before, row_max(row, padded)), base = now == minus_infinity ? 0.f : now;
    const float keep = before == now ? 1.f : exp_clamped(std::max(before - base, lowest));
    w.top[i] = now;
    exp_row(row, padded, base, keep, w.sums + i * lanes);
    if (keep != 1)
      for (std::int64_t c = 0; c < w.e_pad; ++c) w.out[i * w.e_pad + c] *= keep;
  }
}

template <int R>
void recent(const Task& s, const Work& w, std::int64_t first, std::int64_t count) {
  for (int i = 0; i < R; ++i) std::fill_n(w.logits + i * row_step, chunk, 0.f);
  for (std::int64_t t = 0; t < count; t += lanes) {
    for (std::int64_t x = 0; x < s.d; ++x)
      for (std::int64_t j = 0; j < lanes; ++j)
        w.panel[x * lanes + j] = t + j < count ? s.k.data[(first + t + j) * s.k.row + x * s.k.col] : 0.f;
    accumulate<R>(s.d, s.plain_q, s.d, w.panel, w.logits + t, row_step);
  }
  soften<R>(s, w, s.n + first, count);
  for (std::int64_t c = 0; c < w.e_pad; c += lanes)
    for (std::int64_t t = 0; t < count; t += word) {
      const std::int64_t rows = std::min(word, count - t), here = std::min<std::int64_t>(lanes, s.e - c);
      for (std::int64_t j = 0; j < rows; ++j)
        for (std::int64_t x = 0; x < lanes; ++x)
          w.tile[j * lanes + x] = x < here ? s.v.data[(first + t + j) * s.v.row + (c + x) * s.v.col] : 0.f;
      accumulate<R>(rows, w.logits + t, row_step, w.tile, w.out + c, w.e_pad);
    }
}

template <int R>
void attend(const Task* task, const Work* work) {
  const Task& s = *task;
  const Work& w = *work;
  std::fill_n(w.out, R * w.e_pad, 0.f);
  std::fill_n(w.top, R, minus_infinity);
  std::fill_n(w.sums, R * lanes, 0.f);
  for (std::int64_t first = s.begin; first < s.end; first += chunk) {
    const std::int64_t count = std::min(chunk, s.end - first);
    packed_logits<R>(s, w, first, count);
    soften<R>(s, w, first, count);
    for (std::int64_t t = 0; t < count; t += s.group)
      first + t < s.two ? add_values<R>(s, w, s.v2, first + t, w.logits + t) : add_values<R>(s, w, s.v3, first + t - s.two, w.logits + t);
  }
  for (std::int64_t first = s.recent_begin; first < s.recent_end; first += chunk)
    recent<R>(s, w, first, std::min(chunk, s.recent_end - first));
  for (int i = 0; i < R; ++i) {
    float sum = 0;
    for (int j = 0; j < lanes; ++j) sum += w.sums[i * lanes + j];
    w.sum[i] = sum;
  }
}
}  // namespace

void packed_attention(core::Tensor<const float, 3> q, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                      core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                      core::Tensor<const core::float16, 4> zeros, core::Tensor<const std::uint8_t, 4> codes2,
                      core::Tensor<const core::float16, 4> scales2, core::Tensor<const core::float16, 4> zeros2,
                      core::Tensor<const std::uint8_t, 4> codes3, core::Tensor<const core::float16, 4> scales3,
                      core::Tensor<const float, 4> recent_k, core::Tensor<const float, 4> recent_v,
                      std::optional<core::Tensor<const bool, 2>> seen, double scale, core::Tensor<float, 3> out) {
  const char* op = "packed_attention";
  const auto [batch, heads, d] = q.shape;
  const std::int64_t groups = planes.shape[1], e = out.shape[2], two = codes2.shape[2], n = two + codes3.shape[2], c = zeros.shape[3];
  const std::int64_t left = recent_k.shape[2], dims = d;
  check_packed_attention(op, q, group, planes, scales, zeros, codes2, scales2, codes3, scales3, recent_k, seen, scale, e);
  check_channels(op, channels);
  if (out.numel() == 0) return;

  const std::int64_t rest = d - c, e_pad = round_up(e, lanes), q_heads = heads;
  const std::int64_t per_group = heads / groups, quads = ceil_div(per_group, 4);
  const std::int64_t splits = ceil_div(n, share) + (left > 0), packed_splits = ceil_div(n, share);
  const std::vector<float> basis = fourier(rest);
  const float factor = static_cast<float>(scale);
  const auto size = [&](std::int64_t a, std::int64_t b) {
    return static_cast<std::size_t>(core::checked_mul(a, b, "packed_attention: scratch"));
  };
  // by query: the output, its maximum and its sum of each split
  const std::int64_t part = e_pad + 2;
  std::vector<float> parts(size(core::checked_mul(batch * groups * quads * 4, splits, "packed_attention: scratch"), part));
  core::parallel_for(batch * groups * quads * splits, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t width = std::max(4 * round_up(ceil_div(e, 4), lanes), 5 * round_up(ceil_div(e, 5), lanes));
    std::vector<float> plain(size(4, dims)), packed(size(4, dims)), logits(static_cast<std::size_t>(4 * row_step)),
        weights(size(4, dims + c)), panel(std::max(size(dims, lanes), size(4, width) + size(2, e_pad))),
        tile(std::max(size(group, width), size(2, dims))), sums(static_cast<std::size_t>(4 * lanes)), outs(size(4, e_pad)),
        extra(static_cast<std::size_t>(4 + 4));
    std::vector<std::int32_t> words(static_cast<std::size_t>(dims + c));
    Work w{};
    w.logits = logits.data(), w.weights = weights.data(), w.panel = panel.data(), w.tile = tile.data(), w.out = outs.data();
    w.top = extra.data(), w.sum = extra.data() + 4, w.sums = sums.data(), w.words = words.data();
    w.e_pad = e_pad, w.width = width;
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t split = at % splits, quad = at / splits % quads, g = at / splits / quads % groups,
                         b = at / splits / quads / groups;
      const std::int64_t first = g * per_group + quad * 4, count = std::min<std::int64_t>(4, per_group - quad * 4);
      std::fill(plain.begin(), plain.end(), 0.f);
      std::fill(packed.begin(), packed.end(), 0.f);
      for (std::int64_t i = 0; i < count; ++i) {
        float* const x = plain.data() + i * dims;
        float* const y = packed.data() + i * dims;
        for (std::int64_t j = 0; j < dims; ++j) x[j] = factor * q(b, first + i, j);
        for (std::int64_t j = 0; j < c; ++j) y[j] = x[channels(b, j)];
        for (std::int64_t j = 0; j < rest; ++j) {
          const float from = x[channels(b, c + j)];
          for (std::int64_t f = 0; f < rest; ++f) y[c + f] += from * basis[basis_at(rest, j, f)];
        }
      }
      const auto values = [&](const core::Tensor<const std::uint8_t, 4>& codes, const core::Tensor<const core::float16, 4>& s,
                              const core::Tensor<const core::float16, 4>* z) {
        return Values{&codes(b, g, 0, 0),   codes.stride[2],     codes.stride[3],
                      codes.shape[3],       z ? 4 : 5,           &s(b, g, 0, 0),
                      s.stride[2],          s.stride[3],         z ? &(*z)(b, g, 0, 0) : nullptr,
                      z ? z->stride[2] : 0, z ? z->stride[3] : 0};
      };
      const bool old = split < packed_splits;
      const Task task{dims,
                      e,
                      c,
                      group,
                      old ? split * share : n,
                      old ? std::min((split + 1) * share, n) : n,
                      two,
                      0,
                      old ? 0 : left,
                      n,
                      packed.data(),
                      &planes(b, g, 0, 0),
                      planes.stride[2],
                      planes.stride[3],
                      &scales(b, g, 0, 0),
                      &zeros(b, g, 0, 0),
                      scales.stride[2],
                      scales.stride[3],
                      zeros.stride[2],
                      zeros.stride[3],
                      values(codes2, scales2, &zeros2),
                      values(codes3, scales3, nullptr),
                      plain.data(),
                      head(recent_k, b, g),
                      head(recent_v, b, g),
                      seen ? &(*seen)(b, 0) : nullptr,
                      seen ? seen->stride[1] : 0};
      switch (count) {
        case 1: core::multiversion<&attend<1>>(&task, const_cast<const Work*>(&w)); break;
        case 2: core::multiversion<&attend<2>>(&task, const_cast<const Work*>(&w)); break;
        default: core::multiversion<&attend<4>>(&task, const_cast<const Work*>(&w));
      }
      for (std::int64_t i = 0; i < count; ++i) {
        float* const to = parts.data() + ((b * q_heads + first + i) * splits + split) * part;
        to[0] = w.top[i], to[1] = w.sum[i];
        std::copy_n(w.out + i * e_pad, e_pad, to + 2);
      }
    }
  });
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < q_heads; ++h) {
      const float* from = parts.data() + (b * q_heads + h) * splits * part;
      float top = minus_infinity, sum = 0;
      for (std::int64_t i = 0; i < splits; ++i) top = std::max(top, from[i * part]);
      const auto weight = [&](std::int64_t i) { return from[i * part] == minus_infinity ? 0.f : std::exp(from[i * part] - top); };
      for (std::int64_t i = 0; i < splits; ++i) sum += weight(i) * from[i * part + 1];
      for (std::int64_t x = 0; x < e; ++x) {
        float y = 0;
        for (std::int64_t i = 0; i < splits; ++i) y += weight(i) * from[i * part + 2 + x];
        out(b, h, x) = sum > 0 ? y / sum : 0.f;
      }
    }
}
}  // namespace core_llm_efficiency
