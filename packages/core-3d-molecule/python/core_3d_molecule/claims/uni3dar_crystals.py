"""Uni-3DAR on crystals on one GPU: minutes of training on perovskites, 1,000 new ones, and their scores."""

from __future__ import annotations

import copy
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace

from .. import data, show
from ..crystals import Crystals
from ..evaluate import evaluate_crystals
from ..octree import Augmentation
from .runs import Record, train

BARS = {"structure_validity": 0.98, "composition_validity": 0.90}
KEEP = 0.32
"""The share with the best perplexity that the paper keeps of its crystals."""
Temperatures = tuple[float, float, float]


def generate(
    seed: int,
    out: Path,
    table: Path,
    *,
    minutes: float = 2.5,
    steps: int = 1_000_000,
    count: int = 1000,
    rows: int = 14_336,
    layers: int = 8,
    width: int = 512,
    lr: float = 5e-4,
    temperatures: tuple[Temperatures, ...] = ((0.9, 0.3, 0.3), (1.0, 0.9, 0.9)),
    device: str = "cuda",
    limit: int | None = None,
) -> Claim:
    """Trains on the crystals of a table (`data.crystals`; at most `limit`), draws `count` and scores them.

    temperatures: of tree tokens, types and coordinates; the first are the claim's, the second those of the paper for
    MP-20. Numbers of atoms are drawn as the table has them. Crystals are drawn at half of the schedule, too. As
    `uni3dar_qm9.generate`, a run that was cut off goes on by calling again with the same arguments, and what was drawn
    without smact is scored where smact is; until then ModuleNotFoundError is raised at the end.
    """
    record = Record(out / "uni3dar-crystals.json")
    given = data.crystals(table, limit)
    files = {t: out / f"uni3dar-crystals-{'-'.join(f'{x:g}' for x in t)}.npz" for t in temperatures}
    half = out / "uni3dar-crystals-half.npz"
    if not all(path.exists() for path in (half, *files.values())):
        shape = {"layers": layers, "width": width, "heads": max(width // 64, 1)}
        schedule = {"steps": steps, "minutes": minutes, "lr": lr, "warmup": min(500, steps // 5), "seed": seed}
        _draw(record, given, shape, schedule, rows, count, files, half, device)
    smact = importlib.util.find_spec("smact") is not None
    measured: dict[str, tuple[float, float]] = {
        "crystals to train on": (len(given), 0.0),
        "GPU minutes of training": (record.values["train"]["minutes"], 0.0),
        "steps": (record.values["train"]["steps"], 0.0),
    }
    for t, path in files.items():
        at = "" if t == temperatures[0] else f" at {t}"
        samples, scores = load(path)
        measured[f"finished{at}"] = (len(samples) / count, 0.0)
        report = evaluate_crystals(samples, scores=scores, keep=KEEP, composition=smact, training=given)
        measured |= _rates(f"unranked{at}", report.unranked) | _rates(f"best 32 %{at}", report.ranked or {})
    measured |= _rates("at half time", evaluate_crystals(load(half)[0], composition=smact).unranked)
    measured |= _rates("training crystals", evaluate_crystals(given, composition=smact).unranked)
    record.put(measured=measured)
    if not smact:
        raise ModuleNotFoundError(f"compositions need smact; the rest is in {record.path}: call again where it is")
    plot = out / "uni3dar-crystals.png"
    drawn, _ = load(files[temperatures[0]])
    show.grid(plot, drawn.select(np.arange(min(len(drawn), 16))))
    return Claim(
        paper="2503.16278",
        claim="An autoregressive transformer over octree tokens of cell and atoms generates crystals.",
        protocol=f"{table.name}: {len(given)} crystals to train on; {layers} layers of {width}, {minutes:g} minutes of "
        f"training on one GPU; {count} crystals begun, those not finished left out; {temperatures[0]} as temperatures "
        "of trees, types and coordinates; CDVAE's validities. Unique, novel: no earlier sample, no training crystal "
        "of the same formula is matched within CDVAE's tolerances. Holds if "
        f"{BARS['structure_validity']:.0%} of the unranked samples are valid by structure and "
        f"{BARS['composition_validity']:.0%} by composition",
        measured=measured,
        holds=all(measured[f"unranked: {name}"][0] >= bar for name, bar in BARS.items()),
        plot=plot,
    )


def _draw(
    record: Record,
    given: Crystals,
    shape: dict[str, int],
    schedule: dict[str, Any],
    rows: int,
    count: int,
    files: dict[Temperatures, Path],
    half: Path,
    device: str,
) -> None:
    import torch

    from ..training import Optimisation
    from ..uni3dar import CrystalSampler, Settings, crystal_config, make_trainer

    cuda = device == "cuda"
    trainer = make_trainer(
        given, crystal_config(**shape), Optimisation(**schedule),
        rows=rows, augment=Augmentation(rotate=0.5), device=device, compiled=cuda,
    )  # fmt: skip
    record.put(
        device=torch.cuda.get_device_name() if cuda else "cpu", torch=torch.__version__, rows=rows, **shape,
        parameters=sum(p.numel() for p in trainer.model.parameters()), schedule=schedule,
    )  # fmt: skip
    sizes = np.random.default_rng(schedule["seed"]).choice(np.diff(given.offsets), count)

    def draw(name: str, t: Temperatures, path: Path) -> None:
        model = copy.deepcopy(trainer.model)
        model.load_state_dict(trainer.averaged())
        tree, atom, xyz = t
        sampler = CrystalSampler(model, Settings(tree=tree, atom=atom, xyz=xyz), batch=min(500, count))
        start = time.monotonic()
        found = sampler.sample(sizes, seed=schedule["seed"] + 1)
        seconds = time.monotonic() - start
        save(path, found.crystals, found.scores)
        valid = evaluate_crystals(found.crystals, composition=False).unranked["structure_validity"].value
        record.put(**{name: {"seconds": seconds, "discarded": found.discarded, "structure_validity": valid}})

    checkpoint = record.path.with_suffix(".safetensors")
    if not half.exists():
        train(trainer, checkpoint, record, "train", part=0.5)
        draw("half", next(iter(files)), half)
    train(trainer, checkpoint, record, "train")
    for t, path in files.items():
        draw(f"sampling at {t}", t, path)


def save(path: Path, crystals: Crystals, scores: Any) -> None:
    """Crystals and their perplexities as a `.npz`."""
    with replace(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **vars(crystals), scores=scores)


def load(path: Path) -> tuple[Crystals, Any]:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Crystals(*(file[k] for k in ("numbers", "fractional", "lattices", "offsets"))), file["scores"]


def _rates(what: str, found: Any) -> dict[str, tuple[float, float]]:
    """The scores with half the width of their intervals."""
    return {f"{what}: {name}": (rate.value, rate.half) for name, rate in found.items()}
