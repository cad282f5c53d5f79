"""TokenSet (arXiv 2503.16425) trained on images: the fixed-sum sampler against unconstrained sampling with rounding."""

from __future__ import annotations

import dataclasses
import time
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
from .seeds import SEEDS, Result, distance, fit, judge, over_seeds, pictures, plot_bars, spread

STEPS = 25
GUIDANCE = 1.5


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
    tokenizer: ImageTokenizer = fit(make("set-tokenizer", images, size, seed), folder / "tokenizer")
    model: CountTransformer = fit(make("tokenset", images, size, seed, tokenizer=tokenizer), folder / "tokenset")
    device = tokenizer.quantizer.codebook.device
    test = unit(images.test[:1000])
    with torch.no_grad():
        again = tokenizer(test.to(device)).sample.clamp(0, 1)
    labels = torch.arange(500 if size == "cpu" else 5000, device=device) % 10
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
        whole, network = sampler_time(model, labels[: 64 if size == "cpu" else 512], g)

    def images_of(parts: list[Tensor]) -> Tensor:
        return torch.cat([tokenizer.decode(counts_to_set(counts)) for counts in parts])

    with torch.no_grad():
        kinds = {"fixed sum": images_of(ours), "fixed sum, guided": images_of(guided), "rounded": images_of(free)}
    for name, drawn in kinds.items():
        save_grid(drawn[:100], folder / f"{name.replace(', ', '-').replace(' ', '-')}.png")
    found: Result = {f"distance, {name}": distance(classifier, images, drawn) for name, drawn in kinds.items()}
    return found | {
        "accuracy of the classifier": accuracy,
        "distance, reconstruction": distance(classifier, images, again),
        "violated sums, fixed sum": states / (STEPS * len(labels)),
        "violated sums, rounded": float(np.mean(wrong)),
        "sampler time / network time": whole / network,
        "milliseconds a step, sampler": 1e3 * whole / STEPS,
    }


def claim(size: str, seed: int, out: Path) -> Claim:
    """Sums and laws as before, and images of a trained model."""
    exact = set_diffusion.claim(size, seed, out)
    images, s = pictures(), SIZES[size]
    found = over_seeds(run, size, seed, out / "2503.16425")
    plot = plot_bars(out / "2503.16425-images.png", f"TokenSet on {images.name}", found, ["distance"])
    ours, rounded = (spread(found[f"distance, {name}"]) for name in ("fixed sum", "rounded"))
    not_worse = ours[0] <= rounded[0] + ours[1] + rounded[1]
    protocol = (
        f" Images: {images.described}, {SEEDS} seeds, {s.tokens} tokens of {s.codes} codes, network {s.depth} x "
        f"{s.hidden}, {STEPS} sampling steps, top-p 0.8, guidance {GUIDANCE} where said; Fréchet distance in the "
        "features of a classifier of the train split. Rounded: no condition on any sum, largest remainders at the end. "
        "Holds if no sum is violated, the law is exact, and the distance is not worse than rounded by more than "
        "both spreads."
    )
    return dataclasses.replace(
        exact,
        protocol=exact.protocol + protocol,
        measured={**exact.measured, **{name: spread(values) for name, values in found.items()}},
        holds=exact.holds and max(found["violated sums, fixed sum"]) == 0 and not_worse,
        plot=plot,
    )
