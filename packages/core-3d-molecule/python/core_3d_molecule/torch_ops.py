"""The torch operator `core_3d_molecule::relational_attention` and its gradient."""

from __future__ import annotations

from typing import Any

from core_registry import torchlib
from torch import Tensor

from . import _core_3d_molecule as _C

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor q_edge, Tensor k_edge, Tensor form, Tensor positions, Tensor bonds, "
    "Tensor offsets, Tensor centres, Tensor widths, Tensor w1, Tensor b1, Tensor w2, Tensor b2"
)
_BONDS, _OFFSETS, _LAST = 7, 8, 15


def _fake(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, q_edge = inputs[0], inputs[3]
    return q.new_empty(q.shape), q.new_empty(q_edge.shape), q.new_empty(q.shape[:2])


def _impl(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _fake(*inputs)
    _C.relational_attention(*(*inputs, *outputs))
    return outputs


def _fake_gradients(*args: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape) for n, x in enumerate(args[:_LAST]) if n not in (_BONDS, _OFFSETS)]


def _gradients(*args: Any) -> list[Tensor]:
    gradients = _fake_gradients(*args)
    _C.relational_attention_backward(*args, *gradients)
    return gradients


_backward = torchlib.define(
    "core_3d_molecule",
    f"relational_attention_backward({_INPUTS}, Tensor out, Tensor out_edge, Tensor lse, Tensor grad_out, "
    "Tensor grad_out_edge, Tensor grad_lse) -> Tensor[]",
    _gradients,
    _fake_gradients,
)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _of_attention(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = list(_backward(*ctx.saved_tensors, *gradients))
    found[_BONDS:_BONDS] = [None, None]
    return tuple(found)


relational_attention = torchlib.define(
    "core_3d_molecule",
    f"relational_attention({_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _impl,
    _fake,
    _of_attention,
    _save,
)
