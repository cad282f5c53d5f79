# mypy: disallow-subclassing-any=False
"""What a crystal is to be, told to Uni-3DAR (arXiv 2503.16278): vectors for leading tokens, and scales of a norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Condition(nn.Module):
    """One thing that sequences are told, in `tokens` tokens of `values` values; where it is not given, vectors that are
    learnt stand for it."""

    def __init__(self, width: int, tokens: int, values: int) -> None:
        super().__init__()
        self.shape = tokens, values
        self.embed = nn.Sequential(
            nn.Linear(values, width, bias=False),
            nn.RMSNorm(width, eps=1e-6),  # a few atoms would otherwise be faint beside the token's own embedding
            nn.SiLU(),
            nn.Linear(width, width, bias=False),
        )
        self.missing = nn.Embedding(tokens, width)
        self.modulate = nn.Linear(tokens * width, 2 * width, bias=False)

    def forward(self, told: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, tokens, width) and gated scales (B, width) of (B, 1 + tokens values), the first of a row saying
        whether the others are given."""
        given, values = told[:, :1, None] > 0, told[:, 1:].unflatten(1, self.shape)
        vectors = torch.where(given, self.embed(values), self.missing.weight)
        gate, scale = self.modulate(vectors.flatten(1)).chunk(2, 1)
        return vectors, gate.sigmoid() * scale


class Conditioning(nn.Module):
    """All conditions, of the shapes (tokens, values), in the order of the sequences' leading tokens."""

    def __init__(self, width: int, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.all = nn.ModuleList(Condition(width, *shape) for shape in shapes)
        self.columns = [1 + tokens * values for tokens, values in shapes]

    def reset(self) -> None:
        """Lets the norm's scales begin at 0."""
        for one in self.all:
            nn.init.zeros_(one.modulate.weight)

    def forward(self, told: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, tokens, width) to be added to the leading tokens, and the sum (B, width) of the scales."""
        found = [one(part) for one, part in zip(self.all, told.split(self.columns, 1), strict=True)]
        return torch.cat([vectors for vectors, _ in found], 1), torch.stack([scale for _, scale in found]).sum(0)
