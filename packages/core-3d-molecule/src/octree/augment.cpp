// Random rotations and shifts of structures; see include/core_3d_molecule/octree.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/octree.hpp>

#include <array>
#include <cmath>

#include "../checks.hpp"
#include "../random.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int64_t structures_per_part = 64;

/// A uniformly random rotation: the one of a random unit quaternion.
std::array<std::array<double, 3>, 3> rotation(Random& random) {
  double w = 0, x = 0, y = 0, z = 0, square = 0;
  do {
    w = random.normal(), x = random.normal(), y = random.normal(), z = random.normal();
    square = w * w + x * x + y * y + z * z;
  } while (!(square > 0));
  const double s = 2 / square;
  return {{{1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)},
           {s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)},
           {s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)}}};
}
}  // namespace

void octree_augment(Tensor<const double, 2> positions, Tensor<const int64_t, 1> offsets, int64_t anchors, double rotate, double noise,
                    double step, int64_t steps, double drop, int64_t seed, Tensor<double, 2> moved, Tensor<double, 2> middles,
                    Tensor<double, 1> drops) {
  static constexpr const char* op = "octree_augment";
  constexpr int64_t most_steps = 1024;
  check_offsets(op, "offsets", offsets, positions.shape[0]);
  if (anchors < 0) refuse(op, "anchors", "be 0 or more, got " + std::to_string(anchors));
  if (steps < 0 || steps > most_steps) refuse(op, "steps", "be in 0..1024, got " + std::to_string(steps));
  for (const auto& [name, value, most] :
       {std::tuple{"rotate", rotate, 1.0}, {"drop", drop, 1.0}, {"noise", noise, 1e6}, {"step", step, 1e6}})
    if (!(value >= 0 && value <= most)) refuse(op, name, "be in 0.." + text(most) + ", got " + text(value));
  core::parallel_for(middles.shape[0], structures_per_part, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = offsets(b), end = offsets(b + 1), until = anchors ? std::min(begin + anchors, end) : end;
      Random random(seed, Purpose::augment, b);
      double mean[3] = {};
      for (int64_t i = begin; i < until; ++i)
        for (int k = 0; k < 3; ++k) mean[k] += positions(i, k) / static_cast<double>(until - begin);
      const bool turned = random.uniform() < rotate;
      const auto r = turned ? rotation(random) : std::array<std::array<double, 3>, 3>{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
      for (int64_t i = begin; i < end; ++i) {
        const double p[3] = {positions(i, 0) - mean[0], positions(i, 1) - mean[1], positions(i, 2) - mean[2]};
        for (int k = 0; k < 3; ++k) {
          const auto& q = r[static_cast<std::size_t>(k)];
          moved(i, k) = turned ? mean[k] + (q[0] * p[0] + q[1] * p[1] + q[2] * p[2]) : positions(i, k);
        }
      }
      for (int k = 0; k < 3; ++k) {
        const double shift = noise * random.normal();
        middles(b, k) = mean[k] - shift - step * static_cast<double>(random.below(2 * steps + 1) - steps);
      }
      drops(b) = drop * random.uniform();
    }
  });
}
}  // namespace core_3d_molecule
