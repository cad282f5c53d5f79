"""The demonstrations that packages declare: what each returns, and running all of them."""

from __future__ import annotations

import dataclasses
import html
import importlib.metadata
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .files import replace

if TYPE_CHECKING:
    import rich.console


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture under the demonstration's folder, with its title."""

    title: str
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Demo:
    """What a demonstration did: `ours` and `peers` are seconds for the same work, `peer` the other's name.

    `difference` is the largest absolute difference between the two answers, at most `tolerance`.
    """

    what: str
    input: str
    ours: float
    peer: str
    peers: float
    difference: float
    tolerance: float
    pictures: Sequence[Picture] = ()
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.difference <= self.tolerance:
            raise ValueError(
                f"{self.what}: differs from {self.peer} by {self.difference:g}, more than {self.tolerance:g}"
            )

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.peers / self.ours


COLUMNS = ("what", "input", "ours", "peer", "ratio", "largest difference")


def run_all(
    points: Mapping[str, importlib.metadata.EntryPoint], out: pathlib.Path, console: rich.console.Console
) -> dict[str, Demo | Exception]:
    """Runs the demonstrations, shows their progress and a table, and writes `out/index.html`."""
    import rich.markup
    import rich.progress
    import rich.table

    results: dict[str, Demo | Exception] = {}
    style = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*style, console=console) as progress:
        for name, point in points.items():
            task = progress.add_task(name, total=1)
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                results[name] = point.load()(folder)
            except Exception as e:  # one package's failure does not stop the others
                results[name] = e
            progress.update(
                task, completed=1, description=f"{name}: {'failed' if isinstance(results[name], Exception) else 'good'}"
            )
    table = rich.table.Table(*COLUMNS)
    for name, result in results.items():
        if isinstance(result, Exception):
            table.add_row(f"{name}: [red]failed[/]: {rich.markup.escape(f'{type(result).__name__}: {result}')}")
        else:
            table.add_row(*map(rich.markup.escape, _row(result)))
    console.print(table)
    index = out / "index.html"
    with replace(index) as temporary:
        temporary.write_text(_page(results, out))
    console.print(f"pictures: {index}")
    return results


def _row(d: Demo) -> tuple[str, ...]:
    return d.what, d.input, _time(d.ours), f"{d.peer}: {_time(d.peers)}", f"{d.ratio:.3g}x", f"{d.difference:.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _page(results: Mapping[str, Demo | Exception], out: pathlib.Path) -> str:
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    rows, sections = [], []
    for name, result in results.items():
        if isinstance(result, Exception):
            rows.append(f"<tr><td>{name}</td><td colspan=5>failed: {html.escape(str(result))}</td></tr>")
            continue
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in _row(result)) + "</tr>")
        figures = "".join(f"<li>{html.escape(k)}: <b>{html.escape(v)}</b></li>" for k, v in result.figures.items())
        pictures = "".join(
            f'<figure><img src="{html.escape(pathlib.Path(os.path.relpath(p.path, out)).as_posix())}" alt="">'
            f"<figcaption>{html.escape(p.title)}</figcaption></figure>"
            for p in result.pictures
        )
        sections.append(f"<h2>{name}</h2><p>{html.escape(result.what)}</p><ul>{figures}</ul>{pictures}")
    style = (
        "body{font:16px sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}img{max-width:100%}figure{margin:1em 0}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Core: demonstration</title><style>{style}</style>'
        f"<h1>Core: one real thing in each package</h1><table><tr>{head}</tr>{''.join(rows)}</table>"
        f"{''.join(sections)}</html>\n"
    )
