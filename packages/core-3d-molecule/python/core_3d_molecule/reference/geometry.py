"""Kabsch RMSD by a singular value decomposition and MMD by whole matrices: what the kernels are tested against."""

from __future__ import annotations

import numpy as np


def kabsch_rmsd(positions: np.ndarray, targets: np.ndarray) -> float:
    """The RMSD of one structure's atoms (n, 3) after the best translation and rotation."""
    if not len(positions):
        return 0.0
    a, b = positions - positions.mean(0), targets - targets.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    return float(np.sqrt(((a @ (u @ flip @ vt) - b) ** 2).sum() / len(a)))


def gaussian_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The MMD of two sets with five Gaussian kernels, from the matrix of all squared differences."""
    union = np.concatenate([x, y])
    squares = (union[:, None] - union[None]) ** 2
    bandwidth = squares.sum() / (len(union) ** 2 - len(union)) / 4
    if bandwidth == 0:
        return 0.0
    kernel = sum(np.exp(-squares / (bandwidth * 2**k)) for k in range(5))
    n = len(x)
    return float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean())
