"""plugin-name: squared distances, as a pattern for operators of your own."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import as_array, empty

from . import _plugin_name as _C

__all__ = ["pairwise_sqdist"]


def pairwise_sqdist(x: Any, y: Any) -> Any:
    """Squared Euclidean distances between the rows of `x` (N, D) and of `y` (M, D), float32.

    Returns (N, M) float32, a numpy array or a torch tensor like `x`. Raises TypeError and ValueError that name
    the argument.
    """
    x = as_array(x, "float32", "x")
    y = as_array(y, "float32", "y", like=x)
    out = empty((len(x), len(y)), "float32", like=x)
    _C.pairwise_sqdist(x, y, out)
    return out
