"""Molecules from SDF (V2000) and XYZ files of any origin; what is wrong is reported with its line."""

from __future__ import annotations

import math
from pathlib import Path

from .elements import NUMBERS, SYMBOLS
from .structures import Structures

MAX_BYTES = 1 << 30
MAX_ATOMS = 100_000


def read(path: Path) -> Structures:
    """The molecules of a file `*.sdf`, `*.mol` (V2000) or `*.xyz`; only elements and coordinates are read.

    Raises ValueError that names file and line for what the format does not allow: a count that is no number, an
    unknown element, a coordinate that is not finite, an end too early, V3000; also for more than 100,000 atoms in a
    molecule and for files over 1 GiB.
    """
    readers = {".sdf": _sdf, ".mol": _sdf, ".xyz": _xyz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the name must end in .sdf, .mol or .xyz")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than {MAX_BYTES}")
    lines = _Lines(path, path.read_text("utf-8", errors="replace").split("\n"))
    numbers: list[list[int]] = []
    positions: list[list[list[float]]] = []
    reader(lines, numbers, positions)
    return Structures.from_list(numbers, positions) if numbers else Structures.from_list([], [])


class _Lines:
    """The lines of a file with the number of the next one."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines, self.at = path, lines, 0

    def error(self, why: str, line: int | None = None) -> ValueError:
        return ValueError(f"{self.path}, line {self.at if line is None else line}: {why}")

    def next(self, what: str) -> str:
        if self.at == len(self.lines):
            raise self.error(f"the file ends where {what} must be")
        self.at += 1
        return self.lines[self.at - 1].rstrip("\r")

    def skip_blank(self) -> bool:
        """Goes to the next line that is not blank; whether there is one."""
        while self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
        return self.at < len(self.lines)

    def count(self, field: str, what: str) -> int:
        digits = field.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            raise self.error(f"{what} must be a whole number, got {digits[:40]!r}")
        if int(digits) > MAX_ATOMS:
            raise self.error(f"{what} must be at most {MAX_ATOMS}, got {digits}")
        return int(digits)

    def atom(self, symbol: str, fields: list[str], numbers: list[int], positions: list[list[float]]) -> None:
        number = NUMBERS.get(symbol)
        if number is None:
            raise self.error(f"{symbol[:40]!r} is no element")
        point = []
        for field in fields:
            try:
                x = float(field)
            except ValueError:
                x = math.nan
            if not (math.isfinite(x) and "_" not in field):
                raise self.error(f"a coordinate must be a finite number, got {field.strip()[:40]!r}")
            point.append(x)
        numbers.append(number)
        positions.append(point)


def _xyz(lines: _Lines, numbers: list[list[int]], positions: list[list[list[float]]]) -> None:
    while lines.skip_blank():
        count = lines.count(lines.next("the number of atoms"), "the number of atoms")
        lines.next("the comment")
        numbers.append([])
        positions.append([])
        for _ in range(count):
            fields = lines.next("an atom").split()
            if len(fields) < 4:
                raise lines.error("an atom must be an element and three coordinates")
            symbol = fields[0].capitalize()
            if symbol.isascii() and symbol.isdigit() and 1 <= len(symbol) <= 3 and 1 <= int(symbol) < len(SYMBOLS):
                symbol = SYMBOLS[int(symbol)]
            lines.atom(symbol, fields[1:4], numbers[-1], positions[-1])


def _sdf(lines: _Lines, numbers: list[list[int]], positions: list[list[list[float]]]) -> None:
    while any(line.strip() for line in lines.lines[lines.at : lines.at + 4]) or lines.skip_blank():
        for what in ("the title", "the program line", "the comment"):
            if lines.next(what).startswith("$$$$"):
                raise lines.error(f"the record ends where {what} must be")
        head = lines.next("the counts line")
        if "V3000" in head:
            raise lines.error("V3000 is not read, only V2000")
        atoms, bonds = (lines.count(head[i : i + 3], what) for i, what in ((0, "the number of atoms"), (3, "of bonds")))
        numbers.append([])
        positions.append([])
        for _ in range(atoms):
            row = lines.next("an atom")
            lines.atom(row[31:34].strip(), [row[0:10], row[10:20], row[20:30]], numbers[-1], positions[-1])
        for _ in range(bonds):
            if lines.next("a bond").startswith(("M  END", "$$$$")):
                raise lines.error("the record ends where a bond must be")
        first = lines.at
        while lines.at < len(lines.lines) and not lines.lines[lines.at].startswith("$$$$"):
            lines.at += 1
        if not any(line.startswith("M  END") for line in lines.lines[first : lines.at]):
            raise lines.error("the record must have a line 'M  END'")
        lines.at = min(lines.at + 1, len(lines.lines))
