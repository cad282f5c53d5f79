#include <core/isa.hpp>

#include <atomic>
#include <core_llm_efficiency/vidkv.hpp>

#include "pack.hpp"

namespace core_llm_efficiency {
namespace {
constexpr float largest = 65504.f;
constexpr std::int64_t longest = 128;  // tokens of a run

/// A run of tokens as columns: tile[c * longest + t].
struct Run {
  std::int64_t group, d;
  float* tile;
  float* spectrum;
};

/// One channel at two bits: codes[t], scale and zero.
void two_bits(const float* x, std::int64_t n, std::uint8_t* codes, core::float16& scale, core::float16& zero) {
  const auto [low, high] = std::minmax_element(x, x + n);
  scale = narrow(std::min((*high - *low) / 3.f, largest)), zero = narrow(*low);
  const float s = widen(scale.bits), z = widen(zero.bits), inverse = s > 0 ? 1.f / s : 0.f;
  for (std::int64_t t = 0; t < n; ++t) codes[t] = static_cast<std::uint8_t>(std::nearbyint(std::clamp((x[t] - z) * inverse, 0.f, 3.f)));
}

/// spectrum[t][f], rows `step` apart, of the channels [c, d) of a run.
void transform(const Run* run, std::int64_t c, const float* basis, float* columns) {
  const std::int64_t n = run->d - c, step = round_up(n, lanes);
  std::fill_n(run->spectrum, run->group * step, 0.f);
  for (std::int64_t t = 0; t < run->group; ++t)
    for (std::int64_t j = 0; j < n; ++j) columns[t * n + j] = run->tile[(c + j) * longest + t];
  for (std::int64_t t = 0; t < run->group; t += 4)
    for (std::int64_t f = 0; f < step; f += lanes) accumulate<4>(n, columns + t * n, n, basis + f * n, run->spectrum + t * step + f, step);
}
void untransform(const float* spectrum, const float* basis, std::int64_t n, float* x) {
  for (std::int64_t j = 0; j < n; ++j) {
    float sum = 0;
    for (std::int64_t f = 0; f < n; ++f) sum += spectrum[f] * basis[basis_at(n, j, f)];
    x[j] = sum;
  }
}

/// Reads a run into columns; false if a value is not finite or too large.
template <class Place>
bool load(const core::Tensor<const float, 4>& x, std::int64_t b, std::int64_t g, std::int64_t first, const Run& run, Place place) {
  bool good = true;
  for (std::int64_t c = 0; c < run.d; ++c)
    for (std::int64_t t = 0; t < run.group; ++t) {
      const float y = x(b, g, first + t, place(c));
      good &= std::fabs(y) <= largest;
      run.tile[c * longest + t] = y;
    }
  return good;
}

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
    const std::int64_t size = core::checked_mul(longest, dims + step + rest, "pack_keys: scratch");
    return [&, dims, scratch = std::vector<float>(static_cast<std::size_t>(size)), codes = std::vector<std::uint8_t>(longest)](
               std::int64_t b, std::int64_t g, std::int64_t s) mutable {
      const Run run{group, dims, scratch.data(), scratch.data() + longest * dims};
      if (!load(x, b, g, s * group, run, [&](std::int64_t i) { return channels(b, i); })) return false;
      for (std::int64_t w = 0; w < group / word; ++w)
        for (std::int64_t p = 0; p < dims + c; ++p) planes(b, g, s * group / word + w, p) = 0;
      const auto set = [&](std::int64_t t, std::int64_t p) {
        std::int32_t& bits = planes(b, g, (s * group + t) / word, p);
        bits = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits) | 1u << t % word);
      };
      for (std::int64_t i = 0; i < c; ++i) {
        two_bits(run.tile + i * longest, group, codes.data(), scales(b, g, s, i), zeros(b, g, s, i));
        for (std::int64_t t = 0; t < group; ++t) {
          if (codes[static_cast<std::size_t>(t)] & 1) set(t, i);
          if (codes[static_cast<std::size_t>(t)] & 2) set(t, c + i);
        }
      }
      if (rest == 0) return true;
      core::multiversion<&transform>(&run, c, basis.data(), run.spectrum + longest * step);
      float limit[longest];
      for (std::int64_t t = 0; t < group; ++t) {
        limit[t] = 0;
        for (std::int64_t i = c; i < dims; ++i) limit[t] -= 1e-6f * std::fabs(run.tile[i * longest + t]);
      }
      for (std::int64_t f = 0; f < rest; ++f) {
        float sum = 0;
        for (std::int64_t t = 0; t < group; ++t) {
          const float y = run.spectrum[t * step + f];
          sum += std::fabs(y);
          if (y >= limit[t]) set(t, 2 * c + f);
        }
        const float mean = sum / static_cast<float>(group);
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
    const std::int64_t size = core::checked_mul(longest, dims, "pack_values: scratch");
    return [&, dims, scratch = std::vector<float>(static_cast<std::size_t>(size)), code = std::vector<std::uint8_t>(longest)](
               std::int64_t b, std::int64_t g, std::int64_t s) mutable {
      const Run run{group, dims, scratch.data(), nullptr};
      if (!load(x, b, g, s * group, run, [](std::int64_t i) { return i; })) return false;
      for (std::int64_t t = 0; t < group; ++t)
        for (std::int64_t w = 0; w < bytes; ++w) codes(b, g, s * group + t, w) = 0;
      int power = 1;
      for (std::int64_t c = 0; c < dims; ++c) {
        const float* column = run.tile + c * longest;
        if (c && c % bytes == 0) power *= zeros ? 4 : 3;
        if (zeros) {
          two_bits(column, group, code.data(), scales(b, g, s, c), (*zeros)(b, g, s, c));
        } else {
          double sum = 0, above = 0;
          std::int64_t count = 0;
          for (std::int64_t t = 0; t < group; ++t) sum += std::fabs(static_cast<double>(column[t]));
          const double limit = gamma * sum / static_cast<double>(group);
          for (std::int64_t t = 0; t < group; ++t) {
            const double y = column[t];
            const bool keep = std::fabs(y) > limit;
            code[static_cast<std::size_t>(t)] = static_cast<std::uint8_t>(keep ? y > 0 ? 2 : 0 : 1);
            if (keep) above += std::fabs(y), ++count;
          }
          scales(b, g, s, c) = narrow(count ? static_cast<float>(above / static_cast<double>(count)) : 0.f);
        }
        for (std::int64_t t = 0; t < group; ++t) {
          std::uint8_t& byte = codes(b, g, s * group + t, c % bytes);
          byte = static_cast<std::uint8_t>(byte + power * code[static_cast<std::size_t>(t)]);
        }
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
