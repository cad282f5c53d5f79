"""PORTAL (arXiv 2503.13356): trees that are generated with feedback play better from generation to generation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace

from ..games import Game, doom, gym
from ..mutator import Mutator
from ..portal import Search, search

SEARCHES, GENERATIONS, CANDIDATES = 3, 5, 8


def claim(size: str, seed: int, out: Path) -> Claim:
    """Some searches by the scripted policy; the best tree of each plays ten episodes that it has not seen."""
    game: Game = doom() if find_spec("vizdoom") else gym("CartPole-v1")
    searches, unseen = [], []
    for k in range(SEARCHES):
        found = search(game, Mutator(game, SEARCHES * seed + k), range(3), GENERATIONS, CANDIDATES)
        searches.append(found)
        best = game.parse(found.best()[0].text)
        unseen.append(game.play(best, range(1000, 1010)).metrics[game.goal].mean())
    means = np.array([s.means() for s in searches])
    first, last = means[:, 0], means[:, -1]
    return Claim(
        paper="2503.13356",
        claim="Behaviour trees rewritten with the games' metrics and a reflexion play better with each generation.",
        protocol=f"{game.name}: {SEARCHES} searches of {GENERATIONS} generations of {CANDIDATES} trees on 3 seeds, "
        "written by a scripted policy that changes the best trees at random (the paper: a language model of 32 B); the "
        "best tree plays 10 other seeds; the spread is the standard deviation over the searches. The paper has no "
        "table to compare with",
        measured={
            f"mean {game.goal}, first generation": (float(first.mean()), float(first.std())),
            f"mean {game.goal}, last generation": (float(last.mean()), float(last.std())),
            f"{game.goal} of the best tree on unseen seeds": (float(np.mean(unseen)), float(np.std(unseen))),
        },
        holds=bool((last > first).all()),
        plot=_plot(game, searches, out / "portal.png"),
    )


def _plot(game: Game, searches: list[Search], path: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for k, found in enumerate(searches):
        axes.plot(range(1, len(found.generations) + 1), found.means(), "o-", label=f"mean, search {k + 1}")
    axes.set(xlabel="generation", ylabel=game.goal, title=f"candidates' mean {game.goal}, {game.name}")
    axes.legend()
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
