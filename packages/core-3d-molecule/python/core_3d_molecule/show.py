"""Pictures of molecules and crystals: turnable ones in a web page, and grids in a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .bonds import edm_bonds
from .crystals import Crystals
from .elements import SYMBOLS
from .structures import Structures

MOST_SHOWN = 64
COLOURS = {1: "#dddddd", 6: "#404040", 7: "#3050f8", 8: "#ff0d0d", 9: "#60c040", 16: "#d0b020", 17: "#1ff01f"}
EDGES = [(a, a | 1 << k) for a in range(8) for k in range(3) if not a >> k & 1]


def page(path: str | Path, shown: Structures | Crystals, columns: int = 4) -> None:
    """Writes an HTML page with the first 64 structures or crystals, in rows of `columns`, that the mouse turns.

    Needs py3Dmol (the extra `show`); the page loads 3Dmol.js from the network.
    """
    import py3Dmol

    texts = [_xyz(numbers, positions) for numbers, positions, _ in _drawn(shown)]
    cells = [lattice for _, _, lattice in _drawn(shown)]
    rows = -(-max(len(texts), 1) // columns)
    view = py3Dmol.view(width=240 * columns, height=240 * rows, viewergrid=(rows, columns), linked=False)
    for k, (text, cell) in enumerate(zip(texts, cells, strict=True)):
        at = divmod(k, columns)
        view.addModel(text, "xyz", viewer=at)
        for a, b in EDGES if cell is not None else []:
            ends = [dict(zip("xyz", map(float, _corner(x) @ cell), strict=True)) for x in (a, b)]
            view.addLine({"start": ends[0], "end": ends[1], "color": "gray"}, viewer=at)
    view.setStyle({"stick": {"radius": 0.12}, "sphere": {"scale": 0.25}})
    view.zoomTo()
    with replace(path) as temporary:
        temporary.write_text(str(view.write_html(fullpage=True)), "utf-8")


def grid(path: str | Path, shown: Structures | Crystals, columns: int = 4) -> None:
    """Draws the first 64 structures, with EDM's bonds, or crystals, in their cells, into a PNG file (matplotlib)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = _drawn(shown)
    rows = -(-max(len(drawn), 1) // columns)
    figure = plt.figure(figsize=(2.4 * columns, 2.4 * rows))
    lines = _bond_lines(shown) if isinstance(shown, Structures) else [np.empty((0, 2, 3))] * len(drawn)
    for k, ((numbers, positions, cell), segments) in enumerate(zip(drawn, lines, strict=False)):
        axes = figure.add_subplot(rows, columns, k + 1, projection="3d")
        colours = [COLOURS.get(int(z), "#c080c0") for z in numbers]
        sizes = np.where(np.asarray(numbers) == 1, 25, 70)
        axes.scatter(*positions.T, c=colours, s=sizes, edgecolors="black", linewidths=0.4, depthshade=False)
        edges = [np.stack([_corner(a), _corner(b)]) @ cell for a, b in EDGES] if cell is not None else []
        for segment in (*segments, *edges):
            axes.plot(*np.asarray(segment).T, color="#808080", linewidth=0.8)
        axes.set_axis_off()
        axes.set_aspect("equal")
    figure.tight_layout(pad=0.2)
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _drawn(shown: Structures | Crystals) -> list[tuple[Any, Any, Any]]:
    """Numbers, Cartesian positions and lattice, or None, of the first structures."""
    first = shown.select(np.arange(min(len(shown), MOST_SHOWN)))
    if isinstance(first, Crystals):
        return [(numbers, fractional @ lattice, lattice) for numbers, fractional, lattice in first]
    return [(numbers, positions, None) for numbers, positions in first]


def _bond_lines(structures: Structures) -> list[Any]:
    """The ends (n, 2, 3) of the bonds of each structure."""
    bonds, _, offsets = edm_bonds(structures)
    return np.split(np.asarray(structures.positions)[bonds], offsets[1:-1])


def _corner(k: int) -> Any:
    return np.array([k & 1, k >> 1 & 1, k >> 2], np.float64)


def _xyz(numbers: Any, positions: Any) -> str:
    rows = [f"{SYMBOLS[z]} {x:.5f} {y:.5f} {w:.5f}" for z, (x, y, w) in zip(numbers, positions.tolist(), strict=True)]
    return "\n".join([str(len(rows)), "", *rows])
