"""Failure modes that show without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core_agents as _C

Message = Mapping[str, Any]
STOP = (r"\bTERMINATE\b", r"<end>", r"\btask (?:is )?(?:now )?(?:complete|completed|done|finished)\b", r"<\|?done\|?>")
"""What says that the work is done (regular expressions; case does not count), in a message's last 200 characters."""


@dataclass(frozen=True)
class Finding:
    """A mode that a detector found, and the messages (their numbers) that show it."""

    code: str
    messages: tuple[int, ...]
    why: str


def message_text(message: Message) -> str:
    """All that a message says: its content and its tool calls."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = " ".join(str(p.get("text", "")) if isinstance(p, Mapping) else str(p) for p in content)
    calls = message.get("tool_calls") or ()
    return " ".join([content, *(json.dumps(call.get("function", call), sort_keys=True) for call in calls)])


def trace_text(messages: Sequence[Message]) -> str:
    """A trace as text for a judge: each message after its number and its agent."""
    return "\n\n".join(f"[{i}] {_agent(m)}: {message_text(m)}" for i, m in enumerate(messages))


def _agent(message: Message) -> str:
    return str(message.get("name") or message.get("role") or "")


def repeated(messages: Sequence[Message], threshold: float = 0.8) -> np.ndarray[Any, np.dtype[np.int32]]:
    """For each message the first earlier one of the same agent that says nearly the same, or -1.

    Nearly: an estimated Jaccard similarity of the runs of three words of at least `threshold` (64 minwise hashes).
    """
    return _repeated([message_text(m) for m in messages], [_agent(m) for m in messages], threshold)


def _repeated(said: Sequence[str], agents: Sequence[str], threshold: float) -> np.ndarray[Any, np.dtype[np.int32]]:
    texts = [text.encode() for text in said]
    sketches = np.empty((len(texts), 64), np.int64)
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    _C.text_sketches(np.frombuffer(b"".join(texts), np.uint8), offsets, sketches)
    earlier = np.empty(len(texts), np.int32)
    numbers = {agent: i for i, agent in enumerate(dict.fromkeys(agents))}
    _C.near_duplicates(sketches, np.array([numbers[a] for a in agents], np.int32), threshold, earlier)
    return earlier


def detect(
    messages: Sequence[Message],
    *,
    threshold: float = 0.8,
    least_words: int = 4,
    grace: int = 1,
    stop: Sequence[str] = STOP,
) -> list[Finding]:
    """The failures of a trace that show without a model, in the order of their codes.

    messages: OpenAI messages, the agent is `name`, else `role`; those of the role "tool" are not steps.
    2.1 the first message comes again, and the second one after it, if there are that many. 1.4 two or more messages in
    a row come again, in their order, from elsewhere. 1.3 a single message comes again. Messages of fewer than
    `least_words` words (between spaces) do not count. 1.5 more than `grace` messages follow the first that says the
    work is done (`stop`). 3.1 the trace ends with tool calls that nothing answers, or no message says that it is done.
    "Comes again" is as in :func:`repeated`.
    """
    steps = [i for i, m in enumerate(messages) if m.get("role") != "tool"]
    texts = [message_text(messages[i]) for i in steps]
    found: list[Finding] = []
    if steps:
        earlier = _repeated(texts, [_agent(messages[i]) for i in steps], threshold)
        short = np.array([len(t.split(None, least_words)) < least_words for t in texts])
        earlier[short] = -1
        found += _replays(earlier, steps)
    done = re.compile("|".join(f"(?:{p})" for p in stop), re.IGNORECASE)
    said = [k for k, text in enumerate(texts) if done.search(text[-200:])]
    if said and len(steps) - 1 - said[0] > grace:
        found.append(Finding("1.5", (steps[said[0]], steps[-1]), "the work goes on after it was said to be done"))
    answered = {m.get("tool_call_id") for m in messages if m.get("role") == "tool"}
    if steps:
        calls = messages[steps[-1]].get("tool_calls") or ()
        if any(call.get("id") not in answered for call in calls):
            found.append(Finding("3.1", (steps[-1],), "the trace ends with a tool call that nothing answers"))
        elif not said:
            found.append(Finding("3.1", (steps[-1],), "the trace ends and nothing says that the work is done"))
    return sorted(found, key=lambda f: (f.code, f.messages))


def _replays(earlier: np.ndarray[Any, np.dtype[np.int32]], steps: Sequence[int]) -> Iterator[Finding]:
    """Runs of messages that come again, as 2.1, 1.4 or 1.3."""
    j = 1
    while j < len(earlier):
        if earlier[j] < 0:
            j += 1
            continue
        end = j + 1
        while end < len(earlier) and earlier[end] == earlier[end - 1] + 1 and earlier[end] < j:
            end += 1
        run = tuple(steps[k] for k in range(j, end))
        source = steps[int(earlier[j])]
        if earlier[j] == 0 and (end - j > 1 or j < 2 or end == len(earlier)):
            yield Finding("2.1", run, "the conversation begins anew")
        elif end - j > 1:
            yield Finding("1.4", run, f"the messages from {source} on come again")
        else:
            yield Finding("1.3", run, f"message {source} comes again")
        j = end
