"""CPU benchmark: `pytest benchmarks/bench_rasterize_cpu.py`. Whole calls (projection, sort, blending) at 512x512."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_splatting import _core_splatting as _C
from core_splatting.cases import scene, scene_backward
from core_splatting.reference.rasterize import rasterize_torch


@pytest.mark.parametrize("gaussians", [10_000, 100_000])
def bench_rasterize(benchmark: Any, gaussians: int) -> None:
    args = scene(np.random.default_rng(0), gaussians, 512, 512)
    benchmark(_C.rasterize, *args.values())


@pytest.mark.parametrize("gaussians", [10_000, 100_000])
def bench_rasterize_backward(benchmark: Any, gaussians: int) -> None:
    args = scene_backward(np.random.default_rng(0), N=gaussians, W=512, H=512)
    benchmark(_C.rasterize_backward, *args.values())


def bench_torch_peer(benchmark: Any) -> None:
    args = scene(np.random.default_rng(0), 10_000, 512, 512)
    colors, _ = benchmark.pedantic(rasterize_torch, (args,), rounds=2)
    _C.rasterize(*args.values())
    assert np.abs(colors.numpy() - args["out_colors"]).mean() < 1e-5
