"""Every node that BehaviorTree.CPP and py_trees have, with RUNNING, against both (needs behaviortreepy)."""

import os

import numpy as np
import pytest
from core_agents import behaviour_tree as bt
from core_agents import to_dsl
from core_agents.portable import portable

to_py_trees = pytest.importorskip("core_agents.adapters", exc_type=ImportError).to_py_trees  # needs py_trees

TREES = 1000 if os.environ.get("CORE_TEST_ALL") == "1" else 120
FEATURES = 4


def shared_tree(rng, nodes, parallel):
    """A random tree of the nodes that both have; numbers are quarters, exact in float32 and float64.

    A failing Parallel of BehaviorTree.CPP does not tick the children behind the one that failed, so with ``parallel``
    nothing below has a memory that outlasts it (OneShot), and actions emit nothing.
    """

    def quarter():
        return float(rng.integers(-6, 7)) / 4

    def number(size):
        if size == 0:
            return bt.Feature(int(rng.integers(FEATURES))) if rng.random() < 0.7 else bt.Constant(quarter())
        return bt.Operation(str(rng.choice(["+", "-", "*"])), (number(size - 1), number(0)))

    def truth(size):
        if size == 0:
            return bt.Operation(str(rng.choice(bt.COMPARISONS)), (number(1), number(0)))
        if rng.random() < 0.3:
            return bt.Operation("not", (truth(size - 1),))
        return bt.Operation(str(rng.choice(["and", "or"])), (truth(size - 1), truth(0)))

    def condition():
        if rng.random() < 0.6:
            return int(rng.integers(FEATURES)), str(rng.choice(bt.COMPARISONS)), quarter()
        return truth(int(rng.integers(3))), "!=", 0.0

    def grow(budget, depth):
        name = f"{depth}.{budget}"
        if budget <= 1:
            if rng.random() < 0.4:
                return bt.Condition(name, *condition())
            status = bt.Status(int(rng.choice([1, 1, 2, 2, 3])))
            action = -1 if parallel else int(rng.integers(-1, 5))
            return bt.Action(name, action, status, running_while=condition() if rng.random() < 0.5 else None)
        if rng.random() < 0.3:
            child = grow(budget - 1, depth + 1)
            kind = int(rng.integers(6 if parallel else 7))
            if kind == 5:
                return bt.Condition(name, *condition(), child)
            if kind == 6:
                return bt.OneShot(name, child, bt.OneShotPolicy.ON_COMPLETION)
            made = (bt.Inverter, bt.ForceSuccess, bt.ForceFailure, bt.KeepRunningUntilFailure, bt.FailureIsRunning)
            return made[kind](name, child)
        parts = int(rng.integers(1, 5))
        children = [grow(max(1, (budget - 1) // parts), depth + 1) for _ in range(parts)]
        kind = int(rng.integers(3 if parallel else 2))
        if kind == 2:
            return bt.Parallel(name, bt.ParallelPolicy.SuccessOnAll(True), children)
        return (bt.Sequence, bt.Selector)[kind](name, bool(rng.random() < 0.5), children)

    return grow(nodes, 0)


@pytest.mark.parametrize("parallel", [False, True], ids=["status and action", "with Parallel"])
def test_random_trees_equal_both(parallel):
    peer = pytest.importorskip("core_agents.behaviortree_cpp", exc_type=ImportError)
    running = 0
    for seed in range(TREES):
        rng = np.random.default_rng(seed)
        tree = shared_tree(rng, int(rng.integers(1, 30)), parallel)
        ours, theirs = bt.BatchedTree(bt.compile(tree, FEATURES), 1), peer.BehaviorTreeCppAgent(tree, FEATURES)
        py_trees = to_py_trees(tree)
        for t in range(20):
            observation = (rng.integers(-8, 9, FEATURES) / 4).astype(np.float32)
            status = ours.tick(observation[None])[0]
            found = (bt.Status(int(status)), int(ours.actions[0]))
            running += status == bt.RUNNING
            assert found == py_trees.tick(observation), f"seed {seed}, tick {t}\n{to_dsl(tree)}"
            assert found == theirs.tick(observation.tolist()), f"seed {seed}, tick {t}\n{to_dsl(tree)}"
    assert running > TREES


def test_a_portable_tree_means_the_same():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        tree = shared_tree(rng, 20, bool(seed % 2))
        first = bt.BatchedTree(bt.compile(tree, FEATURES), 40)
        second = bt.BatchedTree(bt.compile(portable(tree), FEATURES), 40)
        for _ in range(5):
            observations = (rng.integers(-8, 9, (40, FEATURES)) / 4).astype(np.float32)
            assert (first.tick(observations) == second.tick(observations)).all()
            assert (first.actions == second.actions).all()


@pytest.mark.parametrize(
    "node",
    [
        bt.Wait("wait", 3),
        bt.Retry("retry", bt.Success("s"), 2),
        bt.Parallel("one", bt.ParallelPolicy.SuccessOnOne(), [bt.Success("s")]),
        bt.RunningIsFailure("r", bt.Success("s")),
        bt.Condition("c", bt.Operation("abs", (bt.Feature(0),)), ">", 1.0),
    ],
)
def test_what_has_no_counterpart_is_named(node):
    with pytest.raises(ValueError, match=f"'{node.name}' has no counterpart"):
        portable(node)
