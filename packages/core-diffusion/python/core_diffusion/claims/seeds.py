"""What the claims with trained models share: runs over seeds, kept to go on after a stop, and their plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from core_registry.files import replace
from core_registry.timing import write_results
from torch import nn

from ..evaluation import Classifier, frechet_distance, train_classifier
from ..images import ImageSet, image_set
from ..recipes import Recipe, draw_images, unit
from ..tokenizer import ImageTokenizer

Result = dict[str, float]
SEEDS = 3
CLASSIFIER_STEPS = {"tiny": 20, "cpu": 600, "gpu": 2000}
DRAWN = {"tiny": 50, "cpu": 500, "gpu": 5000}
"""Images of a distance."""


class Bar(NamedTuple):
    """What a claim must show: a value that is at least, or at most, a limit; None: it was not measured."""

    what: str
    value: float | None
    bar: float
    most: bool = False

    @property
    def met(self) -> bool:
        """Whether it shows."""
        return self.value is not None and (self.value <= self.bar if self.most else self.value >= self.bar)


def record(path: Path, measured: Mapping[str, tuple[float, float]], bars: Sequence[Bar] = (), **more: Any) -> None:
    """What was measured so far, and which bars it meets, as the JSON of which the READMEs' tables are made."""
    if bars:
        more["bars"] = [{**bar._asdict(), "met": bar.met} for bar in bars]
    rows = [{"what": name, "value": mean, "spread": deviation} for name, (mean, deviation) in measured.items()]
    write_results(path, ["what", "value", "spread"], rows, cpu=not torch.cuda.is_available(), **more)


def over_seeds(run: Callable[[str, int, Path], Result], size: str, seed: int, out: Path) -> dict[str, list[float]]:
    """The results of `run(size, seed, folder)` for three seeds, name by name.

    A seed's result is kept in its folder, and not run again. After each seed `out`.json tells of those that are done.
    """
    found: dict[str, list[float]] = {}
    for i in range(SEEDS):
        result = _kept(run, size, seed + i, out / size / f"seed-{seed + i}")
        found = {name: [*found.get(name, []), value] for name, value in result.items()}
        measured = {name: spread(values) for name, values in found.items()}
        record(out.parent / f"{out.name}.json", measured, seeds=i + 1, of=SEEDS)
    return found


def _kept(run: Callable[[str, int, Path], Result], size: str, seed: int, folder: Path) -> Result:
    file = folder / "result.json"
    if not file.exists():
        result = run(size, seed, folder)
        with replace(file) as temporary:
            temporary.write_text(json.dumps(result))
    found: Result = json.loads(file.read_text())
    return found


def fit(recipe: Recipe, folder: Path) -> nn.Module:
    """Trains, or goes on, in the folder; returns the averaged model."""
    trainer = recipe.trainer(folder, progress=False)
    trainer.fit()
    return trainer.ema


def judge(images: ImageSet, size: str, seed: int) -> tuple[Classifier, float]:
    """The classifier whose features measure distances, of the train split alone, and its accuracy on the test split."""
    labels = torch.as_tensor(images.train_labels)
    found = train_classifier(unit(images.train), labels, CLASSIFIER_STEPS[size], seed)
    return found, found.accuracy(unit(images.test), torch.as_tensor(images.test_labels))


def distance(classifier: Classifier, images: ImageSet, drawn: torch.Tensor) -> float:
    """Fréchet distance between drawn images and as many of the test split, or all of them."""
    real = unit(images.test[: len(drawn)])
    return frechet_distance(classifier.embed(real), classifier.embed(drawn.float()))


def draws(
    model: nn.Module, size: str, seed: int, tokenizer: ImageTokenizer | None = None, **options: float
) -> torch.Tensor:
    """As many images as `DRAWN` says, of all ten classes evenly."""
    device = next(model.parameters()).device
    labels = torch.arange(DRAWN[size], device=device) % 10
    return draw_images(model, labels, torch.Generator(device).manual_seed(seed), tokenizer, **options)


def pictures() -> ImageSet:
    """Fashion-MNIST, or its stand-in."""
    return image_set("auto")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def plot_bars(path: Path, title: str, found: Mapping[str, Sequence[float]], quantities: Sequence[str]) -> Path:
    """A panel for each quantity, a bar for each variant ("quantity, variant" in `found`) with a dot for each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    count = len(quantities)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.8), layout="constrained", squeeze=False)
    for axis, quantity in zip(axes[0], quantities, strict=True):
        begin = f"{quantity}, "
        variants = {name.removeprefix(begin): v for name, v in found.items() if name.startswith(begin)}
        for i, values in enumerate(variants.values()):
            axis.bar(i, np.mean(values), 0.6, color=f"C{i}", alpha=0.7)
            axis.plot([i] * len(values), values, "k.")
        axis.set_xticks(range(len(variants)), [name.replace(" ", "\n") for name in variants])
        axis.set_title(quantity)
    figure.suptitle(title)
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
