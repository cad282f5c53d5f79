"""Spec 3.1: the tree of 50 nodes for 1,000 agents against py_trees, BehaviorTree.CPP and bonsai-bt, one thread.

A: constant leaves, all 50 nodes are visited. B: tests of observations, actions write an id. Peers that are not
installed are left out; every ratio needs identical results. For BehaviorTree.CPP A has its own leaves and B scripts
over a blackboard (with and without the time to write the observations there); bonsai-bt has no leaves that read data,
so B is a callback in Python, and A its own `Wait` of no time.
Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_behaviour_tree.py`.
"""

import time

import numpy as np
import pytest
from core_agents import BatchedTree, _core_agents, behaviour_tree, compile, to_py_trees  # noqa: A004
from core_agents.cases import combat_tree

AGENTS, FEATURES = 1000, 8


def seconds(run, repeats=3):
    """The least process time of a run, and what it gave."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return best, result


def py_trees(tree, rows, constant):
    peers = [to_py_trees(tree) for _ in rows]
    return {"py_trees": seconds(lambda: [peer.tick(row) for peer, row in zip(peers, rows, strict=True)])}


def behaviortree_cpp(tree, rows, constant):
    peer = pytest.importorskip("core_agents.behaviortree_cpp", exc_type=ImportError)
    agents = [peer.BehaviorTreeCppAgent(tree, 0 if constant else FEATURES) for _ in rows]

    def tick_only():
        if not constant:
            for agent in agents:
                agent.blackboard.set_int("action", -1)
        return [(agent.tree.tick_exactly_once(), agent) for agent in agents]

    took = {}
    if not constant:
        both = seconds(lambda: [agent.tick(row) for agent, row in zip(agents, rows, strict=True)])
        took["BehaviorTree.CPP, observations written"] = both
    found, ticked = seconds(tick_only)
    result = [(behaviour_tree.Status[status.name], agent.blackboard.get_int("action")) for status, agent in ticked]
    return {"BehaviorTree.CPP": (found, result), **took}


def bonsai(tree, rows, constant):
    bt = pytest.importorskip("bonsai_bt")
    emitted = [-1]

    def build(node):
        if isinstance(node, behaviour_tree.Condition | behaviour_tree.Action):
            if not constant:
                return bt.Action(node)
            done = node.status == behaviour_tree.SUCCESS
            return bt.AlwaysSucceed(bt.Wait(0.0)) if done else bt.Invert(bt.Wait(0.0))
        children = [build(c) for c in node.children]
        return (bt.Sequence if isinstance(node, behaviour_tree.Sequence) else bt.Select)(children)

    made = [bt.BT(build(tree), None) for _ in rows]

    def callback(row):
        def act(arguments, _):
            node = arguments.action
            if isinstance(node, behaviour_tree.Action):
                emitted[0] = node.action
                return bt.Status.Success, 0.0
            holds = row[node.feature] >= node.threshold
            return (bt.Status.Success if holds else bt.Status.Failure), 0.0

        return act

    callbacks = [callback(row) for row in rows]

    def run():
        found = []
        for agent, act in zip(made, callbacks, strict=True):
            emitted[0] = -1
            agent.reset_bt()
            status, _ = agent.tick(0.0, act)
            found.append((behaviour_tree.SUCCESS if "uccess" in str(status) else behaviour_tree.FAILURE, emitted[0]))
        return found

    return {"bonsai-bt": seconds(run)}


@pytest.mark.parametrize("constant", [True, False], ids=["A all nodes, constant leaves", "B observations"])
@pytest.mark.parametrize("peer", [py_trees, behaviortree_cpp, bonsai])
def test_fifty_nodes(benchmark, constant, peer):
    rng = np.random.default_rng(0)
    program = compile(combat_tree(rng, FEATURES, constant), FEATURES)
    observations = rng.normal(size=(AGENTS, FEATURES)).astype(np.float32)
    theirs = peer(program.tree, observations.tolist(), constant)
    batched = BatchedTree(program, AGENTS)
    benchmark(batched.tick, observations)
    ours = list(zip(batched.status.tolist(), batched.actions.tolist(), strict=True))
    scalar = BatchedTree(program, AGENTS)
    arrays = (*program.arrays.values(), observations, None, scalar._state, scalar._counters)
    alone, _ = seconds(lambda: _core_agents.tick_scalar(*arrays, scalar.actions, scalar.status, None), 30)
    at_once, _ = seconds(lambda: batched.tick(observations), 30)
    assert list(zip(scalar.status.tolist(), scalar.actions.tolist(), strict=True)) == ours
    print(f"\nours: {AGENTS / at_once / 1e6:.1f} M tree-ticks/s batched, {AGENTS / alone / 1e6:.1f} M one by one")
    for name, (theirs_took, result) in theirs.items():
        assert result == ours, f"no ratio: the results of {name} differ"
        benchmark.extra_info[name] = theirs_took / at_once
        print(
            f"{name}: {AGENTS / theirs_took:,.0f} tree-ticks/s, ratio {theirs_took / at_once:,.0f} batched, "
            f"{theirs_took / alone:,.0f} one by one, largest difference 0"
        )
