"""Kabsch RMSD by a singular value decomposition and MMD by whole matrices: what the kernels are tested against."""

from __future__ import annotations

import itertools

import numpy as np


def kabsch_rmsd(positions: np.ndarray, targets: np.ndarray) -> float:
    """The RMSD of one structure's atoms (n, 3) after the best translation and rotation."""
    if not len(positions):
        return 0.0
    a, b = positions - positions.mean(0), targets - targets.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    return float(np.sqrt(((a @ (u @ flip @ vt) - b) ** 2).sum() / len(a)))


def gaussian_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The MMD of two sets with five Gaussian kernels, from the matrix of all squared differences."""
    union = np.concatenate([x, y])
    squares = (union[:, None] - union[None]) ** 2
    bandwidth = squares.sum() / (len(union) ** 2 - len(union)) / 4
    if bandwidth == 0:
        return 0.0
    kernel = sum(np.exp(-squares / (bandwidth * 2**k)) for k in range(5))
    n = len(x)
    return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean())


def chains(bonds: list[list[int]], kind: int) -> list[tuple[int, ...]]:
    """Every chain of `kind` bonded atoms, once: by growing all chains of pairs, first end the lesser.

    In the kernel's order: bonds and dihedrals by their middle bond from its lesser atom, angles by their middle atom;
    among these, by the place of bonds in the list.
    """
    place = {pair: m for m, (i, j) in enumerate(bonds) for pair in ((i, j), (j, i))}
    found: list[tuple[int, ...]] = list(place)
    for _ in range(kind - 2):
        found = [(*chain, after) for chain in found for before, after in place if before == chain[-1]]

    def key(c: tuple[int, ...]) -> tuple[int, ...]:
        if kind == 2:
            return min(c), place[c[0], c[1]]
        if kind == 3:
            return (c[1], *sorted((place[c[0], c[1]], place[c[1], c[2]]), reverse=True))
        i, j, k, last = c if c[1] < c[2] else c[::-1]
        return j, place[j, k], place[i, j], place[k, last]

    return sorted((c for c in found if len(set(c)) == kind and c[0] < c[-1]), key=key)


def symbol(numbers: np.ndarray, orders: dict[frozenset[int], int], chain: tuple[int, ...]) -> int:
    """Elements and orders along a chain as a number, from the end that gives the lesser one."""
    ways = []
    for way in (chain, chain[::-1]):
        code = int(numbers[way[0]])
        for a, b in itertools.pairwise(way):
            code = (code * 8 + orders[frozenset((a, b))]) * 128 + int(numbers[b])
        ways.append(code)
    return min(ways)


def measure(positions: np.ndarray, chain: tuple[int, ...]) -> float:
    """Length, angle or dihedral in degrees, with arc cosines."""
    p = positions[list(chain)]
    if len(p) == 2:
        return float(np.linalg.norm(p[1] - p[0]))
    if len(p) == 3:
        u, v = p[0] - p[1], p[2] - p[1]
        return float(np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))))
    m, n = np.cross(p[1] - p[0], p[2] - p[1]), np.cross(p[2] - p[1], p[3] - p[2])
    angle = np.arccos(np.clip(m @ n / np.linalg.norm(m) / np.linalg.norm(n), -1, 1))
    return float(np.degrees(angle) * (1 if (p[1] - p[0]) @ n >= 0 else -1))
