"""Neighbours, patterns and matching of crystals again, by plain loops over images, reflections and lattices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

CARBON = ((0.731, 36.995), (1.195, 11.297), (0.456, 2.814), (0.125, 0.346))
OXYGEN = ((0.455, 23.780), (0.917, 7.622), (0.472, 2.144), (0.138, 0.296))
FACTORS = {6: CARBON, 8: OXYGEN}


def images(lattice: np.ndarray, radius: float) -> Iterator[tuple[int, int, int]]:
    """All shifts whose cells come within `radius` of the cell at the origin; the last index is the slowest."""
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    most = [math.ceil(radius / h) + 2 for h in heights]
    for c, b, a in itertools.product(*(range(-m, m + 1) for m in reversed(most))):
        yield a, b, c


def neighbors(f: np.ndarray, lattice: np.ndarray, cutoff: float) -> list[tuple[int, int, tuple[int, int, int], float]]:
    """(i, j, shift, distance) of all pairs within the cutoff."""
    shifts = list(images(lattice, cutoff + float(np.abs(f).max(initial=0)) * np.linalg.norm(lattice, axis=1).sum()))
    found = []
    for i, j in itertools.product(range(len(f)), repeat=2):
        distances = np.linalg.norm((f[j] - f[i] + np.array(shifts)) @ lattice, axis=1)
        for shift, d in zip(shifts, distances, strict=True):
            if d <= cutoff + 1e-8 and (i != j or any(shift)):
                found.append((i, j, shift, float(d)))
    return found


def least_distance(f: np.ndarray, lattice: np.ndarray) -> float:
    """Between two different atoms, infinite below two."""
    near = [float(np.linalg.norm((f[j] - f[i]) % 1 @ lattice)) for i, j in itertools.combinations(range(len(f)), 2)]
    if not near:
        return math.inf
    return min(d for i, j, _, d in neighbors(f % 1, lattice, min(near)) if i != j)


def pattern(
    z: np.ndarray, f: np.ndarray, lattice: np.ndarray, wavelength: float, low: float, high: float
) -> tuple[list[float], list[float], int]:
    """Angles and intensities of the peaks (carbon and oxygen only), and half the number of reflections in range."""
    bottom, top = (2 * math.sin(math.radians(t / 2)) / wavelength for t in (low, high))
    reciprocal = np.linalg.inv(lattice).T
    bins: dict[int, list[float]] = {}
    count = 0
    for h in images(reciprocal, top):
        g = float(np.linalg.norm(np.array(h) @ reciprocal))
        if not (any(h) and bottom <= g <= top):
            continue
        count += 1
        s2 = g * g / 4
        total = 0j
        for number, x in zip(z.tolist(), f, strict=True):
            factor = number - 41.78214 * s2 * sum(a * math.exp(-b * s2) for a, b in FACTORS[number])
            total += factor * np.exp(2j * math.pi * float(np.dot(h, x)))
        theta = math.asin(g * wavelength / 2)
        lorentz = (1 + math.cos(2 * theta) ** 2) / (math.sin(theta) ** 2 * math.cos(theta))
        angle = math.degrees(2 * theta)
        peak = bins.setdefault(round(angle / 1e-5), [angle, 0.0])
        peak[1] += abs(total) ** 2 * lorentz
    most = max((p[1] for p in bins.values()), default=0.0) or 1.0
    kept = [(t, 100 * i / most) for t, i in (bins[k] for k in sorted(bins)) if 100 * i / most > 1e-3]
    return [t for t, _ in kept], [i for _, i in kept], count // 2


def _parameters(lattice: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = [lattice[i] @ lattice[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return np.concatenate([lengths, np.degrees(np.arccos(cosines))])


def _lattice(p: np.ndarray) -> np.ndarray:
    ca, cb, cg = np.cos(np.radians(p[3:]))
    metric = np.outer(p[:3], p[:3]) * np.array([[1, cg, cb], [cg, 1, ca], [cb, ca, 1]])
    found: np.ndarray = np.linalg.cholesky(metric)
    return found


def _cheapest(cost: np.ndarray) -> tuple[float, list[int]]:
    """The assignment of least cost by trying all."""
    n = len(cost)
    return min((sum(cost[i, p[i]] for i in range(n)), list(p)) for p in itertools.permutations(range(n)))


def match(
    z1: np.ndarray, f1: np.ndarray, l1: np.ndarray, z2: np.ndarray, f2: np.ndarray, l2: np.ndarray,
    ltol: float, stol: float, angle_tol: float,
) -> tuple[float, float]:  # fmt: skip
    """RMS and greatest distance of two small primitive crystals in Niggli cells, scaled to one volume; else NaN."""
    none = (math.nan, math.nan)
    n = len(z1)
    if n == 0 or sorted(z1) != sorted(z2):
        return none
    ratio = (np.linalg.det(l2) / np.linalg.det(l1)) ** (1 / 6)
    l1, l2 = l1 * ratio, l2 / ratio
    want = _parameters(l2)
    anchor = min(range(n), key=lambda i: (list(z2).count(z2[i]), i))
    best = (math.inf, math.inf)
    rows = [np.array(v) for v in itertools.product(range(-3, 4), repeat=3) if any(v)]
    near = [
        [v for v in rows if 1 / (1 + ltol) < np.linalg.norm(v @ l1) / want[k] < 1 + ltol] for k in range(3)
    ]  # fmt: skip
    for basis in itertools.product(*near):
        scale = np.array(basis)
        if abs(round(np.linalg.det(scale))) != 1:
            continue
        have = _parameters(scale @ l1)
        if (np.abs(have[3:] - want[3:]) > angle_tol).any():
            continue
        mean = _lattice((have + want) / 2)
        unit = (n / np.linalg.det(mean)) ** (1 / 3)
        tolerance = 2 * stol / unit * np.linalg.norm(np.linalg.inv(mean), axis=0)
        g1 = f1 @ np.linalg.inv(scale)
        for start in np.flatnonzero(z1 == z2[anchor]):
            g2 = f2 + g1[start] - f2[anchor]
            d = g1[None] - g2[:, None]
            d -= np.round(d)
            allowed = (np.abs(d) <= tolerance).all(-1) & (z2[:, None] == z1[None])
            if not allowed.any(1).all():
                continue
            shifted = d[..., None, :] + np.array(list(itertools.product((-1, 0, 1), repeat=3)))
            vectors = shifted @ mean
            squares = (vectors**2).sum(-1)
            pick = squares.argmin(-1)
            cost = np.where(allowed, squares.min(-1), 1e20)
            total, partner = _cheapest(cost)
            if total >= 1e20:
                continue
            chosen = np.array([vectors[i, j, pick[i, j]] for i, j in enumerate(partner)])
            rest = np.linalg.norm(chosen - chosen.mean(0), axis=1) * unit
            rms = float(np.sqrt((rest**2).mean()))
            best = min(best, (rms, float(rest.max())))
    return best if best[0] < stol else none
