"""Reference of the codebook operators: brute force and plain loops in float64."""

import numpy as np
from numpy.typing import NDArray

from .set_diffusion import uniform

Floats = NDArray[np.floating]


def squared_distances(x: Floats, codes: Floats) -> NDArray[np.float64]:
    """float64 [N, K] from x [N, D] and codes [K, D]."""
    return ((x[:, None].astype(np.float64) - codes[None].astype(np.float64)) ** 2).sum(-1)


def kmeans_init(x: Floats, clusters: int, trials: int, seed: int) -> NDArray[np.float64]:
    """Greedy k-means++ (Arthur and Vassilvitskii, 2007): of `trials` rows drawn by squared distance, the best."""
    chosen = [int(uniform(seed, 0, 0) * len(x))]
    for k in range(1, clusters):
        least = squared_distances(x, x[chosen]).min(1)
        drawn = []
        for t in range(trials):
            share = np.cumsum(least)
            row = int(np.searchsorted(share, uniform(seed, k, t) * share[-1], side="right")) if share[-1] > 0 else 0
            drawn.append(min(row, len(x) - 1))
        left = [np.minimum(least, squared_distances(x, x[[row]])[:, 0]).sum() for row in drawn]
        best = 0
        for t in range(1, trials):  # of candidates that are equal but for rounding the first
            best = t if left[t] < left[best] * (1 - 1e-5) else best
        chosen.append(drawn[best])
    return x[chosen].astype(np.float64)


def fill_empty(labels: NDArray[np.int64], distance: Floats, clusters: int) -> list[tuple[int, int]]:
    """Moves the farthest row of a cluster with several to each empty one, in place; returns (cluster, row)."""
    moved: list[tuple[int, int]] = []
    for k in range(clusters):
        if (labels == k).any():
            continue
        size = np.bincount(labels, minlength=clusters)
        free = [
            i for i in np.argsort(-distance, kind="stable") if size[labels[i]] > 1 and i not in dict(moved).values()
        ]
        row = int(free[0])
        labels[row] = k
        moved.append((k, row))
    distance[[row for _, row in moved]] = 0
    return moved


def kmeans(
    x: Floats, init: Floats, max_iter: int, tol: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], float, int]:
    """Lloyd's rounds: centers, labels, inertia, rounds. Centers are rounded to float32 as the operator's are."""
    centers, before, rounds = init.astype(np.float64), None, 0
    move, least_move = np.inf, tol * x.astype(np.float64).var(0).mean() if x.size else 0.0
    clusters = len(init)
    while rounds < max_iter and move > least_move:
        every = squared_distances(x, centers)
        labels, distance = every.argmin(1), every.min(1)
        fill_empty(labels, distance, clusters)
        if before is not None and (labels == before).all():
            break
        before = labels
        means = np.stack([x[labels == k].astype(np.float64).mean(0) for k in range(clusters)]).astype(np.float32)
        move, centers, rounds = ((means - centers) ** 2).sum(), means.astype(np.float64), rounds + 1
    for _ in range(clusters + 1):
        every = squared_distances(x, centers)
        labels, distance = every.argmin(1), every.min(1)
        moved = fill_empty(labels, distance, clusters)
        for k, row in moved:
            centers[k] = x[row]
        if not moved:
            break
    return centers, labels, float(distance.sum()), rounds
