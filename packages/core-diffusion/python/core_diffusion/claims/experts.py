"""Expert Race (arXiv 2503.16057) and DiffMoE (arXiv 2503.14487) in a small DiT: balance, capacity and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from core_registry.claims import Claim
from torch import Tensor
from torch.nn import functional

from ..dit import DiT
from ..images import ImageSet
from ..recipes import SIZES, make, unit
from .seeds import SEEDS, Result, fit, over_seeds, pictures, plot_bars, spread

EXPERTS = {"tiny": 4, "cpu": 8, "gpu": 16}
TOP_K = 2
SIMILARITY = 1.0
"""Weight of the similarity loss; at 0.1 and 200 steps one expert still took twice its share."""
STEPS = {"tiny": 2, "cpu": 200, "gpu": 500}


def moe(router: str, size: str) -> dict[str, Any]:
    """Options of the layer."""
    return {"num_experts": EXPERTS[size], "router": router, "top_k": TOP_K}


@torch.no_grad()
def examine(model: DiT, images: ImageSet, size: str) -> tuple[float, Tensor]:
    """The flow-matching loss on held-out images with fixed noise, and how many tokens each expert of each layer gets a
    token, [layers, E]; in eval mode, so by thresholds."""
    device = next(model.parameters()).device
    count = 4096 if size == "gpu" else 512
    x = unit(images.test[:count]) * 2 - 1
    labels = torch.as_tensor(images.test_labels[:count])
    generator = torch.Generator().manual_seed(0)
    s, noise = torch.rand(len(x), generator=generator), torch.randn(x.shape, generator=generator)
    total, loads, parts = 0.0, torch.zeros(0), 0
    for part in torch.arange(len(x)).split(256):
        a, e, t = (v[part].to(device) for v in (x, noise, s))
        out = model(torch.lerp(a, e, t[:, None, None, None]), 1000 * t, labels[part].to(device))
        total += float(functional.mse_loss(out.sample, e - a)) * len(part) / len(x)
        if out.moe:
            load = torch.stack([m.mask.float().mean((0, 1)) for m in out.moe]).cpu()
            loads, parts = (load if parts == 0 else loads + load), parts + 1
    return total, loads / max(parts, 1)


def imbalance(loads: Tensor) -> float:
    """MaxVio (arXiv 2408.15664), mean over layers: how far the largest load exceeds the mean one, relatively."""
    return float((loads.max(1).values / loads.mean(1).clamp(min=1e-9) - 1).mean())


def run_race(size: str, seed: int, folder: Path) -> Result:
    """Race with and without similarity loss, and a dense model as wide as one expert."""
    images = pictures()
    found: Result = {}
    for name, weight in (("race", 0.0), ("race, similarity loss", SIMILARITY)):
        recipe = make("dit", images, size, seed, STEPS[size], moe=moe("race", size), router_weight=weight)
        loss, loads = examine(fit(recipe, folder / name.replace(", ", "-")), images, size)
        found |= {
            f"MaxVio, {name}": imbalance(loads),
            f"loss, {name}": loss,
            f"experts a token, {name}": float(loads.sum(1).mean()),
        }
    recipe = make("dit", images, size, seed, STEPS[size])
    found["loss, dense"] = examine(fit(recipe, folder / "dense"), images, size)[0]
    return found


def race(size: str, seed: int, out: Path) -> Claim:
    """The similarity loss keeps experts in balance (arXiv 2503.16057, section 4.3)."""
    images, s = pictures(), SIZES[size]
    found = over_seeds(run_race, size, seed, out / "2503.16057")
    with_loss, without = found["MaxVio, race, similarity loss"], found["MaxVio, race"]
    plot = plot_bars(out / "2503.16057.png", f"Expert Race on {images.name}", found, ["MaxVio", "loss"])
    return Claim(
        paper="2503.16057",
        claim="The router similarity loss keeps the experts of Expert Race in balance (paper: MaxVio 6.38 -> 0.85).",
        protocol=(
            f"{images.described}, {SEEDS} seeds, {STEPS[size]} steps of {s.batch}, DiT of {s.depth} x {s.hidden}, "
            f"every second block with {EXPERTS[size]} experts, {TOP_K} a token; weight {SIMILARITY}. MaxVio (mean "
            "over layers) and the flow-matching loss on held-out images in inference mode, by thresholds. Holds if "
            "MaxVio with the loss is at most 1 and at most half of that without, on the mean of the seeds."
        ),
        measured={name: spread(values) for name, values in found.items()},
        holds=spread(with_loss)[0] <= 1 and spread(with_loss)[0] <= 0.5 * spread(without)[0],
        plot=plot,
    )


def run_diffmoe(size: str, seed: int, folder: Path) -> Result:
    """DiffMoE, with its running thresholds and with 0.5 in their place; expert choice and token choice beside."""
    images = pictures()
    found: Result = {}
    for router in ("diffmoe", "expert", "token"):
        recipe = make(
            "dit",
            images,
            size,
            seed,
            STEPS[size],
            moe=moe(router, size),
            router_weight=1.0 if router == "diffmoe" else 1e-2,
        )
        model = fit(recipe, folder / router)
        loss, loads = examine(model, images, size)
        found[f"loss, {router}"] = loss
        if router == "diffmoe":
            found["capacity, running thresholds"] = float(loads.sum(1).mean()) / TOP_K
            for block in model.blocks:
                if hasattr(block.mlp, "threshold"):
                    block.mlp.threshold.fill_(0.5)
            loss, loads = examine(model, images, size)
            found |= {"capacity, threshold 0.5": float(loads.sum(1).mean()) / TOP_K, "loss, diffmoe at 0.5": loss}
    return found


def diffmoe(size: str, seed: int, out: Path) -> Claim:
    """The running thresholds keep the capacity of training in inference (arXiv 2503.14487, section 3.3)."""
    images, s = pictures(), SIZES[size]
    found = over_seeds(run_diffmoe, size, seed, out / "2503.14487")
    plot = plot_bars(out / "2503.14487.png", f"DiffMoE on {images.name}", found, ["capacity", "loss"])
    return Claim(
        paper="2503.14487",
        claim="By thresholds from training, inference uses the capacity of training, where tokens need it.",
        protocol=(
            f"{images.described}, {SEEDS} seeds, {STEPS[size]} steps of {s.batch}, DiT of {s.depth} x {s.hidden}, "
            f"every second block with {EXPERTS[size]} experts, {TOP_K} a token. Capacity: experts a held-out token in "
            "inference, over those in training. Holds if it is within 0.9 to 1.1 for every seed."
        ),
        measured={name: spread(values) for name, values in found.items()},
        holds=all(0.9 <= c <= 1.1 for c in found["capacity, running thresholds"]),
        plot=plot,
    )
