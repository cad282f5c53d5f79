"""One behaviour tree plays an episode of a Gymnasium environment for many agents: the job `core run agents.rollout`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from core_registry.files import replace

from .forms import ParseError
from .games import gym


def environments(env: str, agents: int) -> Any:
    """A Gymnasium vector environment: the environment's own vectorised form if it has one."""
    import gymnasium

    native = gymnasium.spec(env).vector_entry_point is not None
    return gymnasium.make_vec(env, num_envs=agents, vectorization_mode="vector_entry_point" if native else "sync")


@dataclass
class Rollout:
    """`returns` float64 [agents] and `lengths` int64 [agents] of each agent's first episode (cut off at the last
    step), and by step, if recorded, the `observations` [agents, features] and `actions` [agents]."""

    returns: np.ndarray
    lengths: np.ndarray
    observations: list[np.ndarray]
    actions: list[np.ndarray]


def play(
    act: Callable[[np.ndarray], np.ndarray], made: Any, steps: Iterable[int], seed: int, record: bool = False
) -> Rollout:
    """Plays one episode per agent: `act` maps observations float32 [agents, features] to actions int64 [agents]."""
    observations, _ = made.reset(seed=seed)
    playing = np.ones(made.num_envs, bool)
    out = Rollout(np.zeros(made.num_envs), np.zeros(made.num_envs, np.int64), [], [])
    for _ in steps:
        observations = np.asarray(observations, np.float32)
        actions = act(observations)
        if record:
            out.observations.append(observations.copy())
            out.actions.append(actions.copy())
        observations, rewards, terminated, truncated, _ = made.step(actions)
        out.returns += np.where(playing, rewards, 0)
        out.lengths += playing
        playing &= ~(terminated | truncated)
        if not playing.any():
            break
    return out


def rollout(
    tree: Annotated[Path, typer.Argument(help="Text of the tree", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write")],
    env: Annotated[str, typer.Option(help="Gymnasium environment with discrete actions")] = "CartPole-v1",
    agents: Annotated[int, typer.Option(help="Agents that play at once", min=1)] = 1000,
    steps: Annotated[int, typer.Option(help="Steps at most", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the environment", min=0)] = 0,
) -> None:
    """Let one behaviour tree play an episode for many agents at once; write their returns (2503.13356)."""
    from rich.progress import track

    try:
        game = gym(env)
        act = game.policy(game.parse(tree.read_text(encoding="utf-8")), agents)
        made = environments(env, agents)
    except ParseError as e:
        raise typer.BadParameter(f"{tree}: {e}") from None
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    start = time.perf_counter()
    try:
        played = play(act, made, track(range(steps), "playing"), seed)
    finally:
        made.close()
    result = {
        "tree": tree.read_text(encoding="utf-8"),
        "env": env,
        "agents": agents,
        "steps": int(played.lengths.max()),
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "mean_return": float(played.returns.mean()),
        "std_return": float(played.returns.std()),
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
    }
    with replace(output) as temporary:
        temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
