#include <core/isa.hpp>

#include <atomic>
#include <core_llm_efficiency/vidkv.hpp>
#include <numeric>

#include "pack.hpp"

namespace core_llm_efficiency {
namespace {
constexpr float largest = 65504.f;

/// The largest float that is not above x: a float is above both or neither.
float below(double x) {
  const auto y = static_cast<float>(x);
  return static_cast<double>(y) > x ? std::nextafter(y, -1.f) : y;
}

/// `tokens` rows of channels, `row` apart.
struct Run {
  const float* data;
  std::int64_t row, channels, tokens;
  const float* operator[](std::int64_t t) const { return data + t * row; }
};

/// Each channel's range.
void find_ranges(const Run* x, float* low, float* high) {
  std::copy_n((*x)[0], x->channels, low), std::copy_n((*x)[0], x->channels, high);
  for (std::int64_t t = 1; t < x->tokens; ++t) {
    const float* const y = (*x)[t];
    for (std::int64_t c = 0; c < x->channels; ++c) low[c] = std::min(low[c], y[c]), high[c] = std::max(high[c], y[c]);
  }
}
/// A token's codes of two bits; to a number of at most 3 is added what leaves it in the last bits, rounded.
inline void two_bits(const float* x, std::int64_t n, const float* zero, const float* inverse, std::uint32_t* code) {
  for (std::int64_t c = 0; c < n; ++c)
    code[c] = std::bit_cast<std::uint32_t>(std::min(std::max((x[c] - zero[c]) * inverse[c], 0.f), 3.f) + 0x1.8p23f) & 3;
}
/// The two bits of at most 32 tokens.
void pack_two_bits(const Run* x, const float* zero, const float* inverse, std::uint32_t* code, std::uint32_t* planes) {
  const std::int64_t n = x->channels;
  for (std::int64_t t = 0; t < x->tokens; ++t) {
    two_bits((*x)[t], n, zero, inverse, code);
    for (std::int64_t c = 0; c < n; ++c) planes[c] |= (code[c] & 1) << t;
    for (std::int64_t c = 0; c < n; ++c) planes[n + c] |= (code[c] >> 1) << t;
  }
}
/// The signs of at most 32 tokens; a coefficient that is zero but for rounding counts as positive.
void pack_signs(const Run* x, const float* limit, std::uint32_t* planes, float* sums) {
  for (std::int64_t t = 0; t < x->tokens; ++t) {
    const float* const y = (*x)[t];
    const float least = limit[t];
    for (std::int64_t f = 0; f < x->channels; ++f) planes[f] |= (y[f] >= least ? 1u : 0u) << t;
    for (std::int64_t f = 0; f < x->channels; ++f) sums[f] += std::fabs(y[f]);
  }
}
/// spectrum[t][f], rows `step` apart, and below which a coefficient of a token is negative.
void transform(const Run* x, const float* basis, float* spectrum, float* limit) {
  const std::int64_t n = x->channels, step = round_up(n, lanes);
  std::fill_n(spectrum, x->tokens * step, 0.f);
  for (std::int64_t t = 0; t < x->tokens; t += 4)
    for (std::int64_t f = 0; f < step; f += lanes) accumulate<4>(n, (*x)[t], x->row, basis + f * n, spectrum + t * step + f, step);
  for (std::int64_t t = 0; t < x->tokens; ++t) {
    float sums[lanes] = {};
    std::int64_t c = 0;
    for (; c + lanes <= n; c += lanes)
      for (int j = 0; j < lanes; ++j) sums[j] += std::fabs((*x)[t][c + j]);
    for (; c < n; ++c) sums[0] += std::fabs((*x)[t][c]);
    limit[t] = -1e-6f * std::accumulate(sums, sums + lanes, 0.f);
  }
}
void untransform(const float* spectrum, const float* basis, std::int64_t n, float* x) {
  for (std::int64_t j = 0; j < n; ++j) {
    float sum = 0;
    for (std::int64_t f = 0; f < n; ++f) sum += spectrum[f] * basis[basis_at(n, j, f)];
    x[j] = sum;
  }
}

/// Of each channel, the sum of magnitudes.
void add_magnitudes(const Run* x, double* sum) {
  for (std::int64_t t = 0; t < x->tokens; ++t)
    for (std::int64_t c = 0; c < x->channels; ++c) sum[c] += static_cast<double>(std::fabs((*x)[t][c]));
}
/// A token's codes of three levels; of each channel, the sum and number of what is above its limit.
void three_levels(const float* x, std::int64_t n, const float* limit, std::uint32_t* code, double* above, std::int32_t* count) {
  for (std::int64_t c = 0; c < n; ++c) code[c] = 1u + (x[c] > limit[c] ? 1u : 0u) - (x[c] < -limit[c] ? 1u : 0u);
  for (std::int64_t c = 0; c < n; ++c) above[c] += static_cast<double>(code[c] == 1 ? 0.f : std::fabs(x[c]));
  for (std::int64_t c = 0; c < n; ++c) count[c] += code[c] == 1 ? 0 : 1;
}
/// A token's bytes from its codes, digits of a byte `bytes` apart.
template <int Levels, int Digits>
void join(const std::uint32_t* code, std::int64_t bytes, std::uint32_t* joined) {
  for (std::int64_t w = 0; w < bytes; ++w) {
    std::uint32_t sum = 0;
#pragma GCC unroll 5
    for (int i = Digits - 1; i >= 0; --i) sum = sum * Levels + code[i * bytes + w];
    joined[w] = sum;
  }
}
void join_three(const std::uint32_t* code, std::int64_t bytes, std::uint32_t* joined) { join<3, 5>(code, bytes, joined); }
void join_four(const std::uint32_t* code, std::int64_t bytes, std::uint32_t* joined) { join<4, 4>(code, bytes, joined); }

/// Whether every number is finite and not too large.
bool all_small(const Run* x) {
  bool good = true;
  for (std::int64_t i = 0; i < x->tokens * x->row; ++i) good &= std::fabs(x->data[i]) <= largest;
  return good;
}

/// Copies a run; false if a value is not finite or too large.
template <class Place>
bool load(const core::Tensor<const float, 4>& x, std::int64_t b, std::int64_t g, std::int64_t first, const Run& to, float* rows,
          Place place) {
  for (std::int64_t t = 0; t < to.tokens; ++t) {
    const float* const from = x.data + b * x.stride[0] + g * x.stride[1] + (first + t) * x.stride[2];
    for (std::int64_t c = 0; c < to.channels; ++c) rows[t * to.row + c] = from[place(c) * x.stride[3]];
  }
  return core::multiversion<&all_small>(&to);
}

/// Scales and zeros of codes of two bits, as they are stored; what brings a number to its code.
struct Grid {
  std::vector<float> low, high, zero, inverse;
  explicit Grid(std::int64_t n) : low(static_cast<std::size_t>(n)), high(low), zero(low), inverse(low) {}
  template <class Put>
  void find(const Run& x, Put put) {
    core::multiversion<&find_ranges>(&x, low.data(), high.data());
    for (std::size_t c = 0; c < static_cast<std::size_t>(x.channels); ++c) {
      const core::float16 scale = narrow(std::min((high[c] - low[c]) / 3.f, largest)), least = narrow(low[c]);
      put(static_cast<std::int64_t>(c), scale, least);
      const float s = widen(scale.bits);
      zero[c] = widen(least.bits), inverse[c] = s > 0 ? 1.f / s : 0.f;
    }
  }
};

/// Runs f(b, g, s) over all runs of tokens; refuses afterwards if it was false for any.
template <class F>
void over_runs(const char* op, std::int64_t batch, std::int64_t groups, std::int64_t runs, F&& make) {
  std::atomic<bool> good = true;
  core::parallel_for(batch * groups * runs, 1, [&](std::int64_t begin, std::int64_t end) {
    auto f = make();
    for (std::int64_t i = begin; i < end; ++i)
      if (!f(i / runs / groups, i / runs % groups, i % runs)) good = false;
  });
  if (!good) refuse(op, "x", "finite and of magnitude at most 65504");
}
}  // namespace

void pack_keys(core::Tensor<const float, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
               core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales, core::Tensor<core::float16, 4> zeros) {
  const char* op = "pack_keys";
  const auto [batch, groups, n, d] = x.shape;
  const std::int64_t c = zeros.shape[3], rest = d - c, step = round_up(rest, lanes);
  check_group(op, group, "x", n);
  check_keys(op, n, d, group, planes, scales, zeros);
  check_channels(op, channels);
  if (batch == 0 || groups == 0 || n == 0 || d == 0) return;
  const std::vector<float> basis = fourier(rest);
  const std::int64_t dims = d;
  over_runs(op, batch, groups, n / group, [&, dims] {
    const std::int64_t size = core::checked_mul(group, dims + step + 1, "pack_keys: scratch") + step;
    return [&, dims, scratch = std::vector<float>(static_cast<std::size_t>(size)), grid = Grid(c),
            bits = std::vector<std::uint32_t>(static_cast<std::size_t>(dims + 2 * c))](std::int64_t b, std::int64_t g,
                                                                                       std::int64_t s) mutable {
      float *const rows = scratch.data(), *const spectrum = rows + group * dims, *const limit = spectrum + group * step,
                   *const sums = limit + group;
      std::uint32_t* const code = bits.data() + dims + c;
      if (!load(x, b, g, s * group, Run{rows, dims, dims, group}, rows, [&](std::int64_t i) { return channels(b, i); })) return false;
      if (c)
        grid.find(Run{rows, dims, c, group},
                  [&](std::int64_t i, core::float16 scale, core::float16 zero) { scales(b, g, s, i) = scale, zeros(b, g, s, i) = zero; });
      if (rest) {
        const Run run{rows + c, dims, rest, group};
        core::multiversion<&transform>(&run, basis.data(), spectrum, limit);
        std::fill_n(sums, step, 0.f);
      }
      for (std::int64_t w = 0; w < group / word; ++w) {
        std::fill_n(bits.data(), dims + c, 0u);
        const Run wide{rows + w * word * dims, dims, c, word}, signs{spectrum + w * word * step, step, rest, word};
        core::multiversion<&pack_two_bits>(&wide, grid.zero.data(), grid.inverse.data(), code, bits.data());
        core::multiversion<&pack_signs>(&signs, limit + w * word, bits.data() + 2 * c, sums);
        for (std::int64_t p = 0; p < dims + c; ++p)
          planes(b, g, s * group / word + w, p) = static_cast<std::int32_t>(bits[static_cast<std::size_t>(p)]);
      }
      for (std::int64_t f = 0; f < rest; ++f) {
        const float mean = sums[f] / static_cast<float>(group);
        if (mean > largest) return false;
        scales(b, g, s, c + f) = narrow(mean);
      }
      return true;
    };
  });
}

void unpack_keys(core::Tensor<const std::int32_t, 2> channels, std::int64_t group, core::Tensor<const std::int32_t, 4> planes,
                 core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros, core::Tensor<float, 4> out) {
  const char* op = "unpack_keys";
  const auto [batch, groups, n, d] = out.shape;
  const std::int64_t c = zeros.shape[3], rest = d - c, tokens = n, heads = groups;
  check_group(op, group, "out", n);
  check_keys(op, n, d, group, planes, scales, zeros);
  check_channels(op, channels);
  const std::vector<float> basis = fourier(rest);
  core::parallel_for(batch * groups * n, 32, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> spectrum(static_cast<std::size_t>(rest)), x(spectrum);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / tokens / heads, g = i / tokens % heads, t = i % tokens;
      const auto bit = [&](std::int64_t p) { return static_cast<std::uint32_t>(planes(b, g, t / word, p)) >> t % word & 1; };
      const auto scale = [&](std::int64_t p) { return widen(scales(b, g, t / group, p).bits); };
      for (std::int64_t p = 0; p < c; ++p)
        out(b, g, t, channels(b, p)) = widen(zeros(b, g, t / group, p).bits) + scale(p) * static_cast<float>(bit(p) + 2 * bit(c + p));
      for (std::int64_t f = 0; f < rest; ++f) spectrum[static_cast<std::size_t>(f)] = bit(2 * c + f) ? scale(c + f) : -scale(c + f);
      core::multiversion<&untransform>(spectrum.data(), basis.data(), rest, x.data());
      for (std::int64_t j = 0; j < rest; ++j) out(b, g, t, channels(b, c + j)) = x[static_cast<std::size_t>(j)];
    }
  });
}

void pack_values(core::Tensor<const float, 4> x, std::int64_t group, double gamma, core::Tensor<std::uint8_t, 4> codes,
                 core::Tensor<core::float16, 4> scales, std::optional<core::Tensor<core::float16, 4>> zeros) {
  const char* op = "pack_values";
  const auto [batch, groups, n, e] = x.shape;
  const std::int64_t bytes = codes.shape[3], dims = e;
  check_group(op, group, "x", n);
  check_values(op, "codes", bytes, e, zeros ? 4 : 5, "scales", n, group, scales.shape[2]);
  if (!(gamma >= 0 && gamma <= 4)) refuse(op, "gamma", "in [0, 4], got " + std::to_string(gamma));
  if (batch == 0 || groups == 0 || n == 0 || e == 0) return;
  over_runs(op, batch, groups, n / group, [&, dims] {
    const std::int64_t size = core::checked_mul(group, dims, "pack_values: scratch") + dims;
    return [&, dims, scratch = std::vector<float>(static_cast<std::size_t>(size)), grid = Grid(dims),
            sums = std::vector<double>(static_cast<std::size_t>(dims)), counts = std::vector<std::int32_t>(static_cast<std::size_t>(dims)),
            code = std::vector<std::uint32_t>(static_cast<std::size_t>(6 * bytes))](std::int64_t b, std::int64_t g,
                                                                                    std::int64_t s) mutable {
      float *const rows = scratch.data(), *const limit = rows + group * dims;
      const Run run{rows, dims, dims, group};
      if (!load(x, b, g, s * group, run, rows, [](std::int64_t i) { return i; })) return false;
      std::fill(sums.begin(), sums.end(), 0.0), std::fill(counts.begin(), counts.end(), 0);
      if (zeros) {
        grid.find(
            run, [&](std::int64_t c, core::float16 scale, core::float16 zero) { scales(b, g, s, c) = scale, (*zeros)(b, g, s, c) = zero; });
      } else {
        core::multiversion<&add_magnitudes>(&run, sums.data());
        for (std::int64_t c = 0; c < dims; ++c) limit[c] = below(gamma * sums[static_cast<std::size_t>(c)] / static_cast<double>(group));
        std::fill(sums.begin(), sums.end(), 0.0);
      }
      std::uint32_t* const joined = code.data() + 5 * bytes;
      for (std::int64_t t = 0; t < group; ++t) {
        if (zeros) {
          core::multiversion<&two_bits>(run[t], dims, grid.zero.data(), grid.inverse.data(), code.data());
          core::multiversion<&join_four>(code.data(), bytes, joined);
        } else {
          core::multiversion<&three_levels>(run[t], dims, limit, code.data(), sums.data(), counts.data());
          core::multiversion<&join_three>(code.data(), bytes, joined);
        }
        for (std::int64_t w = 0; w < bytes; ++w) codes(b, g, s * group + t, w) = static_cast<std::uint8_t>(joined[w]);
      }
      if (!zeros)
        for (std::int64_t c = 0; c < dims; ++c) {
          const auto at = static_cast<std::size_t>(c);
          scales(b, g, s, c) = narrow(counts[at] ? static_cast<float>(sums[at] / counts[at]) : 0.f);
        }
      return true;
    };
  });
}

void unpack_values(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes, core::Tensor<const core::float16, 4> scales,
                   std::optional<core::Tensor<const core::float16, 4>> zeros, core::Tensor<float, 4> out) {
  const char* op = "unpack_values";
  const auto [batch, groups, n, e] = out.shape;
  const std::int64_t bytes = codes.shape[3], tokens = n, heads = groups, dims = e;
  check_group(op, group, "out", n);
  check_values(op, "codes", bytes, e, zeros ? 4 : 5, "scales", n, group, scales.shape[2]);
  core::parallel_for(batch * groups * n, 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / tokens / heads, g = i / tokens % heads, t = i % tokens;
      int power = 1;
      for (std::int64_t c = 0; c < dims; ++c) {
        if (c && c % bytes == 0) power *= zeros ? 4 : 3;
        const int code = codes(b, g, t, c % bytes) / power % (zeros ? 4 : 3);
        const float scale = widen(scales(b, g, t / group, c).bits);
        out(b, g, t, c) =
            zeros ? widen((*zeros)(b, g, t / group, c).bits) + scale * static_cast<float>(code) : scale * static_cast<float>(code - 1);
      }
    }
  });
}
}  // namespace core_llm_efficiency
