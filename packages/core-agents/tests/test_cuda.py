"""The CUDA tick against the CPU's, bit for bit, on fresh random trees at every run."""

import numpy as np
import pytest
from core_agents import _core_agents as _C
from core_agents import behaviour_tree as bt
from core_agents import from_dsl
from core_agents.cases import combat_tree
from core_agents.reference.behaviour_tree import random_tree

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def same(here, there):
    """Everything that two machines hold is equal."""
    for name in ("status", "actions", "_state", "_counters"):
        a, b = np.asarray(getattr(here, name)), getattr(there, name).cpu().numpy()
        np.testing.assert_array_equal(a, b, err_msg=name)


def both(program, agents, ticks, rng, period=None):
    """Ticks here and there, with and without a mask, some observations NaN, some of them a column-major view."""
    here, there = (bt.BatchedTree(program, agents, period) for _ in range(2))
    for t in range(ticks):
        observations = rng.normal(size=(agents, program.num_features)).round(1).astype(np.float32)
        observations[rng.random(observations.shape) < 0.02] = np.nan
        mask = None if t % 3 == 0 else rng.random(agents) < 0.7
        sent = torch.from_numpy(observations).cuda()
        sent = sent.T.contiguous().T if t % 2 else sent
        logs = [bt.TickLog(program, range(agents)) for _ in range(2)] if agents < 5000 else [None, None]
        here.tick(observations, mask, logs[0])
        there.tick(sent, None if mask is None else torch.from_numpy(mask).cuda(), logs[1])
        same(here, there)
        if agents < 5000:
            np.testing.assert_array_equal(logs[0].statuses, logs[1].statuses)
        if t == ticks // 2:
            gone = rng.random(agents) < 0.2
            here.reset(gone)
            there.reset(torch.from_numpy(gone).cuda())
    np.testing.assert_array_equal(here.running, there.running)


@pytest.mark.parametrize("seed", range(100))
def test_random_trees(seed):
    rng = np.random.default_rng()
    program = bt.compile(random_tree(rng, 3 + seed, 4), 4)
    both(program, int(rng.integers(1, 2500)), 8, rng, None if seed % 2 else rng.integers(1, 4, 1)[0])


def test_expressions():
    rng = np.random.default_rng()
    tree = from_dsl("""
Selector: root
    Condition: obs[0] * 3 - obs[1] / obs[2] > abs(obs[3]) + 0.1
        Action: 1 for 2
    Condition: min(obs[0], obs[1]) < 0 and not (obs[2] == obs[3] or obs[0] != 0.5)
        Action: 2
    Condition: max(obs[1], -obs[2]) >= obs[0] * obs[0] * 1e-20 * 1e-20
        Action: 3
    Action: 4 while obs[0] <= obs[1] then FAILURE
""")
    both(bt.compile(tree, 4), 2500, 6, rng)


def test_periods_by_agent():
    rng = np.random.default_rng()
    program = bt.compile(random_tree(rng, 40, 4), 4)
    both(program, 1500, 12, rng, rng.integers(1, 5, 1500))


def test_large_and_deep_trees():
    rng = np.random.default_rng()
    both(
        bt.compile(
            bt.Parallel("p", bt.ParallelPolicy.SuccessOnAll(True), [random_tree(rng, 90, 4) for _ in range(20)]), 4
        ),
        3000,
        4,
        rng,
    )
    deep = bt.Action("a", 1, duration=2)
    for k in range(254):
        deep = bt.Sequence("s", True, [deep]) if k % 2 else bt.Condition("c", k % 4, "<", 2.0, deep)
    both(bt.compile(deep, 4), 1100, 6, rng)


def test_any_state_is_as_on_the_cpu():
    rng = np.random.default_rng()
    for nodes in (10, 40):
        program = bt.compile(random_tree(rng, nodes, 4), 4)
        here, there = bt.BatchedTree(program, 1400), bt.BatchedTree(program, 1400)
        there.tick(torch.zeros(1400, 4, device="cuda"))
        for name, high in (("_state", 256), ("_counters", 9)):
            noise = rng.integers(0, high, getattr(here, name).shape, dtype=getattr(here, name).dtype)
            setattr(here, name, noise)
            setattr(there, name, torch.from_numpy(noise.copy()).cuda())
        observations = rng.normal(size=(1400, 4)).astype(np.float32)
        here.tick(observations)
        there.tick(torch.from_numpy(observations).cuda())
        same(here, there)


def test_a_million_agents():
    rng = np.random.default_rng()
    both(bt.compile(combat_tree(rng, 8), 8), 1_000_000, 3, rng)
    both(bt.compile(random_tree(rng, 50, 8), 8), 1_000_000, 3, rng)


def test_no_agents_and_bad_programs():
    program = bt.compile(combat_tree(np.random.default_rng(0), 8), 8)
    assert bt.BatchedTree(program, 0).tick(torch.zeros(0, 8, device="cuda")).shape == (0,)
    batched = bt.BatchedTree(program, 5)
    with pytest.raises(ValueError, match=r"features.*node \d+ must be in \[0, 2\)"):
        batched.tick(torch.zeros(5, 2, device="cuda"))
    batched.tick(torch.zeros(5, 8, device="cuda"))
    arguments = list(batched._arguments)
    arguments[1] = torch.full_like(arguments[1], 7)
    rest = (None, batched._state, batched._counters, batched.actions, batched.status, None)
    with pytest.raises(ValueError, match="argument 'ends' at node 0 must be 50, got 7"):
        _C.tick(*arguments, torch.zeros(5, 8, device="cuda"), *rest)
    with pytest.raises(ValueError, match="state"):
        _C.tick(*batched._arguments, torch.zeros(5, 8, device="cuda"), None, batched._state.new_zeros(3, 5), *rest[2:])
