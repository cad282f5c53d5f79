"""Crystals in batches: reduced cells, neighbours, powder patterns, validity and matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from core_registry.arrays import as_array

from . import _core_3d_molecule as _C
from .structures import Structures, offsets_of, selected

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core.structure import Structure

WAVELENGTHS = {"CuKa": 1.54184, "CuKa1": 1.54056, "CuKa2": 1.54439, "MoKa": 0.71073, "CoKa": 1.79026}
"""Angstroms."""


@dataclasses.dataclass(frozen=True)
class Crystals:
    """A batch of crystals, one after the other.

    numbers (A,) int32: atomic numbers; fractional (A, 3) float64; lattices (B, 3, 3) float64: rows are the vectors, in
    angstroms; offsets (B + 1,) int64: the atoms of crystal b are rows offsets[b]..offsets[b + 1].
    """

    numbers: Any
    fractional: Any
    lattices: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_list(cls, numbers: Sequence[Any], fractional: Sequence[Any], lattices: Sequence[Any]) -> Crystals:
        """A batch from atomic numbers (n,), fractional coordinates (n, 3) and a lattice (3, 3) for each crystal.

        Raises ValueError for lists or crystals that do not fit together.
        """
        atoms = Structures.from_list(numbers, fractional)
        cells = np.asarray(lattices, np.float64).reshape(-1, 3, 3)
        if len(cells) != len(atoms):
            raise ValueError(f"argument 'lattices' must have {len(atoms)} lattices, got {len(cells)}")
        return cls(atoms.numbers, atoms.positions, cells, atoms.offsets)

    @classmethod
    def from_pymatgen(cls, structures: Iterable[Structure]) -> Crystals:
        """A batch from `pymatgen.core.Structure`; ValueError for sites that more than one element shares."""
        listed = list(structures)
        for b, s in enumerate(listed):
            if not s.is_ordered:
                raise ValueError(f"argument 'structures' must have one element a site, got a disordered structure {b}")
        numbers = [[site.specie.Z for site in s] for s in listed]
        return cls.from_list(numbers, [s.frac_coords for s in listed], [s.lattice.matrix for s in listed])

    def to_pymatgen(self) -> list[Structure]:
        """One `pymatgen.core.Structure` for each crystal."""
        from pymatgen.core.structure import Structure

        return [Structure(lattice, numbers, fractional) for numbers, fractional, lattice in self]

    @classmethod
    def from_ase(cls, atoms: Iterable[Atoms]) -> Crystals:
        """A batch from `ase.Atoms` with cells."""
        listed = list(atoms)
        fractional = [a.get_scaled_positions(wrap=False) for a in listed]
        return cls.from_list([a.numbers for a in listed], fractional, [a.cell.array for a in listed])

    def to_ase(self) -> list[Atoms]:
        """One periodic `ase.Atoms` for each crystal."""
        from ase import Atoms

        return [Atoms(numbers=n, scaled_positions=f, cell=m, pbc=True) for n, f, m in self]

    def select(self, rows: Any) -> Crystals:
        """The crystals of these rows (K,), in their order. Raises IndexError for a row too large."""
        atoms, offsets = selected(self.offsets, rows)
        return Crystals(self.numbers[atoms], self.fractional[atoms], self.lattices[np.asarray(rows)], offsets)

    def __iter__(self) -> Any:
        """Numbers, fractional coordinates and lattice of each crystal."""
        cuts = np.asarray(self.offsets)[1:-1]
        atoms = (np.split(np.asarray(x), cuts)[: len(self)] for x in (self.numbers, self.fractional))
        return iter(zip(*atoms, np.asarray(self.lattices), strict=True))


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """pairs (P, 2) int64: rows i and j of the batch; shifts (P, 3) int32: the lattice vectors to add to j; distances
    (P,) float64, angstroms; offsets (A + 1,) int64: where the pairs of each atom i begin."""

    pairs: Any
    shifts: Any
    distances: Any
    offsets: Any


@dataclasses.dataclass(frozen=True)
class Patterns:
    """two_theta (P,) degrees, ascending in each crystal; intensity (P,), a crystal's greatest 100; offsets (B + 1,)."""

    two_theta: Any
    intensity: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def select(self, rows: Any) -> Patterns:
        """The patterns of these rows (K,), in their order. Raises IndexError for a row too large."""
        peaks, offsets = selected(self.offsets, rows)
        return Patterns(self.two_theta[peaks], self.intensity[peaks], offsets)


def niggli_reduce(crystals: Crystals) -> Crystals:
    """The same crystals in Niggli's reduced cells (doi 10.1107/S010876730302186X), coordinates in [0, 1).

    Lengths are compared to within 1e-5 of the cube root of the volume. Raises ValueError that names the crystal for a
    lattice that spans no volume.
    """
    _, fractional, lattices, offsets = _arrays(crystals)
    reduced, transforms = np.empty_like(lattices), np.empty(lattices.shape, np.int64)
    _C.niggli_reduce(lattices, reduced, transforms)
    into = np.repeat(np.linalg.inv(transforms.astype(np.float64)).round(), np.diff(offsets), axis=0)
    moved = np.einsum("ai,aij->aj", fractional, into) % 1.0
    return Crystals(crystals.numbers, np.where(moved < 1, moved, 0.0), reduced, offsets)


def neighbor_list(crystals: Crystals, cutoff: float) -> Neighbors:
    """All neighbours of all atoms within `cutoff` (0..100 angstroms), over periodic images, each pair both ways.

    An atom's own images are neighbours, itself is not. Raises ValueError that names the crystal.
    """
    numbers, fractional, lattices, offsets = _arrays(crystals)
    counts = np.empty(len(numbers), np.int64)
    _C.neighbor_count(fractional, lattices, offsets, cutoff, counts)
    starts = offsets_of(counts)
    total = int(starts[-1])
    out = Neighbors(np.empty((total, 2), np.int64), np.empty((total, 3), np.int32), np.empty(total), starts)
    _C.neighbor_list(fractional, lattices, offsets, cutoff, starts, out.pairs, out.shifts, out.distances)
    return out


def pxrd_patterns(
    crystals: Crystals, wavelength: str | float = "CuKa", two_theta_range: tuple[float, float] = (0.0, 90.0)
) -> Patterns:
    """The powder diffraction pattern of each crystal: |F|^2 with the Lorentz and polarisation factor, scaled to 100.

    wavelength: one of WAVELENGTHS or 0.1..10 angstroms; two_theta_range: degrees within 0..180. Elements up to 98; no
    thermal motion. Raises ValueError that names the atom or crystal.
    """
    if isinstance(wavelength, str):
        if wavelength not in WAVELENGTHS:
            raise ValueError(f"argument 'wavelength' must be one of {', '.join(WAVELENGTHS)}, got {wavelength!r}")
        wavelength = WAVELENGTHS[wavelength]
    numbers, fractional, lattices, offsets = _arrays(crystals)
    low, high = two_theta_range
    span = (float(wavelength), float(low), float(high))
    counts = np.empty(len(crystals), np.int64)
    _C.pxrd_count(lattices, *span, counts)
    room = offsets_of(counts)
    total = int(room[-1])
    two_theta, intensity = np.empty(total), np.empty(total)
    _C.pxrd_patterns(numbers, fractional, lattices, offsets, room, *span, two_theta, intensity, counts)
    kept = np.arange(total) < np.repeat(room[:-1] + counts, np.diff(room))
    return Patterns(two_theta[kept], intensity[kept], offsets_of(counts))


def crystal_distances(crystals: Crystals) -> tuple[Any, Any]:
    """Volumes (B,) in cubic angstroms and the least distances (B,) of two different atoms, infinite for one atom."""
    _, fractional, lattices, offsets = _arrays(crystals)
    volumes, distances = np.empty(len(crystals)), np.empty(len(crystals))
    _C.crystal_distances(fractional, lattices, offsets, volumes, distances)
    return volumes, distances


def structure_validity(crystals: Crystals, min_distance: float = 0.5, min_volume: float = 0.1) -> Any:
    """(B,) bool: no two atoms closer than `min_distance` angstroms and a volume of at least `min_volume`, as CDVAE
    (arXiv 2110.06197) counts valid structures."""
    volumes, distances = crystal_distances(crystals)
    return (distances >= min_distance) & (volumes >= min_volume)


def match_crystals(
    first: Crystals,
    second: Crystals,
    *,
    ltol: float = 0.2,
    stol: float = 0.3,
    angle_tol: float = 5.0,
    primitive_cell: bool = True,
    scale: bool = True,
) -> tuple[Any, Any]:
    """RMS and greatest distance (B,) of each pair of crystals, NaN where they do not match.

    The arguments and defaults of pymatgen's StructureMatcher, whose get_rms_dist this is; CDVAE and its successors
    match with ltol=0.3, stol=0.5, angle_tol=10. ltol: relative lengths; angle_tol: degrees; stol and both results: in
    units of (volume / atoms)^(1/3). With `primitive_cell` supercells match; with `scale` volumes may differ. Not
    symmetric: an atom of the second, of its rarest element, is put on those of the first. Raises ValueError for
    batches of different sizes and for more than 1,000 atoms.
    """
    one, two = _arrays(first), _arrays(second)
    if len(first) != len(second):
        raise ValueError(f"argument 'second' must have {len(first)} crystals like 'first', got {len(second)}")
    rms, farthest = np.empty(len(first)), np.empty(len(first))
    _C.match_crystals(*one, *two, ltol, stol, angle_tol, primitive_cell, scale, rms, farthest)
    return rms, farthest


def _arrays(crystals: Crystals) -> tuple[Any, Any, Any, Any]:
    """Numbers, fractional coordinates, lattices and offsets with the kernels' dtypes."""
    return (
        as_array(crystals.numbers, "int32", "numbers"),
        as_array(crystals.fractional, "float64", "fractional"),
        as_array(crystals.lattices, "float64", "lattices"),
        as_array(crystals.offsets, "int64", "offsets"),
    )
