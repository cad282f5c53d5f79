"""Evaluation of agents over recorded runs: trajectories against references, success, cost, two systems (2503.16416).

A trajectory is a list of OpenAI chat messages; a tool call is its function's name and arguments. Match modes are named
as in LangChain's agentevals and Vertex AI's evaluation. Where several calls may stand for each other, the largest
one-to-one assignment decides, not the order in which they are tried.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import statistics

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
                if not isinstance(arguments, Mapping) or not isinstance(function["name"], str):
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
    schema = schema or {}
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
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and value != value:
        return ("nan",)
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        filled = {k: s["default"] for k, s in properties.items() if isinstance(s, Mapping) and "default" in s}
        filled.update(value)
        return ("object", frozenset((k, canonical(v, properties.get(k))) for k, v in filled.items()))
    if isinstance(value, (list, tuple)):
        return ("array", *(canonical(v, schema.get("items")) for v in value))
    if value is None or isinstance(value, (int, float)):
        return value
    raise TypeError(f"a tool's argument must be a JSON value, got {type(value).__name__}")


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


# ---- runs ----------------------------------------------------------------------------------------------------

NUMBERS = ("cost", "latency", "input_tokens", "output_tokens")
"""The numbers of a run that are summarised, where it has them."""
PERCENTILES = (50, 90, 95, 99)


def read_runs(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Runs from JSON lines: `task` (text), `success` (true, false, or a number in 0..1), and optionally those of
    :data:`NUMBERS` (finite, not negative), `messages` and `reference` (lists of OpenAI messages).

    Raises ValueError that names the line and the field.
    """
    runs = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"line {i}: not JSON: {e}") from None
        if not isinstance(run, dict) or not isinstance(run.get("task"), str):
            raise ValueError(f"line {i}: 'task' must be text")
        for name in ("success", *NUMBERS):
            value = run.get(name)
            if name != "success" and value is None:
                continue
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf or (name == "success" and value > 1):
                raise ValueError(f"line {i}: '{name}' must be a number, {'0..1' if name == 'success' else '>= 0'}")
        for name in ("messages", "reference"):
            if name in run and not (isinstance(run[name], list) and all(isinstance(m, dict) for m in run[name])):
                raise ValueError(f"line {i}: '{name}' must be a list of messages")
        runs.append(run)
    if not runs:
        raise ValueError("there are no runs")
    return runs


def _by_task(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        tasks.setdefault(run["task"], []).append(run)
    return tasks


def _ratio(rows: list[list[float]], bootstrap: int, seed: int) -> statistics.Estimate:
    """Sum of the first column over that of the second, with its interval over the rows."""
    pairs = np.array(rows)
    total = pairs.sum(0)
    if not total[1]:
        return statistics.Estimate(math.inf, undefined=bootstrap)
    sums = statistics.bootstrap_sums(pairs, bootstrap, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
    known = ratios[np.isfinite(ratios)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return statistics.Estimate(float(total[0] / total[1]), float(low), float(high), len(ratios) - len(known))


def summarise(
    runs: Sequence[Mapping[str, Any]],
    matcher: Matcher | None = None,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one system's runs; intervals of 95 % over tasks.

    `success` (mean over tasks of the mean over trials), `pass_at_k` and `pass_hat_k` for k = 1 ... the fewest trials
    of a task (a trial succeeds if its `success` is 1), percentiles of :data:`NUMBERS`, `cost_per_success`, and for
    runs with `messages` and `reference` the share of each mode of :func:`trajectory_match` and the mean scores.
    """
    tasks = _by_task(runs)
    trials = np.array([len(t) for t in tasks.values()])
    passed = np.array([sum(run["success"] == 1 for run in t) for t in tasks.values()])
    shares = np.array([np.mean([run["success"] for run in t]) for t in tasks.values()])
    result: dict[str, Any] = {
        "tasks": len(tasks),
        "runs": len(runs),
        "success": statistics.mean(shares, bootstrap, seed=seed),
        "pass_at_k": {},
        "pass_hat_k": {},
        "percentiles": {},
    }
    for k in range(1, int(trials.min()) + 1):
        result["pass_at_k"][k] = statistics.mean(statistics.pass_at_k(trials, passed, k), bootstrap, seed=seed)
        result["pass_hat_k"][k] = statistics.mean(statistics.pass_hat_k(trials, passed, k), bootstrap, seed=seed)
    for name in NUMBERS:
        values = [run[name] for run in runs if run.get(name) is not None]
        if values:
            cut = np.percentile(values, PERCENTILES)
            result["percentiles"][name] = {f"p{p}": float(v) for p, v in zip(PERCENTILES, cut, strict=True)}
    if all(run.get("cost") is not None for run in runs):
        rows = [[sum(r["cost"] for r in t), float(sum(r["success"] == 1 for r in t))] for t in tasks.values()]
        result["cost_per_success"] = _ratio(rows, bootstrap, seed)
    compared = [(run["messages"], run["reference"]) for run in runs if "messages" in run and "reference" in run]
    if compared:
        found = [{m: trajectory_match(a, b, m, matcher) for m in TRAJECTORY_MODES} for a, b in compared]
        scores = [trajectory_scores(a, b, matcher) for a, b in compared]
        result["trajectories"] = {
            "compared": len(compared),
            **{m: float(np.mean([f[m] for f in found])) for m in TRAJECTORY_MODES},
            **{s: float(np.mean([f[s] for f in scores])) for s in scores[0]},
        }
    return result


def compare(
    runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], bootstrap: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """The system against a baseline on the tasks that both have: the difference of mean success over tasks with its
    paired bootstrap, and McNemar's exact test on the first trial of each task. ValueError if they share no task."""
    ours, theirs = _by_task(runs), _by_task(baseline)
    shared = [task for task in ours if task in theirs]
    if not shared:
        raise ValueError("the runs and the baseline have no task in common")
    before, after = ([np.mean([run["success"] for run in side[task]]) for task in shared] for side in (theirs, ours))
    first, second = ([side[task][0]["success"] == 1 for task in shared] for side in (theirs, ours))
    compared = statistics.paired_bootstrap(before, after, bootstrap, seed=seed)
    return {
        "tasks": len(shared),
        "difference": compared.difference,
        "p_value": compared.p_value,
        "mcnemar_p_value": statistics.mcnemar(first, second)[1],
    }


def to_json(result: Any) -> Any:
    """The figures as JSON values: estimates as objects, numbers that are not finite as null."""
    if isinstance(result, statistics.Estimate):
        return {k: to_json(getattr(result, k)) for k in ("value", "low", "high")}
    if isinstance(result, Mapping):
        return {str(k): to_json(v) for k, v in result.items()}
    if isinstance(result, float) and not math.isfinite(result):
        return None
    return result


def _cell(value: Any) -> str:
    if isinstance(value, statistics.Estimate):
        return f"{value.value:.4g} <small>[{value.low:.4g}, {value.high:.4g}]</small>"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


_STYLE = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .9em;text-align:left}"
_STYLE += "tr:nth-child(even){background:#f2f2f2}small{color:#666}svg{background:#fafafa}"


def report(results: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None = None) -> str:
    """One HTML page of the figures of systems (by name) and of their comparison; it loads nothing from elsewhere."""
    rows: dict[str, dict[str, str]] = {}
    for system, result in results.items():
        flat = {k: result[k] for k in ("tasks", "runs", "success", "cost_per_success") if k in result}
        flat |= {f"pass@{k}": v for k, v in result["pass_at_k"].items()}
        flat |= {f"pass^{k}": v for k, v in result["pass_hat_k"].items()}
        flat |= {f"{name}, {p}": v for name, cut in result["percentiles"].items() for p, v in cut.items()}
        flat |= {f"trajectories: {k}": v for k, v in result.get("trajectories", {}).items()}
        for name, value in flat.items():
            rows.setdefault(name, {})[system] = _cell(value)
    head = "".join(f"<th>{html.escape(system)}</th>" for system in results)
    body = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td>"
        + "".join(f"<td>{cells.get(system, '')}</td>" for system in results)
        + "</tr>"
        for name, cells in rows.items()
    )
    parts = [f"<table><tr><th></th>{head}</tr>{body}</table>", _curves(results)]
    if comparison is not None:
        listed = "".join(
            f"<tr><td>{html.escape(k.replace('_', ' '))}</td><td>{_cell(v)}</td></tr>" for k, v in comparison.items()
        )
        parts.append(f"<h2>Difference</h2><table>{listed}</table>")
    page = "".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
        f"<h1>Evaluation</h1><p>Intervals of 95 %, over tasks.</p>{page}</html>\n"
    )


def _curves(results: Mapping[str, Mapping[str, Any]]) -> str:
    """pass@k (solid) and pass^k (dashed) of each system over k, as SVG; nothing if there is one trial only."""
    longest = max(len(result["pass_at_k"]) for result in results.values())
    if longest < 2:
        return ""
    lines = []
    for i, (system, result) in enumerate(results.items()):
        colour = f"hsl({i * 137 % 360} 60% 40%)"
        for name, dash in (("pass_at_k", ""), ("pass_hat_k", ' stroke-dasharray="6 4"')):
            at = [(40 + 420 * (k - 1) / (longest - 1), 210 - 190 * e.value) for k, e in result[name].items()]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{points}"/>')
        lines.append(f'<text x="470" y="{30 + 18 * i}" fill="{colour}">{html.escape(system)}</text>')
    lines += [f'<text x="{36 + 420 * (k - 1) / (longest - 1):.1f}" y="230">{k}</text>' for k in range(1, longest + 1)]
    lines += ['<text x="8" y="24">1</text>', '<text x="8" y="214">0</text>']
    return f'<h2>pass@k and pass^k (dashed)</h2><svg width="640" height="240">{"".join(lines)}</svg>'
