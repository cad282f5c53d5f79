"""Colours by direction: spherical harmonics, and their product with a cosine series in time."""

from __future__ import annotations

import math
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C


def spherical_harmonics(degrees_to_use: int, dirs: Any, coeffs: Any, masks: Any = None) -> Any:
    """Sums of real spherical harmonics (gsplat's function; arXiv 2308.04079), in the order and signs of the 3DGS code.

    Args:
        degrees_to_use: 0 to 3: the first (degree + 1)^2 coefficients count.
        dirs: (..., 3) float32 directions of any length but zero.
        coeffs: (..., K, D) float32, K >= (degree + 1)^2; D is 3 for colours.
        masks: (...) bool; where False, the sum is not computed but 0.

    Returns:
        (..., D) float32 of the kind of `dirs`. torch tensors get gradients, by dirs and coeffs.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit, a degree out of range.
    """
    dirs = as_array(dirs, "float32", "dirs")
    coeffs = as_array(coeffs, "float32", "coeffs", like=dirs)
    if dirs.ndim < 1 or dirs.shape[-1] != 3:
        raise ValueError(f"spherical_harmonics: argument 'dirs' must be of shape (..., 3), got {tuple(dirs.shape)}")
    batch = tuple(dirs.shape[:-1])
    if coeffs.ndim < 2 or tuple(coeffs.shape[:-2]) != batch:
        raise ValueError(
            f"spherical_harmonics: argument 'coeffs' must be of shape {(*batch, 'K', 'D')}, got {tuple(coeffs.shape)}"
        )
    if masks is not None:
        masks = as_array(masks, "bool", "masks", like=dirs)
        if tuple(masks.shape) != batch:
            raise ValueError(
                f"spherical_harmonics: argument 'masks' must be of shape {batch}, got {tuple(masks.shape)}"
            )
        masks = masks.reshape((1, math.prod(batch)))
    count = math.prod(batch)
    out = _harmonics(
        degrees_to_use, 0, dirs.reshape((count, 3)), coeffs.reshape((1, count, *coeffs.shape[-2:])), None, None, masks,
        False, 1, 1,
    )  # fmt: skip
    return out.reshape((*batch, coeffs.shape[-1]))


def colors_by_view(
    degree: int,
    means: Any,
    viewmats: Any,
    coeffs: Any,
    time_degree: int = 0,
    phases: Any = None,
    scenes: int = 1,
) -> Any:
    """Colours max(0, 0.5 + sum of harmonics) of Gaussians as C cameras see them.

    With `time_degree` L > 0 these are the 4D spherindrical harmonics (arXiv 2310.10642, section 3.2): the coefficients
    16 i to 16 i + 15 count cos(2 pi i phase) times, for i from 0 to L.

    Args:
        degree: 0 to 3, of the functions of direction.
        means: (N, 3) float32 centres, world units.
        viewmats: (C, 4, 4) float32 world to camera, invertible.
        coeffs: (N, K, D) or (C, N, K, D) float32, K >= 16 L + (degree + 1)^2.
        time_degree: L, 0 to 2.
        phases: (N,) float32, (mu_t - t) / T with the centre in time, the time and the duration; needed if L > 0.
        scenes: how many scenes these are, their Gaussians one after the other, and so their cameras; coefficients are
            then (N, K, D) or (1, N, K, D) of all, or (C, N / scenes, K, D).

    Returns:
        (C, N / scenes, D) float32. torch tensors get gradients, by means, viewmats, coeffs and phases.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit, a degree out of range.
    """
    means = as_array(means, "float32", "means")
    viewmats = as_array(viewmats, "float32", "viewmats", like=means)
    coeffs = as_array(coeffs, "float32", "coeffs", like=means)
    if phases is not None:
        phases = as_array(phases, "float32", "phases", like=means)
    if coeffs.ndim not in (3, 4):
        raise ValueError(
            "spherical_harmonics: argument 'colors' must hold coefficients of shape (N, K, D) or (C, N, K, D), "
            f"got {tuple(coeffs.shape)}"
        )
    if coeffs.ndim == 3:
        coeffs = coeffs[None]
    return _harmonics(degree, time_degree, means, coeffs, viewmats, phases, None, True, viewmats.shape[0], scenes)


def _harmonics(
    degree: int, time_degree: int, dirs: Any, coeffs: Any, viewmats: Any, phases: Any, masks: Any, as_color: bool,
    cameras: int, scenes: int,
) -> Any:  # fmt: skip
    if is_torch(dirs):
        from .torch_ops import spherical_harmonics as operator

        return operator(degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, scenes)
    out = empty((cameras, dirs.shape[0] // scenes, coeffs.shape[-1]), "float32", like=dirs)
    _C.spherical_harmonics(degree, time_degree, dirs, coeffs, viewmats, phases, masks, as_color, scenes, out)
    return out
