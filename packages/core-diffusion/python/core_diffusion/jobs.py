"""Jobs of core-diffusion: `core run diffusion.count-walk`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from core_registry.files import replace
from numpy.typing import NDArray

from .set_diffusion import FixedSumScheduler, fixed_sum_prior
from .tokens import image_counts


def oracle(data: NDArray[np.int32], tokens: int, rng: np.random.Generator) -> Callable[[float], NDArray[np.float32]]:
    """A stand-in for a trained network: laws [B, K, tokens+1] around the data counts [B, K] with a random
    error of each law, that grow as sure as t approaches 1."""
    far = np.abs(np.arange(tokens + 1, dtype=np.float32) - data[..., None])
    doubt = rng.gumbel(size=data.shape).astype(np.float32)[..., None]

    def laws(t: float) -> NDArray[np.float32]:
        law = np.exp(-far * np.maximum(6 - doubt + 12 * np.float32(t), 0.5))
        return law / law.sum(-1, keepdims=True, dtype=np.float32)

    return laws


def walk(
    data: NDArray[np.int32], tokens: int, steps: int, seed: int, progress: Callable[[Any], Any] = iter
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Data ends [steps, B, K] and states [steps+1, B, K] from a random prior to `data` [B, K] with sums `tokens`."""
    rng = np.random.default_rng(seed)
    network = oracle(data, tokens, rng)
    scheduler = FixedSumScheduler(tokens, "probabilities")
    scheduler.set_timesteps(steps)
    states, ends = [fixed_sum_prior(*data.shape, tokens, generator=rng)], []
    for t in progress(scheduler.timesteps):
        state, end = scheduler.step(network(float(t)), t, states[-1], rng, return_dict=False)
        states.append(state)
        ends.append(end)
    return np.stack(ends), np.stack(states)


def draw_walk(states: NDArray[np.int32], image: NDArray[np.uint8], path: Path) -> None:
    """Writes the picture of a walk [steps+1, B, K]: the photograph, and the counts of its first set over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import PowerNorm

    first = states[:, 0]
    used = np.flatnonzero(first.any(0))
    used = used[np.lexsort((first[0, used], -first[-1, used]))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=[1, 2.2], layout="constrained")
    left.imshow(image)
    left.set_axis_off()
    left.set_title("the photograph")
    shown = right.imshow(first[:, used], aspect="auto", cmap="magma", norm=PowerNorm(0.5), interpolation="nearest")
    right.set_xlabel(f"codes in use, most frequent of the data first ({len(used)} of {first.shape[1]})")
    right.set_ylabel("step: prior 0, data last")
    right.set_title(f"counts of its first set of {first[0].sum()} tokens; every line has that sum")
    figure.colorbar(shown, ax=right, label="count")
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:] or "png")
    plt.close(figure)


def count_walk(
    image: Annotated[Path, typer.Argument(help="Photograph: any file that Pillow reads")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write")],
    codes: Annotated[int, typer.Option(help="Size of the codebook", min=1)] = 4096,
    tokens: Annotated[int, typer.Option(help="Tokens in a set", min=1)] = 128,
    steps: Annotated[int, typer.Option(help="Steps from the prior to the data", min=1)] = 25,
    seed: Annotated[int, typer.Option(help="Seed of codebook and draws")] = 0,
) -> None:
    """Walk the code counts of a photograph from the random prior to the data, every sum exact (2503.16425).

    The photograph's 16x16 patches are tokenised with a codebook of its own and cut into sets; their count
    vectors are the data. Writes a picture of the counts along the way.
    """
    from PIL import Image
    from rich.progress import track

    pixels = np.asarray(Image.open(image).convert("RGB"))
    data = image_counts(pixels, codes, tokens, seed)
    _, states = walk(data, tokens, steps, seed, lambda times: track(times, "walking"))
    if (states.sum(-1) != tokens).any() or (states[-1] != data).any():
        raise RuntimeError("a state missed its sum or the walk missed the data; please report it")
    draw_walk(states, pixels, output)
