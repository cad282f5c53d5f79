"""How alike two geometries, and two sets of bond lengths, angles or dihedrals, are."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import as_array, empty

from . import _core_3d_molecule as _C


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
