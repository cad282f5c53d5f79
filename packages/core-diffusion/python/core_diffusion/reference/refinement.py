"""The levels of a hierarchical volume decoder, node by node: plain and slow."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

NODE_TILE, CELL_TILE = 4096, 1024
Args = dict[str, Any]
Shape = tuple[int, int, int]
CUBE = tuple(itertools.product(range(3), repeat=3))


def state_sizes(size: int) -> tuple[int, int, int, int]:
    """Columns of values, nodes, cells and tiles of a level of `size` nodes along an axis."""
    nodes, cells = (size // 2 * 2 + 1) ** 3, (size // 2) ** 3
    tiles = -(-nodes // NODE_TILE), -(-cells // CELL_TILE)
    return nodes, tiles[0] * NODE_TILE, tiles[1] * CELL_TILE, sum(tiles)


def active(coarse: NDArray[np.float32], level: float, near: float, dilation: int) -> set[Shape]:
    """The cells of the first front of one shape."""
    found = set()
    limit, close = np.float32(level), np.float32(near)
    cells = coarse.shape[0] - 1
    for cell in itertools.product(range(cells), repeat=3):
        values = coarse[tuple(slice(i, i + 2) for i in cell)]
        if np.isnan(values).any():
            continue
        above = values > limit
        if (above.any() and not above.all()) or (near > 0 and (np.abs(values - limit) <= close).any()):
            found.add(cell)
    steps = list(itertools.product(range(-dilation, dilation + 1), repeat=3))
    grown = {(x + i, y + j, z + k) for x, y, z in found for i, j, k in steps}
    return {c for c in grown if min(c) >= 0 and max(c) < cells}


def nodes_of(cell: Shape) -> list[Shape]:
    """A cell's 27 nodes."""
    x, y, z = cell
    return [(2 * x + i, 2 * y + j, 2 * z + k) for i, j, k in CUBE]


def mark(values: NDArray[np.float32], nodes: NDArray[np.uint8], front: set[Shape]) -> None:
    """Marks the nodes of the front's cells in nodes[S, S, S]: as asked if their value is unknown."""
    for cell in front:
        for node in nodes_of(cell):
            if nodes[node] == 0:
                nodes[node] = 2 if np.isnan(values[node]) else 1


def counts_of(nodes: NDArray[np.uint8], size: int, front: int) -> NDArray[np.int64]:
    """counts[B+1, 2] of nodes[B, S, S, S]."""
    volume = nodes[:, :size, :size, :size] > 0
    rows = [[int((n == 2).sum()), int(v.sum())] for n, v in zip(nodes, volume, strict=True)]
    return np.array([*rows, [front, 0]], np.int64)


def cube(x: NDArray[Any], side: int) -> NDArray[Any]:
    """[B, side, side, side] of rows with at least so many elements: a copy."""
    return x[:, : side**3].reshape(len(x), side, side, side).copy()


def followed(values: NDArray[np.float32], cells: NDArray[np.uint8], level: float, step: int) -> set[Shape]:
    """The front of one shape after round `step`, whose front is marked in cells[C, C, C]; values[S, S, S]."""
    across = len(cells)
    there = lambda cell: min(cell) >= 0 and max(cell) < across  # noqa: E731
    found: set[Shape] = set()
    for x, y, z in zip(*np.nonzero(cells == 2 + step % 2), strict=True):
        for axis, forward in itertools.product(range(3), (False, True)):
            near = [int(x), int(y), int(z)]
            near[axis] += 1 if forward else -1
            side = [n for n, i in zip(nodes_of((x, y, z)), CUBE, strict=True) if i[axis] == 2 * forward]
            above = sum(values[n] > np.float32(level) for n in side)
            if there(near) and not cells[tuple(near)] and 0 < above < 9:
                steps = itertools.product(range(-1, 2), repeat=3) if step else [(0, 0, 0)]
                found |= {(near[0] + i, near[1] + j, near[2] + k) for i, j, k in steps}
    return {c for c in found if there(c) and not cells[c]}


def points_of(index: NDArray[np.int64], side: int, last: int, low: Any, spacing: Any) -> NDArray[np.float32]:
    """Where nodes lie, no axis beyond node `last`; those with a negative number at node 0."""
    at = np.stack(np.unravel_index(np.maximum(index, 0), (side,) * 3), -1)
    return (low + np.minimum(at, last) * spacing).astype(np.float32)
