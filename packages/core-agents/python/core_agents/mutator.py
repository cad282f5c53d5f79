"""A scripted policy for PORTAL's loop: it reads the trees and the written analysis in a request and writes a new tree.

It stands in for the paper's language model. All that it knows of a game, but for the scales of some features, stands in
the request: the trees, and what :mod:`core_agents.tactics` says of them. Some changes are random, some answer one
of its sentences:

* "attack gains 0.4 where abs(offset) < 0.1": attack there first, or there only (aim before shooting, save bullets);
* "left moves offset by +0.2, right by -0.2": bring offset to where another action gains, by a threshold, or on until it
  has crossed a second one (hysteresis);
* "enemies is 0 in 30 % of the ticks": do something else while there is nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .games import Game
from .judge import Message, Reply

FENCE = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
"""A text between fences, as language models write them."""
_GAINS = re.compile(r"(\w+) gains (-?[\d.]+) where (.+?) \((\d+) ticks\), (-?[\d.]+) elsewhere")
_MOVES = re.compile(r"(\w+) moves (\w+) by ([+-][\d.e+-]+) a tick")
_NOTHING = re.compile(r"(\w+) is 0 in (\d+)% of the ticks")
_TEST = re.compile(r"(abs\()?(\w+)\)? ([<>]) ([\d.e+-]+)")

Block = list[str]
Edit = Callable[[list[Block]], list[Block]]


class Mutator:
    """Random short trees at first; later changes of the trees in the request, picked by rank, and new trees that are
    put together from the analysis alone.

    The same request and seed give the same answer. ``chance`` of an answer that is a new tree; ``reads``: the share of
    changes that answer the analysis, 0 for a search that does not read it.
    """

    def __init__(self, game: Game, seed: int = 0, chance: float = 0.3, reads: float = 0.75) -> None:
        self.game, self.seed, self.chance, self.reads = game, seed, chance, reads
        scales = {"offset": 0.6, "ammo": 26.0, "health": 100.0, "enemies": 3.0}
        self._scales = [scales.get(name, 1.0) for name in game.features]

    def ask(self, messages: Sequence[Message], top_logprobs: int = 0) -> Reply:
        """A tree between fences."""
        asked = json.dumps([self.seed, *messages], sort_keys=True)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "little"))
        said = str(messages[0]["content"])
        parents = [m.strip("\n").split("\n") for m in FENCE.findall(said)]
        advice = Advice(self.game, said) if self.reads else None
        if not parents or rng.random() < self.chance:
            lines = ["Selector: root", "    " + self._action(rng)]
            if advice and advice.gains and rng.random() < self.reads:
                for edit in advice.plan(rng):
                    lines = _edit(lines, edit)
            else:
                for _ in range(int(rng.integers(2, 5))):
                    lines = _edit(lines, lambda blocks: [self._branch(rng), *blocks])
        else:
            lines = parents[min(int(rng.geometric(0.5)) - 1, len(parents) - 1)]
            for _ in range(int(rng.integers(1, 3))):
                answer = advice.answer(rng) if advice and rng.random() < self.reads else None
                lines = _edit(lines, answer) if answer is not None else self._change(rng, lines)
        return Reply("```\n" + "\n".join(lines) + "\n```")

    # ---- what chance suggests ------------------------------------------------------------------------------------

    def _action(self, rng: np.random.Generator) -> str:
        return f"Action: {rng.choice(self.game.actions)}"

    def _test(self, rng: np.random.Generator) -> str:
        k = int(rng.integers(len(self.game.features)))
        number = rng.uniform(0 if self._scales[k] >= 3 else -1, 1) * self._scales[k]
        return f"{self.game.features[k]} {rng.choice(['<', '>'])} {number:.3g}"

    def _branch(self, rng: np.random.Generator) -> Block:
        return _guarded(self._test(rng), self._action(rng))

    def _change(self, rng: np.random.Generator, lines: list[str]) -> list[str]:
        """One change of a selector of guarded actions: a number, a test, an action, a branch in, out or moved."""
        kind = rng.choice(["number", "test", "action", "in", "out", "order"], p=[0.3, 0.1, 0.15, 0.15, 0.15, 0.15])

        def change(blocks: list[Block]) -> list[Block]:
            pick = int(rng.integers(max(len(blocks), 1)))
            if kind == "in" or not blocks:
                return [*blocks[:pick], self._branch(rng), *blocks[pick:]]
            if kind == "out" and len(blocks) > 1:
                return [*blocks[:pick], *blocks[pick + 1 :]]
            if kind == "order":
                rest = [*blocks[:pick], *blocks[pick + 1 :]]
                at = int(rng.integers(len(blocks)))
                return [*rest[:at], blocks[pick], *rest[at:]]
            changed = [self._rewritten(rng, line, kind) for line in blocks[pick]]
            return [*blocks[:pick], changed, *blocks[pick + 1 :]]

        return _edit(lines, change)

    def _rewritten(self, rng: np.random.Generator, line: str, kind: str) -> str:
        indent = line[: len(line) - len(line.lstrip())]
        if "Action:" in line and kind == "action":
            return indent + self._action(rng)
        if "Condition:" in line and kind == "test":
            return f"{indent}Condition: {self._test(rng)}"
        if "Condition:" in line and kind == "number":
            head, number = line.rsplit(" ", 1)
            return f"{head} {float(number) * rng.normal(1, 0.5) + rng.normal(0, 0.03):.3g}"
        return line


class Advice:
    """The sentences of a request's analysis, and changes of a tree that answer them.

    ``gains``: (action, place, how much it gains there and how sure that is) from the largest down; ``moves``: by how
    much an action moves a feature; ``nothing``: features that are 0 now and then.
    """

    def __init__(self, game: Game, said: str) -> None:
        self.actions = game.actions
        found = {
            (action, where): (float(here) - float(there)) * float(ticks) ** 0.25
            for action, here, where, ticks, there in _GAINS.findall(said)
            if action in game.actions
        }
        self.gains = sorted(((a, w, g) for (a, w), g in found.items() if g > 0), key=lambda x: (-x[2], x))
        self.moves = {(a, f): float(by) for a, f, by in _MOVES.findall(said)}
        self.nothing = sorted({f for f, _ in _NOTHING.findall(said)})

    def plan(self, rng: np.random.Generator) -> list[Edit]:
        """A tree from its goal backwards: act where it gains, get there, look around while there is nothing; last, what
        gains wherever it may be, or another action."""
        action, where = self._gain(rng)
        last = action if rng.random() < 0.5 else str(rng.choice(self.actions))
        edits: list[Edit] = [lambda _: [[f"    Action: {last}"]]]
        if self.nothing and rng.random() < 0.8:
            edits.append(self._look(rng))
        place = _varied(where, rng)
        edits.append(lambda blocks: [_guarded(place, f"Action: {action}"), *blocks])
        return edits + [partial(_after, where=place, steer=way) for way in self._ways(where, rng) if rng.random() < 0.8]

    def answer(self, rng: np.random.Generator) -> Edit | None:
        """A change that answers one sentence, picked at random; None if there is nothing to answer."""
        options: list[Edit] = [self._look(rng)] if self.nothing else []
        if self.gains:
            action, where = self._gain(rng)
            place = _varied(where, rng)
            options.append(lambda blocks: [_guarded(place, f"Action: {action}"), *blocks])
            options.append(lambda blocks: _only(blocks, action, place))
            options.append(lambda blocks: [*blocks[:-1], [f"    Action: {action}"]])
            options += [partial(_after, where=place, steer=way) for way in self._ways(where, rng)]
        return options[int(rng.integers(len(options)))] if options else None

    def _gain(self, rng: np.random.Generator) -> tuple[str, str]:
        share = np.array([g for *_, g in self.gains])
        action, where, _ = self.gains[int(rng.choice(len(share), p=share / share.sum()))]
        return action, where

    def _look(self, rng: np.random.Generator) -> Edit:
        """While a feature is 0: one action, but not the one that gains most."""
        others = [a for a in self.actions if a not in {a for a, *_ in self.gains[:1]}] or self.actions
        block = _guarded(f"{rng.choice(self.nothing)} == 0", f"Action: {rng.choice(others)}")
        return lambda blocks: [block, *blocks]

    def _ways(self, where: str, rng: np.random.Generator) -> list[list[Block]]:
        """For each feature that is bounded in that place and that actions move: how to bring it between its bounds."""
        out: list[list[Block]] = []
        for feature, (low, high) in _bounds(where).items():
            wide = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))  # mostly well inside that place
            inner = rng.uniform(0, 1) if rng.random() < 0.5 else None
            steer = []
            for bound, sign, op in ((low, 1, "<"), (high, -1, ">")):
                by = {a: d * sign for (a, f), d in self.moves.items() if f == feature and d * sign > 0}
                if np.isfinite(bound) and by:
                    action = max(by, key=lambda a: by[a])
                    on = "" if inner is None else f" while {feature} {op} {bound * wide * inner:.3g}"
                    steer.append(_guarded(f"{feature} {op} {bound * wide:.3g}", f"Action: {action}{on}"))
            if steer:
                out.append(steer)
        return out


def _varied(where: str, rng: np.random.Generator) -> str:
    """The place told by some of its tests only, and with bounds that are drawn in: what nobody has tried yet has not
    been seen to gain."""
    tests = where.split(" and ")
    kept = [t for t in tests if rng.random() < 0.6] or [tests[int(rng.integers(len(tests)))]]
    for i, test in enumerate(kept):
        head, bound = test.rsplit(" ", 1)
        if rng.random() < 0.5:
            kept[i] = f"{head} {float(bound) * np.exp(rng.uniform(np.log(0.2), 0)):.3g}"
    return " and ".join(kept)


def _bounds(where: str) -> dict[str, tuple[float, float]]:
    """The bounds that a place sets to features: "abs(x) < 2 and y > 1" -> {x: (-2, 2), y: (1, inf)}."""
    out: dict[str, tuple[float, float]] = {}
    for size, feature, op, text in _TEST.findall(where):
        low, high = out.get(feature, (-np.inf, np.inf))
        number = float(text)
        if op == "<":
            out[feature] = max(low, -number if size else low), min(high, number)
        elif not size:
            out[feature] = max(low, number), high
    return out


def _guarded(test: str, action: str) -> Block:
    return [f"    Condition: {test}", f"        {action}"]


def _edit(lines: list[str], change: Callable[[list[Block]], list[Block]]) -> list[str]:
    """Changes the branches below the root of a tree's text."""
    heads = [i for i, line in enumerate(lines) if re.match(r"    \S", line)]
    ends = [*heads[1:], len(lines)]
    blocks = [lines[a:b] for a, b in zip(heads, ends, strict=True)]
    root = lines[: heads[0]] if heads else ["Selector: root"]
    changed = change(blocks or [["    " + line.lstrip() for line in lines]])
    unique = [b for i, b in enumerate(changed) if b not in changed[:i]]
    return root + [line for block in unique for line in block]


def _does(block: Block, action: str) -> bool:
    return any(re.match(rf"\s*Action: {re.escape(action)}\b", line) for line in block)


def _only(blocks: list[Block], action: str, where: str) -> list[Block]:
    """The action in that place first and nowhere else."""
    return [_guarded(where, f"Action: {action}"), *(b for b in blocks if not _does(b, action))]


def _after(blocks: list[Block], where: str, steer: list[Block]) -> list[Block]:
    """Puts branches behind that with the test, or first."""
    at = next((i + 1 for i, b in enumerate(blocks) if b[0] == f"    Condition: {where}"), 0)
    return [*blocks[:at], *steer, *blocks[at:]]
