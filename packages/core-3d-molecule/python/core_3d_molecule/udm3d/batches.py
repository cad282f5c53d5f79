"""Molecules with bonds to batches of UAE-3D, on the device where they are trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bonds import edm_bonds
from ..structures import Structures
from .vae import SELF_LOOP, Molecules

_SLACK = 512
"""Atoms that fillers have at least."""


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

    def batch(
        self, rows: Tensor, scale: float, turn: bool, shift: float = 0.1, sizes: Tensor | None = None,
        room: Room | None = None,
    ) -> Molecules:  # fmt: skip
        """The molecules of rows (B,), divided by `scale`; with `turn` each in a random orientation and shifted by a
        normal vector of `shift` (SE(3) augmentation), from torch's generator of the device.

        sizes (B,) and room: see `Room.fill`; then no size of a tensor depends on the molecules.
        """
        at = self.positions[rows] / scale
        if turn:
            at = at @ rotations(len(rows), at.device) + shift * torch.randn(len(rows), 1, 3, device=at.device)
        return ragged(self.kinds[rows], at, self.bonds[rows], self.counts[rows] if sizes is None else sizes, room)


@dataclasses.dataclass(frozen=True)
class Room:
    """The fixed size of a batch's tensors: `molecules`, and behind them `others` that fill `atoms` and `pairs` up, of
    at most `largest` atoms."""

    molecules: int
    others: int
    atoms: int
    pairs: int
    largest: int

    @classmethod
    def of(cls, counts: np.ndarray, molecules: int) -> Room:
        """Room for so many molecules drawn from those of counts (M,) atoms, five standard deviations above the mean."""
        counts = np.asarray(counts, np.float64)
        squares, root = counts**2, math.sqrt(molecules)
        atoms = math.ceil(molecules * counts.mean() + 5 * root * counts.std()) + _SLACK
        pairs = math.ceil(molecules * squares.mean() + 5 * root * squares.std())
        pairs += round(_SLACK * squares.mean() / counts.mean() / 2)
        return cls(molecules, _SLACK // 2, atoms, pairs + (pairs - atoms) % 2, int(counts.max()))

    def fill(self, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (molecules + others,) and their numbers of atoms: those of rows and counts (molecules,), and fillers so
        that atoms and pairs add up to the room's. If they do not fit, the smallest molecule takes the last ones' place.
        """
        out, sizes = (np.concatenate([x, np.zeros(self.others, np.int64)]) for x in (rows, counts))
        least = int(np.argmin(counts))
        for last in range(self.molecules, 0, -1):
            out[last : self.molecules], sizes[last : self.molecules] = rows[least], counts[least]
            fillers = self._fillers(self.atoms - int(sizes.sum()), self.pairs - int((sizes**2).sum()))
            if fillers is not None:
                sizes[self.molecules : self.molecules + len(fillers)] = fillers
                return out, sizes
        raise ValueError(f"molecules of {counts.min()} to {counts.max()} atoms cannot fill {self}")

    def _fillers(self, atoms: int, pairs: int) -> list[int] | None:
        """Sizes n that add up to `atoms`, n^2 to `pairs`."""
        found: list[int] = []
        while atoms > 0 and pairs >= atoms:
            # one of the mean size while many are left, then the largest triangular numbers (Gauss: every number is a
            # sum of three), then single atoms
            triangle = (1 + math.isqrt(1 + 4 * (pairs - atoms))) // 2
            size = min(triangle, self.largest, pairs // atoms if atoms > 4 * self.largest else self.largest)
            found.append(size)
            atoms, pairs = atoms - size, pairs - size * size
        return found if atoms == pairs == 0 and len(found) <= self.others else None


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the atoms of molecules (B,) lie in one list, behind them with a room those of its fillers: offsets (B + 1
    or more,); which molecule and place of it each atom (A,) is; the atom at each place, rows (B, N), if real (B, N)."""

    offsets: Tensor
    molecule: Tensor
    place: Tensor
    rows: Tensor
    real: Tensor

    @classmethod
    def of(cls, counts: Tensor, most: int, room: Room | None = None) -> Places:
        """Of molecules of counts (B,) atoms, fillers included, at most `most`."""
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        every = torch.arange(room.atoms if room else int(offsets[-1]), device=counts.device)
        molecule = torch.searchsorted(offsets[1:], every, right=True)
        mine = len(counts) if room is None else room.molecules
        places = torch.arange(most, device=counts.device)
        real = places < counts[:mine, None]
        rows = torch.where(real, offsets[:mine, None] + places, 0)
        return cls(offsets, molecule, every - offsets[molecule], rows, real)


def ragged(kinds: Tensor, positions: Tensor, bonds: Tensor, counts: Tensor, room: Room | None = None) -> Molecules:
    """Molecules side by side (B, N, ...) as one list of atoms; with a room the last of them are only its fillers."""
    at = Places.of(counts, kinds.shape[1], room)
    pairs = torch.cat([counts.new_zeros(1), counts.square().cumsum(0)])
    every = torch.arange(room.pairs if room else int(pairs[-1]), device=counts.device)
    owner = torch.searchsorted(pairs[1:], every, right=True)
    within, side = every - pairs[owner], counts[owner]
    return Molecules(
        kinds[at.molecule, at.place],
        positions[at.molecule, at.place],
        bonds[owner, within // side, within % side],
        at.offsets,
        at.rows,
        at.real,
    )


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
    data: Dataset, batch: int, seed: int, state: dict[str, Any] | None, room: Room | None = None
) -> Iterator[tuple[tuple[Tensor, Tensor], dict[str, Any]]]:
    """Rows and sizes, for `Dataset.batch`, of endless batches, each epoch in an order of its own, with the state
    behind each."""
    size, device = len(data), data.counts.device
    epoch, cursor = (state["epoch"], state["cursor"]) if state else (0, 0)
    batch, counts = min(batch, size), data.counts.cpu().numpy()
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        while cursor + batch <= size:
            cursor += batch
            rows = order[cursor - batch : cursor]
            filled = room.fill(rows, counts[rows]) if room else (rows, counts[rows])
            given, sizes = torch.from_numpy(np.stack(filled)).to(device).unbind(0)
            yield (given, sizes), {"epoch": epoch, "cursor": cursor}
        epoch, cursor = epoch + 1, 0
