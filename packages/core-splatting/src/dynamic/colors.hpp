// The colours of 4D Gaussians as cameras see them at a time: 4D spherindrical harmonics; for the CPU and for CUDA.
#pragma once
#include "../harmonics/basis.hpp"
#include "slice.hpp"

namespace core_splatting {

/// 4D Gaussians with given colours, [1 or C, rows, D], or with harmonics.
struct Moving {
  Dynamic gaussians;
  MaybeIn<3> colors;
  Harmonics harmonics;  // coeffs[1,N,K,D]
  float duration;
};

/// Writes the colour of a row, whose Gaussian is n and lies at `place`, in a camera. `in`: the harmonics, perhaps with coefficients from
/// elsewhere.
CORE_HD void color_of(const Moving& moving, const Harmonics& in, const Centre& centre, const float* place, std::int64_t n,
                      const Out<3>& out, std::int64_t c, std::int64_t row) {
  const float phase = in.times > 1 ? (at(moving.gaussians.means, n, 3) - moving.gaussians.time) / moving.duration : 0.f;
  harmonics_along(in, direction_of(centre, place).unit, phase, 0, n, out, c, row);
}

/// What a 4D Gaussian's colour comes from, as the operator takes it.
struct Colouring {
  const MaybeIn<3>&colors, &coeffs;
  std::int64_t degree, time_degree;
  double duration;
};

/// The arguments in one; throws ValueError unless they fit.
Moving check_moving(const char* op, const Dynamic& gaussians, const Colouring& colouring);

/// Throws ValueError unless `seen` has as many rows as there are Gaussians.
void check_seen(const char* op, const MaybeOut<3>& seen, std::int64_t rows);

}  // namespace core_splatting
