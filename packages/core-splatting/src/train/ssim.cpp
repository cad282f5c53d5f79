// Structural similarity on the CPU. A band of rows of one plane goes through a ring of eleven filtered rows, so that
// nothing but the result leaves the cache.
#include <core/isa.hpp>
#include <core/parallel.hpp>

#include <algorithm>
#include <vector>

#include "train.hpp"

namespace core_splatting {
namespace {

constexpr std::int64_t band = 64;

/// One row of a plane, with `reach` zeros on both sides.
void load_row(const core::Tensor<const float, 4>& t, std::int64_t b, std::int64_t c, std::int64_t y, float* to) {
  const std::int64_t height = t.shape[2], width = t.shape[3], stride = t.stride[3];
  const bool inside = y >= 0 && y < height;
  const float* const from = inside && width ? &t(b, c, y, std::int64_t{0}) : nullptr;
  for (std::int64_t x = 0; x < width; ++x) to[reach + x] = inside ? from[x * stride] : 0.f;
}

inline void filter_row(const float* __restrict from, float* __restrict to, std::int64_t width) {
  for (std::int64_t x = 0; x < width; ++x) {
    float sum = 0.f;
    for (int k = 0; k < window; ++k) sum += window_weights[k] * from[x + k];
    to[x] = sum;
  }
}

/// The column filter over rows `first` to `first` + 10 of a ring of eleven.
inline void filter_columns(const float* ring, std::int64_t first, std::int64_t pitch, float* __restrict to, std::int64_t width) {
  const float* __restrict rows[window];
  for (int k = 0; k < window; ++k) rows[k] = ring + (first + k) % window * pitch;
  for (std::int64_t x = 0; x < width; ++x) {
    float sum = 0.f;
    for (int k = 0; k < window; ++k) sum += window_weights[k] * rows[k][x];
    to[x] = sum;
  }
}

struct Forward {
  core::Tensor<const float, 4> image, target;
  core::Tensor<float, 4> out;
  std::optional<core::Tensor<float, 5>> partials;
};

void forward_band(const Forward* job, std::int64_t plane, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = job->out.shape[3], b = plane / job->out.shape[1], c = plane % job->out.shape[1];
  const std::int64_t pitch = width + 2 * reach;
  std::vector<float> memory(static_cast<std::size_t>(pitch * (5 + 5 * window + 5)));
  float* const padded = memory.data();
  float* const ring = padded + 5 * pitch;
  float* const filtered = ring + 5 * window * pitch;
  for (std::int64_t y = begin - reach; y < end + reach; ++y) {
    load_row(job->image, b, c, y, padded);
    load_row(job->target, b, c, y, padded + pitch);
    for (std::int64_t x = 0; x < pitch; ++x) {
      const float i = padded[x], t = padded[pitch + x];
      padded[2 * pitch + x] = i * i, padded[3 * pitch + x] = t * t, padded[4 * pitch + x] = i * t;
    }
    const std::int64_t at = y - (begin - reach);
    for (int q = 0; q < 5; ++q) filter_row(padded + q * pitch, ring + (q * window + at % window) * pitch, width);
    if (at < window - 1) continue;
    const std::int64_t row = y - reach;
    for (int q = 0; q < 5; ++q) filter_columns(ring + q * window * pitch, at - (window - 1), pitch, filtered + q * pitch, width);
    for (std::int64_t x = 0; x < width; ++x) {
      const Similarity s =
          similarity(filtered[x], filtered[pitch + x], filtered[2 * pitch + x], filtered[3 * pitch + x], filtered[4 * pitch + x]);
      job->out(b, c, row, x) = s.value;
      if (!job->partials) continue;
      (*job->partials)(0, b, c, row, x) = s.by_mean;
      (*job->partials)(1, b, c, row, x) = s.by_square;
      (*job->partials)(2, b, c, row, x) = s.by_product;
    }
  }
}

struct Backward {
  core::Tensor<const float, 4> image, target;
  core::Tensor<const float, 5> partials;
  core::Tensor<const float, 4> v_out;
  core::Tensor<float, 4> v_image;
};

void backward_band(const Backward* job, std::int64_t plane, std::int64_t begin, std::int64_t end) {
  const std::int64_t height = job->v_image.shape[2], width = job->v_image.shape[3];
  const std::int64_t b = plane / job->v_image.shape[1], c = plane % job->v_image.shape[1], pitch = width + 2 * reach;
  std::vector<float> memory(static_cast<std::size_t>(pitch * (1 + 3 * window + 3)));
  float* const padded = memory.data();
  float* const ring = padded + pitch;
  float* const filtered = ring + 3 * window * pitch;
  for (std::int64_t y = begin - reach; y < end + reach; ++y) {
    const std::int64_t at = y - (begin - reach);
    const bool inside = y >= 0 && y < height;
    for (int q = 0; q < 3; ++q) {
      for (std::int64_t x = 0; x < width; ++x) padded[reach + x] = inside ? job->v_out(b, c, y, x) * job->partials(q, b, c, y, x) : 0.f;
      filter_row(padded, ring + (q * window + at % window) * pitch, width);
    }
    if (at < window - 1) continue;
    const std::int64_t row = y - reach;
    for (int q = 0; q < 3; ++q) filter_columns(ring + q * window * pitch, at - (window - 1), pitch, filtered + q * pitch, width);
    for (std::int64_t x = 0; x < width; ++x)
      job->v_image(b, c, row, x) =
          filtered[x] + 2.f * job->image(b, c, row, x) * filtered[pitch + x] + job->target(b, c, row, x) * filtered[2 * pitch + x];
  }
}

template <auto F, class Job>
void over_bands(const Job& job, const std::array<std::int64_t, 4>& shape) {
  const std::int64_t bands = (shape[2] + band - 1) / band, planes = shape[3] ? shape[0] * shape[1] : 0;
  core::parallel_for(bands * planes, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t begin = i % bands * band;
      core::multiversion<F>(&job, i / bands, begin, std::min(begin + band, shape[2]));
    }
  });
}

}  // namespace

void ssim(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<float, 4> out,
          std::optional<core::Tensor<float, 5>> partials) {
  over_bands<&forward_band>(Forward{image, target, out, partials}, out.shape);
}

void ssim_backward(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<const float, 5> partials,
                   core::Tensor<const float, 4> v_out, core::Tensor<float, 4> v_image) {
  over_bands<&backward_band>(Backward{image, target, partials, v_out, v_image}, v_image.shape);
}

}  // namespace core_splatting
