"""Bonds, valences and stability: known molecules, the table's edges, real data, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from core_3d_molecule import Structures, data, edm_bonds, edm_stability
from core_3d_molecule.reference import bonds as reference

WATER = Structures.from_list([[8, 1, 1]], [[[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]])


def test_water() -> None:
    got = edm_stability(WATER)
    assert got.valences.tolist() == [2, 1, 1]
    assert got.stable.tolist() == [True]
    bonds, orders, offsets = edm_bonds(WATER)
    assert (bonds.tolist(), orders.tolist(), offsets.tolist()) == ([[0, 1], [0, 2]], [1, 1], [0, 2])


def test_every_pair_at_every_edge() -> None:
    """All pairs of elements of the table and one outside, just below and just above each limit."""
    elements = [*reference.SYMBOLS, 2, 26]
    numbers, positions, expected = [], [], []
    for first, second in itertools.product(elements, repeat=2):
        pair = frozenset((reference.SYMBOLS.get(first, "?"), reference.SYMBOLS.get(second, "?")))
        for table, margin in reference.TABLES:
            for pm in (table.get(pair, 100) + margin + step for step in (-1e-6, 1e-6)):
                numbers.append([first, second])
                positions.append([[0, 0, 0], [0, pm / 100, 0]])
                expected.append(reference.order(first, second, pm / 100))
    got = edm_stability(Structures.from_list(numbers, positions))
    assert set(expected) == {0, 1, 2, 3}
    np.testing.assert_array_equal(got.valences[::2], expected)
    np.testing.assert_array_equal(got.valences[1::2], expected)


@pytest.mark.skipif(not data.has_qm9(), reason="needs the wheel qm9pack")
def test_qm9() -> None:
    """Exactly the reference's bonds on real molecules."""
    structures = data.qm9(300)
    bonds, orders, offsets = edm_bonds(structures)
    for b, (i, j) in enumerate(itertools.pairwise(structures.offsets)):
        rows = slice(offsets[b], offsets[b + 1])
        want = reference.bonds(structures.numbers[i:j].tolist(), structures.positions[i:j].tolist())
        got = np.column_stack([bonds[rows] - i, orders[rows]])
        np.testing.assert_array_equal(got, np.array(want).reshape(-1, 3))


def test_own_table_and_empty() -> None:
    assert edm_stability(WATER, {1: (1,), 8: (3,)}).stable_atoms.tolist() == [2]
    none = edm_stability(Structures.from_list([[]], [np.empty((0, 3))]))
    assert none.stable.tolist() == [False]
    with pytest.raises(ValueError, match=r"'allowed' must map 1..118 to valences 0..62, got 1: \(63,\)"):
        edm_stability(WATER, {1: (63,)})


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    there = Structures(*map(torch.from_numpy, (WATER.numbers, WATER.positions, WATER.offsets)))
    assert isinstance(edm_stability(there).stable, torch.Tensor)
    assert edm_bonds(there)[0].tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("number", "x", "message"),
    [(0, 0.0, "must be atomic numbers 1..118, got 0 for atom 0"), (1, np.nan, "must be finite, got nan for atom 0")],
)
def test_refused(number: int, x: float, message: str) -> None:
    for call in (edm_stability, edm_bonds):
        with pytest.raises(ValueError, match=message):
            call(Structures.from_list([[number]], [[[0, x, 0]]]))
