// The operators of core-diffusion.
#pragma once
#include <core/op.hpp>

#include <core_diffusion/set_diffusion.hpp>

namespace core_diffusion {
inline constexpr auto ops =
    core::op_set(core::op<"fixed_sum_sample", &fixed_sum_sample, &fixed_sum_sample_f64>(
                     "Count vectors drawn from independent categorical laws `probs`, conditioned exactly on the sums `totals`.",
                     {"probs[B,K,C]", "totals[B]", "top_p", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 2}),
                 core::op<"fixed_sum_bridge", &fixed_sum_bridge, &fixed_sum_bridge_i64>(
                     "A state at time `t` of the fixed-sum path from `x0` to `x1`, conditioned exactly on the common row sums.",
                     {"x0[B,K]", "x1[B,K]", "t", "sigma", "max_count", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 8}));
}
