"""How much each Gaussian contributes to pictures: the sum of its blending weights."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C


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
    max_alpha: float = 0.999,
) -> Any:
    """The sum over the pixels of each view of alpha_i * prod_{j<i} (1 - alpha_j), the spatial score of 4DGS-1K
    (arXiv 2503.16422, section 4.1).

    It is the derivative by a colour of one channel of a loss that sums the pixels. CPU arrays only.

    Args:
        means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, radius_clip, eps2d,
        max_alpha: as in `rasterization`.
        pixels: (C, H, W) float32, what each pixel counts (0 leaves it out); 1 if None.

    Returns:
        (C, N) float32, the sum in each view; `.sum(0)` is that over all views.

    Raises:
        TypeError: an array that is not float32.
        ValueError: shapes that do not fit, a scalar out of range, a camera that is not finite.
        NotImplementedError: a tensor that requires grad.
    """
    if width < 0 or height < 0:
        raise ValueError(f"contributions: argument 'width' and 'height' must not be negative, got {width} and {height}")
    means = as_array(means, "float32", "means")
    quats, scales, opacities, viewmats, Ks = (
        as_array(x, "float32", name, like=means)
        for x, name in (
            (quats, "quats"), (scales, "scales"), (opacities, "opacities"), (viewmats, "viewmats"), (Ks, "Ks"),
        )
    )  # fmt: skip
    cameras, count = viewmats.shape[0], means.shape[0]
    if pixels is None:
        pixels = empty((cameras, height, width), "float32", like=means)
        pixels[...] = 1
    pixels = as_array(pixels, "float32", "pixels", like=means)
    if tuple(pixels.shape) != (cameras, height, width):
        raise ValueError(
            f"contributions: argument 'pixels' must be of shape {(cameras, height, width)}, got {tuple(pixels.shape)}"
        )
    nothing = empty((cameras, height, width, 1), "float32", like=means)
    nothing[...] = 0
    black = empty((cameras, count, 1), "float32", like=means)
    black[...] = 0
    scalars = (float(near_plane), float(far_plane), float(radius_clip), float(eps2d), float(max_alpha))
    inputs = (means, quats, scales, None, opacities, black, viewmats, Ks, *scalars, False, "pinhole")
    pictures = (nothing, nothing[..., 0], pixels[..., None], nothing[..., 0])
    if is_torch(means):
        from .torch_ops import rasterize_backward

        sums: Any = rasterize_backward(*inputs, *pictures)[5]
    else:
        shapes = (
            (count, 3),
            (count, 4),
            (count, 3),
            (count,),
            (cameras, count, 1),
            (cameras, 4, 4),
            (cameras, count, 4),
        )
        gradients = [empty(shape, "float32", like=means) for shape in shapes]
        _C.rasterize_backward(*(*inputs, *pictures, *gradients[:3], None, *gradients[3:]))
        sums = gradients[4]
    return sums[..., 0]
