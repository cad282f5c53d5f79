// How packed keys and values, and the query, come to a thread block where the compiler knows the sizes: lanes find the addresses
// of what they copy once, the keys' zeros come with the block, and the query is transformed on the tensor cores.
#pragma once
#include "decode_warp.cuh"

namespace core_llm_efficiency::decode {
/// What `AnyFeed` does, for one of the fixed shapes.
template <class Digits, class Shape>
class FixedFeed {
  static constexpr bool two = std::is_same_v<Digits, TwoBits>;
  static constexpr int n = Shape::signs, c = Shape::c, d = Shape::d, threads = 32 * warps;
  static constexpr Stage at{Shape::wide, Shape::signs, Shape::width, Shape::e, two, true};
  static_assert(n % 16 == 0 && (n & (n - 1)) == 0 && c % 32 == 0 && d % 32 == 0 && n / 16 <= warps && d <= threads);

 public:
  struct Shared {
    float plain[tile_heads][d], packed[tile_heads][d];  // the query; its channels in order, then transformed
    alignas(4) __half scaled[tile_heads][n];            // of those that are transformed, to at most 1
    float scale[tile_heads];                            // what that took away
    std::uint32_t wave[n];                              // cosines in two halves
    int channels[d];
  };

  /// Reads the query first, so that it waits for nothing.
  __device__ FixedFeed(const Operands& p, const Values& v, const Unit& u, const Lane& l, const Shape&, int, int, Shared& shared)
      : p_(p), shared_(shared), l_(l) {
    const int x = static_cast<int>(threadIdx.x);
    channel_ = x < d ? p.channels[u.b * p.channels_row + x * p.channels_col] : 0;
#pragma unroll
    for (int i = 0; i < shares; ++i) {
      const int h = (x + i * threads) / d, col = (x + i * threads) % d;
      const auto* from = static_cast<const std::uint16_t*>(p.q) + u.b * p.q_batch + (u.first_head + h) * p.q_head + col * p.q_col;
      query_[i] = h < u.count ? *from : std::uint16_t{0};
    }
    const auto place = [](const auto* from, int piece) { return reinterpret_cast<const char*>(from) + piece * 16; };
    const int run = v.first >> p.run, lane = l.lane;
    planes_ = place(p.planes.at(u.b, u.g, v.first), lane), planes_step_ = step(p.planes);
    if (lane < more_planes)
      rest_ = planes_ + 512, rest_step_ = planes_step_, rest_run_ = 0, rest_to_ = 512 + lane * 16;
    else
      rest_ = place(p.zeros.at(u.b, u.g, run), lane - more_planes), rest_step_ = step(p.zeros), rest_run_ = p.run,
      rest_to_ = at.zeros + (lane - more_planes) * 16;
    if (lane < of_scales)
      scales_ = place(p.scales.at(u.b, u.g, run), lane), scales_step_ = step(p.scales), scales_to_ = at.scales + lane * 16;
    else
      scales_ = place(v.scales.at(u.b, u.g, 0), lane - of_scales), scales_step_ = step(v.scales),
      scales_to_ = at.value_scales + (lane - of_scales) * 16;
    codes_ = place(v.codes.at(u.b, u.g, 0), lane);
    if constexpr (two) value_zeros_ = place(v.zeros.at(u.b, u.g, 0), lane), value_zeros_step_ = step(v.zeros);
  }

  /// One warp brings a block's keys and values into shared memory.
  __device__ void bring(int block, char* stage) const {
    const std::uint32_t to = shared_address(stage);
    const auto copy = [&](bool mine, int there, const char* from, int index, unsigned step) {
      if (mine) copy_piece(to + static_cast<std::uint32_t>(there), from + static_cast<unsigned>(index) * std::uint64_t{step});
    };
    const int run = block >> p_.run, there = l_.lane * 16;
    copy(l_.lane < of_planes, there, planes_, block, planes_step_);
    copy(l_.lane < more_planes + of_zeros, rest_to_, rest_, block >> rest_run_, rest_step_);
    copy(l_.lane < 2 * of_scales, scales_to_, scales_, run, scales_step_);
    copy(l_.lane < of_codes, at.codes + there, codes_, block, codes_step);
    copy(l_.lane < of_codes - 32, at.codes + 512 + there, codes_ + 512, block, codes_step);
    if constexpr (two) copy(l_.lane < of_scales, at.value_zeros + there, value_zeros_, run, value_zeros_step_);
  }

  /// The query transformed as by `prepare`; the caller synchronises.
  __device__ void query(Prepared& q) const {
    const int x = static_cast<int>(threadIdx.x), warp = x / 32, lane = l_.lane;
    auto& [plain, packed, scaled, scale, wave, channels] = shared_;
    if (x < n) {
      const float y = cospif(2.f * static_cast<float>(x) / n) * sqrtf(2.f / n);
      const __half high = __float2half_rn(y);
      wave[x] = bits(__halves2half2(high, __float2half_rn(y - __half2float(high))));
    }
#pragma unroll
    for (int i = 0; i < shares; ++i) plain[(x + i * threads) / d][(x + i * threads) % d] = load(&query_[i], 0, p_.kind);
    if (x < d) channels[x] = channel_;
    __syncthreads();
    const auto most_of = [](float y) {
      for (int o = 16; o; o /= 2) y = fmaxf(y, __shfl_xor_sync(~0u, y, o));
      return y;
    };
    if (warp < tile_heads) {
      float y[d / 32], most = 0;
#pragma unroll
      for (int i = 0; i < d / 32; ++i) {
        const int from = channels[lane + 32 * i];
        y[i] = from >= 0 && from < d ? plain[warp][from] : NAN;
        if (i >= c / 32) most = fmaxf(most, fabsf(y[i]));
      }
      const int power = power_above(most_of(most));
#pragma unroll
      for (int i = 0; i < d / 32; ++i)
        if (i < c / 32)
          packed[warp][lane + 32 * i] = y[i];
        else
          scaled[warp][lane + 32 * i - c] = __float2half_rn(y[i] * two_to(-power));
      if (lane == 0) scale[warp] = two_to(power);
    }
    __syncthreads();
    if (warp < n / 16) {  // 16 coefficients each
      const int row = lane / 4, quad = lane % 4;
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < n; k += 16) {
        std::uint32_t high[4], low[4], b[2] = {};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int f = warp * 16 + row + r % 2 * 8, j = k + quad * 2 + r / 2 * 8, once = (f + 1) / 2;
          const int turn = once * j + (f % 2 || f == 0 ? 0 : 3 * n / 4);  // a sine is a cosine three quarters later
          const std::uint32_t first = wave[turn & (n - 1)], second = wave[(turn + once) & (n - 1)];
          high[r] = __byte_perm(first, second, 0x5410), low[r] = __byte_perm(first, second, 0x7632);
        }
        if (row < tile_heads)
#pragma unroll
          for (int i = 0; i < 2; ++i) b[i] = *reinterpret_cast<const std::uint32_t*>(&scaled[row][k + quad * 2 + i * 8]);
        multiply_add<__half>(sum, high, b[0], b[1]);
        multiply_add<__half>(sum, low, b[0], b[1]);
      }
      if (quad < tile_heads / 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int f = warp * 16 + row + i / 2 * 8, h = 2 * quad + i % 2;
          packed[h][c + f] = sum[i] * (f == 0 || f == n - 1 ? sqrtf(0.5f) : 1.f) * scale[h];
        }
    }
    __syncthreads();
    if (warp < tile_heads) {
      float most = 0;
#pragma unroll
      for (int i = 0; i < d / 32; ++i) most = fmaxf(most, fabsf(packed[warp][lane + 32 * i]));
      const int power = power_above(most_of(most));
      if (lane == 0) q.factor[warp] = p_.scale * two_to(power);
#pragma unroll
      for (int i = 0; i < d / 32; ++i) q.put(warp, lane + 32 * i, packed[warp][lane + 32 * i] * two_to(-power));
    }
  }

  /// Of the block at `stage`: what belongs to every logit of heads head and head + 1, and to those in the sign bit's row too.
  __device__ void bases(const Prepared& q, const char* stage, int, float (&every)[2], float (&last)[2]) const {
    const auto *scales = reinterpret_cast<const __half*>(stage + at.scales), *zeros = reinterpret_cast<const __half*>(stage + at.zeros);
    const __half* const row = l_.row ? scales : zeros;  // the left operand's rows: the zeros, the others the scales
    float wide[4] = {}, sign[4] = {};
    const auto add = [&](float (&sum)[4], const __half* from, int position) {
      const uint2 a = *reinterpret_cast<const uint2*>(from + l_.quad * 4);
      const uint2 b = *reinterpret_cast<const uint2*>(&q.split[l_.row / 4][l_.column_head()][position + l_.quad * 4]);
      multiply_add<__half>(sum, {a.x, a.x, a.y, a.y}, b.x, b.y);
    };
#pragma unroll
    for (int j = 0; j < c; j += 16) add(wide, row + j, j);
#pragma unroll
    for (int j = 0; j < n; j += 16) add(sign, scales + c + j, c + j);
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // columns 0-3 hold the products with the query's first part, 4-7 those with its second
      float sum = l_.row ? 1.5f * wide[i] + sign[i] : wide[i] - sign[i];
      sum += __shfl_xor_sync(~0u, sum, 2);
      every[i] = __shfl_sync(~0u, sum, l_.quad % 2), last[i] = __shfl_sync(~0u, sum, 4 + l_.quad % 2);
    }
  }

 private:
  // pieces of 16 bytes; 32 lanes copy one each at a time, those of the planes beyond 32 together with the zeros
  static constexpr int all_planes = (2 * Shape::wide + Shape::signs) / 4, of_planes = all_planes < 32 ? all_planes : 32;
  static constexpr int more_planes = all_planes - of_planes, of_zeros = Shape::wide / 8, of_scales = d / 8, of_codes = 2 * Shape::width;
  static_assert(more_planes + of_zeros <= 32 && 2 * of_scales <= 32 && of_codes <= 64);
  static constexpr int shares = tile_heads * d / threads;  // of the query
  static constexpr unsigned codes_step = 32 * Shape::width;
  template <class T>
  static __device__ unsigned step(const Array<T>& x) {
    return static_cast<unsigned>(x.row * sizeof(T));
  }

  const Operands& p_;
  Shared& shared_;
  const Lane& l_;
  int channel_;
  std::uint16_t query_[shares];
  const char *planes_, *rest_, *scales_, *codes_, *value_zeros_;
  unsigned planes_step_, rest_step_, scales_step_, value_zeros_step_;
  int rest_run_, rest_to_, scales_to_;
};
}  // namespace core_llm_efficiency::decode
