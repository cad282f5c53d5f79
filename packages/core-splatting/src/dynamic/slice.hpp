// The slice of one 4D Gaussian at a time, and its derivative; for the CPU and for CUDA.
#pragma once
#include <core_splatting/dynamic.hpp>

#include <cmath>

#include "../rasterize/project.hpp"

namespace core_splatting {

using Indices = std::optional<core::Tensor<const std::int64_t, 1>>;

struct Dynamic {
  In<2> means, scales, quats_l, quats_r;
  In<1> opacities;
  core::Tensor<const std::int64_t, 1> indices;
  bool all;  // no indices
  float time, min_weight, prefilter_var;
};

struct SliceOutputs {
  Out<2> means, covars;
  Out<1> opacities, weights;
};

/// A 4D Gaussian's rotation and what it is made of.
struct Rotation4 {
  float l[4], r[4], length_l, length_r;  // unit quaternions, and the lengths before
  float left[4][4], right[4][4], rot[4][4];
};

CORE_HD float normalised(const In<2>& quats, std::int64_t n, float* unit) {
  float square = 0.f;
  for (int k = 0; k < 4; ++k) unit[k] = at(quats, n, k), square += unit[k] * unit[k];
  const float length = sqrtf(square), over = 1.f / length;
  for (int k = 0; k < 4; ++k) unit[k] *= over;
  return length;
}

/// v_quat of a normalised quaternion, given v_unit.
CORE_HD void normalised_backward(const float* unit, float length, const float* v_unit, float* v_quat) {
  const float along = unit[0] * v_unit[0] + unit[1] * v_unit[1] + unit[2] * v_unit[2] + unit[3] * v_unit[3];
  for (int k = 0; k < 4; ++k) v_quat[k] = (v_unit[k] - along * unit[k]) / length;
}

CORE_HD void rotation4_of(const Dynamic& in, std::int64_t n, Rotation4& m) {
  m.length_l = normalised(in.quats_l, n, m.l), m.length_r = normalised(in.quats_r, n, m.r);
  const float a = m.l[0], b = m.l[1], c = m.l[2], d = m.l[3], p = m.r[0], q = m.r[1], u = m.r[2], v = m.r[3];
  const float left[4][4] = {{a, -b, -c, -d}, {b, a, -d, c}, {c, d, a, -b}, {d, -c, b, a}};
  const float right[4][4] = {{p, q, u, v}, {-q, p, -v, u}, {-u, v, p, -q}, {-v, -u, q, p}};
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 4; ++k) {
      m.left[i][k] = left[i][k], m.right[i][k] = right[i][k];
      float sum = 0.f;
      for (int j = 0; j < 4; ++j) sum += left[i][j] * right[j][k];
      m.rot[3 - i][3 - k] = sum;
    }
}

/// The factor of the covariance, its last row's square S, and the parts of the rows beside it: row_i - slope_i row_3.
struct Slice {
  float factor[4][4], beside[3][4], slope[3], variance, offset, weight;
};

/// False, and no more than the weight, if the Gaussian is culled.
CORE_HD bool slice_of(const Dynamic& in, std::int64_t n, const Rotation4& rotation, Slice& s) {
  for (int k = 0; k < 4; ++k) {
    const float scale = at(in.scales, n, k);
    for (int i = 0; i < 4; ++i) s.factor[i][k] = rotation.rot[i][k] * scale;
  }
  const float* const last = s.factor[3];
  s.variance = last[0] * last[0] + last[1] * last[1] + last[2] * last[2] + last[3] * last[3];
  s.offset = in.time - at(in.means, n, 3);
  s.weight = expf(-0.5f * s.offset * s.offset / (s.variance + in.prefilter_var));
  if (!(s.weight > in.min_weight)) return false;
  for (int i = 0; i < 3; ++i) {
    const float* const row = s.factor[i];
    s.slope[i] = (row[0] * last[0] + row[1] * last[1] + row[2] * last[2] + row[3] * last[3]) / s.variance;
    for (int k = 0; k < 4; ++k) s.beside[i][k] = row[k] - s.slope[i] * last[k];
  }
  return true;
}

/// The Gaussian of a row, or -1 if the index lies outside.
CORE_HD std::int64_t gaussian_of(const Dynamic& in, std::int64_t row) {
  const std::int64_t n = in.all ? row : at(in.indices, row);
  return n >= 0 && n < in.opacities.shape[0] ? n : -1;
}

/// How many Gaussians there are at the time, with those that are culled.
CORE_HD std::int64_t count_of(const Dynamic& in) { return in.all ? in.opacities.shape[0] : in.indices.shape[0]; }

/// The Gaussian of a row as it is at the time, and its weight; zeros if it is culled.
CORE_HD Gaussian load_gaussian(const Dynamic& in, std::int64_t row, float& weight) {
  const std::int64_t n = gaussian_of(in, row);
  Gaussian g{};
  g.by_covariance = true;
  weight = 0.f;
  if (n < 0) return g;
  Rotation4 rotation;
  rotation4_of(in, n, rotation);
  Slice s;
  if (!slice_of(in, n, rotation, s)) return g;
  weight = s.weight;
  g.opacity = s.weight * at(in.opacities, n);
  for (int i = 0, to = 0; i < 3; ++i) {
    g.mean[i] = at(in.means, n, i) + s.slope[i] * s.offset;
    for (int k = i; k < 3; ++k, ++to) {
      float sum = 0.f;
      for (int j = 0; j < 4; ++j) sum += s.beside[i][j] * s.beside[k][j];
      g.covar[to] = sum;
    }
  }
  return g;
}

CORE_HD Gaussian load_gaussian(const Dynamic& in, std::int64_t row) {
  float weight;
  return load_gaussian(in, row, weight);
}

CORE_HD void write_slice(const Dynamic& in, const SliceOutputs& out, std::int64_t row) {
  const Gaussian g = load_gaussian(in, row, at(out.weights, row));
  at(out.opacities, row) = g.opacity;
  for (int i = 0; i < 3; ++i) at(out.means, row, i) = g.mean[i];
  for (int i = 0; i < 6; ++i) at(out.covars, row, i) = g.covar[i];
}

/// Derivatives of a loss by a 4D Gaussian.
struct DynamicGradient {
  float mean[4], scale[4], quat_l[4], quat_r[4], opacity;
};

/// The derivative of the slice of a Gaussian that is not culled.
CORE_HD DynamicGradient slice_backward(const Dynamic& in, std::int64_t n, const float* v_place, const float* cov, float v_opacity) {
  DynamicGradient g{};
  Rotation4 rotation;
  rotation4_of(in, n, rotation);
  Slice s;
  if (!slice_of(in, n, rotation, s)) return g;

  const float twice[3][3] = {{2.f * cov[0], cov[1], cov[2]}, {cov[1], 2.f * cov[3], cov[4]}, {cov[2], cov[4], 2.f * cov[5]}};
  const float* const last = s.factor[3];
  float v_factor[4][4] = {}, v_variance = 0.f, v_offset = 0.f;
  for (int i = 0; i < 3; ++i) {
    const float v_mean = v_place[i];
    g.mean[i] = v_mean;
    v_offset += v_mean * s.slope[i];
    float v_slope = v_mean * s.offset;
    for (int k = 0; k < 4; ++k) {
      const float v = twice[i][0] * s.beside[0][k] + twice[i][1] * s.beside[1][k] + twice[i][2] * s.beside[2][k];
      v_factor[i][k] += v;
      v_factor[3][k] -= s.slope[i] * v;
      v_slope -= v * last[k];
    }
    const float v_product = v_slope / s.variance;
    v_variance -= v_product * s.slope[i];
    for (int k = 0; k < 4; ++k) v_factor[i][k] += v_product * last[k], v_factor[3][k] += v_product * s.factor[i][k];
  }
  const float over = 1.f / (s.variance + in.prefilter_var);
  const float v_exponent = v_opacity * at(in.opacities, n) * s.weight;
  g.opacity = v_opacity * s.weight;
  v_variance += 0.5f * v_exponent * s.offset * s.offset * over * over;
  v_offset -= v_exponent * s.offset * over;
  g.mean[3] = -v_offset;

  float v_product[4][4];  // of left and right
  for (int k = 0; k < 4; ++k) {
    v_factor[3][k] += 2.f * v_variance * last[k];
    const float scale = at(in.scales, n, k);
    float v_scale = 0.f;
    for (int i = 0; i < 4; ++i) {
      v_scale += v_factor[i][k] * rotation.rot[i][k];
      v_product[3 - i][3 - k] = v_factor[i][k] * scale;
    }
    g.scale[k] = v_scale;
  }
  float l[4][4] = {}, r[4][4] = {};
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 4; ++k)
      for (int j = 0; j < 4; ++j) {
        l[i][j] += v_product[i][k] * rotation.right[j][k];
        r[j][k] += rotation.left[i][j] * v_product[i][k];
      }
  const float v_l[4] = {l[0][0] + l[1][1] + l[2][2] + l[3][3], l[1][0] - l[0][1] + l[3][2] - l[2][3], l[2][0] - l[0][2] + l[1][3] - l[3][1],
                        l[3][0] - l[0][3] + l[2][1] - l[1][2]};
  const float v_r[4] = {r[0][0] + r[1][1] + r[2][2] + r[3][3], r[0][1] - r[1][0] + r[3][2] - r[2][3], r[0][2] - r[2][0] + r[1][3] - r[3][1],
                        r[0][3] - r[3][0] + r[2][1] - r[1][2]};
  normalised_backward(rotation.l, rotation.length_l, v_l, g.quat_l);
  normalised_backward(rotation.r, rotation.length_r, v_r, g.quat_r);
  return g;
}

/// Where derivatives by 4D Gaussians go.
struct DynamicGradients {
  Out<2> means, scales, quats_l, quats_r;
  Out<1> opacities;
};

CORE_HD void write_gradient(const DynamicGradients& out, const DynamicGradient& g, std::int64_t n) {
  for (int k = 0; k < 4; ++k) {
    at(out.means, n, k) = g.mean[k], at(out.scales, n, k) = g.scale[k];
    at(out.quats_l, n, k) = g.quat_l[k], at(out.quats_r, n, k) = g.quat_r[k];
  }
  at(out.opacities, n) = g.opacity;
}

CORE_HD void add_gradient(const DynamicGradients& out, const DynamicGradient& g, std::int64_t n) {
  for (int k = 0; k < 4; ++k) {
    at(out.means, n, k) += g.mean[k], at(out.scales, n, k) += g.scale[k];
    at(out.quats_l, n, k) += g.quat_l[k], at(out.quats_r, n, k) += g.quat_r[k];
  }
  at(out.opacities, n) += g.opacity;
}

struct SliceGradients {
  In<2> v_out_means, v_out_covars;
  In<1> v_out_opacities;
  DynamicGradients out;
};

/// Writes the derivatives by the Gaussian of a row; nothing if the index lies outside.
CORE_HD void write_slice_backward(const Dynamic& in, const SliceGradients& g, std::int64_t row) {
  const std::int64_t n = gaussian_of(in, row);
  if (n < 0) return;
  float v_place[3], v_covar[6];
  for (int k = 0; k < 3; ++k) v_place[k] = at(g.v_out_means, row, k);
  for (int k = 0; k < 6; ++k) v_covar[k] = at(g.v_out_covars, row, k);
  write_gradient(g.out, slice_backward(in, n, v_place, v_covar, at(g.v_out_opacities, row)), n);
}

CORE_HD float variation_of(Dynamic in, const In<1>& times, std::int64_t n) {
  Rotation4 rotation;
  rotation4_of(in, n, rotation);
  Slice s;
  slice_of(in, n, rotation, s);
  float sum = 0.f;
  const float over = 1.f / s.variance;
  for (std::int64_t t = 0; t < times.shape[0]; ++t) {
    const float d = at(times, t) - at(in.means, n, 3);
    const float second = (d * d * over - 1.f) * over * expf(-0.5f * d * d * over);
    sum += 1.f / (0.5f * tanhf(fabsf(second)) + 0.5f);
  }
  return sum;
}

/// The arguments in one; throws ValueError, in the name of the operator `op`, if the scalars or sizes do not fit.
Dynamic check_slice(const char* op, const Dynamic& arrays, const Indices& indices, double time, double min_weight, double prefilter_var,
                    std::int64_t rows);

/// Throws ValueError unless the indices rise within the Gaussians; for the CPU.
void check_indices(const char* op, const Dynamic& in);

}  // namespace core_splatting
