"""How much each Gaussian contributes to pictures: the sum of its blending weights."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import as_array, empty

from . import _core_splatting as _C
from .rasterize import check_picture, upper_triangles


def contributions(
    means: Any,
    quats: Any,
    scales: Any,
    opacities: Any,
    viewmats: Any,
    Ks: Any,
    width: int,
    height: int,
    pixels: Any = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    *,
    covars: Any = None,
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    max_alpha: float = 0.999,
) -> Any:
    """The sum over the pixels of each view of alpha_i * prod_{j<i} (1 - alpha_j), the spatial score of 4DGS-1K
    (arXiv 2503.16422, section 4.1).

    It is the derivative by a colour of one channel of a loss that sums the pixels. On CUDA the last digits differ from
    run to run.

    Args:
        means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, radius_clip, eps2d, covars,
        rasterize_mode, camera_model, max_alpha: as in `rasterization`.
        pixels: (C, H, W) float32, what each pixel counts (0 leaves it out); 1 if None.

    Returns:
        (C, N) float32, the sum in each view; `.sum(0)` is that over all views.

    Raises:
        TypeError: an array that is not float32.
        ValueError: shapes that do not fit, a scalar out of range, a camera that is not finite.
        NotImplementedError: a tensor that requires grad.
    """
    check_picture("contributions", width, height, rasterize_mode)
    means = as_array(means, "float32", "means")
    quats, scales, covars, opacities, viewmats, Ks = (
        None if x is None else as_array(x, "float32", name, like=means)
        for x, name in (
            (quats, "quats"), (scales, "scales"), (covars, "covars"), (opacities, "opacities"), (viewmats, "viewmats"),
            (Ks, "Ks"),
        )
    )  # fmt: skip
    if covars is not None:
        covars = upper_triangles(covars, means, "contributions")
    cameras, count = viewmats.shape[0], means.shape[0]
    if pixels is None:
        pixels = empty((cameras, height, width), "float32", like=means)
        pixels[...] = 1
    pixels = as_array(pixels, "float32", "pixels", like=means)
    if tuple(pixels.shape) != (cameras, height, width):
        raise ValueError(
            f"contributions: argument 'pixels' must be of shape {(cameras, height, width)}, got {tuple(pixels.shape)}"
        )
    out = empty((cameras, count), "float32", like=means)
    scalars = (float(near_plane), float(far_plane), float(radius_clip), float(eps2d), float(max_alpha))
    modes = (rasterize_mode == "antialiased", camera_model, 1)
    _C.contributions(*(means, quats, scales, covars, opacities, viewmats, Ks, pixels, *scalars, *modes, out))
    return out
