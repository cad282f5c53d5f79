"""Bonds from distances and the stability of molecules, as generative models are scored (EDM, arXiv 2203.17003)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_3d_molecule as _C
from .structures import Structures, arrays, offsets_of

EDM_VALENCES: Mapping[int, tuple[int, ...]] = {
    1: (1,), 5: (3,), 6: (4,), 7: (3,), 8: (2,), 9: (1,), 13: (3,), 14: (4,), 15: (3, 5), 16: (4,), 17: (1,),
    33: (3,), 35: (1,), 53: (1,), 80: (1, 2), 83: (3, 5),
}  # fmt: skip
"""By atomic number, the valences that EDM calls stable; an element that is not here is never stable."""

MARGINS = (10, 5, 3)
"""Picometres by which a single, double and triple bond may exceed its tabulated length."""


@dataclasses.dataclass(frozen=True)
class Stability:
    """valences (A,) int32: the sum of each atom's bond orders; of each molecule, (B,) int64: stable_atoms, those with
    an allowed valence, bond_counts and atom_counts."""

    valences: Any
    stable_atoms: Any
    bond_counts: Any
    atom_counts: Any

    @property
    def stable(self) -> Any:
        """(B,) bool: molecules that have atoms, all of them stable."""
        return (self.stable_atoms == self.atom_counts) & (self.atom_counts > 0)


def edm_stability(structures: Structures, allowed: Mapping[int, tuple[int, ...]] = EDM_VALENCES) -> Stability:
    """Valences and stability of a batch of molecules by EDM's table of bond lengths.

    A pair within a tabulated length + 10, 5 or 3 pm has a single, double or triple bond; a pair of elements outside
    the table has none. `allowed` gives the stable valences 0..62 by atomic number. numpy in gives numpy, torch (CPU)
    gives torch. Raises ValueError that names the atom: an atomic number outside 1..118, a position that is not finite.
    """
    sets = np.zeros(119, np.int64)
    for number, valences in allowed.items():
        if not (1 <= number <= 118 and all(0 <= v <= 62 for v in valences)):
            raise ValueError(f"argument 'allowed' must map 1..118 to valences 0..62, got {number}: {valences}")
        sets[number] = sum(1 << v for v in set(valences))
    numbers, positions, offsets = arrays(structures)
    batch = len(offsets) - 1
    stable, bonds = (empty((batch,), "int64", like=numbers) for _ in range(2))
    valence = empty((len(numbers),), "int32", like=numbers)
    allowed_sets = as_array(sets, "int64", "allowed", like=numbers)
    _C.edm_stability(numbers, positions, offsets, allowed_sets, valence, stable, bonds)
    return Stability(valence, stable, bonds, offsets[1:] - offsets[:-1])


def edm_bonds(structures: Structures) -> tuple[Any, Any, Any]:
    """The bonds of a batch by the same table: bonds (M, 2) int64, rows of the batch with the lesser first and in
    ascending order; orders (M,) int32 of 1, 2 or 3; bond_offsets (B + 1,) int64. Raises as edm_stability does."""
    numbers, positions, offsets = arrays(structures)
    bond_offsets = offsets_of(edm_stability(structures).bond_counts)
    total = int(bond_offsets[-1])
    bonds, orders = empty((total, 2), "int64", like=numbers), empty((total,), "int32", like=numbers)
    _C.edm_bonds(numbers, positions, offsets, bond_offsets, bonds, orders)
    return bonds, orders, bond_offsets
