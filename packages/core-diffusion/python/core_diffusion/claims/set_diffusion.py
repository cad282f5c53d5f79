"""TokenSet (arXiv 2503.16425): the sum of the counts is kept on the whole path."""

from pathlib import Path

import numpy as np
from core_registry.claims import Claim
from numpy.typing import NDArray

from ..reference import set_diffusion as reference
from ..set_diffusion import FixedSumScheduler, fixed_sum_bridge, fixed_sum_prior

TOY_X0, TOY_X1, TOY_T, TOY_TOKENS = (4, 0, 0), (0, 1, 3), 0.5, 4
SAMPLES, REPLICAS = 100_000, 5


def exact_law() -> dict[tuple[int, ...], float]:
    """The conditional law of the toy step by enumeration."""
    probs = np.zeros((3, TOY_TOKENS + 1))
    for i, (a, b) in enumerate(zip(TOY_X0, TOY_X1, strict=True)):
        low, weight = reference.bridge_law(a, b, TOY_T, 0.25, TOY_TOKENS)
        probs[i, low : low + len(weight)] = weight
    return reference.enumerate_law(probs, TOY_TOKENS)


def total_variation(draws: NDArray[np.int32], law: dict[tuple[int, ...], float]) -> float:
    """Half the summed difference between the frequencies of `draws` [N, K] and `law`."""
    vectors, times = np.unique(draws, axis=0, return_counts=True)
    seen = {tuple(v): n / len(draws) for v, n in zip(vectors.tolist(), times.tolist(), strict=True)}
    return 0.5 * sum(abs(seen.get(v, 0.0) - law.get(v, 0.0)) for v in seen.keys() | law.keys())


def violations(seed: int, rows: int, codes: int = 64, tokens: int = 16, steps: int = 25) -> tuple[int, int, int, int]:
    """Wrong sums among the states of a whole walk with an untrained network (laws drawn afresh at each step):
    ours, and of those of the published sampler, with both numbers of states: (ours, of, published, of).
    The published sampler runs on the first twentieth of the rows."""
    import torch

    rng = np.random.default_rng(seed)
    scheduler = FixedSumScheduler(tokens, "logits")
    scheduler.set_timesteps(steps)
    state = prior = fixed_sum_prior(rows, codes, tokens, generator=rng)
    wrong = 0
    for t in scheduler.timesteps:
        logits = rng.standard_normal((rows, codes, tokens + 1), np.float32)
        state = scheduler.step(logits, t, state, rng).prev_sample
        wrong += int((state.sum(1) != tokens).sum() + (state.min(1) < 0).sum() + (state.max(1) > tokens).sum())
    generator = torch.Generator().manual_seed(seed)
    few = torch.from_numpy(prior[: rows // 20])
    shape = (*few.shape, tokens + 1)
    _, states = reference.repair_walk(
        lambda t, state: torch.randn(shape, generator=generator).softmax(-1), few, steps, tokens, 0.8, generator
    )
    return wrong, rows * steps, int((states.sum(-1) != tokens).sum()), states[..., 0].numel()


def claim(size: str, seed: int, out: Path) -> Claim:
    """Sums along whole walks with an untrained network, and the law of one step against enumeration."""
    import matplotlib as mpl
    import torch

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    law = exact_law()
    x0, x1 = (np.tile(np.array(x, np.int32), (SAMPLES, 1)) for x in (TOY_X0, TOY_X1))
    floor: list[float] = []
    ours: list[float] = []
    published: list[float] = []
    wrong: list[float] = []
    wrong_published: list[float] = []
    vectors = np.array(list(law), np.int32)
    for replica in range(seed, seed + REPLICAS):
        rng = np.random.default_rng(replica)
        exact = vectors[rng.choice(len(vectors), SAMPLES, p=list(law.values()))]
        drawn = fixed_sum_bridge(x0, x1, TOY_T, max_count=TOY_TOKENS, generator=rng)
        generator = torch.Generator().manual_seed(replica)
        repaired = reference.repair_step(
            torch.from_numpy(x0), torch.from_numpy(x1), TOY_T, 0.25, TOY_TOKENS + 1, generator
        ).numpy()
        for to, draws in ((floor, exact), (ours, drawn), (published, repaired)):
            to.append(total_variation(draws, law))
        bad, states, bad_published, states_published = violations(replica, 8000 if size == "gpu" else 800)
        wrong.append(bad / states)
        wrong_published.append(bad_published / states_published)

    def spread(values: list[float]) -> tuple[float, float]:
        return float(np.mean(values)), float(np.std(values, ddof=1))

    out.mkdir(parents=True, exist_ok=True)
    plot = out / "2503.16425.png"
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    position = np.arange(len(law))
    for shift, (label, draws) in enumerate((("ours", drawn), ("published repair", repaired))):
        axes.bar(position + 0.3 * (shift - 1), [(draws == v).all(1).mean() for v in vectors], 0.3, label=label)
    axes.bar(position + 0.3, list(law.values()), 0.3, label="exact", color="black")
    axes.set_xticks(position, ["".join(map(str, v)) for v in law], rotation=90)
    axes.set(xlabel="counts", ylabel="frequency", title=f"One step from {TOY_X0} to {TOY_X1} at t = {TOY_T}")
    axes.legend()
    figure.savefig(plot, dpi=110)
    plt.close(figure)
    return Claim(
        paper="2503.16425",
        claim="Every state on the path has integer counts >= 0 with the fixed sum.",
        protocol=(
            f"{REPLICAS} seeds. Sums: {states} states a seed, 64 codes, 16 tokens, 25 steps, an untrained network "
            f"({states_published} states for the published repair). Law: {SAMPLES} draws of a step with 3 codes and "
            "4 tokens against enumeration, total variation; `exact draws` is what the finite sample alone gives."
        ),
        measured={
            "violated sums, ours": spread(wrong),
            "violated sums, published repair": spread(wrong_published),
            "total variation, exact draws": spread(floor),
            "total variation, ours": spread(ours),
            "total variation, published repair": spread(published),
        },
        holds=max(wrong) == 0 and np.mean(ours) < 2 * np.mean(floor),
        plot=plot,
    )
