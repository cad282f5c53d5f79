"""Spec 3.1: the tree of 50 nodes for 1,000 agents, ours against py_trees, one thread, identical results required.

A: constant leaves, all 50 nodes are visited. B: tests of observations, actions write an id.
Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_behaviour_tree.py`.
"""

import time

import numpy as np
import pytest
from core_agents import BatchedTree, compile, to_py_trees  # noqa: A004
from core_agents.cases import combat_tree

AGENTS, FEATURES = 1000, 8


@pytest.mark.parametrize("constant", [True, False], ids=["A all nodes, constant leaves", "B observations"])
@pytest.mark.parametrize("agents", [AGENTS, 100 * AGENTS])
def test_fifty_nodes(benchmark, constant, agents):
    rng = np.random.default_rng(0)
    program = compile(combat_tree(rng, FEATURES, constant), FEATURES)
    observations = rng.normal(size=(agents, FEATURES)).astype(np.float32)
    batched = BatchedTree(program, agents)
    peers = [to_py_trees(program) for _ in range(AGENTS)]
    rows = observations[:AGENTS].tolist()

    seconds = []
    for _ in range(3):
        start = time.process_time()
        theirs = [peer.tick(row) for peer, row in zip(peers, rows, strict=True)]
        seconds.append((time.process_time() - start) / AGENTS)
    benchmark(batched.tick, observations)
    ours = list(zip(batched.status[:AGENTS].tolist(), batched.actions[:AGENTS].tolist(), strict=True))
    assert ours == theirs, "no ratio: the results differ"
    each = benchmark.stats.stats.min / agents
    benchmark.extra_info.update(
        tree_ticks_per_second=1 / each,
        py_trees_ticks_per_second=1 / min(seconds),
        ratio=min(seconds) / each,
        largest_difference=0,
    )
    print(
        f"\n{agents} agents: {1 / each / 1e6:.1f} M tree-ticks/s, py_trees {1 / min(seconds):,.0f}, "
        f"ratio {min(seconds) / each:,.0f}, largest difference 0"
    )
