"""How many steps a built-in takes, by the sizes of its arguments."""

from __future__ import annotations

import bisect
import collections
import copy
import functools
import heapq
import math
import random
from collections.abc import Callable, Sequence
from typing import Any


def size(x: Any) -> int:
    """The length of a container, 0 of anything else."""
    try:
        return len(x)
    except TypeError:
        return 0


def log2(n: float) -> int:
    """The levels of a tree of n."""
    return max(1, int(n).bit_length())


def sorting(n: int) -> int:
    """Comparisons of a sort."""
    return n * log2(n)


Cost = Callable[[Any, Sequence[Any], Any], int]  # (the object of a method, arguments, result) -> steps


def _first(_: Any, args: Sequence[Any], __: Any) -> int:
    return size(args[0]) if len(args) == 1 else len(args)


def _result(_: Any, __: Any, result: Any) -> int:
    return size(result)


def _own(self: Any, _: Any, __: Any) -> int:
    return size(self)


def _own_and_result(self: Any, _: Any, result: Any) -> int:
    return size(self) + size(result)


def _given(_: Any, args: Sequence[Any], __: Any) -> int:
    return sum(map(size, args))


def _heap(_: Any, args: Sequence[Any], __: Any) -> int:
    return log2(size(args[0]))


def at_position(self: Any, args: Sequence[Any], _: Any) -> int:
    """What moves when something is put in or taken out at an index."""
    at = args[0] if args and isinstance(args[0], int) else -1
    return max(1, size(self) - at if at >= 0 else -at)


FUNCTIONS: dict[Any, Cost] = {
    **dict.fromkeys((sum, min, max, any, all, math.prod, math.fsum), _first),
    sorted: lambda _, __, r: sorting(len(r)),
    heapq.heapify: _first,
    **dict.fromkeys((heapq.heappush, heapq.heappop, heapq.heappushpop, heapq.heapreplace), _heap),
    **dict.fromkeys((bisect.bisect_left, bisect.bisect_right), _heap),
    **dict.fromkeys((bisect.insort_left, bisect.insort_right), _given),
    functools.reduce: lambda _, a, __: size(a[1]),
    pow: lambda _, a, __: log2(abs(a[1])) if len(a) == 3 and isinstance(a[1], int) else 1,
    math.gcd: lambda _, a, __: log2(min((abs(x) for x in a), default=0)),
    math.factorial: lambda _, a, __: a[0],
    math.comb: lambda _, a, __: a[1],
    repr: _result,
}
TYPES: dict[Any, Cost] = {
    **dict.fromkeys((list, tuple, set, frozenset, dict, bytes, bytearray, str, collections.deque), _result),
    collections.Counter: _given,
    collections.OrderedDict: _given,
    collections.defaultdict: _result,
}
TEXT = (
    "find index count rfind rindex replace split rsplit splitlines strip lstrip rstrip upper lower title capitalize "
    "swapcase casefold encode decode translate zfill ljust rjust center isdigit isalpha isalnum islower isupper "
    "partition"
)
METHODS: dict[tuple[type, str], Cost] = {
    **{
        (t, name): _own
        for t in (list, tuple, collections.deque)
        for name in ("index", "count", "remove", "copy", "reverse")
    },
    **{(t, name): _own_and_result for t in (str, bytes) for name in TEXT.split()},
    **{(t, "join"): _result for t in (str, bytes)},
    **{(t, name): _given for t in (str, bytes) for name in ("startswith", "endswith")},
    **{(t, name): at_position for t in (list,) for name in ("insert", "pop")},
    **{(t, "insert"): _own for t in (collections.deque,)},
    **{(t, name): _given for t in (list, collections.deque) for name in ("extend", "extendleft")},
    (collections.deque, "rotate"): lambda s, a, _: min(len(s), abs(a[0])) if a else 1,
    (list, "sort"): lambda s, _, __: sorting(len(s)),
    **{(t, name): _own for t in (dict, set, collections.Counter, collections.defaultdict) for name in ("copy",)},
    **{(t, "update"): _given for t in (dict, set, collections.defaultdict)},
    (dict, "fromkeys"): _result,
    **{
        (t, name): _own_and_result
        for t in (set, frozenset)
        for name in ("union", "difference", "symmetric_difference", "issubset", "difference_update")
    },
    **{
        (t, name): (lambda s, a, _: min([len(s), *map(size, a)]))
        for t in (set, frozenset)
        for name in ("intersection", "isdisjoint", "intersection_update")
    },
    **{(t, "issuperset"): _given for t in (set, frozenset)},
}
FOREIGN: dict[Any, Cost] = {
    random.shuffle: _first,
    copy.copy: _given,
    collections.Counter.most_common: lambda s, _, __: sorting(len(s)),
    heapq.nlargest: lambda _, a, __: size(a[1]) * log2(a[0]),
    heapq.nsmallest: lambda _, a, __: size(a[1]) * log2(a[0]),
}
SEQUENCES = (list, tuple, str, bytes, bytearray, collections.deque)
SIZED = {*SEQUENCES, set, frozenset, dict, collections.Counter}
CONSUMERS: set[Any] = {
    sum,
    min,
    max,
    any,
    all,
    sorted,
    functools.reduce,
    math.prod,
    math.fsum,
    heapq.nlargest,
    heapq.nsmallest,
}
CONSUMERS |= {list, tuple, set, frozenset, dict, collections.deque, collections.Counter}
CONSUMING = {"join", "extend", "extendleft", "update", "union", "difference", "intersection"}
