"""The command `core`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import rich.console
import rich.markup
import rich.table
import typer

import core_registry

from ._discovery import Op, PluginError

app = typer.Typer(
    name="core", help="Look at the installed Core plugins, check, measure and run them.", no_args_is_help=True
)
console = rich.console.Console()
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command."""
    try:
        app(prog_name="core")
    except PluginError as e:
        raise SystemExit(f"core: {e}") from e


def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {p.name: p for p in sorted(importlib.metadata.entry_points(group=group), key=lambda p: p.name)}


def _emit(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


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
        table = rich.table.Table(*head, box=None)
        for row in rows:
            table.add_row(*(rich.markup.escape(c.replace("`", "")) for c in row))
        console.print(table)
        for name, error in core_registry.errors().items():
            rich.print(f"[red]{name}[/]: {rich.markup.escape(str(error))}", file=sys.stderr)


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
def doctor(as_json: Json = False) -> None:
    """Loads each plugin in a process of its own; says what is broken and how to mend it, with exit code 1."""
    from .child import ask

    report: dict[str, str] = {name: str(error) for name, error in core_registry.errors().items()}
    for name, plugin in core_registry.plugins().items():
        try:
            if json.loads(ask(plugin.path))["name"] != name:
                raise PluginError(f"{plugin.path} is another plugin than its description says; reinstall it")
        except PluginError as e:
            report[name] = str(e)
    good = [n for n in core_registry.plugins() if n not in report]
    if as_json:
        _emit({"good": good, "broken": report})
    else:
        for name in good:
            print(f"{name}: good")
        for name, error in report.items():
            print(f"{name}: BROKEN: {error}")
    raise typer.Exit(1 if report else 0)


@app.command()
def bench(
    op: Annotated[str | None, typer.Argument(help="One operator; else all.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of ours and of the peers.", min=1)] = 1,
    calls: Annotated[bool, typer.Option("--calls", help="Measure the cost of a call instead.")] = False,
    as_json: Json = False,
) -> None:
    """Ours and the peer on the same work in one run; no ratio if the answers differ."""
    from . import bench as bench_

    if calls:
        from .calls import measure

        rows = measure()
    else:
        rows = bench_.run(op, device, threads)
    if as_json:
        _emit(rows)
    else:
        bench_.show(console, rows)
    raise typer.Exit(1 if any(r.get("error") for r in rows) else 0)


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

    wanted = {n.replace("-", "_").removeprefix("core_") for n in names or []}
    points = {n: p for n, p in _entry_points("core.demos").items() if not wanted or n.removeprefix("core_") in wanted}
    if not points or len(points) < len(wanted):
        raise SystemExit(f"core: there are demonstrations of {', '.join(_entry_points('core.demos')) or 'nothing'}")
    results = demo_.run_all(points, out, console if not as_json else rich.console.Console(stderr=True))
    if as_json:
        _emit({n: str(r) if isinstance(r, Exception) else dataclasses.asdict(r) for n, r in results.items()})
    raise typer.Exit(1 if any(isinstance(r, Exception) for r in results.values()) else 0)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="An arXiv id, see `core list --papers`.")],
    size: Annotated[str, typer.Option(help="cpu (minutes on two cores) or gpu.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The folder of the plot.")] = pathlib.Path(
        "out/reproduce"
    ),
    as_json: Json = False,
) -> None:
    """The smallest honest experiment behind a paper's claim; exit code 1 if the claim does not hold at this size."""
    points = _entry_points("core.claims")
    if paper not in points:
        raise SystemExit(f"core: no claim of {paper!r}; there are {', '.join(points) or 'none'}")
    if size not in ("cpu", "gpu"):
        raise SystemExit(f"core: --size is cpu or gpu, not {size!r}")
    out.mkdir(parents=True, exist_ok=True)
    with console.status(f"arXiv {paper}") if not as_json else rich.console.Console(stderr=True).status(paper):
        claim = points[paper].load()(size, seed, out)
    if as_json:
        _emit(dataclasses.asdict(claim))
    else:
        print(f"claim     {claim.claim}\nprotocol  {claim.protocol}")
        for name, (mean, spread) in claim.measured.items():
            print(f"measured  {name}: {mean:.6g} +- {spread:.2g}")
        print(f"verdict   {'holds' if claim.holds else 'does not hold'} at size {size}")
        if claim.plot:
            print(f"plot      {claim.plot}")
    raise typer.Exit(0 if claim.holds else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(context: typer.Context, job: Annotated[str | None, typer.Argument(help="A job's name.")] = None) -> None:
    """Runs a job of a package: `core run JOB --help` shows its arguments; without a job, lists them."""
    points = _entry_points("core.jobs")
    if job is None or job in ("--help", "--list"):
        print("\n".join(points) or "no installed package has a job")
        return
    if job not in points:
        raise SystemExit(f"core: no job {job!r}; there are {', '.join(points) or 'none'}")
    one = typer.Typer(name=job, add_completion=False)
    one.command()(points[job].load())
    one(context.args, prog_name=f"core run {job}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The plugin's name: lower case, words joined by '-' or '_'.")],
    folder: Annotated[
        pathlib.Path | None, typer.Option("-o", "--out", help="Where; default: a folder of that name here.")
    ] = None,
) -> None:
    """Makes a plugin package that builds, installs and passes its own test."""
    from . import scaffold

    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or len(name) > 40:
        raise SystemExit(f"core: a plugin's name is lower case letters, digits and single '-', got {name!r}")
    try:
        made = scaffold.make(name.replace("_", "-"), folder or pathlib.Path(name.replace("_", "-")))
    except FileExistsError as e:
        raise SystemExit(f"core: {e}") from None
    print(f"made {made}; next:\n  pip install {made}\n  python -m pytest {made}/tests")


@app.command()
def stubs(
    plugin: Annotated[str, typer.Argument(help="A plugin's name.")],
    out: Annotated[pathlib.Path | None, typer.Option("-o", "--out", help="The file; default: print.")] = None,
) -> None:
    """Writes the type stubs (.pyi) of a plugin's extension module from its table of operators."""
    from .stubs import stub

    plugin = plugin.replace("-", "_")
    if plugin not in core_registry.plugins():
        raise SystemExit(f"core: no plugin {plugin!r}; there are {', '.join(core_registry.plugins()) or 'none'}")
    text = stub(core_registry.plugins()[plugin])
    if out:
        out.write_text(text)
    else:
        print(text, end="")
