"""Files of molecules and their scores: a known batch, intervals, and hostile files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from core_3d_molecule import (
    Crystals,
    Structures,
    chains,
    data,
    evaluate,
    evaluate_crystals,
    files,
    geometry_mmd,
    jobs,
    valence_stability,
)
from core_3d_molecule.coverage import Fingerprints, coverage
from core_3d_molecule.elements import NUMBERS
from core_3d_molecule.evaluate import smiles
from core_3d_molecule.geometry import chain_name
from core_3d_molecule.report import Rate, clustered, over_seeds, wilson
from hypothesis import given, settings
from hypothesis import strategies as st

XYZ = "3\nwater\nO 0 0 0.119\nH 0 0.763 -0.477\n1 0 -0.763 -0.477 0.1\n"
SDF = """water
  Core

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1190 O   0  0
    0.0000    0.7630   -0.4770 H   0  0
    0.0000   -0.7630   -0.4770 H   0  0
  1  2  1  0
  1  3  1  0
M  END
> <energy>
1

$$$$
"""


def read(tmp_path: Path, name: str, content: str) -> Structures:
    (tmp_path / name).write_text(content)
    return files.read(tmp_path / name)


def test_formats_agree(tmp_path: Path) -> None:
    for name, content in (("a.xyz", XYZ * 2 + "\n\n"), ("a.sdf", SDF * 2), ("b.sdf", (SDF * 2).replace("\n", "\r\n"))):
        got = read(tmp_path, name, content)
        assert got.offsets.tolist() == [0, 3, 6]
        assert got.numbers.tolist() == [8, 1, 1] * 2
        np.testing.assert_array_equal(got.positions[1], [0, 0.763, -0.477])
    assert len(read(tmp_path, "empty.xyz", "")) == len(read(tmp_path, "empty.sdf", "\n")) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", "x\n\n", "line 1: the number of atoms must be a whole number, got 'x'"),
        ("a.xyz", "-1\n\n", "line 1: the number of atoms must be a whole number"),
        ("a.xyz", "999999999\n\n", "line 1: the number of atoms must be at most 100000"),
        ("a.xyz", XYZ + "4\n", "line 7: an atom|line 7: the file ends"),
        ("a.xyz", "1\n\nXx 0 0 0\n", "line 3: 'Xx' is no element"),
        ("a.xyz", "1\n\nH 0 nan 0\n", "line 3: a coordinate must be a finite number, got 'nan'"),
        ("a.xyz", "1\n\nH 0 1_0 0\n", "line 3: a coordinate must be a finite number"),
        ("a.xyz", "1\n\nH 0 0\n", "line 3: an atom must be an element and three coordinates"),
        ("a.sdf", SDF.replace("V2000", "V3000"), "line 4: V3000 is not read"),
        ("a.sdf", SDF.replace("M  END\n", ""), "must have a line 'M  END'"),
        ("a.sdf", SDF.replace("  3  2", "  9  2"), "line 8: '' is no element|line 8: .* is no element"),
        ("a.sdf", SDF.replace("  3  2", "  3  9"), "line 10: the record ends where a bond must be"),
        ("a.sdf", "a\nb\n$$$$\n", "line 3: the record ends where the comment must be"),
        ("a.sdf", SDF.replace("0.7630", "0.76x0"), "line 6: a coordinate must be a finite number, got '0.76x0'"),
        ("a.cif", "", "must end in .sdf, .mol, .xyz or .pdb"),
    ],
)
def test_hostile_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, content)


@given(st.integers(0, len(SDF) - 1), st.characters(codec="utf-8"), st.sampled_from([".sdf", ".xyz"]))
@settings(max_examples=150, deadline=None)
def test_damaged_files_do_no_harm(tmp_path_factory: pytest.TempPathFactory, at: int, new: str, suffix: str) -> None:
    content = SDF if suffix == ".sdf" else XYZ
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_text(content[: at % len(content)] + new + content[at % len(content) + 1 :], "utf-8")
    try:
        files.read(path)
    except ValueError as e:
        assert str(path) in str(e)


def test_intervals() -> None:
    rate = wilson(95, 100)
    assert rate.low is not None
    assert rate.high is not None
    assert (rate.value, round(rate.low, 4), round(rate.high, 4)) == (0.95, 0.8882, 0.9785)
    assert wilson(0, 0).high == 1.0
    rng = np.random.default_rng(0)
    totals = rng.integers(5, 30, 200)
    hits = rng.binomial(totals, 0.9)
    draws = rng.integers(0, 200, (4000, 200))
    spread = (hits[draws].sum(1) / totals[draws].sum(1)).std()
    got = clustered(hits, totals)
    assert got.low is not None
    assert got.high is not None
    assert math.isclose((got.high - got.low) / 2, 1.96 * spread, rel_tol=0.1)
    mean = over_seeds([{"x": Rate(v)} for v in (0.1, 0.2, 0.6)])["x"]
    assert mean.high is not None
    assert math.isclose(mean.value, 0.3)
    assert math.isclose(mean.high - 0.3, 4.3027 * 0.26457513 / 3**0.5, rel_tol=1e-6)


WATER = [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]
BATCH = Structures.from_list(
    [[8, 1, 1], [8, 1, 1], [1, 1], [9, 9, 9]],
    [WATER, WATER, [[0, 0, 0], [0, 0, 0.74]], [[0, 0, 0], [0, 0, 1.4], [0, 0, 2.8]]],
)


def test_scores() -> None:
    pytest.importorskip("rdkit")
    report = evaluate(BATCH, training={"[H]O[H]"}, threads=2)
    got = {name: rate.value for name, rate in report.unranked.items()}
    assert got == {
        "atom_stability": 10 / 11, "molecule_stability": 3 / 4, "validity": 3 / 4, "valid_connected": 3 / 4,
        "unique": 2 / 4, "uniqueness": 2 / 3, "novelty": 1 / 2, "unique_novel": 1 / 4,
    }  # fmt: skip
    assert report.ranked is None
    one = smiles(BATCH, threads=1)
    assert one[0] == smiles(BATCH, threads=3)[0] == ["[H]O[H]", "[H]O[H]", "[H][H]", None]
    assert one[1].tolist() == [1, 1, 1, 0]


def test_ranked_beside_unranked_and_seeds() -> None:
    scores = np.array([1.0, 2.0, 3.0, 9.0])
    report = evaluate([BATCH, BATCH], scores=[scores, scores[::-1]], keep=0.5, rdkit=False)
    assert report.seeds == 2
    assert report.ranked is not None
    assert report.unranked["molecule_stability"].value == 3 / 4
    assert report.ranked["molecule_stability"].value == (1 + 1 / 2) / 2
    assert [row[0] for row in report.rows()] == ["atom stability", "molecule stability"]
    assert all(row[1] != "-" != row[2] for row in report.rows())
    json.dumps(report.to_dict())
    for bad in ([1.0, 2.0], [1.0, 2.0, 3.0, np.nan]):
        with pytest.raises(ValueError, match=r"argument 'scores' must be finite, of shape \(4,\)"):
            evaluate(BATCH, scores=bad, rdkit=False)
    with pytest.raises(ValueError, match=r"argument 'keep' must be in \(0, 1\], got 0"):
        evaluate(BATCH, scores=scores, keep=0, rdkit=False)


def test_frechet_chemnet_distance() -> None:
    """Nothing between a set and itself; chains and rings are apart, whether hydrogens are written or not."""
    pytest.importorskip("fcd_torch")
    from core_3d_molecule.evaluate import _fcd

    chains_of_carbon = ["C" * n + "O" for n in range(1, 13)]
    rings = ["C1" + "C" * n + "C1" for n in range(1, 13)]
    assert abs(_fcd(chains_of_carbon, chains_of_carbon)) < 1e-3
    assert _fcd(chains_of_carbon, rings) > 1
    assert math.isclose(_fcd(["[H]O[H]", "C", "CC"], rings), _fcd(["O", "C", "CC"], rings), rel_tol=1e-6)


@pytest.mark.skipif(not data.has_qm9(), reason="needs the wheel qm9pack")
def test_edm_test_split() -> None:
    """The figures that EDM's own metrics give for its test split (stability of all, validity of 2,000)."""
    pytest.importorskip("rdkit")
    test = data.qm9().select(data.edm_split()[2])
    got = evaluate(test, rdkit=False).unranked
    assert (round(got["atom_stability"].value, 5), round(got["molecule_stability"].value, 5)) == (0.99344, 0.95215)
    some = evaluate(test.select(np.arange(2000))).unranked
    assert 0.96 < some["validity"].value == some["unique"].value < 0.99


def test_geometry() -> None:
    """Known chains of hydrogen peroxide; equal sets are 0 apart, stretched bonds are not."""
    peroxide = Structures.from_list([[1, 8, 8, 1]], [[[0.9, 0.5, 0.0], [0, 0.7, 0], [0, -0.7, 0], [0.3, -0.9, 0.9]]])
    lengths, angles, dihedrals = (chains(peroxide, kind) for kind in ("bond", "angle", "dihedral"))
    assert [chain_name(s, "bond") for s in lengths.symbols] == ["H-O", "O-O", "H-O"]
    np.testing.assert_allclose(lengths.values[1], 1.4)
    assert [chain_name(s, "angle") for s in angles.symbols] == ["H-O-O", "H-O-O"]
    assert [chain_name(s, "dihedral") for s in dihedrals.symbols] == ["H-O-O-H"]
    np.testing.assert_allclose(np.abs(dihedrals.values), np.degrees(np.arctan2(0.9, 0.3)))
    rng = np.random.default_rng(0)
    many = peroxide.select(np.zeros(200, np.int64))
    noisy, again = (
        Structures(many.numbers, many.positions + rng.normal(0, 0.02, many.positions.shape), many.offsets)
        for _ in range(2)
    )
    wide = Structures(many.numbers, noisy.positions * 1.04, many.offsets)
    near, far = geometry_mmd(noisy, again), geometry_mmd(wide, again)
    assert near["bond"]["mean"] < 0.05 < far["bond"]["mean"]
    assert abs(near["dihedral"]["mean"] - far["dihedral"]["mean"]) < 0.05
    assert np.isnan(geometry_mmd(BATCH.select([0]), again)["dihedral"]["mean"])


def test_valences() -> None:
    """Benzene's aromatic carbons, an ammonium, and a carbon of three bonds, which only the loose table allows."""
    ring = [[i, (i + 1) % 6] for i in range(6)]
    benzene = np.array([*ring, *([i, i + 6] for i in range(6))])
    ammonium, methyl = (np.array([[0, i] for i in range(1, n)]) for n in (5, 4))
    given = Structures(
        np.array([6] * 6 + [1] * 6 + [7] + [1] * 4 + [6] + [1] * 3, np.int32),
        np.zeros((21, 3)),
        np.array([0, 12, 17, 21]),
    )
    bonds = (
        np.concatenate([benzene, ammonium + 12, methyl + 17]), np.array([4] * 6 + [1] * 13, np.int32),
        np.array([0, 12, 16, 19]),
    )  # fmt: skip
    charges = np.zeros(21, np.int32)
    assert valence_stability(given, bonds, charges).tolist() == [12, 4, 3]
    charges[12] = 1
    assert valence_stability(given, bonds, charges).tolist() == [12, 5, 3]
    assert valence_stability(given, bonds, charges, "sums").tolist() == [12, 5, 4]
    with pytest.raises(ValueError, match="'bonds' must join two atoms of structure 1, got 12 and 17"):
        valence_stability(given, (bonds[0] + (bonds[0] == 16), bonds[1], bonds[2]), charges)
    with pytest.raises(ValueError, match="argument 'table' must be 'pairs' or 'sums', got 'x'"):
        valence_stability(given, bonds, charges, "x")


IONS = """nitromethane and a counter-ion, charged by both ways of writing
  Core

  4  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 N   0  3
    1.2000    0.0000    0.0000 O   0  5
   -1.2000    0.0000    0.0000 O   0  0
    5.0000    0.0000    0.0000 Na  0  0
  1  2  1  0
  3  1  2  0
M  CHG  2   2  -1   4   1
M  END
$$$$
"""


def test_bonds_and_charges_of_a_file(tmp_path: Path) -> None:
    Chem = pytest.importorskip("rdkit.Chem")
    (tmp_path / "a.sdf").write_text(IONS + SDF + IONS.replace("M  CHG  2   2  -1   4   1\n", ""))
    got = files.read_bonded(tmp_path / "a.sdf")
    assert got.charges.tolist() == [0, -1, 0, 1, 0, 0, 0, 1, -1, 0, 0]
    assert got.bonds[0].tolist() == [[0, 1], [2, 0], [4, 5], [4, 6], [7, 8], [9, 7]]
    assert got.bonds[1].tolist() == [1, 2, 1, 1, 1, 2]
    last = got.select([2, 1])
    assert last.bonds[0].tolist() == [[0, 1], [2, 0], [4, 5], [4, 6]]
    assert last.charges.tolist() == [1, -1, 0, 0, 0, 0, 0]
    supplier = Chem.SDMolSupplier(str(tmp_path / "a.sdf"), sanitize=False, removeHs=False)
    theirs = [[atom.GetFormalCharge() for atom in m.GetAtoms()] for m in supplier]
    assert [charge for molecule in theirs for charge in molecule] == got.charges.tolist()
    report = evaluate(got).unranked
    assert report["given_molecule_stability_pairs"].value == 1 / 3
    assert report["given_validity"].value == 1.0
    assert report["given_valid_connected"].value == 1 / 3
    for old, new, message in (
        ("  3  1  2  0", "  3  9  2  0", "line 10: a bond must join two of 4 atoms, got 3 and 9"),
        ("  3  1  2  0", "  3  1  8  0", "line 10: a bond's order must be in 1..4, got 8"),
        ("   4   1\n", "   9   1\n", "line 11: a charge must be in -15..15, of one of the atoms, got 1 for 9"),
        ("   4   1\n", "   4 nan\n", "line 11: a charge must be a finite number, got 'nan'"),
    ):
        (tmp_path / "a.sdf").write_text(IONS.replace(old, new))
        with pytest.raises(ValueError, match=message):
            files.read_bonded(tmp_path / "a.sdf")


def test_compositions_are_smacts() -> None:
    """The published procedure on random compositions: smact's neutral ratios for given numbers, then Pauling's test."""
    smact = pytest.importorskip("smact")
    screening = pytest.importorskip("smact.screening")
    from core_3d_molecule.composition import composition_validity

    rng = np.random.default_rng(0)
    symbols = [
        "H",
        "Li",
        "C",
        "N",
        "O",
        "F",
        "Na",
        "Mg",
        "Al",
        "Si",
        "S",
        "Cl",
        "K",
        "Ca",
        "Ti",
        "Fe",
        "Cu",
        "Ar",
        "Au",
    ]
    kinds = [np.sort(rng.choice(symbols, rng.integers(1, 5), replace=False)) for _ in range(60)]
    counts = [rng.integers(1, 4, len(k)) for k in kinds]
    numbers = [np.repeat([NUMBERS[s] for s in k], n) for k, n in zip(kinds, counts, strict=True)]
    batch = Crystals.from_list(numbers, [rng.random((len(n), 3)) for n in numbers], [np.eye(3) * 5] * len(numbers))
    want = []
    for kind, count in zip(kinds, counts, strict=True):
        elements = [smact.Element(s) for s in kind]
        few = (count // np.gcd.reduce(count)).tolist()
        ways = itertools.product(*(e.oxidation_states for e in elements))
        want.append(
            len(kind) == 1
            or all(s in smact.metals for s in kind)
            or any(
                smact.neutral_ratios(way, stoichs=[(n,) for n in few], threshold=max(few))[0]
                and screening.pauling_test(way, [e.pauling_eneg for e in elements])
                for way in ways
            )
        )
    assert composition_validity(batch).tolist() == want
    assert 0 < sum(want) < len(want)


def test_crystals() -> None:
    pytest.importorskip("ase")
    salt = Crystals.from_list(
        [[11, 17]] * 2, [[[0, 0, 0], [0.5, 0.5, 0.5]], [[0, 0, 0], [0.05, 0, 0]]], [np.eye(3) * 3.5] * 2
    )
    report = evaluate_crystals(salt, composition=False, targets=salt, reference=salt.select([0, 0]))
    got = {name: rate.value for name, rate in report.unranked.items()}
    assert got == {
        "structure_validity": 0.5, "match_rate": 0.5, "match_rms": 0.0, "density_distance": 0.0,
        "elements_distance": 0.0,
    }  # fmt: skip
    known = evaluate_crystals(salt.select([0, 0, 1]), composition=False, training=salt.select([1]))
    assert (known.unranked["unique"].value, known.unranked["novel"].value) == pytest.approx((2 / 3, 2 / 3))
    with pytest.raises(ValueError, match="argument 'targets' must be left out"):
        evaluate_crystals(salt, scores=[1.0, 2.0], targets=salt)


def test_coverage() -> None:
    rng = np.random.default_rng(0)
    real = Fingerprints(rng.standard_normal((5, 61)), rng.standard_normal((5, 132)) * 3)
    both, structure_only = real.structure[2] + 0.01, real.structure[0]
    drawn = Fingerprints(
        np.array([both, structure_only, real.structure[4], np.full(61, np.nan)]),
        np.array([real.composition[2], np.full(132, 1e3), real.composition[1], real.composition[3]]),
    )
    covered, near = coverage(drawn, real, 0.2, 4.0)
    # a structure and a composition may be near different samples: those of crystals 1 and 3 have no structure near
    expected = np.array(
        [[np.linalg.norm(a - b) for b in np.nan_to_num(drawn.structure, nan=1e9)] for a in real.structure]
    )
    scaled = [(x.composition - real.composition.mean(0)) / real.composition.std(0) for x in (real, drawn)]
    other = np.linalg.norm(scaled[0][:, None] - scaled[1][None], axis=-1)
    np.testing.assert_array_equal(covered, (expected.min(1) <= 0.2) & (other.min(1) <= 4))
    np.testing.assert_array_equal(near, (expected.min(0) <= 0.2) & (other.min(0) <= 4))
    assert covered.tolist() == [False, False, True, False, False]
    assert near.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="'cutoffs' must come with a reference"):
        evaluate_crystals(Crystals.from_list([[8]], [[[0, 0, 0]]], [np.eye(3)]), composition=False, cutoffs=(0.2, 4.0))


def test_job_of_crystals(tmp_path: Path) -> None:
    frame = '1\nLattice="3 0 0 0 3 0 0 0 3"\n{} 0 0 0\n'
    (tmp_path / "a.extxyz").write_text(frame.format("Fe") + frame.format("Cu") * 2)
    (tmp_path / "t.extxyz").write_text(frame.format("Fe"))
    jobs.evaluate(tmp_path / "a.extxyz", tmp_path / "r.json", training=tmp_path / "t.extxyz", composition=False)
    report = json.loads((tmp_path / "r.json").read_text())["unranked"]
    assert (report["unique"]["value"], report["novel"]["value"]) == pytest.approx((2 / 3, 2 / 3))
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(ValueError, match="argument 'training' must be a file of crystals"):
        jobs.evaluate(tmp_path / "a.extxyz", tmp_path / "r.json", training=tmp_path / "a.xyz", composition=False)


def test_job(tmp_path: Path) -> None:
    (tmp_path / "a.sdf").write_text(SDF * 2)
    (tmp_path / "s.txt").write_text("1.5\n2.5\n")
    jobs.evaluate(tmp_path / "a.sdf", tmp_path / "r.json", rdkit=False, scores=tmp_path / "s.txt", keep=0.5)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["unranked"]["molecule_stability"]["value"] == report["ranked"]["molecule_stability"]["value"] == 1.0
    assert "validity" not in report["unranked"]
    assert report["tolerances"]["valences"].startswith("EDM's, strict")
    assert report["unranked"]["given_molecule_stability_pairs"]["value"] == 1.0
    with pytest.raises(ValueError, match="argument 'training' must be left out"):
        jobs.evaluate(tmp_path / "a.sdf", tmp_path / "r.json", training=tmp_path / "a.sdf", rdkit=False)
    (tmp_path / "s.txt").write_text("1.5\nx\n")
    with pytest.raises(ValueError, match=r"s.txt, line 2: the line must be a finite number, got 'x'"):
        jobs.evaluate(tmp_path / "a.sdf", tmp_path / "r.json", rdkit=False, scores=tmp_path / "s.txt")
