"""The rows of 4D Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference.dynamic import (
    colors_seen,
    rasterize_4d,
    rasterize_4d_backward,
    slice_4d,
    slice_4d_backward,
    temporal_variation,
)


def gaussians_4d(rng: np.random.Generator, N: int, duration: float = 1.0) -> dict[str, Any]:
    """N random 4D Gaussians in the cube [-1, 1]^3 and the given duration, each there for about a tenth of it."""
    f32 = np.float32
    means = np.concatenate([rng.uniform(-1, 1, (N, 3)), rng.uniform(0, duration, (N, 1))], 1).astype(f32)
    space = np.exp(rng.normal(np.log(0.02 * (1e4 / max(N, 1)) ** (1 / 3)), 0.5, (N, 3)))
    scales = np.concatenate([space, np.exp(rng.normal(np.log(0.1 * duration), 0.4, (N, 1)))], 1).astype(f32)
    # Nearly the unit rotation, so that the time axis stays the time axis: such Gaussians move slowly.
    near = np.array([1, 0, 0, 0]) + rng.normal(0, 0.1, (2, N, 4))
    return {
        "means": means, "scales": scales, "quats_l": near[0].astype(f32), "quats_r": near[1].astype(f32),
        "opacities": rng.uniform(0.1, 0.99, N).astype(f32),
    }  # fmt: skip


def _slice(rng: np.random.Generator, N: int, share: float = 1.0) -> dict[str, Any]:
    indices = None if share == 1 else np.flatnonzero(rng.random(N) < share)
    M = N if indices is None else len(indices)
    f32 = np.float32
    return gaussians_4d(rng, N) | {
        "indices": indices, "time": 0.5, "min_weight": 0.05, "prefilter_var": 0.001, "out_means": np.empty((M, 3), f32),
        "out_covars": np.empty((M, 6), f32), "out_opacities": np.empty(M, f32), "out_weights": np.empty(M, f32),
    }  # fmt: skip


def _slice_backward(rng: np.random.Generator, N: int, share: float = 1.0) -> dict[str, Any]:
    forward = _slice(rng, N, share)
    inputs = {k: v for k, v in forward.items() if not k.startswith("out_")}
    derivatives = {
        f"v_{k}": rng.normal(size=forward[k].shape).astype(np.float32)
        for k in ("out_means", "out_covars", "out_opacities")
    }
    names = ("means", "scales", "quats_l", "quats_r", "opacities")
    return inputs | derivatives | {f"v_{k}": np.empty_like(forward[k]) for k in names}


def moving_scene(
    rng: np.random.Generator, N: int, W: int, H: int, C: int = 1, D: int = 3, focal: float = 512.0, share: float = 1.0,
    harmonics: bool = True, depth: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """N random 4D Gaussians, or about a `share` of them, as C cameras in a row see them at a time; with harmonics of
    full degrees, or colours, and perhaps their depth. The arguments of `rasterize_4d`."""
    f32 = np.float32
    sliced = _slice(rng, N, share)
    rows = len(sliced["out_weights"])
    viewmats = np.tile(np.eye(4, dtype=f32), (C, 1, 1))
    viewmats[:, 0, 3], viewmats[:, 2, 3] = 0.2 * np.arange(C), 3
    return {k: v for k, v in sliced.items() if not k.startswith("out_")} | {
        "colors": None if harmonics else rng.random((1, rows, D), f32),
        "coeffs": rng.normal(0, 0.2, (N, 48, D)).astype(f32) if harmonics else None, "degree": 3, "time_degree": 2,
        "duration": 1.5, "depth": bool(depth), "viewmats": viewmats,
        "Ks": np.tile(np.array([[focal, 0, W / 2], [0, focal, H / 2], [0, 0, 1]], f32), (C, 1, 1)),
        "backgrounds": rng.random((C, D + depth), f32), "near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0,
        "eps2d": 0.3, "max_alpha": 0.999, "antialiased": False, "camera_model": "pinhole",
        "out_colors": np.empty((C, H, W, D + depth), f32), "out_alphas": np.empty((C, H, W), f32), "seen": None,
        "workspace": None,
    }  # fmt: skip


def moving_scene_backward(rng: np.random.Generator, **size: Any) -> dict[str, Any]:
    """A `moving_scene` with its picture, and random derivatives of a loss by the picture; the gradient's arguments."""
    forward, f32 = moving_scene(rng, **size), np.float32
    cameras, height, width, channels = forward["out_colors"].shape
    given = forward["colors"]
    picture = rasterize_4d(forward) if size["N"] <= 100 else _rendered(forward)
    if given is None or forward["depth"]:
        forward["colors"] = colors_seen(forward).astype(f32)
    rows = forward["colors"].shape[1]
    inputs = {k: v for k, v in forward.items() if k not in ("backgrounds", "seen") and not k.startswith("out_")}
    del inputs["workspace"]
    harmonics = forward["coeffs"] is not None
    return inputs | {
        "image": picture["out_colors"].astype(f32), "alphas": picture["out_alphas"].astype(f32),
        "v_image": rng.normal(size=(cameras, height, width, channels)).astype(f32),
        "v_alphas": rng.normal(size=(cameras, height, width)).astype(f32), "workspace": None, "deterministic": False,
        **{f"v_{k}": np.empty_like(forward[k]) for k in ("means", "scales", "quats_l", "quats_r", "opacities")},
        "v_colors": None if harmonics else np.empty_like(forward["colors"][..., : given.shape[-1]]),
        "v_coeffs": np.empty_like(forward["coeffs"]) if harmonics else None,
        "v_viewmats": np.empty((cameras, 4, 4), f32), "v_means2d": np.empty((cameras, rows, 4), f32),
    }  # fmt: skip


def _rendered(forward: dict[str, Any]) -> dict[str, Any]:
    from . import _core_splatting as _C

    _C.rasterize_4d(*forward.values())
    return forward


def _render_call(args: dict[str, Any]) -> Any:
    from .torch_ops import rasterize_4d as op

    tensors = [v for k, v in args.items() if k not in ("seen", "workspace") and not k.startswith("out_")]
    height, width = args["out_alphas"].shape[1:]
    keep = any(getattr(t, "requires_grad", False) for t in tensors)
    image, alphas = op(*tensors[:18], None, width, height, *tensors[18:], False, keep)[:2]
    return image, alphas[..., 0]


def _variation(rng: np.random.Generator, N: int, T: int) -> dict[str, Any]:
    a = gaussians_4d(rng, N)
    del a["opacities"]
    return a | {"times": rng.uniform(0, 1, T).astype(np.float32), "out": np.empty(N, np.float32)}


def _slice_peer(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """The official code's way: batched 4x4 matrices in torch."""
    import torch

    t = {k: torch.as_tensor(v) for k, v in args.items() if isinstance(v, np.ndarray)}

    def run() -> Mapping[str, Any]:
        a, b, c, d = torch.nn.functional.normalize(t["quats_l"], dim=-1).unbind(-1)
        p, q, u, v = torch.nn.functional.normalize(t["quats_r"], dim=-1).unbind(-1)
        left = torch.stack([a, -b, -c, -d, b, a, -d, c, c, d, a, -b, d, -c, b, a]).view(4, 4, -1).permute(2, 0, 1)
        right = torch.stack([p, q, u, v, -q, p, -v, u, -u, v, p, -q, -v, -u, q, p]).view(4, 4, -1).permute(2, 0, 1)
        factor = (left @ right).flip(1, 2) * t["scales"][:, None]
        whole = factor @ factor.transpose(1, 2)
        variance, across = whole[:, 3, 3], whole[:, :3, 3]
        offset = args["time"] - t["means"][:, 3]
        weights = torch.exp(-offset * offset / (2 * (variance + args["prefilter_var"])))
        kept = weights > args["min_weight"]
        covars = whole[:, :3, :3] - across[:, :, None] * across[:, None] / variance[:, None, None]
        rows, columns = torch.triu_indices(3, 3)
        out = {
            "out_means": t["means"][:, :3] + across / variance[:, None] * offset[:, None],
            "out_covars": covars[:, rows, columns],
            "out_opacities": weights * t["opacities"], "out_weights": weights,
        }  # fmt: skip
        return {k: torch.where(kept.view(-1, *[1] * (x.ndim - 1)), x, 0).numpy() for k, x in out.items()}

    return run


def _torch_call(args: dict[str, Any]) -> Any:
    from .torch_ops import slice_4d as op

    return op(*(v for k, v in args.items() if not k.startswith("out_")))


cases: list[Case] = [
    Case(
        op="core_splatting.slice_4d",
        sizes={"tiny": {"N": 50, "share": 0.6}, "bench": {"N": 200_000}},
        make=_slice,
        reference=slice_4d,
        tolerance={
            "out_means": (1e-4, 1e-4),
            "out_covars": (1e-4, 1e-5),
            "out_opacities": (1e-4, 1e-5),
            "out_weights": (1e-4, 1e-5),
        },
        peer=("torch, 4x4 matrices", _slice_peer),
        vary={"N": (0, 80)},
        torch_call=_torch_call,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.slice_4d_backward",
        sizes={"tiny": {"N": 50, "share": 0.6}, "bench": {"N": 200_000}},
        make=_slice_backward,
        reference=slice_4d_backward,
        tolerance=dict.fromkeys(("v_means", "v_scales", "v_quats_l", "v_quats_r", "v_opacities"), (0.002, 0.002)),
        vary={"N": (0, 80)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.rasterize_4d",
        sizes={
            "tiny": {"N": 90, "W": 37, "H": 29, "C": 2, "focal": 40.0, "share": 0.6},
            "bench": {"N": 50_000, "W": 512, "H": 512},
        },
        make=moving_scene,
        reference=rasterize_4d,
        # A pixel on the border of a Gaussian (alpha near 1/255) may fall on either side in float32.
        tolerance={"out_colors": (1e-4, 5e-3), "out_alphas": (1e-4, 5e-3)},
        vary={"N": (0, 80), "W": (0, 40), "H": (0, 40), "C": (0, 3), "D": (0, 8), "depth": (0, 1)},
        torch_call=_render_call,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.rasterize_4d_backward",
        sizes={
            "tiny": {"N": 16, "W": 21, "H": 18, "C": 2, "focal": 40.0, "share": 0.7},
            "bench": {"N": 50_000, "W": 512, "H": 512},
        },
        make=moving_scene_backward,
        reference=rasterize_4d_backward,
        tolerance=dict.fromkeys(
            ("v_means", "v_scales", "v_quats_l", "v_quats_r", "v_opacities", "v_coeffs", "v_viewmats", "v_means2d"),
            (2e-3, 2e-3),
        ),
        sums=True,
        vary={"N": (0, 14), "W": (0, 20), "H": (0, 20), "C": (0, 2), "D": (0, 4), "depth": (0, 1)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.temporal_variation",
        sizes={"tiny": {"N": 40, "T": 9}, "bench": {"N": 20_000, "T": 100}},
        make=_variation,
        reference=temporal_variation,
        tolerance={"out": (1e-4, 1e-3)},
        vary={"N": (0, 40), "T": (0, 10)},
        devices=("cpu", "cuda"),
    ),
]
