# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Uni-3DAR's transformer (arXiv 2503.16278, section 3): masked next-token prediction over octree tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..crystal_tokens import MOST_ATOMS, PXRD_POINTS, PXRD_TOKENS
from ..octree import CLS, VOCABULARY
from .conditions import Conditioning

IGNORED = -100
TREE_CLASSES = 255
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a `Uni3DAR`; the defaults are those of the paper for QM9 (about 90 million parameters).

    `width` must be a multiple of `heads`, and a head at least six wide; `merge_level`, `grid_len` and `resolution` are
    those of the `OctreeTokenizer`; `recycle` runs the layers so many times; `max_num_atom` above 0 adds counts of atoms
    and the head that predicts them (crystals: 128); `trees` above 1 gives each tree heads of its own (crystals: 2).
    `turn_values`, not in the paper, turns values as keys, and what attention makes of them back as queries: a token
    gets not only from whom but also whence. A model with `composition` or `pxrd` is told the composition or powder
    pattern of each crystal (trees 2).
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    merge_level: int = 6
    grid_len: float = 0.24
    resolution: float = 0.01
    vocabulary: int = VOCABULARY
    atom_types: int = 118
    recycle: int = 1
    max_num_atom: int = 0
    trees: int = 1
    dropout: float = 0.1
    drop_path: float = 0.1
    rope_theta: float = 10000.0
    turn_values: bool = False
    composition: bool = False
    pxrd: bool = False

    def __post_init__(self) -> None:
        problems = {
            "layers": 1 <= self.layers <= 1000,
            "heads": self.heads >= 1,
            "width": self.heads >= 1 and self.width % (2 * self.heads) == 0 and self.width // self.heads >= 6,
            "merge_level": 1 <= self.merge_level <= 10,
            "atom_types": 1 <= self.atom_types <= CLS,
            "vocabulary": self.vocabulary >= VOCABULARY,
            "recycle": 1 <= self.recycle <= 100,
            "max_num_atom": self.max_num_atom >= 0,
            "trees": self.trees in (1, 2),
            "composition": not self.composition or self.trees == 2,
            "pxrd": not self.pxrd or self.trees == 2,
            "dropout": 0 <= self.dropout < 1,
            "drop_path": 0 <= self.drop_path < 1,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Config: argument '{name}' is out of range, got {getattr(self, name)!r}")

    @property
    def bins(self) -> int:
        """Places of an atom in its cell, on each axis."""
        return round(self.grid_len / self.resolution)

    @property
    def conditions(self) -> list[tuple[int, int]]:
        """Of what sequences are told, in their order: how many tokens it has, and values each."""
        return [(PXRD_TOKENS, PXRD_POINTS)] * self.pxrd + [(1, MOST_ATOMS)] * self.composition

    def record(self) -> dict[str, Any]:
        """What a checkpoint remembers; without conditions that the model has not, as before there were any."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v or k not in ("composition", "pxrd")}


class Batch(NamedTuple):
    """Packed sequences (`OctreeTokenizer.pack`) and what their [MASK] rows are to predict.

    tokens, levels, trees (S,) int64; positions (S, 3) float32, in units of the resolution; cu_seqlens (B + 1,) int32,
    ending with S. rows (M,) int64: the [MASK] rows; tree, kind, count (M,) and bins (M, 3) int64: their targets, -100
    where there is none. counts (S,) int64 and remaining (S, 2) int64 are read by models with counts only, told (B, V)
    float32 (`crystal_tokens.Conditions.told`) by models with conditions.
    """

    tokens: Tensor
    levels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    rows: Tensor
    tree: Tensor
    kind: Tensor
    bins: Tensor
    trees: Tensor
    count: Tensor
    counts: Tensor
    remaining: Tensor
    told: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(*(x.to(device, non_blocking=True) for x in self))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    """Causal attention within each packed sequence: q, k, v (S, H, D) to (S, H, D).

    Flash attention with cu_seqlens on CUDA in half precision; elsewhere the sequences side by side, padded at their
    ends, which causality never reads.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        out: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout, True, False
        )[0]
        return out
    lengths = cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=q.device), lengths)
    at = torch.arange(len(q), device=q.device) - cu_seqlens[:-1].long()[sequence]
    padded = [x.new_zeros(len(lengths), max_seqlen, *x.shape[1:]).index_put((sequence, at), x) for x in (q, k, v)]
    q, k, v = (x.transpose(1, 2) for x in padded)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return out.transpose(1, 2)[sequence, at]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x (..., H, D) turned by the angles whose cosines and sines (..., D / 2) are given."""
    cos, sin = (r.unsqueeze(-2).to(x.dtype) for r in rope)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU, without biases; both ways out begin at zero."""

    def __init__(self, c: Config, drop_path: float) -> None:
        super().__init__()
        hidden = -(-(8 * c.width // 3) // 256) * 256 if c.width >= 256 else -(-(8 * c.width // 3) // 32) * 32
        self.heads, self.drop_path, self.dropout, self.turn_values = c.heads, drop_path, c.dropout, c.turn_values
        self.norm1, self.norm2 = nn.RMSNorm(c.width, eps=1e-6), nn.RMSNorm(c.width, eps=1e-6)
        self.qkv = nn.Linear(c.width, 3 * c.width, bias=False)
        self.out = nn.Linear(c.width, c.width, bias=False)
        self.up = nn.Linear(c.width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, c.width, bias=False)

    def _residual(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, without y for a share of the rows in training."""
        if self.training and self.drop_path > 0:
            kept = torch.rand(y.shape[0], 1, device=y.device) >= self.drop_path
            y = y * (kept / (1 - self.drop_path)).to(y.dtype)
        return x + y

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, index: int) -> Tensor:
        """x (..., width); `attend` gets q, k, v (..., H, D) and `index`."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        y = attend(rotate(q, rope), rotate(k, rope), rotate(v, rope) if self.turn_values else v, index)
        y = (rotate(y, (rope[0], -rope[1])) if self.turn_values else y).flatten(-2)
        x = self._residual(x, self.out(y))
        a, b = self.up(self.norm2(x)).chunk(2, -1)
        return self._residual(x, self.down(F.silu(a) * b))


def head(width: int, classes: int, dropout: float) -> nn.Sequential:
    """A two-layer perceptron to logits."""
    return nn.Sequential(
        nn.Linear(width, width, bias=False), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, classes, bias=False)
    )


class AtomHead(nn.Module):
    """What one atom token says, in order: its type, then x, y and z in its cell, each given those before."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        classes = [c.atom_types, c.bins, c.bins, c.bins]
        self.heads = nn.ModuleList(head(c.width, n, c.dropout) for n in classes)
        self.embeddings = nn.ModuleList(nn.Embedding(n, c.width) for n in classes[:-1])

    def forward(self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """The four logits; `choose(part, logits)` gives what is taken of each, the target in training."""
        found = []
        for part, one in enumerate(self.heads):
            found.append(one(hidden))
            if part < len(self.embeddings):
                hidden = hidden + self.embeddings[part](choose(part, found[-1]))
        return found


class Heads(nn.Module):
    """Everything that is predicted of one tree's tokens."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.tree = head(c.width, TREE_CLASSES, c.dropout)
        self.atom = AtomHead(c)
        if c.max_num_atom:
            self.chosen = nn.Embedding(TREE_CLASSES, c.width)
            self.count = head(c.width, c.max_num_atom + 1, c.dropout)


class Uni3DAR(nn.Module):
    """The model: packed tokens in, logits of what the [MASK] rows hide out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.tokens = nn.Embedding(c.vocabulary, c.width)
        self.levels = nn.Embedding(c.merge_level + 2, c.width)
        if c.trees > 1:
            self.trees = nn.Embedding(3, c.width)
        if c.max_num_atom:
            self.counts = nn.Embedding(c.max_num_atom + 2, c.width)
            self.remaining = nn.Linear(2, c.width, bias=False)
        self.layers = nn.ModuleList(Layer(c, c.drop_path * i / max(c.layers - 1, 1)) for i in range(c.layers))
        self.norm = nn.RMSNorm(c.width, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)
        self.heads = nn.ModuleList(Heads(c) for _ in range(c.trees))
        if c.conditions:
            self.conditions = Conditioning(c.width, c.conditions)
        axes = c.width // c.heads // 6
        frequencies = torch.zeros(3, c.width // c.heads // 2)
        for axis in range(3):
            frequencies[axis, axis * axes : (axis + 1) * axes] = c.rope_theta ** (-torch.arange(axes) / axes)
        self.register_buffer("frequencies", frequencies, persistent=False)
        spread = 0.02 * (768 / c.width) ** 0.5  # 0.02 at the paper's width
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=spread)
        for layer in self.layers:
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.down.weight)
        if c.conditions:
            self.conditions.reset()

    def matrices(self) -> dict[str, int]:
        """The parameters that are hidden matrices, and of how many each consists, for `training.Trainer`."""
        pieces = {"qkv": 3, "out": 1, "up": 2, "down": 1}
        return {f"layers.{i}.{name}.weight": n for i in range(len(self.layers)) for name, n in pieces.items()}

    def embed(
        self, tokens: Tensor, levels: Tensor, trees: Tensor | None, counts: Tensor | None, remaining: Tensor | None
    ) -> Tensor:
        """(..., width) of tokens and levels (...,), and of trees, counts and what remains if the model has them."""
        x = self.tokens(tokens) + self.levels(levels + 1)
        if self.config.trees > 1 and trees is not None:
            x = x + self.trees(trees)
        if self.config.max_num_atom and counts is not None and remaining is not None:
            x = x + self.counts(counts + 1) + self.remaining(torch.log1p(remaining.to(x.dtype)))
        return x

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., D / 2) of positions (..., 3): a third of the frequencies for each axis."""
        with torch.autocast(positions.device.type, enabled=False):
            angles = positions.float() @ self.frequencies
        return angles.cos(), angles.sin()

    def trunk(self, x: Tensor, positions: Tensor, attend: Attend, scale: Tensor | None = None) -> Tensor:
        """Embeddings (..., width) at positions (..., 3) through all layers and the last norm, times 1 + `scale`."""
        rope = self.rope(positions)
        x = self.dropout(x)
        for turn in range(self.config.recycle):
            for i, layer in enumerate(self.layers):
                x = layer(x, rope, attend, turn * len(self.layers) + i)
        x = self.norm(x)
        return x if scale is None else x * (1 + scale)

    def hidden(self, batch: Batch, max_seqlen: int) -> Tensor:
        """(S, width) of every row of a batch."""
        dropout = self.config.dropout if self.training else 0.0

        def attend(q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
            return causal_attention(q, k, v, batch.cu_seqlens, max_seqlen, dropout)

        x = self.embed(batch.tokens, batch.levels, batch.trees, batch.counts, batch.remaining)
        if not self.config.conditions:
            return self.trunk(x, batch.positions, attend)
        row = torch.arange(len(x), dtype=torch.int32, device=x.device)
        sequence = torch.bucketize(row, batch.cu_seqlens[1:], right=True)
        leading, scales = self.conditions(batch.told)
        most = leading.shape[1]
        place = (row - batch.cu_seqlens[sequence]).clamp(max=most)  # behind the leading tokens, zeros are added
        padded = F.pad(leading, (0, 0, 0, 1)).flatten(0, 1)
        x = x + padded.index_select(0, sequence * (most + 1) + place)
        return self.trunk(x, batch.positions, attend, scales.index_select(0, sequence))

    def forward(self, batch: Batch, max_seqlen: int) -> dict[str, Tensor]:
        """Cross-entropies (M,) in nats of the [MASK] rows: "tree", "kind", "x", "y", "z" and, with counts, "count".

        Zero where a row has no such target.
        """
        return self.nats(self.hidden(batch, max_seqlen), batch)

    def nats(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, given what `hidden` gave."""
        rows = hidden[batch.rows]
        found: dict[str, Tensor] = {}
        for which, heads in enumerate(self.heads):
            mine = batch.trees[batch.rows] == which if self.config.trees > 1 else None
            for name, value in self._losses(heads, rows, batch, mine).items():
                found[name] = found[name] + value if name in found else value
        return found

    def _losses(self, heads: nn.Module, rows: Tensor, batch: Batch, mine: Tensor | None) -> dict[str, Tensor]:
        def targets(x: Tensor) -> Tensor:
            return x if mine is None else torch.where(mine, x, IGNORED)

        def nats(logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="none")

        tree, kind = targets(batch.tree), targets(batch.kind)
        parts = [kind, *(targets(batch.bins[:, axis]) for axis in range(3))]
        atom = heads.atom(rows, lambda part, _: parts[part].clamp(min=0))
        found = {"tree": nats(heads.tree(rows), tree)}
        found |= {name: nats(logits, part) for name, logits, part in zip(("kind", *"xyz"), atom, parts, strict=True)}
        if self.config.max_num_atom:
            logits = heads.count(rows + heads.chosen(tree.clamp(min=0)))
            found["count"] = nats(logits, torch.where(tree >= 0, batch.count, IGNORED))
        return found


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the loss's parts (section 3.3); QM9 and drugs as given, MP-20 atom 0.1 and count 1."""

    tree: float = 1.0
    kind: float = 1.0
    xyz: float = 0.1
    count: float = 1.0


def loss(nats: dict[str, Tensor], batch: Batch, weights: Weights) -> Tensor:
    """The weighted sum of all cross-entropies, divided by the number of predicted tokens."""
    predicted = ((batch.tree >= 0) | (batch.kind >= 0)).sum().clamp(min=1)
    w = {"tree": weights.tree, "kind": weights.kind, "count": weights.count} | dict.fromkeys("xyz", weights.xyz)
    return torch.stack([w[name] * value.sum() for name, value in nats.items()]).sum() / predicted


class PropertyHead(nn.Module):
    """Regression on a model's rows: of molecules on their [CLS] (`level` -1), or of atoms on their own copies (0).

    The paper adds its loss to the generation's with weights 50 and 5.
    """

    def __init__(self, config: Config, properties: int, level: int) -> None:
        super().__init__()
        if level not in (-1, 0):
            raise ValueError(f"PropertyHead: argument 'level' must be -1 (molecules) or 0 (atoms), got {level}")
        self.level, self.mlp = level, head(config.width, properties, config.dropout)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(molecules or atoms, properties), in the order of the batch, from `Uni3DAR.hidden`."""
        own = batch.tokens == CLS if self.level < 0 else (batch.levels == 0) & (batch.tokens < CLS)
        return self.mlp(hidden[own])
