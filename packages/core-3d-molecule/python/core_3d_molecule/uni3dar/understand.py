# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Understanding with Uni-3DAR (arXiv 2503.16278, section 3.3): properties of molecules and atoms, beside generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..octree import Augmentation, OctreeTokenizer, Tokens
from ..structures import Structures, selected
from ..training import Optimisation, Trainer
from .batches import Stream, collate
from .model import Batch, Config, PropertyHead, Uni3DAR, Weights
from .model import loss as generation

WEIGHTS = {-1: 50.0, 0: 5.0}
"""The paper's, of the properties' loss beside the generation's: of molecules, of atoms."""


class Understanding(nn.Module):
    """A `Uni3DAR` with a head for properties of molecules (`level` -1) or of atoms (0), in units of its own.

    Args:
        model: new, or trained to generate.
        properties: how many.
        level: see `PropertyHead`.
    """

    def __init__(self, model: Uni3DAR, properties: int, level: int = -1) -> None:
        super().__init__()
        self.model, self.head = model, PropertyHead(model.config, properties, level)
        self.register_buffer("mean", torch.zeros(properties))
        self.register_buffer("deviation", torch.ones(properties))

    def forward(self, batch: Batch, longest: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Whitened properties (molecules or atoms, properties), and the cross-entropies of `Uni3DAR`."""
        hidden = self.model.hidden(batch, longest)
        found: Tensor = self.head(hidden, batch)
        return found.float(), self.model.nats(hidden, batch)

    @torch.no_grad()
    def predict(self, structures: Structures, *, orientations: int = 5, seed: int = 0, batch: int = 128) -> np.ndarray:
        """Properties (molecules or atoms, properties) float32, in their units, the mean over random orientations."""
        self.eval()
        c = self.model.config
        tokenizer = OctreeTokenizer(c.merge_level, c.grid_len, c.resolution)
        turn = Augmentation(rotate=1.0, noise=0.0, shift=0, drop=0.0)
        counts = np.diff(np.asarray(structures.offsets))
        out = np.zeros((len(structures) if self.head.level < 0 else int(counts.sum()), len(self.mean)), np.float32)
        for begin in range(0, len(structures), batch):
            rows = np.arange(begin, min(begin + batch, len(structures)))
            few = structures.select(rows)
            for turned in range(orientations):
                tokens = tokenizer.tokenize(few, augment=turn, seed=seed + turned * len(structures) + begin)
                packed = tokenizer.pack(tokens)
                given = collate(packed, c.merge_level, c.resolution).to(self.mean.device)
                whitened = self.head(self.model.hidden(given, int(np.diff(packed.cu_seqlens).max())), given)
                values = (whitened.float() * self.deviation + self.mean).cpu().numpy() / orientations
                out[_targets(structures, rows, tokens, self.head.level)] += values
        return out


def make_property_trainer(
    structures: Structures,
    values: Any,
    model: Uni3DAR | Config,
    optimisation: Optimisation,
    *,
    level: int = -1,
    rows: int = 16384,
    weights: Weights | None = None,
    augment: Augmentation | None = None,
    device: str = "cpu",
) -> Trainer:
    """A trainer of `Understanding` on values (molecules or atoms, properties), each property's own mean and standard
    deviation taken out.

    The loss is the generation's and 50 times (atoms: 5 times) the mean absolute error of the whitened properties, which
    it yields too. Raises ValueError for values of another shape, or that are not finite.
    """
    values = np.asarray(values, np.float32)
    count = len(structures) if level < 0 else len(structures.numbers)
    if values.ndim != 2 or len(values) != count or not values.shape[1] or not np.isfinite(values).all():
        raise ValueError(f"argument 'values' must be finite, of shape ({count}, properties), got shape {values.shape}")
    torch.manual_seed(optimisation.seed)
    base = Uni3DAR(model) if isinstance(model, Config) else model
    c, weights = base.config, weights or Weights()
    whole = Understanding(base, values.shape[1], level).to(device)
    whole.mean.copy_(torch.from_numpy(values.mean(0)))
    whole.deviation.copy_(torch.from_numpy(values.std(0).clip(1e-6)))
    tokenizer = OctreeTokenizer(c.merge_level, c.grid_len, c.resolution)

    def loss(given: tuple[Batch, Tensor]) -> dict[str, Tensor]:
        batch, wanted = given
        found, nats = whole(batch, int(batch.cu_seqlens.diff().max()))
        error = (found - (wanted - whole.mean) / whole.deviation).abs().mean()
        return {
            "loss": generation(nats, batch, weights) + WEIGHTS[level] * error,
            "error": error.detach(),
        }

    def batches(behind: dict[str, Any] | None) -> Iterator[tuple[tuple[Batch, Tensor], dict[str, Any]]]:
        stream = Stream(structures, tokenizer, rows, augment, optimisation.seed, **(behind or {}))
        for batch, chosen, tokens, state in stream.visits():
            wanted = torch.from_numpy(values[_targets(structures, chosen, tokens, level)])
            yield (batch.to(device), wanted.to(device)), state

    about = {
        "model": "uni3dar-property", "config": c.record(), "properties": values.shape[1], "level": level,
        "weights": dataclasses.asdict(weights), "data": {"structures": len(structures), "rows": rows},
    }  # fmt: skip
    amp = torch.bfloat16 if torch.device(device).type == "cuda" else None
    return Trainer(whole, loss, batches, optimisation, amp=amp, about=about)


def _targets(structures: Structures, rows: np.ndarray, tokens: Tokens, level: int) -> np.ndarray:
    """Rows of the values of what the head sees: the structures, or their atoms in the stream's order."""
    if level < 0:
        return rows
    atoms, _ = selected(np.asarray(structures.offsets), rows)
    order = np.asarray(tokens.atoms)
    found: np.ndarray = atoms[order[order >= 0]]
    return found
