"""The scans of Mamba-1 (arXiv 2312.00752) and Mamba-2 (SSD, arXiv 2405.21060), with the calls of the package mamba_ssm.

All arrays float32, numpy or torch; in torch differentiable with respect to every float argument. On CUDA u or x, B
and C may also be float16 or bfloat16 (all of one dtype, the result's; states are float32) and n is at most 256 (128
for gradients of Mamba-2's scan but in bfloat16). The state is carried: a sequence cut anywhere gives the same result
if the second call starts from the first one's last state, and a decoding step is a call of length 1.
`register_transformers_scans` (core_llm_efficiency.transformers_scans) puts them into transformers' Mamba, Mamba-2,
Bamba, Jamba and Nemotron-H.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty, is_torch

from . import _core_llm_efficiency as _C
from ._operands import operand_dtype


def _torch_scans() -> ModuleType:
    from . import torch_scans

    return torch_scans


def _functional() -> Any:
    import torch.nn.functional

    return torch.nn.functional


def _softplus(x: Any) -> Any:
    return _functional().softplus(x) if is_torch(x) else np.logaddexp(x, np.float32(0))


def _silu(x: Any) -> Any:
    return _functional().silu(x) if is_torch(x) else x / (1 + np.exp(-x))


def _shaped(x: Any, name: str, like: Any, *shapes: Any) -> Any:
    """x, refused unless it is of one of the shapes: of another, it might be broadcast."""
    x = as_array(x, "float32", name, like)
    if tuple(x.shape) not in shapes:
        wanted = " or ".join(str(tuple(y)) for y in shapes)
        raise ValueError(f"argument '{name}' must be float32 of shape {wanted}, got shape {tuple(x.shape)}")
    return x


def _rounded(out: Any, like: Any) -> Any:
    return out.to(like.dtype) if is_torch(out) else out


def _with_group(x: Any, name: str, like: Any, dtype: str) -> Any:
    x = as_array(x, dtype, name, like)
    return x[:, None] if len(x.shape) == 3 else x


def selective_scan_fn(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Any = None,
) -> Any:
    """Mamba-1's selective scan: h(t) = exp(delta A) h(t-1) + delta B u, out = C h + D u, times silu(z).

    u, delta, z (b, d, l); A (d, n); B, C (b, n, l) or (b, g, n, l) with g dividing d; D, delta_bias (d); initial_state
    (b, d, n), zeros if absent. `delta_bias` is added to delta, then softplus taken if `delta_softplus`.
    Returns out (b, d, l), and the last state (b, d, n) with `return_last_state`.
    Raises TypeError on other dtypes, ValueError on shapes that do not fit. arXiv 2312.00752, Algorithm 2.
    """
    dtype = operand_dtype(u, "u")
    u = as_array(u, dtype, "u")
    delta, A = as_array(delta, "float32", "delta", u), as_array(A, "float32", "A", u)
    B, C = _with_group(B, "B", u, dtype), _with_group(C, "C", u, dtype)
    if delta_bias is not None:
        delta = delta + _shaped(delta_bias, "delta_bias", u, A.shape[:1])[:, None]
    if delta_softplus:
        delta = _softplus(delta)
    initial_state = None if initial_state is None else as_array(initial_state, "float32", "initial_state", u)
    if is_torch(u):
        out, last = _torch_scans().selective_scan(u, delta, A, B, C, initial_state)
    else:
        out, last = empty(u.shape, "float32", u), empty((*u.shape[:2], A.shape[-1]), "float32", u)
        _C.selective_scan(u, delta, A, B, C, initial_state, out, last)
    if D is not None:
        out = out + _shaped(D, "D", u, u.shape[1:2])[:, None] * u
    if z is not None:
        out = out * _silu(_shaped(z, "z", u, u.shape))
    out = _rounded(out, u)
    return (out, last) if return_last_state else out


def mamba_chunk_scan_combined(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    chunk_size: int | None = None,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    seq_idx: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> Any:
    """Mamba-2's scan: S(t) = exp(dt A) S(t-1) + dt x B^T, out = S C + D x, times silu(z).

    x, z (b, l, h, p); dt (b, l, h); A (h); B, C (b, l, g, n) with g dividing h; D (h) or (h, p); dt_bias (h);
    initial_states (b, h, p, n), zeros if absent; n and p at most 256. `dt_bias` is added to dt, softplus taken if
    `dt_softplus`, then dt limited to `dt_limit`. seq_idx (b, l) int32: the state starts anew wherever it changes.
    `chunk_size` changes nothing but is there for callers of mamba_ssm. Returns out (b, l, h, p), and the final states
    (b, h, p, n) with `return_final_states`.
    Raises TypeError on other dtypes, ValueError on shapes that do not fit. arXiv 2405.21060, section 6.
    """
    dtype = operand_dtype(x, "x")
    x = as_array(x, dtype, "x")
    dt, A = as_array(dt, "float32", "dt", x), as_array(A, "float32", "A", x)
    B, C = as_array(B, dtype, "B", x), as_array(C, dtype, "C", x)
    if dt_bias is not None:
        dt = dt + _shaped(dt_bias, "dt_bias", x, A.shape)
    if dt_softplus:
        dt = _softplus(dt)
    if tuple(dt_limit) != (0.0, float("inf")):
        dt = dt.clip(*dt_limit)
    initial_states = None if initial_states is None else as_array(initial_states, "float32", "initial_states", x)
    seq_idx = None if seq_idx is None else as_array(seq_idx, "int32", "seq_idx", x)
    if is_torch(x):
        out, last = _torch_scans().ssd_scan(x, dt, A, B, C, initial_states, seq_idx)
    else:
        out = empty(x.shape, "float32", x)
        last = empty((x.shape[0], *x.shape[2:], B.shape[-1]), "float32", x)
        _C.ssd_scan(x, dt, A, B, C, initial_states, seq_idx, out, last)
    if D is not None:
        D = _shaped(D, "D", x, x.shape[2:3], x.shape[2:])
        out = out + (D[:, None] if len(D.shape) == 1 else D) * x
    if z is not None:
        out = out * _silu(_shaped(z, "z", x, x.shape))
    out = _rounded(out, x)
    return (out, last) if return_final_states else out
