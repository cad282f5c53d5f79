"""3D Gaussian splatting on the CPU and on CUDA."""

from __future__ import annotations

from .contributions import contributions
from .dynamic import KeyFrameFilter, keep_best, rasterization_4d, slice_4d, variation_scores
from .harmonics import colors_by_view, spherical_harmonics
from .memory import gaussian_memory_attention, principal_scene_components
from .rasterize import rasterization
from .ssim import ssim

__all__ = [
    "KeyFrameFilter",
    "colors_by_view",
    "contributions",
    "gaussian_memory_attention",
    "keep_best",
    "principal_scene_components",
    "rasterization",
    "rasterization_4d",
    "slice_4d",
    "spherical_harmonics",
    "ssim",
    "variation_scores",
]
