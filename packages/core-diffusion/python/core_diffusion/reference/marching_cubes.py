"""Reference of marching cubes: cell by cell in plain Python, contours followed from face to face, float64."""

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int, int]
Edge = tuple[int, Corner]
"""The axis along which an edge runs, and the corner from which it starts."""


def _edge(a: Corner, b: Corner) -> Edge:
    return next(axis for axis in range(3) if a[axis] != b[axis]), min(a, b)


def _faces() -> list[list[Corner]]:
    """The corners of each face of the unit cell, counter-clockwise seen from outside."""
    faces = []
    for axis, side in itertools.product(range(3), range(2)):
        square = [(0, 0), (1, 0), (1, 1), (0, 1)] if side else [(0, 0), (0, 1), (1, 1), (1, 0)]
        faces.append([])
        for u, v in square:
            corner = [0, 0, 0]
            corner[axis], corner[(axis + 1) % 3], corner[(axis + 2) % 3] = side, u, v
            faces[-1].append((corner[0], corner[1], corner[2]))
    return faces


FACES = _faces()


@functools.cache
def triangles(inside: frozenset[Corner]) -> list[tuple[Edge, Edge, Edge]]:
    """The triangles of one cell, by the edges on which their vertices lie."""
    follow: dict[Edge, Edge] = {}
    on_face: dict[Edge, set[int]] = {}
    for number, face in enumerate(FACES):
        around = [(face[m], face[(m + 1) % 4]) for m in range(4)]
        for a, b in around:
            on_face.setdefault(_edge(a, b), set()).add(number)
        enter = [m for m in range(4) if around[m][0] not in inside and around[m][1] in inside]
        leave = [m for m in range(4) if around[m][0] in inside and around[m][1] not in inside]
        for m in enter:
            out = min(leave, key=lambda n: (n - m) % 4)
            follow[_edge(*around[m])] = _edge(*around[out])
    found = []
    while follow:
        loop = [min(follow)]
        while (after := follow.pop(loop[-1])) != loop[0]:
            loop.append(after)
        for start in range(len(loop)):
            apex, *rest = loop[start:] + loop[:start]
            if not any(on_face[apex] & on_face[other] for other in rest[1:-1]):
                break
        found += [(apex, a, b) for a, b in itertools.pairwise(rest)]
    return found


def marching_cubes(
    volume: NDArray[Any], level: float, origin: NDArray[Any], spacing: NDArray[Any], inward: bool
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices [V, 3] and faces [F, 3] in the order of nodes and cells, as the operator gives them."""
    volume = np.clip(np.asarray(volume, np.float64), -np.finfo(np.float32).max, np.finfo(np.float32).max)
    level = float(np.float32(level))
    corners = list(itertools.product(range(2), repeat=3))
    cells = []
    for cell in itertools.product(*(range(n - 1) for n in volume.shape)):
        values = [volume[tuple(np.add(cell, c))] for c in corners]
        inside = frozenset(c for c, v in zip(corners, values, strict=True) if v > level)
        if not np.isnan(values).any() and 0 < len(inside) < 8:
            cells += [[(axis, tuple(np.add(cell, c))) for axis, c in t] for t in triangles(inside)]
    edges = sorted({edge for t in cells for edge in t}, key=lambda e: (e[1], e[0]))
    number = {edge: n for n, edge in enumerate(edges)}
    vertices = np.zeros((len(edges), 3))
    for n, (axis, node) in enumerate(edges):
        step = np.eye(3, dtype=int)[axis]
        a, b = volume[node], volume[tuple(node + step)]
        vertices[n] = origin + spacing * (node + step * (level - a) / (b - a))
    faces = np.array([[number[e] for e in (t[::-1] if inward else t)] for t in cells], np.int32)
    return vertices, faces.reshape(-1, 3)
