"""What happened on the way: whether each tool call succeeded, and which milestones were reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .trajectories import Matcher, Message, ToolCall, tool_calls

FAILED = ("error", "traceback (most recent call last)", "exception", "failed:")
"""What the answer of a tool that failed begins with, whatever the case."""


class Step(NamedTuple):
    """A tool call: the place of its message, the call, and whether its answer came and is no error."""

    message: int
    call: ToolCall
    success: bool


def is_error(answer: Message) -> bool:
    """Whether a tool's message says that the tool failed: by a flag (`status` "error", `is_error`, `isError`, `error`),
    by a JSON object with such a flag or `success` false, or by how its text begins (:data:`FAILED`)."""
    text = answer.get("content")
    said: Any = None
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
    for value in (answer, said):
        if isinstance(value, Mapping) and (
            value.get("status") == "error"
            or any(value.get(name) for name in ("is_error", "isError", "error"))
            or value.get("success") is False
        ):
            return True
    return isinstance(text, str) and text.lstrip().lower().startswith(FAILED)


def steps(messages: Sequence[Message]) -> list[Step]:
    """All tool calls in order. The answer of a call is the next tool message with its id, or, where ids are missing,
    the next one that answers no other call; a call without an answer is no success."""
    waiting: list[tuple[int, ToolCall, Any, int]] = []
    found: dict[int, Step] = {}
    number = 0
    for i, message in enumerate(messages):
        for raw, call in zip(message.get("tool_calls") or (), tool_calls([message]), strict=True):
            waiting.append((number, call, raw.get("id"), i))
            found[number] = Step(i, call, False)
            number += 1
        if message.get("role") == "tool":
            key = message.get("tool_call_id")
            at = next((k for k, w in enumerate(waiting) if key is not None and w[2] == key), None)
            if at is None:
                at = next((k for k, w in enumerate(waiting) if key is None or w[2] is None), None)
            if at is not None:
                place, call, _, where = waiting.pop(at)
                found[place] = Step(where, call, not is_error(message))
    return [found[k] for k in range(number)]


def check_milestones(milestones: Any) -> list[Mapping[str, Any]]:
    """The milestones in an order in which each stands behind those that it comes after.

    A milestone is an object with `name` and one of `tool` (a call of that tool that succeeded; with `arguments` those
    at least), `result` (a tool's answer that holds this text) and `says` (the assistant says this text); `after`:
    names of milestones before it; `weight` (1). Texts are compared without case. Raises ValueError.
    """
    if not isinstance(milestones, list) or not all(isinstance(m, dict) for m in milestones):
        raise ValueError("'milestones' must be a list of objects")
    names = [m.get("name") for m in milestones]
    for m, name in zip(milestones, names, strict=True):
        if not isinstance(name, str) or names.count(name) > 1:
            raise ValueError(f"a milestone's 'name' must be text that no other has, got {name!r}")
        tests = [m[k] for k in ("tool", "result", "says") if k in m]
        if len(tests) != 1 or not isinstance(tests[0], str):
            raise ValueError(f"milestone {name!r} must have one of 'tool', 'result' and 'says', a text")
        weight, after = m.get("weight", 1), m.get("after", [])
        if not isinstance(weight, (int, float)) or not 0 < weight < 1e9:
            raise ValueError(f"milestone {name!r}: 'weight' must be a positive number, got {weight!r}")
        if not isinstance(m.get("arguments", {}), dict) or not isinstance(after, list):
            raise ValueError(f"milestone {name!r}: 'arguments' must be an object and 'after' a list of names")
        if unknown := [a for a in after if a not in names]:
            raise ValueError(f"milestone {name!r} comes after {unknown[0]!r}, which is not there")
    left, order = {m["name"]: m for m in milestones}, []
    while left:
        ready = [n for n, m in left.items() if not any(a in left for a in m.get("after", []))]
        if not ready:
            raise ValueError(f"the milestones {', '.join(sorted(left))} come after each other in a circle")
        order += [left.pop(n) for n in ready]
    return order


def milestones_reached(
    messages: Sequence[Message], milestones: Sequence[Mapping[str, Any]], matcher: Matcher | None = None
) -> dict[str, int | None]:
    """The message at which each milestone was reached, None if it was not.

    A milestone is reached at the first message after those of all milestones that it comes after which meets its test;
    one message may reach several that do not come after each other. No other assignment reaches more of them.
    ``matcher`` gives the schemas of arguments.
    """
    matcher = Matcher("superset", schemas=matcher.schemas if matcher else {})
    done = [(s.message, s.call) for s in steps(messages) if s.success]
    at: dict[str, int | None] = {}
    for m in check_milestones(list(milestones)):
        before = [at[name] for name in m.get("after", [])]
        at[m["name"]] = None
        if None in before:
            continue
        start = max((b for b in before if b is not None), default=-1) + 1
        if "tool" in m:
            wanted = ToolCall(m["tool"], m.get("arguments", {}))
            places = [i for i, call in done if i >= start and matcher.matches(call, wanted)]
        else:
            role, text = ("tool", m["result"]) if "result" in m else ("assistant", m["says"])
            places = [
                i
                for i, message in enumerate(messages)
                if i >= start
                and message.get("role") == role
                and isinstance(message.get("content"), str)
                and text.lower() in message["content"].lower()
            ]
        at[m["name"]] = min(places, default=None)
    return at


def milestone_score(
    messages: Sequence[Message], milestones: Sequence[Mapping[str, Any]], matcher: Matcher | None = None
) -> float:
    """The weight of the milestones that were reached, as a share of that of all; 1 if there are none."""
    at = milestones_reached(messages, milestones, matcher)
    weights = {m["name"]: m.get("weight", 1) for m in milestones}
    return sum(w for n, w in weights.items() if at[n] is not None) / sum(weights.values()) if weights else 1.0
