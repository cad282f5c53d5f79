"""Trajectories against references: tool calls with typed arguments, match modes, precision and recall.

A trajectory is a list of OpenAI chat messages; a tool call is its function's name and arguments. Match modes are named
as in LangChain's agentevals and Vertex AI's evaluation. Where several calls may stand for each other, the largest
one-to-one assignment decides, not the order in which they are tried.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .. import _core_agents as _C
from ..traces import Traces

Message = Mapping[str, Any]
Schema = Mapping[str, Any]


class ToolCall(NamedTuple):
    """The name of a tool and its arguments."""

    name: str
    arguments: Mapping[str, Any]


def _calls(i: int, message: Message) -> list[ToolCall]:
    """The tool calls of message `i`."""
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            function = call["function"]
            arguments = function["arguments"]
            if isinstance(arguments, str):
                arguments = json.loads(arguments) if arguments else {}
            if not (type(arguments) is dict or isinstance(arguments, Mapping)) or not isinstance(function["name"], str):
                raise TypeError("'name' must be text and 'arguments' an object")
            calls.append(ToolCall(function["name"], arguments))
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"message {i}: a tool call is not of OpenAI's form: {e!r}") from None
    return calls


def tool_calls(messages: Iterable[Message]) -> list[ToolCall]:
    """All tool calls of OpenAI messages in order. Raises ValueError that names the message that is not of that form."""
    return [call for i, message in enumerate(messages) for call in _calls(i, message)]


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

    def keyed(self) -> bool:
        """Whether calls match exactly if their keys are equal."""
        return not self.overrides and self.arguments in ("exact", "ignore")

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
        if self.keyed():
            return _shared(map(self.key, calls), map(self.key, reference))
        options = [[j for j, r in enumerate(reference) if self.matches(c, r)] for c in calls]
        return _largest_assignment(options)


def _shared(first: Iterable[Any], second: Iterable[Any]) -> int:
    """The size of the intersection of two multisets."""
    return (Counter(first) & Counter(second)).total()


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


class _Both:
    """A trajectory and its reference, read once."""

    def __init__(self, outputs: Sequence[Message], reference: Sequence[Message], matcher: Matcher | None) -> None:
        matcher = matcher or Matcher()
        self.messages = outputs, reference
        calls: tuple[list[list[Any]], ...] = tuple([_calls(i, m) for i, m in enumerate(side)] for side in self.messages)
        self.assigned: Callable[[Any, Any], int] = matcher.paired
        self.same: Callable[[Any, Any], bool] = matcher.matches
        if matcher.keyed():
            calls = tuple([[matcher.key(call) for call in message] for message in side] for side in calls)
            self.assigned, self.same = _shared, operator.eq
        self.by_message = calls
        self.ours, self.theirs = ([call for calls in side for call in calls] for side in self.by_message)

    @cached_property
    def paired(self) -> int:
        """How many calls are assigned to calls of the reference."""
        return self.assigned(self.ours, self.theirs)

    def scores(self) -> dict[str, float]:
        """By their names."""
        found = _shares(len(self.ours), len(self.theirs), self.paired)
        return {name: float(v) for name, v in zip(SCORES, found, strict=True)}

    def strict(self) -> bool:
        """Message by message."""
        a, b = self.messages
        if [m.get("role") for m in a] != [m.get("role") for m in b]:
            return False
        return all(
            (m.get("tool_calls") is None) == (n.get("tool_calls") is None)
            and len(ours) == len(theirs) == self.assigned(ours, theirs)
            for m, n, ours, theirs in zip(a, b, *self.by_message, strict=True)
        )

    def exact(self) -> bool:
        """Call by call."""
        return len(self.ours) == len(self.theirs) and all(map(self.same, self.ours, self.theirs))

    def in_order(self) -> bool:
        """The reference's calls one after the other."""
        rest = iter(self.ours)
        return all(any(self.same(call, wanted) for call in rest) for wanted in self.theirs)

    def none_else(self) -> bool:
        """Whether every call is assigned."""
        return self.paired == len(self.ours)

    def all_of(self) -> bool:
        """Whether every call of the reference is met."""
        return self.paired == len(self.theirs)


_MODES: dict[str, Callable[[_Both], bool]] = {
    "strict": _Both.strict,
    "unordered": lambda both: both.none_else() and both.all_of(),
    "subset": _Both.none_else,
    "superset": _Both.all_of,
    "exact": _Both.exact,
    "in_order": _Both.in_order,
    "any_order": _Both.all_of,
}
TRAJECTORY_MODES = tuple(_MODES)
SCORES = ("precision", "recall", "f1")


def trajectory_match(
    outputs: Sequence[Message], reference: Sequence[Message], mode: str = "strict", matcher: Matcher | None = None
) -> bool:
    """Whether a trajectory matches its reference.

    "strict": the same roles message by message, and in each the same calls in any order. "unordered": the same calls,
    "subset": no other calls, "superset" or "any_order": all calls of the reference, in any order. "exact": the same
    calls in the same order, "in_order": all calls of the reference in their order, others in between.
    """
    if mode not in _MODES:
        raise ValueError(f"argument 'mode' must be one of {', '.join(TRAJECTORY_MODES)}, got {mode!r}")
    return _MODES[mode](_Both(outputs, reference, matcher))


def _shares(ours: Any, theirs: Any, paired: Any) -> Any:
    """Precision, recall and f1 of numbers of calls, arrays of them too."""
    precision, recall = (
        np.where(ours, paired / np.maximum(ours, 1), 1.0),
        np.where(theirs, paired / np.maximum(theirs, 1), 1.0),
    )
    both = np.where(paired, precision + recall, 1.0)
    return precision, recall, np.where(paired, 2 * precision * recall / both, (ours == 0) & (theirs == 0))


def trajectory_scores(
    outputs: Sequence[Message], reference: Sequence[Message], matcher: Matcher | None = None
) -> dict[str, float]:
    """Precision (calls that stand for one of the reference), recall (calls of the reference that are met), and their
    harmonic mean f1; assigned one to one. Without calls to count a share is 1."""
    return _Both(outputs, reference, matcher).scores()


def trajectory_figures(
    outputs: Sequence[Message], reference: Sequence[Message], matcher: Matcher | None = None
) -> dict[str, bool | float]:
    """Every mode of :func:`trajectory_match` and all of :func:`trajectory_scores`."""
    both = _Both(outputs, reference, matcher)
    return {**{mode: test(both) for mode, test in _MODES.items()}, **both.scores()}


def match_traces(
    outputs: Traces, references: Traces, matcher: Matcher | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """:func:`trajectory_figures` of every run of recorded traces against the run at its place in the references: each
    mode as bool [runs], each score as float64 [runs].

    Exact or ignored arguments without overrides and schemas are compared in the columns, all runs at once. Raises
    ValueError for other numbers of runs, and for arguments that are no JSON object, with run and row.
    """
    matcher = matcher or Matcher()
    if len(outputs) != len(references):
        raise ValueError(
            f"match_traces: argument 'references' must hold as many runs as 'outputs', {len(outputs)}, "
            f"got {len(references)}"
        )
    if matcher.keyed() and not matcher.schemas:
        modes, counts = np.empty((len(outputs), len(_MODES)), bool), np.empty((len(outputs), 3), np.int64)
        ignore = matcher.arguments == "ignore"
        _C.match_trajectories(outputs.rows, outputs.buffer, references.rows, references.buffer, ignore, modes, counts)
        return dict(zip((*_MODES, *SCORES), (*modes.T, *_shares(*counts.T)), strict=True))
    pairs = zip(outputs.to_messages(), references.to_messages(), strict=True)
    found = [trajectory_figures(ours, theirs, matcher) for ours, theirs in pairs]
    kinds = {**dict.fromkeys(_MODES, bool), **dict.fromkeys(SCORES, float)}
    return {name: np.array([f[name] for f in found], kind) for name, kind in kinds.items()}
