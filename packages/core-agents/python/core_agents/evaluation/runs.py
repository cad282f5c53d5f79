"""Figures of one system's recorded runs, with intervals over tasks, and two systems against each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import statistics
from .safety import Policy
from .steps import check_milestones, milestones_reached, steps
from .trajectories import Matcher, trajectory_figures

Run = Mapping[str, Any]
NUMBERS = ("cost", "latency", "input_tokens", "output_tokens")
"""The numbers of a run that are summarised, where it has them."""
PERCENTILES = (50, 90, 95, 99)


def read_runs(lines: Iterable[str], judged: bool = False) -> list[dict[str, Any]]:
    """Runs from JSON lines: `task` (text), `success` (true, false, or a number in 0..1), and optionally those of
    :data:`NUMBERS` (finite, not negative), `messages` and `reference` (lists of OpenAI messages), `milestones`
    (:func:`check_milestones`), `steps` (whether each tool call succeeded, where somebody looked: it goes before
    :func:`steps`). ``judged``: `success` may be missing where there are messages, for a judge to fill in.

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
            if value is None and (name != "success" or (judged and run.get("messages"))):
                continue
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf or (name == "success" and value > 1):
                raise ValueError(f"line {i}: '{name}' must be a number, {'0..1' if name == 'success' else '>= 0'}")
        for name in ("messages", "reference"):
            if name in run and not (isinstance(run[name], list) and all(isinstance(m, dict) for m in run[name])):
                raise ValueError(f"line {i}: '{name}' must be a list of messages")
        try:
            calls = len(steps(run.get("messages", ())))
            labels = run.get("steps", [True] * calls)
            if not isinstance(labels, list) or len(labels) != calls or not all(isinstance(x, bool) for x in labels):
                raise ValueError(f"'steps' must be true or false for each of the {calls} tool calls")
            if "milestones" in run:
                check_milestones(run["milestones"])
        except ValueError as e:
            raise ValueError(f"line {i}: {e}") from None
        runs.append(run)
    if not runs:
        raise ValueError("there are no runs")
    return runs


def _by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(run["task"], []).append(run)
    return tasks


def _ratio(rows: Sequence[Sequence[float]], bootstrap: int, seed: int) -> statistics.Estimate:
    """Sum of the first column over that of the second, with its interval over the rows."""
    pairs = np.array(rows, np.float64)
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
    runs: Sequence[Run],
    matcher: Matcher | None = None,
    bootstrap: int = 10_000,
    seed: int = 0,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """All figures of one system's runs; intervals of 95 % over tasks.

    `success` (mean over tasks of the mean over trials), `pass_at_k` and `pass_hat_k` for k = 1 ... the fewest trials
    of a task (a trial succeeds if its `success` is 1), percentiles and means of :data:`NUMBERS`, `cost_per_success`;
    for runs with `messages` and `reference` the share of each mode of :func:`trajectory_match` and the mean scores;
    for runs with `messages` the share of tool calls that succeeded, in all and by tool; for those with `milestones`
    their score and the share of runs that reached each; with a ``policy`` the share of runs that keep it, of runs that
    succeed and keep it, and how many runs break each rule. `by_task`: trials, mean success and cost of each task.
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
        "by_task": {
            name: {"trials": len(t), "success": float(s)} for (name, t), s in zip(tasks.items(), shares, strict=True)
        },
    }
    for k in range(1, int(trials.min()) + 1):
        result["pass_at_k"][k] = statistics.mean(statistics.pass_at_k(trials, passed, k), bootstrap, seed=seed)
        result["pass_hat_k"][k] = statistics.mean(statistics.pass_hat_k(trials, passed, k), bootstrap, seed=seed)
    for name in NUMBERS:
        values = [run[name] for run in runs if run.get(name) is not None]
        if values:
            cut = np.percentile(values, PERCENTILES)
            result["percentiles"][name] = {
                "mean": float(np.mean(values)),
                **{f"p{p}": float(v) for p, v in zip(PERCENTILES, cut, strict=True)},
            }
    if all(run.get("cost") is not None for run in runs):
        rows = [[sum(r["cost"] for r in t), float(sum(r["success"] == 1 for r in t))] for t in tasks.values()]
        result["cost_per_success"] = _ratio(rows, bootstrap, seed)
        for (name, _), row in zip(tasks.items(), rows, strict=True):
            result["by_task"][name]["cost"] = row[0]
    compared = [(run["messages"], run["reference"]) for run in runs if "messages" in run and "reference" in run]
    if compared:
        found = [trajectory_figures(a, b, matcher) for a, b in compared]
        result["trajectories"] = {
            "compared": len(compared),
            **{name: float(np.mean([f[name] for f in found])) for name in found[0]},
        }
    for part in (_steps(tasks, bootstrap, seed), _milestones(tasks, matcher, bootstrap, seed)):
        result |= part
    if policy is not None:
        result |= _safety(tasks, policy, bootstrap, seed)
    return result


def _steps(tasks: Mapping[str, Sequence[Run]], bootstrap: int, seed: int) -> dict[str, Any]:
    rows, made, good = [], Counter[str](), Counter[str]()
    for runs in tasks.values():
        done = [0.0, 0.0]
        for run in runs:
            found = steps(run.get("messages", ()))
            labels = run.get("steps", [step.success for step in found])
            for step, success in zip(found, labels, strict=True):
                made[step.call.name] += 1
                good[step.call.name] += success
                done[0] += success
                done[1] += 1
        rows.append(done)
    if not made:
        return {}
    tools = {name: {"calls": n, "success": good[name] / n} for name, n in made.most_common()}
    return {"steps": {"calls": made.total(), "success": _ratio(rows, bootstrap, seed), "tools": tools}}


def _milestones(
    tasks: Mapping[str, Sequence[Run]], matcher: Matcher | None, bootstrap: int, seed: int
) -> dict[str, Any]:
    means, reached, asked = [], Counter[str](), Counter[str]()
    for runs in tasks.values():
        scores = []
        for run in runs:
            if not run.get("milestones") or "messages" not in run:
                continue
            at = milestones_reached(run["messages"], run["milestones"], matcher)
            weights = {m["name"]: m.get("weight", 1) for m in run["milestones"]}
            scores.append(sum(w for n, w in weights.items() if at[n] is not None) / sum(weights.values()))
            asked.update(list(at))
            reached.update(name for name, place in at.items() if place is not None)
        if scores:
            means.append(float(np.mean(scores)))
    if not means:
        return {}
    shares = {name: reached[name] / n for name, n in asked.items()}
    return {"milestones": {"score": statistics.mean(means, bootstrap, seed=seed), "reached": shares}}


def _safety(tasks: Mapping[str, Sequence[Run]], policy: Policy, bootstrap: int, seed: int) -> dict[str, Any]:
    broken, examples = Counter[str](), dict[str, str]()
    safe, both = [], []
    for task, runs in tasks.items():
        kept, well = [], []
        for run in runs:
            violations = policy.check(run.get("messages", ()))
            broken.update({v.rule for v in violations})
            for v in violations:
                examples.setdefault(v.rule, f"{task}, message {v.message}: {v.why}")
            kept.append(not violations)
            well.append(not violations and run["success"] == 1)
        safe.append(np.mean(kept))
        both.append(np.mean(well))
    return {
        "safety": {
            "safe": statistics.mean(safe, bootstrap, seed=seed),
            "success_and_safe": statistics.mean(both, bootstrap, seed=seed),
            "violations": {rule: {"runs": n, "first": examples[rule]} for rule, n in broken.most_common()},
        }
    }


def compare(runs: Sequence[Run], baseline: Sequence[Run], bootstrap: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The system against a baseline on the tasks that both have: the difference of mean success over tasks with its
    paired bootstrap, and McNemar's exact test on the first trial of each task; `differences` of the mean of each of
    :data:`NUMBERS` where all those runs have it, with its p-value. ValueError if they share no task."""
    ours, theirs = _by_task(runs), _by_task(baseline)
    shared = [task for task in ours if task in theirs]
    if not shared:
        raise ValueError("the runs and the baseline have no task in common")

    def paired(name: str) -> statistics.Comparison:
        before, after = (
            [np.mean([float(run[name]) for run in side[task]]) for task in shared] for side in (theirs, ours)
        )
        return statistics.paired_bootstrap(before, after, bootstrap, seed=seed)

    everyone = [run for side in (ours, theirs) for task in shared for run in side[task]]
    known = [name for name in NUMBERS if all(run.get(name) is not None for run in everyone)]
    first, second = ([side[task][0]["success"] == 1 for task in shared] for side in (theirs, ours))
    compared = paired("success")
    return {
        "tasks": len(shared),
        "difference": compared.difference,
        "p_value": compared.p_value,
        "mcnemar_p_value": statistics.mcnemar(first, second)[1],
        "differences": {
            name: {"difference": c.difference, "p_value": c.p_value} for name, c in ((n, paired(n)) for n in known)
        },
    }


def to_json(result: Any) -> Any:
    """The figures as JSON values: estimates as objects, numbers that are not finite as null."""
    if isinstance(result, statistics.Estimate):
        return {k: to_json(getattr(result, k)) for k in ("value", "low", "high")}
    if isinstance(result, (list, tuple)):
        return [to_json(v) for v in result]
    if isinstance(result, Mapping):
        return {str(k): to_json(v) for k, v in result.items()}
    if isinstance(result, float) and not math.isfinite(result):
        return None
    return result
