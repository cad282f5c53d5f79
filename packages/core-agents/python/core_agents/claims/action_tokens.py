"""JARVIS-VLA (arXiv 2503.16365): 51 tokens hold every keyboard and mouse action."""

from pathlib import Path

import numpy as np
from core_registry.claims import Claim

from ..action_tokens import INVENTORY, ActionTokenizer, decode_actions, encode_actions


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


def claim(size: str, seed: int, out: Path) -> Claim:
    """Every legal joint action of both vocabularies; the sizes are the same and nothing is drawn."""
    paper, paper_all, paper_longest = survivors(ActionTokenizer(51))
    program, program_all, program_longest = survivors(ActionTokenizer(75))
    return Claim(
        paper="2503.16365",
        claim="51 tokens, 22 for the camera and 29 for the buttons, hold every keyboard and mouse action.",
        protocol=f"all {paper_all:,} legal joint actions of VPT's rules with 11 camera bins an axis, to tokens and "
        f"back and to environment actions and back; likewise {program_all:,} with the program's 75 tokens and 21 bins. "
        "Success rates in Minecraft are not measured here",
        measured={
            "share that survives, 51 tokens": (paper / paper_all, 0.0),
            "share that survives, 75 tokens": (program / program_all, 0.0),
            "most tokens of an action, 51": (float(paper_longest), 0.0),
            "most tokens of an action, 75": (float(program_longest), 0.0),
        },
        holds=paper == paper_all and program == program_all,
    )
