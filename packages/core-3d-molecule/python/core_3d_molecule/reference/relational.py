"""Relational attention with every feature of every pair in memory, one molecule after another, in float64.

With it, what leads from projections of atoms and pairs to it and back.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Args = dict[str, Any]


def _pairs(a: Args, i: int, j: int, at: int) -> dict[str, np.ndarray]:
    """What the perceptron makes of the pairs of the atoms i..j, whose bonds begin at `at`."""
    n, bonds = j - i, a["bonds"][at : at + (j - i) ** 2].reshape(j - i, j - i)
    steps = a["positions"][i:j, None].astype(np.float64) - a["positions"][None, i:j]
    squared = (steps**2).sum(-1)
    z = (squared[..., None] - a["centres"]) / a["widths"]
    classes = a["w1"].shape[1] - 1 - len(a["centres"])
    x = np.concatenate([squared[..., None], np.exp(-(z**2) / 2), np.eye(classes)[bonds].reshape(n, n, classes)], -1)
    pre = x @ a["w1"].T.astype(np.float64) + a["b1"]
    sigmoid = 1 / (1 + np.exp(-pre))
    e = (pre * sigmoid) @ a["w2"].T.astype(np.float64) + a["b2"]
    return {"steps": steps, "z": z, "x": x, "pre": pre, "sigmoid": sigmoid, "e": e}


def _logits(a: Args, i: int, j: int, e: np.ndarray, form: np.ndarray) -> np.ndarray:
    """[i, j, H]."""
    q, k, q_edge, k_edge = (a[name][i:j].astype(np.float64) for name in ("q", "k", "q_edge", "k_edge"))
    return (
        np.einsum("ihd,jhd->ijh", q, k)
        + np.einsum("ihc,ijc->ijh", q_edge, e)
        + np.einsum("jhc,ijc->ijh", k_edge, e)
        + np.einsum("ijc,hcd,ijd->ijh", e, form, e)
    )


def _form(a: Args) -> np.ndarray:
    """The quadratic forms as matrices [H, E, E]."""
    heads, channels = a["q_edge"].shape[1:]
    form = np.zeros((heads, channels, channels))
    form[:, *np.triu_indices(channels)] = a["form"]
    return form


def _molecules(a: Args) -> list[tuple[int, int, int]]:
    """First atom, last atom and first bond of each."""
    ends = list(itertools.pairwise(a["offsets"].tolist()))
    return [
        (i, j, at) for (i, j), at in zip(ends, np.cumsum([0, *((j - i) ** 2 for i, j in ends)]).tolist(), strict=False)
    ]


def forward(a: Args) -> Args:
    """The expected out, out_edge and lse."""
    atoms, heads, channels = a["q_edge"].shape
    found = {
        "out": np.zeros(a["q"].shape),
        "out_edge": np.zeros((atoms, heads, channels)),
        "lse": np.zeros((atoms, heads)),
    }
    form = _form(a)
    for i, j, at in _molecules(a):
        if i == j:
            continue
        e = _pairs(a, i, j, at)["e"]
        logits = _logits(a, i, j, e, form)
        most = logits.max(1, keepdims=True)
        lse = most + np.log(np.exp(logits - most).sum(1, keepdims=True))
        p = np.exp(logits - lse)
        found["lse"][i:j] = lse[:, 0]
        found["out"][i:j] = np.einsum("ijh,jhd->ihd", p, a["v"][i:j])
        found["out_edge"][i:j] = np.einsum("ijh,ijc->ihc", p, e)
    return found


def backward(a: Args) -> Args:
    """The expected gradients, by the chain rule over the matrices of the forward pass."""
    inputs = ["q", "k", "v", "q_edge", "k_edge", "form", "positions", "centres", "widths", "w1", "b1", "w2", "b2"]
    found = {f"grad_{name}": np.zeros(a[name].shape) for name in inputs}
    form, grad_form = _form(a), np.zeros_like(_form(a))
    for i, j, at in _molecules(a):
        rows = slice(i, j)
        f = _pairs(a, i, j, at)
        e = f["e"]
        p = np.exp(_logits(a, i, j, e, form) - a["lse"][rows, None].astype(np.float64))
        g, g_edge = a["grad_out"][rows].astype(np.float64), a["grad_out_edge"][rows].astype(np.float64)
        grad_p = np.einsum("ihd,jhd->ijh", g, a["v"][rows]) + np.einsum("ihc,ijc->ijh", g_edge, e)
        mean = (g * a["out"][rows]).sum(-1) + (g_edge * a["out_edge"][rows]).sum(-1) - a["grad_lse"][rows]
        s = p * (grad_p - mean[:, None])
        found["grad_q"][rows] = np.einsum("ijh,jhd->ihd", s, a["k"][rows])
        found["grad_k"][rows] = np.einsum("ijh,ihd->jhd", s, a["q"][rows])
        found["grad_v"][rows] = np.einsum("ijh,ihd->jhd", p, g)
        found["grad_q_edge"][rows] = np.einsum("ijh,ijc->ihc", s, e)
        found["grad_k_edge"][rows] = np.einsum("ijh,ijc->jhc", s, e)
        grad_form += np.einsum("ijh,ijc,ijd->hcd", s, e, e)
        grad_e = (
            np.einsum("ijh,ihc->ijc", s, a["q_edge"][rows])
            + np.einsum("ijh,jhc->ijc", s, a["k_edge"][rows])
            + np.einsum("ijh,hcd,ijd->ijc", s, form + form.transpose(0, 2, 1), e)
            + np.einsum("ijh,ihc->ijc", p, g_edge)
        )
        hidden = f["pre"] * f["sigmoid"]
        found["grad_w2"] += np.einsum("ijc,ijf->cf", grad_e, hidden)
        found["grad_b2"] += grad_e.sum((0, 1))
        grad_pre = (grad_e @ a["w2"].astype(np.float64)) * (f["sigmoid"] + hidden * (1 - f["sigmoid"]))
        found["grad_w1"] += np.einsum("ijf,ijx->fx", grad_pre, f["x"])
        found["grad_b1"] += grad_pre.sum((0, 1))
        grad_x = grad_pre @ a["w1"].astype(np.float64)
        gaussians = slice(1, 1 + len(a["centres"]))
        grad_z = -grad_x[..., gaussians] * f["x"][..., gaussians] * f["z"]
        found["grad_centres"] -= (grad_z / a["widths"]).sum((0, 1))
        found["grad_widths"] -= (grad_z * f["z"] / a["widths"]).sum((0, 1))
        grad_squared = grad_x[..., 0] + (grad_z / a["widths"]).sum(-1)
        grad_steps = 2 * grad_squared[..., None] * f["steps"]
        found["grad_positions"][rows] = grad_steps.sum(1) - grad_steps.sum(0)
    upper = np.triu_indices(form.shape[1])
    found["grad_form"] = grad_form[:, *upper]
    return found


def _float64(a: Args, *names: str) -> list[np.ndarray]:
    return [a[name].astype(np.float64) for name in names]


def projections(a: Args) -> Args:
    """The expected scaled_q, q_edge, k_edge and form."""
    q, k, edge_q, edge_k = _float64(a, "q", "k", "edge_q", "edge_k")
    product = np.einsum("hde,hdf->hef", edge_q, edge_k)
    both = product + product.transpose(0, 2, 1) * (1 - np.eye(product.shape[1]))
    return {
        "scaled_q": a["scale"] * q,
        "q_edge": a["scale"] * np.einsum("ahd,hde->ahe", q, edge_k),
        "k_edge": a["scale"] * np.einsum("ahd,hde->ahe", k, edge_q),
        "form": a["scale"] * both[:, *np.triu_indices(product.shape[1])],
    }


def projections_backward(a: Args) -> Args:
    """The expected gradients of q, k, edge_q and edge_k."""
    q, k, edge_q, edge_k = _float64(a, "q", "k", "edge_q", "edge_k")
    g_q, g_q_edge, g_k_edge, g_form = _float64(a, "grad_scaled_q", "grad_q_edge", "grad_k_edge", "grad_form")
    edge = edge_q.shape[2]
    upper = np.zeros((len(edge_q), edge, edge))
    upper[:, *np.triu_indices(edge)] = g_form
    form = upper + upper.transpose(0, 2, 1) * (1 - np.eye(edge))
    found = {
        "q": g_q + np.einsum("ahe,hde->ahd", g_q_edge, edge_k),
        "k": np.einsum("ahe,hde->ahd", g_k_edge, edge_q),
        "edge_q": np.einsum("ahd,ahe->hde", k, g_k_edge) + np.einsum("hef,hdf->hde", form, edge_k),
        "edge_k": np.einsum("ahd,ahe->hde", q, g_q_edge) + np.einsum("hef,hde->hdf", form, edge_q),
    }
    return {f"grad_{name}": a["scale"] * x for name, x in found.items()}


def values(a: Args) -> Args:
    """The expected values."""
    out, out_edge, edge_v = _float64(a, "out", "out_edge", "edge_v")
    return {"values": out + np.einsum("ahe,hde->ahd", out_edge, edge_v)}


def values_backward(a: Args) -> Args:
    """The expected gradients of out_edge and edge_v."""
    out_edge, edge_v, g = _float64(a, "out_edge", "edge_v", "grad_values")
    return {
        "grad_out_edge": np.einsum("ahd,hde->ahe", g, edge_v),
        "grad_edge_v": np.einsum("ahd,ahe->hde", g, out_edge),
    }
