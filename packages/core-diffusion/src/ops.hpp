// The operators of core-diffusion.
#pragma once
#include <core/op.hpp>

#include <core_diffusion/codebook.hpp>
#include <core_diffusion/marching_cubes.hpp>
#include <core_diffusion/moe.hpp>
#include <core_diffusion/refinement.hpp>
#include <core_diffusion/set_diffusion.hpp>

namespace core_diffusion {
inline constexpr auto ops = core::op_set(
    core::op<"fixed_sum_sample", &fixed_sum_sample, &fixed_sum_sample_f64 CORE_IF_CUDA(&fixed_sum_sample_cuda, &fixed_sum_sample_cuda_f64)>(
        "Count vectors drawn from independent categorical laws `probs`, conditioned exactly on the sums `totals`.",
        {"probs[B,K,C]", "totals[B]", "top_p", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 2}),
    core::op<"fixed_sum_bridge", &fixed_sum_bridge, &fixed_sum_bridge_i64 CORE_IF_CUDA(&fixed_sum_bridge_cuda)>(
        "A state at the rows' times `t` of the fixed-sum path from `x0` to `x1`, conditioned exactly on the common row sums.",
        {"x0[B,K]", "x1[B,K]", "t[B]", "sigma", "max_count", "seed", "out[B,K]"}, {.paper = "2503.16425", .ns_per_element = 8}),
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
        {.paper = "2503.16302", .ns_per_element = 20}),
    core::op<"grid_points", &grid_points CORE_IF_CUDA(&grid_points_cuda)>(
        "Where consecutive nodes of a grid lie.", {"first", "size", "low[3]", "spacing[3]", "points[N,3]"}, {.paper = "2503.16302"}),
    core::op<"refine_start", &refine_start CORE_IF_CUDA(&refine_start_cuda)>(
        "Begins a level of a hierarchical decoder: marks the cells that the surface crosses or approaches, and their nodes.",
        {"coarse[B,N,N,N]", "level", "near", "dilation", "size", "values[B,V]", "nodes[B,P]", "cells[B,Q]", "tiles[B,T,4]",
         "counts[B+1,2]"},
        {.paper = "2503.16302"}),
    core::op<"refine_ask", &refine_ask CORE_IF_CUDA(&refine_ask_cuda)>(
        "Lists the nodes of a level that are to be asked, and where they lie.",
        {"size", "low[3]", "spacing[3]", "nodes[B,P]", "tiles[B,T,4]", "index[B,M]", "points[B,M,3]"}, {.paper = "2503.16302"}),
    core::op<"refine_follow", &refine_follow CORE_IF_CUDA(&refine_follow_cuda)>(
        "Takes the answers at a level's nodes and marks the cells into which the surface runs on, and their nodes.",
        {"size", "index[B,M]", "found[B,M]", "level", "round", "values[B,V]", "nodes[B,P]", "cells[B,Q]", "tiles[B,T,4]", "counts[B+1,2]"},
        {.paper = "2503.16302"}),
    core::op<"refine_known", &refine_known CORE_IF_CUDA(&refine_known_cuda)>(
        "Lists the known nodes of a level and their values.", {"size", "values[B,V]", "nodes[B,P]", "tiles[B,T,4]", "index[K]", "found[K]"},
        {.paper = "2503.16302"}),
    core::op<"nearest_codes", &nearest_codes>("The nearest code of each vector, and its squared distance.",
                                              {"x[N,D]", "codes[K,D]", "index[N]", "distance[N]"},
                                              {.paper = "2503.16194", .ns_per_element = 20}),
    core::op<"kmeans_init", &kmeans_init>("First centers of k-means: rows of `x` drawn by greedy k-means++.",
                                          {"x[N,D]", "trials", "seed", "centers[K,D]"}, {.paper = "2503.16194", .ns_per_element = 20}),
    core::op<"kmeans", &kmeans>("Lloyd's k-means without empty clusters, the same for any number of threads.",
                                {"x[N,D]", "init[K,D]", "max_iter", "tol", "centers[K,D]", "labels[N]", "inertia[1]", "rounds[1]"},
                                {.paper = "2503.16194", .ns_per_element = 100}),
    core::op<"topk_mask", &topk_mask, &topk_mask_f64 CORE_IF_CUDA(&topk_mask_cuda)>(
        "Marks exactly the `k` largest scores of each row; ties: lower columns first.", {"scores[R,C]", "k", "mask[R,C]", "kth[R]"},
        {.paper = "2503.16057", .ns_per_element = 2}),
    core::op<"moe_route", &moe_route CORE_IF_CUDA(&moe_route_cuda)>("Lists the tokens of each expert from a selection mask.",
                                                                    {"mask[T,E]", "offsets[O]", "tokens[A]"}, {.paper = "2503.16057"}),
    core::op<"expert_ffn", &expert_ffn CORE_IF_CUDA(&expert_ffn_cuda<core::bfloat16>, &expert_ffn_cuda<core::float16>,
                                                    &expert_ffn_cuda<float>, &expert_ffn_cuda<double>)>(
        "The weighted sum of the feed-forward networks of each token's experts.",
        {"x[T,D]", "tokens[A]", "offsets[O]", "gates[T,E]", "up[E,H,D]", "up_bias[E,H]", "down[E,D,H]", "down_bias[E,D]", "activation",
         "hidden[P,H]", "out[T,D]"},
        {.paper = "2503.14487", .ns_per_element = 20}),
    core::op<"expert_ffn_backward",
             &expert_ffn_backward CORE_IF_CUDA(&expert_ffn_backward_cuda<core::bfloat16>, &expert_ffn_backward_cuda<core::float16>,
                                               &expert_ffn_backward_cuda<float>, &expert_ffn_backward_cuda<double>)>(
        "The derivatives of expert_ffn.",
        {"dout[T,D]", "x[T,D]", "tokens[A]", "offsets[O]", "gates[T,E]", "up[E,H,D]", "down[E,D,H]", "down_bias[E,D]", "hidden[P,H]",
         "activation", "dx[T,D]", "dgates[T,E]", "dup[E,H,D]", "dup_bias[E,H]", "ddown[E,D,H]", "ddown_bias[E,D]"},
        {.paper = "2503.14487", .ns_per_element = 20}));
}
