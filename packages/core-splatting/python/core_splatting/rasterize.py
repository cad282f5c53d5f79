"""Rasterisation of 3D Gaussians, with the keywords and shapes of gsplat's `rasterization`."""

from __future__ import annotations

import sys
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "sh_degree": (None,),
    "packed": (True, False),
    "tile_size": (16,),
    "sparse_grad": (False,),
    "absgrad": (False,),
    "rasterize_mode": ("classic",),
    "channel_chunk": (32,),
    "distributed": (False,),
    "camera_model": ("pinhole",),
    "segmented": (False,),
    "covars": (None,),
    "with_ut": (False,),
    "with_eval3d": (False,),
    "radial_coeffs": (None,),
    "tangential_coeffs": (None,),
    "thin_prism_coeffs": (None,),
}


def rasterization(
    means: Any,
    quats: Any,
    scales: Any,
    opacities: Any,
    colors: Any,
    viewmats: Any,
    Ks: Any,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    backgrounds: Any = None,
    render_mode: str = "RGB",
    *,
    max_alpha: float = 0.999,
    **options: Any,
) -> tuple[Any, Any, dict[str, int]]:
    """Renders N Gaussians into C pinhole cameras (arXiv 2308.04079, equations 4 to 6; semantics of gsplat 1.5.3).

    numpy arrays give numpy arrays, torch tensors give torch tensors on their device; all are float32.

    Args:
        means: (N, 3) centres, world units.
        quats: (N, 4) rotations as quaternions w, x, y, z, of any length but zero.
        scales: (N, 3) standard deviations along the rotated axes, world units.
        opacities: (N,) in [0, 1].
        colors: (N, D) or (C, N, D), D channels of any meaning.
        viewmats: (C, 4, 4) world to camera; x right, y down, z forward (OpenCV).
        Ks: (C, 3, 3) camera matrices in pixels; the first pixel's centre is at (0.5, 0.5); no skew.
        width, height: size of the image, at most 65,536 each.
        near_plane, far_plane: Gaussians whose depth lies outside are culled.
        radius_clip: Gaussians that reach at most this many pixels are culled.
        eps2d: variance in square pixels that every projected Gaussian is given in addition.
        backgrounds: (C, D) what shows through; black if None. With a depth in `render_mode`, the depth channel's
            background is 0 and `backgrounds` has the D channels of `colors` (none in "D" and "ED").
        render_mode: "RGB" the channels of `colors`; "D" the accumulated depth; "ED" the expected depth (accumulated
            depth over alpha); "RGB+D" and "RGB+ED" both, depth last.
        max_alpha: the most that one Gaussian may cover: 0.999 in gsplat 1.5.3, 0.99 in its 1.6.
        **options: gsplat's other keywords, accepted with the values that mean what this function does.

    Returns:
        colours (C, H, W, D), alphas (C, H, W, 1), and {"width", "height", "n_cameras", "tile_size"}.

    Gaussians with a NaN or an infinity, a zero quaternion or an opacity of at most 1/255 are culled.

    Raises:
        TypeError: an array that is not float32, an unknown keyword.
        ValueError: shapes that do not fit, a scalar out of range, a camera that is not finite.
        NotImplementedError: spherical harmonics, other camera models, the antialiased mode and whatever else of
            gsplat is not here; a gradient by Ks, and on CUDA one of more than 32 channels.

    torch tensors that require grad get one: means, quats, scales, opacities, colors, viewmats and backgrounds.
    """
    for name, value in options.items():
        if name not in _UNSUPPORTED:
            raise TypeError(f"rasterization: unknown keyword '{name}'")
        if value not in _UNSUPPORTED[name]:
            raise NotImplementedError(
                f"rasterization: {name}={value!r} is not supported, only {' or '.join(map(repr, _UNSUPPORTED[name]))}"
            )
    if render_mode not in RENDER_MODES:
        raise ValueError(
            f"rasterization: argument 'render_mode' must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}"
        )
    if width < 0 or height < 0:
        raise ValueError(f"rasterization: argument 'width' and 'height' must not be negative, got {width} and {height}")
    means = as_array(means, "float32", "means")
    quats, scales, opacities, colors, viewmats, Ks = (
        as_array(x, "float32", name, like=means)
        for x, name in (
            (quats, "quats"), (scales, "scales"), (opacities, "opacities"), (colors, "colors"), (viewmats,
            "viewmats"), (Ks, "Ks"),
        )
    )  # fmt: skip
    if backgrounds is not None:
        backgrounds = as_array(backgrounds, "float32", "backgrounds", like=means)
    if colors.ndim not in (2, 3):
        raise ValueError(
            f"rasterization: argument 'colors' must be of shape (N, D) or (C, N, D), got {tuple(colors.shape)}"
        )
    if colors.ndim == 2:
        colors = colors[None]
    if render_mode != "RGB":
        colors, backgrounds = _with_depth(means, colors, viewmats, backgrounds, render_mode)

    scalars = (float(near_plane), float(far_plane), float(radius_clip), float(eps2d), float(max_alpha))
    cameras = viewmats.shape[0]
    if is_torch(means):
        from .torch_ops import rasterize

        out, alphas = rasterize(
            means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, int(width), int(height), *scalars
        )
    else:
        out = empty((cameras, height, width, colors.shape[-1]), "float32", like=means)
        alphas = empty((cameras, height, width), "float32", like=means)
        _C.rasterize(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, *scalars, out, alphas)
    alphas = alphas[..., None]
    if render_mode.endswith("ED"):
        expected = out[..., -1:] / alphas.clip(1e-10)
        if is_torch(out):
            out = sys.modules["torch"].cat([out[..., :-1], expected], -1)
        else:
            out[..., -1:] = expected
    return out, alphas, {"width": width, "height": height, "n_cameras": cameras, "tile_size": 16}


def _with_depth(means: Any, colors: Any, viewmats: Any, backgrounds: Any, render_mode: str) -> tuple[Any, Any]:
    """`colors` and `backgrounds` with the depth in the camera as last channel, or as the only one."""
    depths = (viewmats[:, 2, :3] @ means.T + viewmats[:, 2, 3:])[..., None]
    if not render_mode.startswith("RGB"):
        if backgrounds is not None:
            raise ValueError(f"rasterization: argument 'backgrounds' must be None with render_mode={render_mode!r}")
        return depths, None
    result = empty((*depths.shape[:2], colors.shape[-1] + 1), "float32", like=means)
    result[..., :-1] = colors
    result[..., -1:] = depths
    if backgrounds is None:
        return result, None
    behind = empty((backgrounds.shape[0], colors.shape[-1] + 1), "float32", like=means)
    behind[:, :-1] = backgrounds
    behind[:, -1] = 0
    return result, behind
