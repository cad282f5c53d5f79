"""The torch operators `core_splatting::rasterize` and its gradient, on the CPU and on CUDA."""

from __future__ import annotations

from typing import Any

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


_BACKWARD_SCHEMA = (
    "rasterize_backward(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor colors, Tensor viewmats, "
    "Tensor Ks, float near_plane, float far_plane, float radius_clip, float eps2d, float max_alpha, Tensor image, "
    "Tensor alphas, Tensor v_image, Tensor v_alphas) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _gradients(
    means: torch.Tensor, quats: torch.Tensor, scales: torch.Tensor, opacities: torch.Tensor, colors: torch.Tensor,
    viewmats: torch.Tensor, *_: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    inputs = (means, quats, scales, opacities, colors, viewmats)
    return (
        *(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs),
        torch.empty((viewmats.shape[0], means.shape[0], 4), dtype=means.dtype, device=means.device),
    )  # fmt: skip


def _backward_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    out = _gradients(*args)
    _C.rasterize_backward(*args, *out)
    return out


rasterize_backward = torchlib.define("core_splatting", _BACKWARD_SCHEMA, _backward_impl, _gradients)
"""Gradients of a loss by means, quats, scales, opacities, colors, viewmats and (C, N, 4) by the projected centres."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.scalars = inputs[10:]


def _backward(ctx: Any, v_image: torch.Tensor, v_alphas: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    *inputs, image, alphas = ctx.saved_tensors
    if ctx.needs_input_grad[6]:
        raise NotImplementedError("rasterize: argument 'Ks' requires grad, but has no derivative; use Ks.detach()")
    v_backgrounds = ((1 - alphas)[..., None] * v_image).sum((1, 2)) if ctx.needs_input_grad[7] else None
    gradients = rasterize_backward(*inputs, *ctx.scalars, image, alphas, v_image, v_alphas)
    return (*gradients[:6], None, v_backgrounds, *[None] * 7)


rasterize = torchlib.define("core_splatting", _SCHEMA, _impl, _fake, _backward, _setup_context)
"""(colours (C, H, W, D), alphas (C, H, W)) of the raw operator's arguments; see `rasterization`."""
