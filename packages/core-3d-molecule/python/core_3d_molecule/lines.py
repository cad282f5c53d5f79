"""The lines of a text file of any origin: bounded, and every complaint names file and line."""

from __future__ import annotations

import math
from pathlib import Path

from .elements import NUMBERS, SYMBOLS

MAX_BYTES = 1 << 30
MAX_ATOMS = 100_000


class Lines:
    """The lines of a text with the number of the next one."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.lines, self.at = name, text.split("\n"), 0

    @classmethod
    def of(cls, path: Path) -> Lines:
        """The lines of a file. Raises ValueError for one over 1 GiB."""
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path} has {size} bytes, more than {MAX_BYTES}")
        return cls(str(path), path.read_text("utf-8", errors="replace"))

    def error(self, why: str, line: int | None = None) -> ValueError:
        """What is wrong, at the line read last or at another."""
        return ValueError(f"{self.name}, line {self.at if line is None else line}: {why}")

    def next(self, what: str) -> str:
        """The next line; `what` must stand there."""
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
        """A whole number of at most 100,000."""
        digits = field.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            raise self.error(f"{what} must be a whole number, got {digits[:40]!r}")
        if int(digits) > MAX_ATOMS:
            raise self.error(f"{what} must be at most {MAX_ATOMS}, got {digits}")
        return int(digits)

    def number(self, field: str, what: str, line: int | None = None) -> float:
        """A finite number."""
        try:
            x = float(field)
        except ValueError:
            x = math.nan
        if not (math.isfinite(x) and "_" not in field):
            raise self.error(f"{what} must be a finite number, got {field.strip()[:40]!r}", line)
        return x

    def element(self, symbol: str, line: int | None = None) -> int:
        """An atomic number from a symbol or a number."""
        if symbol.isascii() and symbol.isdigit() and 1 <= len(symbol) <= 3 and 1 <= int(symbol) < len(SYMBOLS):
            return int(symbol)
        number = NUMBERS.get(symbol.capitalize())
        if number is None:
            raise self.error(f"{symbol[:40]!r} is no element", line)
        return number
