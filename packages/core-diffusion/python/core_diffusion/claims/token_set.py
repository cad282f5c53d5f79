"""TokenSet (arXiv 2503.16425) trained on images: the fixed-sum sampler against unconstrained sampling with rounding."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from core_registry.claims import Claim
from torch import Tensor

from ..images import save_grid
from ..recipes import SIZES, make, unit
from ..set_diffusion import FixedSumScheduler, fixed_sum_prior
from ..tokenizer import ImageTokenizer, counts_to_set
from ..tokenset import CountTransformer, sample_counts
from . import set_diffusion
from .seeds import DRAWN, SEEDS, Bar, Result, distance, fit, judge, over_seeds, pictures, plot_bars, record, spread

STEPS = 25
GUIDANCE = 1.5
TRAINED = {"gpu": 4000}
"""Steps of both trainings, where they are not those of the size."""


def round_to_sum(counts: Tensor, total: int) -> Tensor:
    """Counts [B, K] scaled to the sum and rounded by largest remainders."""
    scaled = counts.double() * total / counts.sum(1, keepdim=True).clamp(min=1)
    low = scaled.floor()
    missing = total - low.sum(1)
    order = (scaled - low).argsort(1, descending=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(counts.shape[1], device=counts.device).expand_as(order)
    )
    return (low + (ranks < missing[:, None])).to(torch.int32)


@torch.no_grad()
def unconstrained(
    model: CountTransformer, labels: Tensor, generator: torch.Generator, top_p: float = 0.8
) -> tuple[Tensor, float]:
    """The sampler without any condition on sums: every count is drawn on its own, from the laws of the data (top-p) and
    of the path; what comes out is rounded to the sum. Returns the counts and the share of states with another sum."""
    codes, tokens = model.config.num_codes, model.config.num_tokens
    like = torch.empty(0, dtype=torch.int32, device=labels.device)
    state = fixed_sum_prior(len(labels), codes, tokens, generator=generator, like=like)
    values, wrong = torch.arange(tokens + 1, device=labels.device), 0.0
    for i in range(STEPS):
        laws = model(state, i / STEPS, labels).sample.float().softmax(-1)
        ranked, order = laws.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
        laws = torch.zeros_like(laws).scatter(-1, order, ranked)
        x1 = torch.multinomial(laws.flatten(0, 1), 1, generator=generator).view(state.shape)
        damped = 1 / (1 + np.exp(100 * ((i + 1) / STEPS - 0.8)))
        mean = state + (x1 - state) / (STEPS - i)
        deviation = (0.25 * damped * STEPS / (STEPS - i) * (x1 - state).abs()).clamp(min=1e-3)
        exponent = -0.5 * ((values - mean[..., None]) / deviation[..., None]).square()
        path = (exponent - exponent.amax(-1, keepdim=True)).exp()
        state = torch.multinomial(path.flatten(0, 1), 1, generator=generator).view(state.shape).to(torch.int32)
        wrong += float((state.sum(1) != tokens).float().mean()) / STEPS
    return round_to_sum(state, tokens), wrong


def sampler_time(model: CountTransformer, labels: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Seconds of the whole sampler, and of the network's calls in it alone."""

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    counts = sample_counts(model, labels, STEPS, generator=generator)
    start = clock()
    sample_counts(model, labels, STEPS, generator=generator)
    middle = clock()
    with torch.no_grad():
        for i in range(STEPS):
            model(counts, i / STEPS, labels)
    return middle - start, clock() - middle


def run(size: str, seed: int, folder: Path) -> Result:
    """Tokeniser, generator, and both samplers."""
    images = pictures()
    classifier, accuracy = judge(images, size, seed)
    steps = TRAINED.get(size)
    tokenizer: ImageTokenizer = fit(make("set-tokenizer", images, size, seed, steps), folder / "tokenizer")
    model: CountTransformer = fit(make("tokenset", images, size, seed, steps, tokenizer), folder / "tokenset")
    device = tokenizer.quantizer.codebook.device
    test = unit(images.test[:1000])
    with torch.no_grad():
        again = tokenizer(test.to(device)).sample.clamp(0, 1)
    labels = torch.arange(DRAWN[size], device=device) % 10
    g = torch.Generator(device).manual_seed(seed)
    states = 0

    class Watched(FixedSumScheduler):
        def step(self, *args, **kwargs):
            nonlocal states
            out = super().step(*args, **kwargs)
            states += int((out.prev_sample.sum(1) != model.config.num_tokens).sum())
            return out

    ours, guided, free, wrong = [], [], [], []
    with torch.autocast(device.type, torch.bfloat16, enabled=size == "gpu"):  # as in training
        for part in labels.split(1000):
            watched = Watched(model.config.num_tokens, "probabilities")
            ours.append(sample_counts(model, part, STEPS, generator=g, scheduler=watched))
            guided.append(sample_counts(model, part, STEPS, GUIDANCE, generator=g))
            counts, share = unconstrained(model, part, g)
            free.append(counts)
            wrong.append(share)
        whole, network = sampler_time(model, labels[: 512 if size == "gpu" else 64], g)

    def images_of(parts: list[Tensor]) -> Tensor:
        return torch.cat([tokenizer.decode(counts_to_set(counts)) for counts in parts])

    with torch.no_grad():
        kinds = {"fixed sum": images_of(ours), "fixed sum, guided": images_of(guided), "rounded": images_of(free)}
    for name, drawn in kinds.items():
        save_grid(drawn[:100], folder / f"{name.replace(', ', '-').replace(' ', '-')}.png")
    rows = [test[:20].to(device), again[:20], *(drawn[:20] for drawn in kinds.values())]
    save_grid(torch.cat(rows), folder / "all.png", across=20)
    found: Result = {f"distance, {name}": distance(classifier, images, drawn) for name, drawn in kinds.items()}
    return found | {
        "accuracy of the classifier": accuracy,
        "distance, reconstruction": distance(classifier, images, again),
        "violated sums, fixed sum": states / (STEPS * len(labels)),
        "violated sums, rounded": float(np.mean(wrong)),
        "sampler time / network time": whole / network,
        "milliseconds a step, sampler": 1e3 * whole / STEPS,
    }


def bars(measured: Mapping[str, tuple[float, float]]) -> list[Bar]:
    """What the paper's idea must show."""
    ours, rounded = (measured[f"distance, {name}"] for name in ("fixed sum", "rounded"))
    law, exact = (measured[f"total variation, {name}"][0] for name in ("ours", "exact draws"))
    return [
        Bar("violated sums, untrained network", sum(measured["violated sums, ours"]), 0, most=True),
        Bar("violated sums, trained network", sum(measured["violated sums, fixed sum"]), 0, most=True),
        Bar("total variation of a step, over that of exact draws", law / exact, 2, most=True),
        Bar("distance, fixed sum less rounded", ours[0] - rounded[0], ours[1] + rounded[1], most=True),
    ]


def claim(size: str, seed: int, out: Path) -> Claim:
    """Images of a trained model, and sums and laws as before."""
    images, s = pictures(), SIZES[size]
    found = over_seeds(run, size, seed, out / "2503.16425")
    plot = plot_bars(out / "2503.16425-images.png", f"TokenSet on {images.name}", found, ["distance"])
    shutil.copyfile(out / "2503.16425" / size / f"seed-{seed}" / "all.png", out / "2503.16425-samples.png")
    exact = set_diffusion.claim(size, seed, out)
    measured = {**exact.measured, **{name: spread(values) for name, values in found.items()}}
    shown = bars(measured)
    record(out / "2503.16425.json", measured, shown)
    protocol = (
        f" Images: {images.described}, {SEEDS} seeds, {s.tokens} tokens of {s.codes} codes, network {s.depth} x "
        f"{s.hidden}, {TRAINED.get(size, s.steps)} steps of {s.batch}, {STEPS} sampling steps, top-p 0.8, guidance "
        f"{GUIDANCE} where said; Fréchet distance of {DRAWN[size]} images in the features of a classifier of the train "
        "split. Rounded: no condition on any sum, largest remainders at the end. Holds if no sum is violated, the law "
        "is exact, and the distance is not worse than rounded by more than both spreads."
    )
    return dataclasses.replace(
        exact, protocol=exact.protocol + protocol, measured=measured, holds=all(bar.met for bar in shown), plot=plot
    )
