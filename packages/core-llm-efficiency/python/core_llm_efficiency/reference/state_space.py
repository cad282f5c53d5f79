"""The scans of Mamba-1 and Mamba-2 step by step, and their gradients by reverse accumulation, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, initial_state: Any = None) -> tuple[Float, Float]:
    """`out` (b, d, l) and the last state (b, d, n); arguments as the operator's."""
    u, delta, A, B, C = (np.asarray(x, np.float64) for x in (u, delta, A, B, C))
    batch, channels, steps = u.shape
    share = channels // max(B.shape[1], 1)
    B, C = np.repeat(B, share, 1), np.repeat(C, share, 1)
    h = np.zeros((batch, channels, A.shape[1])) if initial_state is None else np.array(initial_state, np.float64)
    out = np.zeros(u.shape)
    for t in range(steps):
        step = delta[:, :, t, None]
        h = np.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        out[:, :, t] = (h * C[..., t]).sum(-1)
    return out, h


def ssd_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, initial_states: Any = None, seq_idx: Any = None
) -> tuple[Float, Float]:
    """`out` (b, l, h, p) and the last states (b, h, p, n); arguments as the operator's."""
    x, dt, A, B, C = (np.asarray(v, np.float64) for v in (x, dt, A, B, C))
    batch, steps, heads, p = x.shape
    share = heads // max(B.shape[2], 1)
    B, C = np.repeat(B, share, 2), np.repeat(C, share, 2)
    shape = batch, heads, p, B.shape[3]
    state = np.zeros(shape) if initial_states is None else np.array(initial_states, np.float64)
    out = np.zeros(x.shape)
    for t in range(steps):
        if seq_idx is not None and t > 0:
            state = state * np.asarray(seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        step = dt[:, t, :, None, None]
        state = np.exp(step * A[:, None, None]) * state + step * x[:, t, :, :, None] * B[:, t, :, None, :]
        out[:, t] = (state * C[:, t, :, None, :]).sum(-1)
    return out, state


def selective_scan_backward(
    u: Any, delta: Any, A: Any, B: Any, C: Any, initial_state: Any, grad_out: Any, grad_last_state: Any
) -> list[Float]:
    """The gradients of u, delta, A, B, C and the initial state."""
    u, delta, A, B, C, dy = (np.asarray(x, np.float64) for x in (u, delta, A, B, C, grad_out))
    batch, channels, steps = u.shape
    groups, share = B.shape[1], channels // max(B.shape[1], 1)
    wide_B, wide_C = np.repeat(B, share, 1), np.repeat(C, share, 1)
    shape = batch, channels, A.shape[1]
    states = [np.zeros(shape) if initial_state is None else np.array(initial_state, np.float64)]
    for t in range(steps):
        step = delta[:, :, t, None]
        states.append(np.exp(step * A) * states[-1] + step * wide_B[..., t] * u[:, :, t, None])
    du, ddelta, dA = np.zeros(u.shape), np.zeros(u.shape), np.zeros(A.shape)
    dB, dC = np.zeros(wide_B.shape), np.zeros(wide_C.shape)
    carried = np.zeros(shape) if grad_last_state is None else np.array(grad_last_state, np.float64)
    for t in reversed(range(steps)):
        step, x, y = delta[:, :, t, None], u[:, :, t, None], dy[:, :, t, None]
        carried = carried + wide_C[..., t] * y
        dC[..., t] = y * states[t + 1]
        dB[..., t] = carried * step * x
        exponent = carried * np.exp(step * A) * states[t]
        dA += (exponent * step).sum(0)
        of_input = (carried * wide_B[..., t]).sum(-1)
        du[:, :, t] = of_input * delta[:, :, t]
        ddelta[:, :, t] = of_input * u[:, :, t] + (exponent * A).sum(-1)
        carried = np.exp(step * A) * carried
    dB, dC = (x.reshape(batch, groups, share, *B.shape[2:]).sum(2) for x in (dB, dC))
    return [du, ddelta, dA, dB, dC, carried]


def ssd_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, initial_states: Any, seq_idx: Any, grad_out: Any, grad_final_states: Any
) -> list[Float]:
    """The gradients of x, dt, A, B, C and the initial states."""
    x, dt, A, B, C, dy = (np.asarray(v, np.float64) for v in (x, dt, A, B, C, grad_out))
    batch, steps, heads, p = x.shape
    groups, share = B.shape[2], heads // max(B.shape[2], 1)
    wide_B, wide_C = np.repeat(B, share, 2), np.repeat(C, share, 2)
    shape = batch, heads, p, B.shape[3]
    kept = np.ones((batch, steps))
    if seq_idx is not None:
        kept[:, 1:] = seq_idx[:, 1:] == seq_idx[:, :-1]
    states = [np.zeros(shape) if initial_states is None else np.array(initial_states, np.float64)]
    decays = kept[:, :, None] * np.exp(dt * A)
    for t in range(steps):
        wave = dt[:, t, :, None, None] * x[:, t, :, :, None] * wide_B[:, t, :, None, :]
        states.append(decays[:, t, :, None, None] * states[-1] + wave)
    dx, ddt, dA = np.zeros(x.shape), np.zeros(dt.shape), np.zeros(A.shape)
    dB, dC = np.zeros(wide_B.shape), np.zeros(wide_C.shape)
    carried = np.zeros(shape) if grad_final_states is None else np.array(grad_final_states, np.float64)
    for t in reversed(range(steps)):
        carried = carried + dy[:, t, :, :, None] * wide_C[:, t, :, None, :]
        dC[:, t] = (dy[:, t, :, :, None] * states[t + 1]).sum(2)
        dB[:, t] = (carried * (dt[:, t, :, None] * x[:, t])[..., None]).sum(2)
        of_input = (carried * wide_B[:, t, :, None, :]).sum(-1)
        exponent = (carried * states[t]).sum((2, 3)) * decays[:, t]
        dx[:, t] = of_input * dt[:, t, :, None]
        ddt[:, t] = (of_input * x[:, t]).sum(-1) + exponent * A
        dA += (exponent * dt[:, t]).sum(0)
        carried = decays[:, t, :, None, None] * carried
    dB, dC = (v.reshape(batch, steps, groups, share, -1).sum(3) for v in (dB, dC))
    return [dx, ddt, dA, dB, dC, carried]
