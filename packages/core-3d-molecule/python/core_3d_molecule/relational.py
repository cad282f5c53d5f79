"""Attention among the atoms of molecules that sees the features of every pair (R-Trans of UAE-3D, arXiv 2503.15567)."""

from __future__ import annotations

from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_3d_molecule as _C


def relational_attention(
    q: Any,
    k: Any,
    v: Any,
    positions: Any,
    bonds: Any,
    offsets: Any,
    *,
    edge_q: Any,
    edge_k: Any,
    edge_v: Any,
    centres: Any,
    widths: Any,
    w1: Any,
    b1: Any,
    w2: Any,
    b2: Any,
    scale: float | None = None,
) -> Any:
    """softmax_j(scale Q_ij K_ij) V_ij over all atoms j of i's molecule, i included; no feature of a pair is kept.

    Q_ij = q_i + edge_q e_ij, K_ij = k_j + edge_k e_ij, V_ij = v_j + edge_v e_ij: the projections of [h_i; e_ij] and
    [h_j; e_ij] cut into the atom's half and the pair's. e_ij = w2 silu(w1 x + b1) + b2 with
    x = [s, exp(-((s - centres) / widths)^2 / 2), one_hot(bond)] and s the squared distance.

    q, k, v (A, H, D): the atoms' halves, H heads; positions (A, 3); bonds (P,) uint8: for each molecule in turn the
    n x n matrix of bond classes, symmetric, its diagonal included; offsets (B + 1,) int64, at most 1,024 atoms a
    molecule; edge_q, edge_k, edge_v (H, D, E); centres, widths (G,), in squared units of the positions, widths above 0;
    w1 (F, 1 + G + classes), b1 (F,), w2 (E, F), b2 (E,); scale: 1 / sqrt(D) by default. All but bonds and offsets
    float32, or all float64. Gives (A, H, D). torch in gives torch, with gradients of all floating-point arguments; the
    result does not depend on the number of threads. Raises ValueError for sizes that do not fit and unknown classes.
    """
    dtype = "float64" if str(getattr(q, "dtype", "")).endswith("float64") else "float32"
    q = as_array(q, dtype, "q")
    k, v, positions, edge_q, edge_k, edge_v, centres, widths, w1, b1, w2, b2 = (
        as_array(x, dtype, name, like=q)
        for x, name in (
            (k, "k"), (v, "v"), (positions, "positions"), (edge_q, "edge_q"), (edge_k, "edge_k"), (edge_v, "edge_v"),
            (centres, "centres"), (widths, "widths"), (w1, "w1"), (b1, "b1"), (w2, "w2"), (b2, "b2"),
        )
    )  # fmt: skip
    bonds = as_array(bonds, "uint8", "bonds", like=q)
    offsets = as_array(offsets, "int64", "offsets", like=q)
    if q.ndim != 3:
        raise ValueError(f"relational_attention: argument 'q' must have shape (A, H, D), got {tuple(q.shape)}")
    for name, x in (("edge_q", edge_q), ("edge_k", edge_k), ("edge_v", edge_v)):
        if x.ndim != 3 or tuple(x.shape[:2]) != tuple(q.shape[1:]) or x.shape[2] != edge_q.shape[-1]:
            raise ValueError(
                f"relational_attention: argument '{name}' must have shape (H, D, E) with H, D = "
                f"{tuple(q.shape[1:])} and one E, got {tuple(x.shape)}"
            )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if isinstance(q, np.ndarray):
        heads, _, edge = edge_q.shape
        projected = (
            empty(q.shape, dtype), *(empty((*q.shape[:2], edge), dtype) for _ in range(2)),
            empty((heads, edge * (edge + 1) // 2), dtype),
        )  # fmt: skip
        _C.relational_projections(q, k, edge_q, edge_k, float(scale), *projected)
        scaled_q, q_edge, k_edge, form = projected
        out, out_edge, values = empty(q.shape, dtype), empty(q_edge.shape, dtype), empty(q.shape, dtype)
        pairs = (positions, bonds, offsets, centres, widths, w1, b1, w2, b2)
        _C.relational_attention(scaled_q, k, v, q_edge, k_edge, form, *pairs, out, out_edge, empty(q.shape[:2], dtype))
        _C.relational_values(out, out_edge, edge_v, values)
        return values
    from . import torch_ops

    scaled_q, q_edge, k_edge, form = torch_ops.relational_projections(q, k, edge_q, edge_k, float(scale))
    out, out_edge, _ = torch_ops.relational_attention(
        scaled_q, k, v, q_edge, k_edge, form, positions, bonds, offsets, centres, widths, w1, b1, w2, b2
    )
    return torch_ops.relational_values(out, out_edge, edge_v)
