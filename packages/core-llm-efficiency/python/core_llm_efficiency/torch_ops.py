"""The torch operators core_llm_efficiency::{antidiagonal_scores, select_blocks, block_sparse_attention}."""

from __future__ import annotations

import torch
from core_registry import torchlib

from . import _core_llm_efficiency as _C


def _blocks(length: int, block: int) -> int:
    return (length + block - 1) // block


def _fake_scores(q: torch.Tensor, k: torch.Tensor, stride: int, block: int, scale: float, causal: bool) -> torch.Tensor:
    torch._check(block > 0, lambda: f"argument 'block' must be a multiple of 16 in [16, 4096], got {block}")
    shape = q.shape[0], q.shape[1], _blocks(q.shape[2], block), _blocks(k.shape[2], block)
    return q.new_empty(shape, dtype=torch.float32)


def _scores(q: torch.Tensor, k: torch.Tensor, stride: int, block: int, scale: float, causal: bool) -> torch.Tensor:
    out = _fake_scores(q, k, stride, block, scale, causal)
    _C.antidiagonal_scores(q, k, stride, block, scale, causal, out)
    return out


def _fake_select(
    scores: torch.Tensor, thresholds: torch.Tensor, block: int, q_len: int, k_len: int, causal: bool
) -> torch.Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _select(
    scores: torch.Tensor, thresholds: torch.Tensor, block: int, q_len: int, k_len: int, causal: bool
) -> torch.Tensor:
    mask = _fake_select(scores, thresholds, block, q_len, k_len, causal)
    _C.select_blocks(scores, thresholds, block, q_len, k_len, causal, mask)
    return mask


def _fake_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, block: int, scale: float, causal: bool
) -> torch.Tensor:
    return q.new_empty((*q.shape[:3], v.shape[3]))


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, block: int, scale: float, causal: bool
) -> torch.Tensor:
    out = _fake_attention(q, k, v, mask, block, scale, causal)
    _C.block_sparse_attention(q, k, v, mask, block, scale, causal, out, None)
    return out


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
block_sparse_attention = torchlib.define(
    "core_llm_efficiency",
    "block_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor mask, int block, float scale, bool causal) -> Tensor",
    _attention,
    _fake_attention,
)
