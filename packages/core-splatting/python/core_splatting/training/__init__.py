"""Training of Gaussians; needs torch, and the extra `train`."""

from __future__ import annotations

from .config import Config
from .model import Model3D, Model4D, Picture
from .trainer import Trainer, psnr

__all__ = ["Config", "Model3D", "Model4D", "Picture", "Trainer", "psnr"]
