"""XAttention's claim (arXiv 2503.16428): antidiagonal sums find the blocks that matter."""

from __future__ import annotations

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


def _copy_task(seeds: list[int]) -> tuple[dict[str, list[float]], str, str]:
    """Negative log-likelihood of a text's repetition, in SmolLM2-135M."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    half = 1024
    chosen: dict[str, Any] = {}
    budget: dict[int, Any] = {}  # by layer, the masks of the antidiagonal run, whose density the others get
    densities: dict[str, list[float]] = {name: [] for name in CHOICES}

    def forward(module: Any, q: Any, k: Any, v: Any, *_: Any, scaling: float | None = None, **__: Any) -> Any:
        if chosen["name"] == "dense":
            mask = np.ones((1, q.shape[1], 2 * half // BLOCK, 2 * half // BLOCK), bool)
        else:
            layer = module.layer_idx
            if chosen["name"] == "antidiagonal":
                _, found = xattn_estimate(q, k, threshold=THRESHOLD, stride=STRIDE, block_size=BLOCK, scale=scaling)
                budget[layer] = found.numpy()
            mask = CHOICES[chosen["name"]](budget[layer], chosen["rng"])
            densities[chosen["name"]].append(block_density(mask, q_len=2 * half, k_len=2 * half, block_size=BLOCK))
        out = block_sparse_attention(q, k, v, mask=torch.from_numpy(mask), block_size=BLOCK, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("core_claim", forward)
    AttentionMaskInterface.register("core_claim", sdpa_mask)
    tokenizer, model = smollm2.load()
    model.set_attn_implementation("core_claim")
    ids = torch.tensor(tokenizer(smollm2.text())["input_ids"])
    results: dict[str, list[float]] = {name: [] for name in ("dense", *CHOICES)}
    for seed in seeds:
        start = int(np.random.default_rng(seed).integers(0, len(ids) - half))
        prompt = ids[start : start + half].repeat(2)[None]
        for name in results:
            chosen.update(name=name, rng=np.random.default_rng(seed))
            with torch.no_grad():
                logits = model(prompt, use_cache=False, logits_to_keep=half - 15).logits[0, :-1]
            results[name].append(float(torch.nn.functional.cross_entropy(logits, prompt[0, half + 16 :])))
    share = ", ".join(f"{name} {np.mean(d):.1%}" for name, d in densities.items())
    protocol = (
        f"SmolLM2-135M, {half} tokens of the GPL twice, mean NLL from token {half + 16}, {len(seeds)} places; "
        f"all 30 layers, stride {STRIDE}, block {BLOCK}, threshold {THRESHOLD}; density: {share}"
    )
    return results, protocol, "NLL of the repetition"


def claim(size: str, seed: int, out: Path) -> Claim:
    """Antidiagonal selection against sink-and-recent and random blocks at equal density.

    With SmolLM2 installed: the likelihood of repeated text; else: the output error on structured q, k, v. Holds if
    antidiagonal selection is better than both by more than the sum of the spreads.
    """
    if size not in ("cpu", "gpu"):
        raise ValueError(f"argument 'size' must be 'cpu' or 'gpu', got {size!r}")
    if smollm2.available():
        found, protocol, unit = _copy_task([seed, seed + 1])
    else:
        found, protocol, unit = _structured(list(range(seed, seed + 5)))
    measured = {f"{unit}, {name}": (float(np.mean(x)), float(np.std(x))) for name, x in found.items()}
    mean = {name: float(np.mean(x)) for name, x in found.items()}
    spread = {name: float(np.std(x)) for name, x in found.items()}
    best = "antidiagonal"
    holds = all(mean[best] + spread[best] < mean[x] - spread[x] for x in ("sink and recent", "random"))
    return Claim("2503.16428", CLAIM, protocol, measured, holds, _plot(mean, spread, unit, out))


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
