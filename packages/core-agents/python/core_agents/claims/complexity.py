"""BigO(Bench) (arXiv 2503.15242): classes that are inferred by running code agree with known ones."""

from __future__ import annotations

import ast
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
from core_registry.claims import Claim

from ..complexity import CLASSES, Complexity, infer
from .plots import axes

SOURCE = (files("core_agents") / "reference" / "known_complexity.py").read_text(encoding="utf-8")
KNOWN = {n.name: ast.get_docstring(n) or "" for n in ast.parse(SOURCE).body if isinstance(n, ast.FunctionDef)}
"""Functions with "worst time; space", or, for two arguments, the expression in both sizes."""


def _share(right: list[bool]) -> tuple[float, float]:
    mean = float(np.mean(right))
    return mean, math.sqrt(mean * (1 - mean) / len(right))


def claim(size: str, seed: int, out: Path) -> Claim:
    """All known functions, one run each; the sizes are the same."""
    found = {name: infer(SOURCE, name, seed=seed) for name in KNOWN}
    one = {name: text.split("; ") for name, text in KNOWN.items() if ";" in text}
    time = [found[name].time == want for name, (want, _) in one.items()]
    space = [found[name].space == want for name, (_, want) in one.items()]
    two = [found[name].expression == text for name, text in KNOWN.items() if ";" not in text]
    measured = {"share of time classes that are right": _share(time), "share of space classes": _share(space)}
    if two:
        measured["share of expressions in two sizes"] = _share(two)
    return Claim(
        paper="2503.15242",
        claim="Complexity classes inferred by running code agree with known ones: 92 % for time, 84 % for space.",
        protocol=f"{len(one)} functions of one size and {len(two)} of two, chosen by us over {len(CLASSES)} classes "
        "(the paper has human labels of contest solutions); work is counted, not timed; the "
        "spread is the standard error",
        measured=measured,
        holds=measured["share of time classes that are right"][0] >= 0.92 and float(np.mean(space)) >= 0.84,
        plot=_plot(found, out / "complexity.png"),
    )


def _plot(found: dict[str, Complexity], path: Path) -> Path:
    with axes(path, width=8, height=5) as ax:
        shown: set[str] = set()
        for name, result in found.items():
            if result.time in shown:
                continue
            shown.add(result.time)
            worst = np.max(list(result.counts.values()), 0)
            (line,) = ax.plot(result.sizes, worst, ".", label=f"{name}: O({result.time})")
            ax.plot(
                result.sizes, result.fit.predict(np.array(result.sizes, float)), color=line.get_color(), linewidth=1
            )
        ax.set(xscale="log", yscale="log", xlabel="n", ylabel="steps", title="counted work and the class chosen")
        ax.legend(fontsize=8)
    return path
