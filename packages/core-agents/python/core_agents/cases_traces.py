"""Rows of the case table for the trace readers."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference import traces as reference
from .reference import trajectories
from .traces import ROWS, RUNS, VALUES, loads

Args = dict[str, Any]


def make_traces(rng: np.random.Generator, runs: int, messages: int) -> Args:
    """Conversations of OpenAI messages, one a line, some of them with tool calls; the outputs are just large enough."""
    words = np.array(["plan", "tést", 'say "so"', "日本", "a\nb", "c:\\d", "😀", "x" * 40])
    lines = []
    for _ in range(runs):
        said = []
        for _ in range(rng.integers(messages + 1)):
            one: dict[str, Any] = {"role": str(rng.choice(["system", "user", "assistant", "tool", "critic"]))}
            one["content"] = None if rng.random() < 0.2 else " ".join(rng.choice(words, rng.integers(12)))
            if rng.random() < 0.3:
                one["name"] = str(rng.choice(words))
            if one["role"] == "assistant" and rng.random() < 0.5:
                arguments = json.dumps({"q": str(rng.choice(words))})
                call = {"id": f"c{rng.integers(9)}", "function": {"name": "find", "arguments": arguments}}
                one["tool_calls"] = [call] * int(rng.integers(1, 3))
            said.append(one)
        lines.append(json.dumps(said, ensure_ascii=bool(rng.integers(2))).encode())
    text = np.frombuffer(b"\n".join(lines), np.uint8).copy()
    args = {"text": text, "offsets": np.array([0, len(text)]), "format": "openai", "lines": True}
    m, r, b, f = reference.read_traces(args)["sizes"]
    return args | {
        "rows": np.empty((len(ROWS), m), np.int64),
        "runs": np.empty((len(RUNS), r), np.int64),
        "values": np.empty((len(VALUES), r)),
        "buffer": np.empty(b, np.uint8),
        "failures": np.empty((3, f), np.int64),
        "sizes": np.empty(4, np.int64),
    }


def make_archive(rng: np.random.Generator, members: int, size: int) -> Args:
    """A zip archive, whole or cut off."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(members):
            archive.writestr(f"samples/{i}.json", rng.integers(97, 101, rng.integers(size + 1), np.uint8).tobytes())
    data = np.frombuffer(out.getvalue(), np.uint8).copy()
    return {"archive": data, "members": np.empty((8, members), np.int64), "sizes": np.empty(2, np.int64)}


VALUES_OF_ARGUMENTS = [1, 1.0, 1e22, 10**22, 0.25, True, None, "1", "tést", [1, 12], [11, 2], {"b": 1, "a": [-0.0]}, {}]


def shuffled(rng: np.random.Generator, items: list[Any]) -> list[Any]:
    """In another order."""
    return [items[i] for i in rng.permutation(len(items))]


def make_calls(rng: np.random.Generator, runs: int, messages: int) -> tuple[list[Any], list[Any]]:
    """Runs with tool calls, and references that differ from them in the order of members and of calls, or truly."""

    def call() -> dict[str, Any]:
        names = shuffled(rng, ["q", "page", "é", "to"])[: rng.integers(4)]
        chosen = {n: VALUES_OF_ARGUMENTS[rng.integers(len(VALUES_OF_ARGUMENTS))] for n in names}
        arguments = json.dumps(chosen, ensure_ascii=bool(rng.integers(2)))
        return {"id": "c", "function": {"name": str(rng.choice(["find", "book"])), "arguments": arguments}}

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        written = dict(shuffled(rng, list(json.loads(call["function"]["arguments"]).items())))
        written |= {"more": 1} if rng.random() < 0.1 else {}
        return {"id": "d", "function": {**call["function"], "arguments": json.dumps(written, indent=1)}}

    def reference(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls", [])
        return message | {"tool_calls": [changed(c) for c in shuffled(rng, calls)]} if calls else message

    outputs = []
    for _ in range(runs):
        said: list[dict[str, Any]] = []
        for _ in range(rng.integers(messages + 1)):
            said.append({"role": str(rng.choice(["user", "assistant", "assistant"])), "content": "."})
            if said[-1]["role"] == "assistant" and rng.random() < 0.8:
                said[-1]["tool_calls"] = [call() for _ in range(rng.integers(1, 4))]
        outputs.append(said)
    times = [rng.choice(3, len(said), p=[0.05, 0.9, 0.05]) for said in outputs]
    return outputs, [
        [reference(m) for m, n in zip(said, counts, strict=True) for _ in range(n)]
        for said, counts in zip(outputs, times, strict=True)
    ]


def make_trajectories(rng: np.random.Generator, runs: int, messages: int) -> Args:
    """The columns of :func:`make_calls`."""
    sides = (
        loads("\n".join(map(json.dumps, [[], *side])).encode(), "openai") for side in make_calls(rng, runs, messages)
    )
    ours, theirs = ((s.rows - (np.arange(len(ROWS)) == 0)[:, None], s.buffer) for s in sides)  # without the empty run
    return {
        "rows": ours[0],
        "text": ours[1],
        "reference_rows": theirs[0],
        "reference_text": theirs[1],
        "ignore_arguments": bool(rng.random() < 0.3),
        "modes": np.zeros((runs, 7), bool),
        "counts": np.zeros((runs, 3), np.int64),
    }


def peer_trajectories(args: Args) -> Any:
    """Compares the same calls with json, pair by pair."""
    return lambda: trajectories.match_trajectories(args)


def peer_traces(args: Args) -> Any:
    """Reads the same lines with json into the same columns."""
    return lambda: reference.read_traces(args)


trace_cases = [
    Case(
        op="core_agents.read_traces",
        sizes={"tiny": {"runs": 4, "messages": 5}, "bench": {"runs": 300, "messages": 40}},
        make=make_traces,
        reference=reference.read_traces,
        tolerance=dict.fromkeys(("rows", "runs", "values", "buffer", "failures", "sizes"), (0, 0)),
        peer=("Python, json", peer_traces),
        work=lambda a: (a["text"].nbytes + a["rows"].nbytes + a["buffer"].nbytes, 0),
        vary={"runs": (0, 6), "messages": (0, 8)},
    ),
    Case(
        op="core_agents.match_trajectories",
        sizes={"tiny": {"runs": 5, "messages": 4}, "bench": {"runs": 2000, "messages": 20}},
        make=make_trajectories,
        reference=trajectories.match_trajectories,
        tolerance={"modes": (0, 0), "counts": (0, 0)},
        peer=("Python, json", peer_trajectories),
        work=lambda a: (
            a["rows"].nbytes + a["reference_rows"].nbytes + a["text"].nbytes + a["reference_text"].nbytes,
            0,
        ),
        vary={"runs": (0, 6), "messages": (0, 6)},
    ),
    Case(
        op="core_agents.zip_members",
        sizes={"tiny": {"members": 3, "size": 50}, "bench": {"members": 2000, "size": 1000}},
        make=make_archive,
        reference=reference.zip_members,
        tolerance={"members": (0, 0), "sizes": (0, 0)},
        peer=("zipfile", lambda a: lambda: reference.zip_members(a)),
        work=lambda a: (a["members"].nbytes, 0),
        vary={"members": (0, 9), "size": (0, 300)},
    ),
]
