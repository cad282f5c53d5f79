"""The case table of core-agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case

from . import behaviour_tree as bt
from .action_tokens import INVENTORY, JARVIS_CAMERA
from .cases_traces import trace_cases
from .reference import action_tokens as tokens_reference
from .reference import behaviour_tree as reference
from .reference import statistics as statistics_reference
from .reference import traces as traces_reference

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
        "log": None if nodes == 50 else np.empty((len(program), agents), np.uint8),
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
    tree = bt.decompile(arrays, args["observations"].shape[1])
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


CAMERA: Args = dataclasses.asdict(JARVIS_CAMERA)


def make_actions(rng: np.random.Generator, actions: int) -> Args:
    """Buttons that contradict each other now and then, angles at rest, within and beyond the largest."""
    camera = rng.normal(0, 6, (actions, 2)) * (rng.random((actions, 2)) < 0.6)
    return {
        "buttons": rng.random((actions, 20)) < np.where(np.arange(20) == 10, 0.05, 0.3),
        "camera": camera.astype(np.float32),
        **CAMERA,
        "button_ids": np.empty(actions, np.int32),
        "camera_ids": np.empty(actions, np.int32),
    }


def make_joint(rng: np.random.Generator, actions: int) -> Args:
    """Any pairs of ids, legal or not."""
    return {
        "button_ids": rng.integers(INVENTORY + 1, size=actions, dtype=np.int32),
        "camera_ids": rng.integers(21 * 21, size=actions, dtype=np.int32),
        **CAMERA,
        "buttons": np.empty((actions, 20), bool),
        "camera": np.empty((actions, 2), np.float32),
    }


def make_chunks(rng: np.random.Generator, chunks: int, actions: int) -> Args:
    """Legal pairs of ids."""
    shape, null = (chunks, actions), JARVIS_CAMERA.null_id
    buttons = rng.integers(INVENTORY + 1, size=shape, dtype=np.int32)
    cameras = rng.integers(JARVIS_CAMERA.bins**2, size=shape, dtype=np.int32)
    cameras[(buttons == INVENTORY) | (buttons % 2 == 0)] = null
    cameras[(buttons % 2 == 1) & (cameras == null)] = 0
    return {
        "button_ids": buttons,
        "camera_ids": cameras,
        "vocabulary": 75,
        "first_id": 151833,
        "pad_id": -1,
        "tokens": np.empty((chunks, 12 * actions), np.int64),
        "lengths": np.empty(chunks, np.int64),
    }


def make_tokens(rng: np.random.Generator, chunks: int, actions: int) -> Args:
    """Tokens of chunks, shuffled over short stretches, some replaced by others."""
    made = make_chunks(rng, chunks, actions)
    tokens = tokens_reference.encode_tokens(made)["tokens"]
    broken = rng.random(tokens.shape) < 0.1
    tokens[broken] = rng.integers(151825, 151915, broken.sum())
    return {
        "tokens": tokens,
        "vocabulary": 75,
        "first_id": 151833,
        "button_ids": np.empty((chunks, actions), np.int32),
        "camera_ids": np.empty((chunks, actions), np.int32),
        "counts": np.empty(chunks, np.int64),
    }


def peer_actions(args: Args) -> Callable[[], Args]:
    """VPT's rules over whole arrays in numpy, float64 logarithms."""
    low, high = np.full(2, -args["maxval"]), np.full(2, args["maxval"])
    bins = 2 * round(args["maxval"] / args["binsize"]) + 1

    def run() -> Args:
        buttons = args["buttons"].astype(np.int32)
        attack, back, forward, jump, left, right, sneak, sprint, use, drop, inventory = buttons[:, :11].T
        hotbar = (buttons[:, 11:] * np.arange(1, 10)).max(1)
        fore_back, left_right = (forward != back) * (forward + 2 * back), (left != right) * (left + 2 * right)
        id_ = hotbar
        for size, value in ((3, fore_back), (3, left_right), (3, np.maximum(sprint, 2 * sneak))):
            id_ = id_ * size + value
        for value in (use, drop, attack, jump):
            id_ = id_ * 2 + value
        x = np.clip(args["camera"].astype(np.float64), low, high)
        x = np.sign(x) * np.log(1 + args["mu"] * np.abs(x) / high) / np.log(1 + args["mu"]) * high
        view = np.round((x + high) / args["binsize"]).astype(np.int32) @ np.array([bins, 1], np.int32)
        view = np.where(inventory, bins * bins // 2, view)
        id_ = np.where(inventory, INVENTORY, id_ * 2 + (view != bins * bins // 2))
        return {"button_ids": id_, "camera_ids": view}

    return run


def peer_joint(args: Args) -> Callable[[], Args]:
    """Look-up of all ids and bins in numpy."""
    all_ids = {**args, "button_ids": np.arange(INVENTORY + 1), "camera_ids": np.zeros(INVENTORY + 1, np.int64)}
    table = tokens_reference.decode_actions(all_ids)["buttons"]
    angles = tokens_reference.angle_of(np.arange(21), args["maxval"], args["binsize"], args["mu"]).astype(np.float32)

    def run() -> Args:
        ids = args["button_ids"]
        moves = (ids % 2 == 1) & (ids != INVENTORY)
        camera = angles[np.stack(np.divmod(args["camera_ids"], 21), 1)]
        return {"buttons": table[ids], "camera": np.where(moves[:, None], camera, np.float32(0))}

    return run


def make_ratings(rng: np.random.Generator, units: int, labels: int, raters: int) -> Args:
    """Ratings of three classes with gaps, for Krippendorff's alpha."""
    return {
        "ratings": rng.integers(-1, 3, (units, labels, raters), dtype=np.int32),
        "classes": 3,
        "statistic": "krippendorff",
        "tables": np.empty((units, 1, 9)),
    }


def make_rows(rng: np.random.Generator, units: int, width: int, replicates: int) -> Args:
    """Small integers, whose sums are exact."""
    rows = rng.integers(-9, 9, (units, width)).astype(np.float64)
    return {"rows": rows, "seed": int(rng.integers(2**40)), "sums": np.empty((replicates, width))}


def make_summed(rng: np.random.Generator, tables: int, classes: int) -> Args:
    """Confusion matrices of two raters."""
    return {
        "tables": rng.integers(1, 90, (tables, classes * classes)).astype(np.float64),
        "values": np.arange(float(classes)),
        "raters": 2,
        "statistic": "cohen",
        "metric": "quadratic",
        "out": np.empty(tables),
    }


def peer_rows(args: Args) -> Callable[[], Args]:
    """numpy: the same number of draws, and sums of the rows drawn."""
    rng = np.random.default_rng(0)

    def run() -> Args:
        rows = args["rows"]
        return {"sums": np.stack([rows[rng.integers(len(rows), size=len(rows))].sum(0) for _ in args["sums"]])}

    return run


def same_law(args: Args, ours: Args, peers: Args) -> float:
    """0 if the means over the replicates are within six standard errors of the rows' sum, for both."""
    rows, n = args["rows"], len(args["sums"])
    allowed = 6 * np.sqrt(len(rows) * rows.var(0) / n) + 1e-9
    means = [abs(x["sums"].mean(0) - rows.sum(0)) for x in (ours, peers)]
    return 0.0 if all((m <= allowed).all() for m in means) else float("inf")


def make_text(rng: np.random.Generator, messages: int, words: int) -> Args:
    """Messages of up to `words` words from a small vocabulary, some of them empty."""
    vocabulary = [f"{w}{i}" for i in range(40) for w in ("Plan", "tést", "x_", "42-")]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(words + 1))).encode() for _ in range(messages)]
    return {
        "text": np.frombuffer(b"".join(texts), np.uint8).copy(),
        "offsets": np.cumsum([0, *map(len, texts)]),
        "sketches": np.empty((messages, 64), np.int64),
    }


def make_sketches(rng: np.random.Generator, messages: int, width: int) -> Args:
    """Sketches of which half are copies of an earlier one with some minima replaced."""
    sketches = rng.integers(-1, 2**31, (messages, width))
    sketches[rng.random(sketches.shape) < 0.2] = -1
    for j in range(1, messages):
        if rng.random() < 0.5:
            kept = rng.random(width) < rng.uniform(0.6, 1)
            sketches[j, kept] = sketches[rng.integers(j), kept]
    return {
        "sketches": sketches,
        "agents": rng.integers(2, size=messages, dtype=np.int32),
        "threshold": 0.75,
        "earlier": np.empty(messages, np.int32),
    }


TICK = Case(
    op="core_agents.tick",
    devices=("cpu", "cuda"),
    sizes={
        "tiny": {"nodes": 30, "agents": 9, "features": 4},
        "bench": {"nodes": 50, "agents": 1000, "features": 8},
    },
    make=make_tick,
    reference=reference.tick,
    tolerance=dict.fromkeys(("state", "counters", "actions", "statuses", "log"), (0, 0)),
    peer=("py_trees", peer_tick),
    work=work_tick,
    inout=("state", "counters"),
    vary={"nodes": (1, 60), "agents": (0, 300)},
)

cases = [
    *trace_cases,
    Case(
        op="core_agents.text_sketches",
        sizes={"tiny": {"messages": 6, "words": 9}, "bench": {"messages": 2000, "words": 400}},
        make=make_text,
        reference=traces_reference.text_sketches,
        tolerance={"sketches": (0, 0)},
        work=lambda a: (a["text"].nbytes + a["sketches"].nbytes, 0),
        vary={"messages": (0, 9), "words": (0, 30)},
    ),
    Case(
        op="core_agents.near_duplicates",
        sizes={"tiny": {"messages": 12, "width": 16}, "bench": {"messages": 2000, "width": 64}},
        make=make_sketches,
        reference=traces_reference.near_duplicates,
        tolerance={"earlier": (0, 0)},
        vary={"messages": (0, 20), "width": (1, 20)},
    ),
    Case(
        op="core_agents.agreement_tables",
        sizes={"tiny": {"units": 6, "labels": 2, "raters": 3}, "bench": {"units": 1642, "labels": 14, "raters": 3}},
        make=make_ratings,
        reference=statistics_reference.agreement_tables,
        tolerance={"tables": (1e-13, 1e-13)},
        vary={"units": (0, 9), "labels": (1, 4)},
    ),
    Case(
        op="core_agents.bootstrap_sums",
        sizes={
            "tiny": {"units": 7, "width": 3, "replicates": 5},
            "bench": {"units": 1642, "width": 4, "replicates": 2000},
        },
        make=make_rows,
        reference=statistics_reference.bootstrap_sums,
        tolerance={"sums": (0, 0)},
        peer=("numpy", peer_rows),
        agree=same_law,
        work=lambda a: (a["sums"].nbytes, 2 * a["rows"].size * len(a["sums"])),
        vary={"units": (1, 20), "width": (0, 6), "replicates": (0, 6)},
    ),
    Case(
        op="core_agents.agreement",
        sizes={"tiny": {"tables": 5, "classes": 3}, "bench": {"tables": 10_000, "classes": 4}},
        make=make_summed,
        reference=statistics_reference.agreement,
        tolerance={"out": (1e-12, 1e-12)},
        vary={"tables": (0, 9), "classes": (2, 5)},
    ),
    Case(
        op="core_agents.encode_actions",
        sizes={"tiny": {"actions": 40}, "bench": {"actions": 200_000}},
        make=make_actions,
        reference=tokens_reference.encode_actions,
        tolerance={"button_ids": (0, 0), "camera_ids": (0, 0)},
        peer=("numpy", peer_actions),
        work=lambda a: (len(a["buttons"]) * 36, 0),
        vary={"actions": (0, 600)},
    ),
    Case(
        op="core_agents.decode_actions",
        sizes={"tiny": {"actions": 40}, "bench": {"actions": 200_000}},
        make=make_joint,
        reference=tokens_reference.decode_actions,
        tolerance={"buttons": (0, 0), "camera": (1e-6, 1e-6)},
        peer=("numpy", peer_joint),
        work=lambda a: (len(a["buttons"]) * 36, 0),
        vary={"actions": (0, 600)},
    ),
    Case(
        op="core_agents.encode_tokens",
        sizes={"tiny": {"chunks": 5, "actions": 3}, "bench": {"chunks": 20_000, "actions": 4}},
        make=make_chunks,
        reference=tokens_reference.encode_tokens,
        tolerance={"tokens": (0, 0), "lengths": (0, 0)},
        peer=("Python, by name", lambda a: lambda: tokens_reference.encode_tokens(a)),
        work=lambda a: (a["tokens"].nbytes + 2 * a["button_ids"].nbytes, 0),
        vary={"chunks": (0, 9), "actions": (0, 5)},
    ),
    Case(
        op="core_agents.decode_tokens",
        sizes={"tiny": {"chunks": 5, "actions": 3}, "bench": {"chunks": 20_000, "actions": 4}},
        make=make_tokens,
        reference=tokens_reference.decode_tokens,
        tolerance={"button_ids": (0, 0), "camera_ids": (0, 0), "counts": (0, 0)},
        peer=("Python, by name", lambda a: lambda: tokens_reference.decode_tokens(a)),
        work=lambda a: (a["tokens"].nbytes + 2 * a["button_ids"].nbytes, 0),
        vary={"chunks": (0, 9), "actions": (0, 5)},
    ),
    Case(
        op="core_agents.check_program",
        sizes={"tiny": {"nodes": 30, "features": 4}, "bench": {"nodes": 1000, "features": 8}},
        make=make_check,
        reference=reference_check,
        tolerance={"rows": (0, 0), "sizes": (0, 0)},
        vary={"nodes": (1, 60)},
    ),
    TICK,
    dataclasses.replace(TICK, op="core_agents.tick_scalar", devices=("cpu",)),
]
