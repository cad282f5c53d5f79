"""VizDoom's ``defend_the_center`` played as Minecraft is: with keys and a mouse, from what is on the screen.

Of the joint actions of :mod:`core_agents.action_tokens` it obeys ``attack`` and the second camera angle (degrees to the
right a tick of 4/35 s); the others do nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .action_tokens import BUTTONS
from .games import open_doom, see

HEIGHT, WIDTH = 24, 160
"""Of the images: the screen about the horizon."""
Act = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(images uint8 [B, 3, HEIGHT, WIDTH], features float32 [B, 6] of DoomGame) -> (buttons bool [B, 20], camera float32
[B, 2])."""


@dataclass
class Episodes:
    """``kills`` float64 [seeds]; of all ticks, if they were kept: images uint8 [N, 3, HEIGHT, WIDTH], features float32
    [N, 6], buttons bool [N, 20], camera float32 [N, 2]."""

    kills: np.ndarray
    images: np.ndarray
    features: np.ndarray
    buttons: np.ndarray
    camera: np.ndarray


def play(act: Act, seeds: Sequence[int], ticks: int = 400, keep: bool = False) -> Episodes:
    """One episode a seed, at most so many ticks long; the games run side by side."""
    kills = np.zeros(len(seeds))
    kept: list[tuple[np.ndarray, ...]] = []
    with open_doom("defend_the_center", seeds, ("ATTACK", "TURN_LEFT_RIGHT_DELTA")) as games:
        playing = list(range(len(games)))
        for _ in range(ticks):
            if not playing:
                break
            states = [games[i].get_state() for i in playing]
            images = np.stack([s.screen_buffer[52:76].transpose(2, 0, 1) for s in states])
            features = np.array([see(s) for s in states], np.float32)
            buttons, camera = act(images, features)
            if keep:
                kept.append((images, features, buttons, camera))
            for i, press, turn in zip(list(playing), buttons[:, BUTTONS.index("attack")], camera[:, 1], strict=True):
                games[i].make_action([float(press), float(turn) / 4], 4)
                kills[i] = games[i].get_total_reward() + games[i].is_player_dead()  # death costs 1
                if games[i].is_episode_finished():
                    playing.remove(i)
    empty = np.empty(0)
    return Episodes(kills, *(np.concatenate(c) for c in zip(*kept, strict=True)) if kept else (empty,) * 4)


def expert(_: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns to the largest enemy and shoots when it is in the way; looks around to the right while there is none.

    It reads the features, not the image; the screen is 90 degrees wide.
    """
    angle = np.degrees(np.arctan(features[:, 0]))
    sight = features[:, 3] > 0
    buttons = np.zeros((len(features), len(BUTTONS)), bool)
    buttons[:, BUTTONS.index("attack")] = sight & (np.abs(angle) < 2.5) & (features[:, 4] > 0)
    turn = np.where(sight, np.clip(angle, -10, 10), 10.0)
    return buttons, np.stack([np.zeros(len(turn)), turn], 1).astype(np.float32)
