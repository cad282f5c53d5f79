"""The demonstration: 1,000 agents balance Gymnasium's CartPole with one shared behaviour tree."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from core_registry.demo import Demo, Picture
from core_registry.files import replace

from . import behaviour_tree as bt
from .games import gym
from .pictures import draw
from .rollout import environments, play

_ENV, _AGENTS, _STEPS = "CartPole-v1", 1000, 500


def demo(out: Path) -> Demo:
    """Tree against random policy, and every action of 1,000 agents against py_trees."""
    from .adapters import to_py_trees

    text = (files("core_agents") / "cartpole.txt").read_text(encoding="utf-8")
    game = gym(_ENV)
    tree, made = game.parse(text), environments(_ENV, _AGENTS)
    program = bt.compile(tree, len(game.features))
    played = play(game.policy(tree, _AGENTS), made, range(_STEPS), 0, record=True)
    rng = np.random.default_rng(0)
    chance = play(lambda o: rng.integers(len(game.actions), size=len(o)), made, range(_STEPS), 0)
    made.close()
    if played.returns.mean() < 5 * chance.returns.mean():
        raise RuntimeError(
            f"the tree's return {played.returns.mean():.1f} is too near chance, {chance.returns.mean():.1f}"
        )

    everyone = [to_py_trees(program) for _ in range(_AGENTS)]
    difference, seconds = 0, []
    for t, (observations, actions) in enumerate(zip(played.observations, played.actions, strict=True)):
        compared = everyone if t < 15 else everyone[:20]
        rows = observations.tolist()
        start = time.perf_counter()
        theirs = [peer.tick(row)[1] for peer, row in zip(compared, rows, strict=False)]
        if t < 15:
            seconds.append(time.perf_counter() - start)
        difference = max(difference, int(np.abs(theirs - actions[: len(compared)]).max()))

    again, ours = bt.BatchedTree(program, _AGENTS), []
    running = 0.0
    for observations in played.observations:
        start = time.perf_counter()
        status = again.tick(observations)
        ours.append(time.perf_counter() - start)
        running += float((status == bt.RUNNING).mean()) / len(played.observations)
    path = _picture(tree, text, played.returns, chance.returns, out)
    return Demo(
        what="behaviour tree, many agents at once",
        input=f"Gymnasium {_ENV}, {_AGENTS} agents, {len(played.actions)} steps, {len(program)} nodes",
        ours=float(np.median(ours)),
        peer="py_trees, one tree per agent",
        peers=float(np.median(seconds)),
        difference=difference,
        tolerance=0,
        pictures=[Picture("One tree for 1,000 carts", path)],
        figures={
            "mean return, tree": f"{played.returns.mean():.1f} of {_STEPS}",
            "mean return, random": f"{chance.returns.mean():.1f}",
            "per tick of 1,000 agents": f"{np.median(ours) * 1e6:.0f} us, py_trees {np.median(seconds) * 1e3:.1f} ms",
            "ticks that end RUNNING": f"{running:.0%}",
            "actions compared with py_trees": f"{15 * _AGENTS + 20 * (len(played.actions) - 15):,}",
        },
    )


def _picture(tree: bt.Node, text: str, returns: np.ndarray, chance: np.ndarray, out: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), width_ratios=[1.3, 1], layout="constrained")
    written = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    draw(tree, left, written)
    left.set_title("the tree that all agents share")
    bins = np.linspace(0, _STEPS, 51)
    right.hist(chance, bins, label=f"random, mean {chance.mean():.1f}", color="#d98880")
    right.hist(returns, bins, label=f"tree, mean {returns.mean():.1f}", color="#7dbb7d")
    right.set_xlabel(f"return of an episode of {_ENV}")
    right.set_ylabel("agents")
    right.legend(loc="upper center")
    path = out / "agents_cartpole.png"
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
