// core_llm_efficiency/vidkv.hpp - a key/value cache of 1.x bits an element and attention that reads it packed
// (VidKV, arXiv 2503.16257, section 3).
//
// Sizes: B batch, G key/value heads, H query heads (a multiple of G), N packed tokens (a multiple of `group`, which is
// 32, 64 or 128), T = N / 32, S = N / group, D and E head dimensions of keys and values, C channels of keys at two bits.
// Every channel and run of `group` tokens has its own float16 scale. The transform F is the orthonormal real Fourier
// basis of the D - C other channels: constant, cos 1, sin 1, cos 2, ...; it holds the numbers of an rfft and, being
// orthonormal, lets a query be transformed in place of the keys (Parseval). Results are independent of the number of threads.
// Values must be finite and of magnitude at most 65504.
#pragma once
#include <core/tensor.hpp>

namespace core_llm_efficiency {

/// Packs keys: channels[b, :C] at two bits, x ~ zero + scale * code with zero the run's minimum and scale a third of its
/// range; the signs of F x over channels[b, C:], F x ~ scale * sign with scale the mean magnitude.
/// A coefficient above -1e-6 times the token's sum of magnitudes counts as positive.
/// x[B,G,N,D] float32; channels[B,D] int32, each row a permutation; planes[B,G,T,P] int32, P = D + C: bit t of a word
/// belongs to token t of 32, and the words are C low bits, C high bits, D - C signs; scales[B,G,S,D], zeros[B,G,S,C] float16.
/// Throws ValueError on sizes that do not fit, on rows of channels that are no permutation and on values out of range.
CORE_EXPORT void pack_keys(core::Tensor<const float, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                           core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales,
                           core::Tensor<core::float16, 4> zeros);

/// The keys out[B,G,N,D] float32 that pack_keys stored; arguments as there.
CORE_EXPORT void unpack_keys(core::Tensor<const std::int32_t, 2> channels, std::int64_t group, core::Tensor<const std::int32_t, 4> planes,
                             core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros,
                             core::Tensor<float, 4> out);

/// Packs values. With zeros: two bits a value as in pack_keys, W = ceil(E / 4), byte w holds channels w, w + W, w + 2W, ...
/// from its low bits. Without: -1, 0 or 1 times scale, 0 up to gamma times the run's mean magnitude, scale the mean
/// magnitude of the rest (least squares); W = ceil(E / 5), byte w holds channels w, w + W, ... as base-3 digits plus one.
/// x[B,G,N,E] float32; gamma in [0, 4]; codes[B,G,N,W] uint8; scales[B,G,S,E] float16; zeros[B,G,S,E] float16, optional.
/// Throws ValueError on sizes, group or gamma out of range and on values out of range.
CORE_EXPORT void pack_values(core::Tensor<const float, 4> x, std::int64_t group, double gamma, core::Tensor<std::uint8_t, 4> codes,
                             core::Tensor<core::float16, 4> scales, std::optional<core::Tensor<core::float16, 4>> zeros);

/// The values out[B,G,N,E] float32 that pack_values stored; arguments as there.
CORE_EXPORT void unpack_values(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes, core::Tensor<const core::float16, 4> scales,
                               std::optional<core::Tensor<const core::float16, 4>> zeros, core::Tensor<float, 4> out);

/// Attention of one query a head over packed keys and values followed by R recent ones in float32.
///
/// q[B,H,D]; keys as pack_keys stored them; values of the first V tokens at two bits (codes2[B,G,V,W2], scales2, zeros2), of
/// the other U at three levels (codes3[B,G,U,W3], scales3), V + U = N, both multiples of group; recent_k[B,G,R,D],
/// recent_v[B,G,R,E] float32; seen[B,M] bool, optional, M = N + R: which tokens are read; scale finite; out[B,H,E].
/// The query is transformed once; a packed key costs additions, and one multiplication a channel and run of tokens.
/// A query that sees no token gives zeros. Throws ValueError on sizes, scale or channels out of range.
CORE_EXPORT void packed_attention(core::Tensor<const float, 3> q, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                  core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                                  core::Tensor<const core::float16, 4> zeros, core::Tensor<const std::uint8_t, 4> codes2,
                                  core::Tensor<const core::float16, 4> scales2, core::Tensor<const core::float16, 4> zeros2,
                                  core::Tensor<const std::uint8_t, 4> codes3, core::Tensor<const core::float16, 4> scales3,
                                  core::Tensor<const float, 4> recent_k, core::Tensor<const float, 4> recent_v,
                                  std::optional<core::Tensor<const bool, 2>> seen, double scale, core::Tensor<float, 3> out);

#if defined(CORE_WITH_CUDA)
// On CUDA (compute capability 8.0 and above) x and out of the coders, and q, recent_k, recent_v and out of packed_attention,
// are float32, float16 or bfloat16; D and E are at most 256. Sums are float32. With 16-bit q, the scaled query's coefficients
// and the weights are rounded to float16; with float32 they are two float16 numbers each. Work is queued on `stream` and the
// host does not wait. Sizes are checked as above; values are not read by the host: a run that holds a value which is
// not finite or too large gets a NaN scale, and a channel out of range makes keys NaN when packed and queries NaN.
CORE_EXPORT void pack_keys_fp32(core::Tensor<const float, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales,
                                core::Tensor<core::float16, 4> zeros, core::Stream stream);
CORE_EXPORT void unpack_keys_fp32(core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                  core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                                  core::Tensor<const core::float16, 4> zeros, core::Tensor<float, 4> out, core::Stream stream);
CORE_EXPORT void pack_values_fp32(core::Tensor<const float, 4> x, std::int64_t group, double gamma, core::Tensor<std::uint8_t, 4> codes,
                                  core::Tensor<core::float16, 4> scales, std::optional<core::Tensor<core::float16, 4>> zeros,
                                  core::Stream stream);
CORE_EXPORT void unpack_values_fp32(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes,
                                    core::Tensor<const core::float16, 4> scales, std::optional<core::Tensor<const core::float16, 4>> zeros,
                                    core::Tensor<float, 4> out, core::Stream stream);
CORE_EXPORT void pack_keys_fp16(core::Tensor<const core::float16, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales,
                                core::Tensor<core::float16, 4> zeros, core::Stream stream);
CORE_EXPORT void unpack_keys_fp16(core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                  core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                                  core::Tensor<const core::float16, 4> zeros, core::Tensor<core::float16, 4> out, core::Stream stream);
CORE_EXPORT void pack_values_fp16(core::Tensor<const core::float16, 4> x, std::int64_t group, double gamma,
                                  core::Tensor<std::uint8_t, 4> codes, core::Tensor<core::float16, 4> scales,
                                  std::optional<core::Tensor<core::float16, 4>> zeros, core::Stream stream);
CORE_EXPORT void unpack_values_fp16(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes,
                                    core::Tensor<const core::float16, 4> scales, std::optional<core::Tensor<const core::float16, 4>> zeros,
                                    core::Tensor<core::float16, 4> out, core::Stream stream);
CORE_EXPORT void pack_keys_bf16(core::Tensor<const core::bfloat16, 4> x, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                core::Tensor<std::int32_t, 4> planes, core::Tensor<core::float16, 4> scales,
                                core::Tensor<core::float16, 4> zeros, core::Stream stream);
CORE_EXPORT void unpack_keys_bf16(core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                  core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                                  core::Tensor<const core::float16, 4> zeros, core::Tensor<core::bfloat16, 4> out, core::Stream stream);
CORE_EXPORT void pack_values_bf16(core::Tensor<const core::bfloat16, 4> x, std::int64_t group, double gamma,
                                  core::Tensor<std::uint8_t, 4> codes, core::Tensor<core::float16, 4> scales,
                                  std::optional<core::Tensor<core::float16, 4>> zeros, core::Stream stream);
CORE_EXPORT void unpack_values_bf16(std::int64_t group, core::Tensor<const std::uint8_t, 4> codes,
                                    core::Tensor<const core::float16, 4> scales, std::optional<core::Tensor<const core::float16, 4>> zeros,
                                    core::Tensor<core::bfloat16, 4> out, core::Stream stream);
CORE_EXPORT void packed_attention_fp32(core::Tensor<const float, 3> q, core::Tensor<const std::int32_t, 2> channels, std::int64_t group,
                                       core::Tensor<const std::int32_t, 4> planes, core::Tensor<const core::float16, 4> scales,
                                       core::Tensor<const core::float16, 4> zeros, core::Tensor<const std::uint8_t, 4> codes2,
                                       core::Tensor<const core::float16, 4> scales2, core::Tensor<const core::float16, 4> zeros2,
                                       core::Tensor<const std::uint8_t, 4> codes3, core::Tensor<const core::float16, 4> scales3,
                                       core::Tensor<const float, 4> recent_k, core::Tensor<const float, 4> recent_v,
                                       std::optional<core::Tensor<const bool, 2>> seen, double scale, core::Tensor<float, 3> out,
                                       core::Stream stream);
CORE_EXPORT void packed_attention_fp16(core::Tensor<const core::float16, 3> q, core::Tensor<const std::int32_t, 2> channels,
                                       std::int64_t group, core::Tensor<const std::int32_t, 4> planes,
                                       core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros,
                                       core::Tensor<const std::uint8_t, 4> codes2, core::Tensor<const core::float16, 4> scales2,
                                       core::Tensor<const core::float16, 4> zeros2, core::Tensor<const std::uint8_t, 4> codes3,
                                       core::Tensor<const core::float16, 4> scales3, core::Tensor<const core::float16, 4> recent_k,
                                       core::Tensor<const core::float16, 4> recent_v, std::optional<core::Tensor<const bool, 2>> seen,
                                       double scale, core::Tensor<core::float16, 3> out, core::Stream stream);
CORE_EXPORT void packed_attention_bf16(core::Tensor<const core::bfloat16, 3> q, core::Tensor<const std::int32_t, 2> channels,
                                       std::int64_t group, core::Tensor<const std::int32_t, 4> planes,
                                       core::Tensor<const core::float16, 4> scales, core::Tensor<const core::float16, 4> zeros,
                                       core::Tensor<const std::uint8_t, 4> codes2, core::Tensor<const core::float16, 4> scales2,
                                       core::Tensor<const core::float16, 4> zeros2, core::Tensor<const std::uint8_t, 4> codes3,
                                       core::Tensor<const core::float16, 4> scales3, core::Tensor<const core::bfloat16, 4> recent_k,
                                       core::Tensor<const core::bfloat16, 4> recent_v, std::optional<core::Tensor<const bool, 2>> seen,
                                       double scale, core::Tensor<core::bfloat16, 3> out, core::Stream stream);
#endif

}  // namespace core_llm_efficiency
