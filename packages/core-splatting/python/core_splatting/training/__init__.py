"""Training of Gaussians; needs torch, and the extra `train`."""

from __future__ import annotations

from .config import Config
from .trainer import Picture, Trainer, psnr

__all__ = ["Config", "Picture", "Trainer", "psnr"]
