"""The survey of agent evaluation (arXiv 2503.16416): one success rate hides how reliable an agent is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim

from .. import evaluation
from ..games import Policy, gym
from ..rollout import environments, play
from .plots import axes

TASKS, TRIALS, STEPS, ENV = 50, 16, 200, "CartPole-v1"


def trials(noise: float, seed: int) -> list[dict[str, object]]:
    """Runs of a behaviour tree that balances a pole and errs at random: 50 tasks of 16 trials each.

    A task is a start state (a seed of the environment), a trial succeeds if the pole stands for 200 steps.
    """
    game, made = gym(ENV), environments(ENV, TASKS)
    tree, actions = game.parse((files("core_agents") / "cartpole.txt").read_text(encoding="utf-8")), len(game.actions)
    runs: list[dict[str, object]] = []
    try:
        for trial in range(TRIALS):
            rng = np.random.default_rng([seed, trial])
            policy = game.policy(tree, TASKS)

            def act(observations: np.ndarray, rng: np.random.Generator = rng, policy: Policy = policy) -> np.ndarray:
                return np.where(rng.random(TASKS) < noise, rng.integers(actions, size=TASKS), policy(observations))

            played = play(act, made, range(STEPS), seed)
            runs += [{"task": str(t), "success": float(n >= STEPS)} for t, n in enumerate(played.lengths)]
    finally:
        made.close()
    return runs


def claim(size: str, seed: int, out: Path) -> Claim:
    """One agent, 800 runs; the sizes are the same."""
    noise = 0.4
    found = evaluation.summarise(trials(noise, seed), seed=seed)
    single, often, always = found["success"], found["pass_at_k"][8], found["pass_hat_k"][8]
    return Claim(
        paper="2503.16416",
        claim="One success rate is not enough to judge an agent: reliability over trials differs from it.",
        protocol=f"a behaviour tree for {ENV}, {noise:.0%} of whose actions are random, {TASKS} start states, "
        f"{TRIALS} trials each, success is standing for {STEPS} steps; pass@8 (one of eight succeeds) and pass^8 (all "
        "do) against the mean success, spread: half the interval of 95 % over tasks. The survey has no experiment of "
        "its own",
        measured={
            name: (float(e.value), float(e.high - e.low) / 2)
            for name, e in (("success", single), ("pass@8", often), ("pass^8", always))
        },
        holds=bool(always.high < single.low and single.high < often.low),
        plot=_plot(found, out / "evaluation.png"),
    )


def _plot(found: dict[str, Any], path: Path) -> Path:
    with axes(path) as ax:
        for name, label in (("pass_at_k", "pass@k: one of k succeeds"), ("pass_hat_k", "pass^k: all k succeed")):
            k = list(found[name])
            values, low, high = ([getattr(e, what) for e in found[name].values()] for what in ("value", "low", "high"))
            (line,) = ax.plot(k, values, "o-", label=label)
            ax.fill_between(k, low, high, color=line.get_color(), alpha=0.2)
        ax.axhline(found["success"].value, color="grey", linestyle="--", label="success")
        ax.set(xlabel="k", ylabel="share of tasks", ylim=(0, 1), title=f"one agent on {ENV}, intervals of 95 %")
        ax.legend()
    return path
