"""The torch operator `core_splatting::ssim` and its gradient, on the CPU and on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from core_registry import torchlib

from . import _core_splatting as _C


def _outputs(image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image.new_empty(image.shape), image.new_empty((3, *image.shape))


def _impl(image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, partials = _outputs(image, target)
    _C.ssim(image, target, out, partials)
    return out, partials


def _backward_fake(
    image: torch.Tensor, target: torch.Tensor, partials: torch.Tensor, v_out: torch.Tensor
) -> torch.Tensor:
    return image.new_empty(image.shape)


def _backward_impl(
    image: torch.Tensor, target: torch.Tensor, partials: torch.Tensor, v_out: torch.Tensor
) -> torch.Tensor:
    out = image.new_empty(image.shape)
    _C.ssim_backward(image, target, partials, v_out, out)
    return out


ssim_backward = torchlib.define(
    "core_splatting",
    "ssim_backward(Tensor image, Tensor target, Tensor partials, Tensor v_out) -> Tensor",
    _backward_impl,
    _backward_fake,
)
"""The gradient of a loss by `image`, from `ssim`'s partial derivatives and the gradient by its first output."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, v_out: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
    if ctx.needs_input_grad[1]:
        raise NotImplementedError(
            "ssim: argument 'target' requires grad, but has no derivative; use target.detach(), or exchange the two"
        )
    image, target, partials = ctx.saved_tensors
    return ssim_backward(image, target, partials, v_out), None


ssim = torchlib.define(
    "core_splatting",
    "ssim(Tensor image, Tensor target) -> (Tensor, Tensor)",
    _impl,
    _outputs,
    _backward,
    _setup_context,
)
"""The similarity (B, C, H, W), and partial derivatives (3, B, C, H, W) that only `ssim_backward` reads."""
