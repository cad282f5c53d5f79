"""The torch operators of relational attention and their gradients."""

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


def _fake_projections(q: Tensor, k: Tensor, edge_q: Tensor, edge_k: Tensor, scale: float) -> tuple[Tensor, ...]:
    heads, _, edge = edge_q.shape
    rows = (q.new_empty(*q.shape[:2], edge) for _ in range(2))
    return q.new_empty(q.shape), *rows, q.new_empty(heads, edge * (edge + 1) // 2)


def _projections(*inputs: Any) -> tuple[Tensor, ...]:
    outputs = _fake_projections(*inputs)
    _C.relational_projections(*inputs, *outputs)
    return outputs


def _fake_projections_gradients(*args: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in args[:4]]


def _projections_gradients(*args: Any) -> list[Tensor]:
    gradients = _fake_projections_gradients(*args)
    _C.relational_projections_backward(*args, *gradients)
    return gradients


_projections_backward = torchlib.define(
    "core_3d_molecule",
    "relational_projections_backward(Tensor q, Tensor k, Tensor edge_q, Tensor edge_k, float scale, "
    "Tensor grad_scaled_q, Tensor grad_q_edge, Tensor grad_k_edge, Tensor grad_form) -> Tensor[]",
    _projections_gradients,
    _fake_projections_gradients,
)


def _save_projections(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _of_projections(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *_projections_backward(*ctx.saved_tensors, ctx.scale, *gradients), None


relational_projections = torchlib.define(
    "core_3d_molecule",
    "relational_projections(Tensor q, Tensor k, Tensor edge_q, Tensor edge_k, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _projections,
    _fake_projections,
    _of_projections,
    _save_projections,
)


def _fake_values(out: Tensor, out_edge: Tensor, edge_v: Tensor) -> Tensor:
    return out.new_empty(out.shape)


def _values(*inputs: Tensor) -> Tensor:
    values = _fake_values(*inputs)
    _C.relational_values(*(*inputs, values))
    return values


def _fake_values_gradients(out_edge: Tensor, edge_v: Tensor, grad_values: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (out_edge, edge_v)]


def _values_gradients(*args: Tensor) -> list[Tensor]:
    gradients = _fake_values_gradients(*args)
    _C.relational_values_backward(*args, *gradients)
    return gradients


_values_backward = torchlib.define(
    "core_3d_molecule",
    "relational_values_backward(Tensor out_edge, Tensor edge_v, Tensor grad_values) -> Tensor[]",
    _values_gradients,
    _fake_values_gradients,
)


def _save_values(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _of_values(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    return gradient, *_values_backward(*ctx.saved_tensors, gradient)


relational_values = torchlib.define(
    "core_3d_molecule",
    "relational_values(Tensor out, Tensor out_edge, Tensor edge_v) -> Tensor",
    _values,
    _fake_values,
    _of_values,
    _save_values,
)
