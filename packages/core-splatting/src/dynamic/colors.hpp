// The colours of 4D Gaussians as cameras see them at a time: 4D spherindrical harmonics; for the CPU and for CUDA.
#pragma once
#include "../harmonics/basis.hpp"
#include "slice.hpp"

namespace core_splatting {

/// 4D Gaussians with given colours, [1 or C, rows, D], or with harmonics; `depth`: whether another channel has their depth.
struct Moving {
  Dynamic gaussians;
  In<3> colors;
  Harmonics harmonics;  // coeffs[1,N,K,D]; of no functions without
  float duration;
  bool depth;
};

/// `colors` without the channel of the depth.
template <class T>
CORE_HD core::Tensor<T, 3> without_depth(const Moving& moving, core::Tensor<T, 3> colors) {
  colors.shape[2] -= moving.depth;
  return colors;
}

/// Writes the colour, and the depth, of a row, whose Gaussian is n and lies at `place`, in a camera to a row of a set. `in`: the
/// harmonics, perhaps with coefficients from elsewhere.
CORE_HD void color_of(const Moving& moving, const Harmonics& in, const Centre& centre, const In<3>& viewmats, std::int64_t c,
                      const float* place, std::int64_t n, const Out<3>& out, std::int64_t set, std::int64_t row) {
  const Out<3> colors = without_depth(moving, out);
  if (in.times) {
    const float phase = in.times > 1 ? (at(moving.gaussians.means, n, 3) - moving.gaussians.time) / moving.duration : 0.f;
    harmonics_along(in, direction_of(centre, place).unit, phase, 0, n, colors, set, row);
  } else {
    for (std::int64_t d = 0; d < colors.shape[2]; ++d)
      at(out, set, row, d) = at(moving.colors, moving.colors.shape[0] == 1 ? 0 : c, row, d);
  }
  if (!moving.depth) return;
  float depth = at(viewmats, c, 2, 3);
  for (int k = 0; k < 3; ++k) depth += at(viewmats, c, 2, k) * place[k];
  at(out, set, row, colors.shape[2]) = depth;
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

/// The harmonics and the depth, as the operators take them.
struct Colouring {
  const MaybeIn<3>& coeffs;
  std::int64_t degree, time_degree;
  double duration;
  bool depth;
};

/// The arguments in one, for a picture of so many channels; throws ValueError unless they fit.
Moving check_moving(const char* op, const Dynamic& gaussians, const MaybeIn<3>& colors, const Colouring& colouring, std::int64_t channels);

/// The same where `colors`, with the depth, are also there with harmonics: as they were seen.
inline Moving check_moving_seen(const char* op, const Dynamic& gaussians, const In<3>& colors, const Colouring& colouring) {
  const std::int64_t channels = colors.shape[2];
  In<3> given = colors;
  given.shape[2] -= colouring.depth;
  if (colors.shape[1] != count_of(gaussians)) check_moving(op, gaussians, colors, {{}, 0, 0, 1.0, false}, channels);
  return check_moving(op, gaussians, colouring.coeffs ? MaybeIn<3>{} : given, colouring, channels);
}

/// Throws ValueError unless the gradients that the arguments ask for are there.
void check_moving_gradients(const char* op, const Moving& moving, const In<3>& colors, const MaybeOut<3>& v_colors,
                            const MaybeOut<3>& v_coeffs, const MaybeOut<3>& v_means2d, std::int64_t cameras);

/// Throws ValueError unless `seen` has as many rows as there are Gaussians.
void check_seen(const char* op, const MaybeOut<3>& seen, std::int64_t rows);

}  // namespace core_splatting
