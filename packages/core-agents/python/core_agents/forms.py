"""What the written forms of a tree (text, JSON, XML) share: limits, errors, and what their words stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import behaviour_tree as bt
from .behaviour_tree import expressions
from .behaviour_tree.expressions import ExpressionError, suggest
from .behaviour_tree.subtrees import Argument

MAX_DEPTH = 256
"""Levels of a tree at most, as in the machine."""
MAX_LENGTH = 1 << 24
"""Characters of a text at most."""
MAX_CALLS = 64
"""Sub-trees that call each other nest at most so deep."""


class ParseError(ValueError):
    """A text that is no tree. ``line`` and ``column`` count from 1; ``hint`` says how to repair it."""

    def __init__(self, message: str, line: int, column: int, hint: str) -> None:
        super().__init__(f"line {line}, column {column}: {message}; {hint}")
        self.message, self.line, self.column, self.hint = message, line, column, hint


PLAIN: dict[str, Callable[[str, bt.Node], bt.Node]] = {
    "Inverter": bt.Inverter,
    "FailureIsRunning": bt.FailureIsRunning,
    "FailureIsSuccess": bt.FailureIsSuccess,
    "RunningIsFailure": bt.RunningIsFailure,
    "RunningIsSuccess": bt.RunningIsSuccess,
    "SuccessIsFailure": bt.SuccessIsFailure,
    "SuccessIsRunning": bt.SuccessIsRunning,
    "ForceSuccess": bt.ForceSuccess,
    "ForceFailure": bt.ForceFailure,
    "KeepRunningUntilFailure": bt.KeepRunningUntilFailure,
    "not": bt.Inverter,
}
"""Decorators that have nothing but a name and a child, BehaviorTree.CPP's names too."""
COUNTED: dict[str, tuple[Callable[[str, bt.Node, int], bt.Node], int]] = {
    "Repeat": (bt.Repeat, 1),
    "Retry": (bt.Retry, 1),
    "Timeout": (bt.Timeout, 0),
}
"""Decorators with a count, and the least that it may be (``Repeat``: also -1)."""
POLICIES = {p.name.lower(): p for p in bt.OneShotPolicy}
"""OneShot's policies as they are written."""
PARALLEL: dict[str, bt.ParallelPolicy.SuccessOnAll | bt.ParallelPolicy.SuccessOnOne] = {
    "all": bt.ParallelPolicy.SuccessOnAll(False),
    "all, synchronise": bt.ParallelPolicy.SuccessOnAll(True),
    "one": bt.ParallelPolicy.SuccessOnOne(),
}
"""Parallel's policies as they are written."""
STATUSES = {s.name: s for s in (bt.SUCCESS, bt.FAILURE, bt.RUNNING)}
"""What an action may end with."""


def integer(text: str) -> int | None:
    """A number of at most nine digits, None for any other text."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


@dataclass(frozen=True)
class Scope:
    """What the names in conditions and actions stand for; ``ports`` hide features and actions."""

    features: Mapping[str, int]
    actions: Mapping[str, int]
    ports: tuple[str, ...] = ()

    def feature(self, name: str) -> expressions.Expression | None:
        """What a name in a condition stands for."""
        if name in self.ports:
            return bt.Port(name)
        return bt.Feature(self.features[name]) if name in self.features else None

    def parser(self, source: str, at: int = 0) -> expressions.Parser:
        """A reader of conditions from position ``at`` of a text."""
        return expressions.Parser(source, at, self.feature, (*self.ports, *self.features))

    def action(self, word: str) -> int | bt.Port | None:
        """What a word stands for as an action, None if for nothing."""
        if word in self.ports:
            return bt.Port(word)
        number = integer(word)
        known = -1 if word == "none" else number if number is not None and number >= 0 else None
        return self.actions.get(word, known)

    def argument(self, text: str, kind: str | None) -> Argument:
        """What a call gives a port of a kind (see :class:`~.subtrees.Definition`); of a port that the body does not use
        a whole number is an action. Raises ExpressionError."""
        if kind == "action" or (kind is None and re.fullmatch(r"\d+|none", text)):
            found = self.action(text)
            if found is None:
                raise ExpressionError(f"unknown action '{text}'", 0, action_hint(text, self.actions))
            return found
        parser = self.parser(text)
        value = parser.expression()
        if isinstance(value, bt.Operation) or parser.peek():
            raise ExpressionError(
                f"'{text}' is no value of a port", 0, "give a feature, a number or a port of the caller"
            )
        return value


def action_hint(word: str, actions: Mapping[str, int]) -> str:
    """How to repair an unknown action."""
    return suggest(word, ("none", *actions)) if actions else "write a number or 'none'"
