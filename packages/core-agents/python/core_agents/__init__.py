"""Behaviour trees that tick thousands of agents at once. Start at :class:`BatchedTree`."""

from typing import Any

from .action_tokens import (
    JARVIS_CAMERA,
    VPT_CAMERA,
    ActionTokenizer,
    CameraBins,
    decode_actions,
    encode_actions,
    stack_buttons,
)
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
    "COMPARISONS", "FAILURE", "INVALID", "JARVIS_CAMERA", "RUNNING", "SUCCESS", "VPT_CAMERA", "Action",
    "ActionTokenizer", "BatchedTree", "CameraBins", "Condition", "Failure", "FailureIsRunning", "FailureIsSuccess",
    "Inverter", "Kind", "Node", "OneShot", "OneShotPolicy", "Parallel", "ParallelPolicy", "ParseError", "Program",
    "Repeat", "Retry", "Running", "RunningIsFailure", "RunningIsSuccess", "Selector", "Sequence", "Status",
    "Success", "SuccessIsFailure", "SuccessIsRunning", "TickCounter", "Timeout", "compile", "decode_actions",
    "encode_actions", "from_dsl", "from_py_trees", "stack_buttons", "to_dsl", "to_py_trees",
]  # fmt: skip
