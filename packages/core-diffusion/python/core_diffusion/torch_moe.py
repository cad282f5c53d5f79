"""The mixture-of-experts layer of diffusion transformers with four routers, and its torch operators.

Token choice, expert choice, Expert Race (arXiv 2503.16057) and DiffMoE (arXiv 2503.14487) as one layer, `MoE`. Its
operators are core_diffusion::{moe_topk, moe_experts} with their backward operator; no shape depends on data, so that
`torch.compile(fullgraph=True)` takes it whole.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from core_registry import torchlib
from torch import Tensor
from torch.nn import functional

from . import _core_diffusion as _C

__all__ = ["expert_ffn", "topk_mask"]

# ---- selection ----------------------------------------------------------------------------------------------


def _fake_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape, dtype=torch.bool), scores.new_empty(scores.shape[0])


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    mask, kth = _fake_topk(scores, k)
    _C.topk_mask(scores, k, mask, kth)
    return mask, kth


_moe_topk = torchlib.define("core_diffusion", "moe_topk(Tensor scores, int k) -> (Tensor, Tensor)", _topk, _fake_topk)


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`core_diffusion.topk_mask` of a float32 or float64 tensor [..., C]."""
    mask, kth = _moe_topk(scores.reshape(scores.shape[:-1].numel(), scores.shape[-1]), k)
    return mask.view(scores.shape), kth.view(scores.shape[:-1])


# ---- experts ------------------------------------------------------------------------------------------------
# The products are torch's, expert after expert over gathered rows: its matrix library wins over our own tile by
# 1.2 to 1.4 at these sizes. Around them nothing is materialised but the values before the activation.


def _act(x: Tensor, activation: str) -> Tensor:
    return functional.silu(x) if activation == "silu" else functional.gelu(x, approximate="tanh")


def _act_backward(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)  # type: ignore[no-any-return]
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")  # type: ignore[no-any-return]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def _fake_experts(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    pairs: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offsets = mask.new_empty(mask.shape[1] + 1, dtype=torch.int64)
    tokens = mask.new_empty(pairs, dtype=torch.int64)
    return x.new_empty(x.shape), offsets, tokens, x.new_empty(pairs if keep else 0, up.shape[1])


def _experts(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    pairs: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, offsets, tokens, hidden = _fake_experts(x, mask, gates, up, up_bias, down, down_bias, activation, pairs, keep)
    _C.moe_route(mask, offsets, tokens)
    bounds = offsets.tolist()
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin == end:
            continue
        rows = tokens[begin:end]
        h = _linear(x[rows], up[e], None if up_bias is None else up_bias[e])
        if keep:
            hidden[begin:end] = h
        y = _linear(_act(h, activation), down[e], None if down_bias is None else down_bias[e])
        out.index_add_(0, rows, y.mul_(gates[rows, e, None]))
    hidden[bounds[-1] :] = 0
    return out, offsets, tokens, hidden


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    offsets: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    activation: str,
) -> list[Tensor]:
    of = [x, gates, up, up[:, :, 0], down, down[:, :, 0]]
    return [t.new_empty(t.shape) for t in of]


def _gradients(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    offsets: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    activation: str,
) -> list[Tensor]:
    outputs = _fake_gradients(grad, x, gates, up, down, down_bias, offsets, tokens, hidden, activation)
    dx, dgates, dup, dup_bias, ddown, ddown_bias = outputs
    dx.zero_()
    dgates.zero_()
    bounds = offsets.tolist()
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin == end:
            for d in (dup, dup_bias, ddown, ddown_bias):
                d[e].zero_()
            continue
        rows, h = tokens[begin:end], hidden[begin:end]
        dy, a = grad[rows], _act(h, activation)
        da = dy @ down[e]
        share = torch.linalg.vecdot(da, a)
        dgates[rows, e] = share if down_bias is None else share + dy @ down_bias[e]
        gate = gates[rows, e, None]
        dy.mul_(gate)
        dh = _act_backward(da.mul_(gate), h, activation)
        torch.mm(dy.t(), a, out=ddown[e])
        torch.mm(dh.t(), x[rows], out=dup[e])
        torch.sum(dy, 0, out=ddown_bias[e])
        torch.sum(dh, 0, out=dup_bias[e])
        dx.index_add_(0, rows, dh @ up[e])
    return outputs


_experts_backward = torchlib.define(
    "core_diffusion",
    "moe_experts_backward(Tensor grad, Tensor x, Tensor gates, Tensor up, Tensor down, Tensor? down_bias, "
    "Tensor offsets, Tensor tokens, Tensor hidden, str activation) -> Tensor[]",
    _gradients,
    _fake_gradients,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, gates, up, up_bias, down, down_bias, activation, _, _ = inputs
    ctx.activation, ctx.biased = activation, (up_bias is not None, down_bias is not None)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, gates, up, down, down_bias, *output[1:])


def _of_experts(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    dx, dgates, dup, dup_bias, ddown, ddown_bias = _experts_backward(grad, *ctx.saved_tensors, ctx.activation)
    of_up, of_down = ctx.biased
    return (dx, None, dgates, dup, dup_bias if of_up else None, ddown, ddown_bias if of_down else None, *[None] * 3)


_moe_experts = torchlib.define(
    "core_diffusion",
    "moe_experts(Tensor x, Tensor mask, Tensor gates, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias, "
    "str activation, int pairs, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _experts,
    _fake_experts,
    _of_experts,
    _save,
)


def expert_ffn(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Literal["gelu_tanh", "silu"] = "gelu_tanh",
    pairs: int | None = None,
) -> Tensor:
    """`core_diffusion.expert_ffn` of tensors."""
    if activation not in ("gelu_tanh", "silu"):
        raise ValueError(f"expert_ffn: argument 'activation' must be 'gelu_tanh' or 'silu', got {activation!r}")
    if x.ndim != 2 or up.ndim != 3:
        raise ValueError(f"expert_ffn: 'x' and 'up' must have 2 and 3 axes, got {x.ndim} and {up.ndim}")
    (count, width), (experts, inner) = x.shape, up.shape[:2]
    wanted = {
        "mask": (mask, (count, experts)),
        "gates": (gates, (count, experts)),
        "up": (up, (experts, inner, width)),
        "up_bias": (up_bias, (experts, inner)),
        "down": (down, (experts, width, inner)),
        "down_bias": (down_bias, (experts, width)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"expert_ffn: argument '{name}' must have shape {shape}, got {tuple(tensor.shape)}")
        dtype = torch.bool if name == "mask" else x.dtype
        if tensor.dtype != dtype:
            raise TypeError(f"expert_ffn: argument '{name}' must be {dtype}, got {tensor.dtype}")
    floats = (x, gates, up, up_bias, down, down_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats)
    pairs = count * experts if pairs is None else pairs
    out: Tensor = _moe_experts(x, mask, gates, up, up_bias, down, down_bias, activation, pairs, keep)[0]
    return out
