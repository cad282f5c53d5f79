"""Training of Uni-3DAR on molecules or crystals."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..crystal_tokens import PXRD_TOKENS, CrystalTokenizer, pxrd_peaks
from ..crystals import Crystals
from ..octree import CLS, Augmentation, OctreeTokenizer
from ..structures import Structures
from ..training import Optimisation, Trainer
from .batches import Stream, Telling, tokenized
from .model import Batch, Config, Uni3DAR, Weights
from .model import loss as total

NOISE, DROP = 0.1, 0.1
"""In training, of conditions: the standard deviation of noise on them, and the share that is left out."""


def make_trainer(
    structures: Structures | Crystals,
    config: Config,
    optimisation: Optimisation,
    *,
    rows: int = 16384,
    weights: Weights | None = None,
    augment: Augmentation | None = None,
    device: str = "cpu",
    compiled: bool = False,
) -> Trainer:
    """A trainer of a new `Uni3DAR` on batches of `rows` rows of packed tokens (about 165 a molecule of QM9).

    Crystals go with a `crystal_config`; a checkpoint remembers how many of them have 0, 1, 2... atoms. A model with
    conditions is told them with noise of 0.1, and each of them in nine visits out of ten.

    On CUDA in bfloat16 with float32 weights, batches being made in a thread of their own and a step being a replayed
    graph; `compiled` runs the model through torch.compile. The weights at the beginning follow from
    `optimisation.seed`. What it yields beside the loss: cross-entropies per predicted token, in nats, of tree tokens,
    types and coordinates, and "nll" per molecule.
    """
    torch.manual_seed(optimisation.seed)
    model = Uni3DAR(config).to(device)
    octree = OctreeTokenizer(config.merge_level, config.grid_len, config.resolution)
    crystals = isinstance(structures, Crystals)
    tokenizer = CrystalTokenizer(octree) if crystals else octree
    if config.conditions and not crystals:
        raise ValueError("make_trainer: argument 'structures' must be crystals for a model with conditions")
    telling = Telling()
    if isinstance(structures, Crystals) and config.conditions:
        telling = Telling(config.composition, pxrd_peaks(structures) if config.pxrd else None, NOISE, DROP)
    before = 2 + PXRD_TOKENS * config.pxrd if crystals else 0
    lengths = np.diff(tokenized(tokenizer, structures, before=before)[1], prepend=0)
    cuda = torch.device(device).type == "cuda"
    # augmentation moves a molecule against the grid, and so its number of tokens
    longest = int(min(-(-1.5 * lengths.max(initial=1) // 128) * 128, rows))
    sequences = int(1.3 * rows / max(lengths.mean(), 1)) + 8
    weights = weights or Weights()

    def loss(batch: Batch) -> dict[str, Tensor]:
        longest_here = longest if cuda else int(batch.cu_seqlens.diff().max())
        nats = model(batch, longest_here)
        trees, atoms = (batch.tree >= 0).sum(), (batch.kind >= 0).sum()
        molecules = (batch.tokens == CLS).sum() // config.trees
        sums = {k: v.sum().detach() for k, v in nats.items()}
        return {
            "loss": total(nats, batch, weights),
            "nll": torch.stack(list(sums.values())).sum() / molecules.clamp(min=1),
            "tree": sums["tree"] / trees.clamp(min=1),
            "type": sums["kind"] / atoms.clamp(min=1),
            "xyz": (sums["x"] + sums["y"] + sums["z"]) / atoms.clamp(min=1),
        }

    def batches(behind: dict[str, Any] | None) -> Iterator[tuple[Batch, dict[str, Any]]]:
        state = behind or {"epoch": 0, "cursor": 0}
        stream = Stream(
            structures, tokenizer, rows, augment, optimisation.seed, **state,
            sequences=sequences if cuda else 0, longest=longest if cuda else 0, telling=telling,
        )  # fmt: skip
        return ahead(iter(stream), device) if cuda else iter(stream)

    about = {"model": "uni3dar", "config": config.record(), "weights": dataclasses.asdict(weights)}
    about["data"] = {
        "structures": len(structures), "rows": rows, "augment": augment and dataclasses.asdict(augment)
    } | ({"atoms": np.bincount(np.diff(structures.offsets)).tolist()} if crystals else {})  # fmt: skip
    amp = torch.bfloat16 if cuda else None
    return Trainer(
        model, loss, batches, optimisation, amp=amp, compiled=compiled, graph=True, about=about,
        matrices=model.matrices(),
    )  # fmt: skip


def ahead(batches: Iterator[tuple[Batch, dict[str, Any]]], device: str, depth: int = 8) -> Iterator[tuple[Batch, Any]]:
    """The same batches on a device, made by a thread up to `depth` ahead."""
    line: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for batch, behind in batches:
                item = (Batch(*(x.pin_memory() for x in batch)), behind)
                while not stop.is_set():
                    try:
                        line.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
        except BaseException as e:  # handed to the one who waits for batches
            line.put(e)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item = line.get()
            if isinstance(item, BaseException):
                raise item
            yield item[0].to(device), item[1]
    finally:
        stop.set()
