# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""UDM-3D whole: a frozen autoencoder, the diffusion transformer on its latent vectors, and what sampling needs."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..bonded import Bonded
from ..structures import Structures, offsets_of
from . import dit
from .batches import Dataset
from .vae import SELF_LOOP, UAE3D, Molecules


class UDM3D(nn.Module):
    """Generates molecules (arXiv 2503.15567).

    Args:
        autoencoder: trained; its weights are not trained further.
        config: of the transformer; its `latent` must be the autoencoder's.
    """

    def __init__(self, autoencoder: UAE3D, config: dit.Config) -> None:
        super().__init__()
        if config.latent != autoencoder.config.latent:
            raise ValueError(
                f"UDM3D: argument 'config' must have latent = {autoencoder.config.latent}, got {config.latent}"
            )
        self.autoencoder = autoencoder.requires_grad_(False)
        self.dit = dit.DiT(config)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("sizes", torch.zeros(autoencoder.config.most_atoms + 1))
        self.register_buffer("context_mean", torch.zeros(config.context))
        self.register_buffer("context_deviation", torch.ones(config.context))

    def train(self, mode: bool = True) -> Self:
        """The transformer's mode; the autoencoder never drops anything."""
        super().train(mode)
        self.autoencoder.train(False)
        return self

    @torch.no_grad()
    def fit(self, data: Dataset, context: Tensor | None = None, batch: int = 512, turn: bool = True) -> None:
        """Takes from training data, turned at random or not, what whitens latent vectors and context, and how many
        atoms molecules have."""
        scale = self.autoencoder.config.scale
        count, total, squares = 0, 0.0, 0.0
        for rows in torch.arange(len(data), device=data.counts.device).split(batch):
            mean = self.autoencoder.encode(data.batch(rows, scale, turn))[0].double()
            count, total, squares = (
                count + mean.numel(), total + float(mean.sum()), squares + float(mean.square().sum())
            )  # fmt: skip
        self.mean.fill_(total / count)
        self.deviation.fill_(max(squares / count - (total / count) ** 2, 1e-12) ** 0.5)
        self.sizes.copy_(torch.bincount(data.counts, minlength=len(self.sizes)))
        if context is not None:
            self.context_mean.copy_(context.mean(0))
            self.context_deviation.copy_(context.std(0).clamp(min=1e-6))

    @torch.no_grad()
    def packed_latents(self, m: Molecules) -> Tensor:
        """Whitened latent vectors (A, latent)."""
        mean, _ = self.autoencoder.encode(m)
        return (mean - self.mean) / self.deviation

    def latents(self, m: Molecules) -> Tensor:
        """The same side by side (B, N, latent), zero where there is no atom."""
        return self.packed_latents(m)[m.rows] * m.real[..., None]

    def loss(
        self, m: Molecules, context: Tensor | None = None, drop: float = 0.1, early: float = 1.0
    ) -> dict[str, Tensor]:
        """See `dit.noise_loss`; context (B, properties) in the properties' own units."""
        with torch.autocast(m.positions.device.type, enabled=False):
            z = self.packed_latents(m)
        return self.loss_of(z, m.molecule(), m.offsets, m.rows, m.real, context, drop, early)

    def loss_of(
        self, z: Tensor, molecule: Tensor, offsets: Tensor, rows: Tensor, real: Tensor,
        context: Tensor | None = None, drop: float = 0.1, early: float = 1.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The same of whitened latent vectors z (A, latent), which lie as in `Molecules`."""
        packing = dit.Packing(molecule, rows, offsets.int()) if z.is_cuda else None
        x = z if packing else z[rows] * real[..., None]
        return dit.noise_loss(self.dit, x, real, self.whitened(context), drop=drop, early=early, packing=packing)

    def whitened(self, context: Tensor | None) -> Tensor | None:
        """Context about the training set's mean, in its standard deviations."""
        return None if context is None else (context - self.context_mean) / self.context_deviation

    @torch.no_grad()
    def sample(
        self, count: int, *, seed: int = 0, context: Tensor | None = None, batch: int = 512, **settings: Any
    ) -> Bonded:
        """`count` molecules with the decoder's bonds, without charges; sizes are drawn from the training set's.

        context (count, properties) in the properties' own units; settings: `steps`, `w`, `eta`, `temperature` of
        `dit.sample`. Deterministic for a seed, a batch size and a device.
        """
        if count < 0:
            raise ValueError(f"sample: argument 'count' must be 0 or more, got {count}")
        device, batch = self.mean.device, max(min(batch, count), 1)
        whole = -(-count // batch) * batch  # the last batch is as large as the others: one shape, compiled once
        generator = torch.Generator(device).manual_seed(seed)
        sizes = torch.multinomial(self.sizes, max(whole, 1), replacement=True, generator=generator)[:whole]
        if context is not None:
            context = torch.cat([context, context[-1:].expand(whole - count, -1)])
        kinds, positions, orders = [], [], []
        for here in (slice(begin, begin + batch) for begin in range(0, whole, batch)):
            real = torch.arange(len(self.sizes) - 1, device=device) < sizes[here, None]
            told = self.whitened(context[here]) if context is not None else None
            z = dit.sample(self.dit, real, told, generator=generator, **settings)
            with torch.autocast(device.type, enabled=False):  # half precision would show in the coordinates
                atoms, at, bonds = self.autoencoder.decode(z * self.deviation + self.mean, real)
            kinds.append(atoms.argmax(-1).cpu())
            positions.append((at * self.autoencoder.config.scale).cpu())
            orders.append(bonds[..., :SELF_LOOP].argmax(-1).to(torch.uint8).cpu())
        found = self._generated(sizes.cpu().numpy(), kinds, positions, orders)
        return found if whole == count else found.select(np.arange(count))

    def _generated(
        self, sizes: np.ndarray, kinds: list[Tensor], positions: list[Tensor], orders: list[Tensor]
    ) -> Bonded:
        offsets = offsets_of(sizes)
        if not len(sizes):
            empty = Structures(np.empty(0, np.int32), np.empty((0, 3)), offsets)
            none = np.empty((0, 2), np.int64), np.empty(0, np.int32), np.zeros(1, np.int64)
            return Bonded(empty, none, np.empty(0, np.int32))
        real = np.arange(len(self.sizes) - 1) < sizes[:, None]
        elements = np.array(self.autoencoder.config.elements, np.int32)
        numbers = elements[torch.cat(kinds).numpy()[real]]
        square = torch.cat(orders).numpy() * (real[:, :, None] & real[:, None])
        molecule, i, j = np.nonzero(np.triu(square, 1))
        structures = Structures(numbers, torch.cat(positions).numpy()[real].astype(np.float64), offsets)
        pairs = offsets[molecule][:, None] + np.stack([i, j], 1)
        bond_offsets = offsets_of(np.bincount(molecule, minlength=len(sizes)))
        bonds = pairs, square[molecule, i, j].astype(np.int32), bond_offsets
        return Bonded(structures, bonds, np.zeros(len(numbers), np.int32))
