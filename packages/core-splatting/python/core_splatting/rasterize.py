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
    precision: str = "float32",
    **options: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """Renders N Gaussians into C cameras (arXiv 2308.04079, equations 4 to 6; semantics of gsplat 1.5.3).

    numpy arrays give numpy arrays, torch tensors give torch tensors on their device; all are float32. Leading batch
    dimensions ... hold scenes, each with its own cameras.

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
        covars: (..., N, 3, 3) covariances in place of quats and scales, of which the upper triangle is read; or
            (..., N, 6), the upper triangles alone: xx, xy, xz, yy, yz, zz.
        max_alpha: the most that one Gaussian may cover: 0.999 in gsplat 1.5.3, 0.99 in its 1.6.
        meta: whether the third result has the projections too; they cost another pass over the Gaussians.
        precision: "float16" makes colours and picture float16 (CUDA, render_mode "RGB", no gradients): the error is at
            most about a thousandth of the largest colour, which must be less than 65,504; faster and smaller with many
            channels.
        **options: gsplat's other keywords, accepted with the values that mean what this function does.

    Returns:
        colours (..., C, H, W, D), alphas (..., C, H, W, 1), and {"width", "height", "n_cameras", "tile_size"}. With
        `meta` that has also "tile_width", "tile_height", and of each Gaussian in each camera, 0 where it is culled:
        "means2d" (..., C, N, 2) pixels, "radii" (..., C, N, 2) int32 pixels, "depths" (..., C, N), "conics"
        (..., C, N, 3), "opacities" (..., C, N). With gradients, meta["means2d"].grad is the derivative
        by the centres after the backward pass.

    Gaussians with a NaN or an infinity, a zero quaternion or an opacity of at most 1/255 are culled.

    Raises:
        TypeError: an array that is not float32, an unknown keyword.
        ValueError: shapes that do not fit, a scalar out of range, a camera that is not finite.
        NotImplementedError: whatever of gsplat is not here; a gradient by Ks, and on CUDA one of more than 1024
            channels.

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
        ("camera_model", camera_model, CAMERA_MODELS),
        ("precision", precision, ("float32", "float16")),
    ):
        if chosen not in known:
            raise ValueError(f"rasterization: argument '{name}' must be one of {', '.join(known)}, got {chosen!r}")
    check_picture("rasterization", width, height, rasterize_mode, render_mode)
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
    if precision == "float16" and not (render_mode == "RGB" and is_torch(means) and means.is_cuda):
        raise NotImplementedError("rasterization: precision='float16' is for CUDA and render_mode='RGB'")
    return _render(means, given, sh_degree, render_mode, named, meta, absgrad, precision == "float16")


def check_picture(op: str, width: int, height: int, rasterize_mode: str, render_mode: str = "RGB") -> None:
    """Raises ValueError, in the name of a function, on a size or a mode that there is not."""
    if render_mode not in RENDER_MODES:
        raise ValueError(f"{op}: argument 'render_mode' must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    if width < 0 or height < 0:
        raise ValueError(f"{op}: argument 'width' and 'height' must not be negative, got {width} and {height}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"{op}: argument 'rasterize_mode' must be classic or antialiased, got {rasterize_mode!r}")


def _flattened(means: Any, given: dict[str, Any], sh: bool) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    """The arrays with the Gaussians and the cameras of all scenes one after the other, and the leading dimensions.

    Colours, or coefficients, become (all Gaussians, ...) or (all cameras, Gaussians of a scene, ...).
    """
    batch = tuple(means.shape[:-2])
    leading = len(batch)
    for name, value in given.items() if leading else ():
        if value is not None and tuple(value.shape[:leading]) != batch:
            raise ValueError(
                f"rasterization: argument '{name}' must have the leading dimensions {batch} of 'means', got shape "
                f"{tuple(value.shape)}"
            )
    scenes = math.prod(batch)
    if not scenes:
        raise ValueError(
            f"rasterization: argument 'means' must hold at least one scene, got shape {tuple(means.shape)}"
        )
    colors = given["colors"]
    if colors.ndim - leading - sh not in (2, 3):
        wanted = "(..., N, K, D) or (..., C, N, K, D), coefficients," if sh else "(..., N, D) or (..., C, N, D)"
        raise ValueError(f"rasterization: argument 'colors' must be of shape {wanted}, got {tuple(colors.shape)}")
    if leading:
        means = means.reshape((-1, *means.shape[leading + 1 :]))
        given = {k: v if v is None else v.reshape((-1, *v.shape[leading + 1 :])) for k, v in given.items()}
    return means, given, batch


def _render(
    means: Any,
    given: dict[str, Any],
    sh_degree: int | None,
    render_mode: str,
    named: dict[str, Any],
    meta: bool,
    absgrad: bool,
    half: bool,
) -> tuple[Any, Any, dict[str, Any]]:
    if given["covars"] is not None:
        given = given | {"covars": upper_triangles(given["covars"], means, "rasterization")}
    means, given, batch = _flattened(means, given, sh_degree is not None)
    quats, scales, opacities, colors, viewmats, Ks, backgrounds, covars = given.values()
    width, height = named["width"], named["height"]
    named["scenes"] = scenes = math.prod(batch)
    plain = sh_degree is None and render_mode == "RGB" and is_torch(means)
    if colors.ndim - (sh_degree is not None) == 2 and not plain:
        colors = colors[None]  # else the torch operator does it
    if sh_degree is not None:
        colors = colors_by_view(sh_degree, means, viewmats, colors, scenes=scenes)
    if render_mode != "RGB":
        colors, backgrounds = _with_depth(means, colors, viewmats, backgrounds, render_mode, scenes)
    cameras = viewmats.shape[0]
    information: dict[str, Any] = {
        "width": width, "height": height, "n_cameras": cameras // scenes, "tile_size": 16,
    }  # fmt: skip
    shape = (means, quats, scales, covars, opacities)
    by_camera = (*batch, cameras // scenes)
    if meta:
        parts = projections(shape, viewmats, Ks, named)
        information |= {k: v.reshape((*by_camera, *v.shape[1:])) for k, v in parts.items()}
        information |= {"tile_width": -(-width // 16), "tile_height": -(-height // 16)}
    scalars = [named[k] for k in ("near_plane", "far_plane", "radius_clip", "eps2d", "max_alpha", "antialiased")]
    scalars += [named["camera_model"], scenes]
    if is_torch(means):
        from .torch_ops import eager_rasterize

        torch, means2d = sys.modules["torch"], None
        if meta and torch.is_grad_enabled():
            means2d = information["means2d"].requires_grad_()
        if half:
            colors = colors.to(torch.float16)
        keep = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (*shape, colors, viewmats, backgrounds, means2d)
        )
        out, alphas = eager_rasterize(
            *shape, colors, viewmats, Ks, backgrounds, means2d, width, height, *scalars, absgrad, keep
        )[:2]  # fmt: skip
    else:
        out = empty((cameras, height, width, colors.shape[-1]), "float32", like=means)
        alphas = empty((cameras, height, width), "float32", like=means)
        _C.rasterize(*(*shape, colors, viewmats, Ks, backgrounds, *scalars, out, alphas, None))
        alphas = alphas[..., None]
    if render_mode.endswith("ED"):
        out = with_expected_depth(out, alphas)
    if batch:
        out, alphas = (x.reshape((*by_camera, *x.shape[1:])) for x in (out, alphas))
    return out, alphas, information


def with_expected_depth(image: Any, alphas: Any) -> Any:
    """A picture whose last channel, the accumulated depth, is over alpha."""
    expected = image[..., -1:] / alphas.clip(1e-10)
    if is_torch(image):
        return sys.modules["torch"].cat([image[..., :-1], expected], -1)
    image[..., -1:] = expected
    return image


def behind_depth(op: str, backgrounds: Any, render_mode: str) -> Any:
    """`backgrounds`, which may be None, with a 0 for the depth as last channel."""
    if backgrounds is None:
        return None
    if not render_mode.startswith("RGB"):
        raise ValueError(f"{op}: argument 'backgrounds' must be None with render_mode={render_mode!r}")
    behind = empty((backgrounds.shape[0], backgrounds.shape[-1] + 1), "float32", like=backgrounds)
    behind[:, :-1] = backgrounds
    behind[:, -1] = 0
    return behind


def upper_triangles(covars: Any, means: Any, op: str) -> Any:
    """(..., N, 6) of the covariances (..., N, 3, 3) of the Gaussians with `means`, or these themselves, in the name of
    `op`."""
    shape = tuple(covars.shape)
    if covars.ndim == means.ndim and shape[-1] == 6:
        return covars
    if covars.ndim != means.ndim + 1 or shape[-2:] != (3, 3):
        raise ValueError(f"{op}: argument 'covars' must be of shape (..., N, 3, 3) or (..., N, 6), got {shape}")
    rows = [covars[..., i, i:] for i in range(3)]
    if is_torch(covars):
        return sys.modules["torch"].cat(rows, -1)
    import numpy as np

    return np.concatenate(rows, -1)


def projections(shape: tuple[Any, ...], viewmats: Any, Ks: Any, named: dict[str, Any]) -> dict[str, Any]:
    """The entries of `meta` that are arrays; they carry no gradient."""
    inputs = [x.detach() if is_torch(x) else x for x in (*shape, viewmats, Ks)]
    cameras, count = viewmats.shape[0], shape[0].shape[0] // named["scenes"]
    parts = {
        "means2d": empty((cameras, count, 2), "float32", like=viewmats),
        "radii": empty((cameras, count, 2), "int32", like=viewmats),
        "depths": empty((cameras, count), "float32", like=viewmats),
        "conics": empty((cameras, count, 3), "float32", like=viewmats),
        "opacities": empty((cameras, count), "float32", like=viewmats),
    }
    names = ("near_plane", "far_plane", "radius_clip", "eps2d", "antialiased", "camera_model", "scenes")
    options = [named[k] for k in ("width", "height", *names)]
    _C.project_gaussians(*(*inputs, *options, *parts.values()))
    return parts


def _with_depth(
    means: Any, colors: Any, viewmats: Any, backgrounds: Any, render_mode: str, scenes: int
) -> tuple[Any, Any]:
    """`colors` and `backgrounds` with the depth in the camera as last channel, or as the only one."""
    cameras, count = viewmats.shape[0] // scenes, means.shape[0] // scenes
    if is_torch(means) and viewmats.requires_grad:  # a product with NaN is NaN, though nobody sees the Gaussian
        means = means.where(means.isfinite(), 0)
    rows = viewmats[:, 2].reshape((scenes, cameras, 4))
    depths = rows[..., :3] @ means.reshape((scenes, count, 3)).swapaxes(1, 2) + rows[..., 3:]
    depths = depths.reshape((scenes * cameras, count, 1))
    behind = behind_depth("rasterization", backgrounds, render_mode)
    if not render_mode.startswith("RGB"):
        return depths, behind
    channels = colors.shape[-1]
    result = empty((scenes, cameras, count, channels + 1), "float32", like=means)
    shared = colors.shape[0] == 1 and colors.shape[1] == scenes * count
    result[..., :-1] = colors.reshape((scenes, 1 if shared else cameras, count, channels))
    result[..., -1:] = depths.reshape((scenes, cameras, count, 1))
    return result.reshape((scenes * cameras, count, channels + 1)), behind
