"""Molecules whose bonds and charges are given, as a file or a model that draws them has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .structures import Structures, selected


@dataclasses.dataclass(frozen=True)
class Bonded:
    """A batch of molecules (numpy) with its bonds and formal charges.

    bonds: rows of the batch (M, 2) int64, orders (M,) int32 of 1..3, 4 for aromatic, and offsets (B + 1,) int64, as
    edm_bonds gives them; charges (A,) int32.
    """

    structures: Structures
    bonds: tuple[Any, Any, Any]
    charges: Any

    def __len__(self) -> int:
        return len(self.structures)

    def select(self, rows: Any) -> Bonded:
        """The molecules of these rows (K,), in their order."""
        structures = self.structures.select(rows)
        atoms, _ = selected(self.structures.offsets, rows)
        which, offsets = selected(self.bonds[2], rows)
        moved = structures.offsets[:-1] - self.structures.offsets[:-1][np.asarray(rows)]
        pairs = self.bonds[0][which] + np.repeat(moved, np.diff(offsets))[:, None]
        return Bonded(structures, (pairs, self.bonds[1][which], offsets), self.charges[atoms])
