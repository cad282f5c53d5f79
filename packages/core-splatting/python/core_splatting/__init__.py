"""3D Gaussian splatting on the CPU and on CUDA."""

from __future__ import annotations

from .contributions import contributions
from .rasterize import rasterization
from .ssim import ssim

__all__ = ["contributions", "rasterization", "ssim"]
