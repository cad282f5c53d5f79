"""The judge's prompt, and the parser of its answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..judge import Judge, Reply
from .taxonomy import PAPER, TAXONOMIES, Taxonomy

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
