"""The symbols of elements and amino acids, and the numbers that stand for them in `Structures`."""

from __future__ import annotations

from . import _core_3d_molecule as _C

SYMBOLS: tuple[str, ...] = vars(_C)["SYMBOLS"]
"""By atomic number, "" for 0."""

NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
"""Atomic numbers by symbol."""

RESIDUES = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER",
    "THR", "TRP", "TYR", "VAL", "UNK",
)  # fmt: skip
"""Amino acids; the number of an alpha carbon is 119 and the place of its residue here."""

FIRST_RESIDUE = len(SYMBOLS)
