"""JARVIS-VLA (arXiv 2503.16365): its tokens hold every action, and learning to see first makes imitation better."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim

from ..action_tokens import INVENTORY, ActionTokenizer, decode_actions, encode_actions
from .plots import axes


def survivors(tokenizer: ActionTokenizer) -> tuple[int, int, int]:
    """Legal joint actions that come back from their tokens, and from the environment's actions, unchanged; all legal
    ones; and the most tokens that one needs."""
    bins = tokenizer.camera
    buttons, cameras = np.divmod(np.arange((INVENTORY + 1) * bins.bins**2), bins.bins**2)
    legal = ((buttons % 2 == 1) & (buttons != INVENTORY)) == (cameras != bins.null_id)
    ids, views = buttons[legal].astype(np.int32), cameras[legal].astype(np.int32)
    tokens, lengths = tokenizer.encode(ids[:, None], views[:, None])
    read = tokenizer.decode(tokens)
    played = encode_actions(*decode_actions(ids, views, bins), bins)
    same = (read[0][:, 0] == ids) & (read[1][:, 0] == views) & (played[0] == ids) & (played[1] == views)
    return int(same.sum()), len(ids), int(lengths.max())


def post_training(seed: int, size: Any = None) -> dict[str, list[float]]:
    """Kills a game of the expert, of a small model after all three stages and after imitation alone, over seeds."""
    from . import jarvis

    size = size or jarvis.Size()
    kills: dict[str, list[float]] = {}
    for k in range(size.seeds):
        for name, mean in jarvis.run(size, size.seeds * seed + k):
            kills.setdefault(name, []).append(mean)
    return kills


def claim(size: str, seed: int, out: Path) -> Claim:
    """Every legal joint action of both vocabularies, and the three stages at the size of a toy; the sizes are the same.

    Without torch or VizDoom only the tokens are measured."""
    paper, paper_all, paper_longest = survivors(ActionTokenizer(51))
    program, program_all, program_longest = survivors(ActionTokenizer(75))
    measured = {
        "share that survives, 51 tokens": (paper / paper_all, 0.0),
        "share that survives, 75 tokens": (program / program_all, 0.0),
        "most tokens of an action, 51": (float(paper_longest), 0.0),
        "most tokens of an action, 75": (float(program_longest), 0.0),
    }
    holds, plot, played = paper == paper_all and program == program_all, None, ""
    if find_spec("torch") and find_spec("vizdoom"):
        kills = post_training(seed)
        measured |= {f"kills, {name}": (float(np.mean(k)), float(np.std(k))) for name, k in kills.items()}
        holds = holds and np.mean(kills["all three stages"]) > np.mean(kills["imitation alone"])
        plot = _plot(kills, out / "post_training.png")
        played = (
            " A model of some 840,000 parameters plays VizDoom's defend_the_center with keys and mouse on 10 seeds: "
            "after knowledge as text, questions about 1,500 frames and 150 frames of an expert; and after as many "
            "steps of imitation alone, all of it trained. The spread is the standard deviation over two runs."
        )
    return Claim(
        paper="2503.16365",
        claim="51 tokens hold every keyboard and mouse action; post-training on vision and language before imitation "
        "makes a better player.",
        protocol=f"all {paper_all:,} legal joint actions of VPT's rules with 11 camera bins an axis, to tokens and "
        f"back and to environment actions and back; likewise {program_all:,} with the program's 75 tokens and 21 bins."
        f"{played} Success rates in Minecraft are not measured here",
        measured=measured,
        holds=bool(holds),
        plot=plot,
    )


def _plot(kills: dict[str, list[float]], path: Path) -> Path:
    with axes(path, width=6, height=4) as ax:
        bars = ax.bar(list(kills), [float(np.mean(k)) for k in kills.values()], color=["#bbbbbb", "#7dbb7d", "#d98880"])
        ax.bar_label(bars, fmt="{:.1f}")
        for i, k in enumerate(kills.values()):
            ax.plot([i] * len(k), k, "k.")
        ax.set(ylabel="kills a game", title="defend_the_center with keys and mouse")
    return path
