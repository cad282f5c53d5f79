// core_diffusion/set_diffusion.hpp - count vectors with an exact sum (TokenSet, arXiv 2503.16425).
//
// The published sampler draws every count on its own and then repairs the sum greedily; the result
// neither has the sum for certain nor follows the law it stands for. Here the sum is part of the law:
// with T_i(r) = P(X_i + ... + X_{K-1} = r), T_i(r) = sum_k p_i(k) T_{i+1}(r - k), the codes are drawn one
// after the other from P(X_i = k | rest is r) = p_i(k) T_{i+1}(r - k) / T_i(r). All arithmetic is in double.
// Where the total is so unlikely that the table would leave the range of double, the laws are first tilted,
// p_i(k) -> p_i(k) exp(lambda k), which leaves the conditional law as it is and makes the total a likely one.
//
// Element i of row b uses one number of a counter-based generator (philox.hpp), so that a result depends
// on the arguments alone, not on the number of threads or the instruction set.
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {

/// Draws count vectors from independent categorical laws, conditioned on their sum.
///
/// probs[B,K,C]: finite weights >= 0 of the counts 0..C-1, for each code a positive sum (need not be 1);
/// totals[B]: the sums; top_p in (0, 1]: keep, for each code, the fewest most likely counts whose mass
/// reaches top_p (ties: the smaller count), 1 keeps all; a row whose kept counts cannot make up its total
/// is drawn from its whole laws. seed: any; out[B,K]: the counts, whose sum over K is totals[b].
/// Throws ValueError: a bad weight (names row, code and count), a code without mass, top_p out of range,
/// a total that no counts of positive weight can make up, or one less likely than 1e-280 under every tilt;
/// MemoryError: more than 4 GiB of scratch for one row.
/// Cost of a row: C K to read it, and the product of random codes, their width and the residual total.
CORE_EXPORT void fixed_sum_sample(core::Tensor<const float, 3> probs, core::Tensor<const std::int64_t, 1> totals, double top_p,
                                  std::int64_t seed, core::Tensor<std::int32_t, 2> out);
CORE_EXPORT void fixed_sum_sample_f64(core::Tensor<const double, 3> probs, core::Tensor<const std::int64_t, 1> totals, double top_p,
                                      std::int64_t seed, core::Tensor<std::int32_t, 2> out);

/// A state on the path from x0 to x1 at each row's time, conditioned on the common sum.
///
/// x0[B,K], x1[B,K]: counts in 0..max_count whose rows have equal sums; t[B] in [0, 1], 1 is x1.
/// Code i has the law exp(-(k - m)^2 / (2 s^2)) with m = (1-t) x0 + t x1 and s = max(sigma |x1 - x0|, 1e-3) on
/// the counts within 6 s of m, and floor(m) and ceil(m), inside 0..max_count; the paper's sigma is 0.25.
/// A code with x0 = x1 is not random. As floor(m) and ceil(m) always belong to the support and the
/// means add up to the sum, every row has a solution. out[B,K] has the row sums of x0.
/// Throws ValueError: t, sigma or max_count out of range, a count out of range (names row and code), or rows
/// of unequal sums; MemoryError as above.
CORE_EXPORT void fixed_sum_bridge(core::Tensor<const std::int32_t, 2> x0, core::Tensor<const std::int32_t, 2> x1,
                                  core::Tensor<const double, 1> t, double sigma, std::int64_t max_count, std::int64_t seed,
                                  core::Tensor<std::int32_t, 2> out);
CORE_EXPORT void fixed_sum_bridge_i64(core::Tensor<const std::int64_t, 2> x0, core::Tensor<const std::int64_t, 2> x1,
                                      core::Tensor<const double, 1> t, double sigma, std::int64_t max_count, std::int64_t seed,
                                      core::Tensor<std::int32_t, 2> out);

/// The same on CUDA, one block a row, in double; draws equal those of the CPU but for the last bit of exp and log.
/// Waits for the stream once, for the errors of the arguments, which name row and kind.
CORE_EXPORT void fixed_sum_sample_cuda(core::Tensor<const float, 3> probs, core::Tensor<const std::int64_t, 1> totals, double top_p,
                                       std::int64_t seed, core::Tensor<std::int32_t, 2> out, core::Stream stream);
CORE_EXPORT void fixed_sum_sample_cuda_f64(core::Tensor<const double, 3> probs, core::Tensor<const std::int64_t, 1> totals, double top_p,
                                           std::int64_t seed, core::Tensor<std::int32_t, 2> out, core::Stream stream);
CORE_EXPORT void fixed_sum_bridge_cuda(core::Tensor<const std::int32_t, 2> x0, core::Tensor<const std::int32_t, 2> x1,
                                       core::Tensor<const double, 1> t, double sigma, std::int64_t max_count, std::int64_t seed,
                                       core::Tensor<std::int32_t, 2> out, core::Stream stream);

}  // namespace core_diffusion
