"""Which settings samples are drawn with: decided by other samples, and by nothing that the samples are scored by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bonds import edm_bonds
from ..geometry import chains
from ..structures import Structures
from ..valences import valence_stability

DECIDES = "different and valid"


def scores(samples: Structures, begun: int, bonds: Any = None) -> dict[str, float]:
    """Of the molecules begun, the share that is "valid", all atoms having valences of JODO's table, and the share that
    is "different and valid", of which those that are the same count once.

    bonds: (pairs, orders, offsets), those of EDM's distances by default. Neither EDM's stability nor RDKit's validity.
    Two molecules are the same if their elements and the types of their dihedral angles are.
    """
    if not len(samples):
        return {"valid": 0.0, DECIDES: 0.0}
    bonds, offsets = bonds if bonds is not None else edm_bonds(samples), np.asarray(samples.offsets)
    stable = valence_stability(samples, bonds, np.zeros(len(samples.numbers), np.int32), "sums")
    fine = (stable == np.diff(offsets)) & (np.diff(offsets) > 0)
    turns = chains(samples, "dihedral", bonds)
    keys = _sums(samples.numbers, offsets) + 31 * _sums(turns.symbols, turns.offsets)
    return {"valid": float(fine.sum() / begun), DECIDES: len(np.unique(keys[fine])) / begun}


def chosen(trials: Mapping[str, Mapping[str, float]], begun: int) -> str:
    """Of trials of so many molecules the one with the most valid ones among those that are, within a standard error, as
    often different and valid as the best."""
    best = max(trial[DECIDES] for trial in trials.values())
    near = {name for name, trial in trials.items() if trial[DECIDES] >= best - math.sqrt(best * (1 - best) / begun)}
    return max(trials, key=lambda name: (name in near, trials[name]["valid"]))


def _sums(values: Any, offsets: Any) -> np.ndarray:
    """Of each part, the sum of its values' hashes."""
    mixed = np.asarray(values).astype(np.uint64)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (29, 0xC4CEB9FE1A85EC53), (32, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return np.diff(total[np.asarray(offsets)])
