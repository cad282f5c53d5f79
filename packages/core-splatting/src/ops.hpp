// The operators of core-splatting.
#pragma once
#include <core/op.hpp>

#include <core_splatting/rasterize.hpp>
#include <core_splatting/train.hpp>

namespace core_splatting {
inline constexpr auto ops = core::op_set(
    core::op<"rasterize", &rasterize CORE_IF_CUDA(&rasterize_cuda)>(
        "Renders 3D Gaussians into pinhole cameras: projection, exact tile culling, one sort by depth, blending front to back.",
        {"means[N,3]", "quats[N,4]", "scales[N,3]", "opacities[N]", "colors[*,N,D]", "viewmats[C,4,4]", "Ks[C,3,3]", "backgrounds[C,D]",
         "near_plane", "far_plane", "radius_clip", "eps2d", "max_alpha", "out_colors[C,H,W,D]", "out_alphas[C,H,W]"},
        {.paper = "2308.04079", .ns_per_element = 20}),
    core::op<"rasterize_backward", &rasterize_backward CORE_IF_CUDA(&rasterize_backward_cuda)>(
        "The gradient of rasterize by Gaussians, colours, cameras and projected centres.",
        {"means[N,3]",     "quats[N,4]",     "scales[N,3]",      "opacities[N]",      "colors[*,N,D]",   "viewmats[C,4,4]",
         "Ks[C,3,3]",      "near_plane",     "far_plane",        "radius_clip",       "eps2d",           "max_alpha",
         "image[C,H,W,D]", "alphas[C,H,W]",  "v_image[C,H,W,D]", "v_alphas[C,H,W]",   "v_means[N,3]",    "v_quats[N,4]",
         "v_scales[N,3]",  "v_opacities[N]", "v_colors[*,N,D]",  "v_viewmats[C,4,4]", "v_means2d[C,N,4]"},
        {.paper = "2308.04079", .ns_per_element = 20}),
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
