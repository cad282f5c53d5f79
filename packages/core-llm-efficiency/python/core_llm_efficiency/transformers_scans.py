"""Puts the scans of core_llm_efficiency.state_space into transformers' state-space models, for tensors on the CPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from .state_space import mamba_chunk_scan_combined, selective_scan_fn

MODELS = ("bamba", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h")


def register_transformers_scans(models: Sequence[str] = MODELS) -> list[str]:
    """Replaces the scans of these models (names of transformers' folders, all of them from 5.20 on) in this process.

    Prefill, training and cached generation of tensors on the CPU then use the fused scans, computed in float32;
    tensors elsewhere, and single decoding steps, keep transformers' own code.
    Returns the functions replaced, as "model.function"; empty if this transformers has none that can be. Calling it
    again changes nothing.
    """
    replaced = []
    for model in models:
        path = f"transformers.models.{model}.modeling_{model}"
        if importlib.util.find_spec(f"transformers.models.{model}") is None:
            continue
        module = importlib.import_module(path)
        for name, ours in (("mamba_selective_scan", _selective), ("mamba2_chunk_scan", _chunked)):
            theirs = getattr(module, name, None)
            if theirs is None:
                continue
            if not hasattr(theirs, "core_llm_efficiency"):
                setattr(module, name, ours(theirs))
            replaced.append(f"{model}.{name}")
    return replaced


def _float(x: Any) -> Any:
    return None if x is None else x.float()


def _selective(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def scan(
        hidden_states: Any,
        dt: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any = None,
        z: Any = None,
        delta_bias: Any = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
        **rest: Any,
    ) -> Any:
        if hidden_states.device.type != "cpu":
            return theirs(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, **rest)
        u, dt, A, B, C, D, z, bias = map(_float, (hidden_states, dt, A, B, C, D, z, delta_bias))
        out, last = selective_scan_fn(u, dt, A, B, C, D, z, bias, delta_softplus, return_last_state=True)
        out = out.to(hidden_states.dtype)
        return (out, last) if return_last_state else out

    scan.core_llm_efficiency = True  # type: ignore[attr-defined]
    return scan


def _chunked(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def scan(
        hidden_states: Any,
        dt: Any,
        A: Any,
        B: Any,
        C: Any,
        chunk_size: int,
        D: Any = None,
        z: Any = None,
        dt_bias: Any = None,
        initial_states: Any = None,
        seq_idx: Any = None,
        **rest: Any,
    ) -> Any:
        if hidden_states.device.type != "cpu":
            return theirs(
                hidden_states, dt, A, B, C, chunk_size, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states,
                seq_idx=seq_idx, **rest,
            )  # fmt: skip
        x, dt, A, B, C = map(_float, (hidden_states, dt, A, B, C))
        known: dict[str, Any] = {k: rest[k] for k in ("dt_softplus", "dt_limit", "return_final_states") if k in rest}
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size, _float(D), _float(z), _float(dt_bias), _float(initial_states), seq_idx, **known
        )

    scan.core_llm_efficiency = True  # type: ignore[attr-defined]
    return scan
