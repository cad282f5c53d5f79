# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Sampling of Uni-3DAR (arXiv 2503.16278, section 3.4): pairs of tokens through a KV arena, queues on the device."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..octree import CLS, MASK, NULL, TREE, OctreeTokenizer
from ..structures import Structures
from .model import TREE_CLASSES, AtomHead, Config, Uni3DAR

_BUCKET = 64
_COLDEST = 1e-7
"""Instead of temperature 0: what is likelier by a millionth is taken, whatever the noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How tokens are drawn; the defaults are the paper's for QM9 (drugs: 0.65, 0.3, 0.3).

    `tree`, `atom` and `xyz` are temperatures, 0 takes the likeliest; `tree` may be one for each level, the finest
    first, of which the last holds for all coarser ones. `top_p` keeps the likeliest that add up to it, `min_p` what at
    temperature 1 has at least this share of the likeliest one's probability. `max_tokens` ends a molecule unfinished;
    `compact` gathers the unfinished ones once their share falls to it.
    """

    tree: float | tuple[float, ...] = 0.9
    atom: float = 0.3
    xyz: float = 0.3
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 160
    compact: float = 0.5

    def __post_init__(self) -> None:
        for name in ("tree", "atom", "xyz"):
            value = getattr(self, name)
            if not np.size(value) or not all(0 <= one < math.inf for one in np.ravel(value)):
                raise ValueError(f"Settings: argument '{name}' must be 0 or above, got {value}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Settings: argument 'top_p' must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"Settings: argument 'min_p' must be in [0, 1], got {self.min_p}")
        if self.max_tokens < 2:
            raise ValueError(f"Settings: argument 'max_tokens' must be 2 or more, got {self.max_tokens}")
        if not 0 <= self.compact <= 1:
            raise ValueError(f"Settings: argument 'compact' must be in [0, 1], got {self.compact}")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Finished molecules, in the order in which they were begun.

    structures; rows (B,) int64: which of the begun molecules they are; scores (B,) float32: the perplexity
    exp(-mean log p) of their atoms' types at temperature 1, and xyz_scores of types and coordinates together (lower is
    better); tokens (T,), bins (T, 3), offsets (B + 1,): their streams; discarded: how many were begun in vain,
    unfinished within `max_tokens` or with another composition than was asked for.
    """

    structures: Structures
    rows: np.ndarray
    scores: np.ndarray
    xyz_scores: np.ndarray
    tokens: np.ndarray
    bins: np.ndarray
    offsets: np.ndarray
    discarded: int

    def best(self, keep: float) -> Structures:
        """The share `keep` with the lowest perplexity of types."""
        count = max(round(keep * len(self.rows)), min(len(self.rows), 1))
        return self.structures.select(np.sort(np.argsort(self.scores, kind="stable")[:count]))


class Sampler:
    """Draws molecules from a model, `batch` at a time; on CUDA each step is a replayed graph.

    All molecules of a batch advance together, so keys and values of step t lie at one place of an arena
    [layers, molecules, heads, 2 max_tokens, head], and a step feeds the pair [last token, next MASK]. A queue of
    (level, x, y, z) for each molecule is filled on the device when a tree token is drawn. Deterministic for a seed,
    a batch size and a device.
    """

    _prefix = 0
    """Tokens before the first pair."""
    _entry = 4
    """Numbers of an entry of the queue."""

    def __init__(
        self,
        model: Uni3DAR,
        settings: Settings | None = None,
        *,
        batch: int = 500,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"Sampler: argument 'batch' must be 1 or more, got {batch}")
        self._check(model.config)
        self.model, self.settings, self.batch = model.eval(), settings or Settings(), batch
        self.device = next(model.parameters()).device
        cuda = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
        self.graphs = cuda if graphs is None else graphs
        self._captured: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.graphs else None
        c, room = model.config, 2 * self.settings.max_tokens + self._prefix
        depth = c.layers * c.recycle
        shape = (depth, batch, c.heads, room, c.width // c.heads)
        self._keys, self._values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        noise = [TREE_CLASSES, c.atom_types, *[c.bins] * 3, *[c.max_num_atom + 1] * (c.max_num_atom > 0)]
        self._state = {
            "queue": self._zeros(batch, self.settings.max_tokens + 8, self._entry),
            "head": self._zeros(batch), "tail": self._zeros(batch), "done": self._zeros(batch, dtype=torch.bool),
            "last": self._zeros(batch, 2), "at": self._zeros(batch, 3, dtype=torch.float32),
            "tokens": self._zeros(batch, self.settings.max_tokens), "row": self._zeros(batch),
            "bins": self._zeros(batch, self.settings.max_tokens, 3),
            "log_p": self._zeros(batch, 2, dtype=torch.float32), "atoms": self._zeros(batch),
            "left": self._zeros(batch, c.atom_types), "wrong": self._zeros(batch, dtype=torch.bool),
            "noise": self._zeros(batch, sum(noise), dtype=torch.float32),
        }  # fmt: skip
        self._noise = noise
        self._temperatures = self._zeros(c.merge_level + 3, dtype=torch.float32)
        self._below = self._zeros(dtype=torch.float32)
        self._set_temperatures()
        self._step = self._zeros(1)
        self.record: list[tuple[Tensor, dict[str, Tensor]]] | None = None

    @staticmethod
    def _check(config: Config) -> None:
        if config.max_num_atom or config.trees > 1:
            raise ValueError("Sampler: argument 'model' must be a model of molecules, got one with counts or two trees")

    def retune(self, *, tree: float | tuple[float, ...], atom: float, xyz: float, min_p: float = 0.0) -> None:
        """Draws at other temperatures from now on, in the graphs that were captured, too."""
        self.settings = dataclasses.replace(self.settings, tree=tree, atom=atom, xyz=xyz, min_p=min_p)
        self._set_temperatures()

    def _set_temperatures(self) -> None:
        """Of types, coordinates and the nodes of levels 0 (never drawn) and above, in this order; and how far a logit
        may lie below the highest."""
        s, levels = self.settings, np.arange(self.model.config.merge_level + 1)
        tree = np.ravel(s.tree)
        values = [s.atom, s.xyz, *tree[np.clip(levels - 1, 0, len(tree) - 1)]]
        self._temperatures.copy_(torch.tensor(values, dtype=torch.float32))
        self._below.fill_(math.log(s.min_p) if s.min_p else -math.inf)

    def _tree_temperatures(self, level: Tensor) -> Tensor:
        """(B, 1) of the nodes of levels (B,)."""
        return self._temperatures[2 + level.clamp(min=0), None]

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def sample(self, count: int, seed: int = 0, composition: Any = None) -> Samples:
        """Begins `count` molecules and gives those that were finished.

        composition: atoms wanted of each element, (atom_types,) integers by atomic number - 1, the same for all
        molecules; an exhausted type is not drawn any more, and what does not come out exactly so is discarded.
        """
        if count < 0:
            raise ValueError(f"Sampler: argument 'count' must be 0 or more, got {count}")
        wanted = None
        if composition is not None:
            wanted = torch.as_tensor(np.asarray(composition, np.int64), device=self.device)
            if wanted.shape != (self.model.config.atom_types,) or bool((wanted < 0).any()):
                raise ValueError(
                    f"Sampler: argument 'composition' must be ({self.model.config.atom_types},) counts of 0 or more"
                )
        generator = torch.Generator(self.device).manual_seed(seed)
        parts = [
            self._batch(min(self.batch, count - begin), begin, generator, wanted)
            for begin in range(0, count, self.batch)
        ]
        return self._collect(parts, count)

    @torch.no_grad()
    def _batch(self, size: int, first: int, generator: torch.Generator, wanted: Tensor | None) -> dict[str, np.ndarray]:
        s = {k: v[:size] for k, v in self._state.items()}
        for value in s.values():
            value.zero_()
        s["row"].copy_(torch.arange(first, first + size, device=self.device))
        self._start(s)
        if wanted is not None:
            s["left"].copy_(wanted.expand(size, -1))
        finished: list[dict[str, np.ndarray]] = []
        unit = max(self.batch // 16, 1)  # graphs of few sizes are captured
        for step in range(self.settings.max_tokens):
            s["noise"].exponential_(generator=generator)
            self._step.fill_(step)
            self._advance(s, step, wanted is not None)
            if step % 8 == 7 or step == self.settings.max_tokens - 1:
                going = ~s["done"]
                left = int(going.sum())
                if left == 0:
                    break
                room = min(-(-left // unit) * unit, size)
                if room <= self.settings.compact * len(going) and step < self.settings.max_tokens - 1:
                    finished.append(self._out(s, s["done"]))
                    s = self._gather(going.nonzero()[:, 0], room)
        finished.append(self._out(s, torch.ones_like(s["done"])))
        merged = {k: np.concatenate([f[k] for f in finished]) for k in finished[0]}
        order = np.argsort(merged["row"])[-size:]
        return {k: v[order] for k, v in merged.items()}

    def _start(self, s: dict[str, Tensor]) -> None:
        """Puts the root into the queues."""
        s["queue"][:, 0, 0] = self.model.config.merge_level
        s["tail"].fill_(1)

    def _gather(self, rows: Tensor, n: int) -> dict[str, Tensor]:
        """Moves molecules to the front of the state and of the arena; the rest up to `n` are finished copies."""
        alive, used = len(rows), self._prefix + 2 * int(self._step) + 1
        rows = torch.cat([rows, rows[:1].expand(n - alive)])
        for arena in (self._keys, self._values):
            for layer in arena:
                layer[:n, :, :used] = layer[rows, :, :used]
        for value in self._state.values():
            value[:n] = value[rows]
        self._state["done"][alive:n] = True
        self._state["row"][alive:n] = -1
        return {k: v[:n] for k, v in self._state.items()}

    @staticmethod
    def _out(s: dict[str, Tensor], rows: Tensor) -> dict[str, np.ndarray]:
        names = ("row", "tokens", "bins", "tail", "log_p", "atoms", "done", "wrong", "left")
        return {k: s[k][rows].cpu().numpy() for k in names}

    def _advance(self, s: dict[str, Tensor], step: int, constrained: bool) -> None:
        """One step of all molecules of `s`, captured once for each size and length and replayed."""
        length = min(-(-(self._prefix + 2 * step + 1) // _BUCKET) * _BUCKET, self._keys.shape[3])
        if step == 0 or not self.graphs or self.record is not None:
            self._one(s, length, step == 0, constrained)
            return
        key = (len(s["done"]), length, constrained)
        graph = self._captured.get(key)
        if graph is None:
            before = {k: v.clone() for k, v in s.items()}
            warm = torch.cuda.Stream()
            warm.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm):
                self._one(s, length, False, constrained)
            torch.cuda.current_stream().wait_stream(warm)
            for name, value in before.items():
                s[name].copy_(value)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._one(s, length, False, constrained)
            self._captured[key] = graph
        graph.replay()

    def _one(self, s: dict[str, Tensor], length: int, first: bool, constrained: bool) -> None:
        c = self.model.config
        entry = rows_at(s["queue"], s["head"].clamp(max=s["queue"].shape[1] - 1))
        level = entry[:, 0]
        span = torch.pow(2.0, level.float())[:, None]
        corner = entry[:, 1:].float() * c.bins
        mask_at = (entry[:, 1:].float() + 0.5) * span * c.bins
        tokens = torch.stack([s["last"][:, 0], torch.full_like(level, MASK)], 1)
        levels = torch.stack([s["last"][:, 1], level], 1)
        positions = torch.stack([s["at"], mask_at], 1)
        if first:
            tokens, levels, positions = tokens[:, 1:], levels[:, 1:], positions[:, 1:]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            x = self._hidden(self.model.embed(tokens, levels, None, None, None), positions, length)
            heads, noise = self.model.heads[0], s["noise"].split(self._noise, 1)
            tree_logits = heads.tree(x)
            chosen_tree = self._draw(tree_logits, self._tree_temperatures(level), noise[0])
            blocked = s["left"] <= 0 if constrained else None
            atom_logits, chosen = self._draw_atom(heads.atom, x, noise[1:5], blocked)
        if self.record is not None:
            self.record.append(
                (s["row"].clone(), {"tree": tree_logits.float(), "atom": torch.cat(atom_logits, 1).float()})
            )
        live = ~s["done"]
        is_atom = level == 0
        self._score(s, live & is_atom, atom_logits, chosen)
        kind = chosen[0]
        if blocked is not None:
            none = blocked.all(1)
            kind = torch.where(none, NULL, kind)
            s["wrong"].logical_or_(live & is_atom & none)
            taken = F.one_hot(chosen[0], c.atom_types) * (live & is_atom & ~none)[:, None]
            s["left"].sub_(taken)
        token = torch.where(is_atom, kind, chosen_tree + TREE + 1)
        bins = torch.where(is_atom[:, None], torch.stack(chosen[1:], 1), c.bins // 2)
        self._append(s, live, token, bins, entry, chosen_tree)
        s["last"].copy_(torch.stack([token, level], 1))
        s["at"].copy_(torch.where(is_atom[:, None], corner + bins, mask_at))

    def _hidden(self, x: Tensor, positions: Tensor, length: int, scale: Tensor | None = None) -> Tensor:
        """(B, width) of the last of the new rows x (B, P, width), which take their place in the arena; `scale`
        (B, width) as in `Uni3DAR.trunk`."""
        size, rows = x.shape[:2]
        place = self._prefix + 2 * self._step + torch.arange(1 - rows, 1, device=self.device)
        columns = torch.arange(length, device=self.device)
        allowed = columns[None] <= place[:, None]

        def attend(q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
            keys, values = self._keys[index, :size], self._values[index, :size]
            keys.index_copy_(2, place, k.transpose(1, 2).to(self.dtype))
            values.index_copy_(2, place, v.transpose(1, 2).to(self.dtype))
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2).to(self.dtype), keys[:, :, :length], values[:, :, :length], attn_mask=allowed
            )
            return out.transpose(1, 2)

        return self.model.trunk(x, positions, attend, None if scale is None else scale[:, None])[:, -1]

    def _draw_atom(
        self, head: AtomHead, x: Tensor, noise: tuple[Tensor, ...], blocked: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and choices of an atom's type, x, y and z; `blocked` types are not drawn."""
        chosen: list[Tensor] = []

        def choose(part: int, logits: Tensor) -> Tensor:
            if part == 0 and blocked is not None:
                logits = logits.masked_fill(blocked, -torch.inf)
            chosen.append(self._draw(logits, self._temperatures[min(part, 1)], noise[part]))
            return chosen[-1]

        logits = head(x, choose)
        choose(3, logits[3])
        return logits, chosen

    @staticmethod
    def _score(s: dict[str, Tensor], counted: Tensor, logits: list[Tensor], chosen: list[Tensor]) -> None:
        """Adds the log-probabilities of what was drawn to the molecules' own."""
        log_p = [
            F.log_softmax(one.float(), -1).gather(1, pick[:, None])[:, 0]
            for one, pick in zip(logits, chosen, strict=True)
        ]
        both = torch.stack([log_p[0], log_p[1] + log_p[2] + log_p[3]], 1)
        s["log_p"].add_(torch.where(counted[:, None], both, 0))
        s["atoms"].add_(counted.long())

    def _append(
        self, s: dict[str, Tensor], live: Tensor, token: Tensor, bins: Tensor, entry: Tensor, tree: Tensor
    ) -> None:
        """Writes what was drawn, and puts a node's children behind the queue in Morton order."""
        at = s["head"].clamp(max=s["tokens"].shape[1] - 1)[:, None]
        s["tokens"].scatter_(1, at, torch.where(live, token, rows_at(s["tokens"], at[:, 0]))[:, None])
        kept = torch.where(live[:, None], bins, rows_at(s["bins"], at[:, 0]))
        s["bins"].scatter_(1, at[..., None].expand(-1, -1, 3), kept[:, None])
        child = torch.arange(8, device=self.device)
        present = ((((tree + 1)[:, None] >> child) & 1) > 0) & (live & (entry[:, 0] > 0))[:, None]
        bits = torch.stack([child & 1, child >> 1 & 1, child >> 2], -1)
        cells = 2 * entry[:, None, 1:4] + bits
        rest = entry[:, None, 4:].expand(-1, 8, -1)
        entries = torch.cat([(entry[:, :1] - 1)[:, None].expand(-1, 8, -1), cells, rest], -1)
        room = s["queue"].shape[1]
        place = s["tail"][:, None] + present.cumsum(1) - 1
        place = torch.where(present & (place < room - 1), place, room - 1)  # the last place is for what is not kept
        s["queue"].scatter_(1, place[..., None].expand(-1, -1, self._entry), entries)
        s["tail"].add_(present.sum(1))
        s["head"].add_(live.long())
        s["done"].logical_or_(s["head"] >= s["tail"])

    def _draw(self, logits: Tensor, temperature: Tensor, noise: Tensor) -> Tensor:
        """Indices (B,) drawn from softmax(logits / temperature), () or (B, 1), by exponential noise of rate 1."""
        logits = logits.float()
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + self._below, -torch.inf)
        logits = logits / temperature.clamp(min=_COLDEST)
        if self.settings.top_p < 1:
            ordered, index = logits.softmax(-1).sort(-1, descending=True)
            out = ordered.cumsum(-1) - ordered >= self.settings.top_p
            logits = logits.masked_fill(torch.zeros_like(out).scatter(1, index, out), -torch.inf)
        return (logits - noise.clamp(min=1e-20).log()).argmax(-1)

    def _collect(self, parts: list[dict[str, np.ndarray]], count: int) -> Samples:
        if not parts:
            empty = Structures(np.empty(0, np.int32), np.empty((0, 3)), np.zeros(1, np.int64))
            zero = np.empty(0, np.float32)
            tokens = np.empty(0, np.int32)
            return Samples(
                empty, np.empty(0, np.int64), zero, zero, tokens, np.empty((0, 3), np.int32), np.zeros(1, np.int64), 0
            )
        s = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        keep = s["done"] & (s["tail"] <= self.settings.max_tokens) & ~s["wrong"] & (s["left"] == 0).all(1)
        s = {k: v[keep] for k, v in s.items()}
        used = np.arange(s["tokens"].shape[1] + 1)[None] <= s["tail"][:, None]
        tokens = np.pad(s["tokens"], ((0, 0), (0, 1)))
        bins = np.pad(s["bins"], ((0, 0), (0, 1), (0, 0)))
        closing = np.arange(len(tokens)), s["tail"]
        tokens[closing], bins[closing] = CLS, self.model.config.bins // 2
        offsets = np.concatenate([[0], np.cumsum(s["tail"] + 1)])
        flat, flat_bins = tokens[used].astype(np.int32), bins[used].astype(np.int32)
        c = self.model.config
        tokenizer = OctreeTokenizer(c.merge_level, c.grid_len, c.resolution)
        structures = tokenizer.detokenize(flat, flat_bins, offsets)
        mean = s["log_p"] / np.maximum(s["atoms"], 1)[:, None]
        scores, both = np.exp(-mean[:, 0]), np.exp(-mean.sum(1) / 4)
        return Samples(structures, s["row"], scores, both, flat, flat_bins, offsets, count - len(s["row"]))


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]]."""
    shape = (len(index), 1, *x.shape[2:])
    return x.gather(1, index.reshape(-1, 1, *[1] * (x.dim() - 2)).expand(shape))[:, 0]
