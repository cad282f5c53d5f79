// The gradient of up to 32 channels on CUDA: each tile is blended again front to back while the part of the pixel's colour
// that lies behind shrinks. What the pixels of a warp pass to 16 Gaussians, times the powers of the pixels' places and times
// the derivatives by the pixels' colours, are matrix products for the tensor cores: both factors are sums of two numbers of
// tf32, and the product of the two lesser parts is left out (relative error about 2^-20).
#include "../tf32.cuh"
#include "backward.cuh"

namespace core_splatting {
namespace {

constexpr int rows = 16;  // Gaussians of one product

constexpr int batch = 128;  // Gaussians that a block stages at a time

/// What a block has in shared memory: two batches in turn, and what is each warp's own. A matrix [row][pixel] has its pixels, by
/// fours, exchanged in odd rows, so that eight lanes that read four pixels each of two rows meet in no bank.
template <int K, int S, bool Absolute>
struct Memory {
  static constexpr int pixels = 32 * S, record = (K + 4) / 4 * 4, sums = moments + (K + 3) / 4 * 4;
  struct Own {
    float shares[2 * rows * pixels];  // G, then weights; later the sums of each row
    float v[K * pixels];
    float2 absolute[Absolute ? rows : 2];
    std::uint8_t hits[batch];  // which of the staged the warp is to blend
  };
  Staged staged[2 * batch];
  float records[2 * batch * record];  // the colour; the Gaussian, or its place in the tiles' lists
  Own own[Patch<S>::warps];
  static __device__ int at(int row, int pixel) { return row * pixels + (pixel ^ (row & 1) << 4); }
};

/// Adds the product of a matrix [16 Gaussians, pixels] in shared memory and one of [pixels, 8], of which right(four, b) gives the
/// lane's elements: of the pixels [16 four + 4 (lane % 4), + 4) and the column lane / 4. `Exact`: those are numbers of tf32.
template <int Pixels, bool Exact, class Right>
__device__ void multiply(const float* left, int lane, Right right, float (&sum)[4]) {
  const int row = lane / 4, column = 4 * (lane % 4);
  float other[4] = {};  // every second product, so that they wait less for each other
#pragma unroll
  for (int four = 0; four < Pixels / 16; ++four) {
    const int from = (16 * four + column) ^ (row & 1) << 4;
    const float4 upper = *reinterpret_cast<const float4*>(left + row * Pixels + from);
    const float4 lower = *reinterpret_cast<const float4*>(left + (row + 8) * Pixels + from);
    float b[4];
    right(four, b);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Parts a[] = {parts_of(half ? upper.z : upper.x), parts_of(half ? lower.z : lower.x), parts_of(half ? upper.w : upper.y),
                         parts_of(half ? lower.w : lower.y)};
      const Parts first = parts_of(b[2 * half]), second = parts_of(b[2 * half + 1]);
      float (&to)[4] = half ? other : sum;
      multiply_add(to, a[0].high, a[1].high, a[2].high, a[3].high, first.high, second.high);
      multiply_add(to, a[0].low, a[1].low, a[2].low, a[3].low, first.high, second.high);
      if constexpr (!Exact) multiply_add(to, a[0].high, a[1].high, a[2].high, a[3].high, first.low, second.low);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += other[i];
}

/// The moments by U = p x + sheared y + u and V = q y + v, given those by 1, x, y, x^2, x y, y^2, x and y counted from a middle.
__device__ void shift_moments(const Staged& g, float middle_x, float middle_y, float (&m)[6]) {
  const float u = g.u + g.p * middle_x + g.sheared * middle_y, v = g.v + g.q * middle_y;
  const float one = m[0], v1 = g.q * m[2], u1 = g.p * m[1] + g.sheared * m[2];  // of the parts that are linear
  const float uu = g.p * g.p * m[3] + 2.f * g.p * g.sheared * m[4] + g.sheared * g.sheared * m[5];
  const float uv = g.q * (g.p * m[4] + g.sheared * m[5]), vv = g.q * g.q * m[5];
  m[1] = u1 + u * one;
  m[2] = uu + u * (2.f * u1 + u * one);
  m[3] = v1 + v * one;
  m[4] = uv + u * v1 + v * (u1 + u * one);
  m[5] = vv + v * (2.f * v1 + v * one);
}

/// One block per tile; a warp for S strips, as in the forward pass. The moments are of U and V in place of u and dy.
template <int K, int S, bool Absolute>
__global__ void __launch_bounds__(Patch<S>::threads, S == 1 ? 2 : 4)
    gradient_tiles(Lists lists, Options o, core::Tensor<const float, 3> colors, Images images, Sums sums) {
  using Shared = Memory<K, S, Absolute>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Patch<S> patch(o, static_cast<int>(blockIdx.x));
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  typename Shared::Own& own = shared.own[patch.warp];
  float *const shares_g = own.shares, *const shares_w = own.shares + rows * Shared::pixels;
  const int channels = static_cast<int>(colors.shape[2]), lane = patch.lane, thread = static_cast<int>(threadIdx.x);

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
      if (images.v_alphas.data)
        behind[s] -= (1.f - at(images.alphas, patch.camera, row, patch.column)) * at(images.v_alphas, patch.camera, row, patch.column);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) own.v[Shared::at(k, 32 * s + lane)] = v[s][k];
    if (__any_sync(0xffffffffu, inside)) alive |= 1u << s;
  }

  // The lane's elements of the powers: the product of one by x, of four columns, and one by y, of S * 2 rows.
  float power_x[4], power_y[2 * S];
  {
    const int power = lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float at_x = static_cast<float>(lane % 2 * 4 + i) - 3.5f;
      power_x[i] = power == 1 || power == 4 ? at_x : power == 3 ? at_x * at_x : power < 6 ? 1.f : 0.f;
    }
#pragma unroll
    for (int i = 0; i < 2 * S; ++i) {
      const float at_y = static_cast<float>(2 * i + lane % 4 / 2 - 2 * S) + 0.5f;
      power_y[i] = power == 2 || power == 4 ? at_y : power == 5 ? at_y * at_y : 1.f;
    }
  }

  const auto blend_one = [&](int slot, int row) {
    const Staged of = shared.staged[slot];
    const float across = of.p * x + of.u;
    float color[Shared::record], absolute[2] = {};
#pragma unroll
    for (int k = 0; k < K; k += 4)
      *reinterpret_cast<float4*>(color + k) = *reinterpret_cast<const float4*>(shared.records + slot * Shared::record + k);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int place = Shared::at(row, 32 * s + lane);
      if (S > 1 && !(patch.own(of.mask) >> s & 1)) {
        shares_g[place] = shares_w[place] = 0.f;
        continue;
      }
      const float dy = of.q * y[s] + of.v, u = of.sheared * y[s] + across;
      float shade = 0.f;
#pragma unroll
      for (int k = 0; k < K; ++k) shade += color[k] * v[s][k];
      const auto [g, weight, finished] = share_of(of.power - dy * dy - u * u, of.cut, o.max_alpha, shade, transmittance[s], behind[s]);
      if (Absolute && weight > 0.f) absolute[0] += fabsf(g * u), absolute[1] += fabsf(g * u * of.sheared + g * dy * of.q);
      y[s] = finished ? not_a_number() : y[s];
      shares_g[place] = g, shares_w[place] = weight;
    }
    if constexpr (Absolute) {
      const float sum = sum_of_warp(absolute, lane);
      if (lane % 16 == 0) (lane ? own.absolute[row].y : own.absolute[row].x) = sum;
    }
  };

  /// The sums of `count` Gaussians, which have been blended.
  const auto add_sums = [&](const std::uint8_t* slots, int count) {
    constexpr int tiles = (K + 7) / 8, of_row = Shared::sums;
    float moment[4] = {}, of_color[tiles][4] = {};
    multiply<Shared::pixels, true>(
        shares_g, lane,
        [&](int four, float (&b)[4]) {
#pragma unroll
          for (int i = 0; i < 4; ++i) b[i] = power_x[i] * power_y[four];
        },
        moment);
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      const int k = 8 * t + lane / 4;
      multiply<Shared::pixels, false>(
          shares_w, lane,
          [&](int four, float (&b)[4]) {
            const float4 there =
                k < K ? *reinterpret_cast<const float4*>(own.v + Shared::at(k, 16 * four + lane % 4 * 4)) : float4{0.f, 0.f, 0.f, 0.f};
            b[0] = there.x, b[1] = there.y, b[2] = there.z, b[3] = there.w;
          },
          of_color[t]);
    }
    __syncwarp();
    float* const out = own.shares;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const row = out + (lane / 4 + 8 * half) * of_row + lane % 4 * 2;
      *reinterpret_cast<float2*>(row) = {moment[2 * half], moment[2 * half + 1]};
#pragma unroll
      for (int t = 0; t < tiles; ++t)
        if (8 * t + lane % 4 * 2 < of_row - moments)
          *reinterpret_cast<float2*>(row + moments + 8 * t) = {of_color[t][2 * half], of_color[t][2 * half + 1]};
    }
    __syncwarp();
    if (lane < count) {
      float m[6];
      float* const row = out + lane * of_row;
#pragma unroll
      for (int k = 0; k < 6; ++k) m[k] = row[k];
      shift_moments(shared.staged[slots[lane]], patch.middle_x(), patch.middle_y(), m);
#pragma unroll
      for (int k = 0; k < 6; ++k) row[k] = m[k];
      if constexpr (Absolute) row[6] = own.absolute[lane].x, row[7] = own.absolute[lane].y;
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < count * (of_row / 4); i += 32) {
      const int row = i / (of_row / 4), k = i % (of_row / 4) * 4;
      const float4 sum = *reinterpret_cast<const float4*>(out + row * of_row + k);
      if (k >= static_cast<int>(sums.stride) || (sum.x == 0.f && sum.y == 0.f && sum.z == 0.f && sum.w == 0.f)) continue;
      const std::uint32_t place = __float_as_uint(shared.records[slots[row] * Shared::record + K]);
      sums.add(sums.of(place, place, patch.warp) + k, sum);
    }
    __syncwarp();
  };

  const TileList list(lists, static_cast<int>(blockIdx.x));
  Stream<K, batch> next(lists, list, colors.data + (colors.shape[0] == 1 ? 0 : patch.camera) * colors.stride[0], colors.stride[1],
                        colors.stride[2], channels, patch.camera, thread);
  int first = 0;  // of the staged of this turn
  for (std::uint32_t begin = list.begin; begin < list.end; begin += batch, first ^= batch) {
    if (thread < batch) {
      const std::uint32_t reached = next.valid() ? reached_of_tile(next.splat, patch.left, patch.top) : 0;
      Staged& staged = shared.staged[first + thread];
      if (reached) {
        staged = stage_at(patch.left + 8, patch.top + 8, next.splat, reached);
        float* const record = shared.records + (first + thread) * Shared::record;
#pragma unroll
        for (int k = 0; k < K; ++k) record[k] = next.color[k];
        record[K] = __uint_as_float(sums.warps ? begin + static_cast<std::uint32_t>(thread) : next.id);
      } else {
        staged.mask = 0;
      }
      next.fetch();
    }
    if (!__syncthreads_or(static_cast<int>(alive))) break;
    int waiting = 0;
#pragma unroll
    for (int part = first; part < first + batch; part += 32) {
      const bool hit = patch.own(shared.staged[part + lane].mask) & alive;
      const std::uint32_t all = __ballot_sync(0xffffffffu, hit);
      if (hit) own.hits[waiting + __popc(all & ((1u << lane) - 1))] = static_cast<std::uint8_t>(part + lane);
      waiting += __popc(all);
    }
    __syncwarp();
    for (int done = 0; done < waiting; done += rows) {
      const int count = min(waiting - done, rows);
#pragma unroll 2
      for (int row = 0; row < count; ++row) blend_one(own.hits[done + row], row);
      __syncwarp();
      add_sums(own.hits + done, count);
    }
#pragma unroll
    for (int s = 0; s < S; ++s)
      if (!__any_sync(0xffffffffu, y[s] == y[s])) alive &= ~(1u << s);
  }
}

template <int K, int S, bool Absolute>
void run(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
         cudaStream_t stream) {
  constexpr auto kernel = &gradient_tiles<K, S, Absolute>;
  constexpr std::size_t bytes = sizeof(Memory<K, S, Absolute>);
  static_assert(Patch<S>::warps == warps_of_tile(K) && Patch<S>::threads >= batch);
  if constexpr (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "asking for shared memory");
  kernel<<<static_cast<unsigned>(lists.tiles), Patch<S>::threads, bytes, stream>>>(lists, o, colors, images, sums);
}

}  // namespace

void sum_tiles(const Lists& lists, const Options& o, const core::Tensor<const float, 3>& colors, const Images& images, const Sums& sums,
               bool absolute, cudaStream_t stream) {
  const auto launch = [&]<int K, int S>() {
    const auto chosen = absolute ? &run<K, S, true> : &run<K, S, false>;
    chosen(lists, o, colors, images, sums, stream);
  };
  const std::int64_t channels = colors.shape[2];
  if (channels <= 1)
    launch.template operator()<1, 2>();
  else if (channels <= 3)
    launch.template operator()<3, 2>();
  else if (channels == 4)
    launch.template operator()<4, 2>();
  else if (channels <= 8)
    launch.template operator()<8, 1>();
  else if (channels <= 16)
    launch.template operator()<16, 1>();
  else
    launch.template operator()<32, 1>();
  check(cudaGetLastError(), "blending again");
}

}  // namespace core_splatting
