"""Trained models from the checkpoints of `training.Trainer`; needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .training import read_tensors
from .udm3d import UAE3D, UDM3D, dit, vae
from .uni3dar import Config, Understanding, Uni3DAR


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> nn.Module:
    """The `Uni3DAR`, `Understanding`, `UAE3D` or `UDM3D` of a checkpoint, with its averaged weights, for evaluation.

    Raises ValueError for a file that is no checkpoint of one of them.
    """
    tensors, about = read_tensors(path)
    make = _maker(about.get("about"), path)
    with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
        blank = make()
    state = {}
    for name, wanted in blank.state_dict().items():
        value = tensors.get(f"average.{name}", tensors.get(f"model.{name}"))
        if value is None or value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(f"{path}: expected '{name}' to be {wanted.dtype} of shape {tuple(wanted.shape)}")
        state[name] = value
    model = make()
    model.load_state_dict(state)
    return model.to(device).eval()


def _maker(about: Any, path: str | os.PathLike[str]) -> Callable[[], nn.Module]:
    kind = about.get("model") if isinstance(about, dict) else None
    try:
        if kind == "uni3dar":
            shape = Config(**about["config"])
            return lambda: Uni3DAR(shape)
        if kind == "uni3dar-property":
            shape, properties, level = Config(**about["config"]), int(about["properties"]), int(about["level"])
            if not 1 <= properties <= 1_000_000:
                raise ValueError(f"{path}: expected 1 to 1,000,000 properties, got {properties}")
            return lambda: Understanding(Uni3DAR(shape), properties, level)
        if kind in ("uae3d", "udm3d"):
            given = about["config" if kind == "uae3d" else "autoencoder"]
            coder = vae.Config(**given | {"elements": tuple(given["elements"])})
            if kind == "uae3d":
                return lambda: UAE3D(coder)
            transformer = dit.Config(**about["config"])
            return lambda: UDM3D(UAE3D(coder), transformer)
    except (TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"{path}: expected the configuration of a model: {e}") from None
    raise ValueError(f"{path}: expected a checkpoint of uni3dar, uae3d or udm3d, got {kind!r}")
