"""One agent's behaviour tree in plain Python: every node keeps the status that py_trees would give it."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .. import behaviour_tree as bt
from ..behaviour_tree import FAILURE, INVALID, RUNNING, SUCCESS, Kind, Status

_COMPARE = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
_OPERATIONS = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    lambda x, y: y if y < x else x,
    lambda x, y: y if x < y else x,
    *_COMPARE,
    lambda x, y: x != 0 and y != 0,
    lambda x, y: x != 0 or y != 0,
    lambda x, y: x == 0,
    lambda x, y: -x,
    lambda x, y: abs(x),
)
_MAP = {
    Kind.INVERTER: {SUCCESS: FAILURE, FAILURE: SUCCESS},
    Kind.FAILURE_IS_RUNNING: {FAILURE: RUNNING},
    Kind.FAILURE_IS_SUCCESS: {FAILURE: SUCCESS},
    Kind.RUNNING_IS_FAILURE: {RUNNING: FAILURE},
    Kind.RUNNING_IS_SUCCESS: {RUNNING: SUCCESS},
    Kind.SUCCESS_IS_FAILURE: {SUCCESS: FAILURE},
    Kind.SUCCESS_IS_RUNNING: {SUCCESS: RUNNING},
}
_PARALLEL = (Kind.PARALLEL_ALL, Kind.PARALLEL_ALL_SYNC, Kind.PARALLEL_ONE)


class Agent:
    """The memory of one agent over a program's arrays (as ``Program.arrays``)."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {name: a.tolist() if a.dtype != np.float32 else a for name, a in arrays.items()}
        count = len(self.arrays["kinds"])
        self.status = [INVALID] * count
        self.counter = [0] * count
        self.done = [False] * count
        """Below a synchronised parallel: the node's last tick succeeded."""
        self.final = [INVALID] * count
        self.action = -1
        self.ticked: dict[int, Status] = {}
        """The nodes that the last tick reached, and with which status they ended."""

    def children(self, node: int) -> list[int]:
        """The numbers of a node's children."""
        found, at = [], node + 1
        while at < self.arrays["ends"][node]:
            found.append(at)
            at = self.arrays["ends"][at]
        return found

    def halt(self, node: int) -> None:
        """Everything in the subtree becomes INVALID."""
        for i in range(node, self.arrays["ends"][node]):
            self.status[i] = INVALID

    def column(self, number: int, observation: np.ndarray) -> np.float32:
        """A column of the observation, or behind them the result of an instruction."""
        if number < len(observation):
            return np.float32(observation[number])
        k = number - len(observation)
        value = self.arrays["code_values"][k]
        x, y = (
            value if self.arrays[side][k] < 0 else self.column(self.arrays[side][k], observation)
            for side in ("code_lefts", "code_rights")
        )
        with np.errstate(all="ignore"):
            return np.float32(_OPERATIONS[self.arrays["code_ops"][k]](x, y))

    def holds(self, node: int, observation: np.ndarray) -> bool:
        """Whether the node's condition holds."""
        left = self.column(self.arrays["features"][node], observation)
        return bool(_COMPARE[self.arrays["comparisons"][node]](left, self.arrays["thresholds"][node]))

    def tick(self, observation: np.ndarray) -> tuple[Status, int]:
        """Ticks once; returns the root's status and the last action id that was emitted, or -1."""
        self.action, self.ticked = -1, {}
        return self._tick(0, observation), self.action

    def _tick(self, node: int, observation: np.ndarray) -> Status:
        kind = Kind(self.arrays["kinds"][node])
        if self.status[node] != RUNNING and self._counts(node):
            self.counter[node] = 0
        if kind in (Kind.SEQUENCE, Kind.SEQUENCE_MEMORY):
            status = self._in_order(node, observation, SUCCESS, kind == Kind.SEQUENCE_MEMORY)
        elif kind in (Kind.SELECTOR, Kind.SELECTOR_MEMORY):
            status = self._in_order(node, observation, FAILURE, kind == Kind.SELECTOR_MEMORY)
        elif kind in _PARALLEL:
            status = self._parallel(node, observation, kind)
        elif kind == Kind.CONDITION:
            status = SUCCESS if self.holds(node, observation) else FAILURE
        elif kind in (Kind.ACTION, Kind.ACTION_WHILE):
            status = self._act(node, observation, kind)
        else:
            status = self._decorate(node, observation, kind)
        self.status[node] = self.ticked[node] = status
        return status

    def _counts(self, node: int) -> bool:
        kind = self.arrays["kinds"][node]
        timed = kind == Kind.ACTION and self.arrays["params"][node] > 0
        return timed or kind in (Kind.REPEAT, Kind.RETRY, Kind.TIMEOUT)

    def _in_order(self, node: int, observation: np.ndarray, onward: Status, memory: bool) -> Status:
        """Sequence (onward = SUCCESS) and Selector (onward = FAILURE)."""
        children = self.children(node)
        first = 0
        if memory and self.status[node] == RUNNING:
            first = next(k for k, c in enumerate(children) if self.status[c] == RUNNING)
        for k in range(first, len(children)):
            status = self._tick(children[k], observation)
            if status != onward:
                for later in children[k + 1 :]:
                    self.halt(later)
                return status
        return onward

    def _parallel(self, node: int, observation: np.ndarray, kind: Kind) -> Status:
        statuses = []
        for c in self.children(node):
            if kind == Kind.PARALLEL_ALL_SYNC and self.status[node] == RUNNING and self.done[c]:
                statuses.append(SUCCESS)
                continue
            statuses.append(self._tick(c, observation))
            self.done[c] = kind == Kind.PARALLEL_ALL_SYNC and statuses[-1] == SUCCESS
        enough = any if kind == Kind.PARALLEL_ONE and statuses else all
        status = FAILURE if FAILURE in statuses else SUCCESS if enough(s == SUCCESS for s in statuses) else RUNNING
        if status != RUNNING:
            for c in self.children(node):
                if self.status[c] == RUNNING:
                    self.halt(c)
        return status

    def _act(self, node: int, observation: np.ndarray, kind: Kind) -> Status:
        if self.arrays["action_ids"][node] >= 0:
            self.action = self.arrays["action_ids"][node]
        if kind == Kind.ACTION_WHILE:
            runs = self.holds(node, observation)
        else:
            self.counter[node] += self._counts(node)
            runs = self.counter[node] <= self.arrays["params"][node] and self._counts(node)
        return RUNNING if runs else Status(self.arrays["results"][node])

    def _decorate(self, node: int, observation: np.ndarray, kind: Kind) -> Status:
        child, param = node + 1, self.arrays["params"][node]
        if kind == Kind.GUARD and not self.holds(node, observation):
            self.halt(child)
            return FAILURE
        if kind == Kind.ONE_SHOT and self.final[node] != INVALID:
            return self.final[node]
        status = self._tick(child, observation)
        if kind in _MAP:
            status = _MAP[kind].get(status, status)
        elif kind == Kind.REPEAT and status == SUCCESS:
            self.counter[node] += 1
            status = SUCCESS if self.counter[node] == param else RUNNING
        elif kind == Kind.RETRY and status == FAILURE:
            self.counter[node] += 1
            status = RUNNING if self.counter[node] < param else FAILURE
        elif kind == Kind.TIMEOUT:
            self.counter[node] += 1
            status = FAILURE if status == RUNNING and self.counter[node] > param else status
        elif kind == Kind.ONE_SHOT and (status == SUCCESS or (status == FAILURE and param == 0)):
            self.final[node] = status
        if status != RUNNING and self.status[child] == RUNNING:
            self.halt(child)
        return status

    def load(self, rows: np.ndarray, state: np.ndarray, counters: np.ndarray) -> None:
        """Takes one agent's column of the operator's ``state`` and ``counters``."""
        for node, row in enumerate(rows):
            byte = int(state[row]) if row >= 0 else 0
            self.status[node] = RUNNING if byte & 1 else INVALID
            self.done[node] = bool(byte & 2)
            self.final[node] = Status(byte >> 2 & 3)
        for row, node in enumerate(self._counting()):
            self.counter[node] = int(counters[row])

    def store(self, rows: np.ndarray, state: np.ndarray, counters: np.ndarray) -> None:
        """The inverse of :meth:`load`."""
        for node, row in enumerate(rows):
            if row >= 0:
                state[row] = (self.status[node] == RUNNING) | self.done[node] << 1 | self.final[node] << 2
        for row, node in enumerate(self._counting()):
            counters[row] = self.counter[node]

    def _counting(self) -> list[int]:
        return [n for n in range(len(self.counter)) if self._counts(n)]


def sizes(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ``rows`` and ``sizes`` of check_program: who can be RUNNING, OneShots, children of synchronised parallels."""
    agent = Agent(arrays)
    kinds = [Kind(k) for k in agent.arrays["kinds"]]
    own = (Kind.ACTION_WHILE, Kind.FAILURE_IS_RUNNING, Kind.SUCCESS_IS_RUNNING, Kind.REPEAT, Kind.RETRY)
    never = (Kind.CONDITION, Kind.RUNNING_IS_FAILURE, Kind.RUNNING_IS_SUCCESS)

    def runs(node: int) -> bool:
        if kinds[node] == Kind.ACTION:
            return agent._counts(node) or agent.arrays["results"][node] == RUNNING
        return kinds[node] in own or (kinds[node] not in never and any(runs(c) for c in agent.children(node)))

    synchronised = {c for n, k in enumerate(kinds) if k == Kind.PARALLEL_ALL_SYNC for c in agent.children(n)}
    keeps = [runs(n) or kinds[n] == Kind.ONE_SHOT or n in synchronised for n in range(len(kinds))]
    rows = np.where(keeps, np.cumsum(keeps) - 1, -1).astype(np.int32)
    return rows, np.array([sum(keeps), len(agent._counting())], np.int64)


def tick(args: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the operator ``tick`` gives for its arguments by name."""
    outputs = ("state", "counters", "actions", "statuses", "log")
    out = {name: np.array(args[name]) for name in outputs if args[name] is not None}
    if "log" in out:
        out["log"][:] = INVALID
    arrays = {name: np.asarray(args[name]) for name in bt.ARRAYS}
    agent, (rows, _) = Agent(arrays), sizes(arrays)
    for a, observation in enumerate(np.asarray(args["observations"])):
        if args["mask"] is not None and not args["mask"][a]:
            continue
        agent.load(rows, out["state"][:, a], out["counters"][:, a])
        out["statuses"][a], out["actions"][a] = agent.tick(observation)
        agent.store(rows, out["state"][:, a], out["counters"][:, a])
        if "log" in out:
            out["log"][:, a] = [agent.ticked.get(n, INVALID) for n in range(len(agent.status))]
    return out


def random_expression(rng: np.random.Generator, features: int, size: int, truth: bool) -> bt.Expression:
    """An expression of up to ``size`` operations: a truth, or a number."""
    if size <= 0 and not truth:
        if rng.random() < 0.6:
            return bt.Feature(int(rng.integers(features)))
        return bt.Constant(float(np.float32(round(rng.normal(), 1))))
    op = str(rng.choice(bt.OPERATIONS[6:15] if truth else np.array([*bt.OPERATIONS[:6], "neg", "abs"])))
    count = 1 if op in ("not", "neg", "abs") else 2
    part = (size - 1) // count
    operands = (op in ("and", "or", "not") and part > 0 and bool(rng.random() < 0.8) for _ in range(count))
    return bt.Operation(op, tuple(random_expression(rng, features, part, t) for t in operands))


def random_tree(rng: np.random.Generator, nodes: int, features: int, stateless: bool = False) -> bt.Node:
    """A tree of about ``nodes`` nodes of every kind; without anything that can be RUNNING if ``stateless``."""
    names = iter(range(10**9))

    def condition() -> tuple[int | bt.Expression, str, float]:
        op, threshold = str(rng.choice(bt.COMPARISONS)), float(np.float32(round(rng.normal(), 1)))
        if rng.random() < 0.7:
            return int(rng.integers(features)), op, threshold
        truth = bool(rng.random() < 0.7)
        made = random_expression(rng, features, int(rng.integers(1, 12)), truth)
        return (made, "!=", 0.0) if truth else (made, op, threshold)

    def grow(budget: int, depth: int) -> bt.Node:
        name = f"n{next(names)}"
        if budget <= 1 or depth > 20:
            pick = rng.random()
            if pick < 0.4:
                return bt.Condition(name, *condition())
            action = int(rng.integers(-1, 9))
            if stateless:
                return bt.Action(name, action, Status(int(rng.integers(1, 3))))
            status = Status(int(rng.choice([1, 1, 2, 2, 3])))
            if pick < 0.55:
                return bt.Action(name, action, status, running_while=condition())
            return bt.Action(name, action, status, int(rng.integers(4)) if pick < 0.8 else 0)
        if rng.random() < 0.3:
            child = grow(budget - 1, depth + 1)
            if stateless:
                make = rng.choice(np.array([bt.Inverter, bt.FailureIsSuccess, bt.SuccessIsFailure], object))
                return make(name, child) if rng.random() < 0.7 else bt.Condition(name, *condition(), child)
            kind = int(rng.integers(12))
            if kind < 7:
                return (
                    bt.Inverter, bt.FailureIsRunning, bt.FailureIsSuccess, bt.RunningIsFailure,
                    bt.RunningIsSuccess, bt.SuccessIsFailure, bt.SuccessIsRunning,
                )[kind](name, child)  # fmt: skip
            count = int(rng.integers(1, 5))
            return (
                lambda: bt.Repeat(name, child, count if rng.random() < 0.8 else -1),
                lambda: bt.Retry(name, child, count),
                lambda: bt.Timeout(name, child, count - 1),
                lambda: bt.OneShot(name, child, rng.choice(np.array(list(bt.OneShotPolicy)))),
                lambda: bt.Condition(name, *condition(), child),
            )[kind - 7]()
        parts = int(rng.integers(0 if rng.random() < 0.1 else 2, 5))
        children = [grow(max(1, (budget - 1) // max(parts, 1)), depth + 1) for _ in range(parts)]
        kind = int(rng.integers(2 if stateless else 5))
        memory = not stateless and bool(rng.random() < 0.5)
        if kind in (0, 2):
            return bt.Sequence(name, memory, children)
        if kind in (1, 3):
            return bt.Selector(name, memory, children)
        policies = (
            bt.ParallelPolicy.SuccessOnOne(),
            bt.ParallelPolicy.SuccessOnAll(False),
            bt.ParallelPolicy.SuccessOnAll(True),
        )
        return bt.Parallel(name, policies[rng.integers(3)], children)

    return grow(nodes, 0)


def random_forest(rng: np.random.Generator, nodes: int, features: int) -> bt.Node:
    """A random tree that calls random sub-trees, which call each other, with features, numbers and actions as ports."""
    made: list[bt.Definition] = []

    def call(name: str, ports: tuple[str, ...]) -> bt.Node:
        chosen = made[int(rng.integers(len(made)))]
        given: dict[str, Any] = {}
        for port in chosen.ports:
            kind = chosen.kinds.get(port, "value")
            inherited = [p for p in ports if p.startswith(kind)]
            if inherited and rng.random() < 0.5:
                given[port] = bt.Port(str(rng.choice(inherited)))
            elif kind == "action":
                given[port] = int(rng.integers(-1, 5))
            else:
                given[port] = random_expression(rng, features, 0, False)
        return bt.SubTree(name, chosen, tuple(given.items()))

    for i in range(int(rng.integers(1, 4))):
        ports = tuple(f"{kind}{k}" for kind in ("value", "action") for k in range(int(rng.integers(3))))
        children = [random_tree(rng, nodes // 4, features)]
        if made:
            children.append(call("nested", ports))
        for port in ports:
            if port.startswith("action"):
                children.append(bt.Action(f"do {port}", bt.Port(port)))
            else:
                compared = bt.Operation("<", (random_expression(rng, features, 1, False), bt.Port(port)))
                children.append(bt.Condition(f"test {port}", compared, "!=", 0.0))
        made.append(bt.Definition(f"part{i}", ports, bt.Selector(f"body{i}", bool(i % 2), children)))
    parts = [random_tree(rng, nodes // 2, features), call("first", ()), call("second", ())]
    return bt.Sequence("root", False, [parts[i] for i in rng.permutation(3)])
