"""Crystals: what must not change, known structures, pymatgen's answers, and what is refused."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
from core_3d_molecule import (
    Crystals,
    crystal_distances,
    match_crystals,
    neighbor_list,
    niggli_reduce,
    pxrd_patterns,
    structure_validity,
)

SALT = Crystals.from_list(
    [[11] * 4 + [17] * 4],
    [np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 2],
    [np.eye(3) * 5.64],
)
PRIMITIVE_SALT = Crystals.from_list(
    [[17, 11]], [[[0.6, 0.6, 0.6], [0.1, 0.1, 0.1]]], [(np.ones((3, 3)) - np.eye(3)) * 2.82]
)


def random_crystals(seed: int, count: int = 20) -> Crystals:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, count)
    lattices = np.eye(3) * rng.uniform(3, 7, (count, 3, 1)) + rng.uniform(-1.5, 1.5, (count, 3, 3))
    return Crystals.from_list(
        [rng.choice([3, 8, 22], n) for n in sizes], [rng.random((n, 3)) for n in sizes], list(lattices)
    )


def other_cell(crystals: Crystals, seed: int) -> Crystals:
    """The same crystals, rotated, in other cells of the same volume, atoms in another order, somewhere else."""
    rng = np.random.default_rng(seed)
    numbers, fractional, lattices = [], [], []
    for z, f, m in crystals:
        change = np.tril(rng.integers(-2, 3, (3, 3)), -1) + np.eye(3)
        change = change @ (np.triu(rng.integers(-2, 3, (3, 3)), 1) + np.eye(3))
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        order = rng.permutation(len(z))
        numbers.append(z[order])
        fractional.append((f @ np.linalg.inv(change) + rng.normal(size=3))[order])
        lattices.append(change @ m @ turn)
    return Crystals.from_list(numbers, fractional, lattices)


def metric(m: np.ndarray) -> np.ndarray:
    found: np.ndarray = m @ np.swapaxes(m, -1, -2)
    return found


def test_niggli_cell_does_not_depend_on_the_basis() -> None:
    crystals = random_crystals(0, 60)
    one, two = niggli_reduce(crystals), niggli_reduce(other_cell(crystals, 1))
    np.testing.assert_allclose(metric(one.lattices), metric(two.lattices), atol=1e-6)
    assert (np.linalg.det(one.lattices) > 0).all()
    assert ((one.fractional >= 0) & (one.fractional < 1)).all()


def test_niggli_conditions() -> None:
    g = metric(niggli_reduce(random_crystals(2, 200)).lattices)
    a, b, c = (g[:, k, k] for k in range(3))
    xi, eta, zeta = 2 * g[:, 1, 2], 2 * g[:, 0, 2], 2 * g[:, 0, 1]
    e = 1e-4
    assert ((a <= b + e) & (b <= c + e)).all()
    assert ((np.abs(xi) <= b + e) & (np.abs(eta) <= a + e) & (np.abs(zeta) <= a + e)).all()
    acute = (xi > -e) & (eta > -e) & (zeta > -e)
    obtuse = (xi < e) & (eta < e) & (zeta < e)
    assert (acute | obtuse).all()
    assert (xi + eta + zeta + a + b >= -e)[obtuse].all()


def test_salt() -> None:
    volume, distance = crystal_distances(SALT)
    assert (round(volume[0], 6), round(distance[0], 12)) == (round(5.64**3, 6), 2.82)
    near = neighbor_list(SALT, 2.9)
    assert np.diff(near.offsets).tolist() == [6] * 8
    pattern = pxrd_patterns(SALT)
    np.testing.assert_allclose(pattern.two_theta[:4], [27.388, 31.731, 45.491, 53.916], atol=0.01)
    assert pattern.intensity.argmax() == 1
    rms, farthest = match_crystals(PRIMITIVE_SALT, SALT)
    assert max(rms[0], farthest[0]) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_a_crystal_matches_itself_in_any_cell(seed: int) -> None:
    crystals = random_crystals(seed)
    rms, _ = match_crystals(other_cell(crystals, seed), crystals)
    assert rms.max() < 1e-6
    doubled = [
        (np.tile(z, 2), np.vstack([f, f + np.array([0, 0, 1])]) / [1, 1, 2], m * [[1], [1], [2]])
        for z, f, m in crystals
    ]
    rms, _ = match_crystals(Crystals.from_list(*map(list, zip(*doubled, strict=True))), crystals)
    assert rms.max() < 1e-6
    changed = Crystals(crystals.numbers + 1, crystals.fractional, crystals.lattices, crystals.offsets)
    assert np.isnan(match_crystals(changed, crystals)[0]).all()


def test_neighbors_in_skewed_cells_and_far_images() -> None:
    """Another basis of the lattice and other images of the atoms change the shifts, and nothing else."""
    rng = np.random.default_rng(5)
    skew = np.array([[1, 7, -3], [0, 1, 12], [0, 0, 1]]) @ np.array([[1, 0, 0], [-9, 1, 0], [4, 5, 1]])
    lattice, fractional = rng.normal(size=(3, 3)) * 3, rng.random((4, 3))
    plain = neighbor_list(Crystals.from_list([[6] * 4], [fractional], [lattice]), 5.0)
    away = fractional @ np.linalg.inv(skew) + rng.integers(-90, 90, (4, 3))
    skewed = neighbor_list(Crystals.from_list([[6] * 4], [away], [skew @ lattice]), 5.0)
    np.testing.assert_array_equal(skewed.pairs, plain.pairs)
    for i, j in np.ndindex(4, 4):
        one, two = (np.sort(near.distances[(near.pairs == (i, j)).all(1)]) for near in (plain, skewed))
        np.testing.assert_allclose(one, two, atol=1e-9)
    i, j = skewed.pairs.T
    ends = (away[j] + skewed.shifts - away[i]) @ (skew @ lattice)
    np.testing.assert_allclose(np.linalg.norm(ends, axis=1), skewed.distances, atol=1e-9)
    assert len(plain.pairs) > 100


def test_neighbors_come_in_pairs() -> None:
    crystals = random_crystals(4, 5)
    near = neighbor_list(crystals, 5.0)
    i, j = near.pairs.T
    forward = {(*p, *s) for p, s in zip(near.pairs.tolist(), near.shifts.tolist(), strict=True)}
    assert forward == {(b, a, -x, -y, -z) for a, b, x, y, z in forward}
    lattice = np.repeat(crystals.lattices, np.diff(crystals.offsets), axis=0)[i]
    vectors = np.einsum("pk,pkx->px", crystals.fractional[j] + near.shifts - crystals.fractional[i], lattice)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), near.distances, atol=1e-9)


def test_structure_validity() -> None:
    close = Crystals.from_list([[1, 1], [1]], [[[0, 0, 0], [0, 0, 0.9]], [[0, 0, 0]]], [np.eye(3) * 4, np.eye(3) * 0.3])
    assert structure_validity(close).tolist() == [False, False]
    assert structure_validity(close, 0.3, 0.0).tolist() == [True, True]


def aflow() -> list[Any]:
    """The AFLOW prototypes of pymatgen's wheel: all of them with CORE_TEST_ALL=1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("pymatgen.core")
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

        found = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    small = [s for s in found if len(s) <= 20 and s.is_ordered]
    return small if os.environ.get("CORE_TEST_ALL") else small[::12]


def test_like_pymatgen() -> None:
    """The same neighbours, least distances and peaks."""
    structures = aflow()
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    crystals = Crystals.from_pymatgen(structures)
    near, patterns = neighbor_list(crystals, 4.0), pxrd_patterns(crystals, two_theta_range=(0, 120))
    for b, (s, (_, distance)) in enumerate(
        zip(structures, zip(*crystal_distances(crystals), strict=True), strict=True)
    ):
        i, j, images, _ = s.get_neighbor_list(4.0)
        first, last = crystals.offsets[b : b + 2]
        rows = slice(near.offsets[first], near.offsets[last])
        got = np.column_stack([near.pairs[rows] - first, near.shifts[rows]])
        assert sorted(got.tolist()) == sorted(np.column_stack([i, j, images]).astype(int).tolist())
        apart = s.distance_matrix + np.diag(np.full(len(s), np.inf))
        assert distance == pytest.approx(apart.min(), abs=1e-9)
        want = XRDCalculator().get_pattern(s, two_theta_range=(0, 120))
        peaks = slice(*patterns.offsets[b : b + 2])
        mine = joined(patterns.two_theta[peaks], patterns.intensity[peaks])
        theirs = joined(want.x, want.y)
        assert len(mine) == len(theirs)
        np.testing.assert_allclose(mine[:, 0], theirs[:, 0], atol=1e-3)
        np.testing.assert_allclose(mine[:, 1], theirs[:, 1], atol=1e-2)


def joined(angles: Any, intensities: Any) -> np.ndarray:
    """Peaks over 0.01 % after those closer than 1e-4 degrees are added, which rounding may part."""
    rows: list[list[float]] = []
    for angle, intensity in zip(angles, intensities, strict=True):
        if rows and angle - rows[-1][0] < 1e-4:
            rows[-1][1] += intensity
        else:
            rows.append([angle, intensity])
    table = np.array(rows)
    table[:, 1] *= 100 / table[:, 1].max()
    return table[table[:, 1] > 0.01]


def test_matches_like_pymatgen() -> None:
    """The same decisions and distances for perturbed, strained, random and larger cells."""
    structures = aflow()
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

    rng = np.random.default_rng(0)

    def moved(s: Any, most: float) -> Any:
        step = rng.normal(size=(len(s), 3))
        step *= most / np.linalg.norm(step, axis=1, keepdims=True)
        return Structure(s.lattice, s.species, s.cart_coords + step, coords_are_cartesian=True)

    pairs = []
    for k, s in enumerate(structures):
        other = s.copy()
        if k % 4 == 0:
            other = moved(other, 0.1)
        elif k % 4 == 1:
            other.apply_strain(rng.uniform(-0.1, 0.2, 3))
            other = moved(other, rng.uniform(0.2, 0.8))
        elif k % 4 == 2:
            other = Structure(s.lattice, s.species, rng.random((len(s), 3)))
        else:  # about the tolerance of translations, where the choice among equal reduced cells decides
            other.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
            other = moved(other, rng.uniform(0.01, 0.3))
        pairs.append((other, s))
    rms, farthest = match_crystals(
        *(Crystals.from_pymatgen(side) for side in zip(*pairs, strict=True)), ltol=0.3, stol=0.5, angle_tol=10
    )
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    for pair, r, d in zip(pairs, rms, farthest, strict=True):
        want = matcher.get_rms_dist(*pair)
        assert (want is None) == np.isnan(r)
        if want is not None:
            assert (r, d) == pytest.approx(want, abs=1e-6)


def test_adapters() -> None:
    pytest.importorskip("ase")
    again = Crystals.from_ase(SALT.to_ase())
    np.testing.assert_allclose(again.fractional, SALT.fractional, atol=1e-12)
    np.testing.assert_array_equal(again.numbers, SALT.numbers)
    pytest.importorskip("pymatgen.core")
    again = Crystals.from_pymatgen(SALT.to_pymatgen() * 2)
    np.testing.assert_array_equal(again.lattices[1], SALT.lattices[0])


@pytest.mark.parametrize(
    ("lattice", "x", "message"),
    [
        (np.eye(3) * [[1], [1], [0]], 0.0, "must have vectors of 0.001 to 100000 angstroms, got 0 in crystal 0"),
        (np.ones((3, 3)), 0.0, "must span a volume, got 0 in crystal 0"),
        (np.full((3, 3), np.nan), 0.0, "must have vectors of .* got nan in crystal 0"),
        (np.eye(3), np.nan, "must be finite and in -1e6..1e6, got nan for atom 0"),
        (np.eye(3), 1e300, "must be finite and in -1e6..1e6"),
    ],
)
def test_refused(lattice: np.ndarray, x: float, message: str) -> None:
    crystals = Crystals([6, 6], [[x, 0, 0], [0.5, 0, 0]], [lattice], [0, 2])
    for call in (
        lambda c: neighbor_list(c, 3.0), crystal_distances, pxrd_patterns, lambda c: match_crystals(c, c),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call(crystals)


def test_refused_sizes() -> None:
    tiny = Crystals([6], [[0, 0, 0]], [np.eye(3) * 0.002], [0, 1])
    with pytest.raises(ValueError, match="must hold fewer images within 100 angstroms than crystal 0 does"):
        neighbor_list(tiny, 100.0)
    huge = Crystals([6], [[0, 0, 0]], [np.eye(3) * 9e4], [0, 1])
    with pytest.raises(ValueError, match=r"must have fewer than 10\^7 reflections, got more in crystal 0"):
        pxrd_patterns(huge)
    with pytest.raises(ValueError, match=r"'cutoff' must be in 0..100 angstroms, got nan"):
        neighbor_list(SALT, float("nan"))
    with pytest.raises(ValueError, match=r"'wavelength' must be one of CuKa, .* got 'Cu'"):
        pxrd_patterns(SALT, "Cu")
    with pytest.raises(ValueError, match=r"'high' below 180, got 0 and 180"):
        pxrd_patterns(SALT, two_theta_range=(0, 180))
    with pytest.raises(ValueError, match=r"'stol' must be in 0..10, got nan"):
        match_crystals(SALT, SALT, stol=float("nan"))
    with pytest.raises(ValueError, match=r"'second' must have 1 crystals like 'first', got 0"):
        match_crystals(SALT, Crystals.from_list([], [], []))
    with pytest.raises(ValueError, match=r"must be atomic numbers 1..98, got 99 for atom 0"):
        pxrd_patterns(Crystals([99], [[0, 0, 0]], [np.eye(3) * 3], [0, 1]))
    with pytest.raises(ValueError, match=r"'lattices' must have 1 lattices, got 2"):
        Crystals.from_list([[1]], [[[0, 0, 0]]], [np.eye(3)] * 2)


def test_empty() -> None:
    none = Crystals.from_list([], [], [])
    assert len(neighbor_list(none, 3.0).pairs) == len(pxrd_patterns(none)) == len(match_crystals(none, none)[0]) == 0
    hollow = Crystals.from_list([[]], [np.empty((0, 3))], [np.eye(3) * 3])
    assert np.isinf(crystal_distances(hollow)[1][0])
    assert np.isnan(match_crystals(hollow, hollow)[0][0])
    assert len(pxrd_patterns(hollow).two_theta) == 0
