// Projection of one Gaussian and the exact tiles of its ellipse, for the CPU and for CUDA.
#pragma once
#include <core_splatting/rasterize.hpp>

#include "camera.hpp"

namespace core_splatting {

inline constexpr int tile_size = 16;
inline constexpr float log2e = 1.4426950408889634f;
inline constexpr float min_exponent = -7.994353436858858f;                  // log2(1/255)
inline constexpr float max_extent = 3.33f;                                  // standard deviations
inline constexpr float max_power = 0.5f * max_extent * max_extent * log2e;  // of a contribution, in bits
inline constexpr float min_transmittance = 1e-4f;

/// The square root and 1 / x; in kernels the units' own, whose relative error is about 2^-22.
CORE_HD float fast_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return sqrtf(x);
#endif
}
CORE_HD float fast_inverse(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.f / x;
#endif
}

/// The ellipse of a Gaussian: alpha(dx, dy) = 2^(uu (dx - shear dy)^2 + yy dy^2 + log2_opacity). Both uu and yy
/// are negative, so that nothing cancels, however thin the ellipse is.
struct Splat {
  float x, y, uu, shear, yy, log2_opacity;
  float extent_x, extent_y;  // half axes of the box around the pixels that it reaches
};

/// Exponents below this do not contribute.
CORE_HD float exponent_cut(float log2_opacity) { return max_of(min_exponent, log2_opacity - max_power); }

/// The arrays of Gaussians: with covars, or with quats and scales.
struct Gaussians {
  In<2> means, quats, scales, covars;
  In<1> opacities;
  bool by_covariance;
};

CORE_HD std::int64_t count_of(const Gaussians& in) { return in.opacities.shape[0]; }

struct Gaussian {
  float mean[3], quat[4], scale[3], covar[6], opacity;  // covar: xx, xy, xz, yy, yz, zz
  bool by_covariance;
};

CORE_HD Gaussian load_gaussian(const Gaussians& in, std::int64_t n) {
  Gaussian g;
  g.by_covariance = in.by_covariance;
  for (int k = 0; k < 3; ++k) g.mean[k] = at(in.means, n, k);
  if (g.by_covariance) {
    for (int k = 0; k < 6; ++k) g.covar[k] = at(in.covars, n, k);
  } else {
    for (int k = 0; k < 3; ++k) g.scale[k] = at(in.scales, n, k);
    for (int k = 0; k < 4; ++k) g.quat[k] = at(in.quats, n, k);
  }
  g.opacity = at(in.opacities, n);
  return g;
}

CORE_HD void rotation_of(const float* unit, float* rot) {
  const float w = unit[0], x = unit[1], y = unit[2], z = unit[3];
  rot[0] = 1.f - 2.f * (y * y + z * z), rot[1] = 2.f * (x * y - w * z), rot[2] = 2.f * (x * z + w * y);
  rot[3] = 2.f * (x * y + w * z), rot[4] = 1.f - 2.f * (x * x + z * z), rot[5] = 2.f * (y * z - w * x);
  rot[6] = 2.f * (x * z - w * y), rot[7] = 2.f * (y * z + w * x), rot[8] = 1.f - 2.f * (x * x + y * y);
}

/// The derivative by a unit quaternion, given that by its rotation.
CORE_HD void rotation_backward(const float* unit, const float* v_rot, float* v_unit) {
  const float w = unit[0], x = unit[1], y = unit[2], z = unit[3];
  const float wx = v_rot[7] - v_rot[5], wy = v_rot[2] - v_rot[6], wz = v_rot[3] - v_rot[1];
  const float sxy = v_rot[1] + v_rot[3], sxz = v_rot[2] + v_rot[6], syz = v_rot[5] + v_rot[7];
  v_unit[0] = 2.f * (x * wx + y * wy + z * wz);
  v_unit[1] = 2.f * (w * wx - 2.f * x * (v_rot[4] + v_rot[8]) + y * sxy + z * sxz);
  v_unit[2] = 2.f * (w * wy + x * sxy - 2.f * y * (v_rot[0] + v_rot[8]) + z * syz);
  v_unit[3] = 2.f * (w * wz + x * sxz + y * syz - 2.f * z * (v_rot[0] + v_rot[4]));
}

/// S v of a symmetric matrix (xx, xy, xz, yy, yz, zz).
CORE_HD void times_symmetric(const float* s, const float* v, float* out) {
  out[0] = s[0] * v[0] + s[1] * v[1] + s[2] * v[2];
  out[1] = s[1] * v[0] + s[3] * v[1] + s[4] * v[2];
  out[2] = s[2] * v[0] + s[4] * v[1] + s[5] * v[2];
}

/// The covariance of a projected Gaussian, before eps2d, and what it was made of.
struct Footprint {
  float point[3];         // the centre in the camera's coordinates
  View view;              // of the centre
  float a[3], b[3];       // the rows of J R_camera
  float unit[4], length;  // the quaternion, normalised
  float rot[9];
  float p0[3], p1[3];     // a R_gaussian, b R_gaussian; or covar a, covar b
  float m0[3], m1[3];     // the same times the scales
  float xx, xy, yy, det;  // the covariance and its determinant
};

CORE_HD void footprint(const Camera& cam, const Options& o, const Gaussian& g, Footprint& f) {
  f.view = view_of(cam, o, f.point[0], f.point[1], f.point[2]);
  const float *jx = f.view.jx, *jy = f.view.jy, *r = cam.r;
  for (int k = 0; k < 3; ++k) {
    f.a[k] = jx[0] * r[k] + jx[1] * r[3 + k] + jx[2] * r[6 + k];
    f.b[k] = jy[0] * r[k] + jy[1] * r[3 + k] + jy[2] * r[6 + k];
  }
  if (g.by_covariance) {
    times_symmetric(g.covar, f.a, f.p0), times_symmetric(g.covar, f.b, f.p1);
    f.xx = f.a[0] * f.p0[0] + f.a[1] * f.p0[1] + f.a[2] * f.p0[2];
    f.xy = f.b[0] * f.p0[0] + f.b[1] * f.p0[1] + f.b[2] * f.p0[2];
    f.yy = f.b[0] * f.p1[0] + f.b[1] * f.p1[1] + f.b[2] * f.p1[2];
    f.det = f.xx * f.yy - f.xy * f.xy;
    return;
  }
  const float* q = g.quat;
  f.length = sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  const float over_length = 1.f / f.length;
  for (int k = 0; k < 4; ++k) f.unit[k] = q[k] * over_length;
  rotation_of(f.unit, f.rot);
  for (int k = 0; k < 3; ++k) {
    f.p0[k] = f.a[0] * f.rot[k] + f.a[1] * f.rot[3 + k] + f.a[2] * f.rot[6 + k], f.m0[k] = g.scale[k] * f.p0[k];
    f.p1[k] = f.b[0] * f.rot[k] + f.b[1] * f.rot[3 + k] + f.b[2] * f.rot[6 + k], f.m1[k] = g.scale[k] * f.p1[k];
  }
  const float *m0 = f.m0, *m1 = f.m1;
  f.xx = m0[0] * m0[0] + m0[1] * m0[1] + m0[2] * m0[2];
  f.yy = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2];
  f.xy = m0[0] * m1[0] + m0[1] * m1[1] + m0[2] * m1[2];
  // det(m m^T) as the sum of squared minors (Cauchy-Binet): no cancellation for thin ellipses.
  const float d01 = m0[0] * m1[1] - m0[1] * m1[0], d02 = m0[0] * m1[2] - m0[2] * m1[0], d12 = m0[1] * m1[2] - m0[2] * m1[1];
  f.det = d01 * d01 + d02 * d02 + d12 * d12;
}

CORE_HD void to_camera(const Camera& cam, const float* mean, float* point) {
  const float* r = cam.r;
  for (int i = 0; i < 3; ++i) point[i] = r[3 * i] * mean[0] + r[3 * i + 1] * mean[1] + r[3 * i + 2] * mean[2] + cam.t[i];
}

/// Projects a Gaussian; false if it is culled. `depth` is its distance along the camera's axis.
CORE_HD bool project(const Camera& cam, const Options& o, const Gaussian& g, Splat& s, float& depth) {
  Footprint f;
  to_camera(cam, g.mean, f.point);
  depth = f.point[2];
  if (!(depth >= o.near_plane && depth <= o.far_plane && g.opacity > 1.f / 255.f)) return false;
  footprint(cam, o, g, f);
  const float det = f.det + o.eps2d * (f.xx + f.yy) + o.eps2d * o.eps2d, cov_x = f.xx + o.eps2d, cov_y = f.yy + o.eps2d;
  float opacity = g.opacity;
  if (o.antialiased) {
    opacity *= sqrtf(max_of(f.det / det, 0.f));
    if (!(opacity > 1.f / 255.f)) return false;
  }
  s.log2_opacity = log2f(opacity);
  const float power = s.log2_opacity - exponent_cut(s.log2_opacity);
  const float reach = sqrtf(power * (2.f / log2e));
  s.x = f.view.x;
  s.y = f.view.y;
  s.extent_x = reach * sqrtf(cov_x);
  s.extent_y = reach * sqrtf(cov_y);
  s.uu = -0.5f * log2e * cov_y / det;
  s.yy = -0.5f * log2e / cov_y;
  s.shear = f.xy / cov_y;
  const float sum = s.x + s.y + s.extent_x + s.extent_y + s.uu + s.yy + s.shear;
  return sum - sum == 0.f && s.uu < 0.f && s.yy < 0.f && (ceilf(s.extent_x) > o.radius_clip || ceilf(s.extent_y) > o.radius_clip);
}

/// Whether the box of a splat meets the picture.
CORE_HD bool in_picture(const Splat& s, const Options& o) {
  return s.x + s.extent_x > 0 && s.y + s.extent_y > 0 && s.x - s.extent_x < static_cast<float>(o.width) &&
         s.y - s.extent_y < static_cast<float>(o.height);
}

/// Derivatives of a loss by what `project` returns.
struct SplatGradient {
  float x, y, uu, shear, yy, log2_opacity, depth = 0.f;
};

/// Derivatives of a loss by what `project` takes; `r` and `t` are those of the camera.
struct GaussianGradient {
  float mean[3], quat[4], scale[3], covar[6], opacity, r[9], t[3];
};

/// The derivative of `project` at a Gaussian that is not culled.
CORE_HD GaussianGradient project_backward(const Camera& cam, const Options& o, const Gaussian& in, const SplatGradient& v) {
  Footprint f;
  to_camera(cam, in.mean, f.point);
  footprint(cam, o, in, f);
  const float det = f.det + o.eps2d * (f.xx + f.yy) + o.eps2d * o.eps2d, cov_y = f.yy + o.eps2d;

  GaussianGradient g{};
  g.opacity = v.log2_opacity * log2e / in.opacity;
  // With the covariance (A, B; B, C): uu = -k C / (A C - B^2), shear = B / C, yy = -k / C.
  constexpr float k_half = 0.5f * log2e;
  const float q = cov_y / det, shear = f.xy / cov_y;
  float v_xx = v.uu * k_half * q * q;
  float v_xy = v.shear / cov_y - 2.f * shear * v_xx;
  float v_yy = v_xx * shear * shear + (v.yy * k_half / cov_y - v.shear * shear) / cov_y;
  float v_det = 0.f;
  if (o.antialiased) {
    // log2_opacity holds log2(det / (det + eps2d (xx + yy) + eps2d^2)) / 2.
    const float half = 0.5f * log2e * v.log2_opacity;
    v_det = half / f.det - half / det;
    v_xx -= half * o.eps2d / det;
    v_yy -= half * o.eps2d / det;
  }

  float v_a[3] = {}, v_b[3] = {};
  if (in.by_covariance) {
    v_xx += v_det * f.yy, v_yy += v_det * f.xx, v_xy -= 2.f * v_det * f.xy;
    for (int i = 0, at = 0; i < 3; ++i) {
      v_a[i] = 2.f * v_xx * f.p0[i] + v_xy * f.p1[i];
      v_b[i] = 2.f * v_yy * f.p1[i] + v_xy * f.p0[i];
      for (int k = i; k < 3; ++k, ++at) {
        const float sum = v_xx * f.a[i] * f.a[k] + v_yy * f.b[i] * f.b[k] + 0.5f * v_xy * (f.a[i] * f.b[k] + f.a[k] * f.b[i]);
        g.covar[at] = i == k ? sum : 2.f * sum;
      }
    }
  } else {
    float v_rot[9];
    const float *m0 = f.m0, *m1 = f.m1;
    for (int k = 0; k < 3; ++k) {
      float v_m0 = 2.f * v_xx * m0[k] + v_xy * m1[k], v_m1 = 2.f * v_yy * m1[k] + v_xy * m0[k];
      for (int j = 0; j < 3; ++j) {
        const float minor = 2.f * v_det * (m0[k] * m1[j] - m0[j] * m1[k]);
        v_m0 += minor * m1[j], v_m1 -= minor * m0[j];
      }
      g.scale[k] = v_m0 * f.p0[k] + v_m1 * f.p1[k];
      for (int i = 0; i < 3; ++i) {
        v_a[i] += v_m0 * in.scale[k] * f.rot[3 * i + k];
        v_b[i] += v_m1 * in.scale[k] * f.rot[3 * i + k];
        v_rot[3 * i + k] = in.scale[k] * (v_m0 * f.a[i] + v_m1 * f.b[i]);
      }
    }
    float v_unit[4];
    rotation_backward(f.unit, v_rot, v_unit);
    const float along = v_unit[0] * f.unit[0] + v_unit[1] * f.unit[1] + v_unit[2] * f.unit[2] + v_unit[3] * f.unit[3];
    for (int k = 0; k < 4; ++k) g.quat[k] = (v_unit[k] - along * f.unit[k]) / f.length;
  }

  const float* r = cam.r;
  View v_view{v.x, v.y, {}, {}};
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) {
      v_view.jx[i] += v_a[k] * r[3 * i + k];
      v_view.jy[i] += v_b[k] * r[3 * i + k];
      g.r[3 * i + k] = f.view.jx[i] * v_a[k] + f.view.jy[i] * v_b[k];
    }
  view_backward(cam, o, f.point[0], f.point[1], f.point[2], v_view, g.t);
  g.t[2] += v.depth;
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) {
      g.mean[k] += r[3 * i + k] * g.t[i];
      g.r[3 * i + k] += g.t[i] * in.mean[k];
    }
  return g;
}

/// Sums over the pixels of a Gaussian of G = alpha dL/dalpha where alpha is not clamped, with u = dx - shear dy:
/// G, G u, G u^2, G dy, G u dy, G dy^2; then |G u| and |G (uu u shear - yy dy)|.
inline constexpr int moments = 8;

CORE_HD SplatGradient splat_gradient(const Splat& s, const float* m) {
  constexpr float ln2 = 1.f / log2e;
  return {-2.f * ln2 * s.uu * m[1],
          2.f * ln2 * (s.uu * s.shear * m[1] - s.yy * m[3]),
          ln2 * m[2],
          -2.f * ln2 * s.uu * m[4],
          ln2 * m[5],
          ln2 * m[0]};
}

struct Range {
  int first, last;  // empty if last < first
};

/// The cells of `size` pixels, clamped to [0, cells), that hold a pixel centre of [lo, hi].
CORE_HD Range cells(float lo, float hi, int size, int cells) {
  // A margin for rounding: a cell too many costs a little time, one too few is a hole.
  const float limit = static_cast<float>(size * cells);
  const float first = ceilf(min_of(max_of(lo - 0.52f, 0.f), limit)), last = floorf(min_of(max_of(hi - 0.48f, -1.f), limit - 1.f));
  return {static_cast<int>(first) / size, last < first ? -1 : static_cast<int>(last) / size};
}

/// The tile rows that the ellipse reaches.
CORE_HD Range tile_rows(const Splat& s, const Options& o) { return cells(s.y - s.extent_y, s.y + s.extent_y, tile_size, o.tiles_y); }

/// The interval of dx on which the ellipse may reach pixels whose dy lies in [dy0, dy1].
CORE_HD void ellipse_span(const Splat& s, float dy0, float dy1, float& left, float& right) {
  const float power = s.log2_opacity - exponent_cut(s.log2_opacity);
  // dy of the rightmost point; the leftmost is opposite.
  const float turn = s.shear * s.extent_y * s.extent_y * fast_inverse(s.extent_x);
  dy0 = max_of(dy0, -s.extent_y);
  dy1 = min_of(dy1, s.extent_y);
  const float at_right = min_of(max_of(turn, dy0), dy1), at_left = min_of(max_of(-turn, dy0), dy1), over_uu = fast_inverse(-s.uu);
  right = s.shear * at_right + fast_sqrt(max_of(power + s.yy * at_right * at_right, 0.f) * over_uu);
  left = s.shear * at_left - fast_sqrt(max_of(power + s.yy * at_left * at_left, 0.f) * over_uu);
}

/// The tiles of one tile row that the ellipse reaches.
CORE_HD_ONCE Range tile_columns(const Splat& s, const Options& o, int row) {
  float left, right;
  const float dy0 = static_cast<float>(row * tile_size) + 0.5f - s.y;
  ellipse_span(s, dy0, dy0 + static_cast<float>(tile_size - 1), left, right);
  return cells(s.x + left, s.x + right, tile_size, o.tiles_x);
}

/// The parts of `project_gaussians` for one Gaussian in one camera.
struct ProjectionOutputs {
  Out<3> means2d;
  core::Tensor<std::int32_t, 3> radii;
  Out<2> depths;
  Out<3> conics;
  Out<2> weights;
};

CORE_HD void write_projection(const ProjectionOutputs& out, const Camera& cam, const Options& o, const Gaussian& g, std::int64_t c,
                              std::int64_t n) {
  Splat s{};
  float depth = 0.f;
  const bool seen = project(cam, o, g, s, depth) && in_picture(s, o);
  constexpr float k = 2.f / log2e;
  at(out.means2d, c, n, 0) = seen ? s.x : 0.f, at(out.means2d, c, n, 1) = seen ? s.y : 0.f;
  at(out.radii, c, n, 0) = seen ? static_cast<std::int32_t>(min_of(ceilf(s.extent_x), 1e9f)) : 0;
  at(out.radii, c, n, 1) = seen ? static_cast<std::int32_t>(min_of(ceilf(s.extent_y), 1e9f)) : 0;
  at(out.depths, c, n) = seen ? depth : 0.f;
  at(out.conics, c, n, 0) = seen ? -k * s.uu : 0.f;
  at(out.conics, c, n, 1) = seen ? k * s.uu * s.shear : 0.f;
  at(out.conics, c, n, 2) = seen ? -k * (s.uu * s.shear * s.shear + s.yy) : 0.f;
  at(out.weights, c, n) = seen ? exp2f(s.log2_opacity) : 0.f;
}

/// The scalars of an operator.
struct Scalars {
  double near_plane, far_plane, radius_clip, eps2d, max_alpha;
  bool antialiased;
  const char* camera_model;
};

/// Throws ValueError, in the name of the operator `op`, if a scalar or a size is out of range.
Options check_options(const char* op, std::int64_t cameras, std::int64_t gaussians, std::int64_t color_sets, const Scalars& scalars,
                      std::int64_t height, std::int64_t width);

#if defined(CORE_WITH_CUDA)
/// The size of the workspace of `rasterize_cuda`, in 4 bytes, for `total` projections.
std::int64_t workspace_size(int device, std::int64_t total, std::int64_t tiles);
#endif

/// The arrays in one; throws ValueError unless there are either quats and scales or covars.
Gaussians check_gaussians(const char* op, const In<2>& means, const MaybeIn<2>& quats, const MaybeIn<2>& scales, const MaybeIn<2>& covars,
                          const In<1>& opacities);

/// Throws ValueError unless the gradients of the given arrays are there, v_colors has the shape of colors, and v_means2d, if
/// given, 2 or 4 columns.
void check_gradients(const char* op, const Gaussians& gaussians, const In<3>& colors, const MaybeOut<2>& v_quats,
                     const MaybeOut<2>& v_scales, const MaybeOut<2>& v_covars, const Out<3>& v_colors, const MaybeOut<3>& v_means2d);

}  // namespace core_splatting
