"""The torch operators core_llm_efficiency::{antidiagonal_scores, select_blocks, block_sparse_attention}.

The last gives the output and the logarithm of the softmax denominator, and is differentiable in q, k and v."""

from __future__ import annotations

from typing import Any

import torch
from core_registry import torchlib
from torch import Tensor

from . import _core_llm_efficiency as _C


def _blocks(length: int, block: int) -> int:
    return (length + block - 1) // block


def _fake_scores(q: Tensor, k: Tensor, stride: int, block: int, scale: float, causal: bool) -> Tensor:
    torch._check(block > 0, lambda: f"argument 'block' must be a multiple of 16 in [16, 4096], got {block}")
    shape = q.shape[0], q.shape[1], _blocks(q.shape[2], block), _blocks(k.shape[2], block)
    return q.new_empty(shape, dtype=torch.float32)


def _scores(q: Tensor, k: Tensor, stride: int, block: int, scale: float, causal: bool) -> Tensor:
    out = _fake_scores(q, k, stride, block, scale, causal)
    _C.antidiagonal_scores(q, k, stride, block, scale, causal, out)
    return out


def _fake_select(scores: Tensor, thresholds: Tensor, block: int, q_len: int, k_len: int, causal: bool) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _select(scores: Tensor, thresholds: Tensor, block: int, q_len: int, k_len: int, causal: bool) -> Tensor:
    mask = _fake_select(scores, thresholds, block, q_len, k_len, causal)
    _C.select_blocks(scores, thresholds, block, q_len, k_len, causal, mask)
    return mask


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block: int, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block: int, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse = _fake_attention(q, k, v, mask, block, scale, causal)
    _C.block_sparse_attention(q, k, v, mask, block, scale, causal, out, lse)
    return out, lse


def _fake_gradients(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _gradients(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _fake_gradients(*args)
    every: list[Any] = [*args, *gradients]
    _C.block_sparse_attention_backward(*every)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.options = inputs[4:]
    ctx.set_materialize_grads(False)


def _of_attention(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    gradients = block_sparse_attention_backward(q, k, v, mask, *ctx.options, out, lse, grad_out, grad_lse)
    return *gradients, None, None, None, None


antidiagonal_scores = torchlib.define(
    "core_llm_efficiency",
    "antidiagonal_scores(Tensor q, Tensor k, int stride, int block, float scale, bool causal) -> Tensor",
    _scores,
    _fake_scores,
)
select_blocks = torchlib.define(
    "core_llm_efficiency",
    "select_blocks(Tensor scores, Tensor thresholds, int block, int q_len, int k_len, bool causal) -> Tensor",
    _select,
    _fake_select,
)
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor mask, int block, float scale, bool causal"
block_sparse_attention_backward = torchlib.define(
    "core_llm_efficiency",
    f"block_sparse_attention_backward({_INPUTS}, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse) "
    "-> (Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
)
block_sparse_attention = torchlib.define(
    "core_llm_efficiency",
    f"block_sparse_attention({_INPUTS}) -> (Tensor, Tensor)",
    _attention,
    _fake_attention,
    _of_attention,
    _save,
)
