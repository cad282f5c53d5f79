"""The rows of the spherical harmonics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference.harmonics import spherical_harmonics, spherical_harmonics_backward


def harmonics(
    rng: np.random.Generator, N: int, C: int = 2, degree: int = 3, time_degree: int = 2, D: int = 3
) -> dict[str, Any]:
    """Random coefficients seen from C cameras; the operator's arguments."""
    f32 = np.float32
    viewmats = np.tile(np.eye(4, dtype=f32), (C, 1, 1))
    viewmats[:, :3] += rng.normal(0, 0.1, (C, 3, 4)).astype(f32)
    viewmats[:, 2, 3] += 3
    return {
        "degree": degree, "time_degree": time_degree, "dirs": rng.uniform(-1, 1, (N, 3)).astype(f32),
        "coeffs": rng.normal(0, 0.3, (1, N, 16 * time_degree + (degree + 1) ** 2, D)).astype(f32),
        "viewmats": viewmats, "phases": rng.uniform(-1, 1, N).astype(f32), "masks": rng.random((C, N)) < 0.9,
        "as_color": False, "scenes": 1, "out": np.empty((C, N, D), f32),
    }  # fmt: skip


def harmonics_backward(rng: np.random.Generator, **size: Any) -> dict[str, Any]:
    """The gradient's arguments."""
    forward = harmonics(rng, **size)
    out = forward.pop("out")
    return forward | {
        "v_out": rng.normal(size=out.shape).astype(np.float32),
        **{f"v_{k}": np.empty_like(forward[k]) for k in ("dirs", "coeffs", "viewmats", "phases")},
    }


def _peer(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """What gsplat does where it has no kernel: the polynomials of degree up to 3 in torch."""
    import torch

    t = {k: torch.as_tensor(v) for k, v in args.items() if isinstance(v, np.ndarray)}

    def run() -> Mapping[str, Any]:
        unit = torch.nn.functional.normalize(t["dirs"][None] - torch.linalg.inv(t["viewmats"])[:, None, :3, 3], dim=-1)
        x, y, z = unit.unbind(-1)
        xx, yy, zz = x * x, y * y, z * z
        a, b, c, d, e = (
            0.4886025119029199,
            1.0925484305920792,
            0.5900435899266435,
            0.4570457994644658,
            2.890611442640554,
        )
        rows = [
            torch.full_like(x, 0.28209479177387814), -a * y, a * z, -a * x,
            b * x * y, -b * y * z, 0.31539156525252005 * (2 * zz - xx - yy), -b * x * z, b / 2 * (xx - yy),
            -c * y * (3 * xx - yy), e * x * y * z, -d * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy), -d * x * (4 * zz - xx - yy), e / 2 * z * (xx - yy),
            -c * x * (xx - 3 * yy),
        ]  # fmt: skip
        basis = torch.stack(rows[: (args["degree"] + 1) ** 2], -1)[..., None]
        total = (basis * t["coeffs"][:, :, : basis.shape[-2]]).sum(-2)
        for i in range(1, args["time_degree"] + 1):
            turn = torch.cos(2 * torch.pi * i * t["phases"])[None, :, None]
            total = total + turn * (basis * t["coeffs"][:, :, 16 * i : 16 * i + basis.shape[-2]]).sum(-2)
        return {"out": torch.where(t["masks"][..., None], total, 0).numpy()}

    return run


def _work(args: dict[str, Any]) -> tuple[float, float]:
    moved = sum(v.nbytes for v in args.values() if isinstance(v, np.ndarray))
    return float(moved), float(len(args["viewmats"]) * (2 * args["coeffs"].size + 60 * len(args["dirs"])))


def _torch_call(args: dict[str, Any]) -> Any:
    from .torch_ops import spherical_harmonics as op

    return op(*(v for k, v in args.items() if k != "out"))


harmonics_cases: list[Case] = [
    Case(
        op="core_splatting.spherical_harmonics",
        sizes={"tiny": {"N": 40}, "bench": {"N": 100_000, "C": 1, "time_degree": 0}},
        make=harmonics,
        reference=spherical_harmonics,
        tolerance={"out": (1e-4, 2e-5)},
        peer=("torch, polynomials", _peer),
        work=_work,
        vary={"N": (0, 60), "C": (0, 3), "degree": (0, 3), "time_degree": (0, 2), "D": (0, 5)},
        torch_call=_torch_call,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.spherical_harmonics_backward",
        sizes={"tiny": {"N": 20}, "bench": {"N": 100_000, "C": 1, "time_degree": 0}},
        make=harmonics_backward,
        reference=spherical_harmonics_backward,
        tolerance={
            "v_dirs": (1e-3, 1e-3),
            "v_coeffs": (1e-4, 1e-4),
            "v_viewmats": (1e-3, 1e-3),
            "v_phases": (1e-3, 1e-3),
        },
        vary={"N": (0, 12), "C": (0, 3), "degree": (0, 3), "time_degree": (0, 1), "D": (0, 4)},
        devices=("cpu", "cuda"),
    ),
]
