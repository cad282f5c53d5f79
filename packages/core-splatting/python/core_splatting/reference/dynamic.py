"""4D Gaussians in float64: the whole 4x4 covariance and its Schur complement; gradients by central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .harmonics import spherical_harmonics
from .rasterize import rasterize

Array = npt.NDArray[Any]


def rotations(quats_l: Array, quats_r: Array) -> Array:
    """(N, 4, 4), axes x, y, z, t: the left times the right isoclinic matrix, both axes reversed."""
    a, b, c, d = (quats_l / np.linalg.norm(quats_l, axis=-1, keepdims=True)).T
    p, q, u, v = (quats_r / np.linalg.norm(quats_r, axis=-1, keepdims=True)).T
    left = np.array([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])
    right = np.array([[p, q, u, v], [-q, p, -v, u], [-u, v, p, -q], [-v, -u, q, p]])
    product: Array = np.einsum("ijn,jkn->nik", left, right)[:, ::-1, ::-1]
    return product


def covariances(args: dict[str, Any]) -> Array:
    """(N, 4, 4)."""
    factor = rotations(*(args[k].astype(np.float64) for k in ("quats_l", "quats_r"))) * args["scales"][:, None]
    product: Array = factor @ factor.transpose(0, 2, 1)
    return product


def slice_4d(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs."""
    chosen = slice(None) if args["indices"] is None else args["indices"]
    whole, means = covariances(args)[chosen], args["means"].astype(np.float64)[chosen]
    variance, across = whole[:, 3, 3], whole[:, :3, 3]
    offset = args["time"] - means[:, 3]
    weights = np.exp(-(offset**2) / (2 * (variance + args["prefilter_var"])))
    kept = weights > args["min_weight"]
    covars = whole[:, :3, :3] - across[:, :, None] * across[:, None] / variance[:, None, None]
    out = {
        "out_means": means[:, :3] + across / variance[:, None] * offset[:, None],
        "out_covars": covars[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]],
        "out_opacities": weights * args["opacities"][chosen],
        "out_weights": weights,
    }
    return {k: np.where(kept.reshape(-1, *[1] * (v.ndim - 1)), v, 0) for k, v in out.items()}


def slice_4d_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The gradient, every Gaussian moved at once."""
    chosen = slice(None) if args["indices"] is None else args["indices"]
    forward = {k: v for k, v in args.items() if not k.startswith("v_")}

    def losses(changed: dict[str, Array]) -> Array:
        out = slice_4d(forward | changed)
        total = out["out_opacities"] * args["v_out_opacities"]
        for name in ("out_means", "out_covars"):
            total = total + (out[name] * args[f"v_{name}"]).sum(-1)
        result: Array = total
        return result

    gradients = {k: np.zeros(args[k].shape) for k in args if k.startswith("v_") and not k.startswith("v_out")}
    step = 1e-6
    for name in gradients:
        source = args[name[2:]].astype(np.float64)
        for k in range(source.shape[1] if source.ndim > 1 else 1):
            index = (slice(None), k) if source.ndim > 1 else (slice(None),)
            values = []
            for sign in (1, -1):
                moved = source.copy()
                moved[index] += sign * step
                values.append(losses({name[2:]: moved}))
            (gradients[name][index] if source.ndim > 1 else gradients[name])[chosen] = (values[0] - values[1]) / (
                2 * step
            )
    return gradients


def rasterize_4d(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs: the slices, their colours and their picture, one after the other."""
    sliced = slice_4d(args)
    colors = args["colors"]
    if colors is None:
        chosen = slice(None) if args["indices"] is None else args["indices"]
        cameras, count = len(args["viewmats"]), len(sliced["out_means"])
        with np.errstate(all="ignore"):
            phases = (args["means"][chosen, 3].astype(np.float64) - args["time"]) / args["duration"]
            colors = spherical_harmonics(
                {k: args[k] for k in ("degree", "time_degree", "viewmats")}
                | {"dirs": sliced["out_means"], "coeffs": args["coeffs"][chosen][None], "phases": phases}
                | {"masks": None, "as_color": True, "out": np.empty((cameras, count, args["coeffs"].shape[-1]))}
            )["out"]
    still = {"means": sliced["out_means"], "covars": sliced["out_covars"], "opacities": sliced["out_opacities"]}
    picture: dict[str, Array] = rasterize(args | still | {"quats": None, "colors": colors})
    return picture


def temporal_variation(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's output."""
    variance = covariances(args)[:, 3, 3][:, None]
    offset = args["times"].astype(np.float64) - args["means"].astype(np.float64)[:, 3:]
    second = (offset**2 / variance**2 - 1 / variance) * np.exp(-(offset**2) / (2 * variance))
    return {"out": (1 / (0.5 * np.tanh(np.abs(second)) + 0.5)).sum(1)}
