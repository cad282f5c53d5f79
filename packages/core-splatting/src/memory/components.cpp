// Principal scene components on the CPU; see include/core_splatting/memory.hpp.
//
// Cosines of a chunk of candidates with all rows come panel by panel, those with taken rows first: a candidate that is near
// a taken row is out, and its remaining cosines are not computed.
#include <core/isa.hpp>
#include <core_splatting/memory.hpp>

#include <cmath>
#include <limits>
#include <numeric>

#include "components.hpp"
#include "panels.hpp"

namespace core_splatting {
namespace {

using std::int64_t;
using Matrix = core::Tensor<const float, 2>;
using Bits = std::uint16_t;
static_assert(lanes == 16);

constexpr int64_t candidates = 240, panels_at_a_time = 512;
constexpr float doubtful = 2e-5f;  // a float32 cosine this near to the threshold is computed again

struct Search {
  Matrix features;
  double threshold;
  std::vector<double> norms;
  Panels rows;                 // unit rows as columns: [D, N]
  std::vector<Bits> near;      // [panels][candidates]: who is near
  std::vector<int64_t> chunk;  // rows that are candidates
  std::vector<int64_t> alive;  // the places in the chunk of those that are not out yet
  std::vector<float> unit;     // [candidates][D], those of the alive
};

std::size_t index_of(int64_t i) { return static_cast<std::size_t>(i); }

bool reaches(const Search& s, int64_t i, int64_t j) {
  if (i == j) return true;
  if (j >= s.features.shape[0]) return false;
  double sum = 0;
  for (int64_t d = 0; d < s.features.shape[1]; ++d) sum += static_cast<double>(s.features(i, d)) * static_cast<double>(s.features(j, d));
  const double norms = s.norms[index_of(i)] * s.norms[index_of(j)];
  return norms > 0 && sum >= (s.threshold - slack) * norms;
}

/// Which of a panel's rows are near the candidates that are alive.
void near_panel(Search* s, int64_t panel) {
  const int64_t count = static_cast<int64_t>(s->alive.size()), depth = s->rows.depth;
  const float low = static_cast<float>(s->threshold) - doubtful, high = static_cast<float>(s->threshold) + doubtful;
  Bits* const near = s->near.data() + panel * candidates;
  for (int64_t first = 0; first < count; first += tile_rows) {
    float cosines[tile_rows * lanes] = {};
    for (int64_t k = 0; k < depth; k += depth_block)
      add_tile(std::min(depth_block, depth - k), s->unit.data() + first * depth + k, depth, s->rows.panel(panel) + k * lanes, cosines,
               lanes);
    for (int64_t i = 0; i < std::min(tile_rows, count - first); ++i) {
      const float* const row = cosines + i * lanes;
      unsigned possible = 0, sure = 0;
      for (int64_t j = 0; j < lanes; ++j) possible |= unsigned{row[j] >= low} << j, sure |= unsigned{row[j] > high} << j;
      const int64_t place = s->alive[index_of(first + i)];
      for (int64_t j = 0; possible != sure && j < lanes; ++j)
        if ((possible & ~sure) >> j & 1 && reaches(*s, s->chunk[index_of(place)], panel * lanes + j)) sure |= 1u << j;
      near[place] = static_cast<Bits>(sure);
    }
  }
}

void measure(Search& s) {
  const int64_t count = s.features.shape[0], depth = s.features.shape[1];
  s.norms.resize(index_of(count));
  core::parallel_for(count, 1 + 8192 / (depth + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
      for (int64_t d = 0; d < depth; ++d) sum += static_cast<double>(s.features(i, d)) * static_cast<double>(s.features(i, d));
      if (!(sum <= static_cast<double>(std::numeric_limits<float>::max()))) throw not_finite(i);
      s.norms[index_of(i)] = std::sqrt(sum);
    }
  });
  s.rows.pack(depth, count, [&](int64_t d, int64_t i) {
    const double norm = s.norms[index_of(i)];
    return norm > 0 ? static_cast<float>(static_cast<double>(s.features(i, d)) / norm) : 0.f;
  });
}

/// Compares the chunk with all rows, panels in `order`; leaves in `alive` those that are not near a taken row.
void compare(Search& s, const std::vector<int64_t>& order, const std::vector<Bits>& taken) {
  s.alive.resize(s.chunk.size());
  std::iota(s.alive.begin(), s.alive.end(), 0);
  const int64_t depth = s.rows.depth, panels = s.rows.count();
  for (int64_t first = 0; first < panels && !s.alive.empty(); first += panels_at_a_time) {
    const int64_t last = std::min(first + panels_at_a_time, panels);
    for (int64_t i = 0; i < static_cast<int64_t>(s.alive.size()); ++i) {
      const int64_t row = s.chunk[index_of(s.alive[index_of(i)])];
      for (int64_t d = 0; d < depth; ++d) s.unit[index_of(i * depth + d)] = s.rows.panel(row / lanes)[d * lanes + row % lanes];
    }
    core::parallel_for(last - first, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = first + begin; p < first + end; ++p) core::multiversion<&near_panel>(&s, order[index_of(p)]);
    });
    std::erase_if(s.alive, [&](int64_t place) {
      for (int64_t p = first; p < last; ++p)
        if (s.near[index_of(order[index_of(p)] * candidates + place)] & taken[index_of(order[index_of(p)])]) return true;
      return false;
    });
  }
}

}  // namespace

void principal_components(Matrix features, double threshold, core::Tensor<bool, 1> selected) {
  check_threshold(threshold);
  const int64_t count = features.shape[0], depth = features.shape[1];
  for (int64_t i = 0; i < count; ++i) selected(i) = false;
  Search s{features, threshold, {}, {}, {}, {}, {}, {}};
  measure(s);
  const int64_t panels = s.rows.count();
  std::vector<Bits> taken(index_of(panels));
  std::vector<int64_t> order(index_of(panels));
  std::iota(order.begin(), order.end(), 0);
  s.near.resize(index_of(core::checked_mul(candidates, panels, "principal_components: scratch")));
  s.unit.resize(index_of(core::checked_mul(candidates, depth, "principal_components: scratch")));
  for (int64_t next = 0; next < count;) {
    s.chunk.clear();
    for (; next < count && static_cast<int64_t>(s.chunk.size()) < candidates; ++next)
      if (!(taken[index_of(next / lanes)] >> (next % lanes) & 1) && s.norms[index_of(next)] > 0) s.chunk.push_back(next);
    std::stable_partition(order.begin(), order.end(), [&](int64_t p) { return taken[index_of(p)] != 0; });
    compare(s, order, taken);
    for (const int64_t place : s.alive) {
      const auto touched = [&](int64_t p) { return s.near[index_of(p * candidates + place)] & taken[index_of(p)]; };
      if (std::any_of(order.begin(), order.end(), touched)) continue;
      selected(s.chunk[index_of(place)]) = true;
      for (int64_t p = 0; p < panels; ++p)
        taken[index_of(p)] = static_cast<Bits>(taken[index_of(p)] | s.near[index_of(p * candidates + place)]);
    }
  }
}

}  // namespace core_splatting
