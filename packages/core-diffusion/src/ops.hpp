// The operators of core-diffusion.
#pragma once
#include <core/op.hpp>

#include <core_diffusion/marching_cubes.hpp>
#include <core_diffusion/set_diffusion.hpp>

namespace core_diffusion {
inline constexpr auto ops = core::op_set(
    core::op<"fixed_sum_sample", &fixed_sum_sample, &fixed_sum_sample_f64>(
        "Count vectors drawn from independent categorical laws `probs`, conditioned exactly on the sums `totals`.",
        {"probs[B,K,C]", "totals[B]", "top_p", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 2}),
    core::op<"fixed_sum_bridge", &fixed_sum_bridge, &fixed_sum_bridge_i64>(
        "A state at time `t` of the fixed-sum path from `x0` to `x1`, conditioned exactly on the common row sums.",
        {"x0[B,K]", "x1[B,K]", "t", "sigma", "max_count", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 8}),
    core::op<"marching_cubes_count", &marching_cubes_count>("How many vertices and triangles `marching_cubes` gives.",
                                                            {"volume[X,Y,Z]", "level", "counts[2]"}, {.paper = "2503.16302"}),
    core::op<"marching_cubes", &marching_cubes>(
        "The level set of a volume, NaN where unknown, as an indexed mesh in world units.",
        {"volume[X,Y,Z]", "level", "origin[3]", "spacing[3]", "inward", "vertices[V,3]", "faces[F,3]"}, {.paper = "2503.16302"}),
    core::op<"sparse_marching_cubes_count", &sparse_marching_cubes_count>("How many vertices and triangles `sparse_marching_cubes` gives.",
                                                                          {"index[N]", "values[N]", "shape[3]", "level", "counts[2]"},
                                                                          {.paper = "2503.16302", .ns_per_element = 20}),
    core::op<"sparse_marching_cubes", &sparse_marching_cubes>(
        "The level set of a volume of which the nodes `index` are known, as an indexed mesh in world units.",
        {"index[N]", "values[N]", "shape[3]", "level", "origin[3]", "spacing[3]", "inward", "vertices[V,3]", "faces[F,3]"},
        {.paper = "2503.16302", .ns_per_element = 20}));
}
