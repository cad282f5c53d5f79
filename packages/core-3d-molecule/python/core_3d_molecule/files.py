"""Molecules from SDF (V2000), XYZ and PDB files of any origin, and to SDF and XYZ; crystals are in `crystal_files`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .bonded import Bonded
from .bonds import edm_bonds
from .elements import FIRST_RESIDUE, RESIDUES
from .lines import Lines
from .structures import Structures, offsets_of

ORDERS = range(1, 5)
OLD_CHARGES = {0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 5: -1, 6: -2, 7: -3}
"""Formal charges by the code of an SDF's atom line."""


@dataclasses.dataclass
class _Record:
    """One molecule of a file; bonds are (i, j, order), from 0."""

    numbers: list[int] = dataclasses.field(default_factory=list)
    positions: list[list[float]] = dataclasses.field(default_factory=list)
    bonds: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    charges: list[int] = dataclasses.field(default_factory=list)

    def add(self, lines: Lines, number: int, fields: list[str], charge: int = 0) -> None:
        """An atom of three coordinates."""
        self.positions.append([lines.number(field, "a coordinate") for field in fields])
        self.numbers.append(number)
        self.charges.append(charge)


def read(path: str | Path) -> Structures:
    """The molecules of a file `*.sdf`, `*.mol` (V2000) or `*.xyz`, elements and coordinates; of `*.pdb`, alpha carbons.

    Raises ValueError that names file and line for what the format does not allow: a count that is no number, an
    unknown element, a coordinate that is not finite, an end too early, V3000; also for more than 100,000 atoms in a
    molecule and for files over 1 GiB.
    """
    path = Path(path)
    readers = {".sdf": _sdf, ".mol": _sdf, ".xyz": _xyz, ".pdb": _pdb}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the name must end in .sdf, .mol, .xyz or .pdb")
    return _structures(reader(Lines.of(path)))


def read_bonded(path: str | Path) -> Bonded:
    """The molecules of a file `*.sdf` or `*.mol` (V2000) with its bonds and charges. Raises ValueError as `read`
    does."""
    path = Path(path)
    if path.suffix.lower() not in (".sdf", ".mol"):
        raise ValueError(f"{path}: the name must end in .sdf or .mol")
    found = _sdf(Lines.of(path))
    structures = _structures(found)
    rows = np.array([bond for record in found for bond in record.bonds], np.int64).reshape(-1, 3)
    offsets = offsets_of(np.array([len(record.bonds) for record in found], np.int64))
    pairs = rows[:, :2] + np.repeat(structures.offsets[:-1], np.diff(offsets))[:, None]
    charges = np.array([charge for record in found for charge in record.charges], np.int32)
    return Bonded(structures, (pairs, rows[:, 2].astype(np.int32), offsets), charges)


def _structures(found: list[_Record]) -> Structures:
    return Structures.from_list([record.numbers for record in found], [record.positions for record in found])


def numbers(path: str | Path) -> np.ndarray:
    """One number a line, blank lines left out. Raises ValueError that names file and line."""
    lines = Lines.of(Path(path))
    found = []
    while lines.skip_blank():
        found.append(lines.number(lines.next("a number"), "the line"))
    return np.array(found)


def write(path: str | Path, structures: Structures, bonds: tuple[Any, Any, Any] | None = None) -> None:
    """Writes `*.xyz` with ASE or `*.sdf` with RDKit; an SDF's bonds are `bonds` as edm_bonds gives them, or EDM's."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".xyz":
        from ase.io import write as to_file

        with replace(path) as temporary:
            to_file(temporary, structures.to_ase(), format="xyz", fmt="%16.10f")
    elif suffix == ".sdf":
        from rdkit import Chem

        with replace(path) as temporary, Chem.SDWriter(str(temporary)) as writer:
            writer.SetKekulize(False)
            for molecule in structures.to_rdkit(bonds or edm_bonds(structures)):
                writer.write(molecule)
    else:
        raise ValueError(f"{path}: the name must end in .sdf or .xyz")


def _xyz(lines: Lines) -> list[_Record]:
    found: list[_Record] = []
    while lines.skip_blank():
        count = lines.count(lines.next("the number of atoms"), "the number of atoms")
        lines.next("the comment")
        found.append(_Record())
        for _ in range(count):
            fields = lines.next("an atom").split()
            if len(fields) < 4:
                raise lines.error("an atom must be an element and three coordinates")
            found[-1].add(lines, lines.element(fields[0]), fields[1:4])
    return found


def _sdf(lines: Lines) -> list[_Record]:
    found: list[_Record] = []
    while any(line.strip() for line in lines.lines[lines.at : lines.at + 4]) or lines.skip_blank():
        for what in ("the title", "the program line", "the comment"):
            if lines.next(what).startswith("$$$$"):
                raise lines.error(f"the record ends where {what} must be")
        head = lines.next("the counts line")
        if "V3000" in head:
            raise lines.error("V3000 is not read, only V2000")
        atoms, bonds = (lines.count(head[i : i + 3], what) for i, what in ((0, "the number of atoms"), (3, "of bonds")))
        record = _Record()
        found.append(record)
        for _ in range(atoms):
            row = lines.next("an atom")
            code = lines.count(row[36:39].strip() or "0", "an atom's charge code")
            element = lines.element(row[31:34].strip())
            record.add(lines, element, [row[0:10], row[10:20], row[20:30]], OLD_CHARGES.get(code, 0))
        for _ in range(bonds):
            record.bonds.append(_bond(lines, atoms))
        _properties(lines, record)
    return found


def _bond(lines: Lines, atoms: int) -> tuple[int, int, int]:
    row = lines.next("a bond")
    if row.startswith(("M  END", "$$$$")):
        raise lines.error("the record ends where a bond must be")
    first, second, order = (lines.count(row[k : k + 3], "an atom or order of a bond") for k in (0, 3, 6))
    if not (1 <= first <= atoms and 1 <= second <= atoms and first != second):
        raise lines.error(f"a bond must join two of {atoms} atoms, got {first} and {second}")
    if order not in ORDERS:
        raise lines.error(f"a bond's order must be in 1..4, got {order}")
    return first - 1, second - 1, order


def _properties(lines: Lines, record: _Record) -> None:
    """Reads to the end of a record; its charges replace those of the atoms' lines."""
    ended = charged = False
    while lines.at < len(lines.lines):
        row = lines.next("a line")
        if row.startswith("$$$$"):
            break
        ended |= row.startswith("M  END")
        if ended or not row.startswith("M  CHG"):
            continue
        if not charged:
            record.charges = [0] * len(record.charges)
            charged = True
        count = lines.count(row[6:9], "the number of charges")
        for k in range(count):
            atom = lines.count(row[9 + 8 * k : 13 + 8 * k], "a charged atom")
            charge = lines.number(row[13 + 8 * k : 17 + 8 * k], "a charge")
            if not (1 <= atom <= len(record.charges) and charge == int(charge) and abs(charge) <= 15):
                raise lines.error(f"a charge must be in -15..15, of one of the atoms, got {charge:g} for {atom}")
            record.charges[atom - 1] = int(charge)
    if not ended:
        raise lines.error("the record must have a line 'M  END'")


def _pdb(lines: Lines) -> list[_Record]:
    """One structure a model; an amino acid's alpha carbon is taken once, whatever its alternatives."""
    found = [_Record()]
    seen: set[str] = set()
    while lines.skip_blank():
        row = lines.next("a record")
        if row.startswith("ENDMDL"):
            found.append(_Record())
            seen.clear()
        residue, name = row[17:20].strip(), row[12:16]
        if not row.startswith(("ATOM  ", "HETATM")) or name != " CA " or (row[0] == "H" and residue != "MSE"):
            continue
        if row[21:27] in seen:
            continue
        seen.add(row[21:27])
        kind = RESIDUES.index(residue if residue in RESIDUES else "MET" if residue == "MSE" else "UNK")
        found[-1].add(lines, FIRST_RESIDUE + kind, [row[30:38], row[38:46], row[46:54]])
    return [record for record in found if record.numbers]
