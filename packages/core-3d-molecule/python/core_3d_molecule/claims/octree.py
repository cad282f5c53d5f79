"""Uni-3DAR (arXiv 2503.16278): subtree codes shorten the token sequence up to eight times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace

from .. import data
from ..demo import roundtrip_error
from ..octree import TREE, OctreeTokenizer, Tokens


def claim(size: str, seed: int, out: Path) -> Claim:
    """Counts tokens with and without subtree codes on all of QM9 (G2 without `qm9pack`); `seed` draws the halves."""
    structures = data.qm9() if data.has_qm9() else data.g2()
    source = f"{'QM9' if data.has_qm9() else 'G2'}, {len(structures):,} molecules"
    tokenizer = OctreeTokenizer()
    tokens = tokenizer.tokenize(structures)
    error = roundtrip_error(tokenizer, structures, tokens)
    with_codes, children, atoms = _per_molecule(tokens)
    tree = children / (with_codes - atoms - 1)
    whole = (children + atoms + 1) / with_codes
    halves = np.random.default_rng(seed).permutation(len(whole)) % 2
    plot = out / "octree-tokens.png"
    _plot(children + atoms + 1, with_codes, plot)

    def measured(values: np.ndarray) -> tuple[float, float]:
        return float(values.mean()), float(abs(values[halves == 0].mean() - values[halves == 1].mean()))

    return Claim(
        paper="2503.16278",
        claim="Two-level subtree codes (one token for the eight children of a node) shorten the tree eight times.",
        protocol=f"{source}; cells of 0.24 angstroms, depth {tokenizer.merge_level}; without codes each of a "
        "node's eight children is a token, so the tree's factor is eight by construction and the whole "
        "molecule's is the one to judge by; the spread is the difference of two random halves; it is read back, too",
        measured={
            "tokens of a tree without codes / with": measured(tree),
            "tokens of a whole molecule without codes / with": measured(whole),
            "tokens of a molecule": measured(with_codes.astype(np.float64)),
            "largest error of a coordinate (angstroms)": (error, 0.0),
        },
        holds=bool(np.allclose(tree, 8)) and error <= tokenizer.resolution / 2 + 1e-6,
        plot=plot,
    )


def _per_molecule(tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, children of all nodes (occupied or not: 8 each), and atoms of each structure."""
    starts = tokens.offsets[:-1]
    lengths = np.diff(tokens.offsets)
    nodes = np.add.reduceat((tokens.tokens >= TREE).astype(np.int64), starts)
    atoms = np.add.reduceat((tokens.levels == 0).astype(np.int64), starts)
    return lengths, 8 * nodes, atoms


def _plot(without: np.ndarray, with_codes: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5))
    bins = np.geomspace(max(with_codes.min() / 1.2, 1), without.max() * 1.2, 80)
    axes.hist(with_codes, bins, label=f"with subtree codes: {with_codes.mean():.1f}")
    axes.hist(without, bins, label=f"without: {without.mean():.1f}")
    axes.set_xscale("log")
    axes.set_xlabel("tokens of a molecule")
    axes.set_ylabel("molecules")
    axes.legend()
    figure.tight_layout()
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
