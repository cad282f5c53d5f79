"""Molecules to training batches of Uni-3DAR: tokens, drawn anew in every epoch, packed to a fixed number of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..crystal_tokens import Conditions, CrystalTokenizer
from ..crystals import Crystals, Patterns
from ..octree import CLS, MASK, NULL, TREE, Augmentation, OctreeTokenizer, Packed, Tokens
from ..structures import Structures
from .model import IGNORED, Batch


def collate(
    packed: Packed,
    merge_level: int,
    resolution: float,
    rows: int = 0,
    sequences: int = 0,
    longest: int = 0,
    told: Any = None,
) -> Batch:
    """The batch of packed tokens (`OctreeTokenizer.pack`), filled up to `rows` rows and `sequences` sequences.

    told (B, V): what conditions the sequences are told, see `Conditions.told`.
    Filling rows are [NULL] in sequences of their own, of at most `longest` rows (0: as the longest given), and predict
    nothing. Raises ValueError if the tokens do not fit.
    """
    tokens, cu = np.asarray(packed.tokens, np.int64), np.asarray(packed.cu_seqlens, np.int64)
    used, longest = len(tokens), longest or int(np.diff(cu).max(initial=1))
    filling = max(rows - used, 0)
    ends = used + np.minimum(np.arange(longest, filling + longest, longest), filling)
    count = max(sequences, len(cu) - 1 + len(ends))
    if rows and (used > rows or (sequences and count > sequences)):
        raise ValueError(
            f"{used} rows in {len(cu) - 1} sequences do not fit into {rows} rows and {sequences} sequences"
        )
    if np.diff(cu).max(initial=1) > longest:
        raise ValueError(f"sequences must have at most {longest} rows, got {np.diff(cu).max()}")
    bounds = np.concatenate([cu, ends, np.full(count + 1 - len(cu) - len(ends), used + filling)])

    def filled(x: Any, value: float) -> np.ndarray:
        x = np.asarray(x)
        return np.concatenate([x, np.full((filling, *x.shape[1:]), value, x.dtype)])

    levels = np.asarray(packed.levels, np.int64)
    masks = np.flatnonzero(tokens == MASK)
    target = tokens[masks + 1]
    steps = np.rint(np.asarray(packed.positions, np.float64) * (2 / resolution)) / 2  # whole bins, or cells' middles
    missing = (used + filling) // 2 - len(masks) if rows else 0
    bins = np.asarray(packed.bins, np.int64)[masks + 1]
    atom = (target < CLS)[:, None]
    tree, kind = np.where(target >= TREE, target - TREE - 1, IGNORED), np.where(target < CLS, target, IGNORED)
    trees, counts, remaining = (np.asarray(x, np.int64) for x in (packed.trees, packed.counts, packed.remaining))

    told = np.empty((len(cu) - 1, 0), np.float32) if told is None else np.asarray(told, np.float32)

    def targets(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.full((missing, *x.shape[1:]), IGNORED, np.int64)])

    return Batch(
        *map(torch.from_numpy, (
            filled(tokens, NULL), filled(levels.clip(max=merge_level), -1),
            filled(steps.astype(np.float32), 0), bounds.astype(np.int32),
            np.concatenate([masks, np.zeros(missing, np.int64)]), targets(tree), targets(kind),
            targets(np.where(atom, bins, IGNORED)), filled(trees, 0), targets(counts[masks + 1]), filled(counts, -1),
            filled(remaining, 0), np.pad(told, ((0, count - len(told)), (0, 0))),
        ))
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Telling:
    """What a `Stream` tells of its crystals: compositions, and patterns (`pxrd_peaks` of all of them) if there are any,
    with normal noise, each condition of each visit left out with the probability `drop`."""

    composition: bool = False
    patterns: Patterns | None = None
    noise: float = 0.0
    drop: float = 0.0


@dataclasses.dataclass
class Stream:
    """An endless stream of batches of `rows` rows from a set of molecules, or of crystals with a `CrystalTokenizer`.

    In at most `sequences` sequences if given; crystals begin with [COMPONENTS] and [CNT_n], and with [PXRD_0..3] before
    them if `telling` has patterns.

    Every epoch has its own order, every visit its own augmentation; both follow from `seed`, `epoch` and `cursor`, so a
    stream made with the epoch and cursor of a batch goes on behind it.
    """

    structures: Structures | Crystals
    tokenizer: OctreeTokenizer | CrystalTokenizer
    rows: int
    augment: Augmentation | None = None
    seed: int = 0
    epoch: int = 0
    cursor: int = 0
    sequences: int = 0
    longest: int = 0
    telling: Telling = Telling()

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches, each with the state that makes the stream go on behind it."""
        for batch, _, _, behind in self.visits():
            yield batch, behind

    def visits(self) -> Iterator[tuple[Batch, np.ndarray, Tokens, dict[str, int]]]:
        """Batches with the rows of their structures, the tokens that were packed, and the state behind them."""
        order = self._order()
        octree = self.tokenizer.octree if isinstance(self.tokenizer, CrystalTokenizer) else self.tokenizer
        guess, fixed = max(self.rows // 128, 1), (self.rows, self.sequences, self.longest)
        while True:
            if self.cursor >= len(order):
                self.epoch, self.cursor = self.epoch + 1, 0
                order = self._order()
            chosen = order[self.cursor : self.cursor + guess]
            seeds = np.random.SeedSequence([self.seed, self.epoch, self.cursor]).generate_state(2) >> 1
            few = self.structures.select(chosen)
            conditions = self._conditions(few, chosen, int(seeds[1]))
            before = 0 if conditions is None else conditions.tokens.shape[1]
            tokens, ends = tokenized(self.tokenizer, few, self.augment, int(seeds[0]), before)
            fit = int(np.searchsorted(ends, self.rows, "right"))
            if self.sequences:
                fit = min(fit, self.sequences - 1)
            if fit < 1:
                raise ValueError(f"Stream: argument 'rows' must hold a structure of {ends[0]} rows, got {self.rows}")
            trees = 1 if conditions is None else 2
            tokens = first(tokens, trees * fit)
            packed = octree.pack(tokens, None if conditions is None else conditions.tokens[:fit], trees)
            self.cursor += fit
            told = None
            if conditions is not None:
                told = conditions.told(self.telling.composition, self.telling.patterns is not None)[:fit]
            batch = collate(packed, octree.merge_level, octree.resolution, *fixed, told)
            yield batch, chosen[:fit], tokens, {"epoch": self.epoch, "cursor": self.cursor}

    def _conditions(self, few: Structures | Crystals, chosen: np.ndarray, seed: int) -> Conditions | None:
        if not isinstance(self.tokenizer, CrystalTokenizer) or not isinstance(few, Crystals):
            return None
        how = self.telling
        patterns = False if how.patterns is None else how.patterns.select(chosen)
        return self.tokenizer.conditions(few, pxrd=patterns, noise=how.noise, drop=how.drop, seed=seed)

    def _order(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.structures))


def tokenized(
    tokenizer: OctreeTokenizer | CrystalTokenizer,
    structures: Structures | Crystals,
    augment: Augmentation | None = None,
    seed: int = 0,
    before: int = 0,
) -> tuple[Tokens, np.ndarray]:
    """Tokens, and where the packed rows of each structure end (B,), `before` tokens for conditions among them."""
    leading = before * np.arange(1, len(structures) + 1)
    if isinstance(tokenizer, CrystalTokenizer) and isinstance(structures, Crystals):
        tokens = tokenizer.tokenize(structures, augment=augment, seed=seed)
        return tokens, 2 * np.asarray(tokens.offsets)[2::2] + leading
    if isinstance(tokenizer, OctreeTokenizer) and isinstance(structures, Structures):
        tokens = tokenizer.tokenize(structures, augment=augment, seed=seed)
        return tokens, 2 * np.asarray(tokens.offsets)[1:] + leading
    raise ValueError("argument 'tokenizer' must be a CrystalTokenizer for crystals, an OctreeTokenizer for molecules")


def first(tokens: Tokens, count: int) -> Tokens:
    """The first `count` streams of tokens."""
    end = int(tokens.offsets[count])
    whole = {"offsets": tokens.offsets[: count + 1], "origins": tokens.origins[:count]}
    return dataclasses.replace(tokens, **whole, **{k: v[:end] for k, v in vars(tokens).items() if k not in whole})
