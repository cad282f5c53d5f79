"""What the claims of Uni-3DAR on one GPU share: training with a record, and drawing at several temperatures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from ..crystals import Crystals
from ..structures import Structures
from . import runs


@dataclasses.dataclass(frozen=True)
class Temperatures:
    """Of trees (all, or by level with the finest first), types and coordinates; and the sampler's `min_p`."""

    tree: float | tuple[float, ...] = 0.9
    atom: float = 0.3
    xyz: float = 0.3
    min_p: float = 0.0

    def __str__(self) -> str:
        parts = ["_".join(f"{t:g}" for t in np.ravel(self.tree)), f"{self.atom:g}", f"{self.xyz:g}"]
        return "-".join([*parts, f"min{self.min_p:g}"] if self.min_p else parts)


def trainer_of(
    record: runs.Record,
    given: Structures | Crystals,
    config: Any,
    *,
    minutes: float,
    steps: int,
    lr: float,
    seed: int,
    rows: int,
    device: str,
    muon: bool = False,
    **also: Any,
) -> Any:
    """A trainer whose schedule ends after so many minutes or steps; its sizes go to the record."""
    from ..training import Optimisation
    from ..uni3dar import make_trainer

    schedule = {
        "steps": steps, "minutes": minutes, "lr": lr, "warmup": min(500, steps // 5), "seed": seed, "muon": muon,
    }  # fmt: skip
    compiled = device == "cuda"
    trainer = make_trainer(
        given, config, Optimisation(**schedule), rows=rows, device=device, compiled=compiled, **also
    )  # fmt: skip
    layers = sum(p.numel() for p in trainer.model.layers.parameters())
    shape = {"layers": config.layers, "width": config.width, "rows": rows}
    record.put(**runs.head(trainer, **shape, tflop_a_step=6e-12 * layers * rows, schedule=schedule))
    return trainer


def draw(
    record: runs.Record, sampler: Any, name: str, t: Temperatures, what: Any, count: int, seed: int, path: Path
) -> Any:
    """Samples of `what` (a number, or sizes of crystals) at a temperature, kept in a file; time and what was begun in
    vain go to the record."""
    sampler.retune(**dataclasses.asdict(t))
    found = runs.timed(record, name, count, lambda: sampler.sample(what, seed=seed))
    record.put(**{name: record.values[name] | {"discarded": found.discarded}})
    save(path, found.crystals if hasattr(found, "crystals") else found.structures, found.scores)
    return found


def save(path: Path, given: Structures | Crystals, scores: Any = None) -> None:
    """Molecules or crystals and, if any, their perplexities as a `.npz`, positions in float32."""
    fields = dict(vars(given))
    if "positions" in fields:
        fields["positions"] = np.asarray(fields["positions"], np.float32)
    with replace(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **fields, scores=np.zeros(0) if scores is None else scores)


def load(path: Path) -> tuple[Any, Any]:
    """What `save` wrote; None for no perplexities."""
    with np.load(path, allow_pickle=False) as file:
        fields = dict(file.items())
    scores = fields.pop("scores")
    given: Structures | Crystals
    if "lattices" in fields:
        given = Crystals(**fields)
    else:
        given = Structures(**fields | {"positions": fields["positions"].astype(np.float64)})
    return given, scores if len(scores) or not len(given) else None


def rates(what: str, found: Any, names: dict[str, str] | None = None) -> dict[str, tuple[float, float]]:
    """Scores with half the width of their intervals; `names`: which, and by what names."""
    names = names or {name: name for name in found}
    return {f"{what}: {k}": (found[name].value, found[name].half) for k, name in names.items() if name in found}
