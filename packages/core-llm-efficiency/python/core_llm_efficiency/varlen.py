"""XAttention over sequences of different lengths: packed one after another, or padded to one length."""

from __future__ import annotations

from typing import Any

import numpy as np
from core_registry.arrays import empty, is_torch

from .xattention import visible_blocks, xattention


def _bounds(cu_seqlens: Any, name: str, length: int) -> list[int]:
    found = [int(x) for x in (cu_seqlens.tolist() if hasattr(cu_seqlens, "tolist") else cu_seqlens)]
    if not found or found != sorted(found) or found[0] != 0 or found[-1] != length:
        raise ValueError(f"argument '{name}' must rise from 0 to the number of rows, {length}, got {found}")
    return found


def _each(
    parts: list[list[Any]], like: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> tuple[list[Any], float]:
    """`xattention` of each (query, key, value), and the share of visible blocks read; `shape` if there is no part."""
    found, kept, total = [], 0.0, 0
    for query, key, value in parts:
        out, density = xattention(query, key, value, return_density=True, **options)
        block, causal = options.get("block_size", 128), options["is_causal"]
        visible = visible_blocks(query.shape[2], key.shape[2], block, causal)
        kept, total = kept + density * visible, total + visible
        found.append(out)
    return found or [empty(shape, "float32", like)], kept / total if total else 1.0


def _joined(parts: list[Any], axis: int) -> Any:
    if not is_torch(parts[0]):
        return np.concatenate(parts, axis)
    import torch

    return torch.cat(parts, axis)


def xattention_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    is_causal: bool = True,
    return_density: bool = False,
    **options: Any,
) -> Any:
    """`xattention` of several sequences packed one after another, as flash_attn_varlen_func takes them; (T, H, E).

    query (T, H, D), key (S, G, D), value (S, G, E); cu_seqlens_q and cu_seqlens_k (sequences + 1), whole numbers from
    0 to T and to S: sequence i has queries cu_seqlens_q[i] to cu_seqlens_q[i + 1], and likewise keys. A sequence
    attends to itself alone, its queries being the last of its keys' positions if causal. options as in `xattention`;
    differentiable as it is. Raises ValueError on bounds that do not rise and sizes that do not fit.
    """
    for x, name in ((query, "query"), (key, "key"), (value, "value")):
        if len(x.shape) != 3:
            raise ValueError(f"argument '{name}' must have 3 dimensions, got shape {tuple(x.shape)}")
    queries, keys = (
        _bounds(cu_seqlens_q, "cu_seqlens_q", query.shape[0]),
        _bounds(cu_seqlens_k, "cu_seqlens_k", key.shape[0]),
    )
    if len(queries) != len(keys):
        raise ValueError(f"argument 'cu_seqlens_k' must have {len(queries)} entries, as cu_seqlens_q, got {len(keys)}")
    heads_first = [x.swapaxes(0, 1)[None] for x in (query, key, value)]
    parts = [
        [x[:, :, a:b] for x, a, b in zip(heads_first, (q0, k0, k0), (q1, k1, k1), strict=True)]
        for q0, q1, k0, k1 in zip(queries, queries[1:], keys, keys[1:], strict=False)
    ]
    empty_shape = (1, query.shape[1], 0, value.shape[2])
    found, density = _each(parts, query, empty_shape, {**options, "is_causal": is_causal})
    out = _joined(found, 2)[0].swapaxes(0, 1)
    return (out, density) if return_density else out


def xattention_padded(
    query: Any, key: Any, value: Any, key_lengths: Any, *, return_density: bool = False, **options: Any
) -> Any:
    """Attention in both directions over a padded batch, as `xattention(is_causal=False)`; (B, H, N, E).

    key_lengths (B,), whole numbers in [0, M]: keys and values of example b from key_lengths[b] on are padding, which
    takes no part in the estimate, the choice and the attention. Every query gets an answer, zeros if there is no key.
    query, key, value, options as in `xattention`; differentiable as it is. Raises ValueError on lengths out of range.
    """
    if len(query.shape) != 4 or len(key.shape) != 4:
        raise ValueError(f"arguments 'query' and 'key' must have 4 dimensions, got {query.shape} and {key.shape}")
    lengths = [int(x) for x in (key_lengths.tolist() if hasattr(key_lengths, "tolist") else key_lengths)]
    if len(lengths) != query.shape[0] or any(not 0 <= x <= key.shape[2] for x in lengths):
        raise ValueError(
            f"argument 'key_lengths' must be {query.shape[0]} numbers in [0, {key.shape[2]}], got {lengths}"
        )
    parts = [[query[b : b + 1], key[b : b + 1, :, :n], value[b : b + 1, :, :n]] for b, n in enumerate(lengths)]
    empty_shape = (0, *query.shape[1:3], value.shape[3])
    found, density = _each(parts, query, empty_shape, {**options, "is_causal": False})
    out = _joined(found, 0)
    return (out, density) if return_density else out
