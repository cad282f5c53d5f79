"""The nodes of which trees are built, with py_trees' names."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence as Children
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from . import expressions
from .expressions import COMPARISONS, Expression, Port


class Status(IntEnum):
    """The status of a node after a tick; INVALID: never ticked, or halted."""

    INVALID = 0
    SUCCESS = 1
    FAILURE = 2
    RUNNING = 3


INVALID, SUCCESS, FAILURE, RUNNING = Status.INVALID, Status.SUCCESS, Status.FAILURE, Status.RUNNING


class Kind(IntEnum):
    """What a node of a program does; see ``include/core_agents/behaviour_tree.hpp``."""

    SEQUENCE = 0
    SEQUENCE_MEMORY = 1
    SELECTOR = 2
    SELECTOR_MEMORY = 3
    PARALLEL_ALL = 4
    PARALLEL_ALL_SYNC = 5
    PARALLEL_ONE = 6
    CONDITION = 7
    GUARD = 8
    ACTION = 9
    ACTION_WHILE = 10
    INVERTER = 11
    FAILURE_IS_RUNNING = 12
    FAILURE_IS_SUCCESS = 13
    RUNNING_IS_FAILURE = 14
    RUNNING_IS_SUCCESS = 15
    SUCCESS_IS_FAILURE = 16
    SUCCESS_IS_RUNNING = 17
    REPEAT = 18
    RETRY = 19
    ONE_SHOT = 20
    TIMEOUT = 21


@dataclass(frozen=True)
class Node:
    """A node of a tree; two nodes are equal if their subtrees are."""

    name: str

    @property
    def children(self) -> tuple[Node, ...]:
        """The node's children, in the order in which they are ticked."""
        return ()

    def with_children(self, children: Children[Node]) -> Node:
        """The same node with other children, as many as it takes."""
        return self

    def _fields(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class _Composite(Node):
    def with_children(self, children: Children[Node]) -> Node:
        """The same node with other children."""
        made = copy.copy(self)
        made._freeze(children)
        return made

    def _freeze(self, children: Children[Node]) -> None:
        object.__setattr__(self, "_children", tuple(children))

    _children: tuple[Node, ...] = field(init=False, default=())

    @property
    def children(self) -> tuple[Node, ...]:
        """The children, in the order in which they are ticked."""
        return self._children


@dataclass(frozen=True, init=False)
class Sequence(_Composite):
    """Ticks children in order until one does not succeed, whose status it takes; SUCCESS if all succeed.

    With ``memory`` a RUNNING sequence resumes at its RUNNING child instead of at the first.
    """

    memory: bool

    def __init__(self, name: str, memory: bool, children: Children[Node] = ()) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "memory", memory)
        self._freeze(children)

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.SEQUENCE_MEMORY if self.memory else Kind.SEQUENCE}


@dataclass(frozen=True, init=False)
class Selector(_Composite):
    """Ticks children in order until one succeeds or is RUNNING; FAILURE if all fail. Children behind it are halted.

    With ``memory`` a RUNNING selector resumes at its RUNNING child: higher priorities cannot interrupt it.
    """

    memory: bool

    def __init__(self, name: str, memory: bool, children: Children[Node] = ()) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "memory", memory)
        self._freeze(children)

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.SELECTOR_MEMORY if self.memory else Kind.SELECTOR}


class ParallelPolicy:
    """When a :class:`Parallel` succeeds."""

    @dataclass(frozen=True)
    class SuccessOnAll:
        """When all children succeed; ``synchronise``: a child that has succeeded is not ticked again until then."""

        synchronise: bool = True

    @dataclass(frozen=True)
    class SuccessOnOne:
        """When at least one child succeeds and none fails."""


@dataclass(frozen=True, init=False)
class Parallel(_Composite):
    """Ticks every child; FAILURE if any fails, SUCCESS by ``policy``, else RUNNING. Halts its children when it ends."""

    policy: ParallelPolicy.SuccessOnAll | ParallelPolicy.SuccessOnOne

    def __init__(
        self,
        name: str,
        policy: ParallelPolicy.SuccessOnAll | ParallelPolicy.SuccessOnOne,
        children: Children[Node] = (),
    ) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "policy", policy)
        self._freeze(children)

    def _fields(self) -> dict[str, Any]:
        if isinstance(self.policy, ParallelPolicy.SuccessOnOne):
            return {"kinds": Kind.PARALLEL_ONE}
        return {"kinds": Kind.PARALLEL_ALL_SYNC if self.policy.synchronise else Kind.PARALLEL_ALL}


@dataclass(frozen=True)
class Condition(Node):
    """Compares ``feature op threshold`` in float32; NaN compares false except for ``!=``.

    ``feature`` is a column of the observations or an expression over them (:mod:`.expressions`). A leaf: SUCCESS if it
    holds, else FAILURE. With a ``child``, a guard: FAILURE (and the child halted) if it does not hold, else the
    child's status. Raises ValueError for another comparison.
    """

    feature: int | Expression
    op: str
    threshold: float
    child: Node | None = None

    def __post_init__(self) -> None:
        for name, value in zip(
            ("feature", "op", "threshold"),
            expressions.condition(self.feature, self.op, self.threshold),
            strict=True,
        ):
            object.__setattr__(self, name, value)

    @property
    def children(self) -> tuple[Node, ...]:
        """The child, if there is one."""
        return () if self.child is None else (self.child,)

    def with_children(self, children: Children[Node]) -> Node:
        """The same condition with another child."""
        return dataclasses.replace(self, child=children[0]) if children else self

    def _fields(self) -> dict[str, Any]:
        kind = Kind.CONDITION if self.child is None else Kind.GUARD
        return {"kinds": kind, **_condition_fields(self.feature, self.op, self.threshold)}


@dataclass(frozen=True)
class Action(Node):
    """Emits the id ``action`` (>= 0; -1 emits nothing) on every tick that reaches it.

    RUNNING for ``duration`` ticks, or while ``running_while = (feature, op, threshold)`` holds (``feature`` as for
    :class:`Condition`); then ``status``. In a sub-tree ``action`` may be a :class:`Port`.
    """

    action: int | Port
    status: Status = SUCCESS
    duration: int = 0
    running_while: tuple[int | Expression, str, float] | None = None

    def __post_init__(self) -> None:
        if self.running_while is not None:
            object.__setattr__(self, "running_while", expressions.condition(*self.running_while))

    def _fields(self) -> dict[str, Any]:
        if isinstance(self.action, Port):
            raise ValueError(f"Action {self.name!r}: port '{self.action.name}' has no value outside its sub-tree")
        if self.running_while is None:
            return {"kinds": Kind.ACTION, "action_ids": self.action, "results": self.status, "params": self.duration}
        if self.duration:
            raise ValueError(f"Action {self.name!r}: 'duration' must be 0 with 'running_while', got {self.duration}")
        fields = {"kinds": Kind.ACTION_WHILE, "action_ids": self.action, "results": self.status}
        return {**fields, **_condition_fields(*self.running_while)}


def Success(name: str) -> Action:
    """A leaf that always succeeds and emits nothing."""
    return Action(name, -1, SUCCESS)


def Failure(name: str) -> Action:
    """A leaf that always fails and emits nothing."""
    return Action(name, -1, FAILURE)


def Running(name: str) -> Action:
    """A leaf that is always RUNNING and emits nothing."""
    return Action(name, -1, RUNNING)


def TickCounter(name: str, duration: int, completion_status: Status) -> Action:
    """A leaf that is RUNNING for ``duration`` ticks, then ``completion_status``; it emits nothing."""
    return Action(name, -1, completion_status, duration)


def Wait(name: str, duration: int) -> Action:
    """A leaf that is RUNNING for ``duration`` ticks, then SUCCESS; it emits nothing."""
    return Action(name, -1, SUCCESS, duration)


@dataclass(frozen=True)
class Decorator(Node):
    """A node with one child. What is RUNNING below a decorator that ends is halted."""

    child: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """The child."""
        return (self.child,)

    def with_children(self, children: Children[Node]) -> Node:
        """The same decorator around another child."""
        return dataclasses.replace(self, child=children[0])

    def _fields(self) -> dict[str, Any]:
        return {"kinds": _KIND_OF[type(self)]}


class Inverter(Decorator):
    """Swaps SUCCESS and FAILURE."""


class FailureIsRunning(Decorator):
    """Turns FAILURE into RUNNING."""


class FailureIsSuccess(Decorator):
    """Turns FAILURE into SUCCESS."""


class RunningIsFailure(Decorator):
    """Turns RUNNING into FAILURE; the child is halted."""


class RunningIsSuccess(Decorator):
    """Turns RUNNING into SUCCESS; the child is halted."""


class SuccessIsFailure(Decorator):
    """Turns SUCCESS into FAILURE."""


class SuccessIsRunning(Decorator):
    """Turns SUCCESS into RUNNING."""


@dataclass(frozen=True)
class Repeat(Decorator):
    """RUNNING until the child has succeeded ``num_success`` times (-1: for ever); FAILURE as soon as it fails."""

    num_success: int

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.REPEAT, "params": self.num_success}


@dataclass(frozen=True)
class Retry(Decorator):
    """RUNNING until the child has failed ``num_failures`` times; SUCCESS as soon as it succeeds."""

    num_failures: int

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.RETRY, "params": self.num_failures}


@dataclass(frozen=True)
class Timeout(Decorator):
    """The child's status, but FAILURE when it is still RUNNING after ``duration`` ticks (py_trees: seconds)."""

    duration: int

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.TIMEOUT, "params": self.duration}


class OneShotPolicy(Enum):
    """Which status of its child completes a :class:`OneShot`."""

    ON_COMPLETION = 0
    ON_SUCCESSFUL_COMPLETION = 1


@dataclass(frozen=True)
class OneShot(Decorator):
    """Ticks the child until it completes, then keeps that status for ever (until :meth:`BatchedTree.reset`)."""

    policy: OneShotPolicy

    def _fields(self) -> dict[str, Any]:
        return {"kinds": Kind.ONE_SHOT, "params": self.policy.value}


ForceSuccess = FailureIsSuccess
"""BehaviorTree.CPP's name."""
ForceFailure = SuccessIsFailure
"""BehaviorTree.CPP's name."""
KeepRunningUntilFailure = SuccessIsRunning
"""BehaviorTree.CPP's name."""


_KIND_OF: dict[type[Node], Kind] = {
    Inverter: Kind.INVERTER,
    FailureIsRunning: Kind.FAILURE_IS_RUNNING,
    FailureIsSuccess: Kind.FAILURE_IS_SUCCESS,
    RunningIsFailure: Kind.RUNNING_IS_FAILURE,
    RunningIsSuccess: Kind.RUNNING_IS_SUCCESS,
    SuccessIsFailure: Kind.SUCCESS_IS_FAILURE,
    SuccessIsRunning: Kind.SUCCESS_IS_RUNNING,
}


def _condition_fields(feature: int | Expression, op: str, threshold: float) -> dict[str, Any]:
    return {"features": feature, "comparisons": COMPARISONS.index(op), "thresholds": threshold}
