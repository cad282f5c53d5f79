# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Sampling of crystals from Uni-3DAR (arXiv 2503.16278, section 3.5): the corners' tree, then the atoms'."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..crystal_tokens import (
    CNT,
    COMPONENTS,
    MOST_ATOMS,
    PXRD,
    PXRD_POINTS,
    PXRD_TOKENS,
    PXRD_UNIT,
    VOCABULARY,
    CrystalTokenizer,
    pxrd_profile,
    told_rows,
)
from ..crystals import Crystals, Patterns
from ..octree import CLS, LATTICE, MASK, NULL, TREE, OctreeTokenizer
from .model import TREE_CLASSES, Config, Uni3DAR
from .sampler import Sampler, Settings, rows_at

CORNERS, ELEMENTS = 8, 118
_ATOMS, _LATTICE, _CONDITIONS = 0, 1, 2


def crystal_config(*, merge_level: int = 8, **shape: Any) -> Config:
    """The `Config` of a model of crystals: two trees, counts, and types that include the lattice's corners.

    `composition=True` and `pxrd=True` are models that are told a composition or a powder pattern.
    """
    return Config(
        merge_level=merge_level, vocabulary=VOCABULARY, atom_types=CLS, max_num_atom=MOST_ATOMS, trees=2, **shape
    )


@dataclasses.dataclass(frozen=True)
class CrystalSamples:
    """Finished crystals, in the order in which they were begun.

    crystals; rows (B,) int64: which of the begun crystals they are; scores (B,) float32: the perplexity
    exp(-mean log p) of their atoms' types at temperature 1; discarded: how many were begun in vain: unfinished within
    `max_tokens`, of another composition or number of atoms than was asked for, or with corners of no cell.
    """

    crystals: Crystals
    rows: np.ndarray
    scores: np.ndarray
    discarded: int

    def best(self, keep: float) -> Crystals:
        """The share `keep` with the lowest perplexity of types."""
        count = max(round(keep * len(self.rows)), min(len(self.rows), 1))
        return self.crystals.select(np.sort(np.argsort(self.scores, kind="stable")[:count]))


class CrystalSampler(Sampler):
    """Draws crystals from a model made with `crystal_config`.

    A sequence begins with [COMPONENTS] and [CNT_n], before them [PXRD_0..3] if the model knows patterns; the tree of
    eight corners and that of n atoms follow, each closed by [CLS]. A node's count of atoms is drawn after its children,
    and both so that the counts of a level can still add up to the tree's. Otherwise as `Sampler`.
    """

    _entry = 5  # level, x, y, z, tree

    def __init__(
        self,
        model: Uni3DAR,
        settings: Settings | None = None,
        *,
        count: float = 1.0,
        batch: int = 500,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
    ) -> None:
        """count: the temperature of counts."""
        self._prefix = 2 + PXRD_TOKENS * model.config.pxrd
        super().__init__(model, settings, batch=batch, dtype=dtype, graphs=graphs)
        self._count = torch.tensor(count, dtype=torch.float32, device=self.device)
        self._state |= {
            "total": self._zeros(batch), "tree": self._zeros(batch), "drawn": self._zeros(batch),
            "level": self._zeros(batch, 2), "before": self._zeros(batch, 2),
        }  # fmt: skip
        if model.config.conditions:
            self._state["scale"] = self._zeros(batch, model.config.width, dtype=torch.float32)
        self._sizes = self._zeros(0)
        self._told = self._zeros(0, 0, dtype=torch.float32)
        self._leading = self._told
        masks = torch.arange(1, TREE_CLASSES + 1, device=self.device)
        self._children = (masks[:, None] >> torch.arange(8, device=self.device) & 1).sum(1)
        self._counts = torch.arange(model.config.max_num_atom + 1, device=self.device)
        kinds = torch.arange(model.config.atom_types, device=self.device)
        self._kinds = torch.stack([kinds >= ELEMENTS, kinds != LATTICE])

    @staticmethod
    def _check(config: Config) -> None:
        if not config.max_num_atom or config.trees != 2 or config.atom_types != CLS or config.vocabulary != VOCABULARY:
            raise ValueError("CrystalSampler: argument 'model' must be a model of crystals (`crystal_config`)")

    def sample(  # type: ignore[override]
        self, sizes: Any, seed: int = 0, composition: Any = None, *, pattern: Patterns | None = None, hold: bool = True
    ) -> CrystalSamples:
        """Begins a crystal with each of these numbers of atoms (B,) and gives those that were finished.

        composition: atoms wanted of each element, (118,) integers by atomic number - 1, the same for all crystals, or
        (B, 118), whose sums must be the sizes. The model is told it if it knows compositions, and held to it unless
        `hold` is False: an exhausted element is not drawn any more. pattern: what a model that knows patterns is told,
        one or B, the peaks of copper's rays. What is not given, such a model is told to be left out. Raises ValueError
        for sizes outside 1..128, and for what the model cannot be told.
        """
        sizes = np.asarray(sizes, np.int64)
        if sizes.ndim != 1 or (len(sizes) and not (sizes.min() >= 1 and sizes.max() <= MOST_ATOMS)):
            raise ValueError(f"CrystalSampler: argument 'sizes' must be (B,) numbers of 1 to {MOST_ATOMS} atoms")
        wanted = None
        if composition is not None:
            given = np.asarray(composition, np.int64)
            fits = given.shape in ((ELEMENTS,), (len(sizes), ELEMENTS))
            if not fits or (given < 0).any() or (sizes != given.sum(-1)).any():
                raise ValueError(
                    f"CrystalSampler: argument 'composition' must be ({ELEMENTS},) or ({len(sizes)}, {ELEMENTS}) "
                    "counts of 0 or more that add up to the sizes"
                )
            wanted = np.zeros((len(sizes), self.model.config.atom_types), np.int64)
            wanted[:, :ELEMENTS] = given
            if not (hold or self.model.config.composition):
                raise ValueError("CrystalSampler: argument 'hold' must be True for a model that knows no compositions")
        self._told = torch.from_numpy(self._conditions(len(sizes), wanted, pattern, seed)).to(self.device)
        self._sizes = torch.from_numpy(sizes).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        held = torch.from_numpy(wanted).to(self.device) if wanted is not None and hold else None
        parts = []
        for begin in range(0, len(sizes), self.batch):
            size = min(self.batch, len(sizes) - begin)
            few = None if held is None else held[begin : begin + size]
            parts.append(self._batch(size, begin, generator, few))
        return self._crystals(parts, sizes)

    def _conditions(self, count: int, composition: Any, pattern: Patterns | None, seed: int) -> Any:
        """(count, V) that the model is told, see `Conditions.told`."""
        c = self.model.config
        if pattern is not None and not c.pxrd:
            raise ValueError("CrystalSampler: argument 'pattern' must be None for a model that knows no patterns")
        if pattern is not None and len(pattern) not in (1, count):
            raise ValueError(f"CrystalSampler: argument 'pattern' must be 1 or {count} patterns, got {len(pattern)}")
        parts = [np.empty((count, 0), np.float32)]
        if c.pxrd:
            points = PXRD_TOKENS * PXRD_POINTS
            values = np.zeros((1, points)) if pattern is None else pxrd_profile(pattern, seed) / PXRD_UNIT
            parts.append(told_rows(np.broadcast_to(values, (count, points)), np.full(count, pattern is not None)))
        if c.composition:
            values = np.zeros((count, MOST_ATOMS))
            if composition is not None:
                values[:, :ELEMENTS] = np.sqrt(composition[:, :ELEMENTS])
            parts.append(told_rows(values, np.full(count, composition is not None)))
        return np.hstack(parts)

    def _start(self, s: dict[str, Tensor]) -> None:
        s["queue"][:, 0, 0] = self.model.config.merge_level
        s["queue"][:, 0, 4] = _LATTICE
        s["tail"].fill_(1)
        s["total"].copy_(self._sizes[s["row"]])
        s["level"][:, 0] = CORNERS
        s["level"][:, 1] = 1
        if self.model.config.conditions:
            self._leading, scale = self.model.conditions(self._told[s["row"]])
            s["scale"].copy_(scale)

    def _one(self, s: dict[str, Tensor], length: int, first: bool, constrained: bool) -> None:
        c = self.model.config
        entry = rows_at(s["queue"], s["head"].clamp(max=s["queue"].shape[1] - 1))
        level, tree = entry[:, 0], entry[:, 4]
        span = torch.pow(2.0, torch.where(level < 0, c.merge_level, level).float())[:, None]
        corner = entry[:, 1:4].float() * c.bins
        mask_at = (entry[:, 1:4].float() + 0.5) * span * c.bins
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            x = self._hidden(*self._embedded(s, first, level, tree, mask_at), length, s.get("scale"))
            noise = s["noise"].split(self._noise, 1)
            lattice = tree == _LATTICE
            tree_logits = torch.where(lattice[:, None], *(self.model.heads[i].tree(x) for i in (_LATTICE, _ATOMS)))
            atoms, tokens = s["level"].unbind(1)
            most = atoms - tokens + 1  # the others of this level have an atom each
            last = (tokens == 1)[:, None]
            impossible = self._children > most[:, None]
            impossible |= (level == 1)[:, None] & last & (self._children != atoms[:, None])
            chosen_tree = self._draw(
                tree_logits.float().masked_fill(impossible, -torch.inf), self._tree_temperatures(level), noise[0]
            )
            children = self._children[chosen_tree]
            count_logits = torch.where(
                lattice[:, None],
                *(self.model.heads[i].count(x + self.model.heads[i].chosen(chosen_tree)) for i in (_LATTICE, _ATOMS)),
            )
            low = torch.where(last[:, 0], atoms, children)[:, None]
            high = torch.where(level == 1, children, most)[:, None]
            impossible = (self._counts < torch.minimum(low, high)) | (self._counts > high)
            count = self._draw(count_logits.float().masked_fill(impossible, -torch.inf), self._count, noise[5])
            blocked = self._kinds[lattice.long()]
            if constrained:
                blocked = blocked | (~lattice[:, None] & (s["left"] <= 0))
            found = [self._draw_atom(self.model.heads[i].atom, x, noise[1:5], blocked) for i in (_LATTICE, _ATOMS)]
            atom_logits, chosen = (
                [
                    torch.where(lattice.reshape(-1, *[1] * (one.dim() - 1)), one, other)
                    for one, other in zip(*both, strict=True)
                ]
                for both in zip(*found, strict=True)
            )
        if self.record is not None:
            drawn = {"tree": tree_logits, "count": count_logits, "atom": torch.cat(atom_logits, 1), "drawn": count}
            self.record.append((s["row"].clone(), {k: v.float() for k, v in drawn.items()}))
        live, is_atom, closing = ~s["done"], level == 0, level < 0
        self._score(s, live & is_atom & ~lattice, atom_logits, chosen)
        kind = chosen[0]
        if constrained:
            none = blocked.all(1)
            s["wrong"].logical_or_(live & is_atom & none)
            taken = F.one_hot(kind, c.atom_types) * (live & is_atom & ~lattice & ~none)[:, None]
            s["left"].sub_(taken)
            kind = torch.where(none, NULL, kind)
        token = torch.where(closing, CLS, torch.where(is_atom, kind, chosen_tree + TREE + 1))
        count = torch.where(closing, 0, torch.where(is_atom, 1, count))
        bins = torch.where(is_atom[:, None], torch.stack(chosen[1:], 1), c.bins // 2)
        self._append(s, live, token, bins, entry, chosen_tree)
        s["last"].copy_(torch.stack([token, level], 1))
        s["at"].copy_(torch.where(is_atom[:, None], corner + bins, mask_at))
        s["before"].copy_(s["level"])
        s["tree"].copy_(tree)
        s["drawn"].copy_(count)
        self._next_level(s, live, lattice, closing, count)

    def _embedded(
        self, s: dict[str, Tensor], first: bool, level: Tensor, tree: Tensor, mask_at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings and positions of [last token, next MASK]; at first of the conditions and the first MASK."""
        none = torch.zeros_like(level)
        middle = torch.full_like(mask_at, 2.0 ** (self.model.config.merge_level - 1) * self.model.config.bins)
        empty = torch.zeros_like(s["level"])
        if first:
            n = self._prefix
            kind = [*(none + PXRD + i for i in range(n - 2)), none + COMPONENTS, CNT + s["total"]]
            counts = [none - 1] * (n - 1) + [s["total"]]
            before = [none - 1] * n, [none + _CONDITIONS] * n, counts, [empty] * n, [middle] * n
        else:
            kind = [s["last"][:, 0]]
            before = [s["last"][:, 1]], [s["tree"]], [s["drawn"]], [s["before"]], [s["at"]]
        own = (level, tree, none - 1, s["level"], mask_at)
        levels, trees, numbers, remaining, positions = (
            torch.stack([*old, new], 1) for old, new in zip(before, own, strict=True)
        )
        tokens = torch.stack([*kind, none + MASK], 1)
        x = self.model.embed(tokens, levels, trees, numbers, remaining)
        if first and self.model.config.conditions:
            x = x + F.pad(self._leading, (0, 0, 0, x.shape[1] - self._leading.shape[1]))
        return x, positions

    def _next_level(self, s: dict[str, Tensor], live: Tensor, lattice: Tensor, closing: Tensor, count: Tensor) -> None:
        """What remains of the level, or of the next one; behind the corners, [CLS] and the root of the atoms' tree."""
        left = s["level"] - torch.stack([count, torch.ones_like(count)], 1)
        total = torch.where(lattice, CORNERS, s["total"])
        waiting = s["tail"] - s["head"]
        ended = (left[:, 1] <= 0) & ~closing
        exhausted = live & ended & lattice & (waiting <= 0)
        left = torch.where((ended & (waiting > 0))[:, None], torch.stack([total, waiting], 1), left)
        left = torch.where(exhausted[:, None], 0, left)
        left = torch.where(closing[:, None], torch.stack([s["total"], torch.ones_like(count)], 1), left)
        s["level"].copy_(torch.where(live[:, None], left, s["level"]))
        room = s["queue"].shape[1]
        root = torch.zeros_like(s["queue"][:, :2])
        root[:, 0, 0], root[:, 1, 0] = -1, self.model.config.merge_level
        root[:, 0, 4], root[:, 1, 4] = _LATTICE, _ATOMS
        place = s["tail"][:, None] + torch.arange(2, device=self.device)
        place = torch.where(exhausted[:, None] & (place < room - 1), place, room - 1)
        s["queue"].scatter_(1, place[..., None].expand(-1, -1, self._entry), root)
        s["tail"].add_(2 * exhausted.long())
        s["done"].logical_and_(~exhausted)

    def _crystals(self, parts: list[dict[str, np.ndarray]], sizes: np.ndarray) -> CrystalSamples:
        c = self.model.config
        tokenizer = CrystalTokenizer(OctreeTokenizer(c.merge_level, c.grid_len, c.resolution))
        if not parts:
            nothing = Crystals.from_list([], [], [])
            return CrystalSamples(nothing, np.empty(0, np.int64), np.empty(0, np.float32), 0)
        s = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        columns = np.arange(s["tokens"].shape[1])
        used = columns < s["tail"][:, None]
        keep = s["done"] & (s["tail"] <= len(columns)) & ~s["wrong"] & (s["left"] == 0).all(1)
        keep &= ((s["tokens"] == CLS) & used).any(1) & (s["atoms"] == sizes[s["row"]])
        s, used = {k: v[keep] for k, v in s.items()}, used[keep]
        corners = (s["tokens"] == CLS).argmax(1) + 1
        lengths = np.column_stack([corners, s["tail"] + 1 - corners])
        used = np.pad(used, ((0, 0), (0, 1)))
        closing = np.arange(len(used)), s["tail"]
        tokens, bins = np.pad(s["tokens"], ((0, 0), (0, 1))), np.pad(s["bins"], ((0, 0), (0, 1), (0, 0)))
        used[closing], tokens[closing], bins[closing] = True, CLS, c.bins // 2
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        crystals, kept = tokenizer.detokenize(tokens[used].astype(np.int32), bins[used].astype(np.int32), offsets)
        scores = np.exp(-s["log_p"][kept, 0] / np.maximum(s["atoms"][kept], 1))
        return CrystalSamples(crystals, s["row"][kept], scores.astype(np.float32), len(sizes) - len(kept))
