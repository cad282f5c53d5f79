"""PORTAL (arXiv 2503.13356): trees that are generated with feedback play better from generation to generation."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from core_registry.claims import Claim

from ..games import Game, doom, gym
from ..mutator import Mutator
from ..portal import search
from .plots import axes

SEARCHES, GENERATIONS, CANDIDATES, SEEDS = 2, 10, 12, 5


def claim(size: str, seed: int, out: Path) -> Claim:
    """Some searches by the scripted policy, and one that does not read the analysis; the best tree of each plays ten
    episodes that it has not seen."""
    game: Game = doom() if find_spec("vizdoom") else gym("CartPole-v1")

    def run(number: int, reads: float) -> tuple[list[float], float, float]:
        start = time.perf_counter()
        policy = Mutator(game, SEARCHES * seed + number, reads=reads)
        found = search(game, policy, range(SEEDS), GENERATIONS, CANDIDATES)
        best = game.parse(found.best()[0].text)
        unseen = game.play(best, range(1000, 1010)).metrics[game.goal].mean()
        return found.means(), float(unseen), time.perf_counter() - start

    read = [run(k, 0.75) for k in range(SEARCHES)]
    deaf = run(0, 0.0)
    means, unseen, seconds = (np.array(x) for x in zip(*read, strict=True))
    first, last = means[:, 0], means[:, -1]
    return Claim(
        paper="2503.13356",
        claim="Behaviour trees rewritten with the games' metrics and a reflexion play better with each generation.",
        protocol=f"{game.name}: {SEARCHES} searches of {GENERATIONS} generations of {CANDIDATES} trees on {SEEDS} "
        "seeds, written by a scripted policy that changes the best trees, by chance or as the analysis suggests (the "
        "paper: a language model of 32 B), and one search whose policy does not read the analysis; the best tree "
        "plays 10 other seeds; the spread is the standard deviation over the searches. The paper has no table to "
        "compare with",
        measured={
            f"mean {game.goal}, first generation": (float(first.mean()), float(first.std())),
            f"mean {game.goal}, last generation": (float(last.mean()), float(last.std())),
            f"{game.goal} of the best tree on unseen seeds": (float(unseen.mean()), float(unseen.std())),
            "seconds of a search": (float(seconds.mean()), float(seconds.std())),
            f"mean {game.goal}, last generation, analysis not read": (deaf[0][-1], 0.0),
            f"{game.goal} of its best tree on unseen seeds": (deaf[1], 0.0),
        },
        holds=bool((last > first).all()),
        plot=_plot(game, [(f"search {k + 1}", m) for k, m in enumerate(means)] + [("not read", deaf[0])], out),
    )


def _plot(game: Game, searches: list[tuple[str, list[float]]], out: Path) -> Path:
    path = out / "portal.png"
    with axes(path) as ax:
        for name, means in searches:
            ax.plot(range(1, len(means) + 1), means, "--" if name == "not read" else "o-", label=name)
        ax.set(xlabel="generation", ylabel=game.goal, title=f"candidates' mean {game.goal}, {game.name}")
        ax.legend()
    return path
