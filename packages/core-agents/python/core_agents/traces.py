"""Recorded traces of agents as columns: who said what, which tools were called, how many tokens and how long it took.

:func:`read` takes inspect-ai logs (`.eval`, `.json`), OpenAI messages, spans of OpenTelemetry (GenAI conventions, OTLP
JSON) and OpenInference, and LangSmith's run exports, and gives one :class:`Traces` for all of them. Files are read as
hostile: strict JSON of limited depth, archives whose ranges and sizes are checked, nothing unpickled, nothing fetched.
What is damaged is an error that carries what could be read.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import _core_agents as _C

Array = np.ndarray[Any, np.dtype[Any]]
Message = dict[str, Any]

FORMATS = ("inspect", "openai", "otel", "openinference", "langsmith")
ROLES = ("system", "user", "assistant", "tool", "developer", "other")
TEXTS = ("text", "agent", "tool", "arguments", "call_id")
"""Columns of rows that are texts."""
ROWS = (
    "run", "step", "call", "role", *(f"{name}_{end}" for name in TEXTS for end in ("begin", "end")),
    "input_tokens", "output_tokens", "start", "end",
)  # fmt: skip
"""Columns of messages and tool calls, int64. `step` counts a run's messages, a tool call has that of its message and
`call` 1; `role` is a place in :data:`ROLES`; tokens are -1, times (nanoseconds since 1970, UTC) numpy's NaT where they
are missing."""
RUN_TEXTS = ("id", "name", "model", "error")
RUNS = (
    *(f"{name}_{end}" for name in RUN_TEXTS for end in ("begin", "end")),
    "epoch", "input_tokens", "output_tokens", "start", "end", "complete",
)  # fmt: skip
"""Columns of runs, int64. A run is a sample, a conversation or a trace; `complete` is 0 where its record broke off."""
VALUES = ("score", "cost", "seconds", "working_seconds")
"""Columns of runs, float64, NaN where missing. `score` is the first scorer's value, C 1, P 0.5, I and N 0."""
FAULTS = (
    "", "ends too early", "is not JSON", "is not UTF-8", "has a wrong escape", "has a wrong number",
    "is nested deeper than 256", "has an unexpected kind of value",
)  # fmt: skip
MAX_BYTES = 4 << 30
"""Bytes of unpacked text that :func:`read` takes unless it is told otherwise."""

MAX_ROOM = 1 << 21
"""Rows that are made room for before a text is read."""


class TraceError(ValueError):
    """A file is damaged, or not what it should be; `traces` is what could be read of it."""

    def __init__(self, problems: Sequence[str], traces: Traces) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems, self.traces = tuple(problems), traces


@dataclass(frozen=True)
class Traces:
    """Runs and their messages.

    rows int64 [18, M], runs int64 [14, R], values float64 [4, R]: the columns of :data:`ROWS`, :data:`RUNS`,
    :data:`VALUES`, in the order of the files; texts are ranges of `buffer` (uint8, UTF-8). problems: what could not be
    read, in words.
    """

    rows: Array
    runs: Array
    values: Array
    buffer: Array
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of runs."""
        return int(self.runs.shape[1])

    def __getitem__(self, name: str) -> Array:
        """A column of the messages by its name; `start` and `end` as datetime64[ns]. KeyError if there is none."""
        return _column(self.rows, ROWS, name)

    def run(self, name: str) -> Array:
        """A column of the runs by its name: int64, float64, or datetime64[ns]. KeyError if there is none."""
        return self.values[VALUES.index(name)] if name in VALUES else _column(self.runs, RUNS, name)

    def strings(self, name: str) -> list[str | None]:
        """A text column of the messages: one of :data:`TEXTS`."""
        return self._decode(self[f"{name}_begin"], self[f"{name}_end"])

    def run_strings(self, name: str) -> list[str | None]:
        """A text column of the runs: one of :data:`RUN_TEXTS`."""
        return self._decode(self.run(f"{name}_begin"), self.run(f"{name}_end"))

    def _decode(self, begins: Array, ends: Array) -> list[str | None]:
        data = self.buffer.tobytes()
        pairs = zip(begins.tolist(), ends.tolist(), strict=True)
        return [data[a:b].decode() if a >= 0 else None for a, b in pairs]

    def to_dict(self) -> dict[str, Any]:
        """The messages as columns by name: arrays of numbers and times, lists of texts (roles by name, runs by id)."""
        ids = self.run_strings("id")
        return {
            "run": [ids[i] for i in self["run"].tolist()],
            "step": self["step"],
            "call": self["call"].astype(bool),
            "role": [ROLES[i] for i in self["role"].tolist()],
            **{name: self.strings(name) for name in TEXTS},
            **{name: self[name] for name in ("input_tokens", "output_tokens", "start", "end")},
        }

    def runs_to_dict(self) -> dict[str, Any]:
        """The runs as columns by name."""
        numbers = ("epoch", "input_tokens", "output_tokens", "start", "end")
        return {
            **{name: self.run_strings(name) for name in RUN_TEXTS},
            **{name: self.run(name) for name in (*numbers, *VALUES)},
            "complete": self.run("complete").astype(bool),
        }

    def to_pandas(self) -> Any:
        """The messages as a pandas DataFrame (needs pandas)."""
        import pandas

        return pandas.DataFrame(self.to_dict())

    def to_arrow(self) -> Any:
        """The messages as a pyarrow Table (needs pyarrow)."""
        import pyarrow

        return pyarrow.table(self.to_dict())

    def to_messages(self) -> list[list[Message]]:
        """Each run as OpenAI messages, as :mod:`core_agents.mast` and :mod:`core_agents.evaluation` take them.

        A tool call without an id gets the number of its row, `call_N`.
        """
        columns = [self[name].tolist() for name in ("run", "call", "role")]
        texts = [self.strings(name) for name in TEXTS]
        messages: list[list[Message]] = [[] for _ in range(len(self))]
        for i, (run, call, role, text, agent, tool, arguments, call_id) in enumerate(
            zip(*columns, *texts, strict=True)
        ):
            if call:
                function = {"name": tool or "", "arguments": arguments or ""}
                made = {"id": call_id or f"call_{i}", "type": "function", "function": function}
                messages[run][-1].setdefault("tool_calls", []).append(made)
                continue
            message: Message = {"role": ROLES[role], "content": text}
            if agent:
                message["name"] = agent
            if ROLES[role] == "tool":
                message["tool_call_id"] = call_id
                if tool:
                    message["name"] = tool
            messages[run].append(message)
        return messages

    def to_runs(self) -> list[dict[str, Any]]:
        """Each run as :func:`core_agents.evaluation.summarise` takes it.

        `task` is the run's name (of a sample its id), `success` its score, 0 where it broke with an error and has none;
        runs without either are left out. `latency`, `cost` and tokens where they are known.
        """
        names = self.run_strings("name")
        ids, errors = self.run_strings("id"), self.run_strings("error")
        numbers = {
            "cost": "cost",
            "latency": "seconds",
            "input_tokens": "input_tokens",
            "output_tokens": "output_tokens",
        }
        columns = {name: self.run(source).tolist() for name, source in numbers.items()}
        messages, scores, found = self.to_messages(), self.run("score").tolist(), []
        for i, score in enumerate(scores):
            if math.isnan(score) and not errors[i]:
                continue
            one: dict[str, Any] = {"task": names[i] or ids[i] or str(i), "success": 0.0 if math.isnan(score) else score}
            one |= {name: c[i] for name, c in columns.items() if c[i] >= 0}
            found.append({**one, "messages": messages[i]})
        return found


def _column(table: Array, names: Sequence[str], name: str) -> Array:
    if name not in names:
        raise KeyError(name)
    column: Array = table[names.index(name)]
    return column.view("datetime64[ns]") if name in ("start", "end") else column


def read(
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    *,
    messages: bool = True,
    keep_damaged: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Traces:
    """Reads a file of traces.

    format: one of :data:`FORMATS`; None: found from the content. A file may hold one JSON value or one a line. An
    archive may have members that are stored, deflated or compressed by zstandard (needs the package zstandard).
    messages: False gives the runs without their messages; of an archive only its summary is then read, which is faster.
    max_bytes: the most bytes of text, unpacked.

    Spans of models give their history each time: a message of an input counts if it occurs there more often than it
    was said before in its trace, by role and text. What a model put out always counts. A tool's span gives the tool's
    answer, and its call, if no model made it.

    Raises TraceError for anything that is damaged, with the rest in its `traces`; with `keep_damaged` that is returned
    instead, with its `problems`. Raises OSError if the file cannot be read, ValueError for an unknown format.
    """
    if Path(path).stat().st_size > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, see argument 'max_bytes'")
    data = Path(path).read_bytes()
    try:
        return loads(data, format, messages=messages, keep_damaged=keep_damaged, max_bytes=max_bytes)
    except TraceError as e:
        raise TraceError([f"{path}: {p}" for p in e.problems], e.traces) from None


def loads(
    data: bytes,
    format: str | None = None,  # noqa: A002
    *,
    messages: bool = True,
    keep_damaged: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Traces:
    """Reads the content of a file, see :func:`read`."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"argument 'format' must be one of {', '.join(FORMATS)}, got {format!r}")
    problems: list[str] = []
    if data[:2] == b"PK" and format in (None, "inspect"):
        names, texts = _unpack(data, problems, max_bytes, messages)
        traces = _parse(texts, names, "inspect", False, problems)
    else:
        if len(data) > max_bytes:
            raise ValueError(f"argument 'data' must be of at most 'max_bytes', {max_bytes} bytes, got {len(data)}")
        lines = _has_lines(data)
        traces = _parse([data], [""], format or sniff(data), lines, problems)
    if not messages:
        traces = replace(traces, rows=traces.rows[:, :0])
    if traces.problems and not keep_damaged:
        raise TraceError(traces.problems, traces)
    return traces


def _has_lines(data: bytes) -> bool:
    """Whether the first line that says something is a JSON value by itself, and more follows."""
    first, newline, rest = data.lstrip(b" \t\r\n").partition(b"\n")
    if not newline or not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def sniff(data: bytes) -> str:
    """The format of a file's content, by keys that only one of them has; "openai" where there are none."""
    if data[:2] == b"PK":
        return "inspect"
    head = data[: 1 << 20]
    if re.search(rb'"run_type"\s*:', head):
        return "langsmith"
    if re.search(rb'"(?:resourceSpans|scopeSpans|spanId|span_id|context\.span_id)"\s*:', head):
        inspect = re.search(rb'"(?:epoch|eval)"\s*:', head[:4096])
        return "inspect" if inspect else "otel"
    return "inspect" if re.search(rb'"(?:epoch|eval)"\s*:', head[:65536]) else "openai"


def _parse(texts: Sequence[bytes], names: Sequence[str], kind: str, lines: bool, problems: list[str]) -> Traces:
    data = texts[0] if len(texts) == 1 else b"".join(texts)
    text, offsets = np.frombuffer(data, np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)
    objects = min(data.count(b"{") + 64, MAX_ROOM)  # room that is not used costs nothing, reading twice does
    sizes = np.array([objects, objects, len(text) + 1024, 100])
    while True:
        room = sizes.copy()
        rows, runs = np.empty((len(ROWS), room[0]), np.int64), np.empty((len(RUNS), room[1]), np.int64)
        values, buffer = np.empty((len(VALUES), room[1])), np.empty(room[2], np.uint8)
        failures = np.empty((3, room[3]), np.int64)
        _C.read_traces(text, offsets, kind, lines, rows, runs, values, buffer, failures, sizes)
        if (sizes <= room).all():
            break
    for document, position, fault in failures[:, : sizes[3]].T.tolist():
        name = f"{names[document]}: " if names[document] else ""
        line = texts[document].count(b"\n", 0, position) + 1
        problems.append(f"{name}{FAULTS[fault]} at line {line}, byte {position}")
    m, r, b = sizes[:3]
    return Traces(rows[:, :m].copy(), runs[:, :r].copy(), values[:, :r].copy(), buffer[:b].copy(), tuple(problems))


# ---- archives ------------------------------------------------------------------------------------------------

STORED, DEFLATED, ZSTANDARD = 0, 8, 93


def _members(data: bytes) -> tuple[Array, bool]:
    """Columns [8, E] of an archive's members, see `zip_members`; and whether its directory is damaged."""
    archive, sizes = np.frombuffer(data, np.uint8), np.array([len(data) // 512 + 64, 0])
    while True:
        members = np.empty((8, sizes[0]), np.int64)
        _C.zip_members(archive, members, sizes)
        if sizes[0] <= members.shape[1]:
            return members[:, : sizes[0]], bool(sizes[1])


SUMMARY = "summaries.json"


def _unpack(data: bytes, problems: list[str], max_bytes: int, messages: bool) -> tuple[list[str], list[bytes]]:
    """The samples of an archive, or its summary if there is one; what is wrong goes to `problems`."""
    members, damaged = _members(data)
    listed = [(data[m[0] : m[1]].decode(errors="replace"), m[2:]) for m in members.T.tolist()]
    wanted = [] if messages else [one for one in listed if one[0] == SUMMARY]
    wanted = wanted or [one for one in listed if re.fullmatch(r"samples/.*\.json", one[0], re.DOTALL)]
    if damaged:
        problems.append("the archive has no valid directory; its members were found one after the other")
    names, texts, left = [], [], max_bytes
    for name, fields in wanted:
        try:
            texts.append(_member(data, fields, left))
        except (ValueError, zlib.error) as e:
            problems.append(f"{name}: {e}")
            continue
        names.append(name)
        left -= len(texts[-1])
    if not names and not damaged:
        problems.append("the archive holds no samples")
    return names, texts


def _member(data: bytes, fields: Sequence[int], left: int) -> bytes:
    """A member's content. ValueError, zlib.error if it is not what its header says."""
    method, flags, crc, begin, compressed, size = fields
    if flags & 1:
        raise ValueError("is encrypted")
    if size > left:
        raise ValueError("would make the text larger than 'max_bytes'")
    packed = memoryview(data)[begin : begin + compressed]
    if method == STORED:
        text = bytes(packed)
    elif method == DEFLATED:
        text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    elif method == ZSTANDARD:
        text = _zstandard(packed, size)
    else:
        raise ValueError(f"has the compression method {method}; 0 (none), 8 (deflate) and 93 (zstandard) are known")
    if len(text) != size or zlib.crc32(text) != crc:
        raise ValueError("is damaged: its size or checksum is not what its header says")
    return text


def _zstandard(packed: memoryview, size: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise ValueError("is compressed by zstandard; install the package zstandard to read it") from None
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            packed, read_across_frames=True
        ) as reader:
            found: bytes = reader.read(size + 1)
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from None
    return found
