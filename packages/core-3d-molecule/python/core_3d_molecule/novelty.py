"""Which crystals are others again: of the same formula, and matched."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from .crystals import Crystals, match_crystals

MATCH: dict[str, Any] = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
"""The tolerances of CDVAE (arXiv 2110.06197) for StructureMatcher."""


def known(crystals: Crystals, among: Crystals) -> Any:
    """(B,) bool: whether a crystal matches (`match_crystals`, CDVAE's tolerances) one of `among` with as many atoms of
    each element; 1 minus its mean is the novelty of samples."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, formula in enumerate(_formulas(among)):
        rows[formula].append(row)
    pairs = [(i, j) for i, formula in enumerate(_formulas(crystals)) for j in rows.get(formula, ())]
    return _matched(crystals, among, pairs)


def repeated(crystals: Crystals) -> Any:
    """(B,) bool: whether a crystal matches an earlier one of the batch; 1 minus its mean is samples' uniqueness."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    pairs: list[tuple[int, int]] = []
    for row, formula in enumerate(_formulas(crystals)):
        pairs += [(row, earlier) for earlier in rows[formula]]
        rows[formula].append(row)
    return _matched(crystals, crystals, pairs)


def _formulas(crystals: Crystals) -> list[bytes]:
    return [np.sort(numbers).tobytes() for numbers, _, _ in crystals]


def _matched(first: Crystals, second: Crystals, pairs: list[tuple[int, int]]) -> Any:
    found = np.zeros(len(first), bool)
    one, two = np.array(pairs, np.int64).reshape(-1, 2).T
    rms, _ = match_crystals(first.select(one), second.select(two), **MATCH)
    found[one[~np.isnan(rms)]] = True
    return found
