// Structural similarity and Adam on CUDA: a stencil over shared memory, and one pass over memory.
#include <core/cuda.hpp>

#include <cmath>

#include "train.hpp"

namespace core_splatting {
namespace {

constexpr int side = 16, padded = side + 2 * reach;
__constant__ float weights[window] = {0.00102838008f, 0.00759875814f, 0.0360007721f, 0.109360690f,   0.213005538f,  0.266011725f,
                                      0.213005538f,   0.109360690f,   0.0360007721f, 0.00759875814f, 0.00102838008f};

/// The windowed mean of Q quantities at each pixel of a tile: `at(y, x, values)` gives them, zeros outside.
template <int Q, class At>
__device__ void filter(int height, int width, At at, float (&result)[Q]) {
  __shared__ float loaded[Q][padded][padded + 1], by_rows[Q][padded][side + 1];
  const int tile_x = static_cast<int>(blockIdx.x) * side, tile_y = static_cast<int>(blockIdx.y) * side;
  const int thread = static_cast<int>(threadIdx.y) * side + static_cast<int>(threadIdx.x);
  for (int i = thread; i < padded * padded; i += side * side) {
    const int row = i / padded, column = i % padded, y = tile_y + row - reach, x = tile_x + column - reach;
    float values[Q] = {};
    if (y >= 0 && y < height && x >= 0 && x < width) at(y, x, values);
#pragma unroll
    for (int q = 0; q < Q; ++q) loaded[q][row][column] = values[q];
  }
  __syncthreads();
  for (int i = thread; i < padded * side; i += side * side) {
    const int row = i / side, column = i % side;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      float sum = 0.f;
#pragma unroll
      for (int k = 0; k < window; ++k) sum += weights[k] * loaded[q][row][column + k];
      by_rows[q][row][column] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < window; ++k) sum += weights[k] * by_rows[q][threadIdx.y + k][threadIdx.x];
    result[q] = sum;
  }
}

/// operator() of core::Tensor is the host's.
template <class T, int N, class... I>
__device__ T& element(const core::Tensor<T, N>& t, I... i) {
  const std::int64_t index[] = {static_cast<std::int64_t>(i)...};
  std::int64_t offset = 0;
#pragma unroll
  for (int d = 0; d < N; ++d) offset += index[d] * t.stride[d];
  return t.data[offset];
}

__global__ void __launch_bounds__(side* side)
    ssim_kernel(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<float, 4> out,
                core::Tensor<float, 5> partials, int first_plane, int height, int width, int channels) {
  const int plane = first_plane + static_cast<int>(blockIdx.z), b = plane / channels, c = plane % channels;
  float m[5];
  filter<5>(
      height, width,
      [&](int y, int x, float* v) {
        const float i = element(image, b, c, y, x), t = element(target, b, c, y, x);
        v[0] = i, v[1] = t, v[2] = i * i, v[3] = t * t, v[4] = i * t;
      },
      m);
  const int y = static_cast<int>(blockIdx.y * side + threadIdx.y), x = static_cast<int>(blockIdx.x * side + threadIdx.x);
  if (y >= height || x >= width) return;
  const Similarity s = similarity(m[0], m[1], m[2], m[3], m[4]);
  element(out, b, c, y, x) = s.value;
  if (!partials.data) return;
  element(partials, 0, b, c, y, x) = s.by_mean;
  element(partials, 1, b, c, y, x) = s.by_square;
  element(partials, 2, b, c, y, x) = s.by_product;
}

__global__ void __launch_bounds__(side* side)
    ssim_backward_kernel(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<const float, 5> partials,
                         core::Tensor<const float, 4> v_out, core::Tensor<float, 4> v_image, int first_plane, int height, int width,
                         int channels) {
  const int plane = first_plane + static_cast<int>(blockIdx.z), b = plane / channels, c = plane % channels;
  float m[3];
  filter<3>(
      height, width,
      [&](int y, int x, float* v) {
        const float gain = element(v_out, b, c, y, x);
        for (int q = 0; q < 3; ++q) v[q] = gain * element(partials, q, b, c, y, x);
      },
      m);
  const int y = static_cast<int>(blockIdx.y * side + threadIdx.y), x = static_cast<int>(blockIdx.x * side + threadIdx.x);
  if (y >= height || x >= width) return;
  element(v_image, b, c, y, x) = m[0] + 2.f * element(image, b, c, y, x) * m[1] + element(target, b, c, y, x) * m[2];
}

/// Launches over tiles and planes; the grid's third size is limited.
template <class Launch>
void over_planes(const char* op, const std::array<std::int64_t, 4>& shape, Launch launch) {
  constexpr std::int64_t most = 65535;
  const std::int64_t planes = shape[0] * shape[1], rows = (shape[2] + side - 1) / side, columns = (shape[3] + side - 1) / side;
  if (planes * rows * columns == 0) return;
  if (rows > most || planes > INT32_MAX || shape[3] > INT32_MAX)
    throw core::Error("ValueError", std::string(op) + ": argument 'image' must have at most 1,048,560 rows on CUDA");
  for (std::int64_t first = 0; first < planes; first += most)
    launch(dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows), static_cast<unsigned>(std::min(planes - first, most))),
           dim3(side, side), static_cast<int>(first));
  core::check_cuda(op, cudaGetLastError(), "launch");
}

__global__ void adam_kernel(core::Tensor<float, 2> param, core::Tensor<const float, 2> grad, core::Tensor<float, 2> exp_avg,
                            core::Tensor<float, 2> exp_avg_sq, core::Tensor<std::int32_t, 1> steps, core::Tensor<const bool, 1> visible,
                            core::Tensor<const float, 1> rates, std::int64_t rows, std::int64_t columns, float lr, float log_beta1,
                            float log_beta2, float beta2, float keep1, float keep2, float eps) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= rows * columns) return;
  const std::int64_t n = i / columns, k = i % columns;
  if (!element(visible, n)) return;
  const auto step = static_cast<float>(element(steps, n) + 1);
  const float g = element(grad, n, k);
  float m = element(exp_avg, n, k), v = element(exp_avg_sq, n, k);
  m += keep1 * (g - m);
  v = beta2 * v + keep2 * g * g;
  element(exp_avg, n, k) = m;
  element(exp_avg_sq, n, k) = v;
  const float rate = rates.data ? lr * element(rates, k) : lr;
  element(param, n, k) += rate * m / (expm1f(step * log_beta1) * (sqrtf(v) * rsqrtf(-expm1f(step * log_beta2)) + eps));
}

__global__ void count_kernel(core::Tensor<std::int32_t, 1> steps, core::Tensor<const bool, 1> visible, std::int64_t rows) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n < rows && element(visible, n)) ++element(steps, n);
}

}  // namespace

void ssim_cuda(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<float, 4> out,
               std::optional<core::Tensor<float, 5>> partials, core::Stream stream) {
  const core::OnDevice on("ssim", out.device_id);
  over_planes("ssim", out.shape, [&](dim3 grid, dim3 block, int first) {
    ssim_kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream.handle)>>>(
        image, target, out, partials.value_or(core::Tensor<float, 5>{}), first, static_cast<int>(out.shape[2]),
        static_cast<int>(out.shape[3]), static_cast<int>(out.shape[1]));
  });
}

void ssim_backward_cuda(core::Tensor<const float, 4> image, core::Tensor<const float, 4> target, core::Tensor<const float, 5> partials,
                        core::Tensor<const float, 4> v_out, core::Tensor<float, 4> v_image, core::Stream stream) {
  const core::OnDevice on("ssim_backward", v_image.device_id);
  over_planes("ssim_backward", v_image.shape, [&](dim3 grid, dim3 block, int first) {
    ssim_backward_kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream.handle)>>>(
        image, target, partials, v_out, v_image, first, static_cast<int>(v_image.shape[2]), static_cast<int>(v_image.shape[3]),
        static_cast<int>(v_image.shape[1]));
  });
}

void selective_adam_cuda(core::Tensor<float, 2> param, core::Tensor<const float, 2> grad, core::Tensor<float, 2> exp_avg,
                         core::Tensor<float, 2> exp_avg_sq, core::Tensor<std::int32_t, 1> steps, core::Tensor<const bool, 1> visible,
                         std::optional<core::Tensor<const float, 1>> rates, double lr, double beta1, double beta2, double eps,
                         core::Stream stream) {
  check_adam(lr, beta1, beta2, eps);
  const core::OnDevice on("selective_adam", param.device_id);
  const std::int64_t rows = param.shape[0], columns = param.shape[1];
  if (rows == 0) return;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  constexpr int threads = 256;
  if (columns)
    adam_kernel<<<static_cast<unsigned>((rows * columns + threads - 1) / threads), threads, 0, s>>>(
        param, grad, exp_avg, exp_avg_sq, steps, visible, rates.value_or(core::Tensor<const float, 1>{}), rows, columns,
        static_cast<float>(lr), static_cast<float>(std::log(beta1)), static_cast<float>(std::log(beta2)), static_cast<float>(beta2),
        static_cast<float>(1 - beta1), static_cast<float>(1 - beta2), static_cast<float>(eps));
  count_kernel<<<static_cast<unsigned>((rows + threads - 1) / threads), threads, 0, s>>>(steps, visible, rows);
  core::check_cuda("selective_adam", cudaGetLastError(), "launch");
}

}  // namespace core_splatting
