#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <plugin_name/pairwise.hpp>

#include <algorithm>
#include <vector>

namespace plugin_name {
namespace {
constexpr std::int64_t width = 64;  // columns of a tile

// Adds (x[d] - tile[d][j])^2 over d to sum[j]; compiled for each instruction set.
void row(const float* x, std::int64_t step, const float* tile, std::int64_t depth, float* sum) {
  float local[width]{};
  for (std::int64_t d = 0; d < depth; ++d)
    for (std::int64_t j = 0; j < width; ++j) {
      const float difference = x[d * step] - tile[d * width + j];
      local[j] += difference * difference;
    }
  std::copy_n(local, width, sum);
}
}  // namespace

void pairwise_sqdist(core::Tensor<const float, 2> x, core::Tensor<const float, 2> y, core::Tensor<float, 2> out) {
  const std::int64_t rows = x.shape[0], depth = x.shape[1], columns = y.shape[0];
  core::parallel_for((columns + width - 1) / width, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> tile(static_cast<std::size_t>(core::checked_mul(depth, width, "pairwise_sqdist: argument 'y'")));
    float sum[width];
    for (std::int64_t first = begin * width; first < std::min(end * width, columns); first += width) {
      const std::int64_t count = std::min(width, columns - first);
      for (std::int64_t d = 0; d < depth; ++d)
        for (std::int64_t j = 0; j < count; ++j) tile[static_cast<std::size_t>(d * width + j)] = y(first + j, d);
      for (std::int64_t i = 0; i < rows; ++i) {
        core::multiversion<&row>(x.data + i * x.stride[0], x.stride[1], static_cast<const float*>(tile.data()), depth, sum);
        for (std::int64_t j = 0; j < count; ++j) out(i, first + j) = sum[j];
      }
    }
  });
}
}  // namespace plugin_name
