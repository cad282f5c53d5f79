"""A new view from one photograph with its disparity: a Gaussian for each pixel, lying in the surface."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def gaussians_from_disparity(
    image: Array,
    disparity: Array,
    focal: float,
    centre: tuple[float, float],
    baseline: float,
    offset: float = 0.0,
    spread: float = 0.4,
    edge: float = 1.0,
) -> dict[str, Array]:
    """One Gaussian for each pixel of known disparity, in the camera's coordinates and the baseline's unit.

    Depth is focal * baseline / (disparity + offset). A Gaussian lies in the tangent plane that the disparity's
    central differences give, `spread` pixels wide in the photograph in both directions; differences above `edge`
    pixels of disparity are taken for a border between two surfaces, where the Gaussian faces the camera.

    Args:
        image: (H, W, D) float32 colours.
        disparity: (H, W) pixels; NaN, infinite and not positive depths mean unknown.
        focal: focal length in pixels.
        centre: principal point (x, y) in pixels, the first pixel's centre at (0.5, 0.5).
        baseline: distance of the two cameras.
        offset: x of the principal point in the right image minus that in the left one.

    Returns:
        means (M, 3), quats (M, 4), scales (M, 3), opacities (M,), colors (M, D), float32, in the order of pixels.
    """
    _height, _width = disparity.shape
    with np.errstate(all="ignore"):
        depth = focal * baseline / (disparity.astype(np.float64) + offset)
        known = np.isfinite(depth) & (depth > 0)
        slopes = []
        for axis in (1, 0):
            slope = np.gradient(disparity.astype(np.float64), axis=axis)
            slope[~(np.abs(slope) <= edge)] = 0
            slopes.append(slope)
    ys, xs = np.nonzero(known)
    z = depth[known]
    ray = np.stack([(xs + 0.5 - centre[0]) / focal, (ys + 0.5 - centre[1]) / focal, np.ones(len(z))], -1)
    # P = z ray; dz/dx = -z / (disparity + offset) * slope.
    relative = [-slope[known] / (disparity[known].astype(np.float64) + offset) for slope in slopes]
    along_x = z[:, None] * (ray * relative[0][:, None] + np.array([1 / focal, 0, 0]))
    along_y = z[:, None] * (ray * relative[1][:, None] + np.array([0, 1 / focal, 0]))
    covariance = spread**2 * (along_x[:, :, None] * along_x[:, None, :] + along_y[:, :, None] * along_y[:, None, :])
    variances, axes = np.linalg.eigh(covariance)
    axes[:, :, 0] *= np.sign(np.linalg.det(axes))[:, None]
    return {
        "means": (ray * z[:, None]).astype(np.float32),
        "quats": quaternions(axes).astype(np.float32),
        "scales": np.sqrt(variances.clip(0)).astype(np.float32),
        "opacities": np.full(len(z), 0.999, np.float32),
        "colors": np.ascontiguousarray(image[known], np.float32),
    }


def quaternions(rotations: Array) -> Array:
    """Unit quaternions (N, 4), w x y z, of rotation matrices (N, 3, 3): the eigenvector form of Shepperd's method."""
    r = rotations
    trace = np.trace(r, axis1=1, axis2=2)
    diagonal = [np.stack([1 + trace] + [1 - trace + 2 * r[:, i, i] for i in range(3)], -1)]
    best = diagonal[0].argmax(-1)
    a, b, c = r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]
    d, e, f = r[:, 0, 1] + r[:, 1, 0], r[:, 0, 2] + r[:, 2, 0], r[:, 1, 2] + r[:, 2, 1]
    dw, dx, dy, dz = diagonal[0].T
    candidates = np.stack(
        [np.stack(row, -1) for row in ([dw, a, b, c], [a, dx, d, e], [b, d, dy, f], [c, e, f, dz])], 1
    )
    q = candidates[np.arange(len(r)), best]
    unit: Array = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return unit


def right_camera(focal: float, centre: tuple[float, float], baseline: float, offset: float) -> tuple[Array, Array]:
    """viewmats (1, 4, 4) and Ks (1, 3, 3), float32, of the right camera of a rectified pair."""
    viewmat, K = np.eye(4, dtype=np.float32), np.eye(3, dtype=np.float32)
    viewmat[0, 3] = -baseline
    K[0, 0] = K[1, 1] = focal
    K[:2, 2] = centre[0] + offset, centre[1]
    return viewmat[None], K[None]


def visible_in_right(disparity: Array) -> Array:
    """(H, W) bool: the pixels of the right image onto which a pixel of the left one falls, to within half a pixel."""
    height, width = disparity.shape
    ys, xs = np.nonzero(np.isfinite(disparity))
    target = np.rint(xs - disparity[ys, xs]).astype(np.int64)
    inside = (target >= 0) & (target < width)
    seen = np.zeros((height, width), bool)
    seen[ys[inside], target[inside]] = True
    return seen


def psnr(a: Array, b: Array, mask: Array) -> float:
    """Peak signal-to-noise ratio in dB of images (H, W, D) in [0, 1] over the pixels of mask (H, W)."""
    return float(-10 * np.log10(np.mean((a[mask].astype(np.float64) - b[mask]) ** 2)))


def render_right(
    gaussians: dict[str, Array],
    width: int,
    height: int,
    focal: float,
    centre: tuple[float, float],
    baseline: float,
    offset: float = 0.0,
    eps2d: float = 0.1,
) -> tuple[Array, Array]:
    """The right camera's image (H, W, D), divided by its alphas, and the alphas (H, W)."""
    from .rasterize import rasterization

    viewmats, Ks = right_camera(focal, centre, baseline, offset)
    g = gaussians
    image, alphas, _ = rasterization(
        g["means"], g["quats"], g["scales"], g["opacities"], g["colors"], viewmats, Ks, width, height, eps2d=eps2d
    )
    return np.clip(image[0] / np.clip(alphas[0], 1 / 255, None), 0, 1), alphas[0, ..., 0]
