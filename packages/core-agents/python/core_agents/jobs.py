"""Jobs over recorded runs and sources: `core run agents.evaluate`, `agents.judge`, `agents.complexity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from core_registry.files import replace

from . import evaluation, mast, traces
from .claims.plots import axes
from .judge import ChatJudge, JudgeError


def evaluate(
    runs: Annotated[
        Path,
        typer.Argument(
            help="JSON lines, a run each: task, success, ...; or scored traces", exists=True, dir_okay=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML to write; the figures go beside it as .json")],
    baseline: Annotated[Path | None, typer.Option(help="Runs of another system", exists=True, dir_okay=False)] = None,
    arguments: Annotated[str, typer.Option(help="Arguments of tool calls: exact, ignore, subset, superset")] = "exact",
    policy: Annotated[Path | None, typer.Option(help="JSON of safety rules", exists=True, dir_okay=False)] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address of a judge for runs without 'success'")
    ] = None,
    model: Annotated[str, typer.Option(help="Model at the endpoint")] = "default",
    rubric: Annotated[str, typer.Option(help="When a run succeeds, for the judge")] = evaluation.RUBRIC,
    bootstrap: Annotated[int, typer.Option(help="Replicates behind the intervals", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of the judge", min=0)] = 0,
) -> None:
    """Evaluate an agent's recorded runs: pass@k, pass^k, trajectories, steps, milestones, safety, cost (2503.16416)."""
    from rich.progress import track

    systems, comparison, read = {}, None, []
    try:
        matcher = evaluation.Matcher(arguments)
        rules = evaluation.Policy.from_json(policy.read_text(encoding="utf-8")) if policy else None
        asked = ChatJudge(endpoint, model, seed=seed) if endpoint else None
        for path in (runs, baseline) if baseline else (runs,):
            try:
                made = _runs(path, judged=asked is not None)
                if asked:
                    made = [
                        run if run.get("success") is not None else evaluation.judge_success(asked, run, rubric)
                        for run in track(made, "judging")
                    ]
                read.append(made)
                name = path.stem if path.stem not in systems else str(path)
                systems[name] = evaluation.summarise(made, matcher, bootstrap, seed, rules)
            except (ValueError, JudgeError) as e:
                raise ValueError(f"{path}: {e}") from None
        if baseline:
            comparison = evaluation.compare(*read, bootstrap, seed)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    judged = [{"task": run["task"], **run["judged"]} for made in read for run in made if "judged" in run]
    figures = {"seed": seed, "bootstrap": bootstrap, "systems": systems, "comparison": comparison, "judged": judged}
    with replace(output) as page, replace(output.with_suffix(".json")) as numbers:
        page.write_text(evaluation.report(systems, comparison), encoding="utf-8")
        numbers.write_text(json.dumps(evaluation.to_json(figures), allow_nan=False) + "\n", encoding="utf-8")
    for name, figures_of in systems.items():
        typer.echo(f"{name}: success {figures_of['success'].value:.3f}, {output}")


def _runs(path: Path, judged: bool) -> list[dict[str, Any]]:
    """Runs of JSON lines, or of traces that carry scores, such as inspect-ai's logs."""
    data = path.read_bytes()
    if traces.sniff(data) == "openai":
        return evaluation.read_runs(data.decode().splitlines(), judged)
    found = traces.loads(data).to_runs()
    if not found:
        raise ValueError("none of its runs has a score")
    return found


def judge(
    recorded: Annotated[
        Path,
        typer.Argument(
            help="OpenAI messages, inspect-ai logs, spans, LangSmith runs",
            exists=True,
            dir_okay=False,
            metavar="TRACES",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON lines to write, one a trace")],
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address; without one only detectors run")
    ] = None,
    model: Annotated[str, typer.Option(help="Model at the endpoint")] = "default",
    taxonomy: Annotated[str, typer.Option(help="Version of the taxonomy")] = mast.PAPER.version,
    seed: Annotated[int, typer.Option(help="Seed that is sent along", min=0)] = 0,
) -> None:
    """Find MAST's failure modes in traces, by detectors and, if an endpoint is given, by a judge (2503.13657)."""
    from rich.progress import track

    if taxonomy not in mast.TAXONOMIES:
        raise typer.BadParameter(f"--taxonomy must be one of {', '.join(mast.TAXONOMIES)}, got {taxonomy}")
    version, rows = mast.TAXONOMIES[taxonomy], []
    try:
        asked = ChatJudge(endpoint, model, seed=seed) if endpoint else None
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    try:
        found_runs = traces.read(recorded, keep_damaged=True)
        if not found_runs.rows.size:
            raise ValueError(f"{recorded}: {(*found_runs.problems, 'there are no messages')[0]}")
    except (OSError, ValueError) as e:
        raise typer.BadParameter(str(e)) from None
    for problem in found_runs.problems:
        typer.echo(f"warning: {recorded}: {problem}", err=True)
    ids = found_runs.run_strings("id")
    for name, messages in zip(ids, track(found_runs.to_messages(), "reading traces"), strict=True):
        found = [{"code": f.code, "messages": f.messages, "why": f.why} for f in mast.detect(messages)]
        row: dict[str, Any] = {"id": name, "taxonomy": taxonomy, "detected": found}
        if asked:
            try:
                answer, reply = mast.judge_trace(asked, mast.trace_text(messages), version)
                row |= {"modes": answer.modes, "completed": answer.completed, "summary": answer.summary}
                row |= {"problems": answer.problems, "text": answer.text, "usage": reply.usage}
            except JudgeError as e:
                row["error"] = str(e)
        rows.append(json.dumps(row) + "\n")
    with replace(output) as temporary:
        temporary.write_text("".join(rows), encoding="utf-8")


def complexity(
    target: Annotated[str, typer.Argument(help="FILE.py:function", metavar="FILE.py:FUNCTION")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write; the figures go beside it as .json")
    ] = Path("complexity.png"),
    example: Annotated[
        str | None, typer.Option(help="JSON list, a value an argument, if there are no type hints")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the inputs", min=0)] = 0,
) -> None:
    """Find the complexity class of a Python function by counting its work in a sandbox (2503.15242)."""
    from .complexity import infer
    from .sandbox import SandboxError

    path, _, name = target.rpartition(":")
    try:
        given = None if example is None else json.loads(example)
        if given is not None and not isinstance(given, list):
            raise ValueError(f"--example must be a JSON list, got {example}")
        found = infer(Path(path).read_text(encoding="utf-8"), name, given, seed=seed)
    except (OSError, ValueError, SandboxError) as e:
        raise typer.BadParameter(f"{target}: {e}") from None
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{name}: time O({found.expression}), random input O({found.typical}), space O({found.space})")
    base = "" if found.fit.base is None else f", base {found.fit.base:.2f}"
    took = "" if found.seconds is None else f", {found.seconds:.3g} s"
    typer.echo(f"{found.coefficient:.4g} steps{took} for each unit of {found.time}{base}, error {found.fit.error:.1%}")
    for fit in found.tried:
        typer.echo(f"  {fit.name:11} error {fit.error:7.1%}{'  <-' if fit.name == found.time else ''}")
    agrees = {True: "grows alike", False: "does NOT grow alike", None: "is too short to compare"}[found.time_agrees]
    typer.echo(f"measured time {agrees}; counted up to n = {found.sizes[-1]}, {output}")
    figures = {
        **{
            k: getattr(found, k) for k in ("function", "time", "typical", "space", "expression", "coefficient", "sizes")
        },
        **{k: getattr(found, k) for k in ("counts", "peaks", "time_agrees", "seconds", "failures", "warnings")},
        "errors": {fit.name: fit.error for fit in found.tried},
        "seed": seed,
    }
    _draw_complexity(found, output)
    with replace(output.with_suffix(".json")) as numbers:
        numbers.write_text(json.dumps(figures) + "\n", encoding="utf-8")


def _draw_complexity(found: Any, path: Path) -> None:
    n = np.array(found.sizes, float)
    with axes(path) as ax:
        for variant, steps in found.counts.items():
            ax.plot(n, steps, ".", label=variant)
        ax.plot(n, found.fit.predict(n), "k-", linewidth=1, label=f"fit of {found.time}")
        ax.set(xscale="log", yscale="log", xlabel="n", ylabel="steps", title=f"{found.function}: O({found.expression})")
        ax.legend()
