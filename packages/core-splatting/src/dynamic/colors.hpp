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

/// Adds the derivatives of a colour's row to v_coeffs[1,N,K,D], gives those by the place and returns that by the mean in time.
CORE_HD float color_backward(const Moving& moving, const Harmonics& in, const Centre& centre, const float* place, std::int64_t n,
                             const In<3>& v_out, std::int64_t c, std::int64_t row, const Out<4>& v_coeffs, float* v_place) {
  bool some = false;  // of what is hidden nothing is asked, be its coefficients NaN
  for (std::int64_t d = 0; d < v_out.shape[2]; ++d) some |= at(v_out, c, row, d) != 0.f;
  for (int k = 0; k < 3; ++k) v_place[k] = 0.f;
  if (!some) return 0.f;
  const float phase = in.times > 1 ? (at(moving.gaussians.means, n, 3) - moving.gaussians.time) / moving.duration : 0.f;
  float v_phase = 0.f;
  harmonics_along_backward(in, direction_of(centre, place), phase, 0, n, v_out, c, row, v_coeffs, v_place, v_phase);
  return v_phase / moving.duration;
}

/// The harmonics, as the operators take them.
struct Colouring {
  const MaybeIn<3>& coeffs;
  std::int64_t degree, time_degree;
  double duration;
};

/// The arguments in one; throws ValueError unless they fit.
Moving check_moving(const char* op, const Dynamic& gaussians, const MaybeIn<3>& colors, const Colouring& colouring);

/// The same where `colors` are also there with harmonics: as they were seen.
inline Moving check_moving_seen(const char* op, const Dynamic& gaussians, const In<3>& colors, const Colouring& colouring) {
  if (colors.shape[1] != count_of(gaussians)) check_moving(op, gaussians, colors, {{}, 0, 0, 1.0});
  return check_moving(op, gaussians, colouring.coeffs ? MaybeIn<3>{} : colors, colouring);
}

/// Throws ValueError unless the gradients that the arguments ask for are there.
void check_moving_gradients(const char* op, const Moving& moving, const In<3>& colors, const MaybeOut<3>& v_colors,
                            const MaybeOut<3>& v_coeffs, const MaybeOut<3>& v_means2d, std::int64_t cameras);

/// Throws ValueError unless `seen` has as many rows as there are Gaussians.
void check_seen(const char* op, const MaybeOut<3>& seen, std::int64_t rows);

}  // namespace core_splatting
