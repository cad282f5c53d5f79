"""The torch operators of core-splatting and their gradients, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from core_registry import torchlib
from torch import Tensor

from . import _core_splatting as _C

_SHAPE = "Tensor means, Tensor? quats, Tensor? scales, Tensor? covars, Tensor opacities"
_SCALARS = (
    "float near_plane, float far_plane, float radius_clip, float eps2d, float max_alpha, bool antialiased, "
    "str camera_model, SymInt scenes"
)
_SCHEMA = (
    f"rasterize({_SHAPE}, Tensor colors, Tensor viewmats, Tensor Ks, Tensor? backgrounds, Tensor? means2d, "
    f"SymInt width, SymInt height, {_SCALARS}, bool absgrad, bool keep) -> (Tensor, Tensor, Tensor)"
)


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    means, colors, cameras, width, height = args[0], args[5], args[6].shape[0], args[10], args[11]
    size = torch.library.get_ctx().new_dynamic_size() if args[21] and means.device.type == "cuda" else 0
    image = colors.new_empty((cameras, height, width, colors.shape[-1]))
    return image, means.new_empty((cameras, height, width, 1)), means.new_empty((size,), dtype=torch.int32)


def _sets(colors: Tensor) -> Tensor:
    return colors if colors.ndim == 3 else colors.unsqueeze(0)


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The picture, its alphas (C, H, W), and what CUDA keeps for the gradient."""
    means, colors, cameras, width, height, scenes = args[0], args[5], args[6].shape[0], args[10], args[11], args[19]
    workspace = None
    if args[21]:
        if colors.dtype == torch.float16:
            raise NotImplementedError("rasterize: argument 'colors' in float16 has no gradient; use torch.no_grad()")
        if means.is_cuda:
            answer = np.empty(1, np.int64)
            _C.rasterize_workspace(
                cameras // scenes, means.shape[0] // scenes, width, height, means.device.index, answer
            )
            workspace = means.new_empty((scenes * int(answer[0]),), dtype=torch.int32)
    image = colors.new_empty((cameras, height, width, colors.shape[-1]))
    alphas = means.new_empty((cameras, height, width))
    _C.rasterize(*(*args[:5], _sets(colors), *args[6:9], *args[12:20], image, alphas, workspace))
    return image, alphas, workspace


def _impl(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    image, alphas, workspace = _forward(*args)
    return image, alphas.unsqueeze(3), args[0].new_empty((0,), dtype=torch.int32) if workspace is None else workspace


_BACKWARD_SCHEMA = (
    f"rasterize_backward({_SHAPE}, Tensor colors, Tensor viewmats, Tensor Ks, {_SCALARS}, Tensor image, Tensor alphas, "
    "Tensor v_image, Tensor? v_alphas, Tensor? workspace, bool deterministic, bool by_viewmats, int columns) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _gradients(*args: Any) -> list[Any]:
    """What `_backward_direct` fills, without values."""
    means, viewmats, scenes, by_viewmats, columns = args[0], args[6], args[15], args[22], args[23]
    out = [None if x is None else torch.empty_like(x) for x in (*args[:6], viewmats if by_viewmats else None)]
    return [*out, means.new_empty((viewmats.shape[0], means.shape[0] // scenes, columns)) if columns else None]


def _backward_direct(*args: Any) -> list[Any]:
    """`rasterize_backward` with None for what is absent."""
    out, v_alphas = _gradients(*args), args[19]
    given = (
        *args[:5], _sets(args[5]), *args[6:17], args[17].squeeze(3), args[18],
        None if v_alphas is None else v_alphas.squeeze(3), *args[20:22], *out[:5], _sets(out[5]), *out[6:],
    )  # fmt: skip
    _C.rasterize_backward(*given)
    return out


def _present(run: Callable[..., list[Any]]) -> Callable[..., tuple[Tensor, ...]]:
    """`run` with empty tensors for what is absent."""
    return lambda *args: tuple(args[0].new_empty((0,)) if x is None else x for x in run(*args))


rasterize_backward = torchlib.define(
    "core_splatting", _BACKWARD_SCHEMA, _present(_backward_direct), _present(_gradients)
)
"""Gradients of a loss by means, quats, scales, covars (empty where not given), opacities, colors, viewmats (empty if
not `by_viewmats`), and by the projected centres: (C, N / scenes, columns), with 4 columns also the sums of the absolute
values, empty if `columns` is 0."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.scalars = inputs[12:20]
    ctx.absgrad = inputs[9] if inputs[20] else None
    ctx.means2d_shape = None if inputs[9] is None else inputs[9].shape
    ctx.set_materialize_grads(False)


def _op_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _setup_context(ctx, inputs, output)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, v_image: Tensor | None, v_alphas: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *inputs, image, alphas, workspace = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if needed[7]:
        raise NotImplementedError("rasterize: argument 'Ks' requires grad, but has no derivative; use Ks.detach()")
    if v_image is None:
        v_image = torch.zeros_like(image)
    v_backgrounds = ((1 - alphas) * v_image).sum((1, 2)) if needed[8] else None
    columns = 4 if ctx.absgrad is not None else 2 * needed[9]
    # Not where its own gradient is asked for, which the operator refuses.
    direct = not torch.is_grad_enabled() and torchlib.plain(v_image, v_alphas)
    v = (_backward_direct if direct else rasterize_backward)(
        *inputs, *ctx.scalars, image, alphas, v_image, v_alphas, workspace if alphas.is_cuda else None,
        torch.are_deterministic_algorithms_enabled(), needed[6], columns,
    )  # fmt: skip
    if ctx.absgrad is not None:
        ctx.absgrad.absgrad = v[7][..., 2:].reshape(ctx.means2d_shape)
    v_means2d = v[7][..., :2].reshape(ctx.means2d_shape) if needed[9] else None
    return (*[x if n else None for x, n in zip(v[:7], needed, strict=False)], None, v_backgrounds, v_means2d, *_NONE)


_NONE = (None,) * 12

rasterize = torchlib.define("core_splatting", _SCHEMA, _impl, _fake, _backward, _op_context)
"""(colours (C, H, W, D), alphas (C, H, W, 1)) of the raw operator's arguments; see `rasterization`. `colors` may also
be (N, D). `means2d` (C, N / scenes, 2), or of as many numbers, is not read; its gradient is that by the projected
centres, and `absgrad` sets its attribute of this name. The third result is what CUDA keeps for the backward pass with
`keep`, and empty without."""


class _Rasterize(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        image, alphas, workspace = _forward(*args)
        alphas = alphas.unsqueeze(3)
        _setup_context(ctx, args, (image, alphas, workspace))
        return image, alphas

    backward = staticmethod(_backward)


_apply = super(torch.autograd.Function, _Rasterize).apply  # without looking for functorch, which `eager` does


def _direct(*args: Any) -> tuple[Tensor, Tensor]:
    if args[21]:
        return _apply(*args)
    image, alphas, _ = _forward(*args)
    return image, alphas.unsqueeze(3)


eager_rasterize = torchlib.eager(rasterize, _direct)

_HARMONICS = (
    "int degree, int time_degree, Tensor dirs, Tensor coeffs, Tensor? viewmats, Tensor? phases, Tensor? masks, "
    "bool as_color, SymInt scenes"
)


def _harmonics_fake(*args: Any) -> Tensor:
    dirs, coeffs, viewmats = args[2], args[3], args[4]
    cameras = coeffs.shape[0] if viewmats is None else viewmats.shape[0]
    out: Tensor = dirs.new_empty((cameras, dirs.shape[0] // args[8], coeffs.shape[-1]))
    return out


def _harmonics_impl(*args: Any) -> Tensor:
    out = _harmonics_fake(*args)
    _C.spherical_harmonics(*(*args, out))
    return out


def _harmonics_gradients(*args: Any) -> tuple[Tensor, ...]:
    dirs, coeffs, v_out = args[2], args[3], args[9]
    return (
        dirs.new_empty(dirs.shape), dirs.new_empty(coeffs.shape), dirs.new_empty((v_out.shape[0], 4, 4)),
        dirs.new_empty(dirs.shape[:1]),
    )  # fmt: skip


def _harmonics_backward_impl(*args: Any) -> tuple[Tensor, ...]:
    out = _harmonics_gradients(*args)
    _C.spherical_harmonics_backward(*args, *out)
    return out


spherical_harmonics_backward = torchlib.define(
    "core_splatting",
    f"spherical_harmonics_backward({_HARMONICS}, Tensor v_out) -> (Tensor, Tensor, Tensor, Tensor)",
    _harmonics_backward_impl,
    _harmonics_gradients,
)
"""Gradients of a loss by dirs, coeffs, viewmats and phases."""


def _harmonics_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[2:7])
    ctx.scalars = (*inputs[:2], *inputs[7:])


def _harmonics_backward(ctx: Any, v_out: Tensor) -> tuple[Tensor | None, ...]:
    degree, time_degree, as_color, scenes = ctx.scalars
    dirs, coeffs, viewmats, phases, masks = ctx.saved_tensors
    if v_out.is_cuda:  # what is not rendered adds nothing, be its place NaN or the camera's own
        seen = (v_out != 0).any(-1)
        masks = seen if masks is None else masks & seen
    v_dirs, v_coeffs, v_viewmats, v_phases = spherical_harmonics_backward(
        degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, scenes, v_out
    )
    return (
        None, None, v_dirs, v_coeffs, None if viewmats is None else v_viewmats, None if phases is None else v_phases,
        None, None, None,
    )  # fmt: skip


spherical_harmonics = torchlib.define(
    "core_splatting", f"spherical_harmonics({_HARMONICS}) -> Tensor", _harmonics_impl, _harmonics_fake,
    _harmonics_backward, _harmonics_context,
)  # fmt: skip
"""(C, N, D) of the raw operator's arguments; see `core_splatting.harmonics`."""

_SLICE = (
    "Tensor means, Tensor scales, Tensor quats_l, Tensor quats_r, Tensor opacities, Tensor? indices, float time, "
    "float min_weight, float prefilter_var"
)


def _slice_fake(*args: Any) -> tuple[Tensor, ...]:
    means, indices = args[0], args[5]
    rows = means.shape[0] if indices is None else indices.shape[0]
    return tuple(means.new_empty(shape) for shape in ((rows, 3), (rows, 6), (rows,), (rows,)))


def _slice_impl(*args: Any) -> tuple[Tensor, ...]:
    out = _slice_fake(*args)
    _C.slice_4d(*(*args, *out))
    return out


def _slice_gradients(*args: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in args[:5])


def _slice_backward_impl(*args: Any) -> tuple[Tensor, ...]:
    out = _slice_gradients(*args)
    _C.slice_4d_backward(*(*args, *out))
    return out


slice_4d_backward = torchlib.define(
    "core_splatting",
    f"slice_4d_backward({_SLICE}, Tensor v_means, Tensor v_covars, Tensor v_opacities) -> (Tensor, Tensor, Tensor, "
    "Tensor, Tensor)",
    _slice_backward_impl,
    _slice_gradients,
)
"""Gradients of a loss by means, scales, quats_l, quats_r and opacities."""


def _slice_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.scalars = inputs[6:]
    ctx.mark_non_differentiable(output[3])


def _slice_backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = slice_4d_backward(*ctx.saved_tensors, *ctx.scalars, *v[:3])
    return (*gradients, *[None] * 4)


slice_4d = torchlib.define(
    "core_splatting", f"slice_4d({_SLICE}) -> (Tensor, Tensor, Tensor, Tensor)", _slice_impl, _slice_fake,
    _slice_backward, _slice_context,
)  # fmt: skip
"""(means (M, 3), covars (M, 6), opacities (M,), weights (M,)); see `core_splatting.dynamic.slice_4d`."""

_LOOKS = "int degree, int time_degree, float duration, bool depth, Tensor viewmats, Tensor Ks"
_OPTIONS = (
    "float near_plane, float far_plane, float radius_clip, float eps2d, float max_alpha, bool antialiased, "
    "str camera_model"
)
_RENDER = (
    f"rasterize_4d({_SLICE}, Tensor? colors, Tensor? coeffs, {_LOOKS}, Tensor? backgrounds, Tensor? means2d, "
    f"SymInt width, SymInt height, {_OPTIONS}, bool absgrad, bool keep) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _render_shapes(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """Of the picture and, if they are kept, of the channels seen."""
    colors, coeffs, depth, cameras, (width, height), keep = (
        *args[9:11],
        args[14],
        args[15].shape[0],
        args[19:21],
        args[29],
    )
    channels = (colors if coeffs is None else coeffs).shape[-1] + depth
    rows = (args[0] if args[5] is None else args[5]).shape[0]
    return (cameras, height, width, channels), (cameras, rows, channels) if keep and (colors is None or depth) else None


def _render_fake(*args: Any) -> tuple[Tensor, ...]:
    means, keep, (picture, seen) = args[0], args[29], _render_shapes(args)
    size = torch.library.get_ctx().new_dynamic_size() if keep and means.device.type == "cuda" else 0
    return (
        means.new_empty(picture), means.new_empty((*picture[:3], 1)), means.new_empty(seen or (0, 0, 0)),
        means.new_empty((size,), dtype=torch.int32),
    )  # fmt: skip


def _render_impl(*args: Any) -> tuple[Tensor, ...]:
    means, (width, height), keep, (picture, of_seen) = args[0], args[19:21], args[29], _render_shapes(args)
    rows = (means if args[5] is None else args[5]).shape[0]
    seen = means.new_zeros(of_seen or (0, 0, 0))
    size = np.zeros(1, np.int64)
    if keep and means.is_cuda:
        _C.rasterize_workspace(picture[0], rows, width, height, means.device.index, size)
    workspace = means.new_empty((int(size[0]),), dtype=torch.int32)
    image, alphas = means.new_empty(picture), means.new_empty(picture[:3])
    kept = (None if of_seen is None else seen, workspace if keep and means.is_cuda else None)
    _C.rasterize_4d(*(*args[:18], *args[21:28], image, alphas, *kept))
    return image, alphas.unsqueeze(3), seen, workspace


def _render_gradients(*args: Any) -> list[Any]:
    colors, coeffs, depth, viewmats, (by_viewmats, columns) = *args[9:11], *args[14:16], args[30:32]
    given = colors.new_empty((*colors.shape[:2], colors.shape[2] - depth)) if coeffs is None else coeffs
    return [
        *(torch.empty_like(x) for x in (*args[:5], given)), torch.empty_like(viewmats) if by_viewmats else None,
        colors.new_empty((viewmats.shape[0], colors.shape[1], columns)) if columns else None,
    ]  # fmt: skip


def _render_backward_impl(*args: Any) -> list[Any]:
    out, v_alphas = _render_gradients(*args), args[27]
    looks = (None, out[5]) if args[10] is not None else (out[5], None)
    _C.rasterize_4d_backward(
        *(*args[:25], args[25].squeeze(3), args[26], None if v_alphas is None else v_alphas.squeeze(3), *args[28:30]),
        *(*out[:5], *looks, *out[6:]),
    )
    return out


rasterize_4d_backward = torchlib.define(
    "core_splatting",
    f"rasterize_4d_backward({_SLICE}, Tensor colors, Tensor? coeffs, {_LOOKS}, {_OPTIONS}, Tensor image, "
    "Tensor alphas, Tensor v_image, Tensor? v_alphas, Tensor? workspace, bool deterministic, bool by_viewmats, "
    "int columns) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _present(_render_backward_impl),
    _present(_render_gradients),
)
"""Gradients of a loss by means, scales, quats_l, quats_r, opacities, colors or coeffs, viewmats and the projected
centres, the last two as `rasterize_backward` gives them. With coeffs or `depth`, `colors` are the channels seen,
and the gradient by colors is of each camera."""


def _render_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    colors = output[2] if inputs[9] is None or inputs[14] else inputs[9]
    ctx.save_for_backward(*inputs[:6], colors, inputs[10], *inputs[15:17], *output[:2], output[3])
    ctx.scalars = (inputs[6:9], inputs[11:15], inputs[21:28])
    ctx.colors_shape = None if inputs[9] is None else inputs[9].shape
    ctx.absgrad = inputs[18] if inputs[28] else None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _render_backward(ctx: Any, v_image: Tensor | None, v_alphas: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *shape, colors, coeffs, viewmats, Ks, image, alphas, workspace = ctx.saved_tensors
    moment, looks, options = ctx.scalars
    needed = ctx.needs_input_grad
    if needed[16]:
        raise NotImplementedError("rasterize_4d: argument 'Ks' requires grad, but has no derivative; use Ks.detach()")
    if v_image is None:
        v_image = torch.zeros_like(image)
    v_backgrounds = ((1 - alphas) * v_image).sum((1, 2)) if needed[17] else None
    v = rasterize_4d_backward(
        *shape, *moment, colors, coeffs, *looks, viewmats, Ks, *options, image, alphas, v_image, v_alphas,
        workspace if alphas.is_cuda else None, torch.are_deterministic_algorithms_enabled(), needed[15],
        4 if ctx.absgrad is not None else 2 * needed[18],
    )  # fmt: skip
    if ctx.absgrad is not None:
        ctx.absgrad.absgrad = v[7][..., 2:]
    by_means2d = v[7][..., :2] if needed[18] else None
    by_looks = (v[5].sum_to_size(ctx.colors_shape), None) if coeffs is None else (None, v[5])
    geometry = (x if n else None for x, n in zip(v[:5], needed, strict=False))
    by_cameras = v[6] if needed[15] else None
    return (*geometry, *[None] * 4, *by_looks, *[None] * 4, by_cameras, None, v_backgrounds, by_means2d, *[None] * 11)


rasterize_4d = torchlib.define("core_splatting", _RENDER, _render_impl, _render_fake, _render_backward, _render_context)
"""(colours (C, H, W, D), alphas (C, H, W, 1)) of the raw operator's arguments; see
`core_splatting.dynamic.rasterization_4d`. `means2d` and `absgrad`: as for `rasterize`, (C, M, 2). The third and fourth
results are what is kept for the backward pass with `keep`, and empty without."""

eager_rasterize_4d = torchlib.eager(rasterize_4d)
