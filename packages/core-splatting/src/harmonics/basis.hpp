// Real spherical harmonics of a direction times a cosine series, and their derivatives; for the CPU and for CUDA.
#pragma once
#include <core_splatting/harmonics.hpp>

#include <cmath>

#include "../views.hpp"

namespace core_splatting {

inline constexpr int most_harmonics = 16, most_times = 3;

struct Harmonics {
  int harmonics, times;  // numbers of functions of direction and of time
  In<2> dirs;
  In<4> coeffs;
  In<3> viewmats;                     // or no data
  In<1> phases;                       // or no data
  core::Tensor<const bool, 2> masks;  // or no data
  bool as_color;
};

/// The arguments in one; throws ValueError, in the name of the operator `op`, if they do not fit.
Harmonics check_harmonics(const char* op, std::int64_t degree, std::int64_t time_degree, const In<2>& dirs, const In<4>& coeffs,
                          const MaybeIn<3>& viewmats, const MaybeIn<1>& phases, const std::optional<core::Tensor<const bool, 2>>& masks,
                          bool as_color, std::int64_t cameras);

/// A camera's centre -R^-1 t, and R^-1; zeros without cameras.
struct Centre {
  float at[3], inverse[9];
};

CORE_HD Centre centre_of(const In<3>& viewmats, std::int64_t c) {
  Centre centre{};
  if (!viewmats.data) return centre;
  float r[9], t[3];
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) r[3 * i + k] = at(viewmats, c, i, k);
    t[i] = at(viewmats, c, i, 3);
  }
  float* const m = centre.inverse;
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) {
      const int a = (k + 1) % 3, b = (k + 2) % 3, p = (i + 1) % 3, q = (i + 2) % 3;
      m[3 * i + k] = r[3 * a + p] * r[3 * b + q] - r[3 * a + q] * r[3 * b + p];
    }
  const float over = 1.f / (r[0] * m[0] + r[1] * m[3] + r[2] * m[6]);
  for (int i = 0; i < 9; ++i) m[i] *= over;
  for (int i = 0; i < 3; ++i) centre.at[i] = -(m[3 * i] * t[0] + m[3 * i + 1] * t[1] + m[3 * i + 2] * t[2]);
  return centre;
}

/// v_viewmats of a camera, given the derivative by its centre.
CORE_HD void centre_backward(const Centre& centre, const float* v_centre, const Out<3>& v_viewmats, std::int64_t c) {
  const float* const m = centre.inverse;
  for (int i = 0; i < 3; ++i) {
    const float v = -(m[i] * v_centre[0] + m[3 + i] * v_centre[1] + m[6 + i] * v_centre[2]);
    for (int k = 0; k < 3; ++k) at(v_viewmats, c, i, k) = v * centre.at[k];
    at(v_viewmats, c, i, 3) = v;
  }
  for (int k = 0; k < 4; ++k) at(v_viewmats, c, 3, k) = 0.f;
}

/// The unit vector from the centre to a Gaussian, and the length before.
struct Direction {
  float unit[3], length;
};

CORE_HD Direction direction_of(const Centre& centre, const float* place) {
  Direction d;
  for (int k = 0; k < 3; ++k) d.unit[k] = place[k] - centre.at[k];
  d.length = sqrtf(d.unit[0] * d.unit[0] + d.unit[1] * d.unit[1] + d.unit[2] * d.unit[2]);
  const float over = 1.f / d.length;
  for (int k = 0; k < 3; ++k) d.unit[k] *= over;
  return d;
}

CORE_HD Direction direction_of(const Harmonics& in, const Centre& centre, std::int64_t n) {
  const float place[3] = {at(in.dirs, n, 0), at(in.dirs, n, 1), at(in.dirs, n, 2)};
  return direction_of(centre, place);
}

CORE_HD void basis_of(const float* u, int count, float* y) {
  y[0] = 0.28209479177387814f;
  if (count <= 1) return;
  const float a = u[0], b = u[1], c = u[2], c1 = 0.4886025119029199f;
  y[1] = -c1 * b, y[2] = c1 * c, y[3] = -c1 * a;
  if (count <= 4) return;
  const float aa = a * a, bb = b * b, cc = c * c, c2 = 1.0925484305920792f;
  y[4] = c2 * a * b, y[5] = -c2 * b * c, y[6] = 0.31539156525252005f * (2.f * cc - aa - bb), y[7] = -c2 * a * c;
  y[8] = 0.5f * c2 * (aa - bb);
  if (count <= 9) return;
  const float c3 = 0.5900435899266435f, d3 = 0.4570457994644658f, e3 = 2.890611442640554f;
  y[9] = -c3 * b * (3.f * aa - bb), y[10] = e3 * a * b * c, y[11] = -d3 * b * (4.f * cc - aa - bb);
  y[12] = 0.3731763325901154f * c * (2.f * cc - 3.f * aa - 3.f * bb), y[13] = -d3 * a * (4.f * cc - aa - bb);
  y[14] = 0.5f * e3 * c * (aa - bb), y[15] = -c3 * a * (aa - 3.f * bb);
}

/// Adds the derivatives by the direction, given those by the basis.
CORE_HD void basis_backward(const float* u, int count, const float* v, float* v_u) {
  if (count <= 1) return;
  const float a = u[0], b = u[1], c = u[2], c1 = 0.4886025119029199f;
  v_u[0] -= c1 * v[3], v_u[1] -= c1 * v[1], v_u[2] += c1 * v[2];
  if (count <= 4) return;
  const float aa = a * a, bb = b * b, cc = c * c, c2 = 1.0925484305920792f, d2 = 2.f * 0.31539156525252005f;
  v_u[0] += c2 * (b * v[4] - c * v[7] + a * v[8]) - d2 * a * v[6];
  v_u[1] += c2 * (a * v[4] - c * v[5] - b * v[8]) - d2 * b * v[6];
  v_u[2] += 2.f * d2 * c * v[6] - c2 * (b * v[5] + a * v[7]);
  if (count <= 9) return;
  const float c3 = 0.5900435899266435f, d3 = 0.4570457994644658f, e3 = 2.890611442640554f, f3 = 0.3731763325901154f;
  const float four = 4.f * cc - aa - bb;
  v_u[0] += -6.f * c3 * a * b * v[9] + e3 * b * c * v[10] + 2.f * d3 * a * b * v[11] - 6.f * f3 * a * c * v[12] -
            d3 * (four - 2.f * aa) * v[13] + e3 * a * c * v[14] - 3.f * c3 * (aa - bb) * v[15];
  v_u[1] += -3.f * c3 * (aa - bb) * v[9] + e3 * a * c * v[10] - d3 * (four - 2.f * bb) * v[11] - 6.f * f3 * b * c * v[12] +
            2.f * d3 * a * b * v[13] - e3 * b * c * v[14] + 6.f * c3 * a * b * v[15];
  v_u[2] += e3 * a * b * v[10] - 8.f * d3 * b * c * v[11] + f3 * (6.f * cc - 3.f * aa - 3.f * bb) * v[12] - 8.f * d3 * a * c * v[13] +
            0.5f * e3 * (aa - bb) * v[14];
}

CORE_HD float time_factor(int i, float phase) { return i == 0 ? 1.f : cosf(6.283185307179586f * static_cast<float>(i) * phase); }

CORE_HD float phase_of(const Harmonics& in, std::int64_t n) { return in.times > 1 ? at(in.phases, n) : 0.f; }

/// Writes the row of a camera, of the Gaussian n of a set of coefficients.
CORE_HD void harmonics_along(const Harmonics& in, const float* unit, float phase, std::int64_t set, std::int64_t n, const Out<3>& out,
                             std::int64_t c, std::int64_t row) {
  float y[most_harmonics], factor[most_times];
  basis_of(unit, in.harmonics, y);
  for (int i = 0; i < in.times; ++i) factor[i] = time_factor(i, phase);
  for (std::int64_t d = 0; d < out.shape[2]; ++d) {
    float total = 0.f;
    for (int i = 0; i < in.times; ++i) {
      float sum = 0.f;
      for (int k = 0; k < in.harmonics; ++k) sum += y[k] * at(in.coeffs, set, n, most_harmonics * i + k, d);
      total += factor[i] * sum;
    }
    at(out, c, row, d) = in.as_color ? (total > -0.5f ? total + 0.5f : total - total) : total;
  }
}

CORE_HD void harmonics_of(const Harmonics& in, const Centre& centre, const Out<3>& out, std::int64_t c, std::int64_t n) {
  if (in.masks.data != nullptr && !at(in.masks, c, n)) {
    for (std::int64_t d = 0; d < out.shape[2]; ++d) at(out, c, n, d) = 0.f;
    return;
  }
  harmonics_along(in, direction_of(in, centre, n).unit, phase_of(in, n), in.coeffs.shape[0] == 1 ? 0 : c, n, out, c, n);
}

/// Adds one Gaussian's derivatives in one camera to those of the Gaussian n of a set of coefficients and to v_phase, gives those by its
/// place.
CORE_HD void harmonics_along_backward(const Harmonics& in, const Direction& direction, float phase, std::int64_t set, std::int64_t n,
                                      const In<3>& v_out, std::int64_t c, std::int64_t row, const Out<4>& v_coeffs, float* v_place,
                                      float& v_phase) {
  float y[most_harmonics], v_y[most_harmonics] = {}, factor[most_times];
  basis_of(direction.unit, in.harmonics, y);
  for (int i = 0; i < in.times; ++i) factor[i] = time_factor(i, phase);
  for (std::int64_t d = 0; d < v_out.shape[2]; ++d) {
    float sums[most_times], total = 0.f;
    for (int i = 0; i < in.times; ++i) {
      sums[i] = 0.f;
      for (int k = 0; k < in.harmonics; ++k) sums[i] += y[k] * at(in.coeffs, set, n, most_harmonics * i + k, d);
      total += factor[i] * sums[i];
    }
    if (in.as_color && !(total > -0.5f)) continue;
    const float v = at(v_out, c, row, d);
    for (int i = 0; i < in.times; ++i) {
      const float shared = v * factor[i];
      for (int k = 0; k < in.harmonics; ++k) {
        at(v_coeffs, set, n, most_harmonics * i + k, d) += shared * y[k];
        v_y[k] += shared * at(in.coeffs, set, n, most_harmonics * i + k, d);
      }
      if (i) {
        const float turn = 6.283185307179586f * static_cast<float>(i);
        v_phase -= v * sums[i] * turn * sinf(turn * phase);
      }
    }
  }
  float v_unit[3] = {};
  basis_backward(direction.unit, in.harmonics, v_y, v_unit);
  const float* const u = direction.unit;
  const float along = u[0] * v_unit[0] + u[1] * v_unit[1] + u[2] * v_unit[2];
  for (int k = 0; k < 3; ++k) v_place[k] = (v_unit[k] - along * u[k]) / direction.length;
}

/// Adds one Gaussian's derivatives in one camera to v_coeffs and v_phase, gives those by its place.
CORE_HD void harmonics_backward(const Harmonics& in, const Centre& centre, const In<3>& v_out, const Out<4>& v_coeffs, std::int64_t c,
                                std::int64_t n, float* v_place, float& v_phase) {
  for (int k = 0; k < 3; ++k) v_place[k] = 0.f;
  if (in.masks.data != nullptr && !at(in.masks, c, n)) return;
  harmonics_along_backward(in, direction_of(in, centre, n), phase_of(in, n), in.coeffs.shape[0] == 1 ? 0 : c, n, v_out, c, n, v_coeffs,
                           v_place, v_phase);
}

}  // namespace core_splatting
