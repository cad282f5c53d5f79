"""To py_trees and back. Needs py_trees (extra ``demo``)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from py_trees import behaviour, behaviours, common, composites, decorators

from . import behaviour_tree as bt
from .behaviour_tree.expressions import evaluate

_COMPARE = dict(
    zip(bt.COMPARISONS, (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne), strict=True)
)
_PLAIN = (
    "Inverter",
    "FailureIsRunning",
    "FailureIsSuccess",
    "RunningIsFailure",
    "RunningIsSuccess",
    "SuccessIsFailure",
    "SuccessIsRunning",
)


class _World:
    """What the leaves of one agent share."""

    observation: Any = ()
    action = -1


class _Test:
    def __init__(self, world: _World, feature: int | bt.Expression, op: str, threshold: float) -> None:
        self.world, self.feature, self.op, self.threshold = world, feature, op, threshold
        self.compare, self.right = _COMPARE[op], float(np.float32(threshold))

    def __call__(self) -> bool:
        feature, observation = self.feature, self.world.observation
        left = observation[feature] if isinstance(feature, int) else evaluate(feature, observation)
        return bool(self.compare(left, self.right))


class ConditionLeaf(behaviour.Behaviour):  # type: ignore[misc]
    """A :class:`core_agents.Condition` without child as a py_trees behaviour."""

    def __init__(self, node: bt.Condition, world: _World) -> None:
        super().__init__(node.name)
        self.node, self.test = node, _Test(world, node.feature, node.op, node.threshold)

    def update(self) -> common.Status:
        """SUCCESS if the condition holds, else FAILURE."""
        return common.Status.SUCCESS if self.test() else common.Status.FAILURE


class ActionLeaf(behaviour.Behaviour):  # type: ignore[misc]
    """A :class:`core_agents.Action` as a py_trees behaviour."""

    def __init__(self, node: bt.Action, world: _World) -> None:
        super().__init__(node.name)
        self.node, self.world, self.counter = node, world, 0
        self.test = _Test(world, *node.running_while) if node.running_while is not None else None
        self.completion = common.Status[node.status.name]

    def initialise(self) -> None:
        """Restarts the count of ticks."""
        self.counter = 0

    def update(self) -> common.Status:
        """Emits the action; RUNNING as long as the node says."""
        action = self.node.action
        if isinstance(action, int) and action >= 0:
            self.world.action = action
        self.counter += 1
        runs = self.test() if self.test is not None else self.counter <= self.node.duration
        return common.Status.RUNNING if runs else self.completion


class TickTimeout(decorators.Timeout):  # type: ignore[misc]
    """py_trees' Timeout with a clock that counts the decorator's own ticks."""

    ticks = 0

    def initialise(self) -> None:
        """Restarts the clock."""
        self.ticks = 0

    def update(self) -> common.Status:
        """As py_trees' Timeout, in ticks."""
        self.ticks += 1
        if self.decorated.status == common.Status.RUNNING and self.ticks > self.duration:
            self.decorated.stop(common.Status.INVALID)
            return common.Status.FAILURE
        return self.decorated.status


class PyTreesAgent:
    """One agent's py_trees tree: ``root`` and, in pre-order, ``nodes``."""

    def __init__(self, tree: bt.Node) -> None:
        self.world = _World()
        self.nodes: list[behaviour.Behaviour] = []
        self.root = self._build(bt.expand(tree))
        stack = [self.root]
        while stack:
            self.nodes.append(stack.pop())
            stack.extend(reversed(self.nodes[-1].children))

    def tick(self, observation: Any) -> tuple[bt.Status, int]:
        """Ticks once with one agent's observation; the root's status and the last emitted action id, or -1."""
        self.world.observation, self.world.action = observation, -1
        self.root.tick_once()
        return bt.Status[self.root.status.name], self.world.action

    def load(self, rows: np.ndarray, state: np.ndarray, counters: np.ndarray) -> None:
        """Takes one agent's column of the operator's ``state`` and ``counters``."""
        counter = iter(counters.tolist())
        for node, row in zip(self.nodes, rows, strict=True):
            byte = int(state[row]) if row >= 0 else 0
            done = isinstance(node.parent, composites.Parallel) and node.parent.policy.synchronise and byte & 2
            running = common.Status.RUNNING if byte & 1 else common.Status.INVALID
            node.status = common.Status.SUCCESS if done and node.parent.status == common.Status.RUNNING else running
            if isinstance(node, decorators.OneShot):
                node.final_status = (None, common.Status.SUCCESS, common.Status.FAILURE)[byte >> 2]
            elif isinstance(node, decorators.Repeat):
                node.success = next(counter)
            elif isinstance(node, decorators.Retry):
                node.failures = next(counter)
            elif isinstance(node, TickTimeout):
                node.ticks = next(counter)
            elif isinstance(node, ActionLeaf) and node.node.duration:
                node.counter = next(counter)
        for node in self.nodes:
            if isinstance(node, composites.Composite) and node.children and node.status == common.Status.RUNNING:
                running_children = (c for c in node.children if c.status == common.Status.RUNNING)
                node.current_child = next(running_children, node.children[0])

    def _build(self, node: bt.Node) -> behaviour.Behaviour:
        if isinstance(node, bt.Action):
            return ActionLeaf(node, self.world)
        if isinstance(node, bt.Condition) and node.child is None:
            return ConditionLeaf(node, self.world)
        children = [self._build(c) for c in node.children]
        if isinstance(node, bt.Condition):
            test = _Test(self.world, node.feature, node.op, node.threshold)
            guard = decorators.EternalGuard(node.name, children[0], lambda: test())
            guard.test = test
            return guard
        if isinstance(node, bt.Sequence):
            return composites.Sequence(node.name, node.memory, children)
        if isinstance(node, bt.Selector):
            return composites.Selector(node.name, node.memory, children)
        if isinstance(node, bt.Parallel):
            if isinstance(node.policy, bt.ParallelPolicy.SuccessOnOne):
                policy = common.ParallelPolicy.SuccessOnOne()
            else:
                policy = common.ParallelPolicy.SuccessOnAll(node.policy.synchronise)
            return composites.Parallel(node.name, policy, children)
        if isinstance(node, bt.Repeat):
            return decorators.Repeat(node.name, children[0], node.num_success)
        if isinstance(node, bt.Retry):
            return decorators.Retry(node.name, children[0], node.num_failures)
        if isinstance(node, bt.Timeout):
            return TickTimeout(node.name, children[0], node.duration)
        if isinstance(node, bt.OneShot):
            return decorators.OneShot(node.name, children[0], common.OneShotPolicy[node.policy.name])
        return getattr(decorators, type(node).__name__)(node.name, children[0])


def to_py_trees(tree: bt.Node | bt.Program) -> PyTreesAgent:
    """One agent's tree as py_trees behaviours, sub-trees put in; ``.root`` is the py_trees root."""
    return PyTreesAgent(tree.tree if isinstance(tree, bt.Program) else tree)


def from_py_trees(root: behaviour.Behaviour, leaf: Callable[[behaviour.Behaviour], bt.Node] | None = None) -> bt.Node:
    """A py_trees tree as nodes of this package.

    Leaves of :func:`to_py_trees` and py_trees' Success, Failure, Running and TickCounter are known; ``leaf``
    translates all others. Raises TypeError for a behaviour that has no counterpart.
    """
    name = root.name
    children = [from_py_trees(c, leaf) for c in root.children]
    kind = type(root)
    if isinstance(root, ConditionLeaf | ActionLeaf):
        return root.node
    if isinstance(root, behaviours.TickCounter):
        return bt.TickCounter(name, root.duration, bt.Status[root.completion_status.name])
    if kind in (behaviours.Success, behaviours.Failure, behaviours.Running):
        return getattr(bt, kind.__name__)(name)  # type: ignore[no-any-return]
    if kind is composites.Sequence:
        return bt.Sequence(name, root.memory, children)
    if kind is composites.Selector:
        return bt.Selector(name, root.memory, children)
    if kind is composites.Parallel and isinstance(root.policy, common.ParallelPolicy.SuccessOnOne):
        return bt.Parallel(name, bt.ParallelPolicy.SuccessOnOne(), children)
    if kind is composites.Parallel and isinstance(root.policy, common.ParallelPolicy.SuccessOnAll):
        return bt.Parallel(name, bt.ParallelPolicy.SuccessOnAll(root.policy.synchronise), children)
    if kind is decorators.EternalGuard and isinstance(getattr(root, "test", None), _Test):
        return bt.Condition(name, root.test.feature, root.test.op, root.test.threshold, children[0])
    if kind is decorators.Repeat:
        return bt.Repeat(name, children[0], root.num_success)
    if kind is decorators.Retry:
        return bt.Retry(name, children[0], root.num_failures)
    if kind is TickTimeout:
        return bt.Timeout(name, children[0], int(root.duration))
    if kind is decorators.OneShot:
        return bt.OneShot(name, children[0], bt.OneShotPolicy[root.policy.name])
    if kind.__module__ == decorators.__name__ and kind.__name__ in _PLAIN:
        return getattr(bt, kind.__name__)(name, children[0])  # type: ignore[no-any-return]
    if leaf is not None and not children:
        return leaf(root)
    raise TypeError(
        f"from_py_trees: {kind.__qualname__} '{name}' has no counterpart; argument 'leaf' translates leaves"
    )
