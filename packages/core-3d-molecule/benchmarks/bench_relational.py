"""Relational attention of QM9-sized molecules, one thread: ours against every pair's query, key and value in memory.

The peer is the layer as message passing code writes it: lists of edges, features gathered to each edge, the
projections of [h; e], a softmax over the edges of each atom. Both give the same output, and the same gradients.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from core_3d_molecule import relational_attention
from core_registry.timing import one_torch_thread

HEADS, CHANNELS, EDGE, HIDDEN, GAUSSIANS, CLASSES = 8, 8, 16, 16, 15, 6


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The least processor time."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return float(best)


def problem(molecules: int) -> dict[str, torch.Tensor]:
    """Molecules with QM9's sizes (18 +- 3 atoms)."""
    rng = np.random.default_rng(0)
    counts = np.clip(rng.normal(18, 3, molecules).round().astype(int), 3, 29)
    atoms = int(counts.sum())

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    edges = [rng.integers(0, CLASSES, (n, n), np.uint8) for n in counts]
    a = {name: normal(atoms, HEADS, CHANNELS) for name in ("q", "k", "v")}
    a |= {f"edge_{name}": normal(HEADS, CHANNELS, EDGE) * np.float32(0.2) for name in ("q", "k", "v")}
    a |= {"positions": normal(atoms, 3) * np.float32(1.5), "b1": normal(HIDDEN), "b2": normal(EDGE)}
    a["centres"], a["widths"] = rng.uniform(0, 3, (2, GAUSSIANS)).astype(np.float32) + np.float32([[0], [0.3]])
    a["w1"] = normal(HIDDEN, 1 + GAUSSIANS + CLASSES) * np.float32(0.2)
    a["w2"] = normal(EDGE, HIDDEN) * np.float32(0.3)
    a["bonds"] = np.concatenate([(np.triu(e) + np.triu(e, 1).T).ravel() for e in edges])
    a["offsets"] = np.concatenate([[0], np.cumsum(counts)])
    return {name: torch.from_numpy(x) for name, x in a.items()}


def edge_list(offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The atoms i and j of each pair, in the order of the bonds."""
    pairs = [torch.cartesian_prod(torch.arange(i, j), torch.arange(i, j)) for i, j in itertools.pairwise(offsets)]
    return tuple(torch.cat(pairs).T.contiguous())  # type: ignore[return-value]


def peer(a: dict[str, torch.Tensor], i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """The layer over lists of edges."""
    squared = ((a["positions"][i] - a["positions"][j]) ** 2).sum(-1, keepdim=True)
    gaussians = torch.exp(-(((squared - a["centres"]) / a["widths"]) ** 2) / 2)
    one_hot = torch.nn.functional.one_hot(a["bonds"].long(), CLASSES)
    x = torch.cat([squared, gaussians, one_hot], -1)
    e = torch.nn.functional.silu(x @ a["w1"].T + a["b1"]) @ a["w2"].T + a["b2"]
    q, k, v = (
        a[name][at] + (e @ a[f"edge_{name}"].reshape(-1, EDGE).T).view(-1, HEADS, CHANNELS)
        for name, at in (("q", i), ("k", j), ("v", j))
    )
    logits = (q * k).sum(-1) * CHANNELS**-0.5
    index = i[:, None].expand_as(logits)
    most = logits.detach().new_full((len(a["q"]), HEADS), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    weight = torch.exp(logits - most[i])
    total = torch.zeros_like(most).index_add(0, i, weight)
    return torch.zeros_like(a["v"]).index_add(0, i, (weight / total[i])[..., None] * v)


def main(molecules: int) -> None:
    """Prints edges per second and core of both, forward and with the backward pass; raises if they differ."""
    a = problem(molecules)
    i, j = edge_list(a["offsets"])
    leaves = [x.requires_grad_() for x in a.values() if x.is_floating_point()]
    with one_torch_thread():
        ours, theirs = relational_attention(**a), peer(a, i, j)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        direction = torch.randn_like(ours)
        got, expected = (torch.autograd.grad(y, leaves, direction) for y in (ours, theirs))
        worst = max(float((x - y).norm() / y.norm()) for x, y in zip(got, expected, strict=True))
        if worst > 1e-4:
            raise AssertionError(f"a gradient differs by {worst} of its norm")
        difference = float((ours - theirs).detach().abs().max())
        print(f"{molecules} molecules, {len(i)} edges; output equal to {difference:.1e}, gradients to {worst:.1e}")
        both = {"ours": lambda: relational_attention(**a), "edge lists": lambda: peer(a, i, j)}
        with torch.no_grad():
            forward = {name: len(i) / seconds(call, 7) for name, call in both.items()}
        whole = {
            name: len(i) / seconds(lambda call=call: torch.autograd.grad(call(), leaves, direction), 5)
            for name, call in both.items()
        }
    for what, rate in (("forward", forward), ("forward and backward", whole)):
        ours, theirs = rate["ours"], rate["edge lists"]
        print(f"{what}: {ours / 1e6:.2f} M edges/s, edge lists {theirs / 1e6:.2f} M edges/s, ratio {ours / theirs:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=512)
    main(parser.parse_args().molecules)
