"""4D Gaussians in float64: the whole 4x4 covariance and its Schur complement; gradients by central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .harmonics import spherical_harmonics, spherical_harmonics_backward
from .rasterize import rasterize, rasterize_backward

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


def _harmonics(args: dict[str, Any], sliced: dict[str, Array]) -> dict[str, Any]:
    """The arguments of `spherical_harmonics` that colour the slices."""
    chosen = slice(None) if args["indices"] is None else args["indices"]
    phases = (args["means"][chosen, 3].astype(np.float64) - args["time"]) / args["duration"]
    out = np.empty((len(args["viewmats"]), len(phases), args["coeffs"].shape[-1]))
    return {k: args[k] for k in ("degree", "time_degree", "viewmats")} | {
        "dirs": sliced["out_means"], "coeffs": args["coeffs"][chosen][None], "phases": phases, "masks": None,
        "as_color": True, "out": out,
    }  # fmt: skip


def colors_seen(args: dict[str, Any]) -> Array:
    """(C, M, E): the colours of the raw operator, given or of its coefficients, and perhaps the depths."""
    sliced, views = slice_4d(args), args["viewmats"].astype(np.float64)
    harmonics = args["coeffs"] is not None
    colors = spherical_harmonics(_harmonics(args, sliced))["out"] if harmonics else args["colors"]
    if not args["depth"]:
        return np.asarray(colors)
    depths = views[:, 2, :3] @ sliced["out_means"].T + views[:, 2, 3:]
    return np.concatenate([np.broadcast_to(colors, (*depths.shape, colors.shape[-1])), depths[..., None]], -1)


def _slices(args: dict[str, Any]) -> dict[str, Any]:
    sliced = slice_4d(args)
    return {
        "means": sliced["out_means"], "quats": None, "scales": None, "covars": sliced["out_covars"],
        "opacities": sliced["out_opacities"],
    }  # fmt: skip


def rasterize_4d(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs: the slices, their colours and their picture, one after the other."""
    picture: dict[str, Array] = rasterize(args | _slices(args) | {"colors": colors_seen(args)})
    return picture


def rasterize_4d_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The gradient: those of the picture, of the colours and of the slices, one after the other."""
    still, chosen = _slices(args), slice(None) if args["indices"] is None else args["indices"]
    rows, colors = len(still["means"]), args["colors"]
    wanted = {
        "v_means": np.zeros((rows, 3)), "v_covars": np.zeros((rows, 6)), "v_opacities": np.zeros(rows),
        "v_colors": np.zeros(colors.shape), "v_viewmats": args["v_viewmats"], "v_means2d": args["v_means2d"],
    }  # fmt: skip
    given = {k: v for k, v in args.items() if not k.startswith("v_") or k in ("v_image", "v_alphas")}
    of_picture = rasterize_backward(given | still | wanted)
    out = {k: of_picture[k] for k in ("v_viewmats", "v_means2d")}
    v_times = np.zeros(rows)
    if args["depth"]:
        v_depths, of_picture["v_colors"] = of_picture["v_colors"][..., -1], of_picture["v_colors"][..., :-1]
        of_picture["v_means"] = of_picture["v_means"] + v_depths.T @ args["viewmats"][:, 2, :3].astype(np.float64)
        out["v_viewmats"][:, 2] += np.concatenate([v_depths @ still["means"], v_depths.sum(1, keepdims=True)], 1)
    if args["coeffs"] is None:
        out["v_colors"] = of_picture["v_colors"]
    else:
        asked = _harmonics(args, slice_4d(args))
        empty = {f"v_{k}": np.zeros(asked[k].shape) for k in ("dirs", "coeffs", "viewmats", "phases")}
        of_colors = spherical_harmonics_backward(asked | {"v_out": of_picture["v_colors"]} | empty)
        of_picture["v_means"] = of_picture["v_means"] + of_colors["v_dirs"]
        out["v_viewmats"] = out["v_viewmats"] + of_colors["v_viewmats"]
        v_times = of_colors["v_phases"] / args["duration"]
        out["v_coeffs"] = np.zeros(args["coeffs"].shape)
        out["v_coeffs"][chosen] = of_colors["v_coeffs"][0]
    names = ("means", "scales", "quats_l", "quats_r", "opacities")
    derivatives = {f"v_out_{k}": of_picture[f"v_{k}"] for k in ("means", "covars", "opacities")}
    whole = slice_4d_backward(
        {k: args[k] for k in (*names, "indices", "time", "min_weight", "prefilter_var")}
        | derivatives
        | {f"v_{k}": np.zeros(args[k].shape) for k in names}
    )
    whole["v_means"][chosen, 3] += v_times
    return out | whole


def temporal_variation(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's output."""
    variance = covariances(args)[:, 3, 3][:, None]
    offset = args["times"].astype(np.float64) - args["means"].astype(np.float64)[:, 3:]
    second = (offset**2 / variance**2 - 1 / variance) * np.exp(-(offset**2) / (2 * variance))
    return {"out": (1 / (0.5 * np.tanh(np.abs(second)) + 0.5)).sum(1)}
