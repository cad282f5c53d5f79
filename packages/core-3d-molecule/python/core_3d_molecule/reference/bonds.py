"""EDM's bonds and valences again, by dictionaries and loops: what the kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence

SYMBOLS = {1: "H", 5: "B", 6: "C", 7: "N", 8: "O", 9: "F", 14: "Si", 15: "P", 16: "S", 17: "Cl", 33: "As", 35: "Br",
           53: "I"}  # fmt: skip
SINGLE = """
H-H 74 H-B 119 H-C 109 H-N 101 H-O 96 H-F 92 H-Si 148 H-P 144 H-S 134 H-Cl 127 H-As 152 H-Br 141 H-I 161 B-Cl 175
C-C 154 C-N 147 C-O 143 C-F 135 C-Si 185 C-P 184 C-S 182 C-Cl 177 C-Br 194 C-I 214
N-N 145 N-O 140 N-F 136 N-P 177 N-S 168 N-Cl 175 N-Br 214 N-I 222
O-O 148 O-F 142 O-Si 163 O-P 163 O-S 151 O-Cl 164 O-Br 172 O-I 194
F-F 142 F-Si 160 F-P 156 F-S 158 F-Cl 166 F-Br 178 F-I 187
Si-Si 233 Si-S 200 Si-Cl 202 Si-Br 215 Si-I 243 P-P 221 P-S 210 P-Cl 203 P-Br 222
S-S 204 S-Cl 207 S-Br 225 S-I 234 Cl-Cl 199 Cl-Br 214 Br-Br 228 I-I 266
"""
DOUBLE = "C-C 134 C-N 129 C-O 120 C-S 160 N-N 125 N-O 121 O-O 121 O-P 150 P-S 186"
TRIPLE = "C-C 120 C-N 116 C-O 113 N-N 110"


def _table(lengths: str) -> dict[frozenset[str], float]:
    words = lengths.split()
    return {frozenset(pair.split("-")): float(pm) for pair, pm in zip(words[::2], words[1::2], strict=True)}


TABLES = [(_table(SINGLE), 10), (_table(DOUBLE), 5), (_table(TRIPLE), 3)]


def order(first: int, second: int, angstroms: float) -> int:
    """The order 0..3 of the bond between two elements at a distance."""
    pair = frozenset((SYMBOLS.get(first, "?"), SYMBOLS.get(second, "?")))
    for found, (table, margin) in enumerate(TABLES):
        if pair not in table or not 100 * angstroms < table[pair] + margin:
            return found
    return 3


def bonds(numbers: Sequence[int], positions: Sequence[Sequence[float]]) -> list[tuple[int, int, int]]:
    """The bonds (i, j, order) of one molecule, i < j."""
    found = []
    for i, p in enumerate(positions):
        for j in range(i + 1, len(positions)):
            square = sum((float(a) - float(b)) ** 2 for a, b in zip(p, positions[j], strict=True))
            if n := order(int(numbers[i]), int(numbers[j]), math.sqrt(square)):
                found.append((i, j, n))
    return found
