#include <algorithm>
#include <core_llm_efficiency/xattention.hpp>
#include <numeric>
#include <vector>

#include "tile.hpp"

namespace core_llm_efficiency {

void select_blocks(core::Tensor<const float, 4> scores, core::Tensor<const float, 1> thresholds, std::int64_t block, std::int64_t q_len,
                   std::int64_t k_len, bool causal, core::Tensor<bool, 4> mask) {
  const char* op = "select_blocks";
  const auto [batch, heads, q_blocks, k_blocks] = scores.shape;
  if (q_len < 0) refuse(op, "q_len", "at least 0, got " + std::to_string(q_len));
  if (k_len < 0) refuse(op, "k_len", "at least 0, got " + std::to_string(k_len));
  check_blocks(op, q_len, k_len, block, causal, "scores", q_blocks, k_blocks);
  for (std::int64_t h = 0; h < heads; ++h)
    if (!(thresholds(h) >= 0))
      refuse(op, "thresholds", "at least 0, got " + std::to_string(thresholds(h)) + " for head " + std::to_string(h));
  if (scores.numel() == 0) return;

  core::parallel_for(batch * heads * q_blocks, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(k_blocks));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / q_blocks / heads, h = i / q_blocks % heads, row = i % q_blocks;
      const std::int64_t before = k_len - q_len;
      const std::int64_t own = (before + row * block) / block;  // the blocks [own, visible) hold the row's own positions
      const std::int64_t visible = causal ? (before + std::min((row + 1) * block, q_len) - 1) / block + 1 : k_blocks;
      double sum = 0;
      for (std::int64_t j = 0; j < visible; ++j) {
        const float x = scores(b, h, row, j);
        if (x < 0) refuse(op, "scores", "at least 0, got " + std::to_string(x));
        sum += static_cast<double>(x);
      }
      const bool all = thresholds(h) >= 1 || !std::isfinite(sum);
      for (std::int64_t j = 0; j < k_blocks; ++j) mask(b, h, row, j) = j < visible && all;
      if (all) continue;

      const auto forced = [&](std::int64_t j) { return causal && (j == 0 || j >= own); };
      const auto first = order.begin(), last = first + visible;
      std::iota(first, last, std::int64_t{0});
      std::stable_sort(first, last, [&](std::int64_t x, std::int64_t y) {
        if (forced(x) != forced(y)) return forced(x);
        return scores(b, h, row, x) > scores(b, h, row, y);
      });
      const double enough = static_cast<double>(thresholds(h)) * sum;
      double mass = 0;
      for (auto j = first; j != last && (mass < enough || j == first || forced(*j)); ++j) {
        mask(b, h, row, *j) = true;
        mass += static_cast<double>(scores(b, h, row, *j));
      }
    }
  });
}
}  // namespace core_llm_efficiency
