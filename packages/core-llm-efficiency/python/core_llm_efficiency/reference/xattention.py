"""XAttention (arXiv 2503.16428) in float64 numpy, as the definition reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _repeat(x: Array, heads: int) -> Array:
    return np.repeat(x.astype(np.float64), heads // max(x.shape[1], 1), 1)


def antidiagonal_scores(q: Array, k: Array, stride: int, block: int, scale: float, causal: bool) -> Array:
    """Scores (B, H, QB, KB): softmax over tiles of the antidiagonals' sums, summed over blocks."""
    n, m = q.shape[2], k.shape[2]
    q, k = q.astype(np.float64), _repeat(k, q.shape[1])
    rows, cols = -(-n // stride), -(-m // stride)
    q = np.pad(q, ((0, 0), (0, 0), (0, rows * stride - n), (0, 0)))
    k = np.pad(k, ((0, 0), (0, 0), (0, cols * stride - m), (0, 0)))
    logits = sum(q[:, :, stride - 1 - r :: stride] @ k[:, :, r::stride].swapaxes(2, 3) for r in range(stride))
    logits = logits * (scale / stride)
    if causal:
        last = np.minimum((np.arange(rows) + 1) * stride, n) - 1 + m - n
        logits = np.where(np.arange(cols) * stride <= last[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(3, keepdims=True, initial=-np.inf))
    weights /= weights.sum(3, keepdims=True)
    per = block // stride
    weights = np.add.reduceat(weights, np.arange(0, rows, per), 2) if rows else weights
    return np.add.reduceat(weights, np.arange(0, cols, per), 3) if cols else weights


def select_blocks(scores: Array, thresholds: Array, block: int, q_len: int, k_len: int, causal: bool) -> Array:
    """Mask (B, H, QB, KB): forced blocks first, then by descending score while the mass before is too small."""
    mask = np.zeros(scores.shape, bool)
    for b, h, i in np.ndindex(*scores.shape[:3]):
        row = scores[b, h, i].astype(np.float64)
        own = range(len(row), len(row))
        if causal:
            first = i * block + k_len - q_len
            last = min((i + 1) * block, q_len) - 1 + k_len - q_len
            own = range(first // block, last // block + 1)
            row = row[: own[-1] + 1]
        forced = sorted({0, *own}) if causal else []
        order = forced + sorted(set(range(len(row))) - set(forced), key=lambda j: (-row[j], j))
        tau = float(thresholds[h])
        mass = 0.0
        for rank, j in enumerate(order):
            if tau >= 1 or not np.isfinite(row).all() or rank < max(len(forced), 1) or mass < tau * row.sum():
                mask[b, h, i, j] = True
            mass += row[j]
    return mask


def block_sparse_attention(
    q: Array, k: Array, v: Array, mask: Array, block: int, scale: float, causal: bool
) -> tuple[Array, Array]:
    """Output (B, H, N, E) and log of the softmax denominator (B, H, N) over the selected blocks."""
    n, m = q.shape[2], k.shape[2]
    k, v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    seen = np.repeat(np.repeat(mask, block, 2), block, 3)[:, :, :n, :m]
    if causal:
        seen = seen & (np.arange(m) <= np.arange(n)[:, None] + m - n)
    logits = np.where(seen, q.astype(np.float64) @ k.swapaxes(2, 3) * scale, -np.inf)
    top = logits.max(3, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(logits - top)
    total = weights.sum(3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return weights / np.where(total == 0, 1, total) @ v, lse


def block_sparse_attention_backward(
    q: Array, k: Array, v: Array, mask: Array, block: int, scale: float, causal: bool, grad_out: Array, grad_lse: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v by the softmax's Jacobian, with the whole matrix of weights."""
    groups, share = k.shape[1], q.shape[1] // max(k.shape[1], 1)
    n, m = q.shape[2], k.shape[2]
    wide_k, wide_v = _repeat(k, q.shape[1]), _repeat(v, q.shape[1])
    q = q.astype(np.float64)
    _, lse = block_sparse_attention(q, k, v, mask, block, scale, causal)
    seen = np.repeat(np.repeat(mask, block, 2), block, 3)[:, :, :n, :m]
    if causal:
        seen = seen & (np.arange(m) <= np.arange(n)[:, None] + m - n)
    logits = np.where(seen, q @ wide_k.swapaxes(2, 3) * scale, -np.inf)
    weights = np.exp(logits - np.where(np.isneginf(lse), 0, lse)[..., None])
    of_weights = grad_out.astype(np.float64) @ wide_v.swapaxes(2, 3)
    inner = (weights * of_weights).sum(3, keepdims=True) - grad_lse[..., None]
    of_logits = weights * (of_weights - inner) * scale

    def grouped(x: Array) -> Array:
        return x.reshape(len(x), groups, share, *x.shape[2:]).sum(2)

    of_k, of_v = grouped(of_logits.swapaxes(2, 3) @ q), grouped(weights.swapaxes(2, 3) @ grad_out)
    return of_logits @ wide_k, of_k, of_v
