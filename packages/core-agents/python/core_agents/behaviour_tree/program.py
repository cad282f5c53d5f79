"""Trees flattened into programs, which all agents share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core_agents as _C
from .expressions import COMPARISONS, OPERATIONS, UNARY, Code, Constant, Expression, Feature, Operation, columns_of
from .nodes import (
    _KIND_OF,
    Action,
    Condition,
    Kind,
    Node,
    OneShot,
    OneShotPolicy,
    Parallel,
    ParallelPolicy,
    Repeat,
    Retry,
    Selector,
    Sequence,
    Status,
    Timeout,
)
from .observations import feature_names
from .subtrees import expand, preorder

_NODES = {
    "kinds": "uint8",
    "ends": "int32",
    "features": "int32",
    "comparisons": "uint8",
    "thresholds": "float32",
    "action_ids": "int32",
    "results": "uint8",
    "params": "int32",
}

_CODE = {"code_ops": "uint8", "code_lefts": "int32", "code_rights": "int32", "code_values": "float32"}
ARRAYS = {**_NODES, **_CODE}
"""The arrays of a program and their dtypes, in the order in which the operators take them."""


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled tree: one element per node in pre-order, shared by all agents.

    ``arrays`` holds by name what the raw operator takes, in the order of :data:`ARRAYS` (their meaning is in
    ``behaviour_tree.hpp``); ``rows`` gives each node's row of an agent's state, or -1. ``tree`` has its sub-trees put
    in. ``dtype`` is that of structured observations, if it was compiled for them.
    """

    tree: Node
    nodes: tuple[Node, ...]
    arrays: dict[str, np.ndarray]
    num_features: int
    rows: np.ndarray
    state_rows: int
    counter_rows: int
    dtype: np.dtype | None = None

    def __len__(self) -> int:
        return len(self.nodes)


def compile(tree: Node, num_features: int | np.dtype | None = None) -> Program:  # noqa: A001
    """Flattens and checks a tree. ``num_features``: columns of the observations, by default as many as the tree reads.

    With a structured dtype, observations are arrays of it (:func:`feature_names`). Raises ValueError that names the
    node (its pre-order number) and the field.
    """
    tree, dtype = expand(tree), None
    if isinstance(num_features, np.dtype):
        dtype, num_features = num_features, len(feature_names(num_features))
    nodes = tuple(node for node, _ in preorder(tree))
    ends = np.arange(1, len(nodes) + 1, dtype=np.int32)
    path: list[int] = []
    for i, (_, depth) in enumerate(preorder(tree)):
        for closed in path[depth:]:
            ends[closed] = i
        path[depth:] = [i]
    ends[path] = len(nodes)
    fields = [node._fields() for node in nodes]
    read = [f["features"] for f in fields if "features" in f]
    if num_features is None:
        num_features = 1 + max((c for x in read for c in columns_of(x)), default=-1)
    code = Code(num_features)
    for i, f in enumerate(fields):
        if "features" not in f:
            continue
        for c in columns_of(f["features"]):
            if not 0 <= c < num_features:
                raise ValueError(
                    f"compile: argument 'features' at node {i} must be in [0, {num_features}) to name a column of the "
                    f"observations, got {c}"
                )
        if not isinstance(f["features"], int):
            f["features"] = code.column(f["features"])
    columns = {name: [f.get(name, 0) for f in fields] for name in _NODES} | {"ends": ends}
    columns |= {"code_ops": code.ops, "code_lefts": code.lefts, "code_rights": code.rights, "code_values": code.values}
    arrays = {name: np.array(columns[name], dtype) for name, dtype in ARRAYS.items()}
    rows, sizes = np.empty(len(nodes), np.int32), np.empty(2, np.int64)
    arguments: list[Any] = [*arrays.values(), num_features, rows, sizes]
    _C.check_program(*arguments)
    return Program(tree, nodes, arrays, num_features, rows, int(sizes[0]), int(sizes[1]), dtype)


def decompile(arrays: Mapping[str, Any], num_features: int) -> Node:
    """The tree of a program's ``arrays``, with its kinds as names. The arrays must be those of a checked program."""
    columns = {name: np.asarray(arrays[name]).tolist() for name in ARRAYS}
    made: list[Expression] = []

    def operand(column: int, value: float) -> Expression:
        if column < 0:
            return Constant(value)
        return Feature(column) if column < num_features else made[column - num_features]

    for op, left, right, value in zip(*(columns[name] for name in _CODE), strict=True):
        name = OPERATIONS[op]
        count = 1 if name in UNARY else 2
        made.append(Operation(name, tuple(operand(c, value) for c in (left, right)[:count])))
    built: list[tuple[int, Node]] = []  # roots of the finished subtrees, the leftmost last
    for i in reversed(range(len(columns["kinds"]))):
        children = []
        while built and built[-1][0] < columns["ends"][i]:
            children.append(built.pop()[1])
        at = {name: columns[name][i] for name in _NODES}
        at["features"] = operand(at["features"], 0.0)
        built.append((i, _node(at, children)))
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
