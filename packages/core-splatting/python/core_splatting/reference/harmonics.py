"""Spherical harmonics by the recursion of the associated Legendre functions, float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def basis(directions: Array, degree: int) -> Array:
    """(N, (degree + 1)^2) real harmonics, m from -l to l for each l, with the Condon-Shortley phase (-1)^m."""
    x, y, z = (directions / np.linalg.norm(directions, axis=-1, keepdims=True)).T
    phi, sine = np.arctan2(y, x), np.sqrt(np.clip(1 - z * z, 0, None))
    legendre: dict[tuple[int, int], Array] = {}
    for m in range(degree + 1):
        legendre[m, m] = np.prod([-(2 * i - 1) * sine for i in range(1, m + 1)], axis=0) * np.ones_like(z)
        for level in range(m + 1, degree + 1):
            two = legendre.get((level - 2, m), np.zeros_like(z))
            legendre[level, m] = ((2 * level - 1) * z * legendre[level - 1, m] - (level + m - 1) * two) / (level - m)
    columns = []
    for level in range(degree + 1):
        for m in range(-level, level + 1):
            a = abs(m)
            norm = math.sqrt((2 * level + 1) / (4 * math.pi) * math.factorial(level - a) / math.factorial(level + a))
            turn = 1.0 if m == 0 else math.sqrt(2) * (np.cos(a * phi) if m > 0 else np.sin(a * phi))
            columns.append(norm * turn * legendre[level, a])
    return np.stack(columns, -1)


def spherical_harmonics(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's output in float64."""
    dirs, coeffs = args["dirs"].astype(np.float64), args["coeffs"].astype(np.float64)
    cameras, count, channels = args["out"].shape
    out = np.zeros((cameras, count, channels))
    number = (args["degree"] + 1) ** 2
    for c in range(cameras):
        seen = dirs
        if args["viewmats"] is not None:
            seen = dirs - np.linalg.inv(args["viewmats"][c].astype(np.float64))[:3, 3]
        y, own = basis(seen, args["degree"]), coeffs[0 if len(coeffs) == 1 else c]
        for i in range(args["time_degree"] + 1):
            turn = np.cos(2 * np.pi * i * args["phases"].astype(np.float64)) if i else np.ones(count)
            out[c] += turn[:, None] * np.einsum("nk,nkd->nd", y, own[:, 16 * i : 16 * i + number])
        if args["as_color"]:
            out[c] = np.maximum(out[c] + 0.5, 0)
        if args["masks"] is not None:
            out[c][~args["masks"][c]] = 0
    return {"out": out}


def spherical_harmonics_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The gradient by central differences of the reference, one input at a time."""
    forward = {k: v for k, v in args.items() if not k.startswith("v_")} | {"out": args["v_out"]}

    def loss(changed: dict[str, Array]) -> Array:
        value: Array = (spherical_harmonics(forward | changed)["out"] * args["v_out"]).sum(-1)
        return value

    out = {k: np.zeros(args[k].shape) for k in args if k.startswith("v_") and k != "v_out"}
    step = 1e-5

    def slope(name: str, index: tuple[Any, ...]) -> Array:
        """(C, N) derivatives by the elements of `index`, all Gaussians moved at once."""
        values = []
        for sign in (1, -1):
            moved = args[name].astype(np.float64)
            moved[index] += sign * step
            values.append(loss({name: moved}))
        difference: Array = (values[0] - values[1]) / (2 * step)
        return difference

    for k in range(3):
        out["v_dirs"][:, k] = slope("dirs", (slice(None), k)).sum(0)
    sets, _, basis_size, channels = args["coeffs"].shape
    for k in range(basis_size):
        for d in range(channels):
            change = slope("coeffs", (slice(None), slice(None), k, d))
            out["v_coeffs"][:, :, k, d] = change.sum(0, keepdims=True) if sets == 1 else change
    if args["phases"] is not None:
        out["v_phases"][:] = slope("phases", (slice(None),)).sum(0)
    if args["viewmats"] is not None:
        for i in range(3):
            for k in range(4):
                out["v_viewmats"][:, i, k] = slope("viewmats", (slice(None), i, k)).sum(-1)
    return out
