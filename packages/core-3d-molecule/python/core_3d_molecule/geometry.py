"""How alike two geometries, and two sets of bond lengths, angles or dihedrals, are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_3d_molecule as _C
from .bonds import edm_bonds
from .elements import SYMBOLS
from .structures import Structures, arrays, offsets_of

KINDS = {"bond": 2, "angle": 3, "dihedral": 4}


def kabsch_rmsd(positions: Any, targets: Any, offsets: Any) -> Any:
    """The RMSD of each structure after the best translation and rotation (Kabsch, doi 10.1107/S0567739476001873).

    positions, targets (A, 3) float32 or float64 in one unit, atom by atom; offsets (B + 1,) int64. Gives (B,) float64,
    0 for a structure without atoms; a reflection is no rotation. numpy in gives numpy, torch (CPU) gives torch. Raises
    ValueError for offsets that do not fit and positions that are not finite.
    """
    positions = as_array(positions, "float64", "positions")
    targets = as_array(targets, "float64", "targets", like=positions)
    offsets = as_array(offsets, "int64", "offsets", like=positions)
    out = empty((max(len(offsets) - 1, 0),), "float64", like=positions)
    _C.kabsch_rmsd(positions, targets, offsets, out)
    return out


def principal_frames(structures: Structures) -> Structures:
    """The structures (numpy) about their means, their principal axes along x, y and z, the longest first.

    Along x and y the third moment is not negative, and nothing is mirrored: whatever the orientation of a molecule was,
    the result is the same, but for those whose symmetry leaves axes or signs open.
    """
    offsets = np.asarray(structures.offsets)
    begins, counts = offsets[:-1], np.diff(offsets)
    if (counts < 1).any():
        raise ValueError(f"argument 'structures' must have an atom each, structure {np.argmin(counts)} has none")
    owner = np.repeat(np.arange(len(counts)), counts)
    at = np.asarray(structures.positions, np.float64)
    if len(counts):
        at = at - (np.add.reduceat(at, begins) / counts[:, None])[owner]
        axes = np.linalg.eigh(np.add.reduceat(at[:, :, None] * at[:, None], begins))[1][:, :, ::-1]
        at = np.einsum("ai,aij->aj", at, axes[owner])
        signs = np.where(np.add.reduceat(at**3, begins) < 0, -1.0, 1.0)
        signs[:, 2] = np.linalg.det(axes) * signs[:, 0] * signs[:, 1]
        at *= np.rint(signs)[owner]
    return Structures(structures.numbers, at, offsets)


def mirrored(structures: Structures) -> Structures:
    """The structures (numpy), each eight times: mirrored in none, one, two or all three of the planes x, y, z = 0."""
    signs = np.stack(np.meshgrid(*[[1.0, -1.0]] * 3, indexing="ij"), -1).reshape(8, 1, 3)
    at, offsets = np.asarray(structures.positions), np.asarray(structures.offsets)
    begins = (np.arange(8)[:, None] * len(at) + offsets[:-1]).reshape(-1)
    return Structures(
        np.tile(np.asarray(structures.numbers), 8),
        (at * signs.astype(at.dtype)).reshape(-1, 3),
        np.append(begins, 8 * len(at)),
    )


def gaussian_mmd(x: Any, y: Any) -> float:
    """The maximum mean discrepancy of two sets of numbers, as JODO (arXiv 2305.12347) compares geometries.

    x (N,), y (M,) float32 or float64, one value each at least: bond lengths, angles or dihedrals (degrees as they are).
    Five Gaussian kernels whose bandwidths are 1/4, 1/2, 1, 2 and 4 times the mean squared difference within the union;
    the means include each value's pair with itself. Raises ValueError for an empty set or a value that is not finite.
    """
    x = as_array(x, "float64", "x")
    y = as_array(y, "float64", "y", like=x)
    out = empty((1,), "float64", like=x)
    _C.gaussian_mmd(x, y, out)
    return float(out[0])


@dataclasses.dataclass(frozen=True)
class Chains:
    """symbols (V,) int64 and values (V,) float64 of the bonds, angles or dihedrals of a batch; offsets (B + 1,) int64.

    Lengths are in angstroms, angles in 0..180 and dihedrals in -180..180 degrees. A symbol holds the elements and bond
    orders along the chain; `chain_name` writes it.
    """

    symbols: Any
    values: Any
    offsets: Any


def chains(structures: Structures, kind: str, bonds: tuple[Any, Any, Any] | None = None) -> Chains:
    """Every bond length ("bond"), "angle" or "dihedral" of a batch, once; `bonds` as edm_bonds gives them, or EDM's.

    numpy in gives numpy, torch (CPU) gives torch. Raises ValueError for a bond that leaves its molecule.
    """
    if kind not in KINDS:
        raise ValueError(f"argument 'kind' must be one of {', '.join(KINDS)}, got {kind!r}")
    numbers, positions, offsets = arrays(structures)
    positions = as_array(positions, "float64", "positions", like=numbers)
    rows, orders, starts = bonds or edm_bonds(structures)
    counts = empty((len(offsets) - 1,), "int64", like=numbers)
    _C.chain_count(numbers, offsets, rows, orders, starts, KINDS[kind], counts)
    value_offsets = offsets_of(counts)
    total = int(value_offsets[-1])
    symbols, values = (empty((total,), dtype, like=numbers) for dtype in ("int64", "float64"))
    _C.chain_values(numbers, positions, offsets, rows, orders, starts, KINDS[kind], value_offsets, symbols, values)
    return Chains(symbols, values, value_offsets)


def chain_name(symbol: int, kind: str) -> str:
    """A symbol as text: "C-C=O", with ":" for aromatic bonds."""
    text, rest = "", int(symbol)
    for k in range(KINDS[kind]):
        text = SYMBOLS[rest & 127] + text
        rest >>= 7
        if k + 1 < KINDS[kind]:
            text = " -=#:"[rest & 7] + text
            rest >>= 3
    return text


def geometry_mmd(
    generated: Structures, reference: Structures, *, common: int = 8, limit: int = 20_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How far bond lengths, angles and dihedrals of two sets of molecules are apart, as JODO (arXiv 2305.12347) does.

    For each kind, gaussian_mmd of the `common` most frequent symbols of the reference, by name, and their "mean" over
    those that are generated; at most `limit` values each, drawn with `seed`. A symbol that is not generated is NaN.
    Bonds are EDM's; the symbols are the reference's most frequent ones, where JODO lists them by data set.
    """
    out: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        ours, theirs = chains(generated, kind), chains(reference, kind)
        symbols, counts = np.unique(theirs.symbols, return_counts=True)
        found = {}
        for symbol in symbols[np.argsort(-counts, kind="stable")[:common]]:
            sets = []
            for side in (ours, theirs):
                values = side.values[side.symbols == symbol]
                if len(values) > limit:
                    values = np.random.default_rng(seed).choice(values, limit, replace=False)
                sets.append(values)
            found[chain_name(symbol, kind)] = gaussian_mmd(*sets) if len(sets[0]) else float("nan")
        present = [v for v in found.values() if v == v]
        out[kind] = {**found, "mean": float(np.mean(present)) if present else float("nan")}
    return out
