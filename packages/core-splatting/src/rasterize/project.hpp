// Projection of one Gaussian and the exact tiles of its ellipse, for the CPU and for CUDA.
#pragma once
#include <core/tensor.hpp>

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CORE_HD __host__ __device__ inline
// The counting and the filling kernel must get the same tiles bit for bit: one body, not inlined.
#define CORE_HD_ONCE __host__ __device__ __noinline__ inline
#else
#define CORE_HD inline
#define CORE_HD_ONCE inline
#endif

namespace core_splatting {

inline constexpr int tile_size = 16;
inline constexpr float log2e = 1.4426950408889634f;
inline constexpr float min_exponent = -7.994353436858858f;                  // log2(1/255)
inline constexpr float max_extent = 3.33f;                                  // standard deviations
inline constexpr float max_power = 0.5f * max_extent * max_extent * log2e;  // of a contribution, in bits
inline constexpr float min_transmittance = 1e-4f;

struct Camera {
  float r[9], t[3], fx, fy, cx, cy;
};

/// What projection and blending need beside the arrays.
struct Options {
  float near_plane, far_plane, radius_clip, eps2d, max_alpha;
  int width, height, tiles_x, tiles_y;
};

/// The ellipse of a Gaussian: alpha(dx, dy) = 2^(uu (dx - shear dy)^2 + yy dy^2 + log2_opacity). Both uu and yy
/// are negative, so that nothing cancels, however thin the ellipse is.
struct Splat {
  float x, y, uu, shear, yy, log2_opacity;
  float extent_x, extent_y;  // half axes of the box around the pixels that it reaches
};

CORE_HD float max_of(float a, float b) { return a > b ? a : b; }
CORE_HD float min_of(float a, float b) { return a < b ? a : b; }

/// Exponents below this do not contribute.
CORE_HD float exponent_cut(float log2_opacity) { return max_of(min_exponent, log2_opacity - max_power); }

/// Projects a Gaussian; false if it is culled. `depth` is its distance along the camera's axis.
CORE_HD bool project(const Camera& cam, const Options& o, const float* mean, const float* quat, const float* scale, float opacity, Splat& s,
                     float& depth) {
  const float* r = cam.r;
  const float x = r[0] * mean[0] + r[1] * mean[1] + r[2] * mean[2] + cam.t[0];
  const float y = r[3] * mean[0] + r[4] * mean[1] + r[5] * mean[2] + cam.t[1];
  const float z = r[6] * mean[0] + r[7] * mean[1] + r[8] * mean[2] + cam.t[2];
  depth = z;
  if (!(z >= o.near_plane && z <= o.far_plane && opacity > 1.f / 255.f)) return false;

  const float iz = 1.f / z, w = static_cast<float>(o.width), h = static_cast<float>(o.height);
  const float margin_x = 0.15f * w / cam.fx, margin_y = 0.15f * h / cam.fy;
  const float u = min_of((w - cam.cx) / cam.fx + margin_x, max_of(-cam.cx / cam.fx - margin_x, x * iz));
  const float v = min_of((h - cam.cy) / cam.fy + margin_y, max_of(-cam.cy / cam.fy - margin_y, y * iz));
  const float jx = cam.fx * iz, jy = cam.fy * iz;

  const float qw = quat[0], qx = quat[1], qy = quat[2], qz = quat[3];
  const float norm = 2.f / (qw * qw + qx * qx + qy * qy + qz * qz);
  const float rot[9] = {1.f - norm * (qy * qy + qz * qz), norm * (qx * qy - qw * qz),       norm * (qx * qz + qw * qy),
                        norm * (qx * qy + qw * qz),       1.f - norm * (qx * qx + qz * qz), norm * (qy * qz - qw * qx),
                        norm * (qx * qz - qw * qy),       norm * (qy * qz + qw * qx),       1.f - norm * (qx * qx + qy * qy)};
  // m = J R_camera R_gaussian S, two rows; the covariance is m m^T.
  float a[3], b[3], m0[3], m1[3];
  for (int k = 0; k < 3; ++k) a[k] = jx * (r[k] - u * r[6 + k]), b[k] = jy * (r[3 + k] - v * r[6 + k]);
  for (int k = 0; k < 3; ++k) {
    m0[k] = scale[k] * (a[0] * rot[k] + a[1] * rot[3 + k] + a[2] * rot[6 + k]);
    m1[k] = scale[k] * (b[0] * rot[k] + b[1] * rot[3 + k] + b[2] * rot[6 + k]);
  }
  const float xx = m0[0] * m0[0] + m0[1] * m0[1] + m0[2] * m0[2];
  const float yy = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2];
  const float xy = m0[0] * m1[0] + m0[1] * m1[1] + m0[2] * m1[2];
  // det(m m^T) as the sum of squared minors (Cauchy-Binet): no cancellation for thin ellipses.
  const float d01 = m0[0] * m1[1] - m0[1] * m1[0], d02 = m0[0] * m1[2] - m0[2] * m1[0], d12 = m0[1] * m1[2] - m0[2] * m1[1];
  const float det = d01 * d01 + d02 * d02 + d12 * d12 + o.eps2d * (xx + yy) + o.eps2d * o.eps2d;
  const float cov_x = xx + o.eps2d, cov_y = yy + o.eps2d;

  s.log2_opacity = log2f(opacity);
  const float power = s.log2_opacity - exponent_cut(s.log2_opacity);
  const float reach = sqrtf(power * (2.f / log2e));
  s.x = x * jx + cam.cx;
  s.y = y * jy + cam.cy;
  s.extent_x = reach * sqrtf(cov_x);
  s.extent_y = reach * sqrtf(cov_y);
  s.uu = -0.5f * log2e * cov_y / det;
  s.yy = -0.5f * log2e / cov_y;
  s.shear = xy / cov_y;
  const float sum = s.x + s.y + s.extent_x + s.extent_y + s.uu + s.yy + s.shear;
  return sum - sum == 0.f && s.uu < 0.f && s.yy < 0.f && (ceilf(s.extent_x) > o.radius_clip || ceilf(s.extent_y) > o.radius_clip);
}

/// Derivatives of a loss by what `project` returns.
struct SplatGradient {
  float x, y, uu, shear, yy, log2_opacity;
};

/// Derivatives of a loss by what `project` takes; `r` and `t` are those of the camera.
struct GaussianGradient {
  float mean[3], quat[4], scale[3], opacity, r[9], t[3];
};

/// The derivative of `project` at a Gaussian that is not culled.
CORE_HD GaussianGradient project_backward(const Camera& cam, const Options& o, const float* mean, const float* quat, const float* scale,
                                          float opacity, const SplatGradient& v) {
  const float* r = cam.r;
  const float x = r[0] * mean[0] + r[1] * mean[1] + r[2] * mean[2] + cam.t[0];
  const float y = r[3] * mean[0] + r[4] * mean[1] + r[5] * mean[2] + cam.t[1];
  const float z = r[6] * mean[0] + r[7] * mean[1] + r[8] * mean[2] + cam.t[2];
  const float iz = 1.f / z, w = static_cast<float>(o.width), h = static_cast<float>(o.height);
  const float margin_x = 0.15f * w / cam.fx, margin_y = 0.15f * h / cam.fy;
  const float u = min_of((w - cam.cx) / cam.fx + margin_x, max_of(-cam.cx / cam.fx - margin_x, x * iz));
  const float s = min_of((h - cam.cy) / cam.fy + margin_y, max_of(-cam.cy / cam.fy - margin_y, y * iz));
  const float jx = cam.fx * iz, jy = cam.fy * iz;

  const float length = sqrtf(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]);
  const float qw = quat[0] / length, qx = quat[1] / length, qy = quat[2] / length, qz = quat[3] / length;
  const float rot[9] = {1.f - 2.f * (qy * qy + qz * qz), 2.f * (qx * qy - qw * qz),       2.f * (qx * qz + qw * qy),
                        2.f * (qx * qy + qw * qz),       1.f - 2.f * (qx * qx + qz * qz), 2.f * (qy * qz - qw * qx),
                        2.f * (qx * qz - qw * qy),       2.f * (qy * qz + qw * qx),       1.f - 2.f * (qx * qx + qy * qy)};
  float a[3], b[3], p0[3], p1[3], m0[3], m1[3];
  for (int k = 0; k < 3; ++k) a[k] = jx * (r[k] - u * r[6 + k]), b[k] = jy * (r[3 + k] - s * r[6 + k]);
  for (int k = 0; k < 3; ++k) {
    p0[k] = a[0] * rot[k] + a[1] * rot[3 + k] + a[2] * rot[6 + k], m0[k] = scale[k] * p0[k];
    p1[k] = b[0] * rot[k] + b[1] * rot[3 + k] + b[2] * rot[6 + k], m1[k] = scale[k] * p1[k];
  }
  const float cov_y = m1[0] * m1[0] + m1[1] * m1[1] + m1[2] * m1[2] + o.eps2d;
  const float xy = m0[0] * m1[0] + m0[1] * m1[1] + m0[2] * m1[2];
  const float d01 = m0[0] * m1[1] - m0[1] * m1[0], d02 = m0[0] * m1[2] - m0[2] * m1[0], d12 = m0[1] * m1[2] - m0[2] * m1[1];
  const float xx = m0[0] * m0[0] + m0[1] * m0[1] + m0[2] * m0[2];
  const float det = d01 * d01 + d02 * d02 + d12 * d12 + o.eps2d * (xx + cov_y - o.eps2d) + o.eps2d * o.eps2d;

  // With the covariance (A, B; B, C): uu = -k C / (A C - B^2), shear = B / C, yy = -k / C.
  constexpr float k_half = 0.5f * log2e;
  const float q = cov_y / det, shear = xy / cov_y, v_xx = v.uu * k_half * q * q;
  const float v_xy = v.shear / cov_y - 2.f * shear * v_xx;
  const float v_yy = v_xx * shear * shear + (v.yy * k_half / cov_y - v.shear * shear) / cov_y;

  GaussianGradient g{};
  float v_a[3] = {}, v_b[3] = {}, v_rot[9];
  for (int k = 0; k < 3; ++k) {
    const float v_m0 = 2.f * v_xx * m0[k] + v_xy * m1[k], v_m1 = 2.f * v_yy * m1[k] + v_xy * m0[k];
    g.scale[k] = v_m0 * p0[k] + v_m1 * p1[k];
    for (int i = 0; i < 3; ++i) {
      v_a[i] += v_m0 * scale[k] * rot[3 * i + k];
      v_b[i] += v_m1 * scale[k] * rot[3 * i + k];
      v_rot[3 * i + k] = scale[k] * (v_m0 * a[i] + v_m1 * b[i]);
    }
  }
  float v_jx = v.x * x, v_jy = v.y * y, v_u = 0.f, v_s = 0.f;
  for (int k = 0; k < 3; ++k) {
    v_jx += v_a[k] * (r[k] - u * r[6 + k]);
    v_jy += v_b[k] * (r[3 + k] - s * r[6 + k]);
    v_u -= jx * v_a[k] * r[6 + k];
    v_s -= jy * v_b[k] * r[6 + k];
    g.r[k] = jx * v_a[k];
    g.r[3 + k] = jy * v_b[k];
    g.r[6 + k] = -jx * u * v_a[k] - jy * s * v_b[k];
  }
  // Where the slope is clamped to the border, it does not depend on the centre.
  if (u != x * iz) v_u = 0.f;
  if (s != y * iz) v_s = 0.f;
  g.t[0] = v.x * jx + v_u * iz;
  g.t[1] = v.y * jy + v_s * iz;
  g.t[2] = -iz * (v_jx * jx + v_jy * jy + (v_u * x + v_s * y) * iz);
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 3; ++k) {
      g.mean[k] += r[3 * i + k] * g.t[i];
      g.r[3 * i + k] += g.t[i] * mean[k];
    }
  const float wx = v_rot[7] - v_rot[5], wy = v_rot[2] - v_rot[6], wz = v_rot[3] - v_rot[1];
  const float sxy = v_rot[1] + v_rot[3], sxz = v_rot[2] + v_rot[6], syz = v_rot[5] + v_rot[7];
  const float unit[4] = {qw, qx, qy, qz};
  const float v_unit[4] = {2.f * (qx * wx + qy * wy + qz * wz), 2.f * (qw * wx - 2.f * qx * (v_rot[4] + v_rot[8]) + qy * sxy + qz * sxz),
                           2.f * (qw * wy + qx * sxy - 2.f * qy * (v_rot[0] + v_rot[8]) + qz * syz),
                           2.f * (qw * wz + qx * sxz + qy * syz - 2.f * qz * (v_rot[0] + v_rot[4]))};
  const float along = v_unit[0] * qw + v_unit[1] * qx + v_unit[2] * qy + v_unit[3] * qz;
  for (int k = 0; k < 4; ++k) g.quat[k] = (v_unit[k] - along * unit[k]) / length;
  g.opacity = v.log2_opacity * log2e / opacity;
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
  const float turn = s.shear * s.extent_y * s.extent_y / s.extent_x;
  dy0 = max_of(dy0, -s.extent_y);
  dy1 = min_of(dy1, s.extent_y);
  const float at_right = min_of(max_of(turn, dy0), dy1), at_left = min_of(max_of(-turn, dy0), dy1);
  right = s.shear * at_right + sqrtf(max_of(power + s.yy * at_right * at_right, 0.f) / -s.uu);
  left = s.shear * at_left - sqrtf(max_of(power + s.yy * at_left * at_left, 0.f) / -s.uu);
}

/// The tiles of one tile row that the ellipse reaches.
CORE_HD_ONCE Range tile_columns(const Splat& s, const Options& o, int row) {
  float left, right;
  const float dy0 = static_cast<float>(row * tile_size) + 0.5f - s.y;
  ellipse_span(s, dy0, dy0 + static_cast<float>(tile_size - 1), left, right);
  return cells(s.x + left, s.x + right, tile_size, o.tiles_x);
}

/// Throws ValueError, in the name of the operator `op`, if a scalar or a size is out of range.
Options check_options(const char* op, std::int64_t cameras, std::int64_t gaussians, std::int64_t color_sets, double near_plane,
                      double far_plane, double radius_clip, double eps2d, double max_alpha, std::int64_t height, std::int64_t width);

}  // namespace core_splatting
