"""The torch operator `core_splatting::memory_attention` and its gradient, on the CPU and on CUDA."""

from __future__ import annotations

from typing import Any

from core_registry import torchlib
from torch import Tensor

from . import _core_splatting as _C


def _outputs(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return queries.new_empty((queries.shape[0], values.shape[1])), queries.new_empty((queries.shape[0],))


def _impl(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    out, log_sums = _outputs(queries, keys, values)
    _C.memory_attention(queries, keys, values, out, log_sums)
    return out, log_sums


def _gradients(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, values, by_values = args[0], args[1], args[2], args[6]
    v_values = values.new_empty(values.shape if by_values else (0,))
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), v_values


def _backward_impl(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    v_queries, v_keys, v_values = _gradients(*args)
    _C.memory_attention_backward(*(*args[:6], v_queries, v_keys, v_values if args[6] else None))
    return v_queries, v_keys, v_values


memory_attention_backward = torchlib.define(
    "core_splatting",
    "memory_attention_backward(Tensor queries, Tensor keys, Tensor values, Tensor out, Tensor log_sums, Tensor v_out, "
    "bool by_values) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _gradients,
)
"""Gradients of a loss by queries, keys and values (empty if not `by_values`)."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, v_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    by_values = ctx.needs_input_grad[2]
    v_queries, v_keys, v_values = memory_attention_backward(*ctx.saved_tensors, v_out, by_values)
    return v_queries, v_keys, v_values if by_values else None


memory_attention = torchlib.define(
    "core_splatting",
    "memory_attention(Tensor queries, Tensor keys, Tensor values) -> (Tensor, Tensor)",
    _impl,
    _outputs,
    _backward,
    _setup_context,
)
"""softmax(queries keys^T) values (P, D), and the logarithms of the sums of exponentials (P,)."""
