"""The hooks that rewritten source calls, and their count."""

from __future__ import annotations

import itertools
import operator
import sys
import types
from collections.abc import Iterable
from typing import Any

from .costs import CONSUMERS, CONSUMING, FOREIGN, FUNCTIONS, METHODS, SEQUENCES, SIZED, TYPES, at_position


class Limit(BaseException):
    """Too many steps."""


class Counter:
    """The hooks of one rewritten module, and their count."""

    def __init__(self, limit: int) -> None:
        self.limit, self.file = limit, "<target>"
        self.work = 0
        self.ticks = itertools.repeat(True, limit)
        self.tracing = False

    def hooks(self) -> dict[str, Any]:
        """By the names that the rewritten source uses."""
        return {
            "__tick__": self.ticks.__next__,
            "__call__": self.call,
            "__sized__": self.sized,
            "__in__": self.contains,
        }

    def total(self) -> int:
        """Steps so far."""
        return self.limit - operator.length_hint(self.ticks) + self.work

    def spend(self, steps: int) -> None:
        """Adds steps; raises Limit beyond the limit."""
        self.work += steps
        if self.work > self.limit:
            raise Limit

    def sized(self, x: Any) -> Any:
        """Counts the size of a value that was made, and gives it back."""
        if type(x) in SIZED:
            self.spend(len(x))
        return x

    def contains(self, x: Any, y: Any) -> bool:
        """`x in y`, up to where it is found."""
        found: bool = x in y
        if type(y) in SEQUENCES:
            self.spend(y.index(x) + 1 if found else len(y))
        return found

    def stepping(self, iterator: Iterable[Any]) -> Iterable[Any]:
        """The iterator, with a step for each item."""
        tick = self.ticks.__next__
        return (x for x in iterator if tick())

    def trace(self, _frame: Any, event: str, _arg: Any) -> Any:
        """Counts the lines of Python code that was not rewritten."""
        if event == "line":
            self.spend(1)
        return self.trace

    def call(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls, and counts what a built-in does inside."""
        kind = type(f)
        if kind is types.FunctionType or kind is types.MethodType:
            plain = f.__func__ if kind is types.MethodType else f
            if plain.__code__.co_filename == self.file:
                return f(*args, **kwargs)
            return self.foreign(plain, f, args, kwargs)
        cost, self_ = None, None
        if kind is types.BuiltinFunctionType:
            self_ = f.__self__
            if self_ is None or isinstance(self_, types.ModuleType):
                cost = FUNCTIONS.get(f)
            else:
                owner = self_ if isinstance(self_, type) else type(self_)
                cost = METHODS.get((owner, f.__name__))
        elif isinstance(f, type):
            cost = TYPES.get(f)
        method = self_ is not None and not isinstance(self_, types.ModuleType)
        if cost and (f.__name__ in CONSUMING if method else f in CONSUMERS):
            args = tuple(self.stepping(a) if hasattr(a, "__next__") else a for a in args)
        before = at_position(self_, args, None) if cost is at_position else 0
        result = f(*args, **kwargs)
        if cost:
            self.spend(before or cost(self_, args, result))
        return result

    def foreign(self, plain: Any, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A Python function from elsewhere: by its known cost, or line by line."""
        if plain in FOREIGN:
            args = tuple(self.stepping(a) if hasattr(a, "__next__") else a for a in args)
            result = f(*args, **kwargs)
            self.spend(FOREIGN[plain](getattr(f, "__self__", None), args, result))
            return result
        if self.tracing:
            return f(*args, **kwargs)
        self.tracing = True
        sys.settrace(self.trace)
        try:
            return f(*args, **kwargs)
        finally:
            sys.settrace(None)
            self.tracing = False
