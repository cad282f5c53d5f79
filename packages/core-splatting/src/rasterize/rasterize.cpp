// Forward rasterisation on the CPU: project, one radix sort by depth, a stable counting sort into tiles, blend tile by
// tile in the first-level cache, a register of a row at a time.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_splatting/rasterize.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#if CORE_HAS_ISA_LEVELS
#include <immintrin.h>
#endif

#include "../scenes.hpp"
#include "tiles.hpp"

namespace core_splatting {

namespace {

struct Key {
  std::uint32_t depth, index;
};

/// Stable, by the bits of positive floats, eleven at a time.
void sort_by_depth(Untouched<Key>& keys) {
  Untouched<Key> other(keys.size());
  std::vector<std::uint32_t> at(3 * 2048);
  for (const Key k : keys)
    for (int pass = 0; pass < 3; ++pass) ++at[static_cast<std::size_t>(pass) * 2048 + (k.depth >> (11 * pass) & 2047)];
  for (int pass = 0; pass < 3; ++pass) {
    std::uint32_t* const next = at.data() + pass * 2048;
    std::uint32_t sum = 0;
    for (int b = 0; b < 2048; ++b) sum += std::exchange(next[b], sum);
    for (const Key k : keys) other[next[k.depth >> (11 * pass) & 2047]++] = k;
    keys.swap(other);
  }
}

}  // namespace

template <class Source>
Projected project_sorted(const Camera& cam, const Options& o, const Source& gaussians) {
  const std::int64_t n = count_of(gaussians);
  Untouched<Splat> all(static_cast<std::size_t>(n));
  Untouched<float> depths(static_cast<std::size_t>(n));
  core::parallel_for(n, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      Splat& s = all[static_cast<std::size_t>(i)];
      float depth;
      const bool visible = project(cam, o, load_gaussian(gaussians, i), s, depth) && in_picture(s, o);
      depths[static_cast<std::size_t>(i)] = visible ? depth : 0.f;
    }
  });
  Untouched<Key> keys;
  keys.reserve(static_cast<std::size_t>(n));
  for (std::uint32_t i = 0; i < n; ++i)
    if (depths[i] > 0) keys.push_back({std::bit_cast<std::uint32_t>(depths[i]), i});
  sort_by_depth(keys);
  Projected p;
  p.splats.resize(keys.size()), p.index.resize(keys.size());
  core::parallel_for(static_cast<std::int64_t>(keys.size()), 4096, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      p.index[i] = keys[i].index;
      p.splats[i] = all[keys[i].index];
    }
  });
  return p;
}

template Projected project_sorted(const Camera&, const Options&, const Gaussians&);
template Projected project_sorted(const Camera&, const Options&, const Dynamic&);

Bins bin(const Projected& projected, const Options& o) {
  const auto& splats = projected.splats;
  struct Row {
    std::uint16_t first, last;
  };
  const std::size_t tiles = static_cast<std::size_t>(o.tiles_x) * static_cast<std::size_t>(o.tiles_y), n = splats.size();
  const std::size_t parts = std::clamp<std::size_t>(
      (std::size_t{1} << 22) / tiles, 1, std::clamp<std::size_t>(n / 2048, 1, static_cast<std::size_t>(core::num_threads()) * 2));
  const auto part_begin = [&](std::size_t part) { return n * part / parts; };
  std::vector<std::vector<Row>> rows(parts);
  std::vector<std::vector<std::uint32_t>> next(parts);
  core::parallel_for(static_cast<std::int64_t>(parts), 1, [&](std::int64_t first_part, std::int64_t last_part) {
    for (auto part = static_cast<std::size_t>(first_part); part < static_cast<std::size_t>(last_part); ++part) {
      next[part].assign(tiles, 0);
      rows[part].reserve((part_begin(part + 1) - part_begin(part)) * 2);
      for (std::size_t i = part_begin(part); i < part_begin(part + 1); ++i) {
        const Range range = tile_rows(splats[i], o);
        for (int row = range.first; row <= range.last; ++row) {
          const Range columns = tile_columns(splats[i], o, row);
          const bool some = columns.last >= columns.first;
          rows[part].push_back(some ? Row{static_cast<std::uint16_t>(columns.first), static_cast<std::uint16_t>(columns.last)} : Row{1, 0});
          for (int column = columns.first; column <= columns.last; ++column)
            ++next[part][static_cast<std::size_t>(row * o.tiles_x + column)];
        }
      }
    }
  });
  Bins bins{std::vector<std::uint32_t>(tiles + 1), {}};
  std::uint64_t sum = 0;
  for (std::size_t t = 0; t < tiles; ++t) {
    bins.begin[t] = static_cast<std::uint32_t>(sum);
    for (auto& counts : next) {
      const std::uint32_t here = counts[t];
      counts[t] = static_cast<std::uint32_t>(sum);
      sum += here;
    }
    if (sum > static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max()))
      throw core::Error("MemoryError", "rasterize: the Gaussians of one camera reach more than 2^31 - 1 tiles");
  }
  bins.begin[tiles] = static_cast<std::uint32_t>(sum);
  bins.list.resize(sum);
  core::parallel_for(static_cast<std::int64_t>(parts), 1, [&](std::int64_t first_part, std::int64_t last_part) {
    for (auto part = static_cast<std::size_t>(first_part); part < static_cast<std::size_t>(last_part); ++part) {
      const Row* columns = rows[part].data();
      for (std::size_t i = part_begin(part); i < part_begin(part + 1); ++i) {
        const Range range = tile_rows(splats[i], o);
        for (int row = range.first; row <= range.last; ++row, ++columns)
          for (int column = columns->first; column <= columns->last; ++column)
            bins.list[next[part][static_cast<std::size_t>(row * o.tiles_x + column)]++] = static_cast<std::uint32_t>(i);
      }
    }
  });
  return bins;
}

namespace {

constexpr int channel_chunk = 32;

#define CORE_LEVEL_FILE "blend.inc"
#include "each_level.inc"

auto blending_of_tile(std::int64_t channels) {
  switch (channels) {
    case 1: return CORE_OF_THIS_LEVEL(blend_tile<1>);
    case 3: return CORE_OF_THIS_LEVEL(blend_tile<3>);
    case 4: return CORE_OF_THIS_LEVEL(blend_tile<4>);
    default: return CORE_OF_THIS_LEVEL(blend_tile<0>);
  }
}

}  // namespace

void blend(Frame frame) {
  const std::int64_t tiles = static_cast<std::int64_t>(frame.options.tiles_x) * frame.options.tiles_y, channels = frame.colors.shape[2];
  do {
    frame.channels = std::min<std::int64_t>(channels - frame.channel, channel_chunk);
    const auto run = blending_of_tile(frame.channels);
    // Tiles are dealt one by one: they differ in work by orders of magnitude.
    std::atomic<std::int64_t> next{0};
    core::parallel_for(core::num_threads(), 1, [&](std::int64_t, std::int64_t) {
      for (std::int64_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < tiles;) run(&frame, tile);
    });
    frame.channel += frame.channels;
  } while (frame.channel < channels);
}

namespace {

/// Of one scene.
void rasterize_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats,
                        In<3> Ks, MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d,
                        double max_alpha, bool antialiased, const char* camera_model, Out<4> out_colors, Out<3> out_alphas,
                        MaybeOutWorkspace) {
  const std::int64_t cameras = viewmats.shape[0];
  const Options o = check_options("rasterize", cameras, means.shape[0], colors.shape[0],
                                  {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, out_alphas.shape[1],
                                  out_alphas.shape[2]);
  const Gaussians gaussians = check_gaussians("rasterize", means, quats, scales, covars, opacities);
  const std::int64_t tiles = static_cast<std::int64_t>(o.tiles_x) * o.tiles_y;
  for (std::int64_t c = 0; c < cameras; ++c) {
    const Camera cam = load_camera("rasterize", viewmats, Ks, c);
    if (tiles == 0) continue;
    const Projected projected = project_sorted(cam, o, gaussians);
    const Bins bins = bin(projected, o);
    blend({&projected, &bins, o, c, colors.shape[0] == 1 ? 0 : c, colors, backgrounds ? &*backgrounds : nullptr, out_colors, out_alphas});
  }
}

}  // namespace

void rasterize(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors, In<3> viewmats, In<3> Ks,
               MaybeIn<2> backgrounds, double near_plane, double far_plane, double radius_clip, double eps2d, double max_alpha,
               bool antialiased, const char* camera_model, std::int64_t scenes, Out<4> out_colors, Out<3> out_alphas,
               MaybeOutWorkspace workspace) {
  for_each_scene("rasterize", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                       s.views(viewmats), s.views(Ks), s.views(backgrounds), near_plane, far_plane, radius_clip, eps2d, max_alpha,
                       antialiased, camera_model, s.views(out_colors), s.views(out_alphas), workspace);
  });
}

}  // namespace core_splatting
