"""Mixture-of-experts layers written as their papers' formulas, in float64 (arXiv 2503.16057, 2503.14487)."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def topk_mask(scores: NDArray[np.floating], k: int) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    """The mask [R, C] of the k largest scores of each row (ties: lower columns first), and the k-th largest [R]."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, True, 1)
    if k == 0:
        return mask, np.full(len(scores), np.inf, scores.dtype)
    return mask, np.take_along_axis(scores, order[:, -1:], 1)[:, 0]


def moe_route(mask: NDArray[np.bool_], room: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets [E+1] and tokens [room] of the experts' lists: all tokens of expert 0, of expert 1, ...; then -1."""
    tokens = np.full(room, -1, np.int64)
    chosen = np.nonzero(mask.T)[1]
    tokens[: len(chosen)] = chosen
    return np.concatenate([[0], np.cumsum(mask.sum(0))]), tokens


def activation(name: str, x: Array) -> tuple[Array, Array]:
    """Value and derivative of GELU's tanh form or of SiLU."""
    if name == "silu":
        s = 1 / (1 + np.exp(-x))
        return x * s, s + x * s * (1 - s)
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) / 2 * c * (1 + 3 * 0.044715 * x**2)


def expert_ffn(
    x: Array, mask: NDArray[np.bool_], gates: Array, up: Array, up_bias: Array, down: Array, down_bias: Array, name: str
) -> tuple[Array, Array]:
    """The output [T, D], and the values before the activation [A, H], token after token of each expert."""
    out, hidden = np.zeros_like(x), []
    for e, t in np.argwhere(mask.T):
        hidden.append(up[e] @ x[t] + up_bias[e])
        out[t] += gates[t, e] * (down[e] @ activation(name, hidden[-1])[0] + down_bias[e])
    return out, np.array(hidden).reshape(len(hidden), up.shape[1])


def expert_ffn_backward(
    dout: Array,
    x: Array,
    mask: NDArray[np.bool_],
    gates: Array,
    up: Array,
    up_bias: Array,
    down: Array,
    down_bias: Array,
    name: str,
) -> dict[str, Array]:
    """The derivatives of `expert_ffn` by the chain rule, one token and expert at a time."""
    d = {"dx": np.zeros_like(x), "dgates": np.zeros_like(gates), "dup": np.zeros_like(up), "ddown": np.zeros_like(down)}
    d |= {"dup_bias": np.zeros_like(up_bias), "ddown_bias": np.zeros_like(down_bias)}
    for e, t in np.argwhere(mask.T):
        act, slope = activation(name, up[e] @ x[t] + up_bias[e])
        d["dgates"][t, e] = dout[t] @ (down[e] @ act + down_bias[e])
        dy = gates[t, e] * dout[t]
        dh = (down[e].T @ dy) * slope
        d["dx"][t] += up[e].T @ dh
        d["dup"][e] += np.outer(dh, x[t])
        d["dup_bias"][e] += dh
        d["ddown"][e] += np.outer(dy, act)
        d["ddown_bias"][e] += dy
    return d
