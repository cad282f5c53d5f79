"""The operators again, readable and in float64: what the kernels are tested against."""

from __future__ import annotations

import numpy as np


def pairwise_sqdist(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between the rows of `x` and of `y`."""
    difference = x[:, None, :].astype(np.float64) - y[None, :, :].astype(np.float64)
    return (difference**2).sum(-1)
