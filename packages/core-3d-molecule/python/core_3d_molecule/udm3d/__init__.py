"""UAE-3D and UDM-3D (arXiv 2503.15567): a latent space for molecules with bonds, and diffusion in it; needs torch."""

from __future__ import annotations

from . import dit, vae
from .batches import Dataset
from .model import UDM3D
from .train import make_autoencoder_trainer, make_diffusion_trainer
from .vae import UAE3D, Molecules

__all__ = [
    "UAE3D",
    "UDM3D",
    "Dataset",
    "Molecules",
    "dit",
    "make_autoencoder_trainer",
    "make_diffusion_trainer",
    "vae",
]
