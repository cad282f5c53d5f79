"""What a tree did in its games, in words: PORTAL's written analysis on five tactical axes (arXiv 2503.13356).

The paper's analysis is written by a model that watches the game. This one is written from what was recorded: what each
action changes, where the goal is gained, how often there is nothing to act on. It knows nothing of any game.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .games import Game, Played

AXES = ("Map Control", "Adaptability", "Team Coordination", "Team Aggression", "Goal Achievement")
"""The tactical axes of the paper's written analysis."""
LEAST = 12
"""Ticks behind a statement at least."""
SURE = 3.5
"""How many standard errors a gain must lie above the mean to be told."""
PLACES = 3
"""Places that are told of an action at most."""
DELAY = 2
"""A gain is put down to the actions of its own tick and of the ticks before, so many in all."""


def analyse(game: Game, played: Played) -> dict[str, str]:
    """A few sentences on each of the five axes."""
    taken = np.bincount(played.actions[played.actions >= 0], minlength=len(game.actions))
    used = taken / max(taken.sum(), 1)
    entropy = abs(float((used[used > 0] * np.log2(used[used > 0])).sum()))
    idle = [a for a, s in zip(game.actions, used, strict=True) if s == 0]
    goal = played.metrics[game.goal]
    shares = ", ".join(f"{a} {s:.0%}" for a, s in zip(game.actions, used, strict=True))
    variety = f"{entropy:.1f} bits of variety in the actions" + (f"; never used: {', '.join(idle)}." if idle else ".")
    return {
        "Map Control": " ".join([f"Actions: {shares}.", *_effects(game, played)]),
        "Adaptability": " ".join([variety, *_nothing(game, played)]),
        "Team Coordination": "One player alone.",
        "Team Aggression": " ".join(_where(game, played)) or "No action stands out.",
        "Goal Achievement": f"{game.goal} {goal.mean():.2f} on average, {goal.min():.0f} to {goal.max():.0f}.",
    }


def together(game: Game, many: Sequence[Played]) -> str:
    """What all these games show: the sentences of :func:`analyse` that need many ticks."""
    longest = max(len(p.actions) for p in many)

    def joined(name: str, fill: float) -> np.ndarray:
        arrays = [getattr(p, name) for p in many]
        return np.concatenate(
            [np.pad(a, [(0, longest - len(a)), *[(0, 0)] * (a.ndim - 1)], constant_values=fill) for a in arrays], 1
        )

    pooled = Played({}, joined("observations", 0), joined("actions", -1), joined("gains", 0))
    return " ".join([*_effects(game, pooled), *_nothing(game, pooled), *_where(game, pooled)])


def _effects(game: Game, played: Played) -> Iterator[str]:
    """By how much an action moves a feature in the median, where it moves it one way at least three times in four."""
    change = np.diff(played.observations, axis=0)
    both = (played.observations[:-1] != 0) & (played.observations[1:] != 0) & (played.actions[1:] >= 0)[..., None]
    for a, action in enumerate(game.actions):
        for f, feature in enumerate(game.features):
            moved = change[..., f][(played.actions[:-1] == a) & both[..., f]]
            middle = float(np.median(moved)) if len(moved) >= LEAST else 0.0
            if middle and np.mean(np.sign(moved) == np.sign(middle)) >= 0.75:
                yield f"{action} moves {feature} by {middle:+.3g} a tick."


def _nothing(game: Game, played: Played) -> Iterator[str]:
    """How often a feature that is 0 now and then is 0, and how often each action is taken then."""
    alive = played.actions >= 0
    for f, feature in enumerate(game.features):
        zero = alive & (played.observations[..., f] == 0)
        share = zero.sum() / max(alive.sum(), 1)
        if 0.05 <= share < 1:
            yield f"{feature} is 0 in {share:.0%} of the ticks."


def _where(game: Game, played: Played) -> Iterator[str]:
    """For each action the places where it gains clearly more than elsewhere, each told by another feature first.

    A feature that never rises, or never falls, tells the time (ammunition, health) and is no place.
    """
    change = np.diff(played.observations, axis=0)[played.actions[1:] >= 0]
    places = np.flatnonzero((change > 0).any(0) & (change < 0).any(0)).tolist()
    gains = played.gains.copy()
    for later in range(1, DELAY):
        gains[:-later] += played.gains[later:]
    for a, action in enumerate(game.actions):
        chosen = played.actions == a
        seen, gained = played.observations[chosen].astype(np.float64), gains[chosen]
        firsts = [s for f in places if (s := _split(seen, gained, [f]))]
        for first in sorted(firsts, reverse=True)[:PLACES]:
            inside = np.ones(len(gained), bool)
            tests: list[str] = []
            found: _Split | None = first
            while found is not None and len(tests) < 3:
                values = np.abs(seen[:, found.feature]) if found.size else seen[:, found.feature]
                inside &= values > found.bound if found.more else values < found.bound
                name = game.features[found.feature]
                tests.append(f"{f'abs({name})' if found.size else name} {'>' if found.more else '<'} {found.bound:.3g}")
                found = _split(seen[inside], gained[inside], places)
            here, there, place = gained[inside].mean(), gained[~inside].mean(), " and ".join(tests)
            yield f"{action} gains {here:.3f} where {place} ({inside.sum()} ticks), {there:.3f} elsewhere."


class _Split(NamedTuple):
    """A test on a feature (or on its size) that tells where the gains are larger, and how surely it does."""

    sure: float
    feature: int
    size: bool
    more: bool
    bound: float


def _split(seen: np.ndarray, gained: np.ndarray, features: Iterable[int]) -> _Split | None:
    """The test that explains most of the variance of the gains; None if none explains more than chance would."""
    best: _Split | None = None
    if len(gained) < 2 * LEAST or gained.std() == 0:
        return None
    for f in features:
        for size in (False, True) if (seen[:, f] < 0).any() else (False,):
            values = np.abs(seen[:, f]) if size else seen[:, f]
            bounds = np.unique(np.quantile(values, np.linspace(0.05, 0.95, 19)))
            inside = values[:, None] < bounds  # [ticks, bounds]
            for more, chosen in ((False, inside), (True, values[:, None] > bounds)):
                n = chosen.sum(0)
                enough = (n >= LEAST) & (n <= len(gained) - LEAST)
                if not enough.any():
                    continue
                share = n[enough] / len(gained)
                apart = gained @ chosen[:, enough] / n[enough] - gained.mean()
                sure = apart * np.sqrt(share / (1 - share) * len(gained)) / gained.std()
                at = int(sure.argmax())
                if sure[at] > (best.sure if best else SURE):
                    best = _Split(float(sure[at]), f, size, more, float(bounds[enough][at]))
    return best
