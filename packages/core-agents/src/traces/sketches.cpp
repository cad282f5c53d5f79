#include "../errors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_agents/traces.hpp>
#include <string>
#include <vector>

namespace core_agents {
namespace {

using Index = std::size_t;

/// The byte as it counts in a word, 0 between words.
constexpr auto letters = [] {
  std::array<std::uint8_t, 256> to{};
  for (Index c = 0; c < to.size(); ++c) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool kept = upper || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c >= 0x80;
    to[c] = static_cast<std::uint8_t>(upper ? c + 'a' - 'A' : kept ? c : 0);
  }
  return to;
}();

/// Distinct constants for the three places of a run.
constexpr std::uint64_t first = 0x9e3779b97f4a7c15ULL, second = 0xbf58476d1ce4e5b9ULL, third = 0x94d049bb133111ebULL;

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 32) * 0xd6e8feb86659fd93ULL;
  return x ^ x >> 32;
}

void sketch(const core::Tensor<const std::uint8_t, 1>& text, std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& minima) {
  std::fill(minima.begin(), minima.end(), std::int64_t{-1});
  const int shift = 64 - std::countr_zero(minima.size());
  std::uint64_t word = 0, before = 0, earlier = 0;
  std::int64_t words = 0;
  const auto take = [&] {
    const std::uint64_t hash = mix(earlier * first + before * second + word * third);
    auto& least = minima[minima.size() == 1 ? 0 : hash >> shift];
    const auto value = static_cast<std::int64_t>(hash & 0x7fffffff);
    if (least < 0 || value < least) least = value;
  };
  const auto finish = [&] {
    if (++words > 2) take();
    earlier = before, before = word, word = 0;
  };
  bool inside = false;
  for (std::int64_t i = begin; i < end; ++i) {
    const std::uint8_t c = letters[text(i)];
    if (c) {
      word = (word ^ c) * 0x100000001b3ULL;
      inside = true;
    } else if (inside) {
      word ^= word >> 29;
      finish();
      inside = false;
    }
  }
  if (inside) {
    word ^= word >> 29;
    finish();
  }
  if (words == 1 || words == 2) take();
}

/// How many of K pairs of minima are equal and how many have one at least.
struct Shares {
  std::int32_t equal, any;
};
Shares shares(const std::int32_t* a, const std::int32_t* b, std::int64_t k) {
  std::int32_t equal = 0, any = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    equal += (a[i] == b[i]) & (a[i] >= 0);
    any += (a[i] >= 0) | (b[i] >= 0);
  }
  return {equal, any};
}

struct Search {
  const std::int32_t* minima;
  const std::int32_t* agents;
  std::int64_t k;
  double threshold;
  core::Tensor<std::int32_t, 1> earlier;
};

void search(const Search* s, std::int64_t begin, std::int64_t end) {
  for (std::int64_t j = begin; j < end; ++j) {
    std::int32_t found = -1;
    for (std::int64_t i = 0; i < j && found < 0; ++i) {
      if (s->agents[i] != s->agents[j]) continue;
      const auto [equal, any] = shares(s->minima + i * s->k, s->minima + j * s->k, s->k);
      if (any && equal >= s->threshold * any) found = static_cast<std::int32_t>(i);
    }
    s->earlier(j) = found;
  }
}

}  // namespace

void text_sketches(core::Tensor<const std::uint8_t, 1> text, core::Tensor<const std::int64_t, 1> offsets,
                   core::Tensor<std::int64_t, 2> sketches) {
  const std::int64_t messages = sketches.shape[0], k = sketches.shape[1];
  if (k < 1 || k > 1024 || !std::has_single_bit(static_cast<std::uint64_t>(k)))
    bad("text_sketches", "sketches", "a power of two wide, at most 1024", std::to_string(k));
  for (std::int64_t i = 0, low = 0; i <= messages; low = offsets(i++))
    if (offsets(i) < low || offsets(i) > text.shape[0])
      bad("text_sketches", "offsets", "ascending in [0, " + std::to_string(text.shape[0]) + "]",
          std::to_string(offsets(i)) + " at " + std::to_string(i));
  core::parallel_for(messages, 4, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> minima(static_cast<Index>(k));
    for (std::int64_t m = begin; m < end; ++m) {
      sketch(text, offsets(m), offsets(m + 1), minima);
      for (std::int64_t i = 0; i < k; ++i) sketches(m, i) = minima[static_cast<Index>(i)];
    }
  });
}

void near_duplicates(core::Tensor<const std::int64_t, 2> sketches, core::Tensor<const std::int32_t, 1> agents, double threshold,
                     core::Tensor<std::int32_t, 1> earlier) {
  const std::int64_t n = sketches.shape[0], k = sketches.shape[1];
  if (!(threshold > 0 && threshold <= 1)) bad("near_duplicates", "threshold", "in (0, 1]", std::to_string(threshold));
  if (n > INT32_MAX) bad("near_duplicates", "sketches", "of fewer than 2^31 messages", std::to_string(n));
  std::vector<std::int32_t> minima(static_cast<Index>(core::checked_mul(n, k, "near_duplicates: the size of 'sketches'")));
  std::vector<std::int32_t> who(static_cast<Index>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    who[static_cast<Index>(i)] = agents(i);
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t value = sketches(i, j);
      if (value < -1 || value > INT32_MAX)
        bad("near_duplicates", "sketches", "in [-1, 2^31)",
            std::to_string(value) + " at [" + std::to_string(i) + ", " + std::to_string(j) + "]");
      minima[static_cast<Index>(i * k + j)] = static_cast<std::int32_t>(value);
    }
  }
  const Search job{minima.data(), who.data(), k, threshold, earlier};
  core::parallel_for(n, 64, [&](std::int64_t begin, std::int64_t end) { core::multiversion<&search>(&job, begin, end); });
}

}  // namespace core_agents
