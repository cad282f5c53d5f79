// The camera models: where a point falls in the picture, the derivative of that place, and the derivative of both.
#pragma once
#include <cmath>

#include "../views.hpp"

namespace core_splatting {

enum class CameraModel : int { pinhole, ortho, fisheye };

/// What projection and blending need beside the arrays.
struct Options {
  float near_plane, far_plane, radius_clip, eps2d, max_alpha;
  int width, height, tiles_x, tiles_y;
  CameraModel model;
  bool antialiased;
};

struct Camera {
  float r[9], t[3], fx, fy, cx, cy;
};

/// The place of a point in pixels, and its derivatives by the point.
struct View {
  float x, y, jx[3], jy[3];
};

namespace camera {

/// The slopes x / z and y / z at which the pinhole's Jacobian is taken: within the image and 15 % beyond.
struct Slopes {
  float u, v;
};
CORE_HD Slopes slopes(const Camera& cam, const Options& o, float x_over_z, float y_over_z) {
  const float w = static_cast<float>(o.width), h = static_cast<float>(o.height);
  const float margin_x = 0.15f * w / cam.fx, margin_y = 0.15f * h / cam.fy;
  return {min_of((w - cam.cx) / cam.fx + margin_x, max_of(-cam.cx / cam.fx - margin_x, x_over_z)),
          min_of((h - cam.cy) / cam.fy + margin_y, max_of(-cam.cy / cam.fy - margin_y, y_over_z))};
}

/// The equidistant fisheye with the radius rho = |(x, y)| and theta = atan(rho / z): f = theta / rho,
/// g = (df / drho) / rho, h = (dg / drho) / rho; by their series near the axis, where they cancel.
struct Fisheye {
  float f, g, h, over_square;  // the last is 1 / (x^2 + y^2 + z^2)
};
CORE_HD Fisheye fisheye(float x, float y, float z) {
  const float square = x * x + y * y, whole = 1.f / (square + z * z), iz = 1.f / z, q = square * iz * iz;
  if (q < 0.01f) {
    const float iz3 = iz * iz * iz;
    return {iz * (1.f + q * (-1.f / 3 + q * (1.f / 5 - q * (1.f / 7)))), iz3 * (-2.f / 3 + q * (4.f / 5 + q * (-6.f / 7 + q * (8.f / 9)))),
            iz3 * iz * iz * (8.f / 5 + q * (-24.f / 7 + q * (16.f / 3 - q * (80.f / 11)))), whole};
  }
  const float rho = sqrtf(square), f = atan2f(rho, z) / rho, g = (z * whole - f) / square;
  return {f, g, (-2.f * z * whole * whole - 3.f * g) / square, whole};
}

}  // namespace camera

CORE_HD View view_of(const Camera& cam, const Options& o, float x, float y, float z) {
  if (o.model == CameraModel::ortho) return {cam.fx * x + cam.cx, cam.fy * y + cam.cy, {cam.fx, 0.f, 0.f}, {0.f, cam.fy, 0.f}};
  if (o.model == CameraModel::fisheye) {
    const auto [f, g, h, whole] = camera::fisheye(x, y, z);
    return {cam.fx * x * f + cam.cx,
            cam.fy * y * f + cam.cy,
            {cam.fx * (f + x * x * g), cam.fx * x * y * g, -cam.fx * x * whole},
            {cam.fy * x * y * g, cam.fy * (f + y * y * g), -cam.fy * y * whole}};
  }
  const float iz = 1.f / z, jx = cam.fx * iz, jy = cam.fy * iz;
  const auto [u, v] = camera::slopes(cam, o, x * iz, y * iz);
  return {x * jx + cam.cx, y * jy + cam.cy, {jx, 0.f, -jx * u}, {0.f, jy, -jy * v}};
}

/// The derivatives by the point, given those by its view.
CORE_HD void view_backward(const Camera& cam, const Options& o, float x, float y, float z, const View& v, float* v_point) {
  if (o.model == CameraModel::ortho) {
    v_point[0] = cam.fx * v.x, v_point[1] = cam.fy * v.y, v_point[2] = 0.f;
    return;
  }
  if (o.model == CameraModel::fisheye) {
    const auto [f, g, h, whole] = camera::fisheye(x, y, z);
    const float a = cam.fx * v.jx[0], cross = cam.fx * v.jx[1] + cam.fy * v.jy[0], b = cam.fy * v.jy[1];
    const float ax = cam.fx * v.jx[2], ay = cam.fy * v.jy[2], px = cam.fx * v.x, py = cam.fy * v.y;
    const float v_f = a + b + px * x + py * y, v_g = a * x * x + cross * x * y + b * y * y;
    const float v_whole = 2.f * whole * whole * (ax * x + ay * y), common = v_f * g + v_g * h + v_whole;
    v_point[0] = px * f + 2.f * a * x * g + cross * y * g - ax * whole + common * x;
    v_point[1] = py * f + 2.f * b * y * g + cross * x * g - ay * whole + common * y;
    v_point[2] = -v_f * whole + 2.f * v_g * whole * whole + v_whole * z;
    return;
  }
  const float iz = 1.f / z, jx = cam.fx * iz, jy = cam.fy * iz;
  const auto [u, s] = camera::slopes(cam, o, x * iz, y * iz);
  const float v_jx = v.x * x + v.jx[0] - u * v.jx[2], v_jy = v.y * y + v.jy[1] - s * v.jy[2];
  // Where the slope is clamped to the border, it does not depend on the centre.
  const float v_u = u == x * iz ? -jx * v.jx[2] : 0.f, v_s = s == y * iz ? -jy * v.jy[2] : 0.f;
  v_point[0] = v.x * jx + v_u * iz;
  v_point[1] = v.y * jy + v_s * iz;
  v_point[2] = -iz * (v_jx * jx + v_jy * jy + (v_u * x + v_s * y) * iz);
}

}  // namespace core_splatting
