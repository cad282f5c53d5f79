"""XAttention (arXiv 2503.16428): block-sparse prefill attention whose blocks are found by antidiagonal sums.

Shapes as in torch's scaled_dot_product_attention: query (B, H, N, D), key (B, G, M, D), value (B, G, M, E), all
float32 on the CPU (narrower floats are widened, the result is float32) and all bfloat16 or float16 on CUDA (there D, E
<= 256), H a multiple of G (grouped queries arrive un-repeated: head h reads h // (H // G)). With `is_causal` the
queries are the last N of M positions, so N <= M (chunked prefill; torch aligns to the left instead). numpy in gives
numpy out, torch gives torch. NaN and infinite inputs give NaN in the scores and in the query blocks that read them,
and such a query block keeps all its blocks. torch tensors get gradients through the chosen blocks; the choice itself
has none.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_llm_efficiency as _C

DENSE_UP_TO = 8192  # keys on CUDA


def _torch_ops() -> ModuleType:
    from . import torch_ops

    return torch_ops


def _blocks(length: int, block: int) -> int:
    if block < 1:
        raise ValueError(f"argument 'block_size' must be a multiple of 16 in [16, 4096], got {block}")
    return -(-length // block)


def _check_rank(x: Any, name: str, rank: int = 4) -> None:
    if len(x.shape) != rank:
        raise ValueError(f"argument '{name}' must have {rank} dimensions, got shape {tuple(x.shape)}")


def _on_gpu(query: Any) -> bool:
    return is_torch(query) and query.is_cuda and query.dtype.itemsize == 2 and query.dtype.is_floating_point


def _operand(x: Any, name: str, query: Any) -> Any:
    return as_array(x, str(query.dtype).removeprefix("torch.") if _on_gpu(query) else "float32", name, query)


def _scale(scale: float | None, head_dim: int) -> float:
    return 1.0 / math.sqrt(max(head_dim, 1)) if scale is None else float(scale)


def _thresholds(threshold: Any, heads: int, like: Any) -> Any:
    if isinstance(threshold, (int, float)):
        thresholds = empty((heads,), "float32", like)
        thresholds[...] = threshold
        return thresholds
    return as_array(threshold, "float32", "threshold", like)


def _antidiagonal_scores(
    query: Any, key: Any, stride: int, block_size: int, scale: float | None, is_causal: bool
) -> Any:
    query, key = _operand(query, "query", query), _operand(key, "key", query)
    _check_rank(query, "query")
    _check_rank(key, "key")
    scale = _scale(scale, query.shape[3])
    if is_torch(query):
        query, key = query.detach(), key.detach()  # which blocks are read is not differentiable
        return _torch_ops().antidiagonal_scores(query, key, stride, block_size, scale, is_causal)
    shape = *query.shape[:2], _blocks(query.shape[2], block_size), _blocks(key.shape[2], block_size)
    scores = empty(shape, "float32", query)
    _C.antidiagonal_scores(query, key, stride, block_size, scale, is_causal, scores)
    return scores


def select_blocks(
    scores: Any, threshold: Any = 0.9, *, q_len: int, k_len: int, block_size: int = 128, is_causal: bool = True
) -> Any:
    """The blocks that each query block attends to, bool (B, H, QB, KB).

    scores: estimated masses float32 (B, H, QB, KB) >= 0, QB = ceil(q_len / block_size), KB = ceil(k_len / block_size);
    threshold: a number >= 0, or one for each head. Causal: block 0 (the sink) and the blocks of the query block's own
    positions are always kept and their mass counted; then by descending score (ties: lower index), while the
    mass before is below threshold x the row's sum. Not causal: by descending score alone, at least one block.
    threshold >= 1 keeps all visible blocks, and so does a row with a NaN or infinite score.
    Raises ValueError on negative scores or thresholds (on CUDA, where values are not read by the host, such a row
    keeps all) and on sizes that do not fit. arXiv 2503.16428, section 2.
    """
    scores = as_array(scores, "float32", "scores")
    _check_rank(scores, "scores")
    thresholds = _thresholds(threshold, scores.shape[1], scores)
    if is_torch(scores):
        return _torch_ops().select_blocks(scores, thresholds, block_size, q_len, k_len, is_causal)
    mask = empty(scores.shape, "bool", scores)
    _C.select_blocks(scores, thresholds, block_size, q_len, k_len, is_causal, mask)
    return mask


def xattn_estimate(
    query: Any,
    key: Any,
    *,
    threshold: Any = 0.9,
    stride: int = 8,
    block_size: int = 128,
    is_causal: bool = True,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Scores and mask: the estimated attention mass of every block, and the blocks chosen.

    A tile of stride x stride has as logit the sum along its antidiagonal, sum_r q[iS + S-1-r] . k[jS + r], times
    scale / stride; a row of tiles is softmaxed, and a block's score is the sum over its tiles, so that a full query
    block's scores sum to block_size / stride. stride divides block_size; stride 1 is exact. Arguments otherwise as
    in `xattention`. Returns scores float32 and mask bool, both (B, H, QB, KB).
    """
    scores = _antidiagonal_scores(query, key, stride, block_size, scale, is_causal)
    lengths = {"q_len": query.shape[2], "k_len": key.shape[2]}
    return scores, select_blocks(scores, threshold, **lengths, block_size=block_size, is_causal=is_causal)


def block_sparse_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    *,
    block_size: int = 128,
    is_causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Softmax attention over the selected blocks only, (B, H, N, E) of the query's dtype.

    mask: bool (B, H, QB, KB), which blocks of keys each block of queries reads; block_size: a multiple of 16 in
    [16, 4096]; scale: 1/sqrt(D) if None. A query that sees no key gives zeros. With return_lse also the logarithm of
    the softmax denominator, float32 (B, H, N), as `(out, lse)`. Both are differentiable in query, key and value
    (torch). Raises ValueError on sizes that do not fit, TypeError on another dtype.
    """
    key, value = _operand(key, "key", query), _operand(value, "value", query)
    query = _operand(query, "query", query)
    mask = as_array(mask, "bool", "mask", query)
    for x, name in ((query, "query"), (key, "key"), (value, "value"), (mask, "mask")):
        _check_rank(x, name)
    scale = _scale(scale, query.shape[3])
    if is_torch(query):
        out, lse = _torch_ops().block_sparse_attention(query, key, value, mask, block_size, scale, is_causal)
        return (out, lse) if return_lse else out
    out = empty((*query.shape[:3], value.shape[3]), "float32", query)
    lse = empty(query.shape[:3], "float32", query) if return_lse else None
    _C.block_sparse_attention(query, key, value, mask, block_size, scale, is_causal, out, lse)
    return (out, lse) if return_lse else out


def visible_blocks(q_len: int, k_len: int, block_size: int, is_causal: bool) -> int:
    """The visible blocks of one head."""
    q_blocks, k_blocks = _blocks(q_len, block_size), _blocks(k_len, block_size)
    if not is_causal:
        return q_blocks * k_blocks
    last = (min((i + 1) * block_size, q_len) - 1 + k_len - q_len for i in range(q_blocks))
    return sum(x // block_size + 1 for x in last)


def block_density(mask: Any, *, q_len: int, k_len: int, block_size: int = 128, is_causal: bool = True) -> float:
    """Kept blocks as a share of the visible ones; mask as from `select_blocks`. 1.0 where nothing is visible."""
    total = visible_blocks(q_len, k_len, block_size, is_causal) * mask.shape[0] * mask.shape[1]
    return float(mask.sum()) / total if total else 1.0


def _dense(query: Any, key: Any, value: Any, block_size: int, is_causal: bool, scale: float | None) -> Any:
    """Attention over all blocks: torch's, where it aligns queries and keys as this module does, else this module's."""
    if is_torch(query):
        if not _on_gpu(query):
            key, value = _operand(key, "key", query), _operand(value, "value", query)
            query = _operand(query, "query", query)
        # a short prompt takes some 35 us, so what is no error costs no check
        try:
            _, heads, n, _ = query.shape
            _, groups, m, _ = key.shape
            if (not is_causal or n == m) and m > 0 and value.ndim == 4:
                attend = sys.modules["torch"].nn.functional.scaled_dot_product_attention
                return attend(query, key, value, is_causal=is_causal, scale=scale, enable_gqa=heads != groups)
        except (RuntimeError, ValueError):
            for x, name in ((query, "query"), (key, "key"), (value, "value")):
                _check_rank(_operand(x, name, query), name)
            raise
    shape = *query.shape[:2], _blocks(query.shape[2], block_size), _blocks(key.shape[2], block_size)
    mask = empty(shape, "bool", query)
    mask[...] = True
    return block_sparse_attention(query, key, value, mask, block_size=block_size, is_causal=is_causal, scale=scale)


def xattention(
    query: Any,
    key: Any,
    value: Any,
    *,
    threshold: Any = 0.9,
    stride: int = 8,
    block_size: int = 128,
    is_causal: bool = True,
    scale: float | None = None,
    dense_up_to: int | None = None,
    dense_above: float = 1.0,
    return_density: bool = False,
) -> Any:
    """Attention over the blocks that hold a share `threshold` of the estimated mass; (B, H, N, E), query's dtype.

    threshold: a number >= 0 or one for each head; the paper's models use 0.9 to 0.95, and 1 is dense attention.
    stride: 4, 8 or 16 (any divisor of block_size); block_size: a multiple of 16 in [16, 4096]; scale: 1/sqrt(D) if
    None. All blocks are read, by torch's own attention where it can, if there are at most `dense_up_to` keys, for which
    no estimate is made (None: 8192 on CUDA, below which leaving blocks out may cost more than it saves; 0 on the CPU),
    or if more than a share `dense_above` of the visible blocks was chosen.
    With return_density also the share of visible blocks that were read, as `(out, density)`.
    Raises ValueError on sizes that do not fit, TypeError on another dtype.
    """
    out, density = None, 1.0
    if dense_up_to is None:
        dense_up_to = DENSE_UP_TO if _on_gpu(query) else 0
    if key.shape[2] > dense_up_to:
        common: dict[str, Any] = {"block_size": block_size, "is_causal": is_causal}
        _, mask = xattn_estimate(query, key, threshold=threshold, stride=stride, scale=scale, **common)
        if return_density or dense_above < 1:
            density = block_density(mask, q_len=query.shape[2], k_len=key.shape[2], **common)
        if density <= dense_above:
            out = block_sparse_attention(query, key, value, mask, scale=scale, **common)
    if out is None:
        out, density = _dense(query, key, value, block_size, is_causal, scale), 1.0
    return (out, density) if return_density else out
