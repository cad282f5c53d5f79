"""3D Gaussian splatting on the CPU and on CUDA."""

from __future__ import annotations

from .contributions import contributions
from .harmonics import colors_by_view, spherical_harmonics
from .rasterize import rasterization
from .ssim import ssim

__all__ = ["colors_by_view", "contributions", "rasterization", "spherical_harmonics", "ssim"]
