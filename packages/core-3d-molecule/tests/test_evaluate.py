"""Files of molecules and their scores: a known batch, intervals, and hostile files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from core_3d_molecule import Structures, files, jobs
from core_3d_molecule.evaluate import clustered, evaluate, wilson
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
    assert (rate.value, round(rate.low, 4), round(rate.high, 4)) == (0.95, 0.8882, 0.9785)
    assert wilson(0, 0).high == 1.0
    rng = np.random.default_rng(0)
    totals = rng.integers(5, 30, 200)
    hits = rng.binomial(totals, 0.9)
    draws = rng.integers(0, 200, (4000, 200))
    spread = (hits[draws].sum(1) / totals[draws].sum(1)).std()
    got = clustered(hits, totals)
    assert math.isclose((got.high - got.low) / 2, 1.96 * spread, rel_tol=0.1)


def test_scores() -> None:
    pytest.importorskip("rdkit")
    water = [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]
    places = [water, water, [[0, 0, 0], [0, 0, 0.74]], [[0, 0, 0], [0, 0, 1.4], [0, 0, 2.8]]]
    batch = Structures.from_list([[8, 1, 1], [8, 1, 1], [1, 1], [9, 9, 9]], places)
    report = evaluate(batch, training={"[H]O[H]"})
    assert report.atom_stability.value == 10 / 11
    assert report.molecule_stability.value == 3 / 4
    assert report.validity is not None
    assert (report.validity.value, report.unique, report.uniqueness, report.novelty) == (3 / 4, 2 / 4, 2 / 3, 1 / 2)


def test_job(tmp_path: Path) -> None:
    (tmp_path / "a.sdf").write_text(SDF)
    jobs.evaluate(tmp_path / "a.sdf", tmp_path / "r.json", rdkit=False)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["molecule_stability"]["value"] == 1.0
    assert report["validity"] is None
    with pytest.raises(ValueError, match="argument 'training' must be left out"):
        jobs.evaluate(tmp_path / "a.sdf", tmp_path / "r.json", training=tmp_path / "a.sdf", rdkit=False)
