"""The torch operators core_llm_efficiency::{selective_scan, ssd_scan} and their backward operators."""

from __future__ import annotations

from typing import Any

from core_registry import torchlib
from torch import Tensor

from . import _core_llm_efficiency as _C


def _fake_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> Any:
    return u.new_empty(u.shape), A.new_empty((*u.shape[:2], A.shape[1]))


def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> Any:
    outputs = _fake_scan(u, delta, A, B, C, initial)
    _C.selective_scan(u, delta, A, B, C, initial, *outputs)
    return outputs


def _fake_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, seq_idx: Tensor | None
) -> Any:
    return x.new_empty(x.shape), A.new_empty((x.shape[0], *x.shape[2:], B.shape[3]))


def _ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, seq_idx: Tensor | None) -> Any:
    outputs = _fake_ssd(x, dt, A, B, C, initial, seq_idx)
    _C.ssd_scan(x, dt, A, B, C, initial, seq_idx, *outputs)
    return outputs


def _fake_gradients(*args: Any) -> list[Tensor]:
    """Of the five inputs and of the initial state, whose shape is the last state's."""
    return [x.new_empty(x.shape) for x in (*args[:5], args[-1])]


def _scan_gradients(*args: Any) -> list[Tensor]:
    gradients = _fake_gradients(*args)
    _C.selective_scan_backward(*args, *gradients)
    return gradients


def _ssd_gradients(*args: Any) -> list[Tensor]:
    gradients = _fake_gradients(*args)
    _C.ssd_scan_backward(*args, *gradients)
    return gradients


_INPUTS = "Tensor A, Tensor B, Tensor C, Tensor? initial"
_scan_backward = torchlib.define(
    "core_llm_efficiency",
    f"selective_scan_backward(Tensor u, Tensor delta, {_INPUTS}, Tensor grad_out, Tensor grad_last) -> Tensor[]",
    _scan_gradients,
    _fake_gradients,
)
_ssd_backward = torchlib.define(
    "core_llm_efficiency",
    f"ssd_scan_backward(Tensor x, Tensor dt, {_INPUTS}, Tensor? seq_idx, Tensor grad_out, Tensor grad_last) "
    "-> Tensor[]",
    _ssd_gradients,
    _fake_gradients,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _of_scan(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
    *five, initial = ctx.saved_tensors
    *gradients, of_initial = _scan_backward(*five, initial, grad_out, grad_last)
    return *gradients, None if initial is None else of_initial


def _of_ssd(ctx: Any, grad_out: Tensor, grad_last: Tensor) -> tuple[Any, ...]:
    *five, initial, seq_idx = ctx.saved_tensors
    *gradients, of_initial = _ssd_backward(*five, initial, seq_idx, grad_out, grad_last)
    return *gradients, None if initial is None else of_initial, None


selective_scan = torchlib.define(
    "core_llm_efficiency",
    f"selective_scan(Tensor u, Tensor delta, {_INPUTS}) -> (Tensor, Tensor)",
    _scan,
    _fake_scan,
    _of_scan,
    _save,
)
ssd_scan = torchlib.define(
    "core_llm_efficiency",
    f"ssd_scan(Tensor x, Tensor dt, {_INPUTS}, Tensor? seq_idx) -> (Tensor, Tensor)",
    _ssd,
    _fake_ssd,
    _of_ssd,
    _save,
)
