"""Inputs of a given size, by the types of the arguments."""

from __future__ import annotations

import copy
import math
import random
import string
import types
import typing
from collections.abc import Mapping
from typing import Any

VARIANTS = ("random", "sorted", "reversed", "same", "distinct")


def kind_of_type(hint: Any, name: str) -> Any:
    """A kind ("int", ["list", "int"], ...) from a type hint."""
    origin, inner = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not ...]
    if hint in (int, float, str, bool):
        return hint.__name__
    if origin in (types.UnionType, typing.Union):
        return kind_of_type(next(a for a in inner if a is not type(None)), name)
    base = origin or hint
    for kind in (list, tuple, set, frozenset, dict):
        if isinstance(base, type) and issubclass(kind, base) and base is not object:
            default: list[Any] = [str, int] if kind is dict else [int]
            return [kind.__name__, *(kind_of_type(a, name) for a in (inner or default))]
    raise ValueError(f"argument '{name}': no inputs are known for the type {hint!r}; give an example")


def kind_of_example(x: Any, name: str) -> Any:
    """A kind from an example."""
    if isinstance(x, (bool, int, float, str)):
        return type(x).__name__
    if isinstance(x, Mapping):
        return ["dict", *([kind_of_example(v, name) for v in next(iter(x.items()))] if x else ["str", "int"])]
    if isinstance(x, (list, tuple, set, frozenset)):
        return [type(x).__name__, kind_of_example(next(iter(x)), name) if x else "int"]
    raise ValueError(f"argument '{name}': no inputs are known for an example of type {type(x).__name__}")


def growable(kind: Any) -> bool:
    """Whether an input of this kind has a size."""
    return bool(kind != "bool")


def largest(kind: Any) -> int:
    """The largest size that is tried."""
    if kind in ("int", "float"):
        return 1 << 20
    return (
        128 if isinstance(kind, list) and any(isinstance(k, list) for k in kind[1:]) and kind[0] != "dict" else 1 << 13
    )


def variants(kind: Any) -> tuple[str, ...]:
    """The variants that make a difference to inputs of this kind."""
    if isinstance(kind, str) and kind != "str":
        return ("random", "distinct") if kind != "bool" else ("random",)
    if kind[0] == "dict":
        return ("random",)
    return VARIANTS


def is_prime(n: int) -> bool:
    """By trial division."""
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def item(kind: Any, n: int, rng: random.Random) -> Any:
    """One element of a container of n; numbers are below n, so that they can be indices."""
    if kind == "str":
        return "".join(rng.choices(string.ascii_lowercase, k=6))
    if kind == "bool":
        return rng.random() < 0.5
    if kind in ("int", "float"):
        value = rng.randrange(max(1, n))
        return value + 0.5 if kind == "float" else value
    return make(kind, n if kind[0] in ("list", "tuple") else 3, "random", rng)


def make(kind: Any, n: int, variant: str, rng: random.Random) -> Any:
    """An input of size n: the value of a number, the length of anything else; nested lists are square."""
    if kind in ("int", "float"):
        value = n
        if variant == "distinct":
            value = next((p for p in range(n, 1, -1) if is_prime(p)), n)
        return value if kind == "int" else value + 0.5
    if kind == "bool":
        return True
    if kind == "str":
        letters = ["a"] * n if variant == "same" else rng.choices(string.ascii_lowercase, k=n)
        return "".join(ordered(letters, variant))
    if kind[0] == "dict":
        few = kind[2] if not isinstance(kind[2], list) else None
        keys = range(n) if kind[1] == "int" else [f"k{i}" for i in range(n)]
        return {k: item(kind[2], n, rng) if few else [rng.randrange(max(1, n)) for _ in range(2)] for k in keys}
    inner = kind[1]
    if inner in ("int", "float") and variant == "distinct":
        values: list[Any] = list(range(1, n + 1))
        rng.shuffle(values)
    elif inner in ("int", "float"):
        values = [1] * n if variant == "same" else [rng.randrange(4 * n + 1) for _ in range(n)]
    else:
        one = item(inner, n, rng) if variant == "same" else None
        values = [copy.deepcopy(one) if variant == "same" else item(inner, n, rng) for _ in range(n)]
    if inner == "float":
        values = [v + 0.5 for v in values]
    values = ordered(values, variant)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind[0]](values)


def ordered(values: list[Any], variant: str) -> list[Any]:
    """Sorted or reversed, if the variant says so."""
    return sorted(values, reverse=variant == "reversed") if variant in ("sorted", "reversed") else values
