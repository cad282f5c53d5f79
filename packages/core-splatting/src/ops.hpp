// The operators of core-splatting.
#pragma once
#include <core/op.hpp>

#include <core_splatting/dynamic.hpp>
#include <core_splatting/harmonics.hpp>
#include <core_splatting/memory.hpp>
#include <core_splatting/rasterize.hpp>
#include <core_splatting/train.hpp>

namespace core_splatting {
inline constexpr auto ops = core::op_set(
    core::op<"rasterize", &rasterize CORE_IF_CUDA(&rasterize_cuda, &rasterize_half_cuda)>(
        "Renders 3D Gaussians into cameras: projection, exact tile culling, one sort by depth, blending front to back.",
        {"means[N,3]",  "quats[N,4]",       "scales[N,3]", "covars[N,6]",         "opacities[N]",      "colors[*,*,D]", "viewmats[C,4,4]",
         "Ks[C,3,3]",   "backgrounds[C,D]", "near_plane",  "far_plane",           "radius_clip",       "eps2d",         "max_alpha",
         "antialiased", "camera_model",     "scenes",      "out_colors[C,H,W,D]", "out_alphas[C,H,W]", "workspace[S]"},
        {.paper = "2308.04079", .ns_per_element = 20}),
    core::op<"rasterize_backward", &rasterize_backward CORE_IF_CUDA(&rasterize_backward_cuda)>(
        "The gradient of rasterize by Gaussians, colours, cameras and projected centres.",
        {"means[N,3]",       "quats[N,4]",      "scales[N,3]",    "covars[N,6]",     "opacities[N]",      "colors[*,*,D]",
         "viewmats[C,4,4]",  "Ks[C,3,3]",       "near_plane",     "far_plane",       "radius_clip",       "eps2d",
         "max_alpha",        "antialiased",     "camera_model",   "scenes",          "image[C,H,W,D]",    "alphas[C,H,W]",
         "v_image[C,H,W,D]", "v_alphas[C,H,W]", "workspace[S]",   "deterministic",   "v_means[N,3]",      "v_quats[N,4]",
         "v_scales[N,3]",    "v_covars[N,6]",   "v_opacities[N]", "v_colors[*,*,D]", "v_viewmats[C,4,4]", "v_means2d[C,*,*]"},
        {.paper = "2308.04079", .ns_per_element = 20}),
    core::op<"rasterize_workspace", &rasterize_workspace>("The size that the workspace of rasterize should have.",
                                                          {"cameras", "gaussians", "width", "height", "device", "out[1]"}),
    core::op<"contributions", &contributions CORE_IF_CUDA(&contributions_cuda)>(
        "How much each Gaussian contributes to the pixels of each camera: the sum of its blending weights.",
        {"means[N,3]", "quats[N,4]", "scales[N,3]", "covars[N,6]", "opacities[N]", "viewmats[C,4,4]", "Ks[C,3,3]", "pixels[C,H,W]",
         "near_plane", "far_plane", "radius_clip", "eps2d", "max_alpha", "antialiased", "camera_model", "scenes", "out[C,R]"},
        {.paper = "2503.16422", .ns_per_element = 20}),
    core::op<"project_gaussians", &project_gaussians CORE_IF_CUDA(&project_gaussians_cuda)>(
        "What rasterize makes of each Gaussian in each camera: centre, radii, depth, conic and opacity.",
        {"means[N,3]",   "quats[N,4]", "scales[N,3]",    "covars[N,6]",  "opacities[N]", "viewmats[C,4,4]", "Ks[C,3,3]",
         "width",        "height",     "near_plane",     "far_plane",    "radius_clip",  "eps2d",           "antialiased",
         "camera_model", "scenes",     "means2d[C,R,2]", "radii[C,R,2]", "depths[C,R]",  "conics[C,R,3]",   "weights[C,R]"},
        {.paper = "2308.04079", .ns_per_element = 5}),
    core::op<"spherical_harmonics", &spherical_harmonics CORE_IF_CUDA(&spherical_harmonics_cuda)>(
        "Colours by direction: real spherical harmonics to degree 3, times a cosine series in time.",
        {"degree", "time_degree", "dirs[N,3]", "coeffs[*,*,K,D]", "viewmats[C,4,4]", "phases[N]", "masks[C,R]", "as_color", "scenes",
         "out[C,R,D]"},
        {.paper = "2310.10642"}),
    core::op<"spherical_harmonics_backward", &spherical_harmonics_backward CORE_IF_CUDA(&spherical_harmonics_backward_cuda)>(
        "The gradient of spherical_harmonics by directions, coefficients, cameras and phases.",
        {"degree", "time_degree", "dirs[N,3]", "coeffs[*,*,K,D]", "viewmats[C,4,4]", "phases[N]", "masks[C,R]", "as_color", "scenes",
         "v_out[C,R,D]", "v_dirs[N,3]", "v_coeffs[*,*,K,D]", "v_viewmats[C,4,4]", "v_phases[N]"},
        {.paper = "2310.10642"}),
    core::op<"slice_4d", &slice_4d CORE_IF_CUDA(&slice_4d_cuda)>(
        "The 3D Gaussians that 4D Gaussians are at a time: conditional mean and covariance, opacity times temporal weight.",
        {"means[N,4]", "scales[N,4]", "quats_l[N,4]", "quats_r[N,4]", "opacities[N]", "indices[M]", "time", "min_weight", "prefilter_var",
         "out_means[M,3]", "out_covars[M,6]", "out_opacities[M]", "out_weights[M]"},
        {.paper = "2503.16422", .ns_per_element = 5}),
    core::op<"slice_4d_backward", &slice_4d_backward CORE_IF_CUDA(&slice_4d_backward_cuda)>(
        "The gradient of slice_4d by the 4D Gaussians.",
        {"means[N,4]", "scales[N,4]", "quats_l[N,4]", "quats_r[N,4]", "opacities[N]", "indices[M]", "time", "min_weight", "prefilter_var",
         "v_out_means[M,3]", "v_out_covars[M,6]", "v_out_opacities[M]", "v_means[N,4]", "v_scales[N,4]", "v_quats_l[N,4]", "v_quats_r[N,4]",
         "v_opacities[N]"},
        {.paper = "2503.16422", .ns_per_element = 5}),
    core::op<"rasterize_4d", &rasterize_4d CORE_IF_CUDA(&rasterize_4d_cuda)>(
        "Renders 4D Gaussians at a time into cameras: sliced where they are projected, coloured where they are seen.",
        {"means[N,4]",
         "scales[N,4]",
         "quats_l[N,4]",
         "quats_r[N,4]",
         "opacities[N]",
         "indices[M]",
         "time",
         "min_weight",
         "prefilter_var",
         "colors[*,*,D]",
         "coeffs[N,K,D]",
         "degree",
         "time_degree",
         "duration",
         "viewmats[C,4,4]",
         "Ks[C,3,3]",
         "backgrounds[C,D]",
         "near_plane",
         "far_plane",
         "radius_clip",
         "eps2d",
         "max_alpha",
         "antialiased",
         "camera_model",
         "out_colors[C,H,W,D]",
         "out_alphas[C,H,W]",
         "seen[C,R,D]",
         "workspace[S]"},
        {.paper = "2503.16422", .ns_per_element = 20}),
    core::op<"rasterize_4d_backward", &rasterize_4d_backward CORE_IF_CUDA(&rasterize_4d_backward_cuda)>(
        "The gradient of rasterize_4d by 4D Gaussians, colours or harmonics, cameras and projected centres.", {"means[N,4]",
                                                                                                               "scales[N,4]",
                                                                                                               "quats_l[N,4]",
                                                                                                               "quats_r[N,4]",
                                                                                                               "opacities[N]",
                                                                                                               "indices[M]",
                                                                                                               "time",
                                                                                                               "min_weight",
                                                                                                               "prefilter_var",
                                                                                                               "colors[*,*,D]",
                                                                                                               "coeffs[N,K,D]",
                                                                                                               "degree",
                                                                                                               "time_degree",
                                                                                                               "duration",
                                                                                                               "viewmats[C,4,4]",
                                                                                                               "Ks[C,3,3]",
                                                                                                               "near_plane",
                                                                                                               "far_plane",
                                                                                                               "radius_clip",
                                                                                                               "eps2d",
                                                                                                               "max_alpha",
                                                                                                               "antialiased",
                                                                                                               "camera_model",
                                                                                                               "image[C,H,W,D]",
                                                                                                               "alphas[C,H,W]",
                                                                                                               "v_image[C,H,W,D]",
                                                                                                               "v_alphas[C,H,W]",
                                                                                                               "workspace[S]",
                                                                                                               "deterministic",
                                                                                                               "v_means[N,4]",
                                                                                                               "v_scales[N,4]",
                                                                                                               "v_quats_l[N,4]",
                                                                                                               "v_quats_r[N,4]",
                                                                                                               "v_opacities[N]",
                                                                                                               "v_colors[*,*,D]",
                                                                                                               "v_coeffs[N,K,D]",
                                                                                                               "v_viewmats[C,4,4]",
                                                                                                               "v_means2d[C,*,*]"},
        {.paper = "2503.16422", .ns_per_element = 20}),
    core::op<"temporal_variation", &temporal_variation CORE_IF_CUDA(&temporal_variation_cuda)>(
        "How little each 4D Gaussian's temporal weight curves, summed over times: the temporal part of the variation score.",
        {"means[N,4]", "scales[N,4]", "quats_l[N,4]", "quats_r[N,4]", "times[T]", "out[N]"},
        {.paper = "2503.16422", .ns_per_element = 100}),
    core::op<"memory_attention", &memory_attention CORE_IF_CUDA(&memory_attention_cuda)>(
        "The values that queries call back: softmax of their products with keys, times values; the weights never exist at once.",
        {"queries[P,L]", "keys[T,L]", "values[T,D]", "out[P,D]", "log_sums[P]"}, {.paper = "2503.16413", .ns_per_element = 100}),
    core::op<"memory_attention_backward", &memory_attention_backward CORE_IF_CUDA(&memory_attention_backward_cuda)>(
        "The gradient of memory_attention by queries, keys and values.",
        {"queries[P,L]", "keys[T,L]", "values[T,D]", "out[P,D]", "log_sums[P]", "v_out[P,D]", "v_queries[P,L]", "v_keys[T,L]",
         "v_values[T,D]"},
        {.paper = "2503.16413", .ns_per_element = 100}),
    core::op<"principal_components", &principal_components CORE_IF_CUDA(&principal_components_cuda)>(
        "The rows that stand for all: visited in order, each that is near no taken row takes those near it.",
        {"features[N,D]", "threshold", "selected[N]"}, {.paper = "2503.16413", .ns_per_element = 100}),
    core::op<"ssim", &ssim CORE_IF_CUDA(&ssim_cuda)>(
        "The structural similarity of two images at each pixel, 11x11 Gaussian window, and its partial derivatives.",
        {"image[B,C,H,W]", "target[B,C,H,W]", "out[B,C,H,W]", "partials[3,B,C,H,W]"}, {.paper = "2308.04079", .ns_per_element = 10}),
    core::op<"ssim_backward", &ssim_backward CORE_IF_CUDA(&ssim_backward_cuda)>(
        "The gradient of ssim by the image.",
        {"image[B,C,H,W]", "target[B,C,H,W]", "partials[3,B,C,H,W]", "v_out[B,C,H,W]", "v_image[B,C,H,W]"},
        {.paper = "2308.04079", .ns_per_element = 10}),
    core::op<"selective_adam", &selective_adam CORE_IF_CUDA(&selective_adam_cuda)>(
        "One step of Adam on the rows that are visible, with a count of steps for each row.",
        {"param[N,K]", "grad[N,K]", "exp_avg[N,K]", "exp_avg_sq[N,K]", "steps[N]", "visible[N]", "lr", "beta1", "beta2", "eps"},
        {.paper = "2308.04079", .ns_per_element = 2}));
}
