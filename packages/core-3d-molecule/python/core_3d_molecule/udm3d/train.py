"""Training of UAE-3D and of UDM-3D on its latent vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..training import Optimisation, Trainer
from . import dit
from .batches import Dataset, orders_of
from .model import UDM3D
from .vae import UAE3D, Config, Weights, weighted


def make_autoencoder_trainer(
    data: Dataset, config: Config, optimisation: Optimisation, *, batch: int = 512, weights: Weights | None = None
) -> Trainer:
    """A trainer of a new `UAE3D` on the device of `data`, in float32; SE(3) augmentation at every visit.

    The weights at the beginning follow from `optimisation.seed`. It yields the terms of the loss too, unweighted.
    """
    torch.manual_seed(optimisation.seed)
    device, weights = str(data.counts.device), weights or Weights()
    model = UAE3D(config).to(device)

    def loss(rows: Tensor) -> dict[str, Tensor]:
        terms = model(data.batch(rows, config.scale, True))
        return {"loss": weighted(terms, weights)} | {k: v.detach() for k, v in terms.items()}

    about = {"model": "uae3d", "config": dataclasses.asdict(config), "weights": dataclasses.asdict(weights)}
    about["data"] = {"structures": len(data), "batch": batch}
    return Trainer(
        model,
        loss,
        lambda state: orders_of(len(data), batch, optimisation.seed, device, state),
        optimisation,
        about=about,
    )


def make_diffusion_trainer(
    data: Dataset,
    autoencoder: UAE3D,
    config: dit.Config,
    optimisation: Optimisation,
    *,
    context: Tensor | None = None,
    batch: int = 512,
    drop: float = 0.1,
    compiled: bool = False,
) -> Trainer:
    """A trainer of a new `UDM3D` on the device of `data`; context (molecules, properties) makes it conditional.

    The transformer runs in bfloat16 on CUDA, and through torch.compile if `compiled`.
    """
    if (context is not None and tuple(context.shape) != (len(data), config.context)) or (
        context is None and config.context
    ):
        raise ValueError(f"argument 'context' must be of shape {(len(data), config.context)}")
    torch.manual_seed(optimisation.seed)
    device = data.counts.device
    model = UDM3D(autoencoder, config).to(device)
    model.fit(data, context)
    if compiled:
        model.dit.compile()

    def loss(rows: Tensor) -> dict[str, Tensor]:
        told = None if context is None else context[rows]
        found: dict[str, Tensor] = model.loss(data.batch(rows, autoencoder.config.scale, True), told, drop)
        return found

    about: dict[str, Any] = {
        "model": "udm3d", "config": dataclasses.asdict(config), "autoencoder": dataclasses.asdict(autoencoder.config),
        "data": {"structures": len(data), "batch": batch}, "drop": drop,
    }  # fmt: skip
    return Trainer(
        model,
        loss,
        lambda state: orders_of(len(data), batch, optimisation.seed, str(device), state),
        optimisation,
        amp=torch.bfloat16 if device.type == "cuda" else None,
        about=about,
    )
