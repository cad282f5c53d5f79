"""Rendering of stored 4D Gaussians with the key-frame filter of 4DGS-1K (arXiv 2503.16422)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dynamic import KeyFrameFilter, rasterization_4d, slice_4d
from .formats import SH_C0
from .formats.container4d import Gaussians4D


class Player:
    """Renders `Gaussians4D` at times; with numpy, or with torch on a `device`.

    Where there are key frames, only the Gaussians of the two nearest are sliced and projected.
    """

    def __init__(self, gaussians: Gaussians4D, device: str | None = None) -> None:
        g = gaussians
        self.count, self.duration = len(g), g.duration
        terms = g.sh.shape[1]
        self.time_degree = (terms - 1) // 16
        self.sh_degree = round((terms - 16 * self.time_degree) ** 0.5) - 1
        opacities = 1 / (1 + np.exp(-g.logit_opacities[:, 0].astype(np.float64)))
        arrays = (g.means, np.exp(g.log_scales), g.quats_left, g.quats_right, opacities.astype(np.float32), g.sh)
        self.device = device
        self.arrays = [self._moved(x) for x in arrays]
        self.filter = None
        self._cached: tuple[tuple[int, int], Any] | None = None
        if len(g.key_times):
            self.filter = KeyFrameFilter(g.key_times.tolist(), np.packbits(g.masks, axis=1, bitorder="little"), len(g))

    def _moved(self, x: NDArray[Any]) -> Any:
        if self.device is None:
            return np.ascontiguousarray(x)
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def __len__(self) -> int:
        return self.count

    @property
    def means(self) -> Any:
        """(N, 4) x, y, z, t."""
        return self.arrays[0]

    def at(self, time: float) -> tuple[Any, Any, Any, Any]:
        """Centres (M, 3), covariances (M, 3, 3), colours (M, 3) that do not depend on the direction, and opacities (M,)
        of the Gaussians that are there at a time; numpy only."""
        indices = self.indices(time)
        rows = slice(None) if indices is None else indices
        means, scales, quats_l, quats_r, opacities = self.arrays[:5]
        means, covars, opacities, weights = slice_4d(means, scales, quats_l, quats_r, opacities, time, indices)
        phases = (self.arrays[0][rows, 3] - time) / self.duration
        colors = np.full((len(means), 3), 0.5, np.float32)
        for k in range(self.time_degree + 1):
            colors += SH_C0 * np.cos(2 * np.pi * k * phases)[:, None] * self.arrays[5][rows, 16 * k]
        there = weights > 0
        return means[there], covars[there], colors[there], opacities[there]

    def indices(self, time: float) -> Any:
        """(M,) int64: what is rendered at a time; None without key frames."""
        if self.filter is None:
            return None
        between = self.filter.nearest(time)
        cached = self._cached  # in one assignment, for threads
        if cached is None or cached[0] != between:
            cached = self._cached = (between, self._moved(self.filter.indices(time)))
        return cached[1]

    def render(
        self, time: float, viewmats: Any, Ks: Any, width: int, height: int, *, filtered: bool = True, **options: Any
    ) -> Any:
        """(C, H, W, 3) pictures of the cameras (C, 4, 4), (C, 3, 3), float32, as `rasterization_4d` makes them;
        `filtered=False` renders all Gaussians."""
        means, scales, quats_l, quats_r, opacities, sh = self.arrays
        return rasterization_4d(
            means, scales, quats_l, quats_r, opacities, sh, viewmats, Ks, width, height, time,
            indices=self.indices(time) if filtered else None, sh_degree=self.sh_degree, time_degree=self.time_degree,
            duration=self.duration, **options,
        )[0]  # fmt: skip
