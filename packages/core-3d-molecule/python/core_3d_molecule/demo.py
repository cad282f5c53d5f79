"""The demonstration: real molecules to octree tokens and back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from core_registry.demo import Demo, Picture
from core_registry.files import replace
from core_registry.timing import fastest

from . import data
from .cases_octree import GRID, reference_tokenize
from .octree import OctreeTokenizer, Tokens
from .structures import Structures


def demo(out: Path) -> Demo:
    """G2, or 2,000 molecules of QM9 if `qm9pack` is installed: streams equal to the reference's, and the round trip."""
    structures, source = (data.qm9(2000), "QM9") if data.has_qm9() else (data.g2(), "ASE's G2")
    tokenizer = OctreeTokenizer()
    ours = fastest(lambda: tokenizer.tokenize(structures), 0.2)
    tokens = tokenizer.tokenize(structures)
    begin = time.perf_counter()
    expected = reference_tokenize(
        {**vars(structures), **GRID, "keep_first": False, **{k: v for k, v in vars(tokens).items() if k != "offsets"}}
    )
    peers = time.perf_counter() - begin
    difference = max(float(np.abs(getattr(tokens, k) - v).max()) for k, v in expected.items())
    error = roundtrip_error(tokenizer, structures, tokens)
    back = fastest(lambda: tokenizer.detokenize(tokens), 0.2)
    largest = int(np.diff(structures.offsets).argmax())
    picture = out / "octree.png"
    _draw(structures, tokens, largest, picture)
    batch = len(structures)
    return Demo(
        what="octree tokens of molecules and back",
        input=f"{batch} molecules of {source}",
        ours=ours,
        peer="Python reference",
        peers=peers,
        difference=difference,
        tolerance=1e-5,
        pictures=[Picture(f"Molecule {largest}: its atoms in the cells of three levels of the octree", picture)],
        figures={
            "molecules per second, tokenise": f"{batch / ours:,.0f}",
            "molecules per second, detokenise": f"{batch / back:,.0f}",
            "tokens per molecule": f"{len(tokens.tokens) / batch:.1f}",
            "largest error of the round trip": f"{error:.5f} angstroms along an axis, all elements equal",
        },
    )


def roundtrip_error(tokenizer: OctreeTokenizer, structures: Structures, tokens: Tokens) -> float:
    """The largest error along an axis (angstroms); ValueError if an element changes or it exceeds half a bin."""
    back = tokenizer.detokenize(tokens)
    order = tokens.atoms[tokens.atoms >= 0]
    error = float(np.abs(back.positions - structures.positions[order]).max())
    if not (back.numbers == structures.numbers[order]).all() or error > tokenizer.resolution / 2 + 1e-6:
        raise ValueError(f"the round trip is wrong: error {error}")
    return error


def _draw(structures: Structures, tokens: Tokens, which: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = slice(tokens.offsets[which], tokens.offsets[which + 1])
    levels, centres, atoms = tokens.levels[rows], tokens.centres[rows], tokens.atoms[rows]
    positions = structures.positions[atoms[levels == 0]] - tokens.origins[which]
    numbers = structures.numbers[atoms[levels == 0]]
    figure = plt.figure(figsize=(12, 4.2))
    for i, level in enumerate((4, 3, 2)):
        axes = figure.add_subplot(1, 3, i + 1, projection="3d")
        size = 0.24 * 2**level
        nodes = centres[levels == level]
        for x, y, z in nodes:
            lo = np.array([x, y, z]) - size / 2
            for axis in range(3):
                for corner in range(4):
                    start = lo.copy()
                    start[(axis + 1) % 3] += size * (corner & 1)
                    start[(axis + 2) % 3] += size * (corner >> 1)
                    end = start.copy()
                    end[axis] += size
                    axes.plot(*np.stack([start, end], 1), color="#4477aa", linewidth=0.6, alpha=0.6)
        axes.scatter(*positions.T, c=numbers, cmap="tab10", s=30, depthshade=False)
        axes.set_title(f"level {level}: {len(nodes)} nodes of {size:.2f} angstroms", fontsize=10)
        axes.set_axis_off()
        axes.set_box_aspect((1, 1, 1))
    figure.tight_layout()
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
