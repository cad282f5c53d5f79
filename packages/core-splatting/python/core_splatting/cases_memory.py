"""The rows of M3's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference import memory as reference

f32 = np.float32


def attention(rng: np.random.Generator, P: int, L: int, T: int, D: int) -> dict[str, Any]:
    """Scores of deviation 3, as those of cosines over a temperature of 0.05 are."""
    return {
        "queries": (3 * rng.normal(size=(P, L)) / max(L, 1) ** 0.5).astype(f32),
        "keys": rng.normal(size=(T, L)).astype(f32), "values": rng.normal(size=(T, D)).astype(f32),
        "out": np.empty((P, D), f32), "log_sums": np.empty(P, f32),
    }  # fmt: skip


def attention_backward(rng: np.random.Generator, **size: int) -> dict[str, Any]:
    """The same with its result and random derivatives."""
    a = attention(rng, **size)
    given = a | {k: v.astype(f32) for k, v in reference.memory_attention(a).items()}
    return given | {
        "v_out": rng.normal(size=a["out"].shape).astype(f32), "v_queries": np.empty_like(a["queries"]),
        "v_keys": np.empty_like(a["keys"]), "v_values": np.empty_like(a["values"]),
    }  # fmt: skip


def clustered(rng: np.random.Generator, N: int, D: int, clusters: int = 40) -> dict[str, Any]:
    """Rows around `clusters` directions, some tight and some loose, as the pixels of a feature map are."""
    centres = rng.normal(size=(clusters, D))
    which = rng.integers(clusters, size=N)
    spread = np.linspace(0.1, 0.6, clusters)[which, None]
    rows = (centres[which] + spread * rng.normal(size=(N, D))) * rng.uniform(0.5, 2, (N, 1))
    return {"features": rows.astype(f32), "threshold": 0.9, "selected": np.empty(N, bool)}


def _peer(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    import torch

    q, k, v = (torch.from_numpy(args[n]) for n in ("queries", "keys", "values"))

    def run() -> Mapping[str, Any]:
        scores = q @ k.T
        return {"out": (scores.softmax(1) @ v).numpy(), "log_sums": scores.logsumexp(1).numpy()}

    return run


def greedy_torch(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """Algorithm 1 in torch: cosines of 1,000 rows at a time with all rows, then row by row, on the features' device."""
    import torch

    features = torch.as_tensor(args["features"])

    def run() -> Mapping[str, Any]:
        rows = torch.nn.functional.normalize(features, dim=1)
        taken, selected = (torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for _ in range(2))
        for first in range(0, len(rows), 1000):
            near = rows[first : first + 1000] @ rows.T >= args["threshold"]
            for i, mask in enumerate(near, first):
                if not taken[i] and not (taken & mask).any():
                    selected[i] = True
                    taken |= mask
        return {"selected": selected.cpu().numpy()}

    return run


def _torch_call(args: dict[str, Any]) -> Any:
    from .memory_ops import memory_attention

    return memory_attention(args["queries"], args["keys"], args["values"])


def _work(args: dict[str, Any]) -> tuple[float, float]:
    (p, length), (t, d) = args["queries"].shape, args["values"].shape
    return float(sum(x.nbytes for x in args.values())), 2.0 * p * t * (length + d)


def _backward_work(args: dict[str, Any]) -> tuple[float, float]:
    (p, length), (t, d) = args["queries"].shape, args["values"].shape
    return float(sum(x.nbytes for x in args.values())), 2.0 * p * t * (3 * length + 2 * d)


_sizes = {"tiny": {"P": 70, "L": 5, "T": 37, "D": 33}, "bench": {"P": 4096, "L": 32, "T": 2000, "D": 768}}
_vary = {"P": (0, 150), "L": (0, 40), "T": (0, 70), "D": (0, 40)}

cases = [
    Case(
        op="core_splatting.memory_attention",
        sizes=_sizes,
        make=attention,
        reference=reference.memory_attention,
        tolerance={"out": (1e-5, 1e-5), "log_sums": (1e-5, 1e-5)},
        peer=("torch, softmax of a matrix", _peer),
        work=_work,
        vary=_vary,
        torch_call=_torch_call,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.memory_attention_backward",
        sizes=_sizes,
        make=attention_backward,
        reference=reference.memory_attention_backward,
        tolerance={"v_queries": (1e-4, 1e-4), "v_keys": (1e-4, 1e-4), "v_values": (1e-4, 1e-4)},
        work=_backward_work,
        vary=_vary,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.principal_components",
        sizes={"tiny": {"N": 300, "D": 20}, "bench": {"N": 20_000, "D": 256}},
        make=clustered,
        reference=reference.principal_components,
        tolerance={"selected": (0, 0)},
        peer=("torch, 1,000 rows at a time", greedy_torch),
        vary={"N": (0, 400), "D": (0, 30), "clusters": (1, 20)},
        devices=("cpu", "cuda"),
    ),
]
