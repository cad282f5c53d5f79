"""The case table: from each row come an operator's tests and its benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import reference


def _make(rng: np.random.Generator, N: int, M: int, D: int) -> dict[str, Any]:
    x, y = rng.standard_normal((N, D), np.float32), rng.standard_normal((M, D), np.float32)
    return {"x": x, "y": y, "out": np.empty((N, M), np.float32)}


def _numpy(args: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    x, y = args["x"], args["y"]
    return lambda: {"out": (x * x).sum(1)[:, None] - 2 * x @ y.T + (y * y).sum(1)}


cases = [
    Case(
        op="plugin_name.pairwise_sqdist",
        sizes={"tiny": {"N": 3, "M": 5, "D": 2}, "bench": {"N": 500, "M": 700, "D": 16}},
        make=_make,
        reference=lambda a: {"out": reference.pairwise_sqdist(a["x"], a["y"])},
        tolerance={"out": (1e-4, 1e-4)},
        peer=("numpy", _numpy),
        work=lambda a: (4.0 * a["out"].size, 3.0 * a["out"].size * a["x"].shape[1]),
        vary={"N": (0, 9), "M": (0, 150), "D": (0, 9)},
    )
]
