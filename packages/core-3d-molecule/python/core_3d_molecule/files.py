"""Molecules from SDF (V2000), XYZ and PDB files of any origin, and to SDF and XYZ; crystals are in `crystal_files`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .bonds import edm_bonds
from .elements import FIRST_RESIDUE, RESIDUES
from .lines import Lines
from .structures import Structures

Atoms = tuple[list[int], list[list[float]]]


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
    found = reader(Lines.of(path))
    return Structures.from_list([numbers for numbers, _ in found], [positions for _, positions in found])


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


def _xyz(lines: Lines) -> list[Atoms]:
    found: list[Atoms] = []
    while lines.skip_blank():
        count = lines.count(lines.next("the number of atoms"), "the number of atoms")
        lines.next("the comment")
        found.append(([], []))
        for _ in range(count):
            fields = lines.next("an atom").split()
            if len(fields) < 4:
                raise lines.error("an atom must be an element and three coordinates")
            _add(lines, found[-1], lines.element(fields[0]), fields[1:4])
    return found


def _sdf(lines: Lines) -> list[Atoms]:
    found: list[Atoms] = []
    while any(line.strip() for line in lines.lines[lines.at : lines.at + 4]) or lines.skip_blank():
        for what in ("the title", "the program line", "the comment"):
            if lines.next(what).startswith("$$$$"):
                raise lines.error(f"the record ends where {what} must be")
        head = lines.next("the counts line")
        if "V3000" in head:
            raise lines.error("V3000 is not read, only V2000")
        atoms, bonds = (lines.count(head[i : i + 3], what) for i, what in ((0, "the number of atoms"), (3, "of bonds")))
        found.append(([], []))
        for _ in range(atoms):
            row = lines.next("an atom")
            _add(lines, found[-1], lines.element(row[31:34].strip()), [row[0:10], row[10:20], row[20:30]])
        for _ in range(bonds):
            if lines.next("a bond").startswith(("M  END", "$$$$")):
                raise lines.error("the record ends where a bond must be")
        first = lines.at
        while lines.at < len(lines.lines) and not lines.lines[lines.at].startswith("$$$$"):
            lines.at += 1
        if not any(line.startswith("M  END") for line in lines.lines[first : lines.at]):
            raise lines.error("the record must have a line 'M  END'")
        lines.at = min(lines.at + 1, len(lines.lines))
    return found


def _pdb(lines: Lines) -> list[Atoms]:
    """One structure a model; an amino acid's alpha carbon is taken once, whatever its alternatives."""
    found: list[Atoms] = [([], [])]
    seen: set[str] = set()
    while lines.skip_blank():
        row = lines.next("a record")
        if row.startswith("ENDMDL"):
            found.append(([], []))
            seen.clear()
        residue, name = row[17:20].strip(), row[12:16]
        if not row.startswith(("ATOM  ", "HETATM")) or name != " CA " or (row[0] == "H" and residue != "MSE"):
            continue
        if row[21:27] in seen:
            continue
        seen.add(row[21:27])
        kind = RESIDUES.index(residue if residue in RESIDUES else "MET" if residue == "MSE" else "UNK")
        _add(lines, found[-1], FIRST_RESIDUE + kind, [row[30:38], row[38:46], row[46:54]])
    return [atoms for atoms in found if atoms[0]]


def _add(lines: Lines, atoms: Atoms, number: int, fields: list[str]) -> None:
    atoms[1].append([lines.number(field, "a coordinate") for field in fields])
    atoms[0].append(number)
