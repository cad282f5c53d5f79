"""The torch operator `core_splatting::rasterize`, on the CPU and on CUDA; it has no derivative yet."""

from __future__ import annotations

import torch
from core_registry import torchlib

from . import _core_splatting as _C

_SCHEMA = (
    "rasterize(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor colors, Tensor viewmats, Tensor Ks, "
    "Tensor? backgrounds, SymInt width, SymInt height, float near_plane, float far_plane, float radius_clip, "
    "float eps2d, float max_alpha) -> (Tensor, Tensor)"
)


def _outputs(
    means: torch.Tensor, colors: torch.Tensor, viewmats: torch.Tensor, width: int, height: int
) -> tuple[torch.Tensor, torch.Tensor]:
    cameras = viewmats.shape[0]
    return (
        torch.empty((cameras, height, width, colors.shape[-1]), dtype=torch.float32, device=means.device),
        torch.empty((cameras, height, width), dtype=torch.float32, device=means.device),
    )


def _impl(
    means: torch.Tensor,
    quats: torch.Tensor,
    scales: torch.Tensor,
    opacities: torch.Tensor,
    colors: torch.Tensor,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    backgrounds: torch.Tensor | None,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, alphas = _outputs(means, colors, viewmats, width, height)
    _C.rasterize(
        means, quats, scales, opacities, colors, viewmats, Ks, backgrounds,
        near_plane, far_plane, radius_clip, eps2d, max_alpha, out, alphas,
    )  # fmt: skip
    return out, alphas


def _fake(
    means: torch.Tensor,
    quats: torch.Tensor,
    scales: torch.Tensor,
    opacities: torch.Tensor,
    colors: torch.Tensor,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    backgrounds: torch.Tensor | None,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(means, colors, viewmats, width, height)


rasterize = torchlib.define("core_splatting", _SCHEMA, _impl, _fake)
"""(colours (C, H, W, D), alphas (C, H, W)) of the raw operator's arguments; see `rasterization`."""
