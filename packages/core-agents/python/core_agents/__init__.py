"""Behaviour trees that tick thousands of agents at once. Start at :class:`BatchedTree`."""

from typing import Any

from .behaviour_tree import (
    COMPARISONS,
    FAILURE,
    INVALID,
    RUNNING,
    SUCCESS,
    Action,
    BatchedTree,
    Condition,
    Failure,
    FailureIsRunning,
    FailureIsSuccess,
    Inverter,
    Kind,
    Node,
    OneShot,
    OneShotPolicy,
    Parallel,
    ParallelPolicy,
    Program,
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
    compile,  # noqa: A004
)
from .dsl import ParseError, from_dsl, to_dsl


def __getattr__(name: str) -> Any:
    if name in ("from_py_trees", "to_py_trees"):
        from . import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "COMPARISONS", "FAILURE", "INVALID", "RUNNING", "SUCCESS", "Action", "BatchedTree", "Condition", "Failure",
    "FailureIsRunning", "FailureIsSuccess", "Inverter", "Kind", "Node", "OneShot", "OneShotPolicy", "Parallel",
    "ParallelPolicy", "ParseError", "Program", "Repeat", "Retry", "Running", "RunningIsFailure", "RunningIsSuccess",
    "Selector", "Sequence", "Status", "Success", "SuccessIsFailure", "SuccessIsRunning", "TickCounter", "Timeout",
    "compile", "from_dsl", "from_py_trees", "to_dsl", "to_py_trees",
]  # fmt: skip
