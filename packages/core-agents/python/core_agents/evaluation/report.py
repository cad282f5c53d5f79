"""The figures of systems as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import statistics

TASKS = 500
"""Tasks that the page lists at most."""
_STYLE = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .9em;text-align:left}"
_STYLE += "tr:nth-child(even){background:#f2f2f2}small{color:#666}svg{background:#fafafa}.bad{color:#b00}"


def _cell(value: Any) -> str:
    if isinstance(value, statistics.Estimate):
        return f"{value.value:.4g} <small>[{value.low:.4g}, {value.high:.4g}]</small>"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    names = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{names}</tr>{body}</table>"


def _beside(results: Mapping[str, Mapping[str, Any]], flat: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each name and a column for each system."""
    names = dict.fromkeys(name for one in flat.values() for name in one)
    rows = [[name.replace("_", " "), *(flat[s].get(name, "") for s in results)] for name in names]
    return _table(["", *results], rows) if rows else ""


def report(results: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None = None) -> str:
    """The page of the figures of :func:`summarise` by system's name, and of their :func:`compare`."""
    sections: dict[str, dict[str, dict[str, Any]]] = {}
    for system, result in results.items():
        steps, marks, safety = (result.get(name, {}) for name in ("steps", "milestones", "safety"))
        parts: dict[str, dict[str, Any]] = {
            "Success": {k: result[k] for k in ("tasks", "runs", "success", "cost_per_success") if k in result}
            | {f"pass@{k}": v for k, v in result["pass_at_k"].items()}
            | {f"pass^{k}": v for k, v in result["pass_hat_k"].items()},
            "Cost, latency and tokens": {
                f"{name}, {p}": v for name, cut in result["percentiles"].items() for p, v in cut.items()
            },
            "Trajectories against references": result.get("trajectories", {}),
            "Steps": {"tool calls": steps["calls"], "calls that succeeded": steps["success"]} if steps else {},
            "Milestones": {"score": marks["score"], **marks["reached"]} if marks else {},
            "Safety": {"runs that keep the rules": safety["safe"], "... and succeed": safety["success_and_safe"]}
            if safety
            else {},
        }
        for tool, of in steps.get("tools", {}).items():
            parts["Steps"][f"{tool} ({of['calls']} calls)"] = of["success"]
        for rule, of in safety.get("violations", {}).items():
            parts["Safety"][f"breaks '{rule}'"] = f"{of['runs']} runs; {of['first']}"
        for name, part in parts.items():
            sections.setdefault(name, {})[system] = part
    page = [
        f"<h2>{name}</h2>{table}" + (_curves(results) if name == "Success" else "")
        for name, flat in sections.items()
        if (table := _beside(results, flat))
    ]
    if comparison is not None:
        more = comparison.get("differences", {})
        rows = [[k.replace("_", " "), v] for k, v in comparison.items() if k != "differences"]
        rows += [[f"{name}: difference (p {of['p_value']:.3g})", of["difference"]] for name, of in more.items()]
        page.append(f"<h2>Difference</h2>{_table(['', ''], rows)}")
    page.append(_tasks(results))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
        f"<h1>Evaluation</h1><p>Intervals of 95 %, over tasks.</p>{''.join(page)}</html>\n"
    )


def _tasks(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tasks from the hardest on, with the success of each system."""
    success: dict[str, dict[str, float]] = {}
    for system, result in results.items():
        for task, of in result["by_task"].items():
            success.setdefault(task, {})[system] = of["success"]
    order = sorted(success, key=lambda task: (sum(success[task].values()) / len(success[task]), task))
    left = f"<p>{len(order) - TASKS} easier tasks are left out.</p>" if len(order) > TASKS else ""
    rows = [[task, *(success[task].get(s, "") for s in results)] for task in order[:TASKS]]
    return f"<h2>Tasks</h2>{_table(['task', *results], rows)}{left}"


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
