"""The case table: from each row come an operator's tests and its benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import _core_3d_molecule as _C
from . import cases_crystals
from .bonds import EDM_VALENCES
from .elements import SYMBOLS
from .reference import bonds as reference_bonds
from .reference import geometry, relational
from .reference import octree as reference
from .structures import offsets_of as _offsets
from .valences import ANY_CHARGE, SUMS, TABLES

Args = dict[str, Any]
GRID = {"depth": 6, "cell": 0.24, "resolution": 0.01}


def _structures(rng: np.random.Generator, B: int, N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    _, positions, offsets = _structures(rng, B, N)
    cuts = _cuts(rng, positions, offsets)
    return {"positions": positions, "offsets": offsets, **GRID, **cuts, "counts": np.empty(B, np.int64)}


def _whole(rng: np.random.Generator, B: int, N: int) -> Args:
    """Arguments of octree_tokenize that cut and drop nothing."""
    return _tokenize(rng, B, N, keep_first=False, crop=False, seed=0, middles=None, drops=None)


def _tokenize(rng: np.random.Generator, B: int, N: int, **given: Any) -> Args:
    numbers, positions, offsets = _structures(rng, B, N)
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
    _, positions, offsets = _structures(rng, B, N)
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


def _stability(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, positions, offsets = _structures(rng, B, N)
    allowed = np.zeros(119, np.int64)
    allowed[list(EDM_VALENCES)] = [sum(1 << v for v in valences) for valences in EDM_VALENCES.values()]
    return {
        "numbers": numbers, "positions": positions, "offsets": offsets, "allowed": allowed,
        "valences": np.empty(len(numbers), np.int32), "stable_atoms": np.empty(B, np.int64),
        "bond_counts": np.empty(B, np.int64),
    }  # fmt: skip


def _bonds(rng: np.random.Generator, B: int, N: int) -> Args:
    a = _stability(rng, B, N)
    _C.edm_stability(*a.values())
    bond_offsets = _offsets(a["bond_counts"])
    total = int(bond_offsets[-1])
    return {
        **{k: a[k] for k in ("numbers", "positions", "offsets")}, "bond_offsets": bond_offsets,
        "bonds": np.empty((total, 2), np.int64), "orders": np.empty(total, np.int32),
    }  # fmt: skip


def _graph(rng: np.random.Generator, offsets: np.ndarray) -> Args:
    """Random trees with some rings, bonds in any order."""
    rows, ends = [np.empty((0, 2), np.int64)], [0]
    for i, j in itertools.pairwise(offsets):
        pairs = {(int(rng.integers(max(i, k - 3), k)), k) for k in range(i + 1, j)}
        pairs |= {(k, k + 4) for k in range(i, j - 4) if rng.random() < 0.2}
        mixed = rng.permuted(np.array(sorted(pairs), np.int64).reshape(-1, 2), axis=1)
        rows.append(rng.permutation(mixed))
        ends.append(ends[-1] + len(pairs))
    bonds = np.concatenate(rows)
    orders = rng.integers(1, 5, len(bonds)).astype(np.int32)
    return {"bonds": bonds, "orders": orders, "bond_offsets": np.array(ends, np.int64)}


def _valence(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, _, offsets = _structures(rng, B, N)
    charges = rng.integers(-5, 6, len(numbers)) * (rng.random(len(numbers)) < 0.3)
    return {
        "numbers": numbers, "charges": charges.astype(np.int32), "offsets": offsets, **_graph(rng, offsets),
        "allowed": TABLES["sums"], "stable_atoms": np.empty(B, np.int64),
    }  # fmt: skip


def _chain_count(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, _, offsets = _structures(rng, B, N)
    kind = int(rng.integers(2, 5))
    graph = _graph(rng, offsets)
    return {"numbers": numbers, "offsets": offsets, **graph, "kind": kind, "counts": np.empty(B, np.int64)}


def _chain_values(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, positions, offsets = _structures(rng, B, N)
    graph, kind, counts = _graph(rng, offsets), int(rng.integers(2, 5)), np.empty(B, np.int64)
    _C.chain_count(numbers, offsets, *graph.values(), kind, counts)
    value_offsets = _offsets(counts)
    return {
        "numbers": numbers, "positions": positions.astype(np.float64), "offsets": offsets, **graph, "kind": kind,
        "value_offsets": value_offsets, "symbols": np.empty(value_offsets[-1], np.int64),
        "values": np.empty(value_offsets[-1]),
    }  # fmt: skip


def _kabsch(rng: np.random.Generator, B: int, N: int) -> Args:
    _, positions, offsets = _structures(rng, B, N)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    targets = positions @ turn + rng.normal(size=3) + rng.normal(0, 0.1, positions.shape)
    return {"positions": positions.astype(np.float64), "targets": targets, "offsets": offsets, "rmsd": np.empty(B)}


def _mmd(rng: np.random.Generator, N: int, M: int) -> Args:
    return {"x": rng.normal(1.5, 0.1, N), "y": rng.normal(1.52, 0.12, M), "mmd": np.empty(1)}


def _joined(lists: Iterable[list[Any]]) -> list[Any]:
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
        k: np.array(_joined(r[k] for r in rows), a[k].dtype).reshape(a[k].shape)
        for k in ("tokens", "levels", "centres", "bins", "counts")
    }
    atoms = [[i + f if i >= 0 else -1 for i in r["atoms"]] for r, f in zip(rows, firsts, strict=True)]
    return {
        **out,
        "atoms": np.array(_joined(atoms), np.int64),
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
        "numbers": np.array(_joined(n for n, _ in rows), np.int32),
        "positions": np.concatenate([np.empty((0, 3)), *moved]),
    }


def reference_pack(a: Args) -> Args:
    """The expected outputs of octree_pack."""
    return reference.pack(*itertools.islice(a.values(), 11))


def _each_bonds(a: Args) -> list[list[tuple[int, int, int]]]:
    pairs = itertools.pairwise(a["offsets"])
    return [reference_bonds.bonds(a["numbers"][i:j].tolist(), a["positions"][i:j].tolist()) for i, j in pairs]


def reference_stability(a: Args) -> Args:
    """The expected outputs of edm_stability."""
    found = _each_bonds(a)
    valences = np.zeros(len(a["numbers"]), np.int32)
    for first, rows in zip(a["offsets"], found, strict=False):
        for i, j, order in rows:
            valences[first + i] += order
            valences[first + j] += order
    stable = [bool(int(a["allowed"][z]) >> int(v) & 1) for z, v in zip(a["numbers"], valences, strict=True)]
    return {
        "valences": valences,
        "stable_atoms": np.array([sum(stable[i:j]) for i, j in itertools.pairwise(a["offsets"])], np.int64),
        "bond_counts": np.array([len(rows) for rows in found], np.int64),
    }


def reference_bond_list(a: Args) -> Args:
    """The expected outputs of edm_bonds."""
    rows = [(f + i, f + j, o) for f, found in zip(a["offsets"], _each_bonds(a), strict=False) for i, j, o in found]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return {"bonds": table[:, :2], "orders": table[:, 2].astype(np.int32)}


def reference_valence(a: Args) -> Args:
    """The expected outputs of valence_stability, from the table of sums itself."""
    stable = []
    for b, (i, j) in enumerate(itertools.pairwise(a["offsets"])):
        rows = range(a["bond_offsets"][b], a["bond_offsets"][b + 1])
        found = 0
        for atom in range(i, j):
            orders = [int(a["orders"][m]) for m in rows if atom in a["bonds"][m]]
            total = int(sum(1.5 if order == 4 else order for order in orders))
            symbol, charge = SYMBOLS[a["numbers"][atom]], int(a["charges"][atom])
            charges = SUMS.get(symbol, {})
            allowed = charges.get(0 if symbol in ANY_CHARGE else charge, ())
            found += abs(charge) <= 4 and orders.count(4) <= 4 and total in allowed
        stable.append(found)
    return {"stable_atoms": np.array(stable, np.int64)}


def _each_chain(a: Args) -> list[list[tuple[int, ...]]]:
    return [
        geometry.chains(a["bonds"][a["bond_offsets"][b] : a["bond_offsets"][b + 1]].tolist(), a["kind"])
        for b in range(len(a["offsets"]) - 1)
    ]


def reference_chain_count(a: Args) -> Args:
    """The expected outputs of chain_count."""
    return {"counts": np.array([len(found) for found in _each_chain(a)], np.int64)}


def reference_chain_values(a: Args) -> Args:
    """The expected outputs of chain_values."""
    symbols, values = [], []
    for b, found in enumerate(_each_chain(a)):
        rows = range(a["bond_offsets"][b], a["bond_offsets"][b + 1])
        orders = {frozenset(a["bonds"][m].tolist()): int(a["orders"][m]) for m in rows}
        for chain in found:
            symbols.append(geometry.symbol(a["numbers"], orders, chain))
            values.append(geometry.measure(a["positions"], chain))
    return {"symbols": np.array(symbols, np.int64), "values": np.array(values, np.float64)}


def reference_kabsch(a: Args) -> Args:
    """The expected outputs of kabsch_rmsd."""
    pairs = itertools.pairwise(a["offsets"])
    return {"rmsd": np.array([geometry.kabsch_rmsd(a["positions"][i:j], a["targets"][i:j]) for i, j in pairs])}


def reference_mmd(a: Args) -> Args:
    """The expected outputs of gaussian_mmd."""
    return {"mmd": np.array([geometry.gaussian_mmd(a["x"], a["y"])])}


def _attention(rng: np.random.Generator, B: int, N: int, H: int, D: int, E: int, F: int, G: int) -> Args:
    _, positions, offsets = _structures(rng, B, N)
    counts, classes, atoms = np.diff(offsets), 4, len(positions)
    squares = [rng.integers(0, classes, (n, n), np.uint8) for n in counts]

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {
        "q": normal(atoms, H, D), "k": normal(atoms, H, D), "v": normal(atoms, H, D),
        "q_edge": normal(atoms, H, E), "k_edge": normal(atoms, H, E),
        "form": normal(H, E * (E + 1) // 2) * np.float32(0.3),
        "positions": positions,
        "bonds": np.concatenate([np.empty(0, np.uint8), *(np.triu(s) + np.triu(s, 1).T for s in squares)], None),
        "offsets": offsets,
        "centres": rng.uniform(0, 9, G).astype(np.float32), "widths": rng.uniform(0.5, 3, G).astype(np.float32),
        "w1": normal(F, 1 + G + classes) * np.array([0.02] + [0.2] * (G + classes), np.float32), "b1": normal(F),
        "w2": normal(E, F) * np.float32(0.5), "b2": normal(E),
        "out": np.empty((atoms, H, D), np.float32), "out_edge": np.empty((atoms, H, E), np.float32),
        "lse": np.empty((atoms, H), np.float32),
    }  # fmt: skip


def _attention_backward(rng: np.random.Generator, **size: int) -> Args:
    a = _attention(rng, **size)
    a |= {name: np.ascontiguousarray(x, np.float32) for name, x in relational.forward(a).items()}
    outputs = {f"grad_{n}": rng.standard_normal(a[n].shape, np.float32) for n in ("out", "out_edge", "lse")}
    return a | outputs | {n: np.empty_like(a[n.removeprefix("grad_")]) for n in GRADIENTS}


def _peer(expected: Callable[[Args], Args]) -> tuple[str, Callable[[Args], Callable[[], Args]]]:
    return "Python reference", lambda a: lambda: expected(a)


def _bytes(a: Args) -> tuple[float, float]:
    return float(sum(v.nbytes for v in a.values() if isinstance(v, np.ndarray))), 0.0


SIZES = {"tiny": {"B": 3, "N": 12}, "bench": {"B": 2000, "N": 29}}
EXACT = dict.fromkeys(("tokens", "levels", "bins", "counts", "atoms"), (0, 0))
PACKED = dict.fromkeys(
    [*(f"packed_{name}" for name in ("tokens", "levels", "bins", "trees", "counts")), "remaining", "cu_seqlens"], (0, 0)
)
VARY = {"B": (0, 5), "N": (0, 40)}
ATTENTION = {
    "tiny": {"B": 3, "N": 11, "H": 2, "D": 3, "E": 5, "F": 6, "G": 3},
    "bench": {"B": 500, "N": 29, "H": 8, "D": 8, "E": 16, "F": 16, "G": 15},
}
ATTENTION_VARY = {"B": (0, 4), "N": (0, 20), "H": (1, 9), "D": (1, 9), "E": (1, 9), "F": (1, 9), "G": (0, 4)}
GRADIENTS = [
    f"grad_{n}"
    for n in ["q", "k", "v", "q_edge", "k_edge", "form", "positions", "centres", "widths", "w1", "b1", "w2", "b2"]
]
cases = [
    Case(
        op="core_3d_molecule.octree_count", sizes=SIZES, make=_count, reference=reference_count,
        tolerance={"counts": (0, 0)}, peer=_peer(reference_count), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_tokenize", sizes=SIZES, make=_tokenize, reference=reference_tokenize,
        tolerance={**EXACT, "centres": (1e-6, 1e-6), "origins": (0, 1e-9)},
        peer=_peer(reference_tokenize), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_detokenize", sizes=SIZES, make=_detokenize, reference=reference_detokenize,
        tolerance={"numbers": (0, 0), "positions": (0, 1e-9)}, peer=_peer(reference_detokenize), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_augment", sizes=SIZES, make=_augment, reference=reference_augment,
        tolerance=dict.fromkeys(("moved", "middles", "drops"), (1e-12, 1e-12)),
        peer=_peer(reference_augment), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.octree_pack", sizes={"tiny": SIZES["tiny"], "bench": {"B": 500, "N": 29}}, make=_pack,
        reference=reference_pack, tolerance={**PACKED, "positions": (1e-6, 1e-6)}, peer=_peer(reference_pack),
        work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.edm_stability", sizes=SIZES, make=_stability, reference=reference_stability,
        tolerance=dict.fromkeys(("valences", "stable_atoms", "bond_counts"), (0, 0)),
        peer=_peer(reference_stability), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.edm_bonds", sizes=SIZES, make=_bonds, reference=reference_bond_list,
        tolerance={"bonds": (0, 0), "orders": (0, 0)}, peer=_peer(reference_bond_list), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.valence_stability", sizes=SIZES, make=_valence, reference=reference_valence,
        tolerance={"stable_atoms": (0, 0)}, peer=_peer(reference_valence), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.chain_count", sizes=SIZES, make=_chain_count, reference=reference_chain_count,
        tolerance={"counts": (0, 0)}, peer=_peer(reference_chain_count), work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.chain_values", sizes=SIZES, make=_chain_values, reference=reference_chain_values,
        tolerance={"symbols": (0, 0), "values": (1e-6, 1e-6)}, peer=_peer(reference_chain_values),
        work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.kabsch_rmsd", sizes=SIZES, make=_kabsch, reference=reference_kabsch,
        tolerance={"rmsd": (1e-9, 1e-9)}, peer=("numpy SVD", lambda a: lambda: reference_kabsch(a)),
        work=_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.gaussian_mmd", sizes={"tiny": {"N": 21, "M": 34}, "bench": {"N": 2000, "M": 2000}},
        make=_mmd, reference=reference_mmd, tolerance={"mmd": (1e-9, 1e-12)},
        peer=("numpy", lambda a: lambda: reference_mmd(a)), work=_bytes, vary={"N": (1, 40), "M": (1, 40)},
    ),
    Case(
        op="core_3d_molecule.relational_attention", sizes=ATTENTION, make=_attention,
        reference=relational.forward, tolerance=dict.fromkeys(("out", "out_edge", "lse"), (2e-5, 2e-5)),
        peer=("numpy", lambda a: lambda: relational.forward(a)), work=_bytes, vary=ATTENTION_VARY,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_3d_molecule.relational_attention_backward", sizes=ATTENTION, make=_attention_backward,
        reference=relational.backward, tolerance=dict.fromkeys(GRADIENTS, (2e-4, 2e-4)),
        peer=("numpy", lambda a: lambda: relational.backward(a)), work=_bytes, vary=ATTENTION_VARY,
        devices=("cpu", "cuda"),
    ),
    *cases_crystals.cases,
]  # fmt: skip
