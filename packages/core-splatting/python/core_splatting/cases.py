"""The case table of core-splatting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case

from .cases_dynamic import cases as dynamic_cases
from .cases_harmonics import harmonics_cases
from .cases_memory import cases as memory_cases
from .cases_train import cases as train_cases
from .reference.rasterize import contributions, project_gaussians, rasterize, rasterize_backward, rasterize_torch


def scene(
    rng: np.random.Generator, N: int, W: int, H: int, C: int = 1, D: int = 3, focal: float = 512.0, S: int = 1
) -> dict[str, Any]:
    """N random Gaussians in the cube [-1, 1]^3, seen from C cameras on an arc at distance 3, of each of S scenes; the
    operator's arguments.

    Log scales are normal around ln(0.02 (10^4 / N)^(1/3)) with deviation 0.5, opacities uniform in [0.1, 0.99].
    """
    f32 = np.float32
    size = np.log(0.02 * (1e4 / max(N, 1)) ** (1 / 3))
    N, C = N * S, C * S
    means = rng.uniform(-1, 1, (N, 3)).astype(f32)
    scales = np.exp(rng.normal(size, 0.5, (N, 3))).astype(f32)
    quats = rng.normal(size=(N, 4)).astype(f32)
    opacities = rng.uniform(0.1, 0.99, N).astype(f32)
    colors = rng.uniform(0, 1, (1, N, D)).astype(f32)
    viewmats = np.tile(np.eye(4, dtype=f32), (C, 1, 1))
    for c in range(C):
        angle = 0.2 * c
        viewmats[c, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        viewmats[c, 2, 3] = 3
    Ks = np.tile(np.array([[focal, 0, W / 2], [0, focal, H / 2], [0, 0, 1]], f32), (C, 1, 1))
    return {
        "means": means, "quats": quats, "scales": scales, "covars": None, "opacities": opacities, "colors": colors,
        "viewmats": viewmats, "Ks": Ks,
        "backgrounds": rng.uniform(0, 1, (C, D)).astype(f32), "near_plane": 0.01, "far_plane": 1e10,
        "radius_clip": 0.0, "eps2d": 0.3,
        "max_alpha": 0.999, "antialiased": False, "camera_model": "pinhole", "scenes": S,
        "out_colors": np.empty((C, H, W, D), f32), "out_alphas": np.empty((C, H, W), f32), "workspace": None,
    }  # fmt: skip


def scene_backward(rng: np.random.Generator, **size: Any) -> dict[str, Any]:
    """A `scene` with its picture, and random derivatives of a loss by the picture; the gradient's arguments."""
    forward = scene(rng, **size)
    expected = rasterize(forward) if size["N"] <= 100 else _rendered(forward)
    f32 = np.float32
    cameras, height, width, channels = forward["out_colors"].shape
    count = len(forward["means"])
    inputs = {k: v for k, v in forward.items() if k not in ("backgrounds", "workspace") and not k.startswith("out_")}
    return inputs | {
        "image": expected["out_colors"].astype(f32), "alphas": expected["out_alphas"].astype(f32),
        "v_image": rng.normal(size=(cameras, height, width, channels)).astype(f32),
        "v_alphas": rng.normal(size=(cameras, height, width)).astype(f32), "workspace": None, "deterministic": False,
        "v_means": np.empty((count, 3), f32), "v_quats": np.empty((count, 4), f32),
        "v_scales": np.empty((count, 3), f32), "v_covars": None, "v_opacities": np.empty(count, f32),
        "v_colors": np.empty((1, count, channels), f32), "v_viewmats": np.empty((cameras, 4, 4), f32),
        "v_means2d": np.empty((cameras, count // forward["scenes"], 4), f32),
    }  # fmt: skip


def _rendered(forward: dict[str, Any]) -> dict[str, Any]:
    from . import _core_splatting as _C

    _C.rasterize(*forward.values())
    return forward


def _peer(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    def run() -> Mapping[str, Any]:
        colors, alphas = rasterize_torch(args)
        return {"out_colors": colors.numpy(), "out_alphas": alphas.numpy()}

    return run


def _torch_call(args: dict[str, Any]) -> Any:
    from .torch_ops import rasterize as op

    tensors = [v for k, v in args.items() if k != "workspace" and not k.startswith("out_")]
    height, width = args["out_alphas"].shape[1:]
    keep = any(getattr(t, "requires_grad", False) for t in tensors)
    image, alphas, _ = op(*tensors[:9], None, width, height, *tensors[9:], False, keep)
    return image, alphas[..., 0]


def _work(args: dict[str, Any]) -> tuple[float, float]:
    moved = sum(v.nbytes for v in args.values() if isinstance(v, np.ndarray))
    height, width = args["out_alphas"].shape[1:]
    # Projection, and some 30 operations for each pixel of each Gaussian's ellipse of three deviations.
    f = float(args["Ks"][0, 0, 0]) / 3
    pixels = np.pi * (3.33 * args["scales"].mean(-1) * f) ** 2 + np.pi * 3.33**2 * args["eps2d"]
    return float(moved), float(len(args["viewmats"]) * (300 * len(pixels) + 30 * pixels.clip(0, height * width).sum()))


def projections(rng: np.random.Generator, N: int, W: int, H: int, C: int = 1, focal: float = 512.0) -> dict[str, Any]:
    """A `scene` and room for its projections."""
    a = scene(rng, N, W, H, C, focal=focal)
    names = ("means", "quats", "scales", "covars", "opacities", "viewmats", "Ks")
    f32 = np.float32
    return {k: a[k] for k in names} | {
        "width": W, "height": H, **{k: a[k] for k in ("near_plane", "far_plane", "radius_clip", "eps2d")},
        "antialiased": False, "camera_model": "pinhole", "scenes": 1, "means2d": np.empty((C, N, 2), f32),
        "radii": np.empty((C, N, 2), np.int32), "depths": np.empty((C, N), f32), "conics": np.empty((C, N, 3), f32),
        "weights": np.empty((C, N), f32),
    }  # fmt: skip


def weighed_pixels(rng: np.random.Generator, N: int, W: int, H: int, **more: Any) -> dict[str, Any]:
    """A `scene` and what its pixels count."""
    a = scene(rng, N, W, H, **more)
    left_out = ("colors", "backgrounds", "out_colors", "out_alphas", "workspace")
    inputs = {k: v for k, v in a.items() if k not in left_out}
    keys = list(inputs)
    split = keys.index("Ks") + 1
    pixels = rng.uniform(0, 1, a["out_alphas"].shape).astype(np.float32)
    out = np.empty((len(a["viewmats"]), N), np.float32)
    return (
        {k: inputs[k] for k in keys[:split]} | {"pixels": pixels} | {k: inputs[k] for k in keys[split:]} | {"out": out}
    )


def workspaces(rng: np.random.Generator, N: int, W: int, H: int, C: int = 1) -> dict[str, Any]:
    """A question for the size of a workspace on the CPU, which needs none."""
    return {"cameras": C, "gaussians": N, "width": W, "height": H, "device": -1, "out": rng.integers(9, size=1)}


cases: list[Case] = [
    Case(
        op="core_splatting.rasterize",
        sizes={
            "tiny": {"N": 60, "W": 37, "H": 29, "C": 2, "focal": 40.0},
            "bench": {"N": 10_000, "W": 512, "H": 512},
        },
        make=scene,
        reference=rasterize,
        # A pixel on the border of a Gaussian (alpha near 1/255) may fall on either side in float32.
        tolerance={"out_colors": (1e-4, 5e-3), "out_alphas": (1e-4, 5e-3)},
        peer=("torch, padded tiles", _peer),
        work=_work,
        vary={"N": (0, 80), "W": (0, 40), "H": (0, 40), "C": (0, 3), "D": (0, 40), "S": (1, 3)},
        torch_call=_torch_call,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.rasterize_backward",
        sizes={
            "tiny": {"N": 12, "W": 21, "H": 18, "C": 2, "focal": 40.0},
            "bench": {"N": 10_000, "W": 512, "H": 512},
        },
        make=scene_backward,
        reference=rasterize_backward,
        tolerance={
            "v_means": (1e-3, 2e-2),
            "v_quats": (1e-3, 2e-3),
            "v_scales": (1e-3, 5e-2),
            "v_opacities": (1e-3, 2e-2),
            "v_colors": (1e-3, 5e-3),
            "v_viewmats": (1e-3, 5e-2),
            "v_means2d": (1e-3, 2e-3),
        },
        vary={"N": (0, 14), "W": (0, 20), "H": (0, 20), "C": (0, 2), "D": (0, 9), "S": (1, 2)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.contributions",
        sizes={
            "tiny": {"N": 40, "W": 37, "H": 29, "C": 2, "focal": 40.0},
            "bench": {"N": 10_000, "W": 512, "H": 512},
        },
        make=weighed_pixels,
        reference=contributions,
        tolerance={"out": (1e-4, 2e-2)},
        vary={"N": (0, 40), "W": (0, 40), "H": (0, 40), "C": (0, 3), "S": (1, 3)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.project_gaussians",
        sizes={
            "tiny": {"N": 60, "W": 37, "H": 29, "C": 2, "focal": 40.0},
            "bench": {"N": 100_000, "W": 512, "H": 512},
        },
        make=projections,
        reference=project_gaussians,
        tolerance={
            "means2d": (1e-4, 1e-3),
            "radii": (0, 0),
            "depths": (1e-5, 1e-5),
            "conics": (2e-3, 1e-4),
            "weights": (1e-4, 1e-5),
        },
        vary={"N": (0, 80), "W": (0, 40), "H": (0, 40), "C": (0, 3)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.rasterize_workspace",
        sizes={"tiny": {"N": 60, "W": 37, "H": 29}, "bench": {"N": 100_000, "W": 512, "H": 512}},
        make=workspaces,
        reference=lambda _: {"out": np.zeros(1, np.int64)},
        tolerance={"out": (0, 0)},
        vary={"N": (0, 80), "W": (0, 40), "H": (0, 40), "C": (0, 3)},
    ),
    *harmonics_cases,
    *dynamic_cases,
    *memory_cases,
    *train_cases,
]
