"""Rasterisation of 3D Gaussians, with the keywords and shapes of gsplat's `rasterization`."""

from __future__ import annotations

import math
import sys
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C
from .harmonics import colors_by_view

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
CAMERA_MODELS = ("pinhole", "ortho", "fisheye")
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "packed": (True, False),
    "tile_size": (16,),
    "sparse_grad": (False,),
    "channel_chunk": (32,),
    "distributed": (False,),
    "segmented": (False,),
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
    sh_degree: int | None = None,
    *,
    backgrounds: Any = None,
    render_mode: str = "RGB",
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    covars: Any = None,
    max_alpha: float = 0.999,
    meta: bool = False,
    **options: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """Renders N Gaussians into C cameras (arXiv 2308.04079, equations 4 to 6; semantics of gsplat 1.5.3).

    numpy arrays give numpy arrays, torch tensors give torch tensors on their device; all are float32. Leading batch
    dimensions ... hold scenes that are rendered one by one.

    Args:
        means: (..., N, 3) centres, world units.
        quats: (..., N, 4) rotations as quaternions w, x, y, z, of any length but zero; None with `covars`.
        scales: (..., N, 3) standard deviations along the rotated axes, world units; None with `covars`.
        opacities: (..., N) in [0, 1].
        colors: (..., N, D) or (..., C, N, D), D channels of any meaning. With `sh_degree`, (..., N, K, D) or
            (..., C, N, K, D) coefficients of spherical harmonics: a colour is max(0, 0.5 + their sum).
        viewmats: (..., C, 4, 4) world to camera; x right, y down, z forward (OpenCV).
        Ks: (..., C, 3, 3) camera matrices in pixels; the first pixel's centre is at (0.5, 0.5); no skew.
        width, height: size of the image, at most 65,536 each.
        near_plane, far_plane: Gaussians whose depth lies outside are culled.
        radius_clip: Gaussians that reach at most this many pixels are culled.
        eps2d: variance in square pixels that every projected Gaussian is given in addition.
        sh_degree: 0 to 3, with K >= (sh_degree + 1)^2; None if `colors` are colours.
        backgrounds: (..., C, D) what shows through; black if None. With a depth in `render_mode`, the depth channel's
            background is 0 and `backgrounds` has the D channels of `colors` (none in "D" and "ED").
        render_mode: "RGB" the channels of `colors`; "D" the accumulated depth; "ED" the expected depth (accumulated
            depth over alpha); "RGB+D" and "RGB+ED" both, depth last.
        absgrad: with `meta`, the backward pass sets meta["means2d"].absgrad (torch, eager mode).
        rasterize_mode: "antialiased" takes from the opacities what eps2d adds to the size (arXiv 2311.16493).
        camera_model: "pinhole", "ortho" or "fisheye" (equidistant).
        covars: (..., N, 3, 3) covariances in place of quats and scales; the upper triangle is read.
        max_alpha: the most that one Gaussian may cover: 0.999 in gsplat 1.5.3, 0.99 in its 1.6.
        meta: whether the third result has the projections too; they cost another pass over the Gaussians.
        **options: gsplat's other keywords, accepted with the values that mean what this function does.

    Returns:
        colours (..., C, H, W, D), alphas (..., C, H, W, 1), and {"width", "height", "n_cameras", "tile_size"}. With
        `meta` that has also "tile_width", "tile_height", and of each Gaussian in each camera, 0 where it is culled:
        "means2d" (C, N, 2) pixels, "radii" (C, N, 2) int32 pixels, "depths" (C, N), "conics" (C, N, 3), "opacities"
        (C, N). With gradients, meta["means2d"].grad is the derivative by the centres after the backward pass.

    Gaussians with a NaN or an infinity, a zero quaternion or an opacity of at most 1/255 are culled.

    Raises:
        TypeError: an array that is not float32, an unknown keyword.
        ValueError: shapes that do not fit, a scalar out of range, a camera that is not finite.
        NotImplementedError: whatever of gsplat is not here; `meta` with batch dimensions; a gradient by Ks, and on
            CUDA one of more than 1024 channels.

    torch tensors that require grad get one: means, quats, scales, covars, opacities, colors, viewmats, backgrounds. On
    CUDA it differs in the last digits from run to run, unless torch.use_deterministic_algorithms is on. There the host
    never waits for the device, and more than four channels are blended with a relative error of about 2^-16.
    """
    for name, value in options.items():
        if name not in _UNSUPPORTED:
            raise TypeError(f"rasterization: unknown keyword '{name}'")
        if value not in _UNSUPPORTED[name]:
            raise NotImplementedError(
                f"rasterization: {name}={value!r} is not supported, only {' or '.join(map(repr, _UNSUPPORTED[name]))}"
            )
    for name, chosen, known in (
        ("render_mode", render_mode, RENDER_MODES),
        ("rasterize_mode", rasterize_mode, ("classic", "antialiased")),
        ("camera_model", camera_model, CAMERA_MODELS),
    ):
        if chosen not in known:
            raise ValueError(f"rasterization: argument '{name}' must be one of {', '.join(known)}, got {chosen!r}")
    if width < 0 or height < 0:
        raise ValueError(f"rasterization: argument 'width' and 'height' must not be negative, got {width} and {height}")
    means = as_array(means, "float32", "means")
    given: dict[str, Any] = {
        "quats": quats, "scales": scales, "opacities": opacities, "colors": colors, "viewmats": viewmats, "Ks": Ks,
        "backgrounds": backgrounds, "covars": covars,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            given[name] = as_array(value, "float32", name, like=means)
        elif name in ("opacities", "colors", "viewmats", "Ks"):
            raise TypeError(f"rasterization: argument '{name}' must be float32, got None")
    named: dict[str, Any] = {
        "width": int(width), "height": int(height), "near_plane": float(near_plane), "far_plane": float(far_plane),
        "radius_clip": float(radius_clip), "eps2d": float(eps2d), "max_alpha": float(max_alpha),
        "antialiased": rasterize_mode == "antialiased", "camera_model": camera_model,
    }  # fmt: skip
    if means.ndim > 2:
        if meta:
            raise NotImplementedError("rasterization: meta=True is not supported with batch dimensions")
        return _each_scene(means, given, sh_degree, render_mode, named)
    return _one_scene(means, given, sh_degree, render_mode, named, meta, absgrad)


def _each_scene(
    means: Any, given: dict[str, Any], sh_degree: int | None, render_mode: str, named: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """The scenes of the leading dimensions, one after the other."""
    batch = tuple(means.shape[:-2])
    for name, value in given.items():
        if value is not None and tuple(value.shape[: len(batch)]) != batch:
            raise ValueError(
                f"rasterization: argument '{name}' must have the leading dimensions {batch} of 'means', got shape "
                f"{tuple(value.shape)}"
            )
    count = math.prod(batch)
    flat: dict[str, Any] = {
        name: None if v is None else v.reshape((count, *v.shape[len(batch) :]))
        for name, v in (given | {"means": means}).items()
    }
    scenes = [
        _one_scene(
            flat["means"][i],
            {name: None if flat[name] is None else flat[name][i] for name in given},
            sh_degree, render_mode, named,
        )
        for i in range(count)
    ]  # fmt: skip
    if not scenes:
        raise ValueError(
            f"rasterization: argument 'means' must hold at least one scene, got shape {tuple(means.shape)}"
        )
    if is_torch(means):
        stack = sys.modules["torch"].stack
    else:
        import numpy as np

        stack = np.stack
    images, alphas = (stack([scene[k] for scene in scenes]) for k in range(2))
    return (
        images.reshape((*batch, *images.shape[1:])),
        alphas.reshape((*batch, *alphas.shape[1:])),
        scenes[0][2],
    )


def _one_scene(
    means: Any,
    given: dict[str, Any],
    sh_degree: int | None,
    render_mode: str,
    named: dict[str, Any],
    meta: bool = False,
    absgrad: bool = False,
) -> tuple[Any, Any, dict[str, Any]]:
    quats, scales, opacities, colors, viewmats, Ks, backgrounds, covars = given.values()
    width, height = named["width"], named["height"]
    if covars is not None:
        covars = upper_triangles(covars, "rasterization")
    if sh_degree is not None:
        colors = colors_by_view(sh_degree, means, viewmats, colors)
    if colors.ndim not in (2, 3):
        raise ValueError(
            f"rasterization: argument 'colors' must be of shape (N, D) or (C, N, D), got {tuple(colors.shape)}"
        )
    if colors.ndim == 2:
        colors = colors[None]
    if render_mode != "RGB":
        colors, backgrounds = _with_depth(means, colors, viewmats, backgrounds, render_mode)
    cameras = viewmats.shape[0]
    information: dict[str, Any] = {"width": width, "height": height, "n_cameras": cameras, "tile_size": 16}
    shape = (means, quats, scales, covars, opacities)
    if meta:
        information |= _projections(shape, viewmats, Ks, named)
    scalars = [named[k] for k in ("near_plane", "far_plane", "radius_clip", "eps2d", "max_alpha", "antialiased")]
    scalars.append(named["camera_model"])
    if is_torch(means):
        from .torch_ops import rasterize

        means2d = None
        if meta and sys.modules["torch"].is_grad_enabled():
            means2d = information["means2d"].requires_grad_()
        torch = sys.modules["torch"]
        keep = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (*shape, colors, viewmats, backgrounds, means2d)
        )
        out, alphas, _ = rasterize(
            *shape, colors, viewmats, Ks, backgrounds, means2d, width, height, *scalars, absgrad, keep
        )  # fmt: skip
    else:
        out = empty((cameras, height, width, colors.shape[-1]), "float32", like=means)
        alphas = empty((cameras, height, width), "float32", like=means)
        _C.rasterize(*(*shape, colors, viewmats, Ks, backgrounds, *scalars, out, alphas, None))
    alphas = alphas[..., None]
    if render_mode.endswith("ED"):
        expected = out[..., -1:] / alphas.clip(1e-10)
        if is_torch(out):
            out = sys.modules["torch"].cat([out[..., :-1], expected], -1)
        else:
            out[..., -1:] = expected
    return out, alphas, information


def upper_triangles(covars: Any, op: str) -> Any:
    """(N, 6) of covariances (N, 3, 3), in the name of `op`."""
    if covars.ndim != 3 or tuple(covars.shape[-2:]) != (3, 3):
        raise ValueError(f"{op}: argument 'covars' must be of shape (N, 3, 3), got {tuple(covars.shape)}")
    return covars[..., [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]


def _projections(shape: tuple[Any, ...], viewmats: Any, Ks: Any, named: dict[str, Any]) -> dict[str, Any]:
    """The entries of `meta` that are arrays; they carry no gradient."""
    inputs = [x.detach() if is_torch(x) else x for x in (*shape, viewmats, Ks)]
    cameras, count = viewmats.shape[0], shape[0].shape[0]
    parts = {
        "means2d": empty((cameras, count, 2), "float32", like=viewmats),
        "radii": empty((cameras, count, 2), "int32", like=viewmats),
        "depths": empty((cameras, count), "float32", like=viewmats),
        "conics": empty((cameras, count, 3), "float32", like=viewmats),
        "opacities": empty((cameras, count), "float32", like=viewmats),
    }
    options = [
        named[k]
        for k in ("width", "height", "near_plane", "far_plane", "radius_clip", "eps2d", "antialiased", "camera_model")
    ]
    _C.project_gaussians(*inputs, *options, *parts.values())
    return parts | {"tile_width": -(-named["width"] // 16), "tile_height": -(-named["height"] // 16)}


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
