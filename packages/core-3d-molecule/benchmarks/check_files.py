"""Damaged SDF, XYZ, PDB, CIF and extended XYZ files: python benchmarks/check_files.py [--count N] [--seed S].

Each of the N (100,000) files of a format is a good one with 1..4 of its bytes, words or lines replaced, dropped,
repeated or moved. A file that is still good may be read; any other must end in a ValueError that names the file, and
the line. Prints how many were read and refused, the slowest reading, and what was wrong; exits 1 if anything was.
"""

from __future__ import annotations

import argparse
import collections
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from core_3d_molecule import crystal_files, files

SDF = """water
  program

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1190 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.7630   -0.4770 H   0  3  0  0  0  0  0  0  0  0  0  0
    0.0000   -0.7630   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
M  CHG  2   1  -1   2   1
M  END
> <name>
water

$$$$
"""
XYZ = "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
PDB = """ATOM      1  N   ALA A   1      10.000  10.000  10.000  1.00  0.00           N
ATOM      2  CA AALA A   1      11.000  10.000  10.000  0.50  0.00           C
HETATM    3  CA  MSE A   2      12.000  13.600  10.000  1.00  0.00           C
ENDMDL
"""
CIF = """data_salt
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
'-x, -y, -z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na1+ 0 0 0 1
Cl1 Cl1- 0.5 0.5 0.5 1.0
"""
EXTXYZ = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-1\nNa 0 0 0\nCl 1.5 1.5 1.5\n'
GOOD = {".sdf": SDF * 2, ".xyz": XYZ * 2, ".pdb": PDB * 2, ".cif": CIF, ".extxyz": EXTXYZ * 2}
HOSTILE = [
    "nan", "inf", "-inf", "1e999", "1e-400", "-1", "0", "999", "100001", "4294967297", "9" * 30, "9" * 5000, "0x10",
    "1_0", "\0", "\ufeff", "\u0663", "\u00b2", "\u2028", "'", '"', ";", "#", "$$$$", "M  END", "M  CHG999", "loop_",
    "data_", "_a", "stop_", "?", ".", "1/0", "x+y,z,x", "(5)", "", " ", "\n", "\r", "\t", "V3000", "(" * 999,
    'Lattice="', "pos:R:0", "Xx",
]  # fmt: skip
PIECE = re.compile(rb"\S+|\s+")


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """The file after one to four blows."""
    text = good
    for _ in range(int(rng.integers(1, 5))):
        kind, at = rng.integers(7), int(rng.integers(max(len(text), 1)))
        if kind == 0:
            text = text[:at] + bytes([rng.integers(256)]) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + text[at + int(rng.integers(1, 20)) :]
        elif kind == 2:
            text = text[:at]
        else:
            pieces = PIECE.findall(text) if kind < 5 else text.splitlines(keepends=True)
            if not pieces:
                continue
            one, other = rng.integers(len(pieces), size=2)
            if kind == 3:
                pieces[one] = rng.choice(HOSTILE).encode()
            elif kind == 4 or kind == 5:
                pieces[one], pieces[other] = pieces[other], pieces[one]
            else:
                pieces.insert(int(other), pieces[one])
            text = b"".join(pieces)
    return text


def check(suffix: str, count: int, seed: int, folder: Path) -> bool:
    """Reads `count` damaged files of a format."""
    rng, path = np.random.default_rng(seed), folder / f"damaged{suffix}"
    crystals = suffix in (".cif", ".extxyz")
    named = re.compile(re.escape(str(path)) + r", line \d+: .+", re.DOTALL)
    found: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for _ in range(count):
        text = damaged(GOOD[suffix].encode(), rng)
        path.write_bytes(text)
        start = time.process_time()
        try:
            got = crystal_files.read(path) if crystals else files.read(path)
            bonded = files.read_bonded(path) if suffix == ".sdf" else None
            whole = np.isfinite(got.fractional if crystals else got.positions).all() and (got.numbers >= 1).all()
            found["read" if whole and (bonded is None or len(bonded) == len(got)) else "READ BADLY"] += 1
        except ValueError as e:
            found["refused" if named.fullmatch(str(e)) else f"WITHOUT A LINE: {str(e)[:160]!r}"] += 1
        except Exception as e:
            found[f"{type(e).__name__.upper()}: {str(e)[:160]!r}"] += 1
            found[f"  for example {text[:400]!r}"] = 1
        slowest = max(slowest, time.process_time() - start)
    print(
        f"{suffix}: {count} files, {found.pop('read', 0)} read, {found.pop('refused', 0)} refused with a line,", end=" "
    )
    print(f"slowest {1e3 * slowest:.0f} ms, {sum(found.values())} otherwise")
    for what, often in found.most_common(10):
        print(f"  {often} {what}")
    return not found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        passed = [check(suffix, arguments.count, arguments.seed, Path(temporary)) for suffix in GOOD]
    raise SystemExit(not all(passed))
