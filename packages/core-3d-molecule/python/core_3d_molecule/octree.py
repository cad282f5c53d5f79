"""Octree tokens of a batch of structures and back (Uni-3DAR, arXiv 2503.16278, section 3.1)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from core_registry.arrays import as_array, empty, is_torch

from . import _core_3d_molecule as _C

if TYPE_CHECKING:
    from ase import Atoms

CLS, UNK, MASK, NULL, TREE = 342, 343, 344, 345, 346
VOCABULARY = 602
SETTINGS = {"qm9": 6, "drug": 7, "crystal": 8}


@dataclasses.dataclass(frozen=True)
class Structures:
    """A batch of structures, one after the other.

    numbers (A,) int32: atomic numbers 1..118; positions (A, 3) float32 or float64, angstroms; offsets (B + 1,)
    int64: the atoms of structure b are rows offsets[b]..offsets[b + 1].
    """

    numbers: Any
    positions: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_list(cls, numbers: Sequence[Any], positions: Sequence[Any]) -> Structures:
        """A batch from one array of atomic numbers and one of positions (n, 3) for each structure.

        Raises ValueError for a structure whose numbers and positions differ in length, and for numbers that are
        not integers.
        """
        counts, rows = (np.fromiter(map(len, x), np.int64, len(x)) for x in (numbers, positions))
        if len(counts) != len(rows) or (counts != rows).any():
            raise ValueError("arguments 'numbers' and 'positions' must have as many structures and atoms as each other")
        given = np.concatenate([np.empty(0, np.int32), *numbers])
        exact = given.astype(np.int32)
        if (exact != given).any():
            raise ValueError(f"argument 'numbers' must be integers, got {given[exact != given][0]}")
        return cls(exact, np.concatenate([np.empty((0, 3)), *positions]).astype(np.float64), _offsets(counts))

    @classmethod
    def from_ase(cls, atoms: Iterable[Atoms]) -> Structures:
        """A batch from `ase.Atoms`; cells and boundary conditions are not kept."""
        listed = list(atoms)
        return cls.from_list([a.numbers for a in listed], [a.positions for a in listed])

    def to_ase(self) -> list[Atoms]:
        """One `ase.Atoms` for each structure."""
        from ase import Atoms

        cuts = np.asarray(self.offsets)[1:-1]
        pairs = zip(np.split(np.asarray(self.numbers), cuts), np.split(np.asarray(self.positions), cuts), strict=True)
        return [Atoms(numbers=n, positions=p) for n, p in pairs][: len(self)]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, one structure after the other: nodes coarse to fine, atoms, [CLS].

    tokens (T,) int32: ids of a vocabulary of 602: atomic number - 1, [CLS] 342, [MASK] 344, [TREE_0..255] 346..601;
    levels (T,) int32: merge_level..1 for nodes, 0 for atoms, -1 for [CLS];
    centres (T, 3) float32, angstroms: the middle of a node's cube, of an atom's cell, of the whole cube;
    bins (T, 3) int32: an atom's place in its cell, half the number of bins for other tokens;
    atoms (T,) int64: an atom's row in the batch, else -1; offsets (B + 1,) int64;
    origins (B, 3) float64: what leads from the cube back to each structure's own frame.
    """

    tokens: Any
    levels: Any
    centres: Any
    bins: Any
    atoms: Any
    offsets: Any
    origins: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclasses.dataclass(frozen=True)
class Packed:
    """Model input: every token twice, first as [MASK] with the coarse position, then itself.

    tokens (2 T,) int32, levels (2 T,) int32, positions (2 T, 3) float32 in angstroms, cu_seqlens (B + 1,) int32.
    """

    tokens: Any
    levels: Any
    positions: Any
    cu_seqlens: Any


@dataclasses.dataclass(frozen=True)
class OctreeTokenizer:
    """Structures to tokens and back.

    The cube has 2^merge_level cells of `grid_len` angstroms a side (QM9 6, drug-like 7, crystals 8); an atom is kept
    to `resolution` angstroms in its cell. Two atoms in one cell are an error, or, with duplicates="first", all but
    the first are dropped. Raises ValueError for a setting out of range when it is used.
    """

    merge_level: int = 6
    grid_len: float = 0.24
    resolution: float = 0.01
    duplicates: str = "error"

    def __post_init__(self) -> None:
        if self.duplicates not in ("error", "first"):
            raise ValueError(f"argument 'duplicates' must be 'error' or 'first', got {self.duplicates!r}")

    def tokenize(self, structures: Structures) -> Tokens:
        """The tokens of a batch; numpy in gives numpy, torch (CPU) gives torch.

        Raises ValueError that names the structure: a position that is not finite, an extent that the cube cannot
        hold, two atoms in one cell, an atomic number outside 1..118.
        """
        numbers, positions, offsets = _arrays(structures)
        grid = (self.merge_level, self.grid_len, self.resolution, self.duplicates == "first")
        batch = max(len(offsets) - 1, 0)
        counts = empty((batch,), "int64", like=numbers)
        _C.octree_count(positions, offsets, *grid, counts)
        token_offsets = _offsets(counts)
        total = int(token_offsets[-1])
        out = Tokens(
            empty((total,), "int32", like=numbers),
            empty((total,), "int32", like=numbers),
            empty((total, 3), "float32", like=numbers),
            empty((total, 3), "int32", like=numbers),
            empty((total,), "int64", like=numbers),
            token_offsets,
            empty((batch, 3), "float64", like=numbers),
        )
        filled = (out.tokens, out.levels, out.centres, out.bins, out.atoms, out.origins)
        _C.octree_tokenize(numbers, positions, offsets, token_offsets, *grid, *filled)
        return out

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
        before = _offsets(tokens < CLS)
        ends = token_offsets.clip(0, len(before) - 1)
        atom_offsets = before[ends]
        total = int(atom_offsets[-1]) if len(atom_offsets) else 0
        out = Structures(empty((total,), "int32", like=tokens), empty((total, 3), "float64", like=tokens), atom_offsets)
        grid = (self.merge_level, self.grid_len, self.resolution)
        _C.octree_detokenize(tokens, bins, token_offsets, origins, atom_offsets, *grid, out.numbers, out.positions)
        return out

    def pack(self, tokens: Tokens) -> Packed:
        """Model input for next-token prediction: each token after a [MASK] copy that carries the coarse position.

        An atom's own copy carries its fine position; cu_seqlens is that of variable-length attention. Raises
        ValueError for offsets that do not fit the tokens and for an atom's bin outside its cell.
        """
        given = as_array(tokens.tokens, "int32", "tokens")
        total, batch = len(given), len(tokens.offsets) - 1
        out = Packed(
            empty((total, 2), "int32", like=given),
            empty((total, 2), "int32", like=given),
            empty((total, 2, 3), "float32", like=given),
            empty((batch + 1,), "int32", like=given),
        )
        streams = (tokens.levels, tokens.centres, tokens.bins, tokens.offsets)
        _C.octree_pack(given, *streams, self.grid_len, self.resolution, *vars(out).values())
        return Packed(out.tokens.reshape(-1), out.levels.reshape(-1), out.positions.reshape(-1, 3), out.cu_seqlens)


def _arrays(structures: Structures) -> tuple[Any, Any, Any]:
    """Numbers, positions and offsets with the kernels' dtypes."""
    numbers = as_array(structures.numbers, "int32", "numbers")
    offsets = as_array(structures.offsets, "int64", "offsets", like=numbers)
    positions = structures.positions
    if not hasattr(positions, "dtype") or str(positions.dtype).rpartition(".")[2] != "float32":
        positions = as_array(positions, "float64", "positions", like=numbers)
    return numbers, positions, offsets


def _offsets(counts: Any) -> Any:
    """0 and the running sums, int64."""
    if is_torch(counts):
        torch = sys.modules["torch"]
        return torch.nn.functional.pad(torch.cumsum(counts, 0, dtype=torch.int64), (1, 0))
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out
