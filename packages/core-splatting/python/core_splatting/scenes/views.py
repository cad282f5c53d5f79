"""Posed photographs: cameras, and images that are scaled and freed of lens distortion when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class SceneError(ValueError):
    """A data set that is not what it should be: names the file, the place, what was expected and what was found."""

    def __init__(self, path: Path, where: str, problem: str) -> None:
        super().__init__(f"{path}: {where}: {problem}")


@contextlib.contextmanager
def open_image(path: Path, pixels: Array | None = None) -> Iterator[Any]:
    """A photograph as Pillow's image, or one of `pixels`; SceneError for what Pillow cannot read."""
    from PIL import Image

    try:
        with Image.open(path) if pixels is None else Image.fromarray(pixels) as opened:
            yield opened
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise SceneError(path, "image", f"expected one that Pillow reads: {e}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One photograph and its camera.

    viewmat (4, 4) float64, world to camera, x right, y down, z forward; K (3, 3) float64 in pixels of the full image;
    distortion (k1, k2, p1, p2) of OpenCV's model; width, height of the full image. time: when it was taken. pixels
    (height, width, 3) uint8: the image, if it is not to be read from `path`.
    """

    path: Path
    viewmat: Array
    K: Array
    width: int
    height: int
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    time: float = 0.0
    pixels: Array | None = None

    def load(self, downscale: int = 1) -> tuple[Array, Array]:
        """The image (H, W, 3) float32 in [0, 1], and K (3, 3) of the pinhole camera that took it.

        The sides are divided by `downscale`, each new pixel the mean of those it covers; the distortion is taken out
        by bilinear interpolation, and what the photograph does not show becomes its nearest pixel.
        """
        with open_image(self.path, self.pixels) as opened:
            found = opened.size
            small = opened.convert("RGB").reduce(downscale) if downscale > 1 else opened.convert("RGB")
            image = np.asarray(small, np.float32) / 255
        if found != (self.width, self.height):
            raise SceneError(
                self.path, "size", f"expected {self.width} x {self.height} pixels, got {found[0]} x {found[1]}"
            )
        K = self.K / np.array([[downscale], [downscale], [1]])
        return (undistort(image, K, self.distortion) if any(self.distortion) else image), K


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Views, and the points (N, 3) float64 with colours (N, 3) in [0, 1] that were triangulated from them, if any."""

    views: list[View]
    points: Array
    colors: Array

    @property
    def centres(self) -> Array:
        """(V, 3) the cameras' places."""
        return np.stack([-v.viewmat[:3, :3].T @ v.viewmat[:3, 3] for v in self.views])

    @property
    def extent(self) -> float:
        """The scale by which the reference code multiplies its rates: 1.1 times the cameras' largest distance from
        their middle; 1 if there is a single place."""
        centres = self.centres
        radius = 1.1 * float(np.linalg.norm(centres - centres.mean(0), axis=1).max())
        return radius if radius > 0 else 1.0

    def focus(self) -> tuple[Array, float]:
        """The point (3,) nearest to the optical axes, and the mean distance of the cameras from it."""
        axes = np.stack([v.viewmat[2, :3] for v in self.views])
        across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
        point = np.linalg.lstsq(across.sum(0), (across @ self.centres[:, :, None]).sum(0)[:, 0], rcond=None)[0]
        return point, float(np.linalg.norm(self.centres - point, axis=1).mean())

    def split(self, every: int = 8) -> tuple[list[View], list[View]]:
        """Views to train on, and each `every`-th in the order of names to judge by (none if 0)."""
        held = [v for i, v in enumerate(self.views) if every and i % every == 0]
        return [v for i, v in enumerate(self.views) if not every or i % every], held


def undistort(image: Array, K: Array, distortion: tuple[float, float, float, float]) -> Array:
    """The image (H, W, D) that a camera K without the distortion k1, k2, p1, p2 (OpenCV's model) would take."""
    k1, k2, p1, p2 = distortion
    height, width = image.shape[:2]
    x = (np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]
    y = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1])[:, None]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    column = (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) * K[0, 0] + K[0, 2] - 0.5
    row = (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) * K[1, 1] + K[1, 2] - 0.5
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    left, top = (np.minimum(p.astype(np.int64), max(n - 2, 0)) for p, n in ((column, width), (row, height)))
    right, low = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    u, v = (column - left)[..., None].astype(np.float32), (row - top)[..., None].astype(np.float32)
    above = image[top, left] * (1 - u) + image[top, right] * u
    below = image[low, left] * (1 - u) + image[low, right] * u
    out: Array = above * (1 - v) + below * v
    return out
