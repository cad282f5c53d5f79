"""The rows of the case table that are about crystals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import _core_3d_molecule as _C
from .octree import _offsets
from .reference import crystals as reference

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
cases = [
    _row("niggli_reduce", _niggli, _reduced, {"reduced": FINE, "transforms": (0, 0)}, None, 20),
    _row("neighbor_count", _count, reference_count, {"counts": (0, 0)}, 4, 10),
    _row("neighbor_list", _list, reference_list, LISTED, 4, 10),
    _row("crystal_distances", _distances, reference_distances, {"volumes": FINE, "min_distances": FINE}, 4, 10),
    _row("pxrd_count", _peaks, reference_peaks, {"counts": (0, 0)}, None, 10),
    _row("pxrd_patterns", _patterns, reference_patterns, PEAKS, 3, 10),
    _row("match_crystals", _pairs, reference_match, BOTH, 3, 10),
]
