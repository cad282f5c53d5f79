"""Trajectories against references in columns: rows to messages, calls compared pair by pair."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Call = tuple[bytes, Any]


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: numbers by value, a truth value is no number, NaN is itself."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def assigned(ours: list[Call], theirs: list[Call]) -> int:
    """Each call takes the first equal one that is left: being equal is transitive, so none is in the way."""
    left = list(theirs)
    for call in ours:
        found = next((i for i, other in enumerate(left) if call[0] == other[0] and same(call[1], other[1])), None)
        if found is not None:
            left.pop(found)
    return len(theirs) - len(left)


def read(rows: np.ndarray, text: np.ndarray, runs: int, ignore: bool) -> list[list[tuple[int, list[Call]]]]:
    """Of each run its messages: role and calls."""
    data, out = text.tobytes(), [list[tuple[int, list[Call]]]() for _ in range(runs)]
    for run, _, call, role, *spans in rows[:12].T.tolist():
        if not call:
            out[run].append((role, []))
            continue
        name, arguments = (data[a:b] if a >= 0 else b"" for a, b in (spans[4:6], spans[6:8]))
        value = json.loads(arguments) if arguments else {}
        out[run][-1][1].append((name, None if ignore else value))
    return out


def match_trajectories(args: dict[str, Any]) -> dict[str, Any]:
    """Run by run."""
    runs, ignore = len(args["modes"]), args["ignore_arguments"]
    outputs = read(args["rows"], args["text"], runs, ignore)
    references = read(args["reference_rows"], args["reference_text"], runs, ignore)
    modes, counts = np.zeros((runs, 7), bool), np.zeros((runs, 3), np.int64)
    for r, (a, b) in enumerate(zip(outputs, references, strict=True)):
        ours, theirs = ([call for _, calls in side for call in calls] for side in (a, b))
        both = assigned(ours, theirs)
        strict = len(a) == len(b) and all(
            x == y and len(c) == len(d) == assigned(c, d) for (x, c), (y, d) in zip(a, b, strict=True)
        )
        exact = len(ours) == len(theirs) and all(assigned([c], [d]) for c, d in zip(ours, theirs, strict=True))
        rest = iter(ours)
        in_order = all(any(assigned([call], [wanted]) for call in rest) for wanted in theirs)
        none_else, everything = both == len(ours), both == len(theirs)
        modes[r] = strict, none_else and everything, none_else, everything, exact, in_order, everything
        counts[r] = len(ours), len(theirs), both
    return {"modes": modes, "counts": counts}
