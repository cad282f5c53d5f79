// Exact fixed-sum sampling on CUDA; see include/core_diffusion/set_diffusion.hpp for the method and set_diffusion.cpp for
// the CPU. Compiled without contraction: sums are taken in the CPU's order, so that the draws are the CPU's.
#include <core_diffusion/set_diffusion.hpp>

#include <algorithm>

#include "draw.cuh"

namespace core_diffusion {
namespace {

/// `cells` doubles of dynamic shared memory hold a small table.
template <class T>
__global__ void __launch_bounds__(threads)
    sample_rows(Tensor<const T, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed, Tensor<int32_t, 2> out,
                int64_t first, int64_t count, Rows rows, int64_t cells, Report* report) {
  extern __shared__ double room[];
  __shared__ Shared s;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t b = first + row;
    const Rows r = rows.of(row);
    const int64_t total = totals.data[b * totals.stride[0]];
    if (*r.done) continue;
    bool found = solve_row(r, total, seed, b, out, false, room, cells, s);
    if (!found && top_p < 1) {
      __syncthreads();
      for (int64_t k = threadIdx.x / 32; k < r.codes; k += warps) read_code(probs, b, k, 1, r, report);
      __syncthreads();
      found = solve_row(r, total, seed, b, out, false, room, cells, s);
    }
    if (!found && threadIdx.x == 0) fail(report, b, impossible);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(threads) bridge_rows(Tensor<const int32_t, 2> x0, int64_t seed, Tensor<int32_t, 2> out, int64_t first,
                                                       int64_t count, Rows rows, int64_t cells, Report* report) {
  extern __shared__ double room[];
  __shared__ Shared s;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const int64_t b = first + row;
    double total = 0, none = 0;
    for (int64_t k = threadIdx.x; k < rows.codes; k += threads) total += x0.data[b * x0.stride[0] + k * x0.stride[1]];
    sum_all(total, none, s);
    __syncthreads();
    if (!solve_row(rows.of(row), static_cast<int64_t>(total), seed, b, out, true, room, cells, s) && threadIdx.x == 0)
      fail(report, b, impossible);
    __syncthreads();
  }
}

// ---- what is asked before

__global__ void check_totals(Tensor<const int64_t, 1> totals, Report* report) {
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; b < totals.shape[0];
       b += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t total = totals.data[b * totals.stride[0]];
    if (total < 0)
      fail(report, b, negative_total);
    else
      atomicMax(&report->most_total, static_cast<unsigned long long>(total));
  }
}

__global__ void __launch_bounds__(threads)
    check_path(Tensor<const int32_t, 2> x0, Tensor<const int32_t, 2> x1, Tensor<const double, 1> t, int64_t max_count, Report* report) {
  __shared__ Shared s;
  for (int64_t b = blockIdx.x; b < x0.shape[0]; b += gridDim.x) {
    double sum0 = 0, sum1 = 0;  // exact: integers below 2^53
    bool good0 = true, good1 = true;
    for (int64_t k = threadIdx.x; k < x0.shape[1]; k += threads) {
      const int32_t from = x0.data[b * x0.stride[0] + k * x0.stride[1]], to = x1.data[b * x1.stride[0] + k * x1.stride[1]];
      good0 &= from >= 0 && from <= max_count;
      good1 &= to >= 0 && to <= max_count;
      sum0 += from, sum1 += to;
    }
    if (!good0) fail(report, b, bad_x0);
    if (!good1) fail(report, b, bad_x1);
    sum_all(sum0, sum1, s);
    if (threadIdx.x == 0) {
      const double time = t.data[b * t.stride[0]];
      if (!(time >= 0 && time <= 1)) fail(report, b, bad_time);
      if (sum0 != sum1) fail(report, b, unequal_sums);
      atomicMax(&report->most_total, static_cast<unsigned long long>(fmax(sum0, 0.0)));
    }
  }
}

[[noreturn]] void refuse(const char* op, unsigned long long error, int64_t max_count) {
  const auto row = static_cast<int64_t>(error / problems);
  const std::string text[problems] = {"'totals' must be >= 0, got a negative one",
                                      "'probs' must be finite and >= 0, got a value that is not",
                                      "'probs' must have a positive sum over the counts of each code, got 0",
                                      "'totals' must be sums that counts of positive weight can make up, got another",
                                      "'t' must be in [0, 1], got a value outside",
                                      "'x0' must hold counts in 0.." + std::to_string(max_count) + ", got another value",
                                      "'x1' must hold counts in 0.." + std::to_string(max_count) + ", got another value",
                                      "'x1' must have the row sums of x0, got another sum"};
  throw core::Error("ValueError", std::string(op) + ": argument " + text[error % problems] + " in row " + std::to_string(row));
}

Report read_report(const char* op, const Report* report, cudaStream_t stream, int64_t max_count) {
  Report found;
  core::check_cuda(op, cudaMemcpyAsync(&found, report, sizeof found, cudaMemcpyDeviceToHost, stream), "reading the report");
  core::check_cuda(op, cudaStreamSynchronize(stream), "running");
  if (found.error != ~0ull) refuse(op, found.error, max_count);
  return found;
}

int processors(const char* op, int device) {
  int count = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  return count;
}

unsigned blocks_for(int64_t work, int64_t most) { return static_cast<unsigned>(std::clamp<int64_t>(work, 1, most)); }

/// Calls each(first, count, rows, shared_bytes) on as many rows at a time as scratch allows.
template <class Each>
void in_parts(const char* op, int device, cudaStream_t stream, int64_t batch, Rows rows, Each&& each) {
  const int64_t cells = core::checked_mul(rows.codes + 1, rows.most + 1, op), weights = core::checked_mul(rows.codes, rows.width, op);
  if (cells > most_of_a_row / 8 || weights > most_of_a_row / 8)
    throw core::Error("MemoryError",
                      std::string(op) + ": one row needs " + std::to_string(std::max(cells, weights) >> 17) + " MiB, more than 4096 MiB");
  const int64_t part = std::clamp<int64_t>(most_scratch / rows.bytes(), 1, batch);
  const core::DeviceScratch scratch(op, device, stream, core::checked_mul(part, rows.bytes(), op) + 64);
  rows.place(scratch.get<char>(), part);
  int largest = 0;
  core::check_cuda(op, cudaDeviceGetAttribute(&largest, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the device");
  const int64_t shared = part <= processors(op, device) ? largest - 2048 : largest / 2 - 2048;  // one or two blocks a processor
  for (int64_t first = 0; first < batch; first += part) {
    core::check_cuda(op, cudaMemsetAsync(rows.done, 0, static_cast<std::size_t>(part), stream), "clearing");
    each(first, std::min(part, batch - first), rows, std::min(shared, 8 * cells) / 8 * 8);
  }
  core::check_cuda(op, cudaGetLastError(), "launching");
}
template <class T>
void sample(Tensor<const T, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed, Tensor<int32_t, 2> out,
            core::Stream stream) {
  const char* op = "fixed_sum_sample";
  const int64_t batch = probs.shape[0], codes = probs.shape[1], counts = probs.shape[2];
  if (!(top_p > 0 && top_p <= 1)) throw core::Error("ValueError", "fixed_sum_sample: argument 'top_p' must be in (0, 1]");
  if (counts == 0 || counts - 1 > INT32_MAX || codes >= INT32_MAX)
    throw core::Error("ValueError", "fixed_sum_sample: argument 'probs' must hold 1 to 2^31 counts of fewer than 2^31 codes");
  if (batch == 0) return;
  const core::OnDevice on(op, out.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const core::DeviceScratch told(op, out.device_id, s, sizeof(Report));
  Report* report = told.get<Report>();
  const Report fresh{~0ull, 0};
  core::check_cuda(op, cudaMemcpyAsync(report, &fresh, sizeof fresh, cudaMemcpyHostToDevice, s), "clearing");
  const int64_t many = 16 * processors(op, out.device_id);
  check_totals<<<blocks_for(batch / threads + 1, many), threads, 0, s>>>(totals, report);
  const auto most = static_cast<int64_t>(read_report(op, report, s, 0).most_total);
  Rows shape{};
  shape.codes = codes, shape.width = counts, shape.most = std::min(most, core::checked_mul(codes, counts - 1, op));
  in_parts(op, out.device_id, s, batch, shape, [&](int64_t first, int64_t count, const Rows& rows, int64_t shared) {
    read_laws<T><<<blocks_for(count * codes / warps + 1, many), threads, 0, s>>>(probs, top_p, first, count, rows, report);
    core::check_cuda(op, cudaFuncSetAttribute(sample_rows<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                     "preparing");
    sample_rows<T><<<blocks_for(count, many), threads, static_cast<std::size_t>(shared), s>>>(probs, totals, top_p, seed, out, first, count,
                                                                                              rows, shared / 8, report);
  });
  read_report(op, report, s, 0);
}
}  // namespace

void fixed_sum_sample_cuda(Tensor<const float, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                           Tensor<int32_t, 2> out, core::Stream stream) {
  sample(probs, totals, top_p, seed, out, stream);
}
void fixed_sum_sample_cuda_f64(Tensor<const double, 3> probs, Tensor<const int64_t, 1> totals, double top_p, int64_t seed,
                               Tensor<int32_t, 2> out, core::Stream stream) {
  sample(probs, totals, top_p, seed, out, stream);
}

void fixed_sum_bridge_cuda(Tensor<const int32_t, 2> x0, Tensor<const int32_t, 2> x1, Tensor<const double, 1> t, double sigma,
                           int64_t max_count, int64_t seed, Tensor<int32_t, 2> out, core::Stream stream) {
  const char* op = "fixed_sum_bridge";
  const int64_t batch = x0.shape[0], codes = x0.shape[1];
  if (!(sigma >= 0 && sigma <= 1.7976931348623157e308))
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'sigma' must be finite and >= 0");
  if (max_count < 0 || max_count > INT32_MAX || codes >= INT32_MAX)
    throw core::Error("ValueError", "fixed_sum_bridge: argument 'max_count' must be in 0..2^31-1, got " + std::to_string(max_count));
  if (batch == 0 || codes == 0) return;
  const core::OnDevice on(op, out.device_id);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const core::DeviceScratch told(op, out.device_id, s, sizeof(Report));
  Report* report = told.get<Report>();
  const Report fresh{~0ull, 0};
  core::check_cuda(op, cudaMemcpyAsync(report, &fresh, sizeof fresh, cudaMemcpyHostToDevice, s), "clearing");
  const int64_t many = 16 * processors(op, out.device_id);
  check_path<<<blocks_for(batch, many), threads, 0, s>>>(x0, x1, t, max_count, report);
  const auto most = static_cast<int64_t>(read_report(op, report, s, max_count).most_total);
  Rows shape{};
  shape.codes = codes, shape.width = max_count + 1, shape.most = most;
  in_parts(op, out.device_id, s, batch, shape, [&](int64_t first, int64_t count, const Rows& rows, int64_t shared) {
    make_laws<<<blocks_for(count * codes / threads + 1, many), threads, 0, s>>>(x0, x1, t, sigma, max_count, first, count, rows);
    core::check_cuda(op, cudaFuncSetAttribute(bridge_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                     "preparing");
    bridge_rows<<<blocks_for(count, many), threads, static_cast<std::size_t>(shared), s>>>(x0, seed, out, first, count, rows, shared / 8,
                                                                                           report);
  });
  read_report(op, report, s, max_count);
}
}  // namespace core_diffusion
