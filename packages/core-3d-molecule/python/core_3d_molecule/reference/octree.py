"""The octree tokeniser again, by recursion over dictionaries instead of a sort: what the kernels are tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CLS, MASK, TREE = 342, 344, 346
AUGMENT, DROP, CROP = 1, 2, 3


class Random:
    """SplitMix64 with a state from a seed, a purpose and a row."""

    ALL = 2**64 - 1
    GOLDEN = 0x9E3779B97F4A7C15

    def __init__(self, seed: int, purpose: int, row: int) -> None:
        self.state = self._mix(self._mix(seed + self.GOLDEN * purpose) + self.GOLDEN * row)

    def _mix(self, z: int) -> int:
        z &= self.ALL
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & self.ALL
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & self.ALL
        return z ^ z >> 31

    def uniform(self) -> float:
        """In [0, 1)."""
        self.state = (self.state + self.GOLDEN) & self.ALL
        return (self._mix(self.state) >> 11) / 2**53

    def below(self, n: int) -> int:
        """In 0..n - 1."""
        return int(self.uniform() * n)

    def normal(self) -> float:
        """Standard normal, by Box and Muller."""
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())


def place(
    positions: Sequence[Sequence[float]],
    depth: int,
    cell: float,
    resolution: float,
    middle: Sequence[float] | None = None,
    crop: Random | None = None,
) -> tuple[list[Any], list[Any], list[float]]:
    """Cells and bins of the atoms of one structure, and its origin; cells outside the cube are cut off."""
    n, per_cell, side = len(positions), round(cell / resolution), 2**depth
    cells: list[list[int]] = [[0, 0, 0] for _ in positions]
    bins: list[list[int]] = [[0, 0, 0] for _ in positions]
    origin = [0.0, 0.0, 0.0]
    kept = crop.below(n) if crop and n else 0
    for axis in range(3 if n else 0):
        total = 0.0
        for p in positions:
            total += float(p[axis])
        shift = 0.5 * cell - (total / n if middle is None else middle[axis])
        for i, p in enumerate(positions):
            x = float(p[axis]) + shift
            cells[i][axis] = math.floor(x / cell)
            bins[i][axis] = max(round((x - math.floor(x / cell) * cell) / resolution), 0)
            if bins[i][axis] >= per_cell:
                bins[i][axis] = 0
                cells[i][axis] += 1
        least = min(c[axis] for c in cells)
        most = max(c[axis] for c in cells)
        move = side // 2
        if middle is None:
            move -= sum(c[axis] - least for c in cells) // n + least
        if most - least >= side:
            if not crop:
                raise ValueError("the structure does not fit into the cube")
            move = -min(max(cells[kept][axis] - crop.below(side), least), most - side + 1)
        elif least + move < 0:
            move = -least
        elif most + move >= side:
            move = side - 1 - most
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
    *,
    crop: bool = False,
    seed: int = 0,
    row: int = 0,
    middle: Sequence[float] | None = None,
    drop: float = 0.0,
) -> dict[str, list[Any]]:
    """The tokens of one structure: lists of tokens, levels, centres, bins, counts and atoms (rows), and the origin."""
    cells, bins, origin = place(positions, depth, cell, resolution, middle, Random(seed, CROP, row) if crop else None)
    atoms: dict[tuple[int, ...], int] = {}
    for i, c in enumerate(cells):
        if not all(0 <= x < 2**depth for x in c):
            continue
        if tuple(c) in atoms and not keep_first:
            raise ValueError("two atoms in one cell")
        atoms.setdefault(tuple(c), i)
    occupied = [dict.fromkeys(atoms, 1)]
    for _ in range(depth):
        above: dict[tuple[int, ...], int] = {}
        for (x, y, z), count in occupied[-1].items():
            above[x // 2, y // 2, z // 2] = above.get((x // 2, y // 2, z // 2), 0) + count
        occupied.append(above)
    middle_bin = [round(cell / resolution) // 2] * 3
    out: dict[str, list[Any]] = {k: [] for k in ("tokens", "levels", "centres", "bins", "counts", "atoms")}

    def put(token: int, level: int, centre: list[float], where: list[int], count: int, atom: int) -> None:
        for name, value in zip(out, (token, level, centre, where, count, atom), strict=True):
            out[name].append(value)

    draws = Random(seed, DROP, row)
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
            if level == 1 and drop > 0 and draws.uniform() < drop:
                continue
            put(TREE + byte, level, [(c + 0.5) * 2**level * cell for c in node], middle_bin, occupied[level][node], -1)
        layer = below  # type: ignore[assignment]
    for at in layer:
        i = atoms[at]
        put(int(numbers[i]) - 1, 0, [(c + 0.5) * cell for c in at], bins[i], 1, i)
    put(CLS, -1, [0.5 * 2**depth * cell] * 3, middle_bin, 0, -1)
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
    counts: np.ndarray,
    offsets: np.ndarray,
    conditions: np.ndarray,
    trees: int,
    depth: int,
    cell: float,
    resolution: float,
) -> dict[str, np.ndarray]:
    """Every array of a packed batch, row by row."""
    null, middle = round(cell / resolution) // 2, 0.5 * 2**depth * cell
    rows: list[tuple[Any, ...]] = []
    ends = [0]
    for b, before in enumerate(conditions):
        rows += [
            (token, -1, [middle] * 3, [null] * 3, 2, token - 603 if 603 <= token <= 731 else -1, [0, 0])
            for token in before.tolist()
        ]
        for r in range(trees):
            stream = range(offsets[b * trees + r], offsets[b * trees + r + 1])
            for t in stream:
                later = [s for s in stream if s >= t and levels[s] == levels[t]]
                left = [0, 0] if levels[t] < 0 else [int(counts[later].sum()), len(later)]
                fine = centres[t].astype(float)
                if levels[t] == 0:
                    fine = fine - cell / 2 + bins[t] * resolution
                tree = trees - 1 - r
                rows.append((MASK, levels[t], centres[t], [null] * 3, tree, -1, left))
                rows.append((tokens[t], levels[t], fine, bins[t], tree, counts[t], left))
        ends.append(len(rows))
    names = ("packed_tokens", "packed_levels", "positions", "packed_bins", "packed_trees", "packed_counts", "remaining")
    wide = {"positions": 3, "packed_bins": 3, "remaining": 2}
    out = {
        name: np.array([row[k] for row in rows], np.float32 if name == "positions" else np.int32).reshape(
            (-1, wide[name]) if name in wide else (-1,)
        )
        for k, name in enumerate(names)
    }
    return {**out, "cu_seqlens": np.array(ends, np.int32)}


def augment(
    positions: np.ndarray, anchors: int, how: Sequence[float], seed: int, row: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Turned positions, middle and drop of one structure; how: rotate, noise, step, steps, drop."""
    rotate, noise, step, steps, drop = how
    random = Random(seed, AUGMENT, row)
    mean = positions[: anchors or None].mean(0) if len(positions) else np.zeros(3)
    turn = np.eye(3)
    if random.uniform() < rotate:
        w, *v = (random.normal() for _ in range(4))
        x = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])  # Rodrigues, with the quaternion's length
        turn = turn + 2 * (w * x + x @ x) / (w * w + float(np.dot(v, v)))
    middle = np.empty(3)
    for axis in range(3):
        shift = noise * random.normal()
        middle[axis] = mean[axis] - shift - step * (random.below(2 * int(steps) + 1) - steps)
    return (positions - mean) @ turn.T + mean, middle, drop * random.uniform()
