"""Expressions, structured observations, and the log of ticks."""

import numpy as np
import pytest
from core_agents import BatchedTree, TickLog, feature_names, from_dsl
from core_agents import behaviour_tree as bt
from core_agents.behaviour_tree.expressions import Parser, evaluate, text
from core_agents.reference.behaviour_tree import Agent, random_expression, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st

GUARD = np.dtype([("ammo", np.int32), ("dead", bool), ("place", np.float64, (2,)), ("near", np.float32)])


def parse(source, c_style=False):
    def name(word):
        return bt.Feature(int(word[4:])) if c_style and word.startswith("obs_") else None

    return Parser(source, 0, name).expression()


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25), st.booleans())
def test_expressions_round_trip_and_equal_plain_evaluation(seed, size, truth):
    rng = np.random.default_rng(seed)
    x = random_expression(rng, 3, size, truth)
    assert parse(text(x)) == x
    if not any(word in text(x) for word in ("min", "max", "abs")):
        assert parse(text(x, c_style=True), c_style=True) == x
    observations = rng.normal(size=(40, 3)).round(1).astype(np.float32)
    observations[rng.random(observations.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0])
    condition = bt.Condition("c", x, "!=" if truth else ">", 0.0)
    try:
        batched = BatchedTree(bt.compile(condition, 3), 40)
    except ValueError as e:
        assert "NaN" in str(e)  # a constant such as inf - inf
        return
    values = np.array([evaluate(x, o) for o in observations])
    holds = values != 0 if truth else values > 0
    assert ((batched.tick(observations) == bt.SUCCESS) == holds).all()


def test_precedence_is_pythons():
    rng = np.random.default_rng(0)
    source = "-a + b * 2 < c and not a > b or abs(a - b - c) / 2 >= max(min(a, b), c) and not (b == c or a != 1)"
    x = Parser(source, 0, {name: bt.Feature(i) for i, name in enumerate("abc")}.get).expression()
    for a, b, c in rng.integers(-3, 4, (300, 3)).astype(np.float32):
        expected = (-a + b * 2 < c and not a > b) or (
            abs(a - b - c) / 2 >= max(min(a, b), c) and not (b == c or a != 1)
        )
        assert bool(evaluate(x, (a, b, c))) == bool(expected)


def test_structured_observations_have_names():
    assert feature_names(GUARD) == {"ammo": 0, "dead": 1, "place[0]": 2, "place[1]": 3, "near": 4}
    tree = from_dsl("Condition: (ammo < 3 or dead) and place[1] - near > 0.5\n  Action: 1", GUARD)
    batched = BatchedTree(bt.compile(tree, GUARD), 200)
    rng = np.random.default_rng(0)
    seen = np.zeros(200, GUARD)
    seen["ammo"], seen["dead"] = rng.integers(0, 6, 200), rng.random(200) < 0.3
    seen["place"], seen["near"] = rng.normal(size=(200, 2)), rng.normal(size=200)
    for rows in (seen, seen[::-1], np.ascontiguousarray(seen[::2].repeat(2))):
        holds = ((rows["ammo"] < 3) | rows["dead"]) & (rows["place"][:, 1].astype(np.float32) - rows["near"] > 0.5)
        assert ((batched.tick(rows) == bt.SUCCESS) == holds).all()
    packed = np.zeros(3, [("x", np.float32), ("y", np.float32, 2)])
    assert np.shares_memory(bt.columns(packed), packed)


def test_wrong_structured_observations_are_refused():
    batched = BatchedTree(bt.compile(bt.Success("s"), GUARD), 2)
    for wrong in (np.zeros((2, 5), np.float32), np.zeros(2, [("ammo", np.int32)]), [[0.0] * 5] * 2):
        with pytest.raises(ValueError, match="'observations' must be of dtype"):
            batched.tick(wrong)
    with pytest.raises(ValueError, match="named fields"):
        feature_names(np.dtype(np.float32))
    with pytest.raises(ValueError, match="field 'name' must be a number"):
        feature_names(np.dtype([("name", "U4")]))


def test_the_log_tells_what_every_node_did(tmp_path):
    rng = np.random.default_rng(4)
    tree = random_tree(rng, 25, 4)
    program = bt.compile(tree, 4)
    batched, log = BatchedTree(program, 30), TickLog(program, [3, 29, 0])
    agents = [Agent(program.arrays) for _ in range(30)]
    for t in range(9):
        observations, mask = rng.normal(size=(30, 4)).astype(np.float32), rng.random(30) < 0.7
        batched.tick(observations, mask, log=log)
        for a in np.flatnonzero(mask):
            agents[a].tick(observations[a])
        for column, a in enumerate((3, 29, 0)):
            want = [agents[a].ticked.get(n, 0) if mask[a] else 0 for n in range(len(program))]
            assert log.statuses[t, :, column].tolist() == want
        assert log.actions[t].tolist() == batched.actions[[3, 29, 0]].tolist()
    log.save(tmp_path / "log.npz")
    again = TickLog.load(tmp_path / "log.npz")
    assert (again.statuses == log.statuses).all()
    assert (again.actions == log.actions).all()
    assert again.nodes == log.nodes
    assert [n["name"] for n in log.nodes] == [n.name for n in program.nodes]
    TickLog(program, [5]).save(tmp_path / "empty.npz")
    assert TickLog.load(tmp_path / "empty.npz").statuses.shape == (0, len(program), 1)


def test_a_damaged_log_is_refused(tmp_path):
    program = bt.compile(bt.Sequence("s", False, [bt.Action("a", 1), bt.Wait("w", 2)]))
    log = TickLog(program, [0])
    BatchedTree(program, 1).tick(np.zeros((1, 0), np.float32), log=log)
    path = tmp_path / "log.npz"
    log.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data[: int(rng.integers(len(data)))] if rng.random() < 0.3 else data)
        for _ in range(3):
            if damaged:
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            assert TickLog.load(path).statuses.max(initial=0) <= 3
        except ValueError as e:
            refused += 1
            assert "no tick log" in str(e)
    assert refused > 100
    with pytest.raises(ValueError, match="agents"):
        TickLog(program, [-1])
