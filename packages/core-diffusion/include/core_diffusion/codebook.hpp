// core_diffusion/codebook.hpp - nearest codes and k-means over the vectors of a codebook.
//
// The clusters of token codes that coarse-to-fine generation (arXiv 2503.16194, section 3.1) is built on, and the
// quantiser of any vector-quantised tokeniser. Distances are squared Euclidean ones. The nearest code is found through
// |c|^2 / 2 - x.c in float32, after the mean of the codes has been taken off both sides so that a common offset costs
// no accuracy; the distance that is returned is summed anew, from the differences, in double. Results do not depend
// on the number of threads.
#pragma once
#include <core/tensor.hpp>

namespace core_diffusion {

/// The nearest of codes[K,D] for each row of x[N,D]; K >= 1.
///
/// index[N]: of equally near codes the first (nearness as computed in float32); distance[N]: its squared distance.
/// Throws ValueError: K = 0; a value that is NaN, infinite, or so large that squares overflow float32 (names row and column).
CORE_EXPORT void nearest_codes(core::Tensor<const float, 2> x, core::Tensor<const float, 2> codes, core::Tensor<std::int64_t, 1> index,
                               core::Tensor<float, 1> distance);

/// Draws K of the rows of x[N,D] as first centers[K,D] by greedy k-means++ (Arthur and Vassilvitskii, 2007): each
/// next one is the best of `trials` rows drawn in proportion to their squared distance from the centers so far.
/// Once all rows are centers' equals, the first row is taken. Needs 1 <= K <= N, trials in 1..1000; throws as above.
CORE_EXPORT void kmeans_init(core::Tensor<const float, 2> x, std::int64_t trials, std::int64_t seed, core::Tensor<float, 2> centers);

/// Lloyd's k-means of x[N,D] from init[K,D] for at most max_iter rounds; 1 <= K <= N.
///
/// It ends when no label changes, or when the centers move by a squared length of at most `tol` times the mean variance of the columns.
/// A cluster that has lost all rows takes over the row farthest from its center, from a cluster that has others; so
/// no cluster is empty in the end. centers[K,D]: the means, summed in double in the order of rows;
/// labels[N]: nearest center; inertia[1]: sum of the squared distances; rounds[1]: how many were done.
/// Throws ValueError: K, max_iter < 0, tol < 0 or NaN, or as above.
CORE_EXPORT void kmeans(core::Tensor<const float, 2> x, core::Tensor<const float, 2> init, std::int64_t max_iter, double tol,
                        core::Tensor<float, 2> centers, core::Tensor<std::int64_t, 1> labels, core::Tensor<double, 1> inertia,
                        core::Tensor<std::int64_t, 1> rounds);

}  // namespace core_diffusion
