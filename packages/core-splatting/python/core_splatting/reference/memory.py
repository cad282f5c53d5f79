"""Gaussian memory attention and principal scene components, written plainly in float64 (arXiv 2503.16413)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def memory_attention(args: dict[str, Any]) -> dict[str, Array]:
    """out and log_sums of softmax(queries keys^T) values."""
    q, k, v = (args[n].astype(np.float64) for n in ("queries", "keys", "values"))
    scores = q @ k.T
    most = scores.max(1, initial=-np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sums = np.where(np.isfinite(most), most + np.log(np.exp(scores - most[:, None]).sum(1)), -np.inf)
        weights = np.exp(scores - log_sums[:, None])
    return {"out": weights @ v, "log_sums": log_sums}


def memory_attention_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The derivatives by queries, keys and values, from the matrix of weights."""
    q, k, v, g = (args[n].astype(np.float64) for n in ("queries", "keys", "values", "v_out"))
    forward = memory_attention(args)
    weights = np.exp(q @ k.T - forward["log_sums"][:, None])
    slopes = weights * (g @ v.T - (g * forward["out"]).sum(1)[:, None])
    return {"v_queries": slopes @ k, "v_keys": slopes.T @ q, "v_values": weights.T @ g}


def gaussian_memory_attention(
    queries: Array, projection: Array, components: Array, temperature: float = 0.05, cosine: bool = True
) -> Array:
    """The formula as it is written: queries (P, L), projection (L, D), components (T, D)."""
    q, w, c = (x.astype(np.float64) for x in (queries, projection, components))
    seen, rows = q @ w, c
    if cosine:
        seen = seen / (np.linalg.norm(seen, axis=1, keepdims=True) + 1e-6) / temperature
        rows = c / (np.linalg.norm(c, axis=1, keepdims=True) + 1e-6)
    scores = seen @ rows.T
    weights = np.exp(scores - scores.max(1, keepdims=True))
    result: Array = weights / weights.sum(1, keepdims=True) @ c
    return result


def principal_components(args: dict[str, Any]) -> dict[str, Array]:
    """Algorithm 1, one row at a time."""
    features, threshold = args["features"].astype(np.float64), args["threshold"]
    norms = np.linalg.norm(features, axis=1)
    taken, selected = np.zeros(len(features), bool), np.zeros(len(features), bool)
    for i in np.flatnonzero(norms):
        if taken[i]:
            continue
        near = features @ features[i] >= (threshold - 1e-12) * norms * norms[i]
        near &= norms > 0
        near[i] = True
        if not (near & taken).any():
            selected[i] = True
            taken |= near
    return {"selected": selected}
