"""4DGS-1K (arXiv 2503.16422): a trained 4D scene is pruned by its variation score and filtered by key frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..dynamic import KeyFrameFilter, keep_best, variation_scores
from ..formats.container4d import harmonics_books
from ..vector_quantisation import nearest
from .densify import Fixed
from .model import Model4D
from .trainer import Trainer


def key_times(times: list[float], interval: int = 20, count: int = 0) -> list[float]:
    """Each `interval`-th of the different times and the last; or, if `count` > 0, so many, evenly spaced."""
    times = sorted(set(times))
    if count:
        places = torch.linspace(0, len(times) - 1, min(count, len(times))).round().long().unique()
        return [times[i] for i in places.tolist()]
    return times[::interval] + ([times[-1]] if (len(times) - 1) % interval else [])


def scores(trainer: Trainer) -> torch.Tensor:
    """(N,) the spatial-temporal variation scores over the training pictures."""
    return variation_scores(*_dynamic(trainer).shape(), _cameras(trainer, None))


def key_frame_filter(trainer: Trainer, keys: list[float]) -> KeyFrameFilter:
    """What the training cameras, all of them, see at the key times."""
    return KeyFrameFilter.from_views(*_dynamic(trainer).shape(), _cameras(trainer, keys))


def prune(
    trainer: Trainer,
    share: float = 0.8,
    *,
    interval: int = 20,
    key_frames: int = 0,
    steps: int = 5000,
    rate: float = 1.0,
    filtered: bool = True,
) -> None:
    """Leaves a trainer with the Gaussians that matter, ready to be fine-tuned: `trainer.run(steps)`, then `finish`.

    Defaults are those of arXiv 2503.16422 for N3V; for D-NeRF it prunes 0.85 and has 6 key frames.

    Args:
        trainer: of 4D Gaussians, trained.
        share: of the Gaussians, those with the lowest scores, that go.
        interval, key_frames: see `key_times`.
        steps: of the fine-tuning, without clone and split, at the rates of training; that of the means falls again.
        rate: of the means, times that of training.
        filtered: whether the filter is on while it is fine-tuned.
    """
    model = _dynamic(trainer)
    kept = keep_best(scores(trainer), share)
    values = {name: parameter.detach()[kept] for name, parameter in model.parameters.items()}
    c = trainer.config
    trainer.step = c.sh_degree + c.sh_time_degree  # with a step for each degree, every coefficient is in use
    trainer.config = dataclasses.replace(
        c, steps=trainer.step + steps, strategy="fixed", sh_every=1, lr_means=rate * c.lr_means
    )
    trainer.model = Model4D(values, trainer.config, trainer.extent)
    trainer.strategy = Fixed(trainer.config, trainer.extent, trainer.generator)
    if filtered:
        keys = key_times([p.time for p in trainer.pictures], interval, key_frames)
        trainer.model.filter = key_frame_filter(trainer, keys)


def tie(trainer: Trainer, entries: int = 4096) -> None:
    """Replaces the harmonics by those of code books, as the container stores them (`harmonics_books`); what is trained
    from here on moves the books' entries, and the Gaussians of one entry stay equal."""
    model = _dynamic(trainer)
    trainer.config = dataclasses.replace(trainer.config, visible_only=False)
    sh = model.sh.detach()
    rows = sh.view(len(model), -1)
    shared: list[tuple[slice, Tensor, int]] = []
    for first, book in harmonics_books(sh.cpu().numpy(), entries, trainer.config.seed):
        columns = slice(3 * first, 3 * first + book.shape[1])
        codes = torch.from_numpy(nearest(rows[:, columns].cpu().numpy(), book)).to(sh.device)
        rows[:, columns] = torch.from_numpy(book).to(sh.device)[codes]
        shared.append((columns, codes, len(book)))
    model.optimizer.state.pop(model.sh, None)
    model.sh.register_hook(lambda gradient: _of_entries(gradient, shared))


def _of_entries(gradient: Tensor, groups: list[tuple[slice, Tensor, int]]) -> Tensor:
    """The gradient by a book's entry, for each row that it stands for."""
    rows = gradient.reshape(len(gradient), -1)
    out = torch.empty_like(rows)
    for columns, codes, entries in groups:
        sums = rows.new_zeros((entries, columns.stop - columns.start)).index_add_(0, codes, rows[:, columns])
        out[:, columns] = sums[codes]
    return out.view_as(gradient)


def finish(trainer: Trainer) -> None:
    """Renews the filter's masks for the Gaussians as they are now, so that key frames lose nothing."""
    model = _dynamic(trainer)
    if model.filter is not None:
        model.filter = key_frame_filter(trainer, model.filter.times.tolist())


def _dynamic(trainer: Trainer) -> Model4D:
    if not isinstance(trainer.model, Model4D):
        raise ValueError("prune: argument 'trainer' must have 4D Gaussians (a duration), got 3D ones")
    return trainer.model


def _cameras(trainer: Trainer, times: list[float] | None) -> Iterator[tuple[float, Any, Any, int, int]]:
    """The training pictures as (time, viewmats, Ks, width, height); at each of `times` all different cameras."""
    if times is None:
        for p in trainer.pictures:
            yield p.time, p.viewmat[None], p.K[None], p.pixels.shape[1], p.pixels.shape[0]
        return
    groups: dict[tuple[int, int], dict[bytes, tuple[torch.Tensor, torch.Tensor]]] = {}
    for p in trainer.pictures:
        camera = p.viewmat.cpu().numpy().tobytes() + p.K.cpu().numpy().tobytes()
        groups.setdefault((p.pixels.shape[1], p.pixels.shape[0]), {})[camera] = (p.viewmat, p.K)
    for time in times:
        for (width, height), cameras in groups.items():
            viewmats, Ks = (torch.stack(x) for x in zip(*cameras.values(), strict=True))
            yield time, viewmats, Ks, width, height
