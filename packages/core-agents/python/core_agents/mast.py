"""MAST, the failure modes of multi-agent systems (2503.13657): taxonomies, the judge's prompt and answer, detectors.

The published sources disagree on the modes 3.2 and 3.3, so a taxonomy has a version, and figures of different versions
are brought together with :func:`crosswalk`, or not at all. The parser reads an answer by its form: a mode's name, which
may hold "no" or "not", is never taken for a verdict. Four detectors need no model.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from . import _core_agents as _C
from .judge import Judge, Reply

CATEGORIES = {
    "1": "Specification and system design",
    "2": "Inter-agent misalignment",
    "3": "Task verification",
}


@dataclass(frozen=True)
class Mode:
    """A failure mode: its code ("3.2"), name, what it means, and the stage it shows in (pre, exec or post)."""

    code: str
    name: str
    meaning: str
    stage: str
    concepts: frozenset[str] = field(repr=False, default=frozenset())

    @property
    def category(self) -> str:
        """The category's name."""
        return CATEGORIES[self.code[0]]


@dataclass(frozen=True)
class Taxonomy:
    """The modes of one version, in the order of their codes."""

    version: str
    modes: tuple[Mode, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes."""
        return tuple(m.code for m in self.modes)

    def __getitem__(self, code: str) -> Mode:
        """The mode of a code, "3.2" or "FM-3.2"; KeyError if there is none."""
        for mode in self.modes:
            if mode.code == code.upper().removeprefix("FM-"):
                return mode
        raise KeyError(code)


_COMMON = [
    ("1.1", "Disobey task specification", "A requirement or constraint of the task is not kept.", "pre"),
    ("1.2", "Disobey role specification", "An agent acts outside its role, as if it were another one.", "pre"),
    ("1.3", "Step repetition", "A step that is already done is done again without need.", "exec"),
    ("1.4", "Loss of conversation history", "Recent context is lost and the work returns to an older state.", "exec"),
    ("1.5", "Unaware of termination conditions", "The agents do not see that it is time to stop.", "post"),
    ("2.1", "Conversation reset", "The dialogue begins anew without need, and what was reached is lost.", "pre"),
    ("2.2", "Fail to ask for clarification", "Unclear or missing data is not asked about before going on.", "exec"),
    ("2.3", "Task derailment", "The work drifts away from the goal of the task.", "exec"),
    ("2.4", "Information withholding", "An agent keeps to itself what another one would need.", "exec"),
    ("2.5", "Ignored other agent's input", "What another agent said or advised is not taken up.", "exec"),
    ("2.6", "Reasoning-action mismatch", "What an agent does is not what it reasoned or announced.", "exec"),
    (
        "3.1",
        "Premature termination",
        "The work ends before the goal is reached or the needed data are exchanged.",
        "post",
    ),
]
_VERIFICATION = {
    "paper-v3": (
        ("No or incomplete verification", "The result is not checked, or only in part.", {"missing", "partial"}),
        ("Incorrect verification", "The result is checked, but the check itself is wrong.", {"wrong"}),
    ),
    "definitions": (
        ("Weak verification", "The check covers only a part of what matters.", {"partial"}),
        ("No or incorrect verification", "There is no check, or the check is wrong.", {"missing", "wrong"}),
    ),
    "agentdash-0.1.0": (
        ("No or incorrect verification", "There is no check, or the check is wrong.", {"missing", "wrong"}),
        ("Weak verification", "The check covers only a part of what matters.", {"partial"}),
    ),
}


def _taxonomy(version: str) -> Taxonomy:
    modes = [Mode(*row, frozenset({row[0]})) for row in _COMMON]
    for code, (name, meaning, concepts) in zip(("3.2", "3.3"), _VERIFICATION[version], strict=True):
        modes.append(Mode(code, name, meaning, "post", frozenset(concepts)))
    return Taxonomy(version, tuple(modes))


TAXONOMIES = {version: _taxonomy(version) for version in _VERIFICATION}
"""By version: "paper-v3" (the paper's text), "definitions" (definitions.txt of the authors' repository) and
"agentdash-0.1.0" (their package, and the notebook)."""
PAPER = TAXONOMIES["paper-v3"]


def crosswalk(code: str, source: Taxonomy, target: Taxonomy) -> tuple[tuple[str, ...], bool]:
    """The codes of `target` that share a meaning with a code of `source`, and whether they mean exactly the same.

    A verdict can be carried over only where it is exact; else a trace must be judged anew.
    """
    wanted = source[code].concepts
    found = tuple(m for m in target.modes if m.concepts & wanted)
    return tuple(m.code for m in found), len(found) == 1 and found[0].concepts == wanted


# ---- the judge -----------------------------------------------------------------------------------------------

MAX_TRACE = 1_048_570
"""Characters after which the published judge cuts a trace."""


def judge_prompt(
    trace: str, taxonomy: Taxonomy = PAPER, examples: Sequence[tuple[str, str]] = (), max_characters: int = MAX_TRACE
) -> list[dict[str, str]]:
    """The messages that ask a judge which modes occur in a trace; `examples` are (trace, answer) pairs to show first.

    A longer trace keeps its beginning and its end, and the cut is marked. The answer that is asked for stands between
    two lines @@ and gives a summary, whether the task was completed, and yes or no for each code, see
    :func:`parse_answer`.
    """
    if max_characters < 100:
        raise ValueError(f"argument 'max_characters' must be at least 100, got {max_characters}")
    listed = "\n".join(f"{m.code} {m.name}: {m.meaning}" for m in taxonomy.modes)
    form = "\n".join(f"C.{code} yes or no" for code in taxonomy.codes)
    system = (
        "You read the record of a system of several agents and find out how it failed. Name a failure mode only if a "
        "passage of the record shows it.\n\n"
        f"The failure modes (MAST, version {taxonomy.version}):\n{listed}\n\n"
        "Answer in exactly this form, with nothing after the second line @@:\n"
        f"@@\nA. one paragraph: what went wrong and where\nB. was the task completed: yes or no\n{form}\n@@"
    )
    messages = [{"role": "system", "content": system}]
    for shown, answer in examples:
        messages += [{"role": "user", "content": _record(shown, max_characters)}]
        messages += [{"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": _record(trace, max_characters)}]


def _record(trace: str, limit: int) -> str:
    if len(trace) > limit:
        left_out = len(trace) - limit
        trace = f"{trace[: limit // 2]}\n[{left_out} characters left out]\n{trace[-(limit - limit // 2) :]}"
    return f"The record:\n{trace}"


@dataclass(frozen=True)
class Answer:
    """What a judge said. `modes` gives for each code True, False, or None where it said nothing clear; `problems`
    says why. `completed` is whether the task was, None if unsaid; `summary` and `text` are its words."""

    modes: dict[str, bool | None]
    completed: bool | None
    summary: str
    problems: tuple[str, ...]
    text: str
    taxonomy: Taxonomy

    def array(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The verdicts in the order of the codes as int32: 1, 0, or -1 where there is none."""
        return np.array([-1 if v is None else int(v) for v in self.modes.values()], np.int32)


_TRUE, _FALSE = {"yes", "true", "present", "1", "y"}, {"no", "false", "absent", "0", "n"}
_VERDICT = re.compile(r"\b(yes|no|true|false|present|absent)\b", re.IGNORECASE)
_AFTER_MARK = re.compile(r"[:=|\u2013\u2014\u2192>-][\s*_`\"'(\[]*(yes|no|true|false|present|absent)\b", re.IGNORECASE)
_ONLY = re.compile(r"[\s.:=|*_`\"'()\[\]{},;\u2013\u2014\u2192>-]*(yes|no|true|false|present|absent)\b", re.IGNORECASE)
_CODE = r"(?:C\s*[.:]?\s*)?(?:FM\s*[-_ ]?\s*)?([1-9]\.[0-9])(?!\.?\d)"
_AT_LINE = re.compile(r"^[ \t>|*_`\"'({\[#+-]*" + _CODE, re.MULTILINE | re.IGNORECASE)
_ANYWHERE = re.compile(r"(?<![\w.])" + _CODE, re.IGNORECASE)
_CHOICE = re.compile(r"\b(?:yes|no|true|false)\s*(?:or|/)\s*(?:yes|no|true|false)\b", re.IGNORECASE)
_COMPLETED = re.compile(r"^[ \t>|*_`#-]*B\b\s*[.:)]?(.*)$", re.MULTILINE)
_SUMMARY = re.compile(r"^[ \t>|*_`#-]*A\s*[.:)](.*?)(?=^[ \t>|*_`#-]*B\s*[.:)]|\Z)", re.MULTILINE | re.DOTALL)


@lru_cache
def _names() -> re.Pattern[str]:
    """All names of all versions, long ones first, with any space and quotes between their words."""
    names = {m.name for t in TAXONOMIES.values() for m in t.modes}
    patterns = []
    for name in sorted(names, key=len, reverse=True):
        words = re.findall(r"\w+", name)
        patterns.append(r"[\s\W_]{1,3}".join(words))
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


def _say(word: str) -> bool:
    return word.lower() in _TRUE


def _verdict(text: str) -> tuple[bool | None, str]:
    """The verdict in what follows a code, and what is wrong with it if there is none.

    Names and choices ("yes or no") are taken out first. Then a verdict that stands alone, then one after a mark such
    as ":" counts before one inside a sentence; two that contradict each other are none.
    """
    rest = _CHOICE.sub(" ", _names().sub(" ", text))
    alone = _ONLY.match(rest)
    if alone:
        return _say(alone[1]), ""
    for pattern in (_AFTER_MARK, _VERDICT):
        said = {_say(word) for word in pattern.findall(rest)}
        if len(said) == 1:
            return said.pop(), ""
        if said:
            return None, "says both yes and no"
    return None, "says neither yes nor no"


def _pieces(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    found = list(pattern.finditer(text))
    for match, following in itertools.zip_longest(found, found[1:]):
        yield match[1], text[match.end() : following.start() if following else len(text)]


def _from_json(text: str, codes: Iterable[str]) -> dict[str, Any] | None:
    """All keys of the objects in a text that are codes, with their values; None if there is none."""
    known, found = set(codes), dict[str, Any]()
    start, decoder = text.find("{"), json.JSONDecoder()
    for _ in range(1000):
        if start < 0:
            break
        try:
            value, start = decoder.raw_decode(text, start)
        except RecursionError:
            break
        except ValueError:
            start = text.find("{", start + 1)
            continue
        queue: list[Any] = [value]
        for item in queue:
            if isinstance(item, Mapping):
                for key, inner in item.items():
                    code = _ANYWHERE.search(str(key))
                    if code and code[1] in known:
                        found.setdefault(code[1], []).append(inner)
                    else:
                        queue.append(inner)
            elif isinstance(item, list):
                queue.extend(item)
        start = text.find("{", start)
    return found or None


def _json_verdict(value: Any) -> bool | None:
    if isinstance(value, Mapping):
        said = {_json_verdict(v) for v in value.values()} - {None}
        return said.pop() if len(said) == 1 else None
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


def parse_answer(text: str, taxonomy: Taxonomy = PAPER) -> Answer:
    """Reads a judge's answer: lines "C.1.1 yes", with or without names, tables, lists, bold, or JSON objects.

    The part between the last two @@ counts, if there is one with a code in it. A code at the beginning of a line
    counts before one inside a line; codes that a verdict merely mentions are not answers. What a judge did not say
    clearly is None and a problem, never "no".
    """
    blocks = text.replace("\r\n", "\n").split("@@")
    inside = [b for b in blocks[1:-1] if _ANYWHERE.search(b)]
    body = inside[-1] if inside else "\n".join(blocks)
    modes: dict[str, bool | None] = dict.fromkeys(taxonomy.codes)
    problems = []
    said = _from_json(body, taxonomy.codes) if "{" in body else None
    if said is not None:
        for code, values in said.items():
            read = {_json_verdict(v) for v in values}
            modes[code] = read.pop() if len(read) == 1 else None
            if modes[code] is None:
                problems.append(f"{code} says neither yes nor no, or both")
    else:
        found: dict[str, list[tuple[bool | None, str]]] = {}
        for code, rest in _pieces(body, _AT_LINE):
            found.setdefault(code, []).append(_verdict(rest))
        if len(found) < 2:  # all in one line
            for code, rest in _pieces(body, _ANYWHERE):
                found.setdefault(code, []).append(_verdict(rest))
        for code, verdicts in found.items():
            if code not in modes:
                problems.append(f"{code} is not a mode of {taxonomy.version}")
                continue
            clear = {v for v, _ in verdicts if v is not None}
            if len(clear) == 1:
                modes[code] = clear.pop()
            else:
                problems.append(f"{code} {'is answered twice, differently' if clear else verdicts[0][1]}")
    answered = {problem[:3] for problem in problems}
    problems += [f"{code} is not answered" for code, v in modes.items() if v is None and code not in answered]
    completed, summary = _COMPLETED.search(body), _SUMMARY.search(body)
    return Answer(
        modes,
        _verdict(":" + completed[1])[0] if completed else None,
        summary[1].strip() if summary else "",
        tuple(problems),
        text,
        taxonomy,
    )


def judge_trace(
    judge: Judge, trace: str, taxonomy: Taxonomy = PAPER, examples: Sequence[tuple[str, str]] = ()
) -> tuple[Answer, Reply]:
    """Asks a judge about a trace; the answer as it was read, and the reply with the raw text. Raises JudgeError."""
    reply = judge.ask(judge_prompt(trace, taxonomy, examples))
    return parse_answer(reply.text, taxonomy), reply


# ---- detectors -----------------------------------------------------------------------------------------------

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
    texts = [message_text(m).encode() for m in messages]
    agents = [_agent(m) for m in messages]
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
        earlier = repeated([messages[i] for i in steps], threshold)
        short = np.array([len(t[:1000].split()) < least_words for t in texts])
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
