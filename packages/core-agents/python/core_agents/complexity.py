"""The complexity class of a Python function, from counted work on growing inputs (the question of 2503.15242).

Work is counted, not timed: the same source gives the same answer on any machine under any load. Time is measured beside
it as a second opinion, memory by its peak. The function runs in a sandbox (:mod:`core_agents.sandbox`), never here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from typing import Any

import numpy as np

from . import sandbox

Array = np.ndarray[Any, np.dtype[np.float64]]


def _factorial(n: Array) -> Array:
    return np.array([math.gamma(x + 1) for x in n.tolist()])


CLASSES: dict[str, Callable[[Array], Array]] = {
    "1": lambda n: 0 * n,
    "log n": lambda n: np.log2(np.maximum(n, 1)),
    "sqrt n": np.sqrt,
    "n": lambda n: n,
    "n log n": lambda n: n * np.log2(np.maximum(n, 1)),
    "n^2": lambda n: n**2,
    "n^2 log n": lambda n: n**2 * np.log2(np.maximum(n, 1)),
    "n^3": lambda n: n**3,
    "2^n": lambda n: 2.0**n,
    "n!": _factorial,
}
"""The classes from low to high. "2^n" stands for any base above 1.2; the fit gives the base."""
ORDER = {name: i for i, name in enumerate(CLASSES)}
SPACE = ("1", "log n", "n", "n^2", "n^3", "2^n")
"""The classes of space: memory is too coarse a measure to tell a logarithmic factor."""
BASES = np.arange(1.2, 4.05, 0.05)


@dataclass(frozen=True)
class Fit:
    """A class fitted to a series: steps = `constant` + `linear` n + `coefficient` f(n), all of them >= 0.

    `error` is the root mean square of the relative errors; `base` is that of an exponential class.
    """

    name: str
    coefficient: float
    constant: float
    linear: float
    error: float
    base: float | None = None

    def predict(self, n: Array) -> Array:
        """The fitted values."""
        f: Array = np.power(self.base, n) if self.base else CLASSES[self.name](n)
        return self.constant + self.linear * n + self.coefficient * f


def nonnegative(columns: Array, y: Array) -> Array:
    """The coefficients >= 0 [k] for which columns [N, k] come nearest to y in the relative sense; k of 1 to 4.

    All sets of columns are tried, which is exact for so few.
    """
    weights = 1 / np.maximum(y, 1e-300)
    scaled = columns * weights[:, None]
    size = np.maximum(np.abs(scaled).max(0), 1e-300)
    scaled = scaled / size
    best, least = np.zeros(columns.shape[1]), float(len(y))
    for k in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), k):
            part = scaled[:, chosen]
            found = np.linalg.lstsq(part, np.ones(len(y)), rcond=None)[0]
            if (found < 0).any():
                continue
            error = float(((part @ found - 1) ** 2).sum())
            if error < least - 1e-12:
                best, least = np.zeros(columns.shape[1]), error
                best[list(chosen)] = found
    coefficients: Array = best / size
    return coefficients


def _fit(name: str, n: Array, y: Array, base: float | None = None) -> Fit:
    f: Array = np.power(base, n) if base else CLASSES[name](n)
    columns = [np.ones_like(n), f]
    if ORDER[name] > ORDER["n"]:
        columns.append(n)
    found = nonnegative(np.stack(columns, 1), y)
    linear = float(found[2]) if len(found) > 2 else 0.0
    made = Fit(name, float(found[1]), float(found[0]), linear, 0.0, base)
    error = math.sqrt(float(np.mean((made.predict(n) / y - 1) ** 2)))
    return Fit(name, made.coefficient, made.constant, made.linear, error, base)


def select(
    sizes: Sequence[float],
    steps: Sequence[float],
    classes: Sequence[str] = tuple(CLASSES),
    slack: float = 0.0,
    floor: float = 0.012,
) -> tuple[Fit, list[Fit]]:
    """The class of a series, and all classes that were tried, from low to high.

    Every class is fitted with non-negative coefficients to the relative errors. A class whose own term gives less than
    a tenth of the largest value is out. Of the others the lowest counts whose error is within 1.3 times the least,
    plus `floor`. `slack` is a value below which differences mean nothing (bytes). ValueError for fewer than 4 sizes.
    """
    n, y = np.asarray(sizes, np.float64), np.maximum(np.asarray(steps, np.float64), 1e-9)
    if n.shape != y.shape or n.ndim != 1 or len(n) < 4:
        raise ValueError(
            f"argument 'sizes' must hold at least 4 sizes, one for each count, got {n.shape} and {y.shape}"
        )
    if y.max() - y.min() <= slack:
        return Fit("1", 0.0, float(y.mean()), 0.0, 0.0), []
    late = n >= n.max() / 256
    if late.sum() >= 8:
        n, y = n[late], y[late]
    tried = []
    for name in classes:
        if name in ("2^n", "n!") and n[-1] > 60:
            continue
        if name == "2^n":
            tried.append(min((_fit(name, n, y, float(b)) for b in BASES), key=lambda f: f.error))
        else:
            tried.append(_fit(name, n, y))
    able = [f for f in tried if f.name == "1" or f.predict(n[-1:])[0] - f.constant - f.linear * n[-1] >= 0.1 * y[-1]]
    least = min(f.error for f in able)
    return next(f for f in able if f.error <= 1.3 * least + floor), tried


@dataclass(frozen=True)
class Complexity:
    """What was found about a function. Classes are names of :data:`CLASSES`; n is the size of all arguments together
    (the value of a number, the length of anything else, the side of a nested list).

    time: in the worst of the tried kinds of input; typical: for random input; space: of the peak of memory beside
    the arguments. expression: in the sizes of the arguments, where there are several. fit: of `time`. tried: all
    fits. sizes, counts: the series by kind of input. time_agrees: whether measured CPU time grows like the counted
    work, None if it is too short to say. seconds: of this machine's CPU for each unit of the class, None likewise;
    unlike all else it differs from run to run. failures: kinds of input that the function refused. warnings: about the
    sandbox.
    """

    function: str
    time: str
    typical: str
    space: str
    expression: str
    fit: Fit
    tried: Sequence[Fit]
    sizes: Sequence[int]
    counts: Mapping[str, Sequence[int]]
    peaks: Sequence[tuple[int, int]]
    time_agrees: bool | None
    seconds: float | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def coefficient(self) -> float:
        """Steps for each unit of the class. A step is a turn of a loop whatever is in it; `seconds` tells that, too."""
        return self.fit.coefficient


def rank(solutions: Mapping[str, Complexity]) -> list[str]:
    """The names of solutions of one task from the fastest on: by class, within a class by `seconds`, or by the
    coefficient of the counted steps if a solution of that class was too fast to be timed."""
    short = {s.time for s in solutions.values() if s.seconds is None}

    def cost(name: str) -> tuple[int, float, str]:
        s = solutions[name]
        return ORDER[s.time], s.coefficient if s.seconds is None or s.time in short else s.seconds, name

    return sorted(solutions, key=cost)


def infer(
    source: str,
    function: str,
    example: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    silence: float = 1.5,
    seconds: float = 20.0,
    memory: int = 2 << 30,
) -> Complexity:
    """Finds the complexity of a module-level function of a Python source that needs the standard library at most.

    example: one value for each argument (JSON values), by whose types inputs are made; without it the type hints say.
    silence: seconds of the clock that one run may take; seconds: all runs; memory: bytes of address space.
    Raises ValueError if no inputs can be made or the function fails on all of them, SandboxError if it does not end.
    """
    json.dumps(example)
    job = {
        "source": source,
        "function": function,
        "example": example,
        "seed": seed,
        "seconds": math.ceil(seconds),
        "memory": memory,
    }
    bwrap = sandbox.bubblewrap()
    warnings = [] if bwrap else ["bubblewrap is not installed: the code could read this machine's files"]
    result: dict[str, Any] | None = None
    with as_file(files("core_agents") / "counting") as program:
        for message in sandbox.run(program, job, silence=silence, seconds=seconds, bwrap=bwrap):
            if message["event"] == "start" and not message["restricted"]:
                warnings.append(
                    "this system has no known seccomp filter: the code could start processes and write files"
                )
            if message["event"] == "error":
                raise ValueError(f"{function}: {message['why']}")
            if message["event"] == "result":
                result = message
    if result is None:
        raise sandbox.SandboxError("the code ended the measurement without a result")
    return _read(function, result, warnings)


def _worst(series: Mapping[str, Any]) -> list[int]:
    return [max(at) for at in zip(*series["counts"].values(), strict=True)]


def _read(function: str, result: Mapping[str, Any], warnings: Sequence[str]) -> Complexity:
    together = result["together"]
    sizes, counts = together["sizes"], together["counts"]
    if not result["growing"]:
        raise ValueError(f"{function}: none of its arguments can grow")
    if len(sizes) < 4:
        raise ValueError(f"{function}: takes too many steps even for inputs of size {sizes[-1] if sizes else 2}")
    fit, tried = select(sizes, _worst(together))
    random = counts.get("random") or next(iter(counts.values()))
    peaks = [(int(n), int(b)) for n, b in result["space"]]
    enough = len(peaks) >= 4
    space = select([n for n, _ in peaks], [b for _, b in peaks], SPACE, 1024, 0.04)[0] if enough else None
    return Complexity(
        function=function,
        time=fit.name,
        typical=select(sizes, random)[0].name,
        space=space.name if space else "1",
        expression=_expression(result, fit),
        fit=fit,
        tried=tried,
        sizes=sizes,
        counts=counts,
        peaks=peaks,
        time_agrees=_agrees(result["time"], sizes, _worst(together)),
        seconds=_seconds(result["time"], fit),
        failures=together["failures"],
        warnings=tuple(warnings),
    )


def _agrees(times: Sequence[Sequence[float]], sizes: Sequence[int], steps: Sequence[int]) -> bool | None:
    """Whether time grows like work: the slope of log time over log work, over runs of at least 50 us."""
    work = dict(zip(sizes, steps, strict=True))
    pairs = [(math.log(work[int(n)]), math.log(t)) for n, t in times if t > 5e-5 and work[int(n)] > 0]
    if len(pairs) < 3 or pairs[-1][0] - pairs[0][0] < math.log(4):
        return None
    slope = np.polyfit([w for w, _ in pairs], [t for _, t in pairs], 1)[0]
    return bool(0.6 < slope < 1.5)


def _seconds(times: Sequence[Sequence[float]], fit: Fit) -> float | None:
    """The coefficient of the class in the measured times, over runs of at least 5 us."""
    pairs = np.array([(n, t) for n, t in times if t > 5e-6], np.float64)
    if len(pairs) < 3:
        return None
    timed = _fit(fit.name, pairs[:, 0], pairs[:, 1], fit.base)
    return timed.constant if fit.name == "1" else timed.coefficient


def _expression(result: Mapping[str, Any], together: Fit) -> str:
    """The class in the sizes of the arguments, which multiply or add."""
    growing = result["growing"]
    if len(growing) == 1:
        return together.name
    alone = {}
    for i in growing:
        series = result["alone"][str(i)]
        alone[i] = select(series["sizes"], _worst(series))[0].name if len(series["sizes"]) >= 4 else "1"
    moving = [i for i in growing if alone[i] != "1"]
    letters = dict(zip(moving, "nmkpqrst", strict=False))

    def term(i: int) -> str:
        return (
            alone[i].replace("log n", f"log {letters[i]}").replace("n", letters[i]) if letters[i] != "n" else alone[i]
        )

    if not moving:
        return together.name
    if len(moving) == 1:
        return together.name if ORDER[together.name] > ORDER[alone[moving[0]]] else alone[moving[0]]
    groups = [[i] for i in moving]
    for i, j in itertools.combinations(moving, 2):
        rows = result["grids"].get(f"{i} {j}")
        if rows and _multiply(np.array(rows, np.float64), alone[i], alone[j]):
            first, second = (next(g for g in groups if x in g) for x in (i, j))
            if first is not second:
                groups = [g for g in groups if g not in (first, second)] + [first + second]
    return " + ".join(" * ".join(term(i) for i in sorted(g)) for g in sorted(groups, key=min))


def _multiply(rows: Array, first: str, second: str) -> bool:
    """Whether the work on a grid of two sizes needs a product: the sum of both classes misses it by a quarter or more,
    and their product halves that error."""
    n, m, steps = rows.T
    f, g, y = CLASSES[first](n), CLASSES[second](m), np.maximum(steps, 1)
    sums, products = (np.stack(c, 1) for c in ([np.ones_like(n), f, g], [np.ones_like(n), f, g, f * g]))
    apart, joint = (float(np.sqrt(np.mean((c @ nonnegative(c, y) / y - 1) ** 2))) for c in (sums, products))
    return apart > 0.25 and joint < 0.5 * apart
