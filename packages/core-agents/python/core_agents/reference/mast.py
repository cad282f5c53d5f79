"""How a judge may write down its verdicts, and traces into which faults were put."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..mast import Taxonomy, detect

WORD = {True: "yes", False: "no"}


def forms(taxonomy: Taxonomy) -> dict[str, Callable[[Sequence[bool]], str]]:
    """For each form a function of the verdicts."""
    names = [m.name for m in taxonomy.modes]
    head = "A. Nobody checked: no verification or incomplete verification, see 3.2.\nB. no\n"

    def lines(verdicts, line):
        return "\n".join(line(c, n, WORD[v]) for c, n, v in zip(taxonomy.codes, names, verdicts, strict=True))

    return {
        "short": lambda v: f"@@\n{head}" + lines(v, lambda c, n, w: f"C.{c} {w}") + "\n@@",
        "names": lambda v: head + lines(v, lambda c, n, w: f"C. FM-{c} {n}: {w}, as no check was made"),
        "table": lambda v: (
            "| Mode | Name | Found |\n|---|---|---|\n" + lines(v, lambda c, n, w: f"| {c} | {n} | {w.title()} |")
        ),
        "json": lambda v: (
            "```json\n"
            + json.dumps({f"{c} {n}": x for c, n, x in zip(taxonomy.codes, names, v, strict=True)})
            + "\n```"
        ),
        "bold": lambda v: lines(v, lambda c, n, w: f"- **{c} {n.title()}** - **{w.upper()}**"),
        "crlf": lambda v: ("@@\n" + head + lines(v, lambda c, n, w: f"C.{c}. {n}\n  {w}.") + "\n@@").replace(
            "\n", "\r\n"
        ),
    }


VOCABULARY = [f"{a}{b}" for a in ("plan", "test", "open", "file", "user", "graph", "value") for b in range(60)]
FAULTS = ("1.3", "1.4", "1.5", "2.1", "3.1")
AGENTS = ("planner", "coder", "critic")


def clean(rng: np.random.Generator) -> list[dict[str, Any]]:
    """A trace in which everything is said once and the work ends."""
    n = int(rng.integers(8, 25))
    trace = [{"role": "user", "content": " ".join(rng.choice(VOCABULARY, 30))}]
    trace += [
        {"role": "assistant", "name": AGENTS[i % 3], "content": " ".join(rng.choice(VOCABULARY, rng.integers(8, 60)))}
        for i in range(n)
    ]
    return [*trace, {"role": "assistant", "name": "planner", "content": "All is well. TERMINATE"}]


def again(rng: np.random.Generator, message: dict[str, Any]) -> dict[str, Any]:
    """Nearly the same message: one word of it is another."""
    words = message["content"].split()
    words[int(rng.integers(len(words)))] = "other"
    return {**message, "content": " ".join(words) if len(words) > 30 else message["content"]}


def inject(rng: np.random.Generator, trace: list[dict[str, Any]], code: str) -> list[dict[str, Any]]:
    """The trace with a fault: steps that come again, work after the end, or no end."""
    n = len(trace) - 1
    if code == "1.3":
        i = int(rng.integers(1, n - 2))
        at = int(rng.integers(i + 2, n)) if i + 2 < n else n
        return [*trace[:at], again(rng, trace[i]), *trace[at:]]
    if code == "1.4":
        i, length = int(rng.integers(1, n - 4)), int(rng.integers(2, 4))
        return [*trace[:n], *(again(rng, m) for m in trace[i : i + length]), *trace[n:]]
    if code == "2.1":
        return [*trace[:n], *(again(rng, m) for m in trace[: int(rng.integers(2, 5))]), *trace[n:]]
    if code == "1.5":
        rest = [
            {"role": "assistant", "name": AGENTS[i % 3], "content": " ".join(rng.choice(VOCABULARY, 20))}
            for i in range(3)
        ]
        return [*trace, *rest]
    return trace[: int(rng.integers(3, n))]


def fault_counts(code: str, seed: int, rounds: int) -> dict[str, int]:
    """How often a detector is right, wrong and misses, on traces without faults, with its own, and with others."""
    rng = np.random.default_rng(seed)
    counts = {"right": 0, "wrong": 0, "missed": 0}
    for _ in range(rounds):
        others = tuple(c for c in FAULTS if c != code and rng.random() < 0.3)
        for faults in ((), (code,), others):
            trace = clean(rng)
            for fault in faults:
                trace = inject(rng, trace, fault)
            found = code in {f.code for f in detect(trace)}
            counts["right"] += found and code in faults
            counts["wrong"] += found and code not in faults
            counts["missed"] += not found and code in faults
    return counts


def f1_score(counts: dict[str, int]) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * counts["right"] / (2 * counts["right"] + counts["wrong"] + counts["missed"])
