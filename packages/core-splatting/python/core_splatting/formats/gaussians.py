"""The Gaussians of a scene as files and trainers hold them: before their activations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[Any]  # of float32

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic: a colour is 0.5 + SH_C0 * sh[:, 0] where nothing else is added."""


class FormatError(ValueError):
    """A file that is not what it should be: names the file, the place, what was expected and what was found."""

    def __init__(self, path: Path, where: str, problem: str) -> None:
        super().__init__(f"{path}: {where}: {problem}")


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, float32, in the values that are trained and that a .ply holds.

    means (N, 3), world units, in the frame of INRIA's .ply (that of COLMAP); quats (N, 4), w x y z, of any length but
    zero; log_scales (N, 3), natural logarithms of standard deviations; logit_opacities (N,); sh (N, K, 3), the
    coefficients of spherical harmonics, the constant first, K = (degree + 1)^2, degree 0 to 3.
    Raises ValueError for shapes that do not fit, TypeError for another dtype.
    """

    means: Float
    quats: Float
    log_scales: Float
    logit_opacities: Float
    sh: Float

    def __post_init__(self) -> None:
        count = len(self.means)
        k = self.sh.shape[1] if self.sh.ndim == 3 else -1
        shapes = {
            "means": (count, 3),
            "quats": (count, 4),
            "log_scales": (count, 3),
            "logit_opacities": (count,),
            "sh": (count, k, 3),
        }
        for name, shape in shapes.items():
            array: Float = getattr(self, name)
            if array.dtype != np.float32:
                raise TypeError(f"Gaussians: argument '{name}' must be float32, got {array.dtype}")
            if array.shape != shape:
                raise ValueError(f"Gaussians: argument '{name}' must be of shape {shape}, got {array.shape}")
        if k not in (1, 4, 9, 16):
            raise ValueError(f"Gaussians: argument 'sh' must hold 1, 4, 9 or 16 coefficients, got {k}")

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: Any) -> Gaussians:
        """Those that a slice, a mask or an array of indices chooses."""
        return Gaussians(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    @property
    def sh_degree(self) -> int:
        """The degree of the spherical harmonics, 0 to 3."""
        return int(self.sh.shape[1] ** 0.5) - 1

    @property
    def scales(self) -> Float:
        """(N, 3) standard deviations, world units."""
        scales: Float = np.exp(self.log_scales)
        return scales

    @property
    def opacities(self) -> Float:
        """(N,) in [0, 1]."""
        return sigmoid(self.logit_opacities)

    @property
    def colors(self) -> Float:
        """(N, 3) what the constant coefficient gives, not below 0: the colour averaged over directions."""
        colors: Float = np.maximum(self.sh[:, 0] * np.float32(SH_C0) + np.float32(0.5), 0)
        return colors

    @staticmethod
    def empty(count: int, sh_degree: int) -> Gaussians:
        """Uninitialised arrays of `count` Gaussians."""
        shapes = ((count, 3), (count, 4), (count, 3), (count,), (count, (sh_degree + 1) ** 2, 3))
        return Gaussians(*(np.empty(shape, np.float32) for shape in shapes))

    @staticmethod
    def from_activated(means: Any, quats: Any, scales: Any, opacities: Any, colors: Any) -> Gaussians:
        """From the arguments of `rasterization`: standard deviations, opacities in [0, 1], colours (N, 3).

        Opacities are kept 1e-6 away from 0 and 1, scales at least 1e-30.
        """
        means, quats, scales, opacities, colors = (
            np.asarray(x, np.float32) for x in (means, quats, scales, opacities, colors)
        )
        return Gaussians(
            means,
            quats,
            log_scales(scales),
            logit(opacities),
            ((colors - np.float32(0.5)) / np.float32(SH_C0))[:, None],
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """Gaussians that come in parts: `chunks(n)` yields at most n at a time, `count` in all, alike on every call."""

    count: int
    sh_degree: int
    chunks: Callable[[int], Iterator[Gaussians]]

    def read(self) -> Gaussians:
        """All of them."""
        parts = self.chunks(CHUNK)
        first = list(itertools.islice(parts, 1))  # before there is room for all: a file may say more than it holds
        out = Gaussians.empty(self.count, self.sh_degree)
        at = 0
        for part in itertools.chain(first, parts):
            for field in dataclasses.fields(out):
                getattr(out, field.name)[at : at + len(part)] = getattr(part, field.name)
            at += len(part)
        return out

    @staticmethod
    def of(gaussians: Gaussians) -> Source:
        """The parts of an array."""
        count = len(gaussians)
        return Source(
            count, gaussians.sh_degree, lambda n: (gaussians[i : min(i + n, count)] for i in range(0, count, n))
        )


CHUNK = 1 << 16
"""Gaussians that readers and writers hold at a time, a multiple of 256."""


def sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x)) without overflow."""
    p: Float = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return p


def logit(p: Float) -> Float:
    """The inverse of `sigmoid`; p is kept 1e-6 away from 0 and 1."""
    p = np.clip(p, np.float32(1e-6), np.float32(1 - 1e-6))
    x: Float = np.log(p / (1 - p))
    return x


def log_scales(scales: Float) -> Float:
    """log(scales), of at least 1e-30."""
    logs: Float = np.log(np.maximum(scales, np.float32(1e-30)))
    return logs


def require_finite(gaussians: Gaussians, target: Path) -> None:
    """Raises ValueError if a value has no quantised form: a NaN or an infinite one; opacities may be infinite."""
    for field in dataclasses.fields(gaussians):
        array: Float = getattr(gaussians, field.name)
        bad = np.isnan(array) if field.name == "logit_opacities" else ~np.isfinite(array)
        if bad.any():
            first = int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
            raise ValueError(
                f"{target}: argument '{field.name}' must be finite, got {array[first]} at Gaussian {first}"
            )


def unit(quats: Float) -> Float:
    """Quaternions of length 1; a zero one becomes the identity."""
    length = np.linalg.norm(quats, axis=1, keepdims=True)
    return np.where(length > 0, quats / np.where(length > 0, length, 1), np.array([1, 0, 0, 0])).astype(np.float32)


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def largest_apart(quats: Float) -> tuple[NDArray[np.int64], Float]:
    """Unit quaternions (N, 4) as the index of their largest component and the other three, signed so that it is
    positive."""
    largest = np.abs(quats).argmax(1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, np.float32(-1), np.float32(1))
    return largest, np.take_along_axis(quats, _OTHERS[largest], 1) * sign


def largest_restored(largest: NDArray[Any], others: Float) -> Float:
    """The inverse of `largest_apart`; others longer than 1 leave 0 for the largest."""
    out = np.empty((len(others), 4), np.float32)
    np.put_along_axis(out, _OTHERS[largest], others, 1)
    rest = np.sqrt(np.maximum(1 - (others * others).sum(1, keepdims=True), 0))
    np.put_along_axis(out, np.asarray(largest, np.int64)[:, None], rest, 1)
    return out
