"""The job `core run agents.play`: a tree plays a game, or PORTAL's loop searches for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from core_registry.files import replace

from . import portal
from .forms import ParseError
from .games import game
from .judge import ChatJudge, Judge, JudgeError
from .mutator import Mutator
from .tactics import analyse


def play(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON to write; of a search: its state, from which it goes on")
    ],
    tree: Annotated[
        Path | None, typer.Argument(help="Text of the tree; without one, search for it", exists=True, dir_okay=False)
    ] = None,
    env: Annotated[str, typer.Option(help="doom, or a Gymnasium environment's id")] = "CartPole-v1",
    episodes: Annotated[int, typer.Option(help="Episodes, one a seed", min=1, max=1000)] = 10,
    seed: Annotated[int, typer.Option(help="First seed", min=0)] = 0,
    gif: Annotated[
        Path | None, typer.Option(help="Moving picture of the first episode, of the best tree of a search")
    ] = None,
    generations: Annotated[int, typer.Option(help="Of a search", min=1)] = 5,
    candidates: Annotated[int, typer.Option(help="Trees a generation of a search", min=1)] = 10,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address that writes the trees; else a script does")
    ] = None,
    model: Annotated[str, typer.Option(help="Model at the endpoint")] = "default",
) -> None:
    """Let a behaviour tree play Gymnasium or VizDoom, or search for a tree that plays well (2503.13356)."""
    from rich.progress import Progress

    seeds = range(seed, seed + episodes)
    try:
        field = game(env)
        if tree is not None:
            parsed = field.parse(tree.read_text(encoding="utf-8"))
            played = field.play(parsed, seeds, record=gif is not None)
            figures = {
                "tree": tree.read_text(encoding="utf-8"),
                "env": field.name,
                "seeds": list(seeds),
                "means": played.means(),
                "metrics": {name: values.tolist() for name, values in played.metrics.items()},
                "analysis": analyse(field, played),
            }
            with replace(output) as temporary:
                temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        else:
            policy: Judge = ChatJudge(endpoint, model, seed=seed) if endpoint else Mutator(field, seed)
            with Progress() as progress:
                task = progress.add_task("searching", total=generations * candidates)
                found = portal.search(
                    field, policy, seeds, generations, candidates, state=output, progress=lambda: progress.advance(task)
                )
            best = found.best()
            if not best:
                raise ValueError("no candidate could be played")
            typer.echo("means of the generations: " + ", ".join(f"{m:.2f}" for m in found.means()))
            typer.echo(best[0].text)
            played = field.play(field.parse(best[0].text), seeds[:1], record=gif is not None)
    except ParseError as e:
        raise typer.BadParameter(f"{tree}: {e}") from None
    except (ValueError, ModuleNotFoundError, JudgeError) as e:
        raise typer.BadParameter(str(e)) from None
    typer.echo(", ".join(f"{name} {mean:.2f}" for name, mean in played.means().items()))
    if gif is not None:
        _film(played.frames, gif)


def _film(frames: list[np.ndarray], path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(f) for f in frames[:600]]
    with replace(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=80, loop=0)
