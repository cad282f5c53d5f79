"""Files and objects of other libraries: there and back, peers' readings, and hostile text."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from core_3d_molecule import Crystals, Structures, crystal_files, data, files, jobs, match_crystals
from hypothesis import given, settings
from hypothesis import strategies as st

WATER = Structures.from_list([[8, 1, 1]] * 2, [[[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]] * 2)
SALT = """data_salt
_cell_length_a 5.6400(5)
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_chemical_name 'table''s salt' # a comment
_text
;several
lines
;
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
'x, y+1/2, z+1/2'
'x+1/2, y, 1/2+z'
'x+0.5, y+1/2, z'
'-x, -y, -z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na1+ 0 0 0
Cl1 Cl1- 0.5 0.5 0.5
"""
QUARTZ = Crystals.from_list(
    [[14] * 3 + [8] * 6, [11, 17]],
    [np.random.default_rng(1).random((9, 3)), [[0, 0, 0], [0.5, 0.5, 0.5]]],
    [[[4.9, 0, 0], [-2.45, 4.24, 0], [0, 0, 5.4]], np.eye(3) * 3.5],
)


def same(one: Structures, two: Structures, within: float) -> None:
    np.testing.assert_array_equal(one.numbers, two.numbers)
    np.testing.assert_array_equal(one.offsets, two.offsets)
    np.testing.assert_allclose(one.positions, two.positions, atol=within)


def test_molecules_there_and_back(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    files.write(tmp_path / "a.xyz", WATER)
    same(files.read(tmp_path / "a.xyz"), WATER, 1e-9)
    same(Structures.from_ase(WATER.to_ase()), WATER, 0)
    with pytest.raises(ValueError, match=r"must end in .sdf or .xyz"):
        files.write(tmp_path / "a.cif", WATER)


def test_rdkit(tmp_path: Path) -> None:
    Chem = pytest.importorskip("rdkit.Chem")
    files.write(tmp_path / "a.sdf", WATER)
    same(files.read(tmp_path / "a.sdf"), WATER, 1e-4)
    molecules = list(Chem.SDMolSupplier(str(tmp_path / "a.sdf"), removeHs=False))
    assert [Chem.MolToSmiles(Chem.RemoveHs(m)) for m in molecules] == ["O", "O"]
    same(Structures.from_rdkit(molecules), WATER, 1e-4)
    with pytest.raises(ValueError, match="must have conformers, got none in molecule 0"):
        Structures.from_rdkit([Chem.MolFromSmiles("C")])


def test_a_molecule_without_atoms(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n0\nnothing\n1\n\nO 0 0 1\n")
    (tmp_path / "a.sdf").write_text("\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n")
    read = files.read(tmp_path / "a.xyz")
    assert read.offsets.tolist() == [0, 1, 1, 2]
    assert read.positions.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert files.read_bonded(tmp_path / "a.sdf").structures.offsets.tolist() == [0, 0]


def test_torch_geometric() -> None:
    pytest.importorskip("torch_geometric")
    same(Structures.from_pyg(WATER.to_pyg()), WATER, 1e-6)


@pytest.mark.parametrize("suffix", [".cif", ".extxyz"])
def test_crystals_there_and_back(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("ase")
    crystal_files.write(tmp_path / f"a{suffix}", QUARTZ)
    again = crystal_files.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(again.numbers, QUARTZ.numbers)
    np.testing.assert_allclose(again.lattices @ again.lattices.swapaxes(1, 2), metric(QUARTZ), atol=1e-6)
    np.testing.assert_allclose((again.fractional - QUARTZ.fractional + 0.5) % 1.0, 0.5, atol=1e-6)


def metric(crystals: Crystals) -> np.ndarray:
    found: np.ndarray = crystals.lattices @ crystals.lattices.swapaxes(1, 2)
    return found


def test_symmetry() -> None:
    salt = crystal_files.from_cif(SALT)
    assert salt.numbers.tolist() == [11] * 4 + [17] * 4
    assert sorted(map(tuple, salt.fractional[:4].tolist())) == [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
    assert salt.lattices[0, 0, 0] == 5.64


def test_minerals_of_ase() -> None:
    """Every CIF file that comes with ASE: pymatgen's structure, or an error that names the line."""
    ase, core = pytest.importorskip("ase"), pytest.importorskip("pymatgen.core")
    read = 0
    for path in Path(ase.__file__).parent.rglob("*.cif"):
        try:
            ours = crystal_files.read(path)
        except ValueError as e:
            assert str(path) in str(e)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = Crystals.from_pymatgen([core.Structure.from_file(path)])
        assert np.isfinite(match_crystals(ours, theirs, scale=False)[0]).all()
        read += 1
    assert read > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data_salt\n", "", "line 1: a CIF file must begin with data_"),
        ("5.6400(5)", "5.6x", "line 2: _cell_length_a must be a finite number, got '5.6x'"),
        ("5.6400(5)", "inf", "line 2: _cell_length_a must be a finite number"),
        ("_cell_length_b 5.64\n", "", "line 1: the data block must have one _cell_length_b"),
        ("_cell_length_b 5.64", "_cell_length_a 5.64", "line 3: _cell_length_a stands twice"),
        ("gamma 90", "gamma 180", "line 2: lengths and angles of the cell must span a volume"),
        ("'x, y, z'", "'x, y, w'", "line 15: a symmetry operation must be like"),
        ("'x, y, z'", "'x, y, z+1/0'", "line 15: a symmetry operation must be like"),
        ("'x, y, z'", "'x, y, x'", "line 15: a symmetry operation must be like"),
        ("Na1 Na1+ 0 0 0", "Na1 Qq 0 0 0", "line 26: 'Qq' is no element"),
        ("Na1 Na1+ 0 0 0", "Na1 Na1+ 0 nan 0", "line 26: a coordinate must be a finite number, got 'nan'"),
        ("Na1 Na1+ 0 0 0", "Na1 Na1+ 0 0", "line 28: the loop of _atom_site_label must have its values"),
        (";\nloop_", "loop_", "line 27: the file ends where the end of a text field"),
        ("'x, y, z'\n", "'x, y, z'\n" * 200, "line 15: a space group has at most 192 operations"),
    ],
)
def test_hostile_cif(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match="<cif>, " + message.replace("(", r"\(")):
        crystal_files.from_cif(SALT.replace(old, new, 1))


def test_partly_occupied_sites_and_groups_without_operations_are_refused() -> None:
    mixed = SALT.replace("_atom_site_fract_z\n", "_atom_site_fract_z\n_atom_site_occupancy\n")
    mixed = mixed.replace("0 0 0\n", "0 0 0 1\n").replace("0.5 0.5 0.5\n", "0.5 0.5 0.5 0.4\n")
    with pytest.raises(ValueError, match=r"line 28: a site must be occupied by one element, got 0.4"):
        crystal_files.from_cif(mixed)
    bare = SALT[: SALT.index("loop_")] + "_space_group_IT_number 225\n" + SALT[SALT.rindex("loop_") :]
    with pytest.raises(ValueError, match="line 13: the operations of the space group must be written out"):
        crystal_files.from_cif(bare)


EXTXYZ = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-1\nNa 0 0 0\nCl 1.5 1.5 1.5\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Lattice="3 0', 'Lattice="3', "line 2: the comment must have Lattice"),
        ("0 0 3", "0 0 0", "line 2: the lattice must span a volume"),
        ("species", "specks", "line 2: Properties must have species"),
        ("Na 0 0 0", "Na 0 0", "line 3: an atom must have the fields"),
        ("Na 0 0 0", "Na 0 0 1e999", "line 3: a coordinate must be a finite number"),
        ("2\n", "3\n", "line 5: 'a' is no|line 5: the file ends|line 5: an atom"),
    ],
)
def test_hostile_extxyz(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "a.extxyz").write_text(EXTXYZ.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        crystal_files.read(tmp_path / "a.extxyz")


@given(st.integers(0, len(SALT) - 1), st.characters(codec="utf-8"), st.sampled_from([SALT, EXTXYZ]))
@settings(max_examples=150, deadline=None)
def test_damaged_crystals_do_no_harm(tmp_path_factory: pytest.TempPathFactory, at: int, new: str, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / ("damaged.cif" if text is SALT else "damaged.extxyz")
    path.write_text(text[: at % len(text)] + new + text[at % len(text) + 1 :], "utf-8")
    try:
        crystal_files.read(path)
    except ValueError as e:
        assert str(path) in str(e)


PDB = """HEADER    TEST
ATOM      1  N   ALA A   1      10.000  10.000  10.000  1.00  0.00           N
ATOM      2  CA AALA A   1      11.000  10.000  10.000  0.50  0.00           C
ATOM      3  CA BALA A   1      11.100  10.000  10.000  0.50  0.00           C
HETATM    4  CA  MSE A   2      12.000  13.600  10.000  1.00  0.00           C
HETATM    5 CA    CA A   3      15.000  10.000  10.000  1.00  0.00          CA
ATOM      6  CA  XYZ A   4      15.000  15.000  10.000  1.00  0.00           C
END
"""


def test_alpha_carbons(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    (tmp_path / "a.pdb").write_text(PDB)
    got = files.read(tmp_path / "a.pdb")
    assert got.numbers.tolist() == [119, 131, 139]
    assert got.positions[0].tolist() == [11, 10, 10]
    jobs.tokenize(tmp_path / "a.pdb", tmp_path / "t.npz")
    jobs.detokenize(tmp_path / "t.npz", tmp_path / "b.xyz")
    np.testing.assert_allclose(
        np.sort(files.read(tmp_path / "b.xyz").positions, 0), np.sort(got.positions, 0), atol=0.011
    )
    (tmp_path / "a.pdb").write_text(PDB.replace("12.000", "12.0x0"))
    with pytest.raises(ValueError, match="line 5: a coordinate must be a finite number"):
        files.read(tmp_path / "a.pdb")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n1,2\n", "row 1: must have a value in a column 'cif'"),
        (b"x,cif\n1\n", "row 1: must have a value in a column 'cif'"),
        (b"cif\n" + b"a" * (2 << 20), "after line 1: field larger than field limit"),
        (b"cif\n\xff\xfe\n", "row 1, line 1: a CIF file must begin with data_"),
        (b'cif\n"data_x\n', "row 1: must hold one crystal, got 0"),
    ],
)
def test_hostile_tables(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ValueError, match=r"t\.csv, " + message):
        data.crystals(tmp_path / "t.csv")


def test_jobs_of_crystals(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    (tmp_path / "a.cif").write_text(SALT)
    jobs.tokenize(tmp_path / "a.cif", tmp_path / "t.npz")
    jobs.detokenize(tmp_path / "t.npz", tmp_path / "b.cif")
    again = crystal_files.read(tmp_path / "b.cif")
    assert (match_crystals(again, crystal_files.from_cif(SALT), scale=False)[1] < 0.01).all()
    table = tmp_path / "a.csv"
    table.write_text('id,cif\n0,"' + SALT + '"\n1,"' + SALT.replace("Na1+", "Xx") + '"\n')
    assert len(data.crystals(table, 1)) == 1
    with pytest.raises(ValueError, match=r"a.csv, row 2, line 26: 'Xx' is no element"):
        data.crystals(table)


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("py3Dmol")
    (tmp_path / "a.cif").write_text(SALT)
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    for name, symbol in (("a.cif", "Na 0.00000"), ("a.xyz", "H 0.00000")):
        jobs.show(tmp_path / name, tmp_path / "a.html")
        assert symbol in (tmp_path / "a.html").read_text()
        jobs.show(tmp_path / name, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"must end in .html or .png, got a.gif"):
        jobs.show(tmp_path / "a.xyz", Path("a.gif"))


TRAIN = {
    22: 3393, 17: 13025, 23: 4848, 21: 9970, 19: 13832, 20: 9482, 16: 10644, 13: 3060, 15: 7796, 25: 1506, 18: 13364,
    12: 1689, 11: 807, 24: 539, 14: 5136, 26: 48, 7: 16, 10: 362, 8: 49, 9: 124, 27: 266, 4: 4, 29: 25, 6: 9, 5: 5,
    3: 1,
}  # fmt: skip
SECOND_HALF = {
    19: 6944, 12: 845, 20: 4794, 21: 4962, 27: 132, 25: 754, 18: 6695, 14: 2587, 15: 3865, 22: 1701, 17: 6461,
    16: 5344, 23: 2380, 13: 1541, 24: 267, 10: 178, 7: 7, 11: 412, 8: 25, 9: 62, 29: 15, 26: 17, 4: 3, 3: 1, 6: 5, 5: 3,
}  # fmt: skip


@pytest.mark.skipif(not data.has_qm9(), reason="needs the wheel qm9pack")
def test_splits_are_edms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The histograms of atoms that EDM publishes; the cache; a damaged cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (few,) = [data.load_qm9(20)]
    assert not list(tmp_path.rglob("*.npz"))
    everything = data.load_qm9()
    atoms = np.diff(everything.structures.offsets)
    for rows, want in ((data.edm_split()[0], TRAIN), (data.property_halves()[1], SECOND_HALF)):
        sizes, counts = np.unique(atoms[rows], return_counts=True)
        assert dict(zip(sizes.tolist(), counts.tolist(), strict=True)) == want
    (cache,) = tmp_path.rglob("*.npz")
    again = data.load_qm9(20)
    same(again.structures, few.structures, 0)
    assert again.smiles.tolist() == few.smiles.tolist()
    np.testing.assert_array_equal(again.properties["gap"], few.properties["gap"])
    cache.write_bytes(cache.read_bytes()[:1000])
    same(data.load_qm9(20).structures, few.structures, 0)
