"""The demo of core-diffusion: sets of codes of a photograph, from noise to data with every sum exact."""

from pathlib import Path

import numpy as np
from core_registry.demo import Demo, Picture
from core_registry.timing import fastest, one_torch_thread

from .jobs import draw_walk, oracle, walk
from .reference import set_diffusion as reference
from .set_diffusion import fixed_sum_bridge
from .tokens import image_counts

CODES, TOKENS, STEPS, SEED = 4096, 128, 25, 0


def demo(out: Path) -> Demo:
    """Walks the count vectors of a photograph through the sampler's steps, by ours and by the published method."""
    import matplotlib as mpl
    import torch
    from skimage import data as photographs

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    image = photographs.astronaut()
    data = image_counts(image, CODES, TOKENS, SEED)[::2]
    ends, states = walk(data, TOKENS, STEPS, SEED)
    prior = states[0]
    wrong = int((states.sum(-1) != TOKENS).sum())
    difference = int(np.abs(states[-1] - data).max())
    for t in (0.04, 0.5, 0.96):
        ours = fixed_sum_bridge(prior, data, t, max_count=TOKENS, seed=SEED)
        theirs = reference.fixed_sum_bridge(prior, data, t, 0.25, TOKENS, SEED)
        difference = max(difference, int(np.abs(ours - theirs).max()))
    if wrong or difference:
        raise RuntimeError(f"{wrong} sums are wrong, and counts differ by up to {difference} from data and reference")

    with one_torch_thread():
        generator = torch.Generator().manual_seed(SEED)
        laws = oracle(data[:1], TOKENS, np.random.default_rng(SEED))
        x0, x1 = torch.from_numpy(prior[:1]), torch.from_numpy(data[:1])
        peer_ends, peer_states = reference.repair_walk(
            lambda t, _: torch.from_numpy(laws(t)), x0, STEPS, TOKENS, 0.8, generator
        )
        peers = fastest(lambda: reference.repair_step(x0, x1, 0.5, 0.25, TOKENS, generator), 0.2)
    ours = fastest(lambda: fixed_sum_bridge(prior[:1], data[:1], 0.5, max_count=TOKENS, seed=SEED), 0.1)

    pictures = [
        Picture("Counts from prior to data", out / "counts.png"),
        Picture("Sums at each step", out / "sums.png"),
    ]
    draw_walk(states, image, pictures[0].path)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    times = np.arange(STEPS) / STEPS
    axes.plot(times, peer_ends.sum(-1)[:, 0], "o-", color="tab:red", label="published: drawn data end")
    axes.plot(times, peer_states.sum(-1)[:, 0], "s-", color="tab:orange", label="published: state (repaired)")
    axes.plot(times, ends.sum(-1)[:, 0], "x-", color="tab:blue", label="ours: data end and state")
    axes.set(xlabel="t", ylabel="sum of the counts", title=f"{TOKENS} tokens of {CODES} codes")
    axes.legend()
    figure.savefig(pictures[1].path, dpi=110)
    plt.close(figure)

    sums = np.concatenate([ends, states]).sum(-1)
    peer_sums = torch.cat([peer_ends, peer_states]).sum(-1)
    return Demo(
        what="fixed-sum set diffusion",
        input=f"{len(data)} sets of {TOKENS} patches of scikit-image's astronaut, {CODES} codes, {STEPS} steps",
        ours=ours,
        peer="torch multinomial + repair",
        peers=peers,
        difference=difference,
        tolerance=0,
        pictures=pictures,
        figures={
            "violated sums, ours": f"{int((sums != TOKENS).sum())} of {sums.size}",
            "violated sums, published": f"{int((peer_sums != TOKENS).sum())} of {peer_sums.numel()}",
            "codes that move": f"{int((prior != data).sum(1).mean())} of {CODES}",
        },
    )
