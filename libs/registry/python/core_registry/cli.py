"""The command `core`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import rich.console
import rich.table
import rich.text
import typer

import core_registry

from ._discovery import Op, PluginError

app = typer.Typer(
    name="core",
    help="Look at the installed Core plugins, check, measure and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # in a file nothing is cut
console = rich.console.Console(width=_width, markup=False, highlight=False, emoji=False)
errors = rich.console.Console(width=_width, markup=False, highlight=False, emoji=False, stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command; what is wrong with its input is said in one sentence, with exit code 1."""
    try:
        app(prog_name="core")
    except (PluginError, ModuleNotFoundError, OSError, ValueError) as e:
        raise SystemExit(f"core: {e}") from e


def _entry_points(group: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The declared entry points by name, in the order of name and target: packages may share a paper."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for p in sorted(importlib.metadata.entry_points(group=group), key=lambda p: (p.name, p.value)):
        found.setdefault(p.name, []).append(p)
    return found


def _emit(value: object) -> None:
    print(json.dumps(_plain(value), indent=2))


def _plain(value: object) -> object:
    """`value` as JSON knows it: paths and the like as text, no numbers but finite ones."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = rich.table.Table(box=None, pad_edge=False)
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(rich.text.Text, row))
    console.print(table)


def _describe(op: Op) -> dict[str, Any]:
    return {**dataclasses.asdict(op), "signature": str(op)}


def _print_and_leave(function: Callable[[], str]) -> Callable[[bool], None]:
    def callback(wanted: bool) -> None:
        if wanted:
            print(function())
            raise typer.Exit

    return callback


def _flag(name: str, function: Callable[[], str], help_: str) -> Any:
    return typer.Option(name, callback=_print_and_leave(function), is_eager=True, help=help_)


@app.callback()
def options(
    cmake_dir: Annotated[
        bool, _flag("--cmake-dir", core_registry.cmake_dir, "Print the folder of the CMake package.")
    ] = False,
    include_dir: Annotated[
        bool, _flag("--include-dir", core_registry.include_dir, "Print the folder of the headers.")
    ] = False,
    prefix: Annotated[
        bool, _flag("--prefix", core_registry.prefix, "Print a CMAKE_PREFIX_PATH with all plugins.")
    ] = False,
    version: Annotated[
        bool, _flag("--version", lambda: importlib.metadata.version("core-registry"), "Print the version.")
    ] = False,
) -> None:
    """Look at the installed Core plugins, check, measure and run them."""


@app.command(name="list")
def list_(
    papers: Annotated[bool, typer.Option(help="The papers and what implements them.")] = False,
    markdown: Annotated[bool, typer.Option(help="A Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """The plugins and their operators; nothing is loaded."""
    ops = core_registry.ops().values()
    claims = _entry_points("core.claims")
    if papers:
        ids = sorted({o.paper for o in ops if o.paper} | set(claims))
        head = ["paper", "operators", "claim"]
        rows = [
            [
                f"arXiv {i}",
                ", ".join(f"`{o.name}`" for o in ops if o.paper == i),
                f"`core reproduce {i}`" if i in claims else "",
            ]
            for i in ids
        ]
    else:
        head = ["operator", "devices", "what it does"]
        rows = [[f"`{o.name}`", ", ".join(o.devices), o.doc.splitlines()[0] if o.doc else ""] for o in ops]
    if as_json:
        found = core_registry.plugins().values()
        _emit(
            {
                "plugins": [{**dataclasses.asdict(p), "ops": [_describe(o) for o in p.ops]} for p in found],
                "errors": {n: str(e) for n, e in core_registry.errors().items()},
                "jobs": list(_entry_points("core.jobs")),
                "claims": list(claims),
            }
        )
    elif markdown:
        print("\n".join(["| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows]]))
    else:
        _table(head, [[c.replace("`", "") for c in row] for row in rows])
        for name, error in core_registry.errors().items():
            errors.print(f"{name}: {error}", style="red")


@app.command()
def show(
    op: Annotated[str, typer.Argument(help="An operator's name, with or without its plugin's.")], as_json: Json = False
) -> None:
    """One operator: arguments, devices, dtypes, documentation."""
    try:
        found = core_registry.op(op)
    except KeyError as e:
        raise SystemExit(f"core: {e.args[0]}") from None
    if as_json:
        _emit(_describe(found))
        return
    plugin = core_registry.plugins()[found.plugin]
    print(f"{found}\n\n{found.doc}\n")
    print(f"plugin   {plugin.name} {plugin.version}\nlibrary  {plugin.path}\ndevices  {', '.join(found.devices)}")
    if found.paper:
        print(f"paper    https://arxiv.org/abs/{found.paper}")


@app.command()
def doctor(
    timeout: Annotated[float, typer.Option(help="Seconds that a plugin may take to load.", min=0.1)] = 10.0,
    as_json: Json = False,
) -> None:
    """Loads each plugin in a process of its own; says what is broken and how to mend it, with exit code 1."""
    from .doctor import examine, machine

    report = examine(core_registry.scanned(), timeout)
    good = [name for name, problem in report.items() if not problem]
    broken = {name: problem for name, problem in report.items() if problem}
    if as_json:
        _emit({"machine": machine(), "good": good, "broken": broken})
    else:
        for fact, value in machine().items():
            print(f"{fact:16}  {value}")
        for name in good:
            print(f"{name}: good")
        for name, problem in broken.items():
            print(f"{name}: BROKEN: {problem}")
        if not report:
            print("no plugin is installed; install one, or name its library in CORE_PLUGIN_PATH")
    raise typer.Exit(1 if broken else 0)


@app.command()
def bench(
    op: Annotated[str | None, typer.Argument(help="An operator or a plugin; else all.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of ours and of the peers.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each measurement.", min=0.0)] = 1.0,
    calls: Annotated[bool, typer.Option("--calls", help="Measure the cost of a call instead.")] = False,
    as_json: Json = False,
) -> None:
    """Ours and the peer on the same work in one run; no ratio if the answers differ."""
    if device not in ("cpu", "cuda"):
        raise SystemExit(f"core: --device is cpu or cuda, not {device!r}")
    for variable in ("CORE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)  # read when numpy, torch and our plugins are imported
    from . import bench as bench_
    from .demo import duration

    cases, broken = bench_.load_cases()
    for package, why in broken.items():
        errors.print(f"{package}: its cases cannot be loaded: {why}", style="red")
    chosen = [c for c in cases if op is None or op in (c.op, c.plugin, c.op.partition(".")[2])]
    if not chosen:
        raise SystemExit(
            f"core: no case of {op or 'any operator'}; there are {', '.join(c.op for c in cases) or 'none'}"
        )
    if calls:
        from .calls import measure

        costs = measure(chosen)
        columns = ("call", "time", "of torch.add", "budget", "of what")
        rows = [(c.face, c.problem or duration(c.seconds), _number(c.ratio), _number(c.budget), c.what) for c in costs]
        _emit([dataclasses.asdict(c) for c in costs]) if as_json else _table(columns, rows)
        raise typer.Exit(1 if any(c.problem for c in costs) else 0)
    results = []
    with errors.status("measuring") as status:
        for case in chosen:
            status.update(f"measuring {case.op}")
            results.append(bench_.measure(case, device, threads, seconds))
    if as_json:
        _emit([{**dataclasses.asdict(r), "ratio": r.ratio} for r in results])
    else:
        head = ("operator", "size", "ours", "peer", "ratio", "floor", "largest difference")
        measured = [
            (
                r.op,
                r.size,
                duration(r.ours),
                f"{r.peer} {duration(r.peers)}",
                f"{r.ratio:.3g}x" if r.ratio else f"none: {r.problem}",
                duration(r.floor),
                _number(r.difference),
            )
            for r in results
        ]
        _table(head, measured)
    raise typer.Exit(1 if broken or any(r.failed for r in results) else 0)


@app.command()
def demo(
    names: Annotated[list[str] | None, typer.Argument(help="Packages; else all.")] = None,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The folder of the pictures.")] = pathlib.Path(
        "out/demo"
    ),
    as_json: Json = False,
) -> None:
    """One real thing in each package, checked against an independent reference; writes index.html."""
    from . import demo as demo_

    known = list(_entry_points("core.demos"))
    wanted = {n.replace("-", "_").removeprefix("core_") for n in names or []}
    packages = [n for n in known if not wanted or n.removeprefix("core_") in wanted]
    if not packages or len(packages) < len(wanted):
        raise SystemExit(f"core: there are demonstrations of {', '.join(known) or 'nothing'}")
    results = demo_.run_all(packages, out, errors)
    if as_json:
        _emit({n: {"failed": r} if isinstance(r, str) else dataclasses.asdict(r) for n, r in results.items()})
    else:
        _table(demo_.COLUMNS, demo_.rows(results))
        for name, result in results.items():
            for figure, value in () if isinstance(result, str) else result.figures.items():
                console.print(f"{name}: {figure}: {value}")
        console.print(f"pictures: {out / 'index.html'}", soft_wrap=True)
    raise typer.Exit(1 if any(isinstance(r, str) for r in results.values()) else 0)


@app.command()
def reproduce(
    paper: Annotated[str | None, typer.Argument(help="An arXiv id; without it, the declared ones are listed.")] = None,
    size: Annotated[str, typer.Option(help="cpu (minutes on two cores) or gpu.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The folder of the plot.")] = pathlib.Path(
        "out/reproduce"
    ),
    as_json: Json = False,
) -> None:
    """The smallest honest experiment behind each claim made of a paper; exit code 1 if one does not hold."""
    points = _entry_points("core.claims")
    if paper is None:
        if as_json:
            _emit({name: [p.value for p in found] for name, found in points.items()})
        else:
            print("\n".join(points) or "no installed package declares a claim")
        return
    if paper not in points:
        raise SystemExit(f"core: no claim of {paper!r}; there are {', '.join(points) or 'none'}")
    if size not in ("cpu", "gpu"):
        raise SystemExit(f"core: --size is cpu or gpu, not {size!r}")
    out.mkdir(parents=True, exist_ok=True)
    with errors.status(f"measuring the claim of arXiv {paper}"):
        found = [point.load()(size, seed, out) for point in points[paper]]
        claims = [claim for one in found for claim in (one if isinstance(one, list) else [one])]
    if as_json:
        _emit([dataclasses.asdict(claim) for claim in claims])
    for claim in [] if as_json else claims:
        print(f"claim     {claim.claim}\nprotocol  {claim.protocol}")
        for name, (mean, spread) in claim.measured.items():
            print(f"measured  {name}: {mean:.6g} +- {spread:.2g}")
        print(f"verdict   {'holds' if claim.holds else 'does not hold'} at size {size}")
        if claim.plot:
            print(f"plot      {claim.plot}")
    raise typer.Exit(0 if all(claim.holds for claim in claims) else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def run(
    context: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="JOB ...", help="A job's name, then its arguments.")] = None,
    as_json: Json = False,
) -> None:
    """Runs a job of a package: `core run JOB --help` shows its arguments; without a job, lists them."""
    points = _entry_points("core.jobs")
    if job is None:
        if as_json:
            _emit({name: [p.value for p in found] for name, found in points.items()})
        else:
            print("\n".join(points) or "no installed package has a job")
        return
    if job not in points:
        raise SystemExit(f"core: no job {job!r}; there are {', '.join(points) or 'none'}")
    if len(points[job]) > 1:
        raise SystemExit(f"core: several packages declare the job {job}: {', '.join(p.value for p in points[job])}")
    one = typer.Typer(name=job, add_completion=False, pretty_exceptions_enable=False)
    one.command()(points[job][0].load())
    one(context.args, prog_name=f"core run {job}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The plugin's name: lower case, words joined by '-' or '_'.")],
    folder: Annotated[
        pathlib.Path | None, typer.Option("-o", "--out", help="Where; default: a folder of that name here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Makes a plugin package that builds, installs and passes its own test."""
    from . import scaffold

    made = scaffold.make(name, folder)
    if as_json:
        _emit({"folder": made, "files": [p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file()]})
    else:
        at = shlex.quote(str(made.resolve()))
        print(f"made {made}; next:\n  pip install {at}\n  python -m pytest {at}/tests")


@app.command()
def stubs(
    plugin: Annotated[str, typer.Argument(help="A plugin's name.")],
    out: Annotated[pathlib.Path | None, typer.Option("-o", "--out", help="The file; default: print.")] = None,
    as_json: Json = False,
) -> None:
    """Writes the type stubs (.pyi) of a plugin's extension module from its table of operators."""
    from .files import replace
    from .stubs import stub

    plugin = plugin.replace("-", "_")
    if plugin not in core_registry.plugins():
        raise SystemExit(f"core: no plugin {plugin!r}; there are {', '.join(core_registry.plugins()) or 'none'}")
    text = stub(core_registry.plugins()[plugin])
    if out:
        with replace(out) as temporary:
            temporary.write_text(text, "utf-8")
    if as_json:
        _emit({"plugin": plugin, "file": out, "text": text})
    elif not out:
        print(text, end="")
