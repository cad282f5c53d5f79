"""The rows of the case table that are about crystals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import _core_3d_molecule as _C
from .reference import crystals as reference
from .reference.octree import Random
from .structures import offsets_of as _offsets

Args = dict[str, Any]
CUTOFF = 4.0
XRD = {"wavelength": 1.54184, "low": 5.0, "high": 60.0}
TOLERANCES = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0, "primitive_cell": True, "scale": True}


def _crystals(rng: np.random.Generator, B: int, N: int) -> Args:
    """Triclinic cells of 1 to N atoms, one of them of an element of its own."""
    counts = rng.integers(min(N, 1), N + 1, B) if N else np.zeros(B, np.int64)
    lattices = np.eye(3) * rng.uniform(3, 5, (B, 3, 1)) + rng.uniform(-1, 1, (B, 3, 3))
    offsets = _offsets(counts)
    numbers = np.full(offsets[-1], 6, np.int32)
    numbers[offsets[:-1][counts > 0]] = 8
    return {
        "numbers": numbers,
        "fractional": rng.uniform(-1, 2, (len(numbers), 3)),
        "lattices": lattices,
        "offsets": offsets,
    }


def _niggli(rng: np.random.Generator, B: int) -> Args:
    skew = np.tril(rng.integers(-3, 4, (B, 3, 3)), -1) + np.eye(3)
    lattices = skew @ _crystals(rng, B, 1)["lattices"]
    return {
        "lattices": lattices,
        "reduced": np.empty(lattices.shape),
        "transforms": np.empty(lattices.shape, np.int64),
    }


def _reduced(a: Args) -> Args:
    """From the least of all bases with small entries: their sum of squares of lengths, then angles all below or not."""
    rows = [np.array(v) for v in itertools.product(range(-1, 2), repeat=3) if any(v)]
    found = {"reduced": np.empty(a["lattices"].shape), "transforms": np.empty(a["lattices"].shape, np.int64)}
    for b, given in enumerate(a["lattices"]):
        start = np.eye(3, dtype=np.int64)
        for _ in range(30):  # shorten each vector by small combinations of all until nothing changes
            before = start.copy()
            for k in range(3):
                options = [r @ start for r in rows if abs(r[k]) == 1]
                start[k] = min([start[k], *options], key=lambda v: round(float((v @ given) @ (v @ given)), 9))
            if (before == start).all():
                break
        short = start[np.argsort([float((v @ given) @ (v @ given)) for v in start], kind="stable")]
        signs = [np.diag(s) @ short for s in itertools.product((1, -1), repeat=3)]
        right = [s for s in signs if np.linalg.det(s @ given) > 0]
        products = [np.array([(s[i] @ given) @ (s[j] @ given) for i, j in ((1, 2), (0, 2), (0, 1))]) for s in right]
        sharp = [s for s, p in zip(right, products, strict=True) if (p > 0).all()]
        found["transforms"][b] = (sharp or [s for s, p in zip(right, products, strict=True) if (p <= 0).all()])[0]
        found["reduced"][b] = found["transforms"][b] @ given
    return found


def _count(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _crystals(rng, B, N)
    counts = np.empty(len(a.pop("numbers")), np.int64)
    return {**a, "cutoff": CUTOFF, "counts": counts}


def _list(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _count(rng, B, N)
    _C.neighbor_count(*a.values())
    starts = _offsets(a.pop("counts"))
    total = int(starts[-1])
    return {
        **a, "neighbor_offsets": starts, "pairs": np.empty((total, 2), np.int64),
        "shifts": np.empty((total, 3), np.int32), "distances": np.empty(total),
    }  # fmt: skip


def _distances(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _crystals(rng, B, N)
    del a["numbers"]
    return {**a, "volumes": np.empty(B), "min_distances": np.empty(B)}


def _peaks(rng: np.random.Generator, B: int) -> Args:
    return {"lattices": _crystals(rng, B, 1)["lattices"], **XRD, "counts": np.empty(B, np.int64)}


def _patterns(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _crystals(rng, B, N)
    counts = np.empty(B, np.int64)
    _C.pxrd_count(a["lattices"], XRD["wavelength"], XRD["low"], XRD["high"], counts)
    room = _offsets(counts)
    total = int(room[-1])
    return {
        **a,
        "capacities": room,
        **XRD,
        "two_theta": np.empty(total),
        "intensity": np.empty(total),
        "counts": counts,
    }


def _pairs(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _crystals(rng, B, N)
    reduced, transforms = np.empty((B, 3, 3)), np.empty((B, 3, 3), np.int64)
    _C.niggli_reduce(a["lattices"], reduced, transforms)
    other = {
        **a, "fractional": a["fractional"] + rng.normal(0, 0.03, a["fractional"].shape),
        "lattices": reduced * rng.uniform(0.97, 1.03, (B, 3, 3)),
    }  # fmt: skip
    _C.niggli_reduce(other["lattices"].copy(), other["lattices"], transforms)
    a["lattices"] = reduced
    return {
        **{f"{k}1": v for k, v in a.items()}, **{f"{k}2": v for k, v in other.items()}, **TOLERANCES,
        "rms": np.empty(B), "max_distance": np.empty(B),
    }  # fmt: skip


def _each(a: Args) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (a["fractional"][i:j], m) for (i, j), m in zip(itertools.pairwise(a["offsets"]), a["lattices"], strict=True)
    ]


def reference_count(a: Args) -> Args:
    """The expected outputs of neighbor_count."""
    counts = [np.bincount([p[0] for p in reference.neighbors(*c, CUTOFF)], minlength=len(c[0])) for c in _each(a)]
    return {"counts": np.concatenate([np.empty(0, np.int64), *counts])}


def reference_list(a: Args) -> Args:
    """The expected outputs of neighbor_list."""
    rows = [(f + i, f + j, s, d) for f, c in zip(a["offsets"], _each(a), strict=False)
            for i, j, s, d in reference.neighbors(*c, CUTOFF)]  # fmt: skip
    return {
        "pairs": np.array([r[:2] for r in rows], np.int64).reshape(-1, 2),
        "shifts": np.array([r[2] for r in rows], np.int32).reshape(-1, 3),
        "distances": np.array([r[3] for r in rows]),
    }


def reference_distances(a: Args) -> Args:
    """The expected outputs of crystal_distances."""
    return {
        "volumes": np.abs(np.linalg.det(a["lattices"])).reshape(-1),
        "min_distances": np.array([reference.least_distance(*c) for c in _each(a)]),
    }


def reference_peaks(a: Args) -> Args:
    """The expected outputs of pxrd_count."""
    none = np.empty(0, np.int32), np.empty((0, 3))
    return {"counts": np.array([reference.pattern(*none, m, *XRD.values())[2] for m in a["lattices"]], np.int64)}


def reference_patterns(a: Args) -> Args:
    """The expected outputs of pxrd_patterns."""
    out: Args = {k: np.zeros(len(a[k])) for k in ("two_theta", "intensity")}
    out["counts"] = np.zeros(len(a["lattices"]), np.int64)
    for b, (f, m) in enumerate(_each(a)):
        z = a["numbers"][a["offsets"][b] : a["offsets"][b + 1]]
        angles, intensities, _ = reference.pattern(z, f, m, *XRD.values())
        first, out["counts"][b] = a["capacities"][b], len(angles)
        out["two_theta"][first : first + len(angles)] = angles
        out["intensity"][first : first + len(angles)] = intensities
    return out


def reference_match(a: Args) -> Args:
    """The expected outputs of match_crystals."""
    sides = [[(a[f"numbers{k}"][i:j], a[f"fractional{k}"][i:j], m)
              for (i, j), m in zip(itertools.pairwise(a[f"offsets{k}"]), a[f"lattices{k}"], strict=True)]
             for k in (1, 2)]  # fmt: skip
    tolerances = [a[k] for k in ("ltol", "stol", "angle_tol")]
    rows = [reference.match(*x, *y, *tolerances) for x, y in zip(*sides, strict=True)]
    table = np.array(rows, np.float64).reshape(-1, 2)
    return {"rms": table[:, 0], "max_distance": table[:, 1]}


def _bytes(a: Args) -> tuple[float, float]:
    return float(sum(v.nbytes for v in a.values() if isinstance(v, np.ndarray))), 0.0


def _row(op: str, make: Any, expected: Any, tolerance: Any, n: int | None, bench: int) -> Case:
    atoms = {} if n is None else {"N": n}
    return Case(
        op=f"core_3d_molecule.{op}", sizes={"tiny": {"B": 3, **atoms}, "bench": {"B": bench, **atoms}}, make=make,
        reference=expected, tolerance=tolerance, peer=("Python reference", lambda a: lambda: expected(a)), work=_bytes,
        vary={"B": (0, 3), **{k: (0, v) for k, v in atoms.items()}},
    )  # fmt: skip


FINE = (1e-9, 1e-9)
LISTED = {"pairs": (0, 0), "shifts": (0, 0), "distances": FINE}
PEAKS = {"two_theta": FINE, "intensity": (1e-8, 1e-7), "counts": (0, 0)}
BOTH = dict.fromkeys(("rms", "max_distance"), (1e-7, 1e-7))


def _corners(rng: np.random.Generator, B: int) -> Args:
    """Corners of cells in any order, a hundredth of an angstrom off; no angle within a degree of a right one."""
    cells = _crystals(rng, B, 1)["lattices"] * [[[1.0], [1.3], [1.7]]] + 0.6 * np.eye(3)[[1, 2, 0]]
    unit = np.array(list(itertools.product((0, 1), repeat=3)))
    points = unit @ cells + rng.normal(size=(B, 1, 3)) * 5
    points = np.stack([p[rng.permutation(8)] for p in points]) if B else points
    return {
        "corners": points + rng.uniform(-0.01, 0.01, points.shape),
        "lattices": np.empty((B, 3, 3)), "origins": np.empty((B, 3)), "errors": np.empty(B),
    }  # fmt: skip


def _from_corners(a: Args) -> Args:
    """By trying all orders of three neighbours of the first corner and every assignment with greedy matching."""
    out: Args = {"lattices": np.empty_like(a["lattices"]), "origins": np.empty_like(a["origins"]), "errors": []}
    unit = np.array(list(itertools.product((0, 1), repeat=3)))
    for b, points in enumerate(a["corners"]):
        best = np.inf, np.eye(3), unit
        for three in itertools.combinations(range(1, 8), 3):
            edges = points[list(three)] - points[0]
            away = np.linalg.norm((points - points[0])[:, None] - (unit @ edges)[None], axis=2)
            nearest = away.argmin(1)
            if abs(np.linalg.det(edges)) > 1e-6 and len(set(nearest)) == 8 and away.min(1).mean() < best[0]:
                best = away.min(1).mean(), edges, unit[nearest]
        fit = np.linalg.lstsq(np.column_stack([best[2], np.ones(8)]), points, rcond=None)[0]
        edges = fit[np.argsort(np.linalg.norm(fit[:3], axis=1))]
        options = [np.diag(s) @ edges for s in itertools.product((1, -1), repeat=3)]
        right = [m for m in options if np.linalg.det(m) > 0]
        cosines = [
            np.array([m[i] @ m[j] / np.linalg.norm(m[i]) / np.linalg.norm(m[j]) for i, j in ((1, 2), (0, 2), (0, 1))])
            for m in right
        ]
        blunt = [m for m, c in zip(right, cosines, strict=True) if (c <= 0.005).all()]
        sharp = [m for m, c in zip(right, cosines, strict=True) if (c > 0).all()]
        out["lattices"][b] = (blunt or sharp)[0]
        out["origins"][b] = points.mean(0) - out["lattices"][b].sum(0) / 2
        out["errors"].append(best[0])
    return {**out, "errors": np.array(out["errors"])}


def _profile(rng: np.random.Generator, B: int, N: int) -> Args:
    counts = rng.integers(0, 8, B)
    offsets = _offsets(counts)
    total = int(offsets[-1])
    return {
        "two_theta": rng.uniform(0, 130, total), "intensity": rng.uniform(0, 100, total), "offsets": offsets,
        "high": 120.0, "least": 5.0, "zeros": 6, "seed": int(rng.integers(2**62)),
        "profiles": np.empty((B, N), np.float32),
    }  # fmt: skip


def _interpolated(a: Args) -> Args:
    """numpy's interpolation between peaks and zeros."""
    out = np.zeros(a["profiles"].shape, np.float32)
    for b, (i, j) in enumerate(itertools.pairwise(a["offsets"])):
        x, y = a["two_theta"][i:j], a["intensity"][i:j]
        kept = (y > a["least"]) & (x < a["high"])
        knots = list(zip(x[kept], y[kept], strict=True))
        random = Random(a["seed"], 4, b)
        zeros: list[float] = []
        for _ in range(16 * a["zeros"]):
            if len(zeros) < a["zeros"]:
                angle = a["high"] * random.uniform()
                if not (np.abs(x[kept] - angle) < 0.2).any():
                    zeros.append(angle)
        knots = sorted([*knots, *((z, 0.0) for z in zeros)])
        if knots:
            grid = a["high"] * np.arange(out.shape[1]) / max(out.shape[1], 1)
            out[b] = np.interp(grid, *np.array(knots).T)
    return {"profiles": out}


cases = [
    Case(
        op="core_3d_molecule.lattice_from_corners",
        sizes={"tiny": {"B": 4}, "bench": {"B": 500}},
        make=_corners,
        reference=_from_corners,
        tolerance=dict.fromkeys(("lattices", "origins", "errors"), (1e-9, 1e-9)),
        peer=("numpy", lambda a: lambda: _from_corners(a)),
        vary={"B": (0, 6)},
    ),
    Case(
        op="core_3d_molecule.pxrd_profile",
        sizes={"tiny": {"B": 3, "N": 50}, "bench": {"B": 500, "N": 1200}},
        make=_profile,
        reference=_interpolated,
        tolerance={"profiles": (1e-5, 1e-4)},
        peer=("numpy", lambda a: lambda: _interpolated(a)),
        vary={"B": (0, 6), "N": (0, 40)},
    ),
    _row("niggli_reduce", _niggli, _reduced, {"reduced": FINE, "transforms": (0, 0)}, None, 20),
    _row("neighbor_count", _count, reference_count, {"counts": (0, 0)}, 4, 10),
    _row("neighbor_list", _list, reference_list, LISTED, 4, 10),
    _row("crystal_distances", _distances, reference_distances, {"volumes": FINE, "min_distances": FINE}, 4, 10),
    _row("pxrd_count", _peaks, reference_peaks, {"counts": (0, 0)}, None, 10),
    _row("pxrd_patterns", _patterns, reference_patterns, PEAKS, 3, 10),
    _row("match_crystals", _pairs, reference_match, BOTH, 3, 10),
]
