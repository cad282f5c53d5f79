"""The measurements: steps, CPU time and memory on growing inputs."""

from __future__ import annotations

import ast
import collections
import copy
import itertools
import json
import math
import operator
import os
import random
import resource
import sys
import time
import tracemalloc
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .counter import Counter, Limit
from .inputs import VARIANTS, growable, kind_of_example, kind_of_type, largest, make, variants
from .restrict import restrict
from .rewriting import Counting

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
