"""Pictures of trees (SVG, PNG) and of what they did: a tick log as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from . import behaviour_tree as bt
from .dsl import lines

COLOURS = {
    "Condition": "#fff3c4",
    "Action": "#cdeccd",
    "Sequence": "#cfe2f7",
    "Selector": "#f5d0d0",
    "Parallel": "#e3d5f2",
}
"""The colours of the nodes by kind; others are white."""
_ROW, _INDENT, _LETTER = 26, 28, 6.7


def _rows(tree: bt.Node, labels: Sequence[str] | None = None) -> list[tuple[int, int, str, str]]:
    """Depth, row of the parent (-1: none), colour and text (its line or its label) of each node in pre-order."""
    out: list[tuple[int, int, str, str]] = []
    open_rows: list[int] = []
    written = list(lines(tree))
    if labels is not None and len(labels) != len(written):
        raise ValueError(f"argument 'labels' must hold {len(written)} texts, one a node, got {len(labels)}")
    for row, (depth, line) in enumerate(written):
        text = line if labels is None else labels[row]
        del open_rows[depth:]
        kind = line.split(":")[0].split("(")[0]
        out.append((depth, open_rows[-1] if open_rows else -1, COLOURS.get(kind, "#ffffff"), text))
        open_rows.append(row)
    return out


def tree_svg(tree: bt.Node, labels: Sequence[str] | None = None) -> str:
    """The tree as an SVG text: one node a line (or a label), children indented and joined to their parent."""
    rows, shapes = _rows(tree, labels), []
    width = 0.0
    for row, (depth, parent, colour, text) in enumerate(rows):
        x, y, wide = 10 + depth * _INDENT, 8 + row * _ROW, 14 + _LETTER * len(text)
        width = max(width, x + wide)
        if parent >= 0:
            top, middle, left = 8 + parent * _ROW + _ROW - 4, y + (_ROW - 4) / 2, x - _INDENT / 2
            shapes.append(f'<path d="M{left} {top}V{middle}H{x}" fill="none" stroke="#888"/>')
        shapes.append(
            f'<rect x="{x}" y="{y}" width="{wide:.1f}" height="{_ROW - 4}" rx="5" fill="{colour}" stroke="#888"/>'
            f'<text x="{x + 7}" y="{y + 15}">{html.escape(text)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 10:.0f}" height="{16 + len(rows) * _ROW}" '
        f'font-family="monospace" font-size="11">{"".join(shapes)}</svg>\n'
    )


def draw(tree: bt.Node, axes: Any, labels: Sequence[str] | None = None) -> None:
    """Draws a tree into matplotlib's axes, in the form of :func:`tree_svg`."""
    rows = _rows(tree, labels)
    for row, (depth, parent, colour, text) in enumerate(rows):
        if parent >= 0:
            x = depth - 0.75
            axes.plot([x, x, depth - 0.1], [-parent - 0.35, -row, -row], color="grey", linewidth=1)
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "grey"}
        axes.text(depth, -row, text, va="center", fontsize=8, bbox=box, parse_math=False)
    axes.set_xlim(-0.3, 7)
    axes.set_ylim(-len(rows), 1)
    axes.set_axis_off()


def save_tree(tree: bt.Node, path: Path | str) -> None:
    """Writes a tree as ``.svg``, or as ``.png`` by matplotlib. Raises ValueError for another suffix."""
    path = Path(path)
    if path.suffix == ".svg":
        with replace(path) as temporary:
            temporary.write_text(tree_svg(tree), encoding="utf-8")
        return
    if path.suffix != ".png":
        raise ValueError(f"save_tree: argument 'path' must end in .svg or .png, got {path}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(tree)
    wide = max(depth * 0.6 + 0.075 * len(text) for depth, _, _, text in rows)
    figure = Figure(figsize=(min(max(wide + 0.6, 3), 60), min(0.28 * len(rows) + 0.4, 600)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(tree, axes)
    axes.set_xlim(-0.3, (wide + 0.6) / 0.6)
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def trace_html(log: bt.TickLog, title: str = "behaviour tree") -> str:
    """A tick log as a page: nodes down, ticks across, one agent at a time, the statuses as colours."""
    statuses = np.ascontiguousarray(log.statuses.transpose(2, 1, 0))  # agents, nodes, ticks
    data = {
        "nodes": [{"text": n["text"], "depth": n["depth"]} for n in log.nodes],
        "agents": log.agents.tolist(),
        "ticks": len(log),
        "statuses": base64.b64encode(statuses.tobytes()).decode(),
        "actions": log.actions.T.tolist(),
    }
    packed = json.dumps(data).replace("<", "\\u003c")
    return _PAGE.replace("TITLE", html.escape(title)).replace("DATA", packed)


def save_trace(log: bt.TickLog, path: Path | str, title: str = "behaviour tree") -> None:
    """Writes :func:`trace_html` to a file."""
    with replace(Path(path)) as temporary:
        temporary.write_text(trace_html(log, title), encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title><style>
body{font:14px sans-serif;margin:1em}#view{display:flex;overflow:auto;max-height:85vh;border:1px solid #bbb}
#names{font:12px monospace;white-space:pre;position:sticky;left:0;background:#fff;border-right:1px solid #bbb}
#names div{height:18px;line-height:18px;padding:0 6px}.k{display:inline-block;width:1em;height:1em;margin:0 .3em 0 1em}
</style></head><body><h1>TITLE</h1>
<p>agent <select id="agent"></select><span class="k" style="background:#58a65c"></span>SUCCESS
<span class="k" style="background:#d9534f"></span>FAILURE<span class="k" style="background:#f0ad4e"></span>RUNNING
<span class="k" style="background:#eee"></span>not ticked &nbsp; <b id="here"></b></p>
<div id="view"><div id="names"></div><canvas id="grid"></canvas></div>
<script id="data" type="application/json">DATA</script><script>
const d=JSON.parse(document.getElementById('data').textContent),s=atob(d.statuses);
const colours=['#eee','#58a65c','#d9534f','#f0ad4e'],names=['not ticked','SUCCESS','FAILURE','RUNNING'],w=9,h=18;
const grid=document.getElementById('grid'),pick=document.getElementById('agent'),here=document.getElementById('here');
for(const n of d.nodes){const e=document.createElement('div');e.textContent=' '.repeat(2*n.depth)+n.text;
document.getElementById('names').append(e)}
const act=document.createElement('div');act.textContent='action';document.getElementById('names').append(act);
d.agents.forEach((a,i)=>pick.append(new Option(a,i)));
const ticks=Math.min(d.ticks,3500),status=(a,n,t)=>s.charCodeAt((a*d.nodes.length+n)*d.ticks+t);
grid.width=ticks*w;grid.height=(d.nodes.length+1)*h;
function paint(){const c=grid.getContext('2d'),a=+pick.value;c.clearRect(0,0,grid.width,grid.height);
for(let n=0;n<d.nodes.length;n++)for(let t=0;t<ticks;t++){c.fillStyle=colours[status(a,n,t)];
c.fillRect(t*w,n*h+1,w-1,h-2)}
for(let t=0;t<ticks;t++){const x=d.actions[a][t];if(x<0)continue;c.fillStyle='hsl('+x*67%360+' 60% 60%)';
c.fillRect(t*w,d.nodes.length*h+1,w-1,h-2)}}
grid.onmousemove=e=>{const t=Math.floor(e.offsetX/w),n=Math.floor(e.offsetY/h),a=+pick.value;
if(t<0||t>=ticks)return;here.textContent='tick '+t+': '+(n<d.nodes.length?
d.nodes[n].text+' '+names[status(a,n,t)]:'action '+d.actions[a][t])};
pick.onchange=paint;if(d.agents.length)paint();
</script></body></html>
"""
