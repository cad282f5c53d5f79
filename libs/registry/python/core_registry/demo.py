"""The demonstrations that packages declare: what each returns, and running all of them."""

from __future__ import annotations

import dataclasses
import html
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
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
TIMEOUT = 300.0


def run_all(packages: Sequence[str], out: pathlib.Path, console: rich.console.Console) -> dict[str, Demo | str]:
    """Runs the demonstrations and writes `out/index.html`; a failed one is the sentence that says why."""
    import rich.progress

    results: dict[str, Demo | str] = {}
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(packages))
        for name in packages:
            progress.update(task, description=name)
            results[name] = run(name, out / name)
            progress.advance(task)
        progress.update(task, description="done")
    with replace(out / "index.html") as temporary:
        temporary.write_text(_page(results, out), "utf-8")
    return results


def run(package: str, out: pathlib.Path, timeout: float = TIMEOUT) -> Demo | str:
    """Runs one demonstration in a process of its own, so that a crash only ends that one."""
    out.mkdir(parents=True, exist_ok=True)
    answer = out / "demo.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "core_registry.demo", package, str(out)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:g} s"
    if done.returncode < 0:
        return f"was killed by {signal.Signals(-done.returncode).name}"
    if done.returncode or not answer.is_file():
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return said[-1] if said else f"ended with exit code {done.returncode}"
    raw = json.loads(answer.read_text("utf-8"))
    raw["pictures"] = [Picture(p["title"], pathlib.Path(p["path"])) for p in raw["pictures"]]
    return Demo(**raw)


def main(package: str, out: str) -> None:
    """What the process does: one demonstration, described in `demo.json`."""
    (point, *_) = importlib.metadata.entry_points(group="core.demos", name=package)
    result = dataclasses.asdict(point.load()(pathlib.Path(out)))
    numbers = {k: float(result[k]) for k in ("ours", "peers", "difference", "tolerance")}
    with replace(pathlib.Path(out) / "demo.json") as temporary:
        temporary.write_text(json.dumps(result | numbers, default=str), "utf-8")


def rows(results: Mapping[str, Demo | str]) -> list[tuple[str, ...]]:
    """The table of the results, in the order of COLUMNS."""
    return [(name, f"failed: {r}", "", "", "", "") if isinstance(r, str) else _row(r) for name, r in results.items()]


def _row(d: Demo) -> tuple[str, ...]:
    return d.what, d.input, duration(d.ours), f"{d.peer}: {duration(d.peers)}", f"{d.ratio:.3g}x", f"{d.difference:.2g}"


def duration(seconds: float | None) -> str:
    """A time with a fitting unit; "" for None."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _page(results: Mapping[str, Demo | str], out: pathlib.Path) -> str:
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(results))
    sections = []
    for name, result in results.items():
        if isinstance(result, str):
            continue
        figures = "".join(f"<li>{html.escape(k)}: <b>{html.escape(str(v))}</b></li>" for k, v in result.figures.items())
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
        f"<h1>Core: one real thing in each package</h1><table><tr>{head}</tr>{body}</table>"
        f"{''.join(sections)}</html>\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
