"""XAttention's claim (arXiv 2503.16428): antidiagonal sums find the blocks that matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace

from .. import smollm2
from ..cases import structured_qkv
from ..reference import xattention as reference
from ..xattention import block_density, block_sparse_attention, xattn_estimate

BLOCK, STRIDE, THRESHOLD = 64, 8, 0.9
CLAIM = (
    "at equal density, blocks chosen by antidiagonal sums keep the model's answer where fixed or random blocks lose it"
)


def _sink_and_recent(mask: Any) -> Any:
    """Sink and as many recent blocks for every row as make up the density of `mask` [1, H, Q, K] or a little more."""
    rows, cols = np.indices(mask.shape[2:])
    for width in range(1, mask.shape[3] + 1):
        band = (cols <= rows) & ((cols == 0) | (cols > rows - width))
        if band.sum() * mask.shape[1] >= mask.sum():
            break
    return np.broadcast_to(band, mask.shape).copy()


def _random(mask: Any, rng: np.random.Generator) -> Any:
    """Sink, diagonal and as many random visible blocks in each row as `mask` has."""
    rows, cols = np.indices(mask.shape[2:])
    order = rng.random(mask.shape)
    order[..., (cols == 0) | (cols == rows)] = -1
    order[..., cols > rows] = 2
    rank = order.argsort(-1).argsort(-1)
    return (rank < mask.sum(-1, keepdims=True)) & (cols <= rows)


CHOICES: dict[str, Callable[[Any, np.random.Generator], Any]] = {
    "antidiagonal": lambda mask, _: mask,
    "sink and recent": lambda mask, _: _sink_and_recent(mask),
    "random": _random,
}


def _structured(seeds: list[int]) -> tuple[dict[str, list[float]], str, str]:
    """Relative output error to dense attention, without the model."""
    found: dict[str, list[float]] = {name: [] for name in CHOICES}
    densities = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        q, k, v = structured_qkv(rng, 1, 6, 2, 2048, 2048, 64)
        _, mask = xattn_estimate(q, k, threshold=THRESHOLD, stride=STRIDE, block_size=BLOCK)
        densities.append(block_density(mask, q_len=2048, k_len=2048, block_size=BLOCK))
        dense, _ = reference.block_sparse_attention(q, k, v, np.ones_like(mask), BLOCK, 64**-0.5, True)
        for name, choose in CHOICES.items():
            out = block_sparse_attention(q, k, v, choose(mask, rng), block_size=BLOCK)
            found[name].append(float(np.linalg.norm(out - dense) / np.linalg.norm(dense)))
    protocol = (
        f"relative output error to dense attention on structured q, k, v (6/2 heads, 2048 tokens), {len(seeds)} seeds; "
        f"stride {STRIDE}, block {BLOCK}, threshold {THRESHOLD}; every choice at the density of the first, "
        f"{np.mean(densities):.1%}; SmolLM2 is not installed"
    )
    return found, protocol, "relative output error"


@dataclasses.dataclass(frozen=True)
class Row:
    """One choice of blocks: by antidiagonal sums at `threshold`, or otherwise, as many as the row above chose; all of
    them if neither is given."""

    threshold: float | None = None
    choice: str | None = None


ROWS = {
    "dense": Row(),
    **{f"threshold {tau}": Row(tau) for tau in (0.95, 0.8, 0.6, THRESHOLD)},
    **{name: Row(None, name) for name in ("sink and recent", "random")},
}
MAIN = f"threshold {THRESHOLD}"


def likelihoods(
    tasks: dict[str, tuple[Any, int]], block: int = 128, rows: dict[str, Row] = ROWS
) -> dict[str, dict[str, tuple[Any, float]]]:
    """By task and row, the negative log-likelihoods of a task's tokens in SmolLM2-135M and the mean density.

    tasks: token ids (N,), and the position of the first one scored.
    """
    import rich.progress
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    now: dict[str, Any] = {}
    budget: dict[int, Any] = {}  # by layer, the masks at THRESHOLD, whose density the other choices get

    def forward(module: Any, q: Any, k: Any, v: Any, *_: Any, scaling: float | None = None, **__: Any) -> Any:
        row, layer, n = now["row"], module.layer_idx, q.shape[2]
        if row.threshold is not None:
            _, found = xattn_estimate(q, k, threshold=row.threshold, stride=STRIDE, block_size=block, scale=scaling)
            mask = budget[layer] = found.numpy()
        elif row.choice is not None:
            mask = CHOICES[row.choice](budget[layer], now["rng"])
        else:
            mask = np.tril(np.ones((1, q.shape[1], -(-n // block), -(-n // block)), bool))
        now["densities"].append(block_density(mask, q_len=n, k_len=n, block_size=block))
        out = block_sparse_attention(q, k, v, torch.from_numpy(mask), block_size=block, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("core_claim", forward)
    AttentionMaskInterface.register("core_claim", sdpa_mask)
    _, model = smollm2.load()
    model.set_attn_implementation("core_claim")
    results: dict[str, dict[str, tuple[Any, float]]] = {task: {} for task in tasks}
    with rich.progress.Progress() as progress, torch.no_grad():
        bar = progress.add_task("prompts", total=len(tasks) * len(rows))
        for task, (ids, first) in tasks.items():
            for name, row in rows.items():
                now.update(row=row, densities=[], rng=np.random.default_rng(0))
                logits = model(ids[None], use_cache=False, logits_to_keep=len(ids) - first + 1).logits[0, :-1]
                lost = torch.nn.functional.cross_entropy(logits, ids[first:], reduction="none").numpy()
                results[task][name] = lost, float(np.mean(now["densities"]))
                progress.advance(bar)
    return results


def _model(seed: int, out: Path) -> Claim:
    import torch

    half = 2048
    tokenizer, _ = smollm2.load()
    ids = torch.tensor(tokenizer(smollm2.text())["input_ids"])
    start = int(np.random.default_rng(seed).integers(0, len(ids) - 2 * half)) if seed else 0
    text = ids[start : start + 2 * half]
    found = likelihoods({"text": (text, half), "copy": (text[:half].repeat(2), half + 16)})
    measured: dict[str, tuple[float, float]] = {}
    for task, of in found.items():
        for name, (lost, share) in of.items():
            rise = lost - of["dense"][0]
            measured[f"{task} NLL, {name}, density {share:.3f}"] = (
                float(lost.mean()),
                float(rise.std() / len(rise) ** 0.5),
            )
    copied = {name: (lost.mean(), lost.std() / len(lost) ** 0.5) for name, (lost, _) in found["copy"].items()}
    best, error = copied[MAIN]
    holds = all(best + error < copied[x][0] - copied[x][1] for x in ("sink and recent", "random"))
    protocol = (
        f"SmolLM2-135M, all 30 layers, stride {STRIDE}, block 128; text: {2 * half} tokens, NLL of the last {half}; "
        f"copy: {half} tokens twice, NLL from token {half + 16}; sink-and-recent and random blocks at the density of "
        f"{MAIN} or a little more; spread: standard error of the rise over dense. Holds if the copy's NLL at {MAIN} is "
        "below both by more than the errors"
    )
    return Claim("2503.16428", CLAIM, protocol, measured, holds, _curve(found, out))


def claim(size: str, seed: int, out: Path) -> Claim:
    """Antidiagonal selection against sink-and-recent and random blocks at equal density.

    With SmolLM2 installed: likelihoods of text and of repeated text; else: the output error on structured q, k, v.
    Holds if antidiagonal selection is better than both by more than the sum of the spreads.
    """
    if size not in ("cpu", "gpu"):
        raise ValueError(f"argument 'size' must be 'cpu' or 'gpu', got {size!r}")
    if smollm2.available():
        return _model(seed, out)
    found, protocol, unit = _structured(list(range(seed, seed + 5)))
    measured = {f"{unit}, {name}": (float(np.mean(x)), float(np.std(x))) for name, x in found.items()}
    mean = {name: float(np.mean(x)) for name, x in found.items()}
    spread = {name: float(np.std(x)) for name, x in found.items()}
    best = "antidiagonal"
    holds = all(mean[best] + spread[best] < mean[x] - spread[x] for x in ("sink and recent", "random"))
    return Claim("2503.16428", CLAIM, protocol, measured, holds, _plot(mean, spread, unit, out))


def _curve(found: dict[str, dict[str, tuple[Any, float]]], out: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(11, 4.5), layout="constrained")
    for axis, (task, of) in zip(axes, found.items(), strict=True):
        means = {name: (share, float(lost.mean())) for name, (lost, share) in of.items()}
        curve = sorted(means[x] for x, row in ROWS.items() if row.choice is None)
        axis.plot(*zip(*curve, strict=True), "o-", color="#447", label="antidiagonal sums; dense at 1")
        for name, mark in (("sink and recent", "s"), ("random", "^")):
            axis.plot(*means[name], mark, label=name)
        axis.set(xlabel="share of visible blocks read", ylabel="loss", title=task, xlim=(0, 1.03))
        axis.legend()
    with replace(out / "xattention.png") as path:
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return out / "xattention.png"


def _plot(mean: dict[str, float], spread: dict[str, float], unit: str, out: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.bar(list(mean), list(mean.values()), yerr=list(spread.values()), capsize=6, color="#447")
    axes.set(ylabel=unit, title="Which blocks are read (lower is better)")
    with replace(out / "xattention.png") as path:
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return out / "xattention.png"
