// The gradient of the rasteriser on CUDA: each tile is blended again front to back while the part of the pixel's colour
// that lies behind shrinks; a warp adds up its pixels' shares of a Gaussian in registers and adds them to its sums.
#include <core_splatting/rasterize.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "../scenes.hpp"
#include "device.cuh"

namespace core_splatting {
namespace {

constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

/// Folds the first 2 Half of N values over the lanes that differ in a bit, again and again: each lane keeps one.
template <int Half, int N>
__device__ void fold(float (&v)[N], int lane) {
  constexpr int bit = 32 * Half / N;
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float first = v[i], second = v[i + Half];
    const float given = lane & bit ? first : second, kept = lane & bit ? second : first;
    v[i] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
  }
  if constexpr (Half > 1) fold<Half / 2>(v, lane);
}

/// Adds up N values (a power of two, at most 32) over the warp: lane l gets the sum of value l / (32 / N).
template <int N>
__device__ float sum_of_warp(float (&v)[N], int lane) {
  if constexpr (N > 1) fold<N / 2>(v, lane);
  float sum = v[0];
#pragma unroll
  for (int bit = 16 / N; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

struct Images {
  core::Tensor<const float, 4> image, v_image;
  core::Tensor<const float, 3> alphas, v_alphas;
};

/// Where the sums over pixels go: [moments + channels] of a Gaussian of a camera, added by whoever comes; or, where every
/// run must give the same, of an entry of the tiles' lists for each warp of a tile, written once.
struct Sums {
  float* data;
  std::size_t stride, warps;  // warps: 0 if by Gaussian
  __device__ float* of(std::uint32_t id, std::uint32_t entry, int warp) const {
    return data + (warps ? entry * warps + static_cast<std::size_t>(warp) : std::size_t{id}) * stride;
  }
  __device__ void add(float* to, float value) const {
    if (warps)
      *to = value;
    else
      atomicAdd(to, value);
  }
};

/// What a pixel passes to a Gaussian: G = alpha dL/dalpha where alpha is not clamped, and its weight; 0 if it does not
/// contribute. Blends it; `finished` says that the pixel takes no more.
struct Share {
  float g, weight;
  bool finished;
};
__device__ Share share_of(float exponent, float cut, float max_alpha, float shade, float& transmittance, float& behind) {
  const float before = transmittance, full = exp2_fast(exponent), alpha = fminf(max_alpha, full);
  const float blended = exponent >= cut ? alpha * before : 0.f;
  const bool finished = before - blended <= min_transmittance;
  const float weight = finished ? 0.f : blended;
  behind -= weight * shade;
  transmittance = before - weight;
  return {weight > 0.f && full <= max_alpha ? full * (before * shade - __fdividef(behind, 1.f - alpha)) : 0.f, weight, finished};
}

/// One block per tile; a warp for S strips, as in the forward pass. The moments are of U and V in place of u and dy.
template <int K, int S>
__global__ void __launch_bounds__(Patch<S>::threads)
    gradient_tiles(Lists lists, Options o, core::Tensor<const float, 3> colors, Images images, Sums sums) {
  constexpr int stride = K == 3 ? 4 : K;
  __shared__ __align__(16) Staged all_staged[Patch<S>::warps][32];
  __shared__ __align__(16) float all_colors[Patch<S>::warps][32 * stride];
  __shared__ uint2 all_entries[Patch<S>::warps][32];  // the Gaussian, the place in the list
  const Patch<S> patch(o, static_cast<int>(blockIdx.x));
  Staged* const staged = all_staged[patch.warp];
  float* const staged_colors = all_colors[patch.warp];
  uint2* const entries = all_entries[patch.warp];
  const int channels = static_cast<int>(colors.shape[2]), lane = patch.lane;

  const float x = patch.x();
  float y[S], v[S][K] = {}, behind[S] = {}, transmittance[S];  // y is NaN when the pixel is finished
  std::uint32_t alive = 0;
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const int row = patch.row + 4 * s;
    y[s] = patch.y(s, o), transmittance[s] = 1.f;
    const bool inside = y[s] == y[s];
    if (inside) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (k < channels) {
          v[s][k] = at(images.v_image, patch.camera, row, patch.column, k);
          behind[s] += v[s][k] * at(images.image, patch.camera, row, patch.column, k);
        }
      behind[s] -= (1.f - at(images.alphas, patch.camera, row, patch.column)) * at(images.v_alphas, patch.camera, row, patch.column);
    }
    if (__any_sync(0xffffffffu, inside)) alive |= 1u << s;
  }
  const TileList list(lists, static_cast<int>(blockIdx.x));
  Stream32<K> next(lists, list, colors.data + (colors.shape[0] == 1 ? 0 : patch.camera) * colors.stride[0], colors.stride[1],
                   colors.stride[2], channels, patch.camera, lane);
  for (std::uint32_t begin = list.begin; begin < list.end && alive; begin += 32) {
    const std::uint32_t mask = next.valid ? patch.reached(next.splat) & alive : 0, hits = __ballot_sync(0xffffffffu, mask != 0);
    if (mask) {
      const int place = __popc(hits & ((1u << lane) - 1));
      staged[place] = patch.stage(next.splat, mask);
      entries[place] = {next.id, begin + static_cast<std::uint32_t>(lane)};
#pragma unroll
      for (int k = 0; k < K; ++k) staged_colors[place * stride + k] = next.color[k];
    }
    next.fetch();
    __syncwarp();
    for (int j = 0, count = __popc(hits); j < count; ++j) {
      const Staged of = staged[j];
      const float across = of.p * x + of.u;
      float color[K], c[power_of_two(K)] = {}, m[moments] = {}, any = 0.f;
#pragma unroll
      for (int k = 0; k < K; ++k) color[k] = staged_colors[j * stride + k];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (S > 1 && !(of.mask >> s & 1)) continue;
        const float dy = of.q * y[s] + of.v, u = of.sheared * y[s] + across;
        float shade = 0.f;
#pragma unroll
        for (int k = 0; k < K; ++k) shade += color[k] * v[s][k];
        const auto [g, weight, finished] = share_of(of.power - dy * dy - u * u, of.cut, o.max_alpha, shade, transmittance[s], behind[s]);
        // Where the pixel is finished g is 0, but u is not a number.
        const float gu = weight > 0.f ? g * u : 0.f, gdy = weight > 0.f ? g * dy : 0.f;
        any += weight;
        m[0] += g, m[1] += gu, m[3] += gdy;
        if (weight > 0.f) m[2] += gu * u, m[4] += gu * dy, m[5] += gdy * dy;
        m[6] += fabsf(gu), m[7] += fabsf(gu * of.sheared + gdy * of.q);
#pragma unroll
        for (int k = 0; k < K; ++k) c[k] += weight * v[s][k];
        y[s] = finished ? not_a_number() : y[s];
      }
      if (!__any_sync(0xffffffffu, any > 0.f)) continue;
      float* const to = sums.of(entries[j].x, entries[j].y, patch.warp);
      constexpr int wide = power_of_two(K), step = 32 / wide;
      if constexpr (K <= 4) {  // moments and colours in one
        float all[16] = {};
#pragma unroll
        for (int k = 0; k < moments; ++k) all[k] = m[k];
#pragma unroll
        for (int k = 0; k < K; ++k) all[moments + k] = c[k];
        const float sum = sum_of_warp(all, lane);
        if (lane % 2 == 0 && lane / 2 < moments + channels) sums.add(to + lane / 2, sum);
      } else {
        const float moment = sum_of_warp(m, lane);
        if (lane % (32 / moments) == 0) sums.add(to + lane / (32 / moments), moment);
        const float shared = sum_of_warp(c, lane);
        if (lane % step == 0 && lane / step < channels) sums.add(to + moments + lane / step, shared);
      }
    }
#pragma unroll
    for (int s = 0; s < S; ++s)
      if (!__any_sync(0xffffffffu, y[s] == y[s])) alive &= ~(1u << s);
    __syncwarp();
  }
}

/// The same for any number of channels, which it keeps in shared memory; a block is a warp of 8x4 pixels.
__global__ void __launch_bounds__(32)
    gradient_patches(Lists lists, Options o, core::Tensor<const float, 3> colors, Images images, Sums sums) {
  extern __shared__ float v[];  // [channel][pixel]
  const int tile = static_cast<int>(blockIdx.x) / 8, part = static_cast<int>(blockIdx.x) % 8, lane = static_cast<int>(threadIdx.x);
  const int in_camera = tile % (o.tiles_x * o.tiles_y), camera = tile / (o.tiles_x * o.tiles_y);
  const int left = in_camera % o.tiles_x * tile_size + part % 2 * 8, top = in_camera / o.tiles_x * tile_size + part / 2 * 4;
  const int column = left + lane % 8, row = top + lane / 8, channels = static_cast<int>(colors.shape[2]);
  const float px = static_cast<float>(column) + 0.5f, py = static_cast<float>(row) + 0.5f;
  const bool inside = column < o.width && row < o.height;
  float behind = 0.f, transmittance = 1.f;
  bool done = !inside;
  for (int k = 0; k < channels; ++k) {
    const float of_channel = inside ? at(images.v_image, camera, row, column, k) : 0.f;
    v[k * 32 + lane] = of_channel;
    if (inside) behind += of_channel * at(images.image, camera, row, column, k);
  }
  if (inside) behind -= (1.f - at(images.alphas, camera, row, column)) * at(images.v_alphas, camera, row, column);
  const TileList list(lists, tile);
  const float* const of_camera = colors.data + (colors.shape[0] == 1 ? 0 : camera) * colors.stride[0];
  for (std::uint32_t begin = list.begin; begin < list.end; begin += 32) {
    if (__all_sync(0xffffffffu, done)) break;
    std::uint32_t own = 0;
    bool reached = false;
    if (begin + static_cast<std::uint32_t>(lane) < list.end) {
      own = list.ids[begin + static_cast<std::uint32_t>(lane)];
      reached = list.holds(lists, own, camera) && reached_strips<1>(load_splat(lists.splats, own), left, top);
    }
    for (std::uint32_t hits = __ballot_sync(0xffffffffu, reached); hits; hits &= hits - 1) {
      const int j = __ffs(static_cast<int>(hits)) - 1;
      const std::uint32_t id = __shfl_sync(0xffffffffu, own, j);
      const Splat s = load_splat(lists.splats, id);
      const float p = sqrtf(-s.uu), q = sqrtf(-s.yy), dy = q * (py - s.y), u = p * (px - s.x - s.shear * (py - s.y));
      const float exponent = done ? -INFINITY : s.log2_opacity - dy * dy - u * u, cut = exponent_cut(s.log2_opacity);
      if (!__any_sync(0xffffffffu, exponent >= cut)) continue;
      const float* const color =
          of_camera + (id - static_cast<std::uint32_t>(camera) * static_cast<std::uint32_t>(lists.gaussians)) * colors.stride[1];
      float shade = 0.f;
      for (int k = 0; k < channels; ++k) shade += color[k * colors.stride[2]] * v[k * 32 + lane];
      const auto [g, weight, finished] = share_of(exponent, cut, o.max_alpha, shade, transmittance, behind);
      done |= finished;
      const float gu = g * u;
      float m[moments] = {g, gu, gu * u, g * dy, gu * dy, g * dy * dy, fabsf(gu), fabsf(g * dy * q - gu * p * s.shear)};
      float* const to = sums.of(id, begin + static_cast<std::uint32_t>(j), part);
      const float moment = sum_of_warp(m, lane);
      if (lane % (32 / moments) == 0) sums.add(to + lane / (32 / moments), moment);
      for (int first = 0; first < channels; first += 32) {
        float c[32];
#pragma unroll
        for (int k = 0; k < 32; ++k) c[k] = first + k < channels ? weight * v[(first + k) * 32 + lane] : 0.f;
        const float sum = sum_of_warp(c, lane);
        if (first + lane < channels) sums.add(to + moments + first + lane, sum);
      }
    }
  }
}

/// One thread per Gaussian of a camera: the sum of its entries in the tiles' lists, tile by tile.
__global__ void __launch_bounds__(block) collect_entries(Lists lists, Options o, Sums entries, float* sums) {
  const auto i = blockIdx.x * block + threadIdx.x;
  if (i >= static_cast<std::uint32_t>(lists.total) || lists.depths[i] == culled) return;
  const Splat s = load_splat(lists.splats, i);
  const int first_tile = static_cast<int>(i) / lists.gaussians * o.tiles_x * o.tiles_y;
  const Range rows = tile_rows(s, o);
  for (int row = rows.first; row <= rows.last; ++row) {
    const Range columns = tile_columns(s, o, row);
    for (int column = columns.first; column <= columns.last; ++column) {
      const int tile = first_tile + row * o.tiles_x + column;
      std::uint32_t low = lists.begins[tile], high = lists.begins[tile + 1];
      while (low + 1 < high) {
        const std::uint32_t middle = low + (high - low) / 2, id = lists.ids[middle];
        if (lists.depths[id] < lists.depths[i] || (lists.depths[id] == lists.depths[i] && id <= i))
          low = middle;
        else
          high = middle;
      }
      for (std::size_t warp = 0; warp < entries.warps; ++warp)
        for (std::size_t k = 0; k < entries.stride; ++k)
          sums[i * entries.stride + k] += entries.data[(low * entries.warps + warp) * entries.stride + k];
    }
  }
}

struct Outputs {
  core::Tensor<float, 2> means, quats, scales, covars;
  core::Tensor<float, 1> opacities;
  core::Tensor<float, 3> colors, viewmats, means2d;
};

/// One thread per Gaussian: its sums of all cameras become the derivatives by its parameters; `of_cameras` gets those by the
/// cameras, [camera][block][12].
__global__ void __launch_bounds__(block) gradient_gaussians(Scene in, Options o, int cameras, int gaussians, int channels, Lists lists,
                                                            const float* sums, Outputs out, float* of_cameras) {
  __shared__ float of_warps[block / 32][12];
  const int n = blockIdx.x * block + static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x & 31);
  const bool one_set = out.colors.shape[0] == 1;
  GaussianGradient total{};
  for (int c = 0; c < cameras; ++c) {
    GaussianGradient g{};
    if (n < gaussians) {
      const std::int64_t i = std::int64_t{c} * gaussians + n;
      const float* const of_splat = sums + i * (moments + channels);
      float centre[4] = {};
      if (lists.depths[i] != culled) {
        const Splat s = load_splat(lists.splats, static_cast<std::uint32_t>(i));
        const float over_p = rsqrtf(-s.uu), over_q = rsqrtf(-s.yy);
        const float m[moments] = {of_splat[0],
                                  of_splat[1] * over_p,
                                  of_splat[2] * over_p * over_p,
                                  of_splat[3] * over_q,
                                  of_splat[4] * over_p * over_q,
                                  of_splat[5] * over_q * over_q,
                                  of_splat[6] * over_p,
                                  of_splat[7]};
        const SplatGradient v = splat_gradient(s, m);
        g = project_backward(load_camera(in, c), o, load_gaussian(in.gaussians, n), v);
        centre[0] = v.x, centre[1] = v.y, centre[2] = -2.f / log2e * s.uu * m[6], centre[3] = 2.f / log2e * m[7];
      }
      for (int k = 0; k < 4; ++k) at(out.means2d, c, n, k) = centre[k];
      for (int k = 0; k < 3; ++k) total.mean[k] += g.mean[k], total.scale[k] += g.scale[k];
      for (int k = 0; k < 4; ++k) total.quat[k] += g.quat[k];
      for (int k = 0; k < 6; ++k) total.covar[k] += g.covar[k];
      total.opacity += g.opacity;
    }
    // The colours' by the block together, neighbouring threads neighbouring channels.
    const auto first = static_cast<std::uint32_t>(blockIdx.x) * block, width = static_cast<std::uint32_t>(channels);
    for (std::uint32_t at_color = threadIdx.x, end = min(static_cast<std::uint32_t>(gaussians) - first, std::uint32_t{block}) * width;
         at_color < end; at_color += block) {
      const std::uint32_t of = first + at_color / width, d = at_color % width;
      float& to = at(out.colors, one_set ? 0 : c, of, d);
      to = sums[(static_cast<std::size_t>(c) * static_cast<std::size_t>(gaussians) + of) * (moments + width) + moments + d] +
           (one_set && c ? to : 0.f);
    }
    float of_camera[16] = {};
    for (int k = 0; k < 12; ++k) of_camera[k] = k % 4 == 3 ? g.t[k / 4] : g.r[k / 4 * 3 + k % 4];
    const float sum = sum_of_warp(of_camera, lane);
    if (lane % 2 == 0 && lane < 24) of_warps[threadIdx.x / 32][lane / 2] = sum;
    __syncthreads();
    if (threadIdx.x < 12) {
      float of_block = 0.f;
      for (const auto& of_warp : of_warps) of_block += of_warp[threadIdx.x];
      of_cameras[(static_cast<std::size_t>(c) * gridDim.x + blockIdx.x) * 12 + threadIdx.x] = of_block;
    }
    __syncthreads();
  }
  if (n >= gaussians) return;
  for (int k = 0; k < 3; ++k) at(out.means, n, k) = total.mean[k];
  if (in.gaussians.by_covariance) {
    for (int k = 0; k < 6; ++k) at(out.covars, n, k) = total.covar[k];
  } else {
    for (int k = 0; k < 3; ++k) at(out.scales, n, k) = total.scale[k];
    for (int k = 0; k < 4; ++k) at(out.quats, n, k) = total.quat[k];
  }
  at(out.opacities, n) = total.opacity;
}

/// One block per camera, a warp for each of 16 elements: the sum over `parts` blocks of Gaussians.
__global__ void __launch_bounds__(512) gradient_cameras(const float* of_blocks, int parts, core::Tensor<float, 3> out) {
  const int k = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x & 31);
  float sum = 0.f;
  if (k < 12)
    for (int part = lane; part < parts; part += 32) sum += of_blocks[(static_cast<std::size_t>(blockIdx.x) * parts + part) * 12 + k];
  for (int bit = 16; bit >= 1; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  if (lane == 0) at(out, blockIdx.x, k / 4, k % 4) = sum;
}

__global__ void __launch_bounds__(block) clear_colors(core::Tensor<float, 3> colors, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * block + threadIdx.x, d = colors.shape[2], n = colors.shape[1];
  if (i < total) at(colors, i / (d * n), i / d % n, i % d) = 0.f;
}

/// Blends again; the sums go to `sums`, cleared before.
void sum_tiles(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
               cudaStream_t stream) {
  const auto channels = static_cast<int>(colors.shape[2]);
  if (channels > 32) {
    const std::size_t bytes = static_cast<std::size_t>(channels) * 32 * sizeof(float);
    constexpr auto kernel = &gradient_patches;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "asking for shared memory");
    kernel<<<static_cast<unsigned>(lists.tiles) * 8, 32, bytes, stream>>>(lists, o, colors, images, sums);
  } else {
    const auto run = [&]<int K, int S>() {
      gradient_tiles<K, S><<<static_cast<unsigned>(lists.tiles), Patch<S>::threads, 0, stream>>>(lists, o, colors, images, sums);
    };
    const auto few = [&]<int K>() {
      if (sums.warps) return run.template operator()<K, 4>();
      run.template operator()<K, 2>();
    };
    const auto many = [&]<int K>() {
      if (sums.warps) return run.template operator()<K, 4>();
      run.template operator()<K, 1>();
    };
    if (channels <= 1)
      few.template operator()<1>();
    else if (channels <= 3)
      few.template operator()<3>();
    else if (channels == 4)
      few.template operator()<4>();
    else if (channels <= 8)
      many.template operator()<8>();
    else if (channels <= 16)
      many.template operator()<16>();
    else
      many.template operator()<32>();
  }
  check(cudaGetLastError(), "blending again");
}

/// The number of pairs; waits for the device.
std::int64_t count_pairs(const Lists& lists, cudaStream_t stream) {
  unsigned long long pairs = 0;
  check(cudaMemcpyAsync(&pairs, lists.pairs, sizeof pairs, cudaMemcpyDeviceToHost, stream), "reading the number of tiles");
  check(cudaStreamSynchronize(stream), "waiting for the projection");
  if (pairs > static_cast<unsigned long long>(std::numeric_limits<std::int32_t>::max()))
    throw core::Error("MemoryError", "rasterize_backward: the Gaussians reach " + std::to_string(pairs) + " tiles, more than 2^31 - 1");
  return static_cast<std::int64_t>(pairs);
}

/// Of one scene.
void rasterize_backward_of_scene(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                                 In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                                 double max_alpha, bool antialiased, const char* camera_model, In<4> image, In<3> alphas, In<4> v_image,
                                 In<3> v_alphas, MaybeWorkspace workspace, bool deterministic, Out<2> v_means, MaybeOut<2> v_quats,
                                 MaybeOut<2> v_scales, MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors, Out<3> v_viewmats,
                                 Out<3> v_means2d, core::Stream queue) {
  const char* op = "rasterize_backward";
  const std::int64_t cameras = viewmats.shape[0], gaussians = means.shape[0], channels = colors.shape[2];
  const Options o =
      check_options(op, cameras, gaussians, colors.shape[0],
                    {near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased, camera_model}, alphas.shape[1], alphas.shape[2]);
  const Scene scene{check_gaussians(op, means, quats, scales, covars, opacities), viewmats, Ks};
  check_gradients(op, scene.gaussians, colors, v_quats, v_scales, v_covars, v_colors);
  constexpr int most_channels = 1024;
  if (channels > most_channels)
    throw core::Error("NotImplementedError", std::string(op) + ": argument 'colors' must have at most " + std::to_string(most_channels) +
                                                 " channels on CUDA, got " + std::to_string(channels));
  const std::int64_t tiles = cameras * o.tiles_x * o.tiles_y, total = cameras * gaussians, stride = moments + channels;
  const int device = v_means.device_id;
  const core::OnDevice guard(op, device);
  const auto stream = static_cast<cudaStream_t>(queue.handle);
  if (const std::int64_t of_colors = v_colors.numel(); of_colors && cameras == 0)
    clear_colors<<<blocks_for(of_colors), block, 0, stream>>>(v_colors, of_colors);

  std::optional<OwnLists> lists;
  lists.emplace(tiles ? workspace : MaybeWorkspace{}, device, gaussians, total, tiles, stream);
  if (!(tiles && workspace)) prepare(scene, o, lists->lists, device, stream);
  const unsigned parts = blocks_for(gaussians);
  Scratch scratch(device, stream);
  const auto at_sums = scratch.part<float>(core::checked_mul(total, stride, op));
  const auto at_cameras = scratch.part<float>(core::checked_mul(cameras, std::int64_t{parts} * 12, op));
  scratch.allocate();
  float* const sums = scratch.at<float>(at_sums);
  check(cudaMemsetAsync(sums, 0, static_cast<std::size_t>(total * stride) * sizeof(float), stream), "clearing the sums");
  const Images images{image, v_image, alphas, v_alphas};
  if (total && tiles && !deterministic) sum_tiles(lists->lists, o, colors, images, {sums, static_cast<std::size_t>(stride), 0}, stream);
  if (total && tiles && deterministic) {
    const std::int64_t pairs = count_pairs(lists->lists, stream);
    std::optional<core::DeviceScratch> enough;
    Lists exact = lists->lists;
    if (pairs > exact.capacity) {
      const std::int64_t size = Lists::size_without_ids(total, tiles) + pairs;
      enough.emplace(op, device, stream, size * 4);
      exact = Lists(enough->get<std::int32_t>(), size, gaussians, total, tiles);
      prepare(scene, o, exact, device, stream);
    }
    const std::int64_t warps = channels > 32 ? 8 : 2;
    const std::int64_t floats = core::checked_mul(core::checked_mul(pairs, warps, op), stride, op);
    const core::DeviceScratch entries(op, device, stream, core::checked_mul(floats, sizeof(float), op));
    check(cudaMemsetAsync(entries.get<float>(), 0, static_cast<std::size_t>(floats) * sizeof(float), stream), "clearing the sums");
    const Sums by_entry{entries.get<float>(), static_cast<std::size_t>(stride), static_cast<std::size_t>(warps)};
    sum_tiles(exact, o, colors, images, by_entry, stream);
    collect_entries<<<blocks_for(total), block, 0, stream>>>(exact, o, by_entry, sums);
    check(cudaGetLastError(), "adding up");
  }
  if (gaussians)
    gradient_gaussians<<<parts, block, 0, stream>>>(scene, o, static_cast<int>(cameras), static_cast<int>(gaussians),
                                                    static_cast<int>(channels), lists->lists, sums,
                                                    {v_means, v_quats.value_or(Out<2>{}), v_scales.value_or(Out<2>{}),
                                                     v_covars.value_or(Out<2>{}), v_opacities, v_colors, v_viewmats, v_means2d},
                                                    scratch.at<float>(at_cameras));
  if (cameras)
    gradient_cameras<<<static_cast<unsigned>(cameras), 512, 0, stream>>>(scratch.at<float>(at_cameras), static_cast<int>(parts),
                                                                         v_viewmats);
  check(cudaGetLastError(), "projecting backward");
}

}  // namespace

void rasterize_backward_cuda(In<2> means, MaybeIn<2> quats, MaybeIn<2> scales, MaybeIn<2> covars, In<1> opacities, In<3> colors,
                             In<3> viewmats, In<3> Ks, double near_plane, double far_plane, double radius_clip, double eps2d,
                             double max_alpha, bool antialiased, const char* camera_model, std::int64_t scenes, In<4> image, In<3> alphas,
                             In<4> v_image, In<3> v_alphas, MaybeWorkspace workspace, bool deterministic, Out<2> v_means,
                             MaybeOut<2> v_quats, MaybeOut<2> v_scales, MaybeOut<2> v_covars, Out<1> v_opacities, Out<3> v_colors,
                             Out<3> v_viewmats, Out<3> v_means2d, core::Stream queue) {
  for_each_scene("rasterize_backward", scenes, means.shape[0], viewmats.shape[0], [&](const SceneOf& s) {
    rasterize_backward_of_scene(s.rows(means), s.rows(quats), s.rows(scales), s.rows(covars), s.rows(opacities), s.colors("colors", colors),
                                s.views(viewmats), s.views(Ks), near_plane, far_plane, radius_clip, eps2d, max_alpha, antialiased,
                                camera_model, s.views(image), s.views(alphas), s.views(v_image), s.views(v_alphas), s.workspace(workspace),
                                deterministic, s.rows(v_means), s.rows(v_quats), s.rows(v_scales), s.rows(v_covars), s.rows(v_opacities),
                                s.colors("v_colors", v_colors), s.views(v_viewmats), s.projections("v_means2d", v_means2d), queue);
  });
}

}  // namespace core_splatting
