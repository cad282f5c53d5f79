"""RMSD and MMD: what must be zero, what is known, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from core_3d_molecule import Structures, gaussian_mmd, kabsch_rmsd, mirrored, principal_frames
from core_3d_molecule.reference import geometry as reference

RNG = np.random.default_rng(0)


def turned(points: np.ndarray) -> np.ndarray:
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    return points @ (turn * np.sign(np.linalg.det(turn))) + 5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 30])
def test_rigid_motion_costs_nothing(count: int) -> None:
    points = RNG.normal(size=(count, 3))
    assert kabsch_rmsd(points, turned(points), [0, count])[0] < 1e-13
    assert kabsch_rmsd(points * 1e-80, turned(points) * 1e-80, [0, count])[0] < 1e-93


def test_a_mirror_image_is_another_molecule() -> None:
    points = RNG.normal(size=(6, 3))
    mirrored = turned(points * [1, 1, -1])
    got = kabsch_rmsd(points, mirrored, [0, 6])[0]
    assert got > 0.1
    assert abs(got - reference.kabsch_rmsd(points, mirrored)) < 1e-12


def test_flat_and_straight() -> None:
    for axes in ([1, 1, 0], [1, 0, 0]):
        a, b = RNG.normal(size=(2, 7, 3)) * axes
        assert abs(kabsch_rmsd(a, b, [0, 7])[0] - reference.kabsch_rmsd(a, b)) < 1e-12


def test_principal_frames() -> None:
    sizes = [1, 2, 3, 9, 20]
    parts = [RNG.normal(size=(n, 3)) * [3, 2, 1] for n in sizes]
    numbers = [np.full(n, 6) for n in sizes]
    one, other = (principal_frames(Structures.from_list(numbers, p)) for p in (parts, [turned(p) for p in parts]))
    cut = one.offsets[3]  # three points or fewer lie in a plane, whose sides are alike
    np.testing.assert_allclose(one.positions[cut:], other.positions[cut:], atol=1e-9)
    given = Structures.from_list(numbers, parts)
    assert kabsch_rmsd(given.positions, one.positions, one.offsets).max() < 1e-12
    for _, at in one:
        spread = at.T @ at
        assert np.abs(at.mean(0)).max() < 1e-12
        assert np.abs(spread - np.diag(np.diag(spread))).max() < 1e-9
        assert (np.diff(np.diag(spread)) < 1e-9).all()
    assert len(principal_frames(Structures.from_list([], []))) == 0
    with pytest.raises(ValueError, match="structure 1 has none"):
        principal_frames(Structures.from_list([[1], []], [[[0.0, 0, 0]], np.empty((0, 3))]))


def test_mirrored() -> None:
    parts = [RNG.normal(size=(n, 3)) for n in (4, 1, 7)]
    given = Structures.from_list([np.arange(1, len(p) + 1) for p in parts], parts)
    found = mirrored(given)
    assert len(found) == 24
    seen = set()
    for i, (numbers, at) in enumerate(found):
        np.testing.assert_array_equal(numbers, given.numbers[given.offsets[i % 3] : given.offsets[i % 3 + 1]])
        np.testing.assert_array_equal(np.abs(at), np.abs(parts[i % 3]))
        signs = at / parts[i % 3]
        assert (signs == signs[0]).all()
        seen.add((i % 3, *signs[0].tolist()))
    assert len(seen) == 24
    np.testing.assert_array_equal(found.select(np.arange(3)).positions, given.positions)
    assert len(mirrored(Structures.from_list([], []))) == 0


def test_mmd() -> None:
    x, y = RNG.normal(size=500), RNG.normal(0.5, size=300)
    assert abs(gaussian_mmd(x, y) - reference.gaussian_mmd(x, y)) < 1e-12
    assert abs(gaussian_mmd(x, x)) < 1e-12
    assert gaussian_mmd([2.0, 2.0], [2.0]) == 0
    far = RNG.normal(size=40) * np.repeat([1e-3, 1e3], 20)
    assert abs(gaussian_mmd(far, y) - reference.gaussian_mmd(far, y)) < 1e-12


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"gaussian_mmd: argument 'y' must hold 1 to 2\^31 - 1 values"):
        gaussian_mmd([1.0], np.empty(0))
    with pytest.raises(ValueError, match=r"argument 'x' must be finite and in -1e100..1e100, got nan in row 1"):
        gaussian_mmd([1.0, np.nan], [1.0])
    with pytest.raises(ValueError, match=r"argument 'targets' must be finite .* got inf in row 0"):
        kabsch_rmsd([[0.0, 0, 0]], [[0.0, np.inf, 0]], [0, 1])
