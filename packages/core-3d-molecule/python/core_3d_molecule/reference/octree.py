"""The octree tokeniser again, by recursion over dictionaries instead of a sort: what the kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CLS, MASK, TREE = 342, 344, 346


def place(
    positions: Sequence[Sequence[float]], depth: int, cell: float, resolution: float
) -> tuple[list[Any], list[Any], list[float]]:
    """Cells and bins of the atoms of one structure, and its origin."""
    n, per_cell = len(positions), round(cell / resolution)
    cells: list[list[int]] = [[0, 0, 0] for _ in positions]
    bins: list[list[int]] = [[0, 0, 0] for _ in positions]
    origin = [0.0, 0.0, 0.0]
    for axis in range(3 if n else 0):
        total = 0.0
        for p in positions:
            total += float(p[axis])
        shift = 0.5 * cell - total / n
        for i, p in enumerate(positions):
            x = float(p[axis]) + shift
            cells[i][axis] = math.floor(x / cell)
            bins[i][axis] = max(round((x - math.floor(x / cell) * cell) / resolution), 0)
            if bins[i][axis] >= per_cell:
                bins[i][axis] = 0
                cells[i][axis] += 1
        least = min(c[axis] for c in cells)
        move = 2 ** (depth - 1) - sum(c[axis] - least for c in cells) // n - least
        most = max(c[axis] for c in cells)
        if most - least >= 2**depth:
            raise ValueError("the structure does not fit into the cube")
        if least + move < 0:
            move = -least
        if most + move >= 2**depth:
            move = 2**depth - 1 - most
        for c in cells:
            c[axis] += move
        origin[axis] = -shift - move * cell
    return cells, bins, origin


def tokenize(
    numbers: Sequence[int],
    positions: Sequence[Sequence[float]],
    depth: int,
    cell: float,
    resolution: float,
    keep_first: bool = False,
) -> dict[str, list[Any]]:
    """The tokens of one structure: lists of tokens, levels, centres, bins and atoms (rows), and the origin."""
    cells, bins, origin = place(positions, depth, cell, resolution)
    atoms: dict[tuple[int, ...], int] = {}
    for i, c in enumerate(cells):
        if tuple(c) in atoms and not keep_first:
            raise ValueError("two atoms in one cell")
        atoms.setdefault(tuple(c), i)
    occupied = [set(atoms)]
    for _ in range(depth):
        occupied.append({(x // 2, y // 2, z // 2) for x, y, z in occupied[-1]})
    middle = [round(cell / resolution) // 2] * 3
    out: dict[str, list[Any]] = {k: [] for k in ("tokens", "levels", "centres", "bins", "atoms")}

    def put(token: int, level: int, centre: list[float], where: list[int], atom: int) -> None:
        for name, value in zip(out, (token, level, centre, where, atom), strict=True):
            out[name].append(value)

    layer = [(0, 0, 0)] if atoms else []
    for level in range(depth, 0, -1):
        below = []
        for node in layer:
            byte = 0
            for child in range(8):
                at = tuple(2 * node[axis] + (child >> axis & 1) for axis in range(3))
                if at in occupied[level - 1]:
                    byte |= 1 << child
                    below.append(at)
            put(TREE + byte, level, [(c + 0.5) * 2**level * cell for c in node], middle, -1)
        layer = below  # type: ignore[assignment]
    for at in layer:
        i = atoms[at]
        put(int(numbers[i]) - 1, 0, [(c + 0.5) * cell for c in at], bins[i], i)
    put(CLS, -1, [0.5 * 2**depth * cell] * 3, middle, -1)
    out["origin"] = origin
    return out


def detokenize(
    tokens: Sequence[int], bins: Sequence[Sequence[int]], depth: int, cell: float, resolution: float
) -> tuple[list[int], list[Any]]:
    """Atomic numbers and positions in the cube's frame of one structure's stream."""
    stream = list(zip(tokens, bins, strict=True))
    layer = [(0, 0, 0)] if stream[0][0] != CLS else []
    for _ in range(depth):
        below = []
        for node in layer:
            byte = stream.pop(0)[0] - TREE
            below += [
                tuple(2 * node[a] + (child >> a & 1) for a in range(3)) for child in range(8) if byte >> child & 1
            ]
        layer = below  # type: ignore[assignment]
    atoms = [stream.pop(0) for _ in layer]
    numbers = [token + 1 for token, _ in atoms]
    return numbers, [
        [c * cell + b * resolution for c, b in zip(at, where, strict=True)]
        for at, (_, where) in zip(layer, atoms, strict=True)
    ]


def pack(
    tokens: np.ndarray,
    levels: np.ndarray,
    centres: np.ndarray,
    bins: np.ndarray,
    offsets: np.ndarray,
    cell: float,
    resolution: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (T, 2), levels (T, 2), positions (T, 2, 3) and cu_seqlens (B + 1,) of a batch with its [MASK] copies."""
    fine = centres.astype(np.float64) - cell / 2 + bins * resolution
    exact = np.where((levels == 0)[:, None], fine, centres)
    return (
        np.stack([np.full_like(tokens, MASK), tokens], 1),
        np.stack([levels, levels], 1),
        np.stack([centres, exact.astype(np.float32)], 1),
        (2 * offsets).astype(np.int32),
    )
