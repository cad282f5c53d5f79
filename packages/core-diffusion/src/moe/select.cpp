// Selection of the largest scores and the lists of tokens that follow from it.
#include <core/parallel.hpp>
#include <core_diffusion/moe.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "checks.hpp"

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t part = 16384;  // scores of a row that one task counts
constexpr int digit = 11;
constexpr std::size_t bins = std::size_t{1} << digit;

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// An integer in the order of the numbers; -0 and 0 have one key.
template <class T>
Key<T> key_of(T x) {
  constexpr int top = sizeof(T) * 8 - 1;
  const auto bits = std::bit_cast<Key<T>>(x + T{0});
  return bits ^ ((Key<T>{0} - (bits >> top)) | Key<T>{1} << top);
}
template <class T>
T number_of(Key<T> key) {
  constexpr int top = sizeof(T) * 8 - 1;
  return std::bit_cast<T>(key >> top ? key ^ Key<T>{1} << top : ~key);
}

/// The rank-th largest (from 1) of the keys, and how many are larger; destroys the keys.
template <class K>
std::pair<K, int64_t> kth_of(std::vector<K>& keys, int64_t rank) {
  const auto at = keys.begin() + (rank - 1);
  std::nth_element(keys.begin(), at, keys.end(), std::greater<>());
  const K found = *at;
  return {found, std::count_if(keys.begin(), at, [found](K k) { return k > found; })};
}

template <class T>
[[gnu::cold, noreturn]] void refuse_nan(Tensor<const T, 2> scores, int64_t row) {
  int64_t c = 0;
  while (scores(row, c) == scores(row, c)) ++c;
  throw core::Error("ValueError",
                    "topk_mask: argument 'scores' must not be NaN, got NaN at (" + std::to_string(row) + ", " + std::to_string(c) + ")");
}

/// Marks what is above the limit and, from the left, `ties` of what equals it.
template <class T>
void mark(Tensor<const T, 2> scores, int64_t row, int64_t begin, int64_t end, T limit, int64_t ties, Tensor<bool, 2> mask) {
  for (int64_t c = begin; c < end; ++c) {
    const T x = scores(row, c);
    mask(row, c) = x > limit || (x == limit && ties-- > 0);
  }
}

template <class T>
void short_row(Tensor<const T, 2> scores, int64_t row, int64_t k, std::vector<Key<T>>& keys, Tensor<bool, 2> mask, Tensor<T, 1> kth) {
  const int64_t n = scores.shape[1];
  keys.resize(static_cast<std::size_t>(n));
  bool nan = false;
  for (int64_t c = 0; c < n; ++c) {
    const T x = scores(row, c);
    nan |= x != x;
    keys[static_cast<std::size_t>(c)] = key_of(x);
  }
  if (nan) refuse_nan(scores, row);
  if (k == 0) {
    kth(row) = std::numeric_limits<T>::infinity();
    for (int64_t c = 0; c < n; ++c) mask(row, c) = false;
    return;
  }
  const auto [key, larger] = kth_of(keys, k);
  kth(row) = number_of<T>(key);
  mark(scores, row, 0, n, kth(row), k - larger, mask);
}

/// One row by all threads: counts of the leading digit, then the exact order within one bin.
template <class T>
void long_row(Tensor<const T, 2> scores, int64_t row, int64_t k, Tensor<bool, 2> mask, Tensor<T, 1> kth) {
  constexpr int shift = sizeof(T) * 8 - digit;
  const int64_t n = scores.shape[1], parts = (n - 1) / part + 1;
  const auto each_part = [&](auto&& f) {
    core::parallel_for(parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) f(static_cast<std::size_t>(p), p * part, std::min(n, (p + 1) * part));
    });
  };
  std::vector<std::array<std::uint32_t, bins>> counts(static_cast<std::size_t>(parts));
  std::atomic<bool> nan{false};
  each_part([&](std::size_t p, int64_t begin, int64_t end) {
    auto& count = counts[p];
    count.fill(0);
    bool bad = false;
    for (int64_t c = begin; c < end; ++c) {
      const T x = scores(row, c);
      bad |= x != x;
      ++count[key_of(x) >> shift];
    }
    if (bad) nan = true;
  });
  if (nan) refuse_nan(scores, row);
  if (k == 0) {
    kth(row) = std::numeric_limits<T>::infinity();
    each_part([&](std::size_t, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) mask(row, c) = false;
    });
    return;
  }

  std::size_t bin = bins;
  int64_t above = 0, inside = 0;
  do {
    above += inside;
    --bin;
    inside = 0;
    for (const auto& count : counts) inside += count[bin];
  } while (above + inside < k);

  std::vector<int64_t> first(static_cast<std::size_t>(parts) + 1);
  for (std::size_t p = 0; p + 1 < first.size(); ++p) first[p + 1] = first[p] + counts[p][bin];
  std::vector<Key<T>> keys(static_cast<std::size_t>(inside));
  each_part([&](std::size_t p, int64_t begin, int64_t end) {
    auto at = static_cast<std::size_t>(first[p]);
    for (int64_t c = begin; c < end; ++c)
      if (const auto key = key_of(scores(row, c)); key >> shift == bin) keys[at++] = key;
  });
  std::vector<Key<T>> ordered = keys;
  const auto [key, larger] = kth_of(ordered, k - above);
  const T limit = number_of<T>(key);
  kth(row) = limit;
  const Key<T> found = key;
  int64_t ties = k - above - larger;
  std::vector<int64_t> share(static_cast<std::size_t>(parts));
  for (std::size_t p = 0; p < share.size(); ++p) {
    share[p] = ties;
    ties -= std::count(keys.begin() + first[p], keys.begin() + first[p + 1], found);
  }
  each_part([&](std::size_t p, int64_t begin, int64_t end) { mark(scores, row, begin, end, limit, share[p], mask); });
}

template <class T>
void select(Tensor<const T, 2> scores, int64_t k, Tensor<bool, 2> mask, Tensor<T, 1> kth) {
  const int64_t rows = scores.shape[0], columns = scores.shape[1];
  check_k(k, columns);
  if (columns > part) {
    for (int64_t r = 0; r < rows; ++r) long_row(scores, r, k, mask, kth);
    return;
  }
  core::parallel_for(rows, std::max<int64_t>(1, part / std::max<int64_t>(columns, 1)), [&](int64_t begin, int64_t end) {
    std::vector<Key<T>> keys;
    for (int64_t r = begin; r < end; ++r) short_row(scores, r, k, keys, mask, kth);
  });
}
}  // namespace

void topk_mask(Tensor<const float, 2> scores, int64_t k, Tensor<bool, 2> mask, Tensor<float, 1> kth) { select(scores, k, mask, kth); }
void topk_mask_f64(Tensor<const double, 2> scores, int64_t k, Tensor<bool, 2> mask, Tensor<double, 1> kth) { select(scores, k, mask, kth); }

void moe_route(Tensor<const bool, 2> mask, Tensor<int64_t, 1> offsets, Tensor<int64_t, 1> tokens) {
  const int64_t T = mask.shape[0], E = mask.shape[1], room = tokens.shape[0];
  check_offsets("moe_route", offsets.shape[0], E);
  std::vector<int64_t> next(static_cast<std::size_t>(E));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t e = 0; e < E; ++e) next[static_cast<std::size_t>(e)] += mask(t, e);
  int64_t sum = 0;
  for (auto& n : next) n = std::exchange(sum, sum + n);
  if (sum > room)
    throw core::Error("ValueError", "moe_route: argument 'tokens' must have room for the " + std::to_string(sum) +
                                        " pairs of 'mask', got " + std::to_string(room));
  for (int64_t e = 0; e < E; ++e) offsets(e) = next[static_cast<std::size_t>(e)];
  offsets(E) = sum;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t e = 0; e < E; ++e)
      if (mask(t, e)) tokens(next[static_cast<std::size_t>(e)]++) = t;
  for (int64_t a = sum; a < room; ++a) tokens(a) = -1;
}
}  // namespace core_diffusion
