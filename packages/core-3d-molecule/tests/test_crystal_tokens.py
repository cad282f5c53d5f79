"""Crystals to tokens and back: lattices from corners, conditions, packing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from core_3d_molecule import Augmentation, Crystals, CrystalTokenizer, OctreeTokenizer, match_crystals, niggli_reduce
from core_3d_molecule.crystal_tokens import CNT, COMPONENTS, PXRD, VOCABULARY, lattice_from_corners
from core_3d_molecule.octree import CLS, LATTICE, MASK
from core_3d_molecule.reference import octree as reference


def spread_crystals(seed: int, count: int = 30) -> Crystals:
    """Triclinic cells in which no two atoms share a token's cell."""
    rng = np.random.default_rng(seed)
    places = [rng.permutation(27)[:n] for n in rng.integers(2, 9, count)]
    lattices = np.eye(3) * rng.uniform(3, 7, (count, 3, 1)) + rng.uniform(-1.5, 1.5, (count, 3, 3))
    grid = [np.stack(np.unravel_index(p, (3, 3, 3)), 1) / 3 + rng.uniform(0, 0.15, (len(p), 3)) for p in places]
    return Crystals.from_list([rng.choice([3, 8, 22], len(p)) for p in places], grid, list(lattices))


def test_round_trip() -> None:
    crystals, tokenizer = spread_crystals(1), CrystalTokenizer()
    tokens = tokenizer.tokenize(crystals)
    assert len(tokens) == 2 * len(crystals)
    again, rows = tokenizer.detokenize(tokens)
    np.testing.assert_array_equal(rows, np.arange(len(crystals)))
    rms, farthest = match_crystals(again, crystals, scale=False)
    assert (farthest < 0.02).all()
    assert np.isfinite(rms).all()
    ratio = np.linalg.det(again.lattices) / np.linalg.det(niggli_reduce(crystals).lattices)
    np.testing.assert_allclose(ratio, 1, atol=0.01)


def test_streams_are_the_references() -> None:
    crystals = niggli_reduce(spread_crystals(2, 10))
    tokens = CrystalTokenizer().tokenize(crystals)
    for b, (numbers, fractional, lattice) in enumerate(crystals):
        corners = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]) @ lattice
        for r, (kinds, points) in enumerate((([LATTICE + 1] * 8, corners), (numbers, fractional % 1.0 @ lattice))):
            want = reference.tokenize(kinds, points, 8, 0.24, 0.01, middle=corners.mean(0))
            rows = slice(tokens.offsets[2 * b + r], tokens.offsets[2 * b + r + 1])
            for name in ("tokens", "levels", "bins", "counts"):
                np.testing.assert_array_equal(getattr(tokens, name)[rows], want[name])


@pytest.mark.parametrize("seed", range(5))
def test_augmented_crystals_are_the_same(seed: int) -> None:
    crystals, tokenizer = spread_crystals(3), CrystalTokenizer(OctreeTokenizer(8, duplicates="first"))
    tokens = tokenizer.tokenize(crystals, augment=Augmentation(drop=0.0), seed=seed)
    again, rows = tokenizer.detokenize(tokens)
    _, farthest = match_crystals(again, crystals.select(rows), scale=False)
    assert len(rows) == len(crystals)
    assert (farthest < 0.03).all()
    assert (np.abs(tokens.origins - tokenizer.tokenize(crystals).origins) > 1e-3).mean() > 0.9


def test_pack_and_conditions() -> None:
    crystals, tokenizer = spread_crystals(4, 6), CrystalTokenizer()
    tokens, given = tokenizer.tokenize(crystals), tokenizer.conditions(crystals, pxrd=True)
    packed = tokenizer.pack(tokens, given)
    np.testing.assert_array_equal(np.diff(packed.cu_seqlens), 6 + 2 * np.diff(tokens.offsets[::2]))
    counts = np.diff(crystals.offsets)
    for b, first in enumerate(packed.cu_seqlens[:-1]):
        assert packed.tokens[first : first + 6].tolist() == [
            PXRD,
            PXRD + 1,
            PXRD + 2,
            PXRD + 3,
            COMPONENTS,
            CNT + counts[b],
        ]
        rows = slice(first + 6, packed.cu_seqlens[b + 1])
        trees, own = packed.trees[rows], packed.tokens[rows][1::2]
        assert (packed.tokens[rows][::2] == MASK).all()
        assert (np.diff(trees) <= 0).all()
        assert (own == CLS).sum() == 2
        assert packed.counts[rows][1] == 8
        assert packed.counts[rows][1::2][trees[1::2] == 0][0] == counts[b] == packed.counts[first + 5]
    assert packed.tokens.max() < VOCABULARY
    np.testing.assert_allclose((given.composition**2).sum(1), counts, rtol=1e-6)
    assert given.pxrd.shape == (6, 4, 300)
    assert given.pxrd.max() <= 2.0
    dropped = tokenizer.conditions(crystals.select(np.zeros(2000, np.int64)), pxrd=False, drop=0.1)
    assert 0.08 < 1 - dropped.composition_given.mean() < 0.12
    assert (dropped.composition[~dropped.composition_given] == 0).all()


def test_broken_corners_are_left_out() -> None:
    crystals, tokenizer = spread_crystals(5, 4), CrystalTokenizer()
    tokens = tokenizer.tokenize(crystals)
    ids = tokens.tokens.copy()
    ids[np.flatnonzero(ids == LATTICE)[3]] = 5
    _, rows = tokenizer.detokenize(ids, tokens.bins, tokens.offsets)
    assert rows.tolist() == [1, 2, 3]
    flat = np.concatenate([np.random.default_rng(0).normal(size=(1, 8, 2)), np.zeros((1, 8, 1))], 2)
    assert np.isinf(lattice_from_corners(flat)[2]).all()
    with pytest.raises(ValueError, match=r"must be finite and in -1e6..1e6, got nan in cell 0"):
        lattice_from_corners(flat * np.nan)


def test_cells_are_reduced_first() -> None:
    """A skew cell whose diagonal is longer than the cube: its reduced cell fits, as it is it does not."""
    skew = Crystals.from_list([[14, 8]], [[[0, 0, 0], [0.5, 0.5, 0.5]]], [[[4, 0, 0], [0, 4, 0], [60, 0, 4]]])
    with pytest.raises(ValueError, match="must lie within"):
        CrystalTokenizer(niggli=False).tokenize(skew)
    again, _ = CrystalTokenizer().detokenize(CrystalTokenizer().tokenize(skew))
    np.testing.assert_allclose(again.lattices @ again.lattices[0].T, np.eye(3)[None] * 16, atol=0.1)
    assert match_crystals(again, skew, scale=False)[1][0] < 0.01


def test_refused() -> None:
    long = Crystals.from_list([[1]], [[[0, 0, 0]]], [np.diag([60.0, 3, 3])])
    with pytest.raises(ValueError, match=r"must lie within 30.48 angstroms of their middle, got 30.6 in crystal 0"):
        CrystalTokenizer().tokenize(Crystals.from_list([[1]], [[[0, 0, 0]]], [np.diag([61.2, 3, 3])]))
    assert len(CrystalTokenizer().tokenize(long)) == 2
    many = Crystals.from_list([[1] * 129], [np.random.default_rng(0).random((129, 3))], [np.eye(3) * 20])
    with pytest.raises(ValueError, match="at most 128 atoms each, got 129 in crystal 0"):
        CrystalTokenizer().tokenize(many)
    tokens = CrystalTokenizer().tokenize(spread_crystals(6, 2))
    n = tokens.offsets[1]
    with pytest.raises(ValueError, match="two streams for each crystal, got 1"):
        CrystalTokenizer().detokenize(tokens.tokens[:n], tokens.bins[:n], tokens.offsets[:2])
    assert len(CrystalTokenizer().tokenize(Crystals.from_list([], [], np.empty((0, 3, 3))))) == 0
