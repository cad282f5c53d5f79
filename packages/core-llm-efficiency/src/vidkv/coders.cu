// The coders of packed keys and values on CUDA. A lane is a token of 32, so that a vote makes a word of bits; thread blocks
// take runs of tokens in turn.
#include <algorithm>

#include <core_llm_efficiency/vidkv.hpp>
#include "../xattention/device.cuh"
#include "checks.hpp"

namespace core_llm_efficiency {
namespace {
constexpr int warps = 8, threads = 32 * warps, most_channels = 256;
constexpr float largest = 65504.f;

template <class T>
struct Device {
  using type = typename native<T>::type;
};
template <>
struct Device<float> {
  using type = float;
};
template <class T>
using device_t = typename Device<T>::type;

/// A 4-dimensional operand [batch, head, row, column].
template <class T>
struct Array {
  T* data = nullptr;
  std::int64_t batch = 0, head = 0, row = 0, col = 0;
  __device__ T* at(std::int64_t b, std::int64_t h, std::int64_t r) const { return data + b * batch + h * head + r * row; }
};
template <class To, class From>
Array<To> array(const core::Tensor<From, 4>& t) {
  return {reinterpret_cast<To*>(t.data), t.stride[0], t.stride[1], t.stride[2], t.stride[3]};
}

/// The sizes of a coder's work; tile: floats of a row in shared memory, odd so that lanes meet no bank twice.
struct Sizes {
  std::int64_t runs, per_head;  // of all, and of a head
  int groups, group, d, c, tile, width;
  std::int64_t channels_row, channels_col;
  const std::int32_t* channels;
};

__device__ inline float warp_sum(float x) {
  for (int o = 16; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
__device__ inline double warp_sum(double x) {
  for (int o = 16; o; o /= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
__device__ inline float warp_min(float x) {
  for (int o = 16; o; o /= 2) x = fminf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}

/// basis[j * n + f]: the orthonormal real Fourier transform of n channels.
__device__ void make_basis(float* basis, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n * n; i += threads) {
    const int j = i / n, f = i % n;
    float sine, cosine;
    sincospif(2.f * static_cast<float>((f + 1) / 2 * j % n) / static_cast<float>(n), &sine, &cosine);
    basis[i] = (f % 2 || f == 0 ? cosine : sine) * sqrtf((f == 0 || (f == n - 1 && n % 2 == 0) ? 1.f : 2.f) / static_cast<float>(n));
  }
}
/// The order of a batch's channels; -1 for what is none.
__device__ void load_channels(int* to, const Sizes& s, std::int64_t b) {
  for (int i = static_cast<int>(threadIdx.x); i < s.d; i += threads) {
    const std::int32_t x = s.channels[b * s.channels_row + i * s.channels_col];
    to[i] = x >= 0 && x < s.d ? x : -1;
  }
}

/// One channel of a run at two bits: words of low and high bits go to `low` and `high` (step apart), one for each 32 tokens.
/// Where a value is not finite or too large the scale is NaN.
template <class Column, class Bits>
__device__ void two_bits(int words, Column x, __half* scale, __half* zero, Bits store) {
  float least = INFINITY, most = INFINITY;
  bool good = true;
  for (int w = 0; w < words; ++w) {
    const float y = x(w);
    good &= fabsf(y) <= largest;
    least = fminf(least, y), most = fminf(most, -y);
  }
  least = warp_min(least), most = -warp_min(most);
  good = __all_sync(~0u, good);
  const __half s = __float2half_rn(good ? fminf((most - least) / 3.f, largest) : NAN), z = __float2half_rn(least);
  const float step = __half2float(s), inverse = step > 0 ? 1.f / step : 0.f;
  for (int w = 0; w < words; ++w) store(w, static_cast<int>(rintf(fminf(fmaxf((x(w) - __half2float(z)) * inverse, 0.f), 3.f))));
  if (threadIdx.x % 32 == 0) *scale = s, *zero = z;
}

template <class T>
__global__ void __launch_bounds__(threads)
    pack_run_keys(Array<const T> x, Sizes s, Array<std::int32_t> planes, Array<__half> scales, Array<__half> zeros) {
  extern __shared__ __align__(16) float shared[];
  __shared__ int order[most_channels];
  __shared__ float limit[128];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, rest = s.d - s.c, words = s.group / 32;
  float *const basis = shared, *const tile = shared + (rest * rest + 3) / 4 * 4;
  make_basis(basis, rest);
  for (std::int64_t run = blockIdx.x; run < s.runs; run += gridDim.x) {
    const std::int64_t at = run % s.per_head, g = run / s.per_head % s.groups, b = run / s.per_head / s.groups;
    __syncthreads();
    load_channels(order, s, b);
    for (int i = static_cast<int>(threadIdx.x); i < s.group * s.d; i += threads)
      tile[i / s.d * s.tile + i % s.d] = static_cast<float>(x.at(b, g, at * s.group + i / s.d)[i % s.d * x.col]);
    __syncthreads();
    const auto value = [&](int w, int channel) { return channel < 0 ? NAN : tile[(w * 32 + lane) * s.tile + channel]; };
    const auto plane = [&](int w, int p) -> std::int32_t& { return planes.at(b, g, at * words + w)[p * planes.col]; };
    __half* const scale = scales.at(b, g, at);
    for (int i = warp; i < s.c; i += warps)
      two_bits(
          words, [&](int w) { return value(w, order[i]); }, scale + i * scales.col, zeros.at(b, g, at) + i * zeros.col,
          [&](int w, int code) {
            const unsigned low = __ballot_sync(~0u, code & 1), high = __ballot_sync(~0u, code & 2);
            if (lane == 0) plane(w, i) = static_cast<std::int32_t>(low), plane(w, s.c + i) = static_cast<std::int32_t>(high);
          });
    for (int w = warp; w < words; w += warps) {
      float sum = 0;
      for (int j = s.c; j < s.d; ++j) sum += 1e-6f * fabsf(value(w, order[j]));
      limit[w * 32 + lane] = -sum;
    }
    __syncthreads();
    constexpr int wide = 8;  // coefficients of a warp at a time
    for (int f = warp * wide; f < rest; f += warps * wide) {
      float size[wide] = {};
      bool good = true;
      for (int w = 0; w < words; ++w) {
        float y[wide] = {};
        for (int j = 0; j < rest; ++j) {
          const float z = value(w, order[s.c + j]);
          good &= fabsf(z) <= largest;
#pragma unroll
          for (int i = 0; i < wide; ++i)
            if (f + i < rest) y[i] += z * basis[j * rest + f + i];
        }
#pragma unroll
        for (int i = 0; i < wide; ++i) {
          const unsigned word = __ballot_sync(~0u, y[i] >= limit[w * 32 + lane]);
          if (lane == 0 && f + i < rest) plane(w, 2 * s.c + f + i) = static_cast<std::int32_t>(word);
          size[i] += fabsf(y[i]);
        }
      }
      good = __all_sync(~0u, good);
#pragma unroll
      for (int i = 0; i < wide; ++i) {
        const float mean = warp_sum(size[i]) / static_cast<float>(s.group);
        if (lane == 0 && f + i < rest) scale[(s.c + f + i) * scales.col] = __float2half_rn(good && mean <= largest ? mean : NAN);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(threads)
    pack_run_values(Array<const T> x, Sizes s, double gamma, Array<std::uint8_t> codes, Array<__half> scales, Array<__half> zeros) {
  extern __shared__ __align__(16) float shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, words = s.group / 32;
  float* const tile = shared;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(tile + s.group * s.tile);
  for (std::int64_t run = blockIdx.x; run < s.runs; run += gridDim.x) {
    const std::int64_t at = run % s.per_head, g = run / s.per_head % s.groups, b = run / s.per_head / s.groups;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < s.group * s.d; i += threads)
      tile[i / s.d * s.tile + i % s.d] = static_cast<float>(x.at(b, g, at * s.group + i / s.d)[i % s.d * x.col]);
    __syncthreads();
    __half* const scale = scales.at(b, g, at);
    for (int byte = warp; byte < s.width; byte += warps) {
      int sums[4] = {}, power = 1;  // by word of 32 tokens
      for (int channel = byte; channel < s.d; channel += s.width) {
        const auto value = [&](int w) { return tile[(w * 32 + lane) * s.tile + channel]; };
        const auto add = [&](int w, int code) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (k == w) sums[k] += power * code;
        };
        if (zeros.data) {
          two_bits(words, value, scale + channel * scales.col, zeros.at(b, g, at) + channel * zeros.col, add);
          power *= 4;
          continue;
        }
        double size = 0, above = 0;
        float kept = 0;
        bool good = true;
        for (int w = 0; w < words; ++w) good &= fabsf(value(w)) <= largest, size += fabs(static_cast<double>(value(w)));
        const double limit = gamma * warp_sum(size) / s.group;
        for (int w = 0; w < words; ++w) {
          const double y = value(w);
          const bool keep = fabs(y) > limit;
          if (keep) above += fabs(y), kept += 1;
          add(w, keep ? (y > 0 ? 2 : 0) : 1);
        }
        above = warp_sum(above), kept = warp_sum(kept);
        good = __all_sync(~0u, good);
        if (lane == 0) scale[channel * scales.col] = __float2half_rn(!good ? NAN : kept > 0 ? static_cast<float>(above / kept) : 0.f);
        power *= 3;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < words) bytes[(k * 32 + lane) * s.width + byte] = static_cast<std::uint8_t>(sums[k]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < s.group * s.width; i += threads)
      codes.at(b, g, at * s.group + i / s.width)[i % s.width * codes.col] = bytes[i];
  }
}

/// 32 tokens of unpacked keys at a time; here a run is 32 tokens and `group` that of the scales.
template <class T>
__global__ void __launch_bounds__(threads)
    unpack_run_keys(Sizes s, Array<const std::int32_t> planes, Array<const __half> scales, Array<const __half> zeros, Array<T> out) {
  extern __shared__ __align__(16) float shared[];
  __shared__ int order[most_channels];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, rest = s.d - s.c;
  float *const basis = shared, *const tile = shared + (rest * rest + 3) / 4 * 4;
  make_basis(basis, rest);
  for (std::int64_t run = blockIdx.x; run < s.runs; run += gridDim.x) {
    const std::int64_t at = run % s.per_head, g = run / s.per_head % s.groups, b = run / s.per_head / s.groups;
    __syncthreads();
    load_channels(order, s, b);
    __syncthreads();
    const std::int32_t* words = planes.at(b, g, at);
    const __half *scale = scales.at(b, g, at * 32 / s.group), *zero = zeros.at(b, g, at * 32 / s.group);
    const auto bit = [&](int p) { return static_cast<int>(static_cast<std::uint32_t>(words[p * planes.col]) >> lane & 1); };
    const auto put = [&](int i, float y) {
      if (const int channel = order[i]; channel >= 0) tile[lane * s.tile + channel] = y;
    };
    for (int i = warp; i < s.c; i += warps)
      put(i, __half2float(zero[i * zeros.col]) + __half2float(scale[i * scales.col]) * static_cast<float>(bit(i) + 2 * bit(s.c + i)));
    constexpr int wide = 8;
    for (int j = warp * wide; j < rest; j += warps * wide) {
      float y[wide] = {};
      for (int f = 0; f < rest; ++f) {
        const float size = __half2float(scale[(s.c + f) * scales.col]), z = bit(2 * s.c + f) ? size : -size;
#pragma unroll
        for (int i = 0; i < wide; ++i)
          if (j + i < rest) y[i] += z * basis[(j + i) * rest + f];
      }
#pragma unroll
      for (int i = 0; i < wide; ++i)
        if (j + i < rest) put(s.c + j + i, y[i]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < 32 * s.d; i += threads)
      out.at(b, g, at * 32 + i / s.d)[i % s.d * out.col] = T(tile[i / s.d * s.tile + i % s.d]);
  }
}

/// One thread a value; s.runs is their number.
template <class T>
__global__ void __launch_bounds__(threads) unpack_each_value(Sizes s, std::int64_t n, Array<const std::uint8_t> codes,
                                                             Array<const __half> scales, Array<const __half> zeros, Array<T> out) {
  for (std::int64_t i = blockIdx.x * std::int64_t{threads} + threadIdx.x; i < s.runs; i += gridDim.x * std::int64_t{threads}) {
    const int channel = static_cast<int>(i % s.d);
    const std::int64_t t = i / s.d % n, g = i / s.d / n % s.groups, b = i / s.d / n / s.groups;
    int code = codes.at(b, g, t)[channel % s.width * codes.col];
    const int base = zeros.data ? 4 : 3;
    for (int k = channel / s.width; k; --k) code /= base;
    const float scale = __half2float(scales.at(b, g, t / s.group)[channel * scales.col]);
    const float digit = static_cast<float>(code % base);
    out.at(b, g, t)[channel * out.col] =
        T(zeros.data ? __half2float(zeros.at(b, g, t / s.group)[channel * zeros.col]) + scale * digit : scale * (digit - 1));
  }
}

Sizes sizes_of(const char* op, std::int64_t batch, std::int64_t groups, std::int64_t n, std::int64_t group, std::int64_t d,
               std::int64_t run) {
  if (d > most_channels) refuse(op, "x", "of at most 256 channels on CUDA, got " + std::to_string(d));
  if (groups > INT32_MAX / 2) refuse(op, "x", "of at most 2^30 heads on CUDA");
  Sizes s{};
  s.runs = batch * groups * (n / run), s.per_head = n / run, s.groups = static_cast<int>(groups), s.group = static_cast<int>(group);
  s.d = static_cast<int>(d), s.tile = static_cast<int>(d | 1);
  return s;
}
void set_channels(const char* op, Sizes& s, const core::Tensor<const std::int32_t, 2>& channels, std::int64_t c) {
  s.c = static_cast<int>(c), s.channels = channels.data, s.channels_row = channels.stride[0], s.channels_col = channels.stride[1];
}
/// Floats of shared memory for the basis and a tile of `rows` tokens.
int key_bytes(const Sizes& s, int rows) { return 4 * (((s.d - s.c) * (s.d - s.c) + 3) / 4 * 4 + rows * s.tile); }

template <class Kernel, class... A>
void launch(const char* op, Kernel kernel, int device, std::int64_t runs, int bytes, cudaStream_t stream, A... arguments) {
  int processors = 0, room = 0;
  check_cuda(op, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "asking for the device");
  check_cuda(op, cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the device");
  if (bytes > room - 4096) refuse(op, "x", "of fewer channels outside of those at two bits on this device");
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(std::min<std::int64_t>(runs, 4 * processors)), threads, static_cast<std::size_t>(bytes), stream>>>(
      arguments...);
  check_cuda(op, cudaGetLastError(), "coding");
}

template <class T>
void pack_keys_on(core::Tensor<const T, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                  core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales, core::Tensor<core::float16, 4> zeros,
                  core::Stream stream) {
  const char* op = "pack_keys";
  const auto [batch, groups, n, d] = x.shape;
  check_group(op, group, "x", n);
  check_keys(op, n, d, group, planes, scales, zeros);
  if (x.numel() == 0) return;
  Sizes s = sizes_of(op, batch, groups, n, group, d, group);
  set_channels(op, s, channels, zeros.shape[3]);
  const OnDevice on(op, x.device_id);
  launch(op, pack_run_keys<device_t<T>>, x.device_id, s.runs, key_bytes(s, s.group), static_cast<cudaStream_t>(stream.handle),
         array<const device_t<T>>(x), s, array<std::int32_t>(planes), array<__half>(scales), array<__half>(zeros));
}

template <class T>
void unpack_keys_on(core::Tensor<const std::int32_t, 2> channels, std::int64_t group, core::Tensor<const std::int32_t, 4> planes,
                    core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros, core::Tensor<T, 4> out,
                    core::Stream stream) {
  const char* op = "unpack_keys";
  const auto [batch, groups, n, d] = out.shape;
  check_group(op, group, "out", n);
  check_keys(op, n, d, group, planes, scales, zeros);
  if (out.numel() == 0) return;
  Sizes s = sizes_of(op, batch, groups, n, group, d, word);
  set_channels(op, s, channels, zeros.shape[3]);
  const OnDevice on(op, out.device_id);
  launch(op, unpack_run_keys<device_t<T>>, out.device_id, s.runs, key_bytes(s, 32), static_cast<cudaStream_t>(stream.handle), s,
         array<const std::int32_t>(planes), array<const __half>(scales), array<const __half>(zeros), array<device_t<T>>(out));
}

template <class T>
void pack_values_on(core::Tensor<const T, 4> x, std::int64_t group, double gamma, core::Tensor<std::uint8_t, 4> codes,
                    core::Tensor<core::float16, 4> scales, std::optional<core::Tensor<core::float16, 4>> zeros, core::Stream stream) {
  const char* op = "pack_values";
  const auto [batch, groups, n, e] = x.shape;
  check_group(op, group, "x", n);
  check_values(op, "codes", codes.shape[3], e, zeros ? 4 : 5, "scales", n, group, scales.shape[2]);
  if (!(gamma >= 0 && gamma <= 4)) refuse(op, "gamma", "in [0, 4], got " + std::to_string(gamma));
  if (x.numel() == 0) return;
  Sizes s = sizes_of(op, batch, groups, n, group, e, group);
  s.width = static_cast<int>(codes.shape[3]);
  const OnDevice on(op, x.device_id);
  launch(op, pack_run_values<device_t<T>>, x.device_id, s.runs, s.group * (4 * s.tile + s.width), static_cast<cudaStream_t>(stream.handle),
         array<const device_t<T>>(x), s, gamma, array<std::uint8_t>(codes), array<__half>(scales),
         zeros ? array<__half>(*zeros) : Array<__half>{});
}

template <class T>
void unpack_values_on(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes, core::Tensor<const core::float16, 4> scales,
                      std::optional<core::Tensor<const core::float16, 4>> zeros, core::Tensor<T, 4> out, core::Stream stream) {
  const char* op = "unpack_values";
  const auto [batch, groups, n, e] = out.shape;
  check_group(op, group, "out", n);
  check_values(op, "codes", codes.shape[3], e, zeros ? 4 : 5, "scales", n, group, scales.shape[2]);
  if (out.numel() == 0) return;
  Sizes s = sizes_of(op, batch, groups, n, group, e, word);
  s.runs = out.numel(), s.width = static_cast<int>(codes.shape[3]);
  const OnDevice on(op, out.device_id);
  launch(op, unpack_each_value<device_t<T>>, out.device_id, ceil_div(s.runs, threads), 0, static_cast<cudaStream_t>(stream.handle), s, n,
         array<const std::uint8_t>(codes), array<const __half>(scales), zeros ? array<const __half>(*zeros) : Array<const __half>{},
         array<device_t<T>>(out));
}
}  // namespace

#define CORE_CODERS(suffix, T)                                                                                                            \
  void pack_keys_##suffix(core::Tensor<const T, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,                   \
                          core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales,                                    \
                          core::Tensor<core::float16, 4> zeros, core::Stream stream) {                                                    \
    pack_keys_on(x, channels, group, planes, scales, zeros, stream);                                                                      \
  }                                                                                                                                       \
  void unpack_keys_##suffix(core::Tensor<const std::int32_t, 2> channels, std::int64_t group, core::Tensor<const std::int32_t, 4> planes, \
                            core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros,                      \
                            core::Tensor<T, 4> out, core::Stream stream) {                                                                \
    unpack_keys_on(channels, group, planes, scales, zeros, out, stream);                                                                  \
  }                                                                                                                                       \
  void pack_values_##suffix(core::Tensor<const T, 4> x, std::int64_t group, double gamma, core::Tensor<std::uint8_t, 4> codes,            \
                            core::Tensor<core::float16, 4> scales, std::optional<core::Tensor<core::float16, 4>> zeros,                   \
                            core::Stream stream) {                                                                                        \
    pack_values_on(x, group, gamma, codes, scales, zeros, stream);                                                                        \
  }                                                                                                                                       \
  void unpack_values_##suffix(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes, core::Tensor<const core::float16, 4> scales, \
                              std::optional<core::Tensor<const core::float16, 4>> zeros, core::Tensor<T, 4> out, core::Stream stream) {   \
    unpack_values_on(group, codes, scales, zeros, out, stream);                                                                           \
  }
CORE_CODERS(fp32, float)
CORE_CODERS(fp16, core::float16)
CORE_CODERS(bf16, core::bfloat16)
#undef CORE_CODERS
}  // namespace core_llm_efficiency
