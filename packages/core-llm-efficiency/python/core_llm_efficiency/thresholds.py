"""Thresholds of XAttention for each head, found from examples (arXiv 2503.16428, section 2.3).

Two ways: the rule of the authors' profiler, which looks at where the true attention mass lies, and the paper's dynamic
program, which lowers the heads' thresholds step by step where that harms the output least. Arrays are numpy or torch
(CPU); results are numpy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .xattention import block_density, block_sparse_attention, select_blocks, xattn_estimate

Float = NDArray[np.float64]


def covering_thresholds(scores: Any, exact: Any, coverage: float = 0.9) -> Float:
    """The threshold (H,) at which estimated scores choose the blocks that truly matter: the profiler's rule.

    scores and exact: estimated and true masses (B, H, QB, KB), as `xattn_estimate` gives them with the stride in use
    and with stride 1. In a row of blocks, the fewest blocks that hold a share `coverage` of the true mass must be
    chosen; the row's threshold is the share of estimated mass in blocks scored no lower than the lowest of them. A
    head's threshold is the mean over its rows, and the largest over the B examples.
    Raises ValueError on shapes that differ, values that are not finite, or coverage outside (0, 1].
    """
    scores, exact = np.asarray(scores, np.float64), np.asarray(exact, np.float64)
    if scores.shape != exact.shape or scores.ndim != 4 or 0 in scores.shape:
        raise ValueError(f"argument 'exact' must be (B, H, QB, KB) as scores, got {exact.shape} and {scores.shape}")
    if not 0 < coverage <= 1:
        raise ValueError(f"argument 'coverage' must be in (0, 1], got {coverage}")
    if not (np.isfinite(scores).all() and np.isfinite(exact).all()):
        raise ValueError("argument 'scores' must be finite, as must 'exact'")
    order = np.argsort(-exact, axis=-1, kind="stable")
    ranked = np.take_along_axis(exact, order, -1)
    before = ranked.cumsum(-1) - ranked
    needed = before < coverage * exact.sum(-1, keepdims=True)
    lowest = np.where(needed, np.take_along_axis(scores, order, -1), np.inf).min(-1, keepdims=True)
    mass = np.where(scores >= lowest, scores, 0).sum(-1) / np.maximum(scores.sum(-1), np.finfo(np.float64).tiny)
    return np.asarray(mass.mean(2).max(0))


def profile_thresholds(
    query: Any,
    key: Any,
    *,
    coverage: float = 0.9,
    stride: int = 8,
    block_size: int = 128,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float:
    """`covering_thresholds` of examples query (B, H, N, D) and key (B, G, M, D); options as in `xattention`."""
    options: dict[str, Any] = {"block_size": block_size, "is_causal": is_causal, "scale": scale}
    estimated, _ = xattn_estimate(query, key, stride=stride, **options)
    exact, _ = xattn_estimate(query, key, stride=1, **options)
    return covering_thresholds(estimated, exact, coverage)


@dataclasses.dataclass(frozen=True)
class ThresholdSearch:
    """What `search_thresholds` found. thresholds (H,); losses and densities (H, steps + 1) of each head at each
    candidate, candidates (steps + 1,); totals (adjustments + 1,): the least sum of losses by number of adjustments."""

    thresholds: Float
    candidates: Float
    losses: Float
    densities: Float
    totals: Float


def allocate_adjustments(losses: Any, adjustments: int) -> tuple[NDArray[np.int64], Float]:
    """How often each head's threshold is lowered, (H,), if it is done `adjustments` times in all at least loss.

    losses (H, S + 1): a head's loss after 0..S adjustments. The table is
    D[h, m] = min_j D[h - 1, m - j] + losses[h, j]. Returns the counts and the last row of the table,
    (adjustments + 1,). Raises ValueError unless 0 <= adjustments <= H S.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2 or losses.shape[0] == 0 or losses.shape[1] == 0 or not np.isfinite(losses).all():
        raise ValueError(f"argument 'losses' must be finite and (H, S + 1), got shape {losses.shape}")
    heads, most = losses.shape[0], losses.shape[1] - 1
    if not 0 <= adjustments <= heads * most:
        raise ValueError(f"argument 'adjustments' must be in [0, {heads * most}], got {adjustments}")
    total = np.full(adjustments + 1, np.inf)
    total[0] = 0
    chosen = np.zeros((heads, adjustments + 1), np.int64)
    for h in range(heads):
        ways = np.full((most + 1, adjustments + 1), np.inf)
        for j in range(min(most, adjustments) + 1):
            ways[j, j:] = total[: adjustments + 1 - j] + losses[h, j]
        chosen[h] = ways.argmin(0)
        total = ways.min(0)
    counts, left = np.zeros(heads, np.int64), adjustments
    for h in reversed(range(heads)):
        counts[h] = chosen[h, left]
        left -= int(counts[h])
    return counts, total


def search_thresholds(
    query: Any,
    key: Any,
    value: Any,
    adjustments: int,
    *,
    start: float = 0.9,
    factor: float = 0.9,
    steps: int = 12,
    stride: int = 8,
    block_size: int = 128,
    is_causal: bool = True,
    scale: float | None = None,
) -> ThresholdSearch:
    """Thresholds for each head by the paper's dynamic program, from examples (B, H, N, D), (B, G, M, D), (B, G, M, E).

    Each head starts at `start`; an adjustment multiplies one head's threshold by `factor`, at most `steps` times a
    head, `adjustments` times in all. The loss of a head is the squared norm of its output's change as a share of dense
    attention's squared norm, meaned over the B examples. Other options as in `xattention`.
    Raises ValueError on values out of range and sizes that do not fit.
    """
    import rich.progress

    if not 0 < factor < 1 or steps < 1 or not start > 0:
        raise ValueError(
            f"arguments 'start', 'factor' and 'steps' must be positive, factor below 1, got {start}, {factor}, {steps}"
        )
    options: dict[str, Any] = {"block_size": block_size, "is_causal": is_causal}
    lengths = {"q_len": query.shape[2], "k_len": key.shape[2], **options}
    scores, mask = xattn_estimate(query, key, stride=stride, scale=scale, **options)
    dense = np.asarray(block_sparse_attention(query, key, value, mask | True, scale=scale, **options), np.float64)
    norm = np.maximum(np.square(dense).sum((2, 3)), np.finfo(np.float64).tiny)
    candidates: Float = np.float64(start) * np.power(factor, np.arange(steps + 1, dtype=np.float64))
    losses, densities = (np.empty((query.shape[1], steps + 1)) for _ in range(2))
    for j, candidate in enumerate(rich.progress.track(candidates, "thresholds")):
        mask = select_blocks(scores, float(candidate), **lengths)
        out = np.asarray(block_sparse_attention(query, key, value, mask, scale=scale, **options), np.float64)
        losses[:, j] = (np.square(out - dense).sum((2, 3)) / norm).mean(0)
        densities[:, j] = [block_density(mask[:, h : h + 1], **lengths) for h in range(query.shape[1])]
    counts, totals = allocate_adjustments(losses, adjustments)
    return ThresholdSearch(candidates[counts], candidates, losses, densities, totals)
