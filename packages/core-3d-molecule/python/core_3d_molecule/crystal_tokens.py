"""Octree tokens of crystals: conditions, the tree of the cell's corners, the tree of the atoms (arXiv 2503.16278)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from . import _core_3d_molecule as _C
from .crystals import Crystals, Patterns, niggli_reduce, pxrd_patterns
from .octree import LATTICE, Augmentation, OctreeTokenizer, Packed, Tokens
from .structures import offsets_of

COMPONENTS, CNT, PXRD = 602, 603, 732
MOST_ATOMS = 128
PXRD_TOKENS, PXRD_POINTS = 4, 300
PXRD_RANGE, PXRD_UNIT = (0.0, 120.0), 50.0
VOCABULARY = PXRD + PXRD_TOKENS
"""736: that of molecules, [COMPONENTS], [CNT_0..128] and [PXRD_0..3]."""
MOST_ERROR = 1.0
"""Angstroms by which corners may miss those of a cell on average."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a crystal's sequence begins with.

    tokens (B, C) int32: [PXRD_0..3] if there are patterns, [COMPONENTS], [CNT_n]; composition (B, 128) float32: square
    roots of the numbers of atoms by element; pxrd (B, 4, 300) float32, a pattern in steps of 0.1 degrees / 50, or None;
    composition_given, pxrd_given (B,) bool: False for conditions that were dropped, whose values are 0.
    """

    tokens: Any
    composition: Any
    pxrd: Any
    composition_given: Any
    pxrd_given: Any

    def told(self, composition: bool, pxrd: bool) -> Any:
        """(B, V) float32, what a model is told: `told_rows` of the pattern, then of the composition, if wanted."""
        parts = [told_rows(self.pxrd.reshape(len(self.tokens), -1), self.pxrd_given)] if pxrd else []
        parts += [told_rows(self.composition, self.composition_given)] if composition else []
        return np.hstack([np.empty((len(self.tokens), 0), np.float32), *parts])


@dataclasses.dataclass(frozen=True)
class CrystalTokenizer:
    """Crystals to tokens and back; a crystal has two streams, of its cell's eight corners and of its atoms.

    Both lie in one cube, around the cell's middle. With `niggli`, cells are reduced first: cells as they are found in
    files may be too long for the cube.
    """

    octree: OctreeTokenizer = dataclasses.field(default_factory=lambda: OctreeTokenizer.preset("crystal"))
    niggli: bool = True

    def tokenize(self, crystals: Crystals, *, augment: Augmentation | None = None, seed: int = 0) -> Tokens:
        """Tokens with 2 B streams: the corners of crystal b in stream 2 b, its atoms in 2 b + 1.

        `tokens.atoms` are rows 0..8 B + A of the corners and atoms, crystal by crystal. The paper turns crystals with
        probability 0.5: Augmentation(rotate=0.5). Raises ValueError as OctreeTokenizer.tokenize does, for more than 128
        atoms, and for a cell that the cube cannot hold.
        """
        if self.niggli:
            crystals = niggli_reduce(crystals)
        counts = np.diff(crystals.offsets)
        if (counts > MOST_ATOMS).any():
            raise ValueError(
                f"argument 'crystals' must have at most {MOST_ATOMS} atoms each, got {counts.max()} in crystal "
                f"{int(counts.argmax())}"
            )
        fractional = np.asarray(crystals.fractional)
        if augment is not None:
            rng = np.random.default_rng(seed)
            moves = rng.random(len(crystals)) * (rng.random(len(crystals)) < augment.slide)
            fractional = fractional + np.repeat(moves, counts)[:, None]
        points, numbers, offsets = _points(crystals, fractional % 1.0)
        if augment is not None:
            points, middles, drops = self.octree.augmented(points, offsets, augment, seed, anchors=8)
            drops = np.repeat(drops, 2)
        else:
            middles, drops = points[offsets[:-1, None] + np.arange(8)].mean(1), None
        self._check_size(points, offsets, middles)
        streams = offsets_of(np.column_stack([np.full(len(counts), 8), counts]).reshape(-1))
        return self.octree.encode(numbers, points, streams, np.repeat(middles, 2, axis=0), drops, seed)

    def _check_size(self, points: Any, offsets: Any, middles: Any) -> None:
        """Corners and atoms keep one frame only if none of them has to be shifted to fit."""
        half = 2 ** (self.octree.merge_level - 1) * self.octree.grid_len
        counts = np.diff(offsets)
        away = np.abs(points - np.repeat(middles, counts, axis=0)).max(1, initial=0.0)
        if (away >= half - self.octree.grid_len).any():
            crystal = int(np.repeat(np.arange(len(counts)), counts)[away.argmax()])
            raise ValueError(
                f"argument 'crystals' must lie within {half - self.octree.grid_len:g} angstroms of their middle, got "
                f"{away.max():g} in crystal {crystal}"
            )

    def detokenize(
        self, tokens: Any, bins: Any = None, offsets: Any = None, origins: Any = None
    ) -> tuple[Crystals, np.ndarray]:
        """Crystals of `Tokens` or of its arrays, and the rows (K,) of the crystals they are.

        Left out are those whose first stream has not eight corners that miss a cell's by 1 angstrom on average at most,
        or whose second holds a corner or no atom. Raises ValueError for a stream that is no tree.
        """
        read = self.octree.detokenize(tokens, bins, offsets, origins)
        sizes = np.diff(read.offsets)
        if len(sizes) % 2:
            raise ValueError(f"argument 'offsets' must have two streams for each crystal, got {len(sizes)}")
        starts = read.offsets[:-1].reshape(-1, 2)
        corners = np.append(0, np.cumsum(read.numbers == LATTICE + 1))
        found = (corners[read.offsets[1:]] - corners[read.offsets[:-1]]).reshape(-1, 2)
        rows = np.flatnonzero((found == (8, 0)).all(1) & (sizes[::2] == 8) & (sizes[1::2] > 0))
        cells, places, errors = lattice_from_corners(read.positions[starts[rows, 0, None] + np.arange(8)])
        kept = errors <= MOST_ERROR
        rows, cells, places = rows[kept], cells[kept], places[kept]
        atoms = read.select(2 * rows + 1)
        counts = np.diff(atoms.offsets)
        relative = atoms.positions - np.repeat(places, counts, axis=0)
        fractional = np.einsum("ai,aij->aj", relative, np.repeat(np.linalg.inv(cells), counts, axis=0)) % 1.0
        return Crystals(atoms.numbers, np.where(fractional < 1, fractional, 0.0), cells, atoms.offsets), rows

    def conditions(
        self, crystals: Crystals, *, pxrd: bool | Patterns = False, noise: float = 0.0, drop: float = 0.0, seed: int = 0
    ) -> Conditions:
        """Composition, number of atoms and, with `pxrd`, powder pattern of each crystal.

        pxrd: whether patterns are wanted, or the crystals' `pxrd_peaks`, where they are known.
        noise: standard deviation of normal noise on both (the paper's is 0.1 in training); drop: the probability
        (0.1) with which each condition of each crystal is left out.
        """
        rng, batch = np.random.default_rng(seed), len(crystals)
        counts = np.diff(crystals.offsets)
        if (counts > MOST_ATOMS).any():
            raise ValueError(f"argument 'crystals' must have at most {MOST_ATOMS} atoms each, got {counts.max()}")
        element = np.repeat(np.arange(batch), counts) * MOST_ATOMS + np.asarray(crystals.numbers) - 1
        composition = np.bincount(element, minlength=batch * MOST_ATOMS).reshape(batch, MOST_ATOMS)
        given = rng.random((2, batch)) >= drop

        def varied(values: Any, kept: Any) -> Any:
            noisy = values + noise * rng.standard_normal(values.shape) if noise else values
            return np.where(kept.reshape(-1, *[1] * (values.ndim - 1)), noisy, 0).astype(np.float32)

        patterns, wanted = None, pxrd is not False
        if wanted:
            profiles = pxrd_profile(pxrd if isinstance(pxrd, Patterns) else crystals, seed)
            patterns = varied(profiles.reshape(batch, PXRD_TOKENS, PXRD_POINTS) / PXRD_UNIT, given[1])
        before = [*(PXRD + np.arange(PXRD_TOKENS * wanted)), COMPONENTS]
        tokens = np.column_stack([np.tile(np.array(before, np.int32), (batch, 1)), (CNT + counts).astype(np.int32)])
        return Conditions(tokens, varied(np.sqrt(composition), given[0]), patterns, given[0], given[1] & wanted)

    def pack(self, tokens: Tokens, conditions: Conditions | None = None) -> Packed:
        """Model input: of each crystal its conditions, the lattice's tree and the atoms' tree; see `Packed`."""
        return self.octree.pack(tokens, None if conditions is None else conditions.tokens, trees=2)


def lattice_from_corners(corners: Any) -> tuple[Any, Any, Any]:
    """Lattices (B, 3, 3), a corner (B, 3) and mean errors (B,) of the cells with the corners (B, 8, 3), angstroms.

    Edges ascend in length, right-handed, angles all blunt or all sharp; the error of corners in a plane is infinite.
    """
    corners = np.ascontiguousarray(corners, np.float64)
    out = np.empty((len(corners), 3, 3)), np.empty((len(corners), 3)), np.empty(len(corners))
    _C.lattice_from_corners(corners, *out)
    return out


def told_rows(values: Any, given: Any) -> Any:
    """(B, 1 + N) float32 of values (B, N): whether a row's are given (B,), and the values, 0 if they are not."""
    given = np.asarray(given, bool)[:, None]
    return np.hstack([given, np.where(given, values, 0)]).astype(np.float32)


def pxrd_peaks(crystals: Crystals) -> Patterns:
    """The peaks of copper's powder pattern from 0 to 120 degrees, as `pxrd_profile` takes them."""
    return pxrd_patterns(crystals, two_theta_range=PXRD_RANGE)


def pxrd_profile(crystals: Crystals | Patterns, seed: int = 0, points: int = PXRD_TOKENS * PXRD_POINTS) -> Any:
    """(B, points) float32: copper's powder pattern at angles from 0 to 120 degrees; peaks above 5 of 100 and 64 random
    zeros beside them, joined by straight lines."""
    found = crystals if isinstance(crystals, Patterns) else pxrd_peaks(crystals)
    out = np.empty((len(found), points), np.float32)
    _C.pxrd_profile(found.two_theta, found.intensity, found.offsets, PXRD_RANGE[1], 5.0, 64, seed, out)
    return out


def _points(crystals: Crystals, fractional: Any) -> tuple[Any, Any, Any]:
    """Corners and atoms of each crystal in Cartesian coordinates, their numbers, and offsets."""
    counts = np.diff(crystals.offsets)
    offsets = offsets_of(counts + 8)
    unit = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(np.float64)
    points, numbers = np.empty((offsets[-1], 3)), np.full(offsets[-1], LATTICE + 1, np.int32)
    corner = offsets[:-1, None] + np.arange(8)
    points[corner] = unit @ np.asarray(crystals.lattices)
    atoms = np.ones(offsets[-1], bool)
    atoms[corner] = False
    points[atoms] = np.einsum("ai,aij->aj", fractional, np.repeat(np.asarray(crystals.lattices), counts, axis=0))
    numbers[atoms] = crystals.numbers
    return points, numbers, offsets
