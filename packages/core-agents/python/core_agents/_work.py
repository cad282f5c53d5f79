"""Counts the work of a function on growing inputs; a program that runs inside the sandbox, with the standard library.

The function's source is rewritten: each entry of a function and each turn of a loop or comprehension is one step, and
what a built-in does inside (sorting, searching, copying) is counted by the sizes of its arguments. So a count depends
on source and input only, not on the machine or its load. Reads a JSON object from standard input, writes JSON lines.
"""

from __future__ import annotations

import ast
import bisect
import collections
import copy
import ctypes
import functools
import heapq
import itertools
import json
import math
import operator
import os
import platform
import random
import resource
import string
import struct
import sys
import time
import tracemalloc
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# ---- the rewriting -------------------------------------------------------------------------------------------

FRAME_DEPENDENT = {"super", "locals", "globals", "vars", "eval", "exec", "dir"}
"""Called as they are: they look at the frame that calls them."""


def _hook(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(f"__{name}__", ast.Load()), list(args), [])


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


class Counting(ast.NodeTransformer):
    """Puts a step into every function, loop and comprehension, and built-ins behind hooks."""

    def _stepped(self, node: Any) -> Any:
        self.generic_visit(node)
        documented = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
        node.body.insert(int(documented), ast.Expr(_hook("tick")))
        return node

    visit_FunctionDef = visit_For = visit_While = _stepped  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        """A step, then the body."""
        self.generic_visit(node)
        node.body = ast.BoolOp(ast.And(), [_hook("tick"), node.body])
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        """A step for each turn, before the conditions."""
        self.generic_visit(node)
        node.ifs.insert(0, _hook("tick"))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`f(x)` becomes `__call__(f, x)`."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in FRAME_DEPENDENT:
            return node
        return ast.Call(ast.Name("__call__", ast.Load()), [node.func, *node.args], node.keywords)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Sequences and sets that an operator makes have a size."""
        self.generic_visit(node)
        makes = isinstance(node.op, (ast.Add, ast.Mult, ast.Sub, ast.BitOr, ast.BitAnd, ast.BitXor))
        mixed = isinstance(node.op, ast.Mult)
        plain = (_number(node.left) or _number(node.right)) and not mixed
        return node if plain or not makes or (_number(node.left) and _number(node.right)) else _hook("sized", node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """What is added in place counts."""
        self.generic_visit(node)
        if not _number(node.value):
            node.value = _hook("sized", node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """What goes into a slice counts."""
        self.generic_visit(node)
        if any(isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Slice) for t in node.targets):
            node.value = _hook("sized", node.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """A slice is a copy."""
        self.generic_visit(node)
        return _hook("sized", node) if isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Slice) else node

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        """What is unpacked is copied."""
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _hook("sized", node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Text that is put together; its parts stay as they are."""
        return _hook("sized", node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """`x in y` asks `__in__`."""
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], (ast.In, ast.NotIn)):
            return node
        asked = _hook("in", node.left, node.comparators[0])
        return ast.UnaryOp(ast.Not(), asked) if isinstance(node.ops[0], ast.NotIn) else asked

    def visit_Delete(self, node: ast.Delete) -> Any:
        """Deleting from a list moves the rest."""
        self.generic_visit(node)
        held = [t.value for t in node.targets if isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name)]
        return [*(ast.Expr(_hook("sized", ast.Name(name.id, ast.Load()))) for name in held), node]

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Refused."""
        raise SyntaxError(f"line {node.lineno}: asynchronous functions are not analysed")


# ---- what built-ins cost -------------------------------------------------------------------------------------


class Limit(BaseException):
    """Too many steps."""


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


def _position(self: Any, args: Sequence[Any], _: Any) -> int:
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
    **{(t, name): _position for t in (list,) for name in ("insert", "pop")},
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
        before = _position(self_, args, None) if cost is _position else 0
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


# ---- inputs --------------------------------------------------------------------------------------------------

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


# ---- the sandbox's inner half ---------------------------------------------------------------------------------

# Forbidden system calls: new processes, programs, sockets, signals, changes of files, limits and namespaces.
_X86 = "41 42 57 58 59 62 76 77 82 83 84 85 86 87 88 90 91 92 93 94 101 109 112 132 133 155 160 161 165 166 169 175"
_X86 += " 188 189 197 198 200 234 235 250 258 259 260 261 263 264 265 266 268 272 280 302 308 311 316 321 322 424"
_X86 += " 425 434 438 452"
_ARM = "5 6 14 15 33 34 35 36 37 38 39 40 41 45 46 51 52 53 54 55 88 97 105 117 129 130 131 142 154 157 164 198 203 217"
_ARM += " 221 261 268 271 276 280 281 424 425 434 438 452"
SYSTEMS = {  # architecture: audit number, forbidden, (open, the place of its flags), clone
    "x86_64": (0xC000003E, _X86, ((257, 2), (2, 1)), 56),
    "aarch64": (0xC00000B7, _ARM, ((56, 2),), 220),
}


def restrict() -> bool:
    """Forbids this process to start others, to use sockets and to write files; False where that is not known."""
    system = SYSTEMS.get(platform.machine())
    if sys.platform != "linux" or system is None or sys.byteorder != "little":
        return False
    audit, forbidden, opens, clone = system
    deny, missing, allow = 0x00050000 | 1, 0x00050000 | 38, 0x7FFF0000
    load, equal, bits, greater, give = 0x20, 0x15, 0x45, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, 0), (load, 0, 0, 0)]
    program += [(greater, 0, 1, 0x40000000), (give, 0, 0, deny)]
    for number in map(int, forbidden.split()):
        program += [(equal, 0, 1, number), (give, 0, 0, deny)]
    for number in (435, 437):  # clone3 and openat2 hide their flags: glibc falls back
        program += [(equal, 0, 1, number), (give, 0, 0, missing)]
    for number, place in opens:  # opening for writing
        program += [(equal, 0, 4, number), (load, 0, 0, 16 + 8 * place), (bits, 0, 1, 0o3 | 0o100), (give, 0, 0, deny)]
        program += [(give, 0, 0, allow)]
    program += [(equal, 0, 4, clone), (load, 0, 0, 16), (bits, 1, 0, 0x10000), (give, 0, 0, deny), (give, 0, 0, allow)]
    program += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    return bool(libc.prctl(38, 1, None, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0)


# ---- measuring -----------------------------------------------------------------------------------------------

SIZES = [*range(2, 13), *(round(2 ** (k / 2)) for k in range(8, 41))]
SMALL = 16
"""The size of the other arguments while one grows."""
ENOUGH, LIMIT = 60_000, 400_000
"""Steps after which no larger input is tried, and after which a run is given up."""
TIMES = 3


class Target:
    """The function, as it is and rewritten, and the kinds of its arguments."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.seed = job["seed"]
        tree = ast.parse(job["source"])
        self.counted = compile(ast.fix_missing_locations(Counting().visit(tree)), "<target>", "exec")
        self.name = job["function"]
        self.plain = self.load(compile(job["source"], "<target>", "exec"), {}, self.name)
        inner = getattr(self.plain, "__wrapped__", self.plain)
        names = list(inner.__code__.co_varnames[: inner.__code__.co_argcount])
        required = len(names) - len(inner.__defaults__ or ())
        hints = typing.get_type_hints(inner)
        example = job["example"]
        if example is not None and not required <= len(example) <= len(names):
            raise ValueError(f"{self.name} takes {len(names)} arguments, the example has {len(example)}")
        if example is None:
            for name in names[:required]:
                if name not in hints:
                    raise ValueError(f"argument '{name}' of {self.name} has no type hint; give an example")
            self.kinds = [kind_of_type(hints[n], n) for n in names[:required]]
        else:
            self.kinds = [kind_of_example(x, n) for x, n in zip(example, names, strict=False)]
        self.names = names[: len(self.kinds)]

    @staticmethod
    def load(code: types.CodeType, hooks: dict[str, Any], name: str) -> Any:
        """Runs the module; the function out of it."""
        scope: dict[str, Any] = {"__name__": "target", **hooks}
        exec(code, scope)
        function = scope.get(name)
        if not isinstance(getattr(function, "__wrapped__", function), types.FunctionType):
            raise ValueError(f"the source has no function called '{name}'")
        return function

    def inputs(self, sizes: Sequence[int], variant: str) -> list[Any]:
        """Arguments of these sizes; the same for the same sizes and variant."""
        rngs = (random.Random(f"{self.seed} {variant} {i} {n}") for i, n in enumerate(sizes))
        return [make(k, n, variant, rng) for k, n, rng in zip(self.kinds, sizes, rngs, strict=True)]

    def count(self, sizes: Sequence[int], variant: str) -> int | None:
        """Steps of one run; None if there are too many."""
        counter = Counter(LIMIT)
        function = self.load(self.counted, counter.hooks(), self.name)
        start = counter.total()
        arguments = self.inputs(sizes, variant)
        try:
            result = function(*arguments)
            if isinstance(result, types.GeneratorType):
                collections.deque(result, 0)
        except (Limit, RecursionError):
            return None
        except StopIteration:
            if operator.length_hint(counter.ticks):
                raise
        except RuntimeError:
            if operator.length_hint(counter.ticks):
                raise
        return None if not operator.length_hint(counter.ticks) else counter.total() - start

    def seconds(self, sizes: Sequence[int], variant: str) -> float:
        """CPU time of the function as it is: the least of some runs."""
        least = math.inf
        for _ in range(TIMES):
            arguments = self.inputs(sizes, variant)
            start = time.thread_time()
            self.plain(*arguments)
            least = min(least, time.thread_time() - start)
        return least

    def bytes(self, sizes: Sequence[int], variant: str) -> int:
        """The most memory that is held at once beside the arguments, and half a kilobyte for each call that is open."""
        arguments, depth, deepest = self.inputs(sizes, variant), 0, 0

        def profile(_frame: Any, event: str, _arg: Any) -> None:
            nonlocal depth, deepest
            if event == "call":
                depth += 1
                deepest = max(deepest, depth)
            elif event == "return":
                depth -= 1

        sys.setprofile(profile)
        try:
            self.plain(*copy.deepcopy(arguments))
        finally:
            sys.setprofile(None)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            result = self.plain(*arguments)
            if isinstance(result, types.GeneratorType):
                collections.deque(result, 0)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        return max(0, peak) + 512 * deepest


def series(
    target: Target, growing: Sequence[int], tried: Iterable[str], say: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Steps for each variant while these arguments grow together, up to enough steps or the largest size."""
    kinds = [target.kinds[i] for i in growing]
    counts: dict[str, list[int]] = {v: [] for v in tried}
    sizes, failures = [], {}
    for n in SIZES:
        if n > min(map(largest, kinds)):
            break
        steps: dict[str, int | None] = {}
        for variant in list(counts):
            given = [n if i in growing else SMALL for i in range(len(target.kinds))]
            say({"event": "run"})
            try:
                steps[variant] = target.count(given, variant)
            except Exception as e:
                failures[variant] = f"{type(e).__name__}: {e} (size {n}, {variant} input)"
                del counts[variant]
        if not counts:
            raise ValueError(f"{target.name} raised {next(iter(failures.values()))}")
        if None in steps.values():
            break
        sizes.append(n)
        for variant, line in counts.items():
            line.append(int(steps[variant] or 0))
        if max(line[-1] for line in counts.values()) > ENOUGH:
            break
    return {"sizes": sizes, "counts": counts, "failures": failures}


def measure(job: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All measurements of a function."""
    target = Target(job)
    growing = [i for i, kind in enumerate(target.kinds) if growable(kind)]
    result: dict[str, Any] = {"arguments": target.names, "growing": growing}
    useful = [v for v in VARIANTS if any(v in variants(k) for k in target.kinds)]
    together = result["together"] = series(target, growing, useful, say) if growing else {"sizes": [], "counts": {}}
    result["alone"], result["grids"] = {}, {}
    worst = max(together["counts"], key=lambda v: together["counts"][v][-1:], default="random")
    few = [v for v in together["counts"] if v in (worst, "random")]
    if len(growing) > 1:
        for i in growing:
            result["alone"][str(i)] = series(target, [i], few, say)
        moving = [i for i in growing if len({*max(result["alone"][str(i)]["counts"].values(), key=max)}) > 1]
        for i, j in itertools.combinations(moving[:3], 2):
            rows = []
            top = together["sizes"][-1] if together["sizes"] else 2
            steps = sorted({max(2, round(top ** (k / 5))) for k in range(1, 6)})
            for n, m in itertools.product(steps, steps):
                given = [n if k == i else m if k == j else SMALL for k in range(len(target.kinds))]
                say({"event": "run"})
                found = [target.count(given, v) for v in few]
                if None not in found:
                    rows.append([n, m, max(x or 0 for x in found)])
            result["grids"][f"{i} {j}"] = rows
    picked = [n for n in together["sizes"] if n >= 4]
    picked = picked[-14::2] if len(picked) > 16 else picked[-8:]
    result["space"], result["time"] = [], []
    for n in picked:
        given = [n if i in growing else SMALL for i in range(len(target.kinds))]
        say({"event": "run"})
        result["space"].append([n, max(target.bytes(given, v) for v in few)])
        result["time"].append([n, target.seconds(given, worst)])
    return result


def main() -> None:
    """One job from standard input."""
    job = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    memory = job["memory"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    sys.setrecursionlimit(5000)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say({"event": "start", "restricted": restrict()})
    try:
        say({"event": "result", **measure(job, say)})
    except (Exception, Limit) as e:
        why = "takes too many steps" if isinstance(e, Limit) else str(e) or type(e).__name__
        say({"event": "error", "why": why, "type": type(e).__name__})


if __name__ == "__main__":
    main()
