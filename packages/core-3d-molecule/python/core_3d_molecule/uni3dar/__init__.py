"""Uni-3DAR (arXiv 2503.16278): training on and sampling of octree tokens of molecules and crystals; needs torch."""

from __future__ import annotations

from .batches import Stream, Telling, collate
from .crystals import CrystalSampler, CrystalSamples, crystal_config
from .model import Batch, Config, PropertyHead, Uni3DAR, Weights, loss
from .sampler import Sampler, Samples, Settings
from .train import make_trainer
from .understand import Understanding, make_property_trainer

__all__ = [
    "Batch",
    "Config",
    "CrystalSampler",
    "CrystalSamples",
    "PropertyHead",
    "Sampler",
    "Samples",
    "Settings",
    "Stream",
    "Telling",
    "Understanding",
    "Uni3DAR",
    "Weights",
    "collate",
    "crystal_config",
    "loss",
    "make_property_trainer",
    "make_trainer",
]
