"""4DGS-1K (arXiv 2503.16422): a fifth of the Gaussians, a filter and code books do for a fortieth of the storage."""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim

from ..formats.container4d import open_4d, write_4d
from ..playback import Player
from ..scenes.walker import walker
from .notes import Notes

BYTES = 4 * 161  # of a 4D Gaussian in float32: 17 of geometry, 48 x 3 harmonics
PAPER = "2503.16422"
MOST_LOST, LEAST_SAVED, KEY_DIFFERENCE = 0.3, 40.0, 1 / 255
LOST, SAVED = "PSNR lost, dB", "times less storage"
AT_KEYS = "filtered against all: most at key frames"
CONTROL = "PSNR of all, trained as much further, dB"


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the experiment: the video, the training, the pruning; in the `fine_tune` steps, of which `books` are with code
    books, the means have `rate` times the learning rate of training."""

    width: int
    height: int
    frames: int
    cameras: int
    skin: int
    points: int
    steps: int
    grow_gradient: float
    most: int
    interval: int
    fine_tune: int
    books: int
    rate: float
    device: str


SIZES = {
    "cpu": Size(128, 128, 24, 9, 30_000, 8000, 1500, 2e-4, 20_000, 6, 800, 200, 1.0, "cpu"),
    "gpu": Size(1352, 1014, 60, 12, 400_000, 40_000, 7000, 5e-5, 700_000, 6, 10_000, 2000, 3.0, "cuda"),
}


def claim(size: str, seed: int, out: Path) -> Claim:
    """Trains 4D Gaussians on the synthetic walk, prunes four in five, fine-tunes, writes the container and reads it."""
    return experiment(SIZES[size], seed, out)


def experiment(s: Size, seed: int, out: Path, notes: Notes | None = None) -> Claim:
    """The claim at a size of one's own; `notes` are of this size and seed."""
    notes = Notes(None, PAPER, s, seed) if notes is None else notes
    plot = out / f"{PAPER}.png"
    if CONTROL not in notes.measured:
        _run(s, seed, out, plot, notes)
    value = {name: mean for name, (mean, _) in notes.measured.items()}
    return Claim(
        paper=PAPER,
        claim=(
            "Pruning 80 % of the 4D Gaussians by the variation score, a key-frame filter and vector quantisation keep "
            "the quality in a fortieth of the storage."
        ),
        protocol=(
            f"A synthetic walk, {s.frames} times x {s.cameras} cameras of {s.width}x{s.height}, one camera held out. "
            f"{s.steps} steps of 4D Gaussians; 80 % pruned; key frames at each {s.interval}th time; {s.fine_tune} "
            f"steps of fine-tuning, the means at {s.rate} times their rate, the last {s.books} with code books in "
            "place; written and read. PSNR over the held-out views, with its deviation over them. "
            f"Bars: at most {MOST_LOST} dB lost, {LEAST_SAVED:.0f}x less storage (float32 to file), key frames "
            "equal to 1/255."
        ),
        measured=notes.measured,
        holds=value[LOST] <= MOST_LOST and value[SAVED] >= LEAST_SAVED and value[AT_KEYS] <= KEY_DIFFERENCE,
        plot=plot,
    )


def _run(s: Size, seed: int, out: Path, plot: Path, notes: Notes) -> None:
    """Measures what the notes lack."""
    import rich.progress

    from ..training import Config, Trainer
    from ..training.prune import finish, prune, tie

    device = None if s.device == "cpu" else s.device
    scene = walker(s.width, s.height, s.frames, s.cameras, s.skin, seed, device, s.points)
    config = Config.for_steps(
        s.steps, duration=1.0, sh_every=s.steps // 10, most=s.most, refine_start=s.steps // 20,
        refine_stop=int(0.6 * s.steps), reset_every=10**6, grow_gradient=s.grow_gradient, seed=seed,
    )  # fmt: skip
    with rich.progress.Progress(transient=True) as progress:

        def train(name: str, trainer: Trainer, steps: Iterable[Any], total: int) -> tuple[Any, float]:
            start = time.perf_counter()
            for _ in progress.track(steps, total, description=name):
                pass
            found = _psnr_by_view(trainer)
            seconds = time.perf_counter() - start
            about = f"{name}: {found.mean():.2f} dB, {len(trainer.model):,} Gaussians, {seconds:.0f} s"
            print(about, file=sys.stderr, flush=True)
            return found, seconds

        def tune(name: str, trainer: Trainer, steps: int) -> tuple[Any, float]:
            return train(name, trainer, _checked(trainer.run(steps), notes), steps)

        trainer = Trainer(scene, config, device=s.device, hold_out=s.cameras)
        full, _ = train("train", trainer, notes.training(trainer), s.steps)
        control, count = copy.copy(trainer), len(trainer.model)
        if LOST not in notes.measured:
            notes.note({"Gaussians before": (count, 0.0), "PSNR of all, dB": _spread(full)})
            shown = [_picture(trainer)]
            prune(trainer, 0.8, interval=s.interval, steps=s.fine_tune, rate=s.rate)
            chosen, trainer.model.filter = trainer.model.filter, None
            cut = _psnr_by_view(trainer)
            trainer.model.filter = chosen
            notes.note(
                {
                    "Gaussians after": (len(trainer.model), 0.0),
                    "PSNR pruned, dB": _spread(cut),
                    "PSNR pruned, filtered, dB": _spread(_psnr_by_view(trainer)),
                }
            )
            tuned, took = tune("fine-tune", trainer, s.fine_tune - s.books)
            notes.note({"PSNR pruned, filtered, fine-tuned, dB": _spread(tuned)})
            tie(trainer)
            notes.note({"PSNR with code books, dB": _spread(_psnr_by_view(trainer))})
            took += tune("fine-tune with code books", trainer, s.books)[1]
            notes.note({"seconds of fine-tuning": (took, 0.0)})
            finish(trainer)
            out.mkdir(parents=True, exist_ok=True)
            file = out / f"{PAPER}.4dgs"
            write_4d(file, trainer.model.gaussians(), seed=seed)
            found = _play(trainer, Player(open_4d(file).read(), device))
            shown.append(found.pop("picture"))
            sizes = count * BYTES, file.stat().st_size
            _plot(plot, trainer, shown, full, found["psnr"], sizes)
            notes.note(
                {
                    "PSNR of the file, filtered, dB": _spread(found["psnr"]),
                    LOST: _spread(full - found["psnr"]),
                    SAVED: (sizes[0] / sizes[1], 0.0),
                    "filtered share of what is left": _spread(found["share"]),
                    AT_KEYS: (float(max(found["key"])), 0.0),
                    "filtered against all: PSNR between, dB": _spread(found["between"]),
                    "ms a frame, of the file": _spread(found["ms"]),
                }
            )
        prune(control, 0.0, steps=s.fine_tune, rate=s.rate, filtered=False)
        longer, _ = tune("train the unpruned as much further", control, s.fine_tune)
        notes.note({CONTROL: _spread(longer)})


def _checked(steps: Iterable[Any], notes: Notes) -> Iterator[Any]:
    for step in steps:
        notes.check()
        yield step


def _spread(values: Any) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def _psnr_by_view(trainer: Any) -> Any:
    import torch

    from ..training import psnr

    with torch.no_grad():
        return np.array([psnr(trainer.render(p)[0], p.pixels.float() / 255) for p in trainer.held])


def _picture(trainer: Any) -> Any:
    import torch

    with torch.no_grad():
        return trainer.render(trainer.held[len(trainer.held) // 3])[0].clamp(0, 1).cpu().numpy()


def _play(trainer: Any, player: Player) -> dict[str, Any]:
    """What the stored scene shows at the held-out views, filtered and not."""
    found: dict[str, Any] = {"psnr": [], "share": [], "key": [], "between": [], "ms": []}
    keys = set(player.filter.times.tolist()) if player.filter is not None else set()
    for i, p in enumerate(trainer.held):
        height, width = p.pixels.shape[:2]
        camera = [x[None] if player.device else x[None].numpy() for x in (p.viewmat, p.K)]

        def frame(filtered: bool, camera: list[Any] = camera, p: Any = p, size: Any = (width, height)) -> Any:
            image = player.render(p.time, *camera, *size, filtered=filtered)[0]
            return image.cpu().numpy() if player.device else image

        frame(True)
        start = time.perf_counter()
        image = frame(True)
        found["ms"].append(1e3 * (time.perf_counter() - start))
        difference = image - frame(False)
        indices = player.indices(p.time)
        found["share"].append(len(indices) / max(player.count, 1))
        if np.float32(p.time) in keys:
            found["key"].append(np.abs(difference).max())
        else:
            found["between"].append(-10 * np.log10(max(float((difference**2).mean()), 1e-12)))
        truth = p.pixels.cpu().numpy() / 255
        found["psnr"].append(-10 * np.log10(((image.clip(0, 1) - truth) ** 2).mean()))
        if i == len(trainer.held) // 3:
            found["picture"] = image.clip(0, 1)
    return found | {"psnr": np.array(found["psnr"])}


def _plot(path: Path, trainer: Any, shown: list[Any], full: Any, stored: Any, sizes: tuple[int, int]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["truth", "all", "file", "error"], ["psnr", "psnr", "psnr", "bytes"]], figsize=(11, 6), layout="constrained"
    )
    truth = trainer.held[len(trainer.held) // 3].pixels.cpu().numpy() / 255
    pictures = {
        "truth": (truth, "held-out view"), "all": (shown[0], "all Gaussians"), "file": (shown[1], "file, filtered"),
        "error": (np.clip(4 * np.abs(shown[1] - truth), 0, 1), "4 x error of the file"),
    }  # fmt: skip
    for name, (picture, title) in pictures.items():
        axes[name].imshow(picture)
        axes[name].set(title=title)
        axes[name].axis("off")
    times = [p.time for p in trainer.held]
    axes["psnr"].plot(times, full, label="all Gaussians")
    axes["psnr"].plot(times, stored, label="a fifth, filtered, quantised")
    for key in trainer.model.filter.times:
        axes["psnr"].axvline(key, color="grey", linewidth=0.5)
    axes["psnr"].set(xlabel="time (grey: key frames)", ylabel="PSNR, dB")
    axes["psnr"].legend()
    axes["bytes"].bar(["all, float32", "file"], [x / 2**20 for x in sizes])
    axes["bytes"].set(ylabel="MiB", title=f"{sizes[0] / sizes[1]:.0f} times less")
    figure.savefig(path, dpi=100)
    plt.close(figure)
