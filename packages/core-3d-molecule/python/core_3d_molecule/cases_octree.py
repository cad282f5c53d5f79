"""The rows of the case table that are about octree tokens, and what the other rows need, too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import _core_3d_molecule as _C
from .reference import octree as reference
from .structures import offsets_of as _offsets

Args = dict[str, Any]
GRID = {"depth": 6, "cell": 0.24, "resolution": 0.01}


def random_structures(rng: np.random.Generator, B: int, N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged molecules of up to N atoms, one to a cell, 1 to 2 angstroms apart like bonded atoms."""
    counts = rng.integers(min(N, 1), N + 1, B) if N else np.zeros(B, np.int64)
    steps = [rng.permutation(216)[:n] for n in counts]
    lattice = [np.stack([s % 6, s // 6 % 6, s // 36], 1) * 1.1 + rng.uniform(-0.3, 0.3, (len(s), 3)) for s in steps]
    positions = np.concatenate([np.empty((0, 3)), *lattice]).astype(np.float32)
    numbers = rng.choice(np.array([1, 6, 7, 8, 9], np.int32), len(positions))
    return numbers, positions, _offsets(counts)


def _cuts(rng: np.random.Generator, positions: np.ndarray, offsets: np.ndarray) -> Args:
    """Every option of the tokeniser: middles beside the means, some nodes dropped."""
    batch = len(offsets) - 1
    sums = np.add.reduceat(np.append(positions, np.zeros((1, 3)), 0), offsets[:-1]) if batch else np.zeros((0, 3))
    counts = np.diff(offsets)[:, None]
    middles = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0) + rng.normal(0, 0.2, (batch, 3))
    seed = int(rng.integers(2**62))
    return {"keep_first": True, "crop": True, "seed": seed, "middles": middles, "drops": rng.uniform(0, 0.5, batch)}


def _count(rng: np.random.Generator, B: int, N: int) -> Args:
    _, positions, offsets = random_structures(rng, B, N)
    cuts = _cuts(rng, positions, offsets)
    return {"positions": positions, "offsets": offsets, **GRID, **cuts, "counts": np.empty(B, np.int64)}


def _whole(rng: np.random.Generator, B: int, N: int) -> Args:
    """Arguments of octree_tokenize that cut and drop nothing."""
    return _tokenize(rng, B, N, keep_first=False, crop=False, seed=0, middles=None, drops=None)


def _tokenize(rng: np.random.Generator, B: int, N: int, **given: Any) -> Args:
    numbers, positions, offsets = random_structures(rng, B, N)
    counts = np.empty(B, np.int64)
    cuts = given or _cuts(rng, positions, offsets)
    _C.octree_count(positions, offsets, *GRID.values(), *cuts.values(), counts)
    token_offsets = _offsets(counts)
    total = int(token_offsets[-1])
    return {
        "numbers": numbers, "positions": positions, "offsets": offsets, "token_offsets": token_offsets, **GRID, **cuts,
        "tokens": np.empty(total, np.int32), "levels": np.empty(total, np.int32),
        "centres": np.empty((total, 3), np.float32), "bins": np.empty((total, 3), np.int32),
        "counts": np.empty(total, np.int32), "atoms": np.empty(total, np.int64), "origins": np.empty((B, 3)),
    }  # fmt: skip


def _augment(rng: np.random.Generator, B: int, N: int) -> Args:
    _, positions, offsets = random_structures(rng, B, N)
    return {
        "positions": positions.astype(np.float64), "offsets": offsets, "anchors": 2, "rotate": 0.7, "noise": 0.12,
        "step": 0.24, "steps": 1, "drop": 0.1, "seed": int(rng.integers(2**62)),
        "moved": np.empty((len(positions), 3)), "middles": np.empty((B, 3)), "drops": np.empty(B),
    }  # fmt: skip


def _detokenize(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _whole(rng, B, N)
    _C.octree_tokenize(*a.values())
    total = len(a["numbers"])
    return {
        "tokens": a["tokens"], "bins": a["bins"], "token_offsets": a["token_offsets"], "origins": a["origins"],
        "offsets": a["offsets"], **GRID, "numbers": np.empty(total, np.int32), "positions": np.empty((total, 3)),
    }  # fmt: skip


def _pack(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _tokenize(rng, 2 * B, N)
    _C.octree_tokenize(*a.values())
    conditions = rng.integers(602, 736, (B, 2)).astype(np.int32)
    total = 2 * len(a["tokens"]) + conditions.size
    return {
        **{k: a[k] for k in ("tokens", "levels", "centres", "bins", "counts", "token_offsets")},
        "conditions": conditions, "trees": 2, **GRID,
        "packed_tokens": np.empty(total, np.int32), "packed_levels": np.empty(total, np.int32),
        "positions": np.empty((total, 3), np.float32), "packed_bins": np.empty((total, 3), np.int32),
        "packed_trees": np.empty(total, np.int32), "packed_counts": np.empty(total, np.int32),
        "remaining": np.empty((total, 2), np.int32), "cu_seqlens": np.empty(B + 1, np.int32),
    }  # fmt: skip


def joined(lists: Iterable[list[Any]]) -> list[Any]:
    """One list of all members."""
    return list(itertools.chain.from_iterable(lists))


def _each(a: Args) -> list[dict[str, list[Any]]]:
    numbers = a.get("numbers", np.ones(len(a["positions"]), np.int32))
    cuts = {"crop": a.get("crop", False), "seed": a.get("seed", 0)}
    middles, drops = a.get("middles"), a.get("drops")
    return [
        reference.tokenize(
            numbers[i:j], a["positions"][i:j], *(a[k] for k in GRID), a["keep_first"], **cuts, row=b,
            middle=None if middles is None else middles[b], drop=0.0 if drops is None else drops[b],
        )
        for b, (i, j) in enumerate(itertools.pairwise(a["offsets"]))
    ]  # fmt: skip


def reference_count(a: Args) -> Args:
    """The expected outputs of octree_count."""
    return {"counts": np.array([len(r["tokens"]) for r in _each(a)], np.int64)}


def reference_tokenize(a: Args) -> Args:
    """The expected outputs of octree_tokenize."""
    rows = _each(a)
    firsts = a["offsets"][:-1]
    out: Args = {
        k: np.array(joined(r[k] for r in rows), a[k].dtype).reshape(a[k].shape)
        for k in ("tokens", "levels", "centres", "bins", "counts")
    }
    atoms = [[i + f if i >= 0 else -1 for i in r["atoms"]] for r, f in zip(rows, firsts, strict=True)]
    return {
        **out,
        "atoms": np.array(joined(atoms), np.int64),
        "origins": np.array([r["origin"] for r in rows], np.float64).reshape(a["origins"].shape),
    }


def reference_augment(a: Args) -> Args:
    """The expected outputs of octree_augment."""
    how = [a[k] for k in ("rotate", "noise", "step", "steps", "drop")]
    rows = [
        reference.augment(a["positions"][i:j], a["anchors"], how, a["seed"], b)
        for b, (i, j) in enumerate(itertools.pairwise(a["offsets"]))
    ]
    return {
        "moved": np.concatenate([np.empty((0, 3)), *(m for m, _, _ in rows)]),
        "middles": np.array([m for _, m, _ in rows]).reshape(-1, 3),
        "drops": np.array([d for _, _, d in rows]),
    }


def reference_detokenize(a: Args) -> Args:
    """The expected outputs of octree_detokenize."""
    cuts = a["token_offsets"]
    rows = [
        reference.detokenize(a["tokens"][i:j].tolist(), a["bins"][i:j].tolist(), *(a[k] for k in GRID))
        for i, j in itertools.pairwise(cuts)
    ]
    origins = a["origins"] if a["origins"] is not None else np.zeros((len(rows), 3))
    moved = [np.array(p).reshape(-1, 3) + o for (_, p), o in zip(rows, origins, strict=True)]
    return {
        "numbers": np.array(joined(n for n, _ in rows), np.int32),
        "positions": np.concatenate([np.empty((0, 3)), *moved]),
    }


def reference_pack(a: Args) -> Args:
    """The expected outputs of octree_pack."""
    return reference.pack(*itertools.islice(a.values(), 11))


def reference_peer(expected: Callable[[Args], Args]) -> tuple[str, Callable[[Args], Callable[[], Args]]]:
    """The reference as what is measured against."""
    return "Python reference", lambda a: lambda: expected(a)


def all_bytes(a: Args) -> tuple[float, float]:
    """What is read and written, and no operations."""
    return float(sum(v.nbytes for v in a.values() if isinstance(v, np.ndarray))), 0.0


SIZES = {"tiny": {"B": 3, "N": 12}, "bench": {"B": 2000, "N": 29}}
EXACT = dict.fromkeys(("tokens", "levels", "bins", "counts", "atoms"), (0, 0))
PACKED = dict.fromkeys(
    [*(f"packed_{name}" for name in ("tokens", "levels", "bins", "trees", "counts")), "remaining", "cu_seqlens"], (0, 0)
)
VARY = {"B": (0, 5), "N": (0, 40)}
cases = [
    Case(
        op="core_3d_molecule.octree_count", sizes=SIZES, make=_count, reference=reference_count,
        tolerance={"counts": (0, 0)}, peer=reference_peer(reference_count), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_tokenize", sizes=SIZES, make=_tokenize, reference=reference_tokenize,
        tolerance={**EXACT, "centres": (1e-6, 1e-6), "origins": (0, 1e-9)},
        peer=reference_peer(reference_tokenize), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_detokenize", sizes=SIZES, make=_detokenize, reference=reference_detokenize,
        tolerance={"numbers": (0, 0), "positions": (0, 1e-9)}, peer=reference_peer(reference_detokenize),
        work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_augment", sizes=SIZES, make=_augment, reference=reference_augment,
        tolerance=dict.fromkeys(("moved", "middles", "drops"), (1e-12, 1e-12)),
        peer=reference_peer(reference_augment), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_pack", sizes={"tiny": SIZES["tiny"], "bench": {"B": 500, "N": 29}}, make=_pack,
        reference=reference_pack, tolerance={**PACKED, "positions": (1e-6, 1e-6)}, peer=reference_peer(reference_pack),
        work=all_bytes, vary=VARY,
    ),
]  # fmt: skip
