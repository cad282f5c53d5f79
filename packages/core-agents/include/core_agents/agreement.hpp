// core_agents/agreement.hpp - how far raters agree, with bootstrap intervals.
//
// Cohen's and Fleiss' kappa and Krippendorff's alpha are functions of counts that add up over units. So each unit's counts are
// taken once, a bootstrap replicate is a sum of counts over units drawn with replacement, and the statistic is a function of sums.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

namespace core_agents {

/// The counts of each of N units with J labels each, given by R raters. ratings: a class in [0, classes), or -1: missing ("krippendorff"
/// only). L is J (labels apart) or 1 (all labels of a unit together). statistic and what C holds:
/// "cohen": a matrix [classes, classes] for each pair of raters (0, 1), (0, 2), ..., (1, 2), ...;
/// "fleiss": how often each class was given, then the sum over labels of the squared numbers of raters for each class, then the labels;
/// "krippendorff": the coincidences [classes, classes].
CORE_EXPORT void agreement_tables(core::Tensor<const std::int32_t, 3> ratings, std::int64_t classes, const char* statistic,
                                  core::Tensor<double, 3> tables);

/// Sums of `rows` over N rows drawn with replacement, B times. Draw i of replicate b is row floor(N u / 2^64) with u the i-th output
/// of splitmix64 from the state splitmix64(seed) ^ splitmix64(b); so a replicate depends on nothing but seed, b and N.
CORE_EXPORT void bootstrap_sums(core::Tensor<const double, 2> rows, std::int64_t seed, core::Tensor<double, 2> sums);

/// The statistic of each of B summed tables; NaN where it is not defined (no labels, or one class only). metric is how far classes
/// are apart: "nominal"; for "cohen" also "linear" and "quadratic" (of the class' index); for "krippendorff" also "ordinal", "interval"
/// and "ratio" (of `values`). For more than two raters "cohen" is the mean over the pairs.
CORE_EXPORT void agreement(core::Tensor<const double, 2> tables, core::Tensor<const double, 1> values, std::int64_t raters,
                           const char* statistic, const char* metric, core::Tensor<double, 1> out);

}  // namespace core_agents
