"""Molecules with bonds to batches of UAE-3D, on the device where they are trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bonds import edm_bonds
from ..structures import Structures
from .vae import SELF_LOOP, Molecules


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Molecules side by side on a device: kinds (M, N) int64 atom classes, positions (M, N, 3) float32 in angstroms
    about each molecule's mean, bonds (M, N, N) uint8 with SELF_LOOP on the diagonal, counts (M,) int64."""

    kinds: Tensor
    positions: Tensor
    bonds: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(
        cls, structures: Structures, elements: tuple[int, ...], most_atoms: int, device: str = "cpu", bonds: Any = None
    ) -> Dataset:
        """The molecules of a batch.

        bonds: (pairs (M, 2) rows of atoms, orders (M,) classes 1..4, from `bonds.edm_bonds` by default). Raises
        ValueError for an element that is not among `elements` and a molecule of more than `most_atoms` atoms.
        """
        offsets = np.asarray(structures.offsets)
        counts = np.diff(offsets)
        if counts.max(initial=0) > most_atoms or counts.min(initial=1) < 1:
            raise ValueError(
                f"argument 'structures' must have 1 to {most_atoms} atoms each, got {counts.max(initial=0)}"
            )
        table = np.full(128, -1)
        table[list(elements)] = np.arange(len(elements))
        found = table[np.asarray(structures.numbers)]
        if (found < 0).any():
            raise ValueError(
                f"argument 'structures' must be of the elements {elements}, got "
                f"{np.asarray(structures.numbers)[found < 0][0]}"
            )
        molecule = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(offsets[-1]) - offsets[:-1][molecule]
        at = np.asarray(structures.positions, np.float64)
        means = (
            np.stack([np.bincount(molecule, at[:, k], len(counts)) for k in range(3)], 1)
            / np.maximum(counts, 1)[:, None]
        )
        kinds = np.zeros((len(counts), most_atoms), np.int64)
        positions = np.zeros((len(counts), most_atoms, 3), np.float32)
        square = np.zeros((len(counts), most_atoms, most_atoms), np.uint8)
        kinds[molecule, place], positions[molecule, place] = found, at - means[molecule]
        square[molecule, place, place] = SELF_LOOP
        pairs, orders = (np.asarray(x) for x in (bonds if bonds is not None else edm_bonds(structures)[:2]))
        i, j = pairs[:, 0], pairs[:, 1]
        square[molecule[i], place[i], place[j]] = square[molecule[i], place[j], place[i]] = orders
        return cls(*(torch.from_numpy(x).to(device) for x in (kinds, positions, square, counts)))

    def batch(self, rows: Tensor, scale: float, turn: bool, shift: float = 0.1) -> Molecules:
        """The molecules of rows (B,), divided by `scale`; with `turn` each in a random orientation and shifted by a
        normal vector of `shift` (SE(3) augmentation), from torch's generator of the device."""
        counts = self.counts[rows]
        at = self.positions[rows] / scale
        if turn:
            at = at @ rotations(len(rows), at.device) + shift * torch.randn(len(rows), 1, 3, device=at.device)
        return ragged(self.kinds[rows], at, self.bonds[rows], counts)


def ragged(kinds: Tensor, positions: Tensor, bonds: Tensor, counts: Tensor) -> Molecules:
    """Molecules side by side (B, N, ...) as one list of atoms."""
    place = torch.arange(kinds.shape[1], device=kinds.device)
    real = place < counts[:, None]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = torch.where(real, offsets[:-1, None] + place, 0)
    both = real[:, :, None] & real[:, None]
    return Molecules(kinds[real], positions[real].contiguous(), bonds[both], offsets, rows, real)


def rotations(count: int, device: torch.device | str) -> Tensor:
    """Uniformly random rotation matrices (count, 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, device=device), dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(count, 3, 3)


def orders_of(
    size: int, batch: int, seed: int, device: str, state: dict[str, Any] | None
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Rows of endless batches, each epoch in an order of its own, with the state behind each."""
    epoch, cursor = (state["epoch"], state["cursor"]) if state else (0, 0)
    batch = min(batch, size)
    while True:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size)).to(device)
        while cursor + batch <= size:
            cursor += batch
            yield order[cursor - batch : cursor], {"epoch": epoch, "cursor": cursor}
        epoch, cursor = epoch + 1, 0
