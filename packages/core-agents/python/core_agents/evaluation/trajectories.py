"""Trajectories against references: tool calls with typed arguments, match modes, precision and recall.

A trajectory is a list of OpenAI chat messages; a tool call is its function's name and arguments. Match modes are named
as in LangChain's agentevals and Vertex AI's evaluation. Where several calls may stand for each other, the largest
one-to-one assignment decides, not the order in which they are tried.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Message = Mapping[str, Any]
Schema = Mapping[str, Any]


class ToolCall(NamedTuple):
    """The name of a tool and its arguments."""

    name: str
    arguments: Mapping[str, Any]


def tool_calls(messages: Iterable[Message]) -> list[ToolCall]:
    """All tool calls of OpenAI messages in order. Raises ValueError that names the message that is not of that form."""
    calls = []
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            try:
                function = call["function"]
                arguments = function["arguments"]
                if isinstance(arguments, str):
                    arguments = json.loads(arguments) if arguments else {}
                if not (type(arguments) is dict or isinstance(arguments, Mapping)) or not isinstance(
                    function["name"], str
                ):
                    raise TypeError("'name' must be text and 'arguments' an object")
                calls.append(ToolCall(function["name"], arguments))
            except (KeyError, TypeError, ValueError, RecursionError) as e:
                raise ValueError(f"message {i}: a tool call is not of OpenAI's form: {e!r}") from None
    return calls


def canonical(value: Any, schema: Schema | None = None) -> Any:
    """A hashable form of a JSON value, equal for equal values: 1 and 1.0 are equal, True and 1 and "1" are not.

    With a JSON schema, text that says a number or a truth value is one where the schema says so, and a missing
    property is its "default".
    """
    if not schema:
        return _plain(value)
    kind = schema.get("type")
    if isinstance(value, str):
        if kind == "boolean" and value.lower() in ("true", "false"):
            return ("bool", value.lower() == "true")
        if kind in ("integer", "number"):
            try:
                number = float(value) if kind == "number" else int(value)
            except ValueError:
                return value
            return canonical(number)
        return value
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        filled = {k: s["default"] for k, s in properties.items() if isinstance(s, Mapping) and "default" in s}
        filled.update(value)
        return ("object", frozenset((k, canonical(v, properties.get(k))) for k, v in filled.items()))
    if isinstance(value, (list, tuple)):
        return ("array", *(canonical(v, schema.get("items")) for v in value))
    return _plain(value)


def _plain(value: Any) -> Any:
    """:func:`canonical` without a schema."""
    kind = type(value)
    if kind is str or kind is int or value is None:
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, Mapping):
        return ("object", frozenset([(k, v if type(v) is str else _plain(v)) for k, v in value.items()]))
    if isinstance(value, (list, tuple)):
        return ("array", *map(_plain, value))
    if isinstance(value, float) and value != value:
        return ("nan",)
    if isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"a tool's argument must be a JSON value, got {kind.__name__}")


ArgumentMode = str | Sequence[str] | Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Matcher:
    """When a call stands for a call of the reference: the same name, and arguments by `arguments`.

    arguments: "exact", "ignore", "subset" (all of the call's are the reference's) or "superset" (the call has all of
    the reference's). `overrides` gives a tool another mode, the keys that must be equal, or a function of both calls'
    arguments. `schemas` are the JSON schemas of tools' parameters, see :func:`canonical`.
    """

    arguments: str = "exact"
    overrides: Mapping[str, ArgumentMode] = field(default_factory=dict)
    schemas: Mapping[str, Schema] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mode in (self.arguments, *self.overrides.values()):
            if isinstance(mode, str) and mode not in ("exact", "ignore", "subset", "superset"):
                raise ValueError(f"argument 'arguments' must be exact, ignore, subset or superset, got {mode!r}")

    def key(self, call: ToolCall) -> tuple[Any, ...]:
        """What is compared of a call: its name and, unless they are ignored, its arguments in canonical form."""
        if self.overrides.get(call.name, self.arguments) == "ignore":
            return (call.name,)
        return call.name, canonical(call.arguments, self.schemas.get(call.name))

    def matches(self, call: ToolCall, reference: ToolCall) -> bool:
        """Whether the call stands for the reference's."""
        if call.name != reference.name:
            return False
        mode = self.overrides.get(call.name, self.arguments)
        if callable(mode):
            return bool(mode(call.arguments, reference.arguments))
        first, second = self.key(call), self.key(reference)
        if mode in ("exact", "ignore"):
            return first == second
        ours, theirs = first[1][1], second[1][1]
        if mode == "subset":
            return bool(ours <= theirs)
        if mode == "superset":
            return bool(ours >= theirs)
        mine, other = dict(ours), dict(theirs)
        return all(mine.get(k) == other.get(k) and (k in mine) == (k in other) for k in mode)

    def paired(self, calls: Sequence[ToolCall], reference: Sequence[ToolCall]) -> int:
        """The most calls that can be assigned to calls of the reference, one to one."""
        if not self.overrides and self.arguments in ("exact", "ignore"):
            both = Counter(map(self.key, calls)) & Counter(map(self.key, reference))
            return both.total()
        options = [[j for j, r in enumerate(reference) if self.matches(c, r)] for c in calls]
        return _largest_assignment(options)


def _largest_assignment(options: list[list[int]]) -> int:
    """The size of a maximum matching, by augmenting paths (breadth first)."""
    owner: dict[int, int] = {}
    for start in range(len(options)):
        came: dict[int, tuple[int, int | None]] = {}
        queue: list[tuple[int, int | None]] = [(start, None)]
        free = None
        for call, through in queue:
            for j in options[call]:
                if j in came:
                    continue
                came[j] = (call, through)
                if j not in owner:
                    free = j
                    break
                queue.append((owner[j], j))
            if free is not None:
                break
        while free is not None:
            call, before = came[free]
            owner[free] = call
            free = before
    return len(owner)


TRAJECTORY_MODES = ("strict", "unordered", "subset", "superset", "exact", "in_order", "any_order")


def trajectory_match(
    outputs: Sequence[Message], reference: Sequence[Message], mode: str = "strict", matcher: Matcher | None = None
) -> bool:
    """Whether a trajectory matches its reference.

    "strict": the same roles message by message, and in each the same calls in any order. "unordered": the same calls,
    "subset": no other calls, "superset" or "any_order": all calls of the reference, in any order. "exact": the same
    calls in the same order, "in_order": all calls of the reference in their order, others in between.
    """
    matcher = matcher or Matcher()
    if mode == "strict":
        if [m.get("role") for m in outputs] != [m.get("role") for m in reference]:
            return False
        for a, b in zip(outputs, reference, strict=True):
            ours, theirs = tool_calls([a]), tool_calls([b])
            if (a.get("tool_calls") is None) != (b.get("tool_calls") is None) or len(ours) != len(theirs):
                return False
            if matcher.paired(ours, theirs) != len(theirs):
                return False
        return True
    ours, theirs = tool_calls(outputs), tool_calls(reference)
    if mode == "exact":
        return len(ours) == len(theirs) and all(map(matcher.matches, ours, theirs))
    if mode == "in_order":
        rest = iter(ours)
        return all(any(matcher.matches(call, wanted) for call in rest) for wanted in theirs)
    if mode not in TRAJECTORY_MODES:
        raise ValueError(f"argument 'mode' must be one of {', '.join(TRAJECTORY_MODES)}, got {mode!r}")
    paired = matcher.paired(ours, theirs)
    wanted_ours = len(ours) if mode in ("unordered", "subset") else paired
    wanted_theirs = len(theirs) if mode in ("unordered", "superset", "any_order") else paired
    return paired == wanted_ours == wanted_theirs


def trajectory_scores(
    outputs: Sequence[Message], reference: Sequence[Message], matcher: Matcher | None = None
) -> dict[str, float]:
    """Precision (calls that stand for one of the reference), recall (calls of the reference that are met), and their
    harmonic mean f1; assigned one to one. Without calls to count a share is 1."""
    ours, theirs = tool_calls(outputs), tool_calls(reference)
    paired = (matcher or Matcher()).paired(ours, theirs)
    precision, recall = paired / len(ours) if ours else 1.0, paired / len(theirs) if theirs else 1.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if paired else float(not ours and not theirs),
    }
