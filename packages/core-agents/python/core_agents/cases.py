"""The case table of core-agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import behaviour_tree as bt
from .reference import behaviour_tree as reference

Args = dict[str, Any]


def combat_tree(rng: np.random.Generator, features: int, constant: bool = False) -> bt.Node:
    """A tree of 50 nodes: one selector, seven sequences, 42 leaves (each sequence five tests and an action).

    With ``constant`` every leaf is constant and a tick visits all 50 nodes: each sequence fails at its last leaf.
    """
    branches = []
    for branch in range(7):
        leaves: list[bt.Node] = []
        for k in range(5):
            feature, threshold = int(rng.integers(features)), float(np.float32(rng.normal(-0.3, 0.5)))
            leaves.append(bt.Success("yes") if constant else bt.Condition(f"{branch}.{k}", feature, ">=", threshold))
        leaves.append(bt.Failure("no") if constant else bt.Action(f"do {branch}", branch))
        branches.append(bt.Sequence(f"branch {branch}", False, leaves))
    return bt.Selector("root", False, branches)


def _program(rng: np.random.Generator, nodes: int, features: int) -> bt.Program:
    if nodes == 50:
        return bt.compile(combat_tree(rng, features), features)
    return bt.compile(reference.random_tree(rng, nodes, features), features)


def make_tick(rng: np.random.Generator, nodes: int, agents: int, features: int) -> Args:
    """A random tree (the tree of :func:`combat_tree` for 50 nodes) whose agents are some ticks into it."""
    program = _program(rng, nodes, features)
    state = np.zeros((program.state_rows, agents), np.uint8)
    counters = np.zeros((program.counter_rows, agents), np.int32)
    for a in range(agents if program.state_rows else 0):
        agent = reference.Agent(program.arrays)
        for _ in range(3):
            agent.tick(rng.normal(size=features).astype(np.float32))
        agent.store(program.rows, state[:, a], counters[:, a])
    return {
        **program.arrays,
        "observations": rng.normal(size=(agents, features)).astype(np.float32),
        "mask": None if nodes == 50 else rng.random(agents) < 0.8,
        "state": state,
        "counters": counters,
        "actions": np.empty(agents, np.int32),
        "statuses": np.empty(agents, np.uint8),
    }


def make_check(rng: np.random.Generator, nodes: int, features: int) -> Args:
    """A random tree's arrays."""
    program = _program(rng, nodes, features)
    rows, sizes = np.empty(len(program), np.int32), np.empty(2, np.int64)
    return {**program.arrays, "num_features": features, "rows": rows, "sizes": sizes}


def reference_check(args: Args) -> Args:
    """Which nodes keep something, from the definition in the header."""
    return dict(zip(("rows", "sizes"), reference.sizes({name: args[name] for name in bt.ARRAYS}), strict=True))


def peer_tick(args: Args) -> Callable[[], Args]:
    """One py_trees tree per agent, in the agents' state; ``state`` and ``counters`` stay with py_trees."""
    from .adapters import to_py_trees

    arrays = {name: args[name] for name in bt.ARRAYS}
    tree = bt.decompile(arrays)
    rows, _ = reference.sizes(arrays)
    peers = [to_py_trees(tree) for _ in args["actions"]]
    for a, peer in enumerate(peers):
        peer.load(rows, args["state"][:, a], args["counters"][:, a])
    observations = args["observations"].tolist()
    ticks = np.ones(len(peers), bool) if args["mask"] is None else args["mask"]
    statuses, actions = args["statuses"].copy(), args["actions"].copy()

    def run() -> Args:
        for a in np.flatnonzero(ticks).tolist():
            statuses[a], actions[a] = peers[a].tick(observations[a])
        return {"statuses": statuses, "actions": actions}

    return run


def work_tick(args: Args) -> tuple[float, float]:
    """Bytes of the arrays of agents, state twice; one comparison per condition."""
    once = sum(args[k].nbytes for k in ("observations", "actions", "statuses"))
    twice = sum(args[k].nbytes for k in ("state", "counters"))
    reads = np.isin(args["kinds"], (bt.Kind.CONDITION, bt.Kind.GUARD, bt.Kind.ACTION_WHILE))
    return once + 2.0 * twice, float(len(args["actions"]) * reads.sum())


cases = [
    Case(
        op="core_agents.check_program",
        sizes={"tiny": {"nodes": 30, "features": 4}, "bench": {"nodes": 1000, "features": 8}},
        make=make_check,
        reference=reference_check,
        tolerance={"rows": (0, 0), "sizes": (0, 0)},
        vary={"nodes": (1, 60)},
    ),
    Case(
        op="core_agents.tick",
        sizes={
            "tiny": {"nodes": 30, "agents": 9, "features": 4},
            "bench": {"nodes": 50, "agents": 1000, "features": 8},
        },
        make=make_tick,
        reference=reference.tick,
        tolerance=dict.fromkeys(("state", "counters", "actions", "statuses"), (0, 0)),
        peer=("py_trees", peer_tick),
        work=work_tick,
        inout=("state", "counters"),
        vary={"nodes": (1, 60), "agents": (0, 300)},
    ),
]
