"""The case table: from each row come an operator's tests and its benchmark."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import _core_3d_molecule as _C
from . import cases_crystals, cases_octree
from .bonds import EDM_VALENCES
from .cases_octree import SIZES, VARY, Args, all_bytes, random_structures, reference_peer
from .elements import SYMBOLS
from .reference import bonds as reference_bonds
from .reference import geometry, relational
from .structures import offsets_of as _offsets
from .valences import ANY_CHARGE, SUMS, TABLES


def _stability(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, positions, offsets = random_structures(rng, B, N)
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
    numbers, _, offsets = random_structures(rng, B, N)
    charges = rng.integers(-5, 6, len(numbers)) * (rng.random(len(numbers)) < 0.3)
    return {
        "numbers": numbers, "charges": charges.astype(np.int32), "offsets": offsets, **_graph(rng, offsets),
        "allowed": TABLES["sums"], "stable_atoms": np.empty(B, np.int64),
    }  # fmt: skip


def _chain_count(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, _, offsets = random_structures(rng, B, N)
    kind = int(rng.integers(2, 5))
    graph = _graph(rng, offsets)
    return {"numbers": numbers, "offsets": offsets, **graph, "kind": kind, "counts": np.empty(B, np.int64)}


def _chain_values(rng: np.random.Generator, B: int, N: int) -> Args:
    numbers, positions, offsets = random_structures(rng, B, N)
    graph, kind, counts = _graph(rng, offsets), int(rng.integers(2, 5)), np.empty(B, np.int64)
    _C.chain_count(numbers, offsets, *graph.values(), kind, counts)
    value_offsets = _offsets(counts)
    return {
        "numbers": numbers, "positions": positions.astype(np.float64), "offsets": offsets, **graph, "kind": kind,
        "value_offsets": value_offsets, "symbols": np.empty(value_offsets[-1], np.int64),
        "values": np.empty(value_offsets[-1]),
    }  # fmt: skip


def _kabsch(rng: np.random.Generator, B: int, N: int) -> Args:
    _, positions, offsets = random_structures(rng, B, N)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    targets = positions @ turn + rng.normal(size=3) + rng.normal(0, 0.1, positions.shape)
    return {"positions": positions.astype(np.float64), "targets": targets, "offsets": offsets, "rmsd": np.empty(B)}


def _mmd(rng: np.random.Generator, N: int, M: int) -> Args:
    return {"x": rng.normal(1.5, 0.1, N), "y": rng.normal(1.52, 0.12, M), "mmd": np.empty(1)}


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
    _, positions, offsets = random_structures(rng, B, N)
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


def _projections(rng: np.random.Generator, A: int, H: int, D: int, E: int) -> Args:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {
        "q": normal(A, H, D), "k": normal(A, H, D), "edge_q": normal(H, D, E), "edge_k": normal(H, D, E), "scale": 0.6,
        "scaled_q": np.empty((A, H, D), np.float32), "q_edge": np.empty((A, H, E), np.float32),
        "k_edge": np.empty((A, H, E), np.float32), "form": np.empty((H, E * (E + 1) // 2), np.float32),
    }  # fmt: skip


def _projections_backward(rng: np.random.Generator, **size: int) -> Args:
    a = _projections(rng, **size)
    inputs, outputs = list(a.items())[:5], list(a.items())[5:]
    grads = {f"grad_{name}": rng.standard_normal(x.shape, np.float32) for name, x in outputs}
    return dict(inputs) | grads | {f"grad_{name}": np.empty_like(x) for name, x in inputs[:4]}


def _values(rng: np.random.Generator, A: int, H: int, D: int, E: int) -> Args:
    shapes = {"out": (A, H, D), "out_edge": (A, H, E), "edge_v": (H, D, E)}
    a = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return a | {"values": np.empty((A, H, D), np.float32)}


def _values_backward(rng: np.random.Generator, **size: int) -> Args:
    a = _values(rng, **size)
    inputs = {name: a[name] for name in ("out_edge", "edge_v")}
    gradients = {f"grad_{name}": np.empty_like(x) for name, x in inputs.items()}
    return inputs | {"grad_values": rng.standard_normal(a["values"].shape, np.float32)} | gradients


def _attention_case(name: str, make: Any, reference: Any, tolerance: float, outputs: list[str]) -> Case:
    return Case(
        op=f"core_3d_molecule.{name}", sizes=ROWS, make=make, reference=reference,
        tolerance=dict.fromkeys(outputs, (tolerance, tolerance)),
        peer=("numpy", lambda a: lambda: reference(a)), work=all_bytes, vary=ROWS_VARY, devices=("cpu", "cuda"),
    )  # fmt: skip


ROWS = {"tiny": {"A": 300, "H": 2, "D": 3, "E": 5}, "bench": {"A": 9000, "H": 8, "D": 8, "E": 16}}
ROWS_VARY = {"A": (0, 40), "H": (1, 9), "D": (1, 20), "E": (1, 20)}
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
    *cases_octree.cases,
    Case(
        op="core_3d_molecule.edm_stability", sizes=SIZES, make=_stability, reference=reference_stability,
        tolerance=dict.fromkeys(("valences", "stable_atoms", "bond_counts"), (0, 0)),
        peer=reference_peer(reference_stability), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.edm_bonds", sizes=SIZES, make=_bonds, reference=reference_bond_list,
        tolerance={"bonds": (0, 0), "orders": (0, 0)}, peer=reference_peer(reference_bond_list), work=all_bytes,
        vary=VARY,
    ),
    Case(
        op="core_3d_molecule.valence_stability", sizes=SIZES, make=_valence, reference=reference_valence,
        tolerance={"stable_atoms": (0, 0)}, peer=reference_peer(reference_valence), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.chain_count", sizes=SIZES, make=_chain_count, reference=reference_chain_count,
        tolerance={"counts": (0, 0)}, peer=reference_peer(reference_chain_count), work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.chain_values", sizes=SIZES, make=_chain_values, reference=reference_chain_values,
        tolerance={"symbols": (0, 0), "values": (1e-6, 1e-6)}, peer=reference_peer(reference_chain_values),
        work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.kabsch_rmsd", sizes=SIZES, make=_kabsch, reference=reference_kabsch,
        tolerance={"rmsd": (1e-9, 1e-9)}, peer=("numpy SVD", lambda a: lambda: reference_kabsch(a)),
        work=all_bytes, vary=VARY,
    ),
    Case(
        op="core_3d_molecule.gaussian_mmd", sizes={"tiny": {"N": 21, "M": 34}, "bench": {"N": 2000, "M": 2000}},
        make=_mmd, reference=reference_mmd, tolerance={"mmd": (1e-9, 1e-12)},
        peer=("numpy", lambda a: lambda: reference_mmd(a)), work=all_bytes, vary={"N": (1, 40), "M": (1, 40)},
    ),
    Case(
        op="core_3d_molecule.relational_attention", sizes=ATTENTION, make=_attention,
        reference=relational.forward, tolerance=dict.fromkeys(("out", "out_edge", "lse"), (2e-5, 2e-5)),
        peer=("numpy", lambda a: lambda: relational.forward(a)), work=all_bytes, vary=ATTENTION_VARY,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_3d_molecule.relational_attention_backward", sizes=ATTENTION, make=_attention_backward,
        reference=relational.backward, tolerance=dict.fromkeys(GRADIENTS, (2e-4, 2e-4)), sums=True,
        peer=("numpy", lambda a: lambda: relational.backward(a)), work=all_bytes, vary=ATTENTION_VARY,
        devices=("cpu", "cuda"),
    ),
    _attention_case(
        "relational_projections", _projections, relational.projections, 1e-5,
        ["scaled_q", "q_edge", "k_edge", "form"],
    ),
    _attention_case(
        "relational_projections_backward", _projections_backward, relational.projections_backward, 1e-4,
        ["grad_q", "grad_k", "grad_edge_q", "grad_edge_k"],
    ),
    _attention_case("relational_values", _values, relational.values, 1e-5, ["values"]),
    _attention_case(
        "relational_values_backward", _values_backward, relational.values_backward, 1e-4,
        ["grad_out_edge", "grad_edge_v"],
    ),
    *cases_crystals.cases,
]  # fmt: skip
