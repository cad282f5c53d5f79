"""Training of UAE-3D and of UDM-3D on its latent vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..training import Optimisation, Trainer
from . import dit
from .batches import Dataset, Places, Room, orders_of
from .model import UDM3D
from .vae import UAE3D, Config, Weights, weighted


def make_autoencoder_trainer(
    data: Dataset,
    config: Config,
    optimisation: Optimisation,
    *,
    batch: int = 512,
    weights: Weights | None = None,
    noise: float = 0.0,
    compiled: bool = False,
) -> Trainer:
    """A trainer of a new `UAE3D` on the device of `data`, in float32; SE(3) augmentation at every visit.

    With `noise` the decoder learns from latent vectors with errors (`UAE3D.forward`), as those that are drawn have.

    On CUDA batches are filled up to a fixed size and a step is a replayed graph; `compiled` runs the model through
    torch.compile. The weights at the beginning follow from `optimisation.seed`. It yields the terms of the loss too,
    unweighted.
    """
    torch.manual_seed(optimisation.seed)
    weights, room = weights or Weights(), _room(data, batch)
    model = UAE3D(config).to(data.counts.device)

    def loss(given: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        rows, sizes = given
        terms = model(data.batch(rows, config.scale, True, sizes=sizes, room=room), noise)
        return {"loss": weighted(terms, weights)} | {k: v.detach() for k, v in terms.items()}

    about = {"model": "uae3d", "config": dataclasses.asdict(config), "weights": dataclasses.asdict(weights)}
    about["data"] = {"structures": len(data), "batch": batch, "noise": noise}
    return Trainer(
        model,
        loss,
        lambda state: orders_of(data, batch, optimisation.seed, state, room),
        optimisation,
        compiled=compiled,
        graph=True,
        about=about,
    )


def _room(data: Dataset, batch: int) -> Room | None:
    """On CUDA, of a batch."""
    if data.counts.device.type != "cuda":
        return None
    return Room.of(data.counts.cpu().numpy(), min(batch, len(data)))


def make_diffusion_trainer(
    data: Dataset,
    autoencoder: UAE3D,
    config: dit.Config,
    optimisation: Optimisation,
    *,
    context: Tensor | None = None,
    batch: int = 512,
    drop: float = 0.1,
    turn: bool = True,
    early: float = 1.0,
    compiled: bool = False,
) -> Trainer:
    """A trainer of a new `UDM3D` on the device of `data`; context (molecules, properties) makes it conditional.

    Without `turn` molecules stay as they lie in `data`, and are drawn so; their latent vectors are encoded once.
    `early` is that of `dit.noise_loss`.
    The transformer runs in bfloat16 on CUDA, where a step is a replayed graph, and through torch.compile if `compiled`.
    """
    if (context is not None and tuple(context.shape) != (len(data), config.context)) or (
        context is None and config.context
    ):
        raise ValueError(f"argument 'context' must be of shape {(len(data), config.context)}")
    torch.manual_seed(optimisation.seed)
    device = data.counts.device
    model = UDM3D(autoencoder, config).to(device)
    model.fit(data, context, turn=turn)
    if compiled:
        model.dit.compile()

    room, scale, most = _room(data, batch), autoencoder.config.scale, data.kinds.shape[1]
    parts = [] if turn else torch.arange(len(data), device=device).split(512)
    encoded = [model.latents(data.batch(rows, scale, False)) for rows in parts]
    latents = torch.cat(encoded) if encoded else None

    def loss(given: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        rows, sizes = given
        told = None if context is None else context[rows[: room.molecules if room else len(rows)]]
        found: dict[str, Tensor]
        if latents is None:
            found = model.loss(data.batch(rows, scale, True, sizes=sizes, room=room), told, drop, early)
        else:
            at = Places.of(sizes, most, room)
            z = latents[rows[at.molecule], at.place]
            found = model.loss_of(z, at.molecule, at.offsets, at.rows, at.real, told, drop, early)
        return found

    about: dict[str, Any] = {
        "model": "udm3d", "config": dataclasses.asdict(config), "autoencoder": dataclasses.asdict(autoencoder.config),
        "data": {"structures": len(data), "batch": batch}, "drop": drop, "turn": turn, "early": early,
    }  # fmt: skip
    return Trainer(
        model,
        loss,
        lambda state: orders_of(data, batch, optimisation.seed, state, room),
        optimisation,
        amp=torch.bfloat16 if device.type == "cuda" else None,
        graph=True,
        about=about,
        matrices={f"dit.{name}": n for name, n in model.dit.matrices().items()},
    )
