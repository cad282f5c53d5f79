"""Octree tokens of a batch of structures and back (Uni-3DAR, arXiv 2503.16278, section 3.1)."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_3d_molecule as _C
from .structures import Structures, arrays, offsets_of

LATTICE, CLS, UNK, MASK, NULL, TREE = 341, 342, 343, 344, 345, 346
VOCABULARY = 602
"""Of molecules and proteins; crystals have more (`crystal_tokens.VOCABULARY`)."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, one structure after the other: nodes coarse to fine, atoms, [CLS].

    tokens (T,) int32: ids of a vocabulary of 602: atomic number - 1, alpha carbons 118..138, [LATTICE] 341, [CLS] 342,
    [MASK] 344, [TREE_0..255] 346..601; levels (T,) int32: merge_level..1 for nodes, 0 for atoms, -1 for [CLS];
    centres (T, 3) float32, angstroms: the middle of a node's cube, of an atom's cell, of the whole cube;
    bins (T, 3) int32: an atom's place in its cell, half the number of bins for other tokens;
    counts (T,) int32: the atoms below a node, 1 for an atom, 0 for [CLS];
    atoms (T,) int64: an atom's row in the batch, else -1; offsets (B + 1,) int64;
    origins (B, 3) float64: what leads from the cube back to each structure's own frame (as augmentation turned it).
    """

    tokens: Any
    levels: Any
    centres: Any
    bins: Any
    counts: Any
    atoms: Any
    offsets: Any
    origins: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclasses.dataclass(frozen=True)
class Packed:
    """Model input: conditions, then every token twice, first as [MASK] with the coarse position, then itself.

    tokens, levels, trees, counts (S,) int32; positions (S, 3) float32, angstroms; bins (S, 3) int32; remaining (S, 2)
    int32; cu_seqlens (B + 1,) int32. trees: 0 the atoms', 1 a lattice's, 2 conditions. bins: half the number of bins
    but for an atom's own copy. counts: -1 but for own copies and [CNT_n]. remaining: the atoms and tokens from this one
    to the end of its level, 0 for [CLS] and conditions. What a [MASK] row stands for is in the next row.
    """

    tokens: Any
    levels: Any
    positions: Any
    bins: Any
    trees: Any
    counts: Any
    remaining: Any
    cu_seqlens: Any


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training structures are varied: with the probability `rotate` turned at random, shifted by a normal number of
    `noise` angstroms and up to `shift` cells on each axis, and up to the share `drop` of the finest nodes left out.
    With the probability `slide`, a crystal's atoms are moved in their cell by one random fraction on all three axes."""

    rotate: float = 1.0
    noise: float = 0.12
    shift: int = 1
    drop: float = 0.1
    slide: float = 0.5


@dataclasses.dataclass(frozen=True)
class OctreeTokenizer:
    """Structures to tokens and back.

    The cube has 2^merge_level cells of `grid_len` angstroms a side; an atom is kept to `resolution` angstroms in its
    cell. Two atoms in one cell are an error, or, with duplicates="first", all but the first are dropped. A structure
    that the cube cannot hold is an error, or, with oversize="crop", cut by a cube at random around one of its atoms.
    Raises ValueError for a setting out of range when it is used.
    """

    merge_level: int = 6
    grid_len: float = 0.24
    resolution: float = 0.01
    duplicates: str = "error"
    oversize: str = "error"

    def __post_init__(self) -> None:
        for name, options in (("duplicates", ("error", "first")), ("oversize", ("error", "crop"))):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"argument '{name}' must be {options[0]!r} or {options[1]!r}, got {getattr(self, name)!r}"
                )

    @classmethod
    def preset(cls, name: str) -> OctreeTokenizer:
        """The paper's settings for "qm9", "drug" (drug-like molecules), "crystal" or "protein" (alpha carbons)."""
        if name not in PRESETS:
            raise ValueError(f"argument 'name' must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]

    def tokenize(self, structures: Structures, *, augment: Augmentation | None = None, seed: int = 0) -> Tokens:
        """The tokens of a batch; numpy in gives numpy, torch (CPU) gives torch.

        The same seed gives the same augmentation and cuts; each structure's depend on its row only. A stream of which
        augmentation dropped nodes is for training: it cannot be read back. Raises ValueError that names the structure:
        a position that is not finite, an extent that the cube cannot hold, two atoms in one cell, an unknown number.
        """
        numbers, positions, offsets = arrays(structures)
        middles = drops = None
        if augment is not None:
            positions, middles, drops = self.augmented(positions, offsets, augment, seed)
        return self.encode(numbers, positions, offsets, middles, drops, seed)

    def augmented(
        self, positions: Any, offsets: Any, augment: Augmentation, seed: int, anchors: int = 0
    ) -> tuple[Any, Any, Any]:
        """Positions (A, 3) as `augment` turns them, and middles (B, 3) and drops (B,) for `encode`.

        anchors: how many of a structure's first points have its middle as their mean; 0: all.
        """
        positions = as_array(positions, "float64", "positions")
        batch = max(len(offsets) - 1, 0)
        moved, middles = (empty(shape, "float64", like=positions) for shape in (positions.shape, (batch, 3)))
        drops = empty((batch,), "float64", like=positions)
        how = (augment.rotate, augment.noise, self.grid_len, augment.shift, augment.drop, seed)
        _C.octree_augment(positions, offsets, anchors, *how, moved, middles, drops)
        return moved, middles, drops

    def encode(
        self, numbers: Any, positions: Any, offsets: Any, middles: Any = None, drops: Any = None, seed: int = 0
    ) -> Tokens:
        """The tokens of arrays as in `Structures`, placed with middles (B, 3) in the cube's middle cell if given, and
        nodes of level 1 dropped with the probabilities drops (B,)."""
        cuts = (self.duplicates == "first", self.oversize == "crop", seed, middles, drops)
        grid = (self.merge_level, self.grid_len, self.resolution)
        batch = max(len(offsets) - 1, 0)
        lengths = empty((batch,), "int64", like=numbers)
        _C.octree_count(positions, offsets, *grid, *cuts, lengths)
        token_offsets = offsets_of(lengths)
        total = int(token_offsets[-1])
        tokens, levels, counts, centres, bins = _block(total, (0, 0, 0, 3, 3), numbers)
        centres = _as_float(centres)
        atoms, origins = empty((total,), "int64", like=numbers), empty((batch, 3), "float64", like=numbers)
        filled = (tokens, levels, centres, bins, counts, atoms)
        _C.octree_tokenize(numbers, positions, offsets, token_offsets, *grid, *cuts, *filled, origins)
        return Tokens(*filled, token_offsets, origins)

    def detokenize(self, tokens: Any, bins: Any = None, offsets: Any = None, origins: Any = None) -> Structures:
        """The structures of `Tokens`, or of its arrays (T,), (T, 3), (B + 1,) and, if wanted, (B, 3).

        Positions are float64, within resolution / 2 of the original on each axis, atoms in the stream's order; without
        origins they are in the frame of the cube. Raises ValueError that names structure and token for a stream that
        is no structure's.
        """
        if isinstance(tokens, Tokens):
            tokens, bins, offsets, origins = tokens.tokens, tokens.bins, tokens.offsets, tokens.origins
        tokens = as_array(tokens, "int32", "tokens")
        bins = as_array(bins, "int32", "bins", like=tokens)
        token_offsets = as_array(offsets, "int64", "offsets", like=tokens)
        before = offsets_of(tokens < CLS)
        ends = token_offsets.clip(0, len(before) - 1)
        atom_offsets = before[ends]
        total = int(atom_offsets[-1]) if len(atom_offsets) else 0
        out = Structures(empty((total,), "int32", like=tokens), empty((total, 3), "float64", like=tokens), atom_offsets)
        grid = (self.merge_level, self.grid_len, self.resolution)
        _C.octree_detokenize(tokens, bins, token_offsets, origins, atom_offsets, *grid, out.numbers, out.positions)
        return out

    def pack(self, tokens: Tokens, conditions: Any = None, trees: int = 1) -> Packed:
        """Model input for next-token prediction: each token after a [MASK] copy that carries the coarse position.

        An atom's own copy carries its fine position; cu_seqlens is that of variable-length attention. conditions (B, C)
        int32: tokens that begin each sequence; trees: how many streams make a sequence (`CrystalTokenizer.pack`).
        Raises ValueError for offsets that do not fit the tokens and for an atom's bin outside its cell.
        """
        given = as_array(tokens.tokens, "int32", "tokens")
        batch = (len(tokens.offsets) - 1) // trees
        before = empty((batch, 0), "int32", like=given) if conditions is None else conditions
        rows = before.shape[0] * before.shape[1] + 2 * len(given)
        ids, levels, positions, bins, kinds, counts, remaining = _block(rows, (0, 0, 3, 3, 0, 0, 2), given)
        cu_seqlens = empty((batch + 1,), "int32", like=given)
        out = Packed(ids, levels, _as_float(positions), bins, kinds, counts, remaining, cu_seqlens)
        streams = (tokens.levels, tokens.centres, tokens.bins, tokens.counts, tokens.offsets, before, trees)
        _C.octree_pack(
            given, *streams, self.merge_level, self.grid_len, self.resolution, *(getattr(out, n) for n in _FIELDS)
        )
        return out


def _block(rows: int, widths: tuple[int, ...], like: Any) -> list[Any]:
    """int32 arrays (rows,) for width 0 and (rows, width) else, side by side in one allocation: a large one is faulted
    in by huge pages, several small ones cost more time than the kernel takes to fill them."""
    sizes = [rows * max(width, 1) for width in widths]
    block, out, first = empty((sum(sizes),), "int32", like=like), [], 0
    for width, size in zip(widths, sizes, strict=True):
        part = block[first : first + size]
        out.append(part.reshape(rows, width) if width else part)
        first += size
    return out


def _as_float(x: Any) -> Any:
    """The same memory as float32."""
    return x.view(sys.modules["torch"].float32 if is_torch(x) else "float32")


_FIELDS = [field.name for field in dataclasses.fields(Packed)]
PRESETS = {
    "qm9": OctreeTokenizer(6),
    "drug": OctreeTokenizer(7, oversize="crop"),
    "crystal": OctreeTokenizer(8),
    "protein": OctreeTokenizer(10, 0.48, 0.02, oversize="crop"),
}
