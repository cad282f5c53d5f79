"""Valences that atoms may have when bonds and charges are given, and the stability that follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_3d_molecule as _C
from .elements import NUMBERS
from .structures import Structures, arrays

MOST_CHARGE, MOST_AROMATIC, MOST_VALENCE = 4, 4, 62

SUMS: Mapping[str, Mapping[int, tuple[int, ...]]] = {
    "H": {0: (1,), 1: (0,), -1: (0,)}, "C": {0: (3, 4), 1: (3,), -1: (3,)},
    "N": {0: (2, 3), 1: (2, 3, 4), -1: (2,)}, "O": {0: (2,), 1: (3,), -1: (1,)}, "F": {0: (1,), -1: (0,)},
    "B": {0: (3,)}, "Al": {0: (3,)}, "Si": {0: (4,)}, "P": {0: (3, 5), 1: (4,)},
    "S": {0: (2, 6), 1: (2, 3), 2: (4,), 3: (5,), -1: (3,)}, "Cl": {0: (1,)}, "As": {0: (3,)},
    "Br": {0: (1,), 1: (2,)}, "I": {0: (1,)}, "Hg": {0: (1, 2)}, "Bi": {0: (3, 5)}, "Se": {0: (2, 4, 6)},
}  # fmt: skip
"""By element and charge, the sums of bond orders that MiDi (arXiv 2302.09048), JODO and FlowMol call stable; an
aromatic bond counts 1.5 and the sum is rounded down. The elements of ANY_CHARGE may have any charge."""

PAIRS: Mapping[str, Mapping[int, tuple[tuple[int, int], ...]]] = {
    "Br": {0: ((0, 1),), 1: ((0, 2),)},
    "C": {0: ((0, 4), (2, 2), (2, 1), (3, 0)), -1: ((0, 3), (2, 1), (3, 0)), 1: ((0, 3), (2, 1), (3, 0))},
    "N": {0: ((0, 3), (2, 0), (2, 1), (3, 0)), 1: ((0, 4), (2, 0), (2, 1), (2, 2), (3, 0)), -1: ((0, 2), (2, 0)),
          -2: ((0, 1),)},
    "H": {0: ((0, 1),)},
    "S": {0: ((0, 2), (0, 3), (0, 6), (2, 0)), 1: ((0, 3), (2, 0), (2, 1), (3, 0)), 2: ((0, 4), (2, 1), (2, 2)),
          3: ((0, 2), (0, 5)), -1: ((0, 1),)},
    "O": {0: ((0, 2), (2, 0)), -1: ((0, 1),), 1: ((0, 3),)},
    "F": {0: ((0, 1),)}, "Cl": {0: ((0, 1),), 1: ((0, 2),)}, "P": {0: ((0, 3), (0, 5)), 1: ((0, 4),)},
    "I": {0: ((0, 1),), 1: ((0, 2),), 2: ((0, 3),)}, "Si": {0: ((0, 4),), 1: ((0, 5),)},
    "B": {-1: ((0, 4),), 0: ((0, 3),)}, "Bi": {0: ((0, 3),), 2: ((0, 5),)},
}  # fmt: skip
"""By element and charge, the pairs of (aromatic bonds, valence of the others) that GEOM-Drugs revisited (arXiv
2505.00169) found in real molecules; it calls the other table chemically implausible."""

ANY_CHARGE = ("B", "Al", "Si", "Cl", "As", "I", "Hg", "Bi", "Se")


def _sums() -> np.ndarray:
    table = _empty()
    for symbol, charges in SUMS.items():
        for charge in range(-MOST_CHARGE, MOST_CHARGE + 1):
            for allowed in charges.get(0 if symbol in ANY_CHARGE else charge, ()):
                for rings in range(MOST_AROMATIC + 1):
                    if (valence := allowed - 3 * rings // 2) >= 0:
                        table[NUMBERS[symbol], charge + MOST_CHARGE, rings] |= 1 << valence
    return table


def _pairs() -> np.ndarray:
    table = _empty()
    for symbol, charges in PAIRS.items():
        for charge, pairs in charges.items():
            for rings, valence in pairs:
                table[NUMBERS[symbol], charge + MOST_CHARGE, rings] |= 1 << valence
    return table


def _empty() -> np.ndarray:
    return np.zeros((119, 2 * MOST_CHARGE + 1, MOST_AROMATIC + 1), np.int64)


TABLES = {"sums": _sums(), "pairs": _pairs()}


def valence_stability(structures: Structures, bonds: tuple[Any, Any, Any], charges: Any, table: str = "pairs") -> Any:
    """The number (B,) int64 of atoms of each molecule with an allowed valence, by bonds and charges that are given.

    bonds: rows (M, 2) int64, orders (M,) int32 of 1..3, 4 for aromatic, and offsets (B + 1,) int64, as edm_bonds gives
    them; charges (A,) int32; table: "pairs" (strict) or "sums". numpy in gives numpy, torch (CPU) gives torch. Raises
    ValueError for another table, an order out of range, and a bond that leaves its molecule.
    """
    if table not in TABLES:
        raise ValueError(f"argument 'table' must be 'pairs' or 'sums', got {table!r}")
    numbers, _, offsets = arrays(structures)
    rows, orders, starts = (
        as_array(x, dtype, name, like=numbers)
        for x, dtype, name in zip(bonds, ("int64", "int32", "int64"), ("bonds", "orders", "bond_offsets"), strict=True)
    )
    stable = empty((len(offsets) - 1,), "int64", like=numbers)
    charges = as_array(charges, "int32", "charges", like=numbers)
    allowed = as_array(TABLES[table], "int64", "allowed", like=numbers)
    _C.valence_stability(numbers, charges, offsets, rows, orders, starts, allowed, stable)
    return stable
