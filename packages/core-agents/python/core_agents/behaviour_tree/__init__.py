"""Behaviour trees that tick many agents at once.

A tree is built from nodes that carry py_trees' names, or parsed from indented text (:func:`core_agents.from_dsl`),
compiled into one flat :class:`Program` that all agents share, and ticked by :class:`BatchedTree`: observations come in
as one array ``[agents, features]``, action ids go out as one array ``[agents]``.

Semantics: py_trees 2.x ``tick_once``. A :class:`Condition` with a child is a guard (PORTAL, arXiv 2503.13356):
FAILURE if the condition is false, else the child's status; it is py_trees' ``EternalGuard``.
"""

from .batched import BatchedTree
from .expressions import COMPARISONS, OPERATIONS, Constant, Expression, Feature, Operation, Port
from .log import TickLog
from .nodes import (
    FAILURE,
    INVALID,
    RUNNING,
    SUCCESS,
    Action,
    Condition,
    Decorator,
    Failure,
    FailureIsRunning,
    FailureIsSuccess,
    ForceFailure,
    ForceSuccess,
    Inverter,
    KeepRunningUntilFailure,
    Kind,
    Node,
    OneShot,
    OneShotPolicy,
    Parallel,
    ParallelPolicy,
    Repeat,
    Retry,
    Running,
    RunningIsFailure,
    RunningIsSuccess,
    Selector,
    Sequence,
    Status,
    Success,
    SuccessIsFailure,
    SuccessIsRunning,
    TickCounter,
    Timeout,
    Wait,
)
from .observations import columns, feature_names
from .program import ARRAYS, Program, compile, decompile  # noqa: A004
from .subtrees import Definition, SubTree, definitions, expand, preorder

__all__ = [
    "ARRAYS", "COMPARISONS", "FAILURE", "INVALID", "OPERATIONS", "RUNNING", "SUCCESS", "Action", "BatchedTree",
    "Condition", "Constant", "Decorator", "Definition", "Expression", "Failure", "FailureIsRunning", "FailureIsSuccess",
    "Feature", "ForceFailure", "ForceSuccess", "Inverter", "KeepRunningUntilFailure", "Kind", "Node", "OneShot",
    "OneShotPolicy", "Operation", "Parallel", "ParallelPolicy", "Port", "Program", "Repeat", "Retry", "Running",
    "RunningIsFailure", "RunningIsSuccess", "Selector", "Sequence", "Status", "SubTree", "Success", "SuccessIsFailure",
    "SuccessIsRunning", "TickCounter", "TickLog", "Timeout", "Wait", "columns", "compile", "decompile", "definitions",
    "expand", "feature_names", "preorder",
]  # fmt: skip
