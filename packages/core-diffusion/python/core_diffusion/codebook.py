"""Codebooks: the nearest code of each vector, k-means, and the two levels of coarse-to-fine tokens (arXiv 2503.16194).

For numpy arrays and torch CPU tensors, which get back their kind. No gradients: in torch pass `x.detach()`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from core_registry.arrays import as_array, empty
from numpy.typing import NDArray

from . import _core_diffusion as _C

__all__ = ["CoarseToFine", "KMeans", "k_means", "nearest_codes"]

Array = Any
"""A numpy array or a torch tensor."""


def nearest_codes(x: Array, codes: Array) -> tuple[Array, Array]:
    """The nearest code of each vector, and its squared Euclidean distance: the quantiser of a VQ tokeniser.

    Args:
        x: float32 [..., D].
        codes: float32 [K, D], K >= 1.

    Returns:
        index int64 [...] of the code (of equally near ones the first; nearness is found in float32) and the squared
        distance float32 [...].

    Raises:
        ValueError: no codes, or a value that is NaN, infinite, or whose square does not fit into float32.
        TypeError: another dtype.
    """
    x = as_array(x, "float32", "x")
    codes = as_array(codes, "float32", "codes", like=x)
    if len(x.shape) == 0:
        raise ValueError("nearest_codes: argument 'x' must have at least one axis, got a number")
    shape = tuple(x.shape[:-1])
    rows = int(np.prod(shape))
    index, distance = empty((rows,), "int64", like=x), empty((rows,), "float32", like=x)
    _C.nearest_codes(x.reshape(rows, x.shape[-1]), codes, index, distance)
    return index.reshape(shape), distance.reshape(shape)


class KMeans(NamedTuple):
    """What `k_means` found; the first three are those of scikit-learn's function of that name."""

    centroid: Array
    """float32 [K, D], the means."""
    label: Array
    """int64 [N], nearest centroid."""
    inertia: float
    """Sum of the squared distances to the nearest centroid."""
    n_iter: int
    """Lloyd rounds of the best start."""


def k_means(
    X: Array,
    n_clusters: int,
    *,
    init: Array | None = None,
    n_init: int = 1,
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: int | None = None,
) -> KMeans:
    """Lloyd's k-means with scikit-learn's names; no cluster is empty, and threads do not change the result.

    Starts from greedy k-means++ with 2 + log(K) trials. A cluster that loses all its rows takes over the row farthest
    from its centroid.

    Args:
        X: float32 [N, D].
        n_clusters: K, in 1..N.
        init: float32 [K, D], first centroids, in place of k-means++.
        n_init: starts, of which the one of least inertia is returned.
        max_iter: Lloyd rounds of a start, >= 0.
        tol: stop when the centroids move by a squared length of at most tol times the mean variance of the columns.
        random_state: seed of 63 bits; the same one gives the same result on every machine of one instruction set.
            None takes one from the operating system.

    Raises:
        ValueError: a number out of range, or a value in X or init that is not finite; TypeError: another dtype.
    """
    X = as_array(X, "float32", "X")
    if len(X.shape) != 2:
        raise ValueError(f"k_means: argument 'X' must have the shape (N, D), got {tuple(X.shape)}")
    rows, dim = X.shape
    if not 1 <= n_clusters <= rows:
        raise ValueError(f"k_means: argument 'n_clusters' must be in 1..{rows}, got {n_clusters}")
    if n_init < 1:
        raise ValueError(f"k_means: argument 'n_init' must be >= 1, got {n_init}")
    seed = secrets.randbits(62) if random_state is None else random_state
    starts: list[KMeans] = []
    for start in range(1 if init is not None else n_init):
        first = empty((n_clusters, dim), "float32", like=X)
        if init is None:
            _C.kmeans_init(X, 2 + int(np.log(n_clusters)), seed + start, first)
        else:
            first = as_array(init, "float32", "init", like=X)
        centroid, label = empty((n_clusters, dim), "float32", like=X), empty((rows,), "int64", like=X)
        inertia, rounds = np.empty(1), np.empty(1, np.int64)
        _C.kmeans(
            X, first, max_iter, tol, centroid, label, *(as_array(v, str(v.dtype), "", X) for v in (inertia, rounds))
        )
        starts.append(KMeans(centroid, label, float(inertia[0]), int(rounds[0])))
    return min(starts, key=lambda found: found.inertia)


@dataclass(frozen=True)
class CoarseToFine:
    """Two levels of token labels: fine codes, and the clusters that they fall into (arXiv 2503.16194, section 3.1).

    An autoregressive model predicts coarse labels; a parallel one then predicts fine labels, each within its cluster.

    Attributes:
        coarse_of: int64 [K], the cluster of each fine code, in 0..clusters-1; every cluster has a code.
        members: int64 [clusters, width], the fine codes of each cluster ascending, -1 behind the last.
    """

    coarse_of: NDArray[np.int64]
    members: NDArray[np.int64]

    @classmethod
    def from_labels(cls, coarse_of: Array) -> CoarseToFine:
        """From the cluster of each fine code, int [K]. ValueError: a negative label, or a cluster without code."""
        labels = np.asarray(coarse_of, np.int64)
        if labels.ndim != 1 or not labels.size or labels.min() < 0:
            raise ValueError("argument 'coarse_of' must be labels >= 0 of shape (K,) with K >= 1")
        size = np.bincount(labels)
        if not size.all():
            raise ValueError(f"argument 'coarse_of' has no code in cluster {int(size.argmin())}")
        order = np.argsort(labels, kind="stable")
        rank = np.arange(len(labels)) - np.repeat(np.cumsum(size) - size, size)
        members = np.full((len(size), int(size.max())), -1)
        members[labels[order], rank] = order
        return cls(labels, members)

    @classmethod
    def from_codebook(cls, codebook: Array, n_clusters: int, **options: Any) -> CoarseToFine:
        """From k-means over the codes, float32 [K, D]; `options` are those of `k_means`."""
        return cls.from_labels(np.asarray(k_means(codebook, n_clusters, **options).label))

    @property
    def num_coarse(self) -> int:
        """Clusters."""
        return len(self.members)

    @property
    def num_fine(self) -> int:
        """Fine codes, K."""
        return len(self.coarse_of)

    def encode(self, fine: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Coarse labels of fine codes int [...], and the rank of each code in its cluster; both int64 [...]."""
        fine = np.asarray(fine)
        if fine.size and not 0 <= int(fine.min()) <= int(fine.max()) < self.num_fine:
            raise ValueError(f"argument 'fine' must be codes in 0..{self.num_fine - 1}, got {fine.min()}..{fine.max()}")
        coarse = self.coarse_of[fine]
        return coarse, (self.members[coarse] < fine[..., None]).sum(-1) - (self.members[coarse] < 0).sum(-1)

    def decode(self, coarse: Array, rank: Array) -> NDArray[np.int64]:
        """Fine codes int64 [...] from coarse labels and ranks, int [...]. ValueError: no such code."""
        coarse, rank = np.asarray(coarse), np.asarray(rank)
        clusters, width = self.members.shape
        if coarse.size and not (
            coarse.min() >= 0 and coarse.max() < clusters and rank.min() >= 0 and rank.max() < width
        ):
            raise ValueError(f"coarse labels must be in 0..{clusters - 1} and ranks in 0..{width - 1}")
        fine = self.members[coarse, rank]
        if (fine < 0).any():
            raise ValueError("a rank is not below the number of codes of its cluster")
        return fine

    def mask(self, coarse: Array) -> NDArray[np.bool_]:
        """bool [..., K]: the fine codes in the clusters `coarse`, int [...]; masks the logits of the fine model."""
        mask: NDArray[np.bool_] = np.asarray(coarse)[..., None] == self.coarse_of
        return mask
