"""The virtual machine against py_trees and against the plain Python reference."""

import os
import subprocess
import sys

import numpy as np
import pytest
from core_agents import behaviour_tree as bt
from core_agents import from_dsl, to_dsl
from core_agents.reference.behaviour_tree import Agent, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st

adapters = pytest.importorskip("core_agents.adapters", exc_type=ImportError)  # needs py_trees
from_py_trees, to_py_trees = adapters.from_py_trees, adapters.to_py_trees

FEATURES = 4


def observe(rng, *shape):
    return rng.normal(size=(*shape, FEATURES)).round(1).astype(np.float32)


def compare_with_py_trees(seed, nodes, agents, ticks):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, nodes, FEATURES)
    program = bt.compile(tree, FEATURES)
    batched, peers = bt.BatchedTree(program, agents), [to_py_trees(program) for _ in range(agents)]
    for t in range(ticks):
        observations = observe(rng, agents)
        status = batched.tick(observations)
        expected = [peer.tick(o) for peer, o in zip(peers, observations, strict=True)]
        where = f"seed {seed}, tick {t}\n{to_dsl(tree)}"
        assert [(s, a) for s, a in zip(status, batched.actions, strict=True)] == expected, where
        running = np.array([[n.status.name == "RUNNING" for n in peer.nodes] for peer in peers]).T
        assert (batched.running == running).all(), where


@pytest.mark.parametrize("chunk", range(10))
def test_500_random_trees_equal_py_trees(chunk):
    for seed in range(50):
        compare_with_py_trees(chunk * 50 + seed, 3 + seed, 3, 30)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_any_tree_equals_py_trees(seed, nodes):
    compare_with_py_trees(seed, nodes, 2, 12)


@pytest.mark.parametrize("seed", range(20))
def test_many_agents_equal_the_reference_under_masks(seed):
    rng = np.random.default_rng(seed)
    agents = int(rng.integers(250, 530))
    program = bt.compile(random_tree(rng, 25, FEATURES), FEATURES)
    batched, reference = bt.BatchedTree(program, agents), [Agent(program.arrays) for _ in range(agents)]
    expected = [(0, -1)] * agents
    for _ in range(6):
        observations, mask = observe(rng, agents), rng.random(agents) < 0.6
        batched.tick(observations, mask)
        expected = [r.tick(o) if m else e for r, o, m, e in zip(reference, observations, mask, expected, strict=True)]
        assert list(zip(batched.status.tolist(), batched.actions.tolist(), strict=True)) == expected


def test_a_higher_priority_halts_a_running_action():
    tree = from_dsl("""
Selector: root
    Sequence: alarm
        Condition: obs[0] > 0
        Action: 7
    Action: 1 for 3
""")
    batched = bt.BatchedTree(bt.compile(tree), 1)
    seen = []
    for alarm in (0, 0, 1, 0, 0, 0, 0):
        status = batched.tick([[alarm]])
        seen.append((int(status[0]), int(batched.actions[0])))
    assert seen == [(3, 1), (3, 1), (1, 7), (3, 1), (3, 1), (3, 1), (1, 1)]


def test_memory_skips_what_has_succeeded():
    for memory, statuses in ((True, [3, 3, 1]), (False, [3, 2, 2])):
        tree = bt.Sequence("s", memory, [bt.Condition("c", 0, ">", 0), bt.Action("a", 0, duration=2)])
        batched = bt.BatchedTree(bt.compile(tree), 1)
        assert [int(batched.tick([[x]])[0]) for x in (1, 0, 0)] == statuses


def test_period_ticks_every_agent_in_its_turn():
    batched = bt.BatchedTree(bt.compile(bt.Action("a", 0, duration=100)), 6, period=[1, 1, 2, 2, 3, 3])
    counts = np.zeros(6, int)
    for _ in range(6):
        before = batched._counters.copy()
        batched.tick(np.zeros((6, 0), np.float32))
        counts += (batched._counters != before)[0]
    assert counts.tolist() == [6, 6, 3, 3, 2, 2]


def test_reset_forgets():
    batched = bt.BatchedTree(bt.compile(bt.OneShot("o", bt.Action("a", 4), bt.OneShotPolicy.ON_COMPLETION)), 2)
    none = np.zeros((2, 0), np.float32)
    batched.tick(none)
    batched.tick(none)
    assert batched.actions.tolist() == [-1, -1]
    batched.reset([True, False])
    assert batched.status.tolist() == [bt.INVALID, bt.SUCCESS]
    batched.tick(none)
    assert batched.actions.tolist() == [4, -1]


def test_nan_observations_compare_as_ieee():
    for op in bt.COMPARISONS:
        batched = bt.BatchedTree(bt.compile(bt.Condition("c", 0, op, 0.0)), 1)
        assert batched.tick([[np.nan]])[0] == (bt.SUCCESS if op == "!=" else bt.FAILURE)


def test_from_py_trees_inverts_to_py_trees():
    for seed in range(200):
        tree = random_tree(np.random.default_rng(seed), 30, FEATURES)
        assert from_py_trees(to_py_trees(tree).root) == tree


def test_decompile_inverts_compile():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        program = bt.compile(random_tree(rng, 40, FEATURES), FEATURES)
        again = bt.compile(bt.decompile(program.arrays, FEATURES), FEATURES)  # constants are folded
        third = bt.compile(bt.decompile(again.arrays, FEATURES), FEATURES)
        assert all(np.array_equal(third.arrays[name], a) for name, a in again.arrays.items())
        first, second = bt.BatchedTree(program, 50), bt.BatchedTree(again, 50)
        for _ in range(3):
            observations = observe(rng, 50)
            assert (first.tick(observations) == second.tick(observations)).all()
            assert (first.actions == second.actions).all()


def test_from_py_trees_refuses_what_it_does_not_know():
    import py_trees

    with pytest.raises(TypeError, match="Count 'c' has no counterpart"):
        from_py_trees(py_trees.decorators.Count("c", py_trees.behaviours.Success("s")))
    periodic = py_trees.behaviours.Periodic("p", 3)
    assert from_py_trees(periodic, leaf=lambda b: bt.Action(b.name, 1)) == bt.Action("p", 1)


@pytest.mark.parametrize(
    ("tree", "features", "message"),
    [
        (bt.Condition("c", 4, "<", 0.0), 4, "features.*node 0 must be in"),
        (bt.Condition("c", -1, "<", 0.0), 4, "features.*node 0 must be in"),
        (bt.Condition("c", 0, "<", float("nan")), 1, "thresholds.*NaN"),
        (bt.Action("a", -2), 0, "action_ids"),
        (bt.Action("a", 0, bt.INVALID), 0, "results"),
        (bt.Action("a", 0, duration=-1), 0, "params"),
        (bt.Repeat("r", bt.Success("s"), 0), 0, "params"),
        (bt.Retry("r", bt.Success("s"), 0), 0, "params"),
    ],
)
def test_bad_trees_are_refused(tree, features, message):
    with pytest.raises(ValueError, match=message):
        bt.compile(tree, features)


def test_an_unknown_comparison_is_refused():
    with pytest.raises(ValueError, match="argument 'op' must be one of"):
        bt.Condition("c", 0, "~", 0.0)


def test_too_deep_a_tree_is_refused():
    tree = bt.Success("leaf")
    for _ in range(300):
        tree = bt.Inverter("i", tree)
    with pytest.raises(ValueError, match="deeper than 256"):
        bt.compile(tree)


def test_wrong_observations_are_refused():
    batched = bt.BatchedTree(bt.compile(bt.Condition("c", 2, "<", 0.0)), 3)
    for shape in ((4, 3), (3,), (3, 2)):
        with pytest.raises(ValueError, match=r"observations|features"):
            batched.tick(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="mask"):
        batched.tick(np.zeros((3, 3), np.float32), mask=[True])


def test_torch_observations_give_torch_results():
    torch = pytest.importorskip("torch")
    batched = bt.BatchedTree(
        bt.compile(bt.Sequence("s", False, [bt.Condition("c", 0, ">", 0.0), bt.Action("a", 3)])), 2
    )
    status = batched.tick(torch.tensor([[1.0], [-1.0]]))
    assert isinstance(status, torch.Tensor)
    assert status.tolist() == [1, 2]
    assert batched.actions.tolist() == [3, -1]


def test_the_result_does_not_depend_on_threads():
    code = """
import hashlib, numpy as np
from core_agents import BatchedTree, compile
from core_agents.reference.behaviour_tree import random_tree
rng = np.random.default_rng(3)
batched = BatchedTree(compile(random_tree(rng, 60, 4), 4), 20_000)
h = hashlib.sha256()
for _ in range(5):
    status = batched.tick(rng.normal(size=(20_000, 4)).astype(np.float32))
    h.update(status.tobytes() + batched.actions.tobytes() + batched._state.tobytes())
print(h.hexdigest())
"""
    seen = set()
    for threads in ("1", "2", "7"):
        env = {**os.environ, "CORE_NUM_THREADS": threads}
        seen.add(
            subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
        )
    assert len(seen) == 1
