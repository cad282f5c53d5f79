"""Behaviour trees that tick many agents at once.

A tree is built from nodes that carry py_trees' names, or parsed from indented text (:func:`from_dsl`), compiled into
one flat :class:`Program` that all agents share, and ticked by :class:`BatchedTree`: observations come in as one array
``[agents, features]``, action ids go out as one array ``[agents]``.

Semantics: py_trees 2.x ``tick_once``. A :class:`Condition` with a child is a guard (PORTAL, arXiv 2503.13356):
FAILURE if the condition is false, else the child's status; it is py_trees' ``EternalGuard``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from collections.abc import Sequence as Children
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty, is_torch

from . import _core_agents as _C


class Status(IntEnum):
    """The status of a node after a tick; INVALID: never ticked, or halted."""

    INVALID = 0
    SUCCESS = 1
    FAILURE = 2
    RUNNING = 3


INVALID, SUCCESS, FAILURE, RUNNING = Status.INVALID, Status.SUCCESS, Status.FAILURE, Status.RUNNING

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
"""The comparisons of conditions; a program holds their positions here."""


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

    def _fields(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class _Composite(Node):
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
    """Compares ``observations[:, feature] op threshold`` in float32; NaN compares false except for ``!=``.

    A leaf: SUCCESS if it holds, else FAILURE. With a ``child``, a guard: FAILURE (and the child halted) if it does
    not hold, else the child's status.
    """

    feature: int
    op: str
    threshold: float
    child: Node | None = None

    @property
    def children(self) -> tuple[Node, ...]:
        """The child, if there is one."""
        return () if self.child is None else (self.child,)

    def _fields(self) -> dict[str, Any]:
        kind = Kind.CONDITION if self.child is None else Kind.GUARD
        return {"kinds": kind, **_condition_fields(self.feature, self.op, self.threshold)}


@dataclass(frozen=True)
class Action(Node):
    """Emits the id ``action`` (>= 0; -1 emits nothing) on every tick that reaches it.

    RUNNING for ``duration`` ticks, or while ``running_while = (feature, op, threshold)`` holds; then ``status``.
    """

    action: int
    status: Status = SUCCESS
    duration: int = 0
    running_while: tuple[int, str, float] | None = None

    def _fields(self) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Decorator(Node):
    """A node with one child. What is RUNNING below a decorator that ends is halted."""

    child: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """The child."""
        return (self.child,)

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


_KIND_OF: dict[type[Node], Kind] = {
    Inverter: Kind.INVERTER,
    FailureIsRunning: Kind.FAILURE_IS_RUNNING,
    FailureIsSuccess: Kind.FAILURE_IS_SUCCESS,
    RunningIsFailure: Kind.RUNNING_IS_FAILURE,
    RunningIsSuccess: Kind.RUNNING_IS_SUCCESS,
    SuccessIsFailure: Kind.SUCCESS_IS_FAILURE,
    SuccessIsRunning: Kind.SUCCESS_IS_RUNNING,
}


def _condition_fields(feature: int, op: str, threshold: float) -> dict[str, Any]:
    if op not in COMPARISONS:
        raise ValueError(f"argument 'op' must be one of {' '.join(COMPARISONS)}, got {op!r}")
    return {"features": feature, "comparisons": COMPARISONS.index(op), "thresholds": threshold}


ARRAYS = {
    "kinds": "uint8",
    "ends": "int32",
    "features": "int32",
    "comparisons": "uint8",
    "thresholds": "float32",
    "action_ids": "int32",
    "results": "uint8",
    "params": "int32",
}
"""The arrays of a program and their dtypes, in the order in which the operators take them."""


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled tree: one element per node in pre-order, shared by all agents.

    ``arrays`` holds by name what the raw operator takes, in its order (kinds, ends, features, comparisons, thresholds,
    action_ids, results, params; their meaning is in ``behaviour_tree.hpp``); ``rows`` gives each node's row of an
    agent's state, or -1.
    """

    tree: Node
    nodes: tuple[Node, ...]
    arrays: dict[str, np.ndarray]
    num_features: int
    rows: np.ndarray
    state_rows: int
    counter_rows: int

    def __len__(self) -> int:
        return len(self.nodes)


def compile(tree: Node, num_features: int | None = None) -> Program:  # noqa: A001
    """Flattens and checks a tree. ``num_features``: columns of the observations, by default as many as the tree reads.

    Raises ValueError that names the node (its pre-order number) and the field.
    """
    nodes: list[Node] = []
    ends: list[int] = []
    stack: list[tuple[Node, int]] = [(tree, -1)]  # a node to enter, or the number of one to leave
    while stack:
        node, leave = stack.pop()
        if leave >= 0:
            ends[leave] = len(nodes)
            continue
        stack.append((node, len(nodes)))
        nodes.append(node)
        ends.append(0)
        stack.extend((c, -1) for c in reversed(node.children))
    fields = [node._fields() for node in nodes]
    if num_features is None:
        num_features = 1 + max((f.get("features", -1) for f in fields), default=-1)
    arrays = {
        name: np.array([f.get(name, 0) for f in fields], dtype) for name, dtype in ARRAYS.items() if name != "ends"
    }
    arrays["ends"] = np.array(ends, np.int32)
    arrays = {name: arrays[name] for name in ARRAYS}
    rows, sizes = np.empty(len(nodes), np.int32), np.empty(2, np.int64)
    arguments: list[Any] = [*arrays.values(), num_features, rows, sizes]
    _C.check_program(*arguments)
    return Program(tree, tuple(nodes), arrays, num_features, rows, int(sizes[0]), int(sizes[1]))


def decompile(arrays: Mapping[str, Any]) -> Node:
    """The tree of a program's ``arrays``, with its kinds as names. The arrays must be those of a checked program."""
    columns = {name: np.asarray(arrays[name]).tolist() for name in ARRAYS}
    built: list[tuple[int, Node]] = []  # roots of the finished subtrees, the leftmost last
    for i in reversed(range(len(columns["kinds"]))):
        children = []
        while built and built[-1][0] < columns["ends"][i]:
            children.append(built.pop()[1])
        built.append((i, _node({name: c[i] for name, c in columns.items()}, children)))
    return built[0][1]


def _node(at: Mapping[str, Any], children: list[Node]) -> Node:
    kind = Kind(at["kinds"])
    name, param = kind.name.lower(), at["params"]
    condition = (at["features"], COMPARISONS[at["comparisons"]], at["thresholds"])
    if kind in (Kind.SEQUENCE, Kind.SEQUENCE_MEMORY):
        return Sequence(name, kind == Kind.SEQUENCE_MEMORY, children)
    if kind in (Kind.SELECTOR, Kind.SELECTOR_MEMORY):
        return Selector(name, kind == Kind.SELECTOR_MEMORY, children)
    if kind == Kind.PARALLEL_ONE:
        return Parallel(name, ParallelPolicy.SuccessOnOne(), children)
    if kind in (Kind.PARALLEL_ALL, Kind.PARALLEL_ALL_SYNC):
        return Parallel(name, ParallelPolicy.SuccessOnAll(kind == Kind.PARALLEL_ALL_SYNC), children)
    if kind in (Kind.CONDITION, Kind.GUARD):
        return Condition(name, *condition, *children)
    if kind == Kind.ACTION:
        return Action(name, at["action_ids"], Status(at["results"]), param)
    if kind == Kind.ACTION_WHILE:
        return Action(name, at["action_ids"], Status(at["results"]), running_while=condition)
    if kind == Kind.ONE_SHOT:
        return OneShot(name, children[0], OneShotPolicy(param))
    if kind in (Kind.REPEAT, Kind.RETRY, Kind.TIMEOUT):
        counted = {Kind.REPEAT: Repeat, Kind.RETRY: Retry, Kind.TIMEOUT: Timeout}[kind]
        return counted(name, children[0], param)
    plain = {k: cls for cls, k in _KIND_OF.items()}
    return plain[kind](name, children[0])  # type: ignore[call-arg]


class BatchedTree:
    """One program ticked for ``num_agents`` agents.

    ``period`` (int or int array [agents]): agent ``a`` ticks on every ``period[a]``-th call only; agents with the same
    period are spread evenly over the calls.
    """

    def __init__(self, program: Program, num_agents: int, period: Any = None) -> None:
        if num_agents < 0:
            raise ValueError(f"BatchedTree: argument 'num_agents' must not be negative, got {num_agents}")
        self.program = program
        self.num_agents = num_agents
        self._arguments = tuple(program.arrays.values())
        self._state = np.zeros((program.state_rows, num_agents), np.uint8)
        self._counters = np.zeros((program.counter_rows, num_agents), np.int32)
        self.actions: Any = np.full(num_agents, -1, np.int32)
        """int32 [agents]: the last action id that an agent's latest tick emitted, -1 for none."""
        self.status: Any = np.zeros(num_agents, np.uint8)
        """uint8 [agents]: :class:`Status` of the root after an agent's latest tick."""
        self.calls = 0
        self._period: np.ndarray | None = None
        if period is not None:
            self._period = np.broadcast_to(np.asarray(period, np.int64), (num_agents,))
            if num_agents and self._period.min() < 1:
                raise ValueError(f"BatchedTree: argument 'period' must be at least 1, got {self._period.min()}")
            self._phase = np.arange(num_agents) % self._period

    def tick(self, observations: Any, mask: Any = None) -> Any:
        """Ticks the agents once and returns :attr:`status`; :attr:`actions` holds what they do.

        ``observations`` [agents, features] float32 (numpy, torch or CuPy, on the CPU or a GPU, or lists), ``mask``
        [agents] bool: which agents tick; the others keep everything. The returned arrays are overwritten by the next
        call. The agents move to the device of the observations.
        """
        observations = as_array(observations, "float32", "observations")
        if len(observations.shape) != 2 or observations.shape[0] != self.num_agents:
            shape = tuple(observations.shape)
            raise ValueError(
                f"tick: argument 'observations' must be float32 of shape ({self.num_agents}, F), got shape {shape}"
            )
        if _place(self.actions) != _place(observations):
            self._move(observations)
        if mask is not None:
            mask = as_array(mask, "bool", "mask")
            if _place(mask) != _place(observations):
                mask = _like(_host(mask), observations)
        if self._period is not None:
            due = _like(self.calls % self._period == self._phase, observations)
            mask = due if mask is None else due & mask
        self.calls += 1
        agents: tuple[Any, ...] = (observations, mask, self._state, self._counters, self.actions, self.status)
        _C.tick(*self._arguments, *agents)
        return self.status

    def _move(self, like: Any) -> None:
        """Brings program and agents to the kind and the device of an array."""
        self._arguments = tuple(_like(a, like) for a in self.program.arrays.values())
        for name in ("_state", "_counters", "actions", "status"):
            setattr(self, name, _like(_host(getattr(self, name)), like))

    @property
    def running(self) -> np.ndarray:
        """bool [nodes, agents]: which nodes are RUNNING."""
        out = np.zeros((len(self.program), self.num_agents), bool)
        has = self.program.rows >= 0
        out[has] = _host(self._state)[self.program.rows[has]] & 1
        return out

    def reset(self, mask: Any = None) -> None:
        """Forgets everything about the agents of ``mask`` ([agents] bool; default all): status INVALID, action -1."""
        who = slice(None) if mask is None else _like(np.asarray(_host(mask), bool), self.actions)
        self._state[:, who] = 0
        self._counters[:, who] = 0
        self.actions[who] = -1
        self.status[who] = int(INVALID)


def _place(x: Any) -> tuple[type, str]:
    return type(x), str(getattr(x, "device", "cpu"))


def _host(x: Any) -> np.ndarray:
    """A numpy array of any array's values."""
    if is_torch(x):
        return np.asarray(x.detach().cpu())
    return np.asarray(x.get() if hasattr(x, "get") else x)


def _like(x: np.ndarray, like: Any) -> Any:
    """A copy of a numpy array, of the kind and on the device of `like`."""
    if is_torch(like):
        return sys.modules["torch"].tensor(x, device=like.device)
    out = empty(x.shape, str(x.dtype), like=like)
    if isinstance(out, np.ndarray):
        out[...] = x
    else:
        out.set(x)
    return out
