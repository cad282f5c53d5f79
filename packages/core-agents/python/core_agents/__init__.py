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
    Definition,
    Failure,
    FailureIsRunning,
    FailureIsSuccess,
    ForceFailure,
    ForceSuccess,
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
    SubTree,
    Success,
    SuccessIsFailure,
    SuccessIsRunning,
    TickCounter,
    TickLog,
    Timeout,
    Wait,
    compile,  # noqa: A004
    feature_names,
)
from .dsl import from_dsl, to_dsl
from .forms import ParseError
from .json_format import from_json, to_json
from .xml_format import from_xml, to_xml


def __getattr__(name: str) -> Any:
    if name in ("from_py_trees", "to_py_trees"):
        from . import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "COMPARISONS", "FAILURE", "INVALID", "JARVIS_CAMERA", "RUNNING", "SUCCESS", "VPT_CAMERA", "Action",
    "ActionTokenizer", "BatchedTree", "CameraBins", "Condition", "Definition", "Failure", "FailureIsRunning",
    "FailureIsSuccess", "ForceFailure", "ForceSuccess", "Inverter", "Kind", "Node", "OneShot", "OneShotPolicy",
    "Parallel", "ParallelPolicy", "ParseError", "Program", "Repeat", "Retry", "Running", "RunningIsFailure",
    "RunningIsSuccess", "Selector", "Sequence", "Status", "SubTree", "Success", "SuccessIsFailure",
    "SuccessIsRunning", "TickCounter", "TickLog", "Timeout", "Wait", "compile", "decode_actions", "encode_actions",
    "feature_names", "from_dsl", "from_json", "from_py_trees", "from_xml", "stack_buttons", "to_dsl", "to_json",
    "to_py_trees", "to_xml",
]  # fmt: skip
