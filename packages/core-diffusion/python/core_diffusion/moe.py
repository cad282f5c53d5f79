"""The parts of a mixture-of-experts layer, for numpy arrays and torch tensors (arXiv 2503.16057, 2503.14487).

A selection mask [T, E] of tokens and experts is all that lies between a router and the experts. The layer with its
routers is `core_diffusion.torch_moe.MoE`.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

from core_registry.arrays import as_array, empty, is_torch

from . import _core_diffusion as _C

__all__ = ["expert_ffn", "moe_route", "topk_mask"]

Array = Any
"""A numpy array or a torch tensor."""


def _torch_moe() -> ModuleType:
    from . import torch_moe

    return torch_moe


def topk_mask(scores: Array, k: int) -> tuple[Array, Array]:
    """Marks the k largest scores of each row: exactly k, of equal scores those of lower columns first.

    All routers are this one selection over other rows: token choice has a row for each token, expert choice one
    for each image and expert, DiffMoE one for each expert, Expert Race a single row of all scores
    (arXiv 2503.16057, table 1).

    Args:
        scores: float32 or float64 [..., C], any value but NaN.
        k: how many to take, in 0..C.

    Returns:
        The mask, bool [..., C], and the k-th largest score [...]; +inf where k is 0.

    Raises:
        ValueError: k out of range, or NaN on the CPU; TypeError: another dtype.
        NotImplementedError: a torch tensor that requires grad; the selection has no gradient.
    """
    dtype = "float64" if str(getattr(scores, "dtype", "")).endswith("float64") else "float32"
    scores = as_array(scores, dtype, "scores")
    if len(scores.shape) == 0:
        raise ValueError("topk_mask: argument 'scores' must have at least one axis, got a number")
    if is_torch(scores):
        mask, kth = _torch_moe().topk_mask(scores, k)
        return mask, kth
    lead, columns = scores.shape[:-1], scores.shape[-1]
    rows = scores.reshape(math.prod(lead), columns)
    mask, kth = empty(rows.shape, "bool", like=scores), empty(rows.shape[:1], dtype, like=scores)
    _C.topk_mask(rows, k, mask, kth)
    return mask.reshape(scores.shape), kth.reshape(lead)


def moe_route(mask: Array, room: int | None = None) -> tuple[Array, Array]:
    """The tokens of each expert from a selection mask.

    Args:
        mask: bool [T, E].
        room: length of the list, at least the number of selected pairs; that number if absent.

    Returns:
        offsets int64 [E+1] and tokens int64 [room]: expert e has tokens[offsets[e]:offsets[e+1]], ascending; behind
        the last expert's the list is filled with -1.

    Raises:
        ValueError: too little room; TypeError: another dtype.
    """
    mask = as_array(mask, "bool", "mask")
    if len(mask.shape) != 2:
        raise ValueError(f"moe_route: argument 'mask' must have 2 axes, got shape {tuple(mask.shape)}")
    room = int(mask.sum()) if room is None else room
    offsets, tokens = empty((mask.shape[1] + 1,), "int64", like=mask), empty((room,), "int64", like=mask)
    _C.moe_route(mask, offsets, tokens)
    return offsets, tokens


def expert_ffn(
    x: Array,
    mask: Array,
    gates: Array,
    up: Array,
    down: Array,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    activation: Literal["gelu_tanh", "silu"] = "gelu_tanh",
    pairs: int | None = None,
) -> Array:
    """The weighted sum of the feed-forward networks of each token's experts.

    out[t] = sum of gates[t, e] (down[e] act(up[e] x[t] + up_bias[e]) + down_bias[e]) over the e with mask[t, e]; the
    shares are added in the experts' order. A token without experts gives 0. In torch differentiable with respect to
    every float argument.

    Args:
        x: [T, D], float32 (in torch any floating dtype, the same for all).
        mask: bool [T, E].
        gates: [T, E], read where selected.
        up, up_bias: [E, H, D], [E, H].
        down, down_bias: [E, D, H], [E, D].
        activation: GELU in its tanh form, or SiLU.
        pairs: in torch an upper bound of the selected pairs, the rows kept for the backward pass; T E if absent.

    Returns:
        [T, D].

    Raises:
        ValueError: shapes that do not fit, an unknown activation, more than `pairs` selected; TypeError: dtypes.
    """
    if is_torch(x):
        return _torch_moe().expert_ffn(x, mask, gates, up, down, up_bias, down_bias, activation, pairs)
    x, gates = as_array(x, "float32", "x"), as_array(gates, "float32", "gates")
    up, down = as_array(up, "float32", "up"), as_array(down, "float32", "down")
    up_bias = None if up_bias is None else as_array(up_bias, "float32", "up_bias")
    down_bias = None if down_bias is None else as_array(down_bias, "float32", "down_bias")
    mask = as_array(mask, "bool", "mask")
    if mask.shape != gates.shape:
        raise ValueError(f"expert_ffn: argument 'mask' must have the shape of 'gates', {gates.shape}, got {mask.shape}")
    offsets, tokens = moe_route(mask)
    out = empty(x.shape, "float32", like=x)
    _C.expert_ffn(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, None, out)
    return out
