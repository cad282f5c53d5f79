"""Vector quantisation: rows of an array as codes into a book of k-means centres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLE, _BLOCK = 1 << 16, 1 << 12


def nearest(rows: NDArray[Any], book: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) the index of the centre of `book` (K, D) with the least squared distance from each of `rows` (N, D)."""
    codes = np.empty(len(rows), np.int64)
    half = 0.5 * (book * book).sum(1)
    for at in range(0, len(rows), _BLOCK):
        codes[at : at + _BLOCK] = (half - rows[at : at + _BLOCK] @ book.T).argmin(1)
    return codes


def distinct(parts: Iterable[NDArray[Any]], most: int) -> NDArray[Any] | None:
    """The different ones among rows that come in parts; None once there are more than `most`."""
    found: NDArray[Any] | None = None
    for rows in parts:
        found = np.unique(rows if found is None else np.concatenate([found, rows]), axis=0)
        if len(found) > most:
            return None
    return found


def _parts(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (rows[at : at + _BLOCK] for at in range(0, max(len(rows), 1), _BLOCK))


def kmeans(rows: NDArray[Any], size: int, iterations: int = 10, seed: int = 0) -> NDArray[np.float32]:
    """A book (K, D) of at most `size` centres for `rows` (N, D) float32, by Lloyd's iterations from random rows.

    At most 65,536 of the rows, chosen at random, are looked at. A centre that has no row moves to one of the rows that
    are farthest from theirs. Rows with no more than `size` different values are their own book. The same for a seed.
    Raises ValueError for rows that are not finite or a size below 1.
    """
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"kmeans: argument 'rows' must be finite and of shape (N, D), got shape {rows.shape}")
    if size < 1:
        raise ValueError(f"kmeans: argument 'size' must be at least 1, got {size}")
    rng = np.random.default_rng(seed)
    everything = rows
    if len(rows) > _SAMPLE:
        rows = rows[rng.choice(len(rows), _SAMPLE, replace=False)]
    if distinct(_parts(rows), size) is not None and (different := distinct(_parts(everything), size)) is not None:
        return different
    book = rows[rng.choice(len(rows), size, replace=False)]
    for _ in range(iterations):
        codes = nearest(rows, book)
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=size)
        used = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
        far = ((rows - book[codes]) ** 2).sum(1).argsort()[::-1]
        book[used] = np.add.reduceat(rows[order].astype(np.float64), starts, 0) / counts[used, None]
        empty = np.flatnonzero(counts == 0)
        book[empty] = rows[far[: len(empty)]]
    return book
