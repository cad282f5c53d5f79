// The operators of this plugin: one entry each, all faces come from it.
#pragma once
#include <core/op.hpp>
#include <plugin_name/pairwise.hpp>

namespace plugin_name {
inline constexpr auto ops = core::op_set(core::op<"pairwise_sqdist", &pairwise_sqdist>(
    "Squared Euclidean distances between the rows of `x` and the rows of `y`.", {"x[N,D]", "y[M,D]", "out[N,M]"}));
}
