"""Classes of known functions, the rewriting against the functions as they are, the fit against scipy, the sandbox."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from core_agents import complexity, jobs, sandbox
from core_agents.claims.complexity import KNOWN as FUNCTIONS
from core_agents.claims.complexity import SOURCE
from core_agents.counting import counter as counters
from core_agents.counting import inputs, measure, rewriting
from core_agents.reference import known_complexity
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "name",
    [
        "library_search",
        "is_prime",
        "largest_run",
        "library_sort",
        "triples",
        "fibonacci",
    ],
)
def test_classes_of_known_functions(name):
    found = complexity.infer(SOURCE, name)
    assert (found.time, found.expression) == (FUNCTIONS[name].split(";")[0],) * 2
    assert not found.failures


@pytest.mark.parametrize("name", ["search_list_in_list", "common", "sort_both"])
def test_two_arguments_multiply_or_add(name):
    assert complexity.infer(SOURCE, name).expression == FUNCTIONS[name]


def test_worst_is_told_from_typical_and_space_is_found():
    found = complexity.infer(SOURCE, "quicksort")
    assert (found.time, found.typical, found.space) == ("n^2", "n log n", "n^2")
    again = complexity.infer(SOURCE, "quicksort")
    assert (again.counts, again.fit, again.expression) == (found.counts, found.fit, found.expression)


def test_the_coefficient_ranks_solutions():
    def source(turns):
        return f"def f(a: list[int]):\n    for _ in range({turns}):\n        for x in a:\n            pass\n"

    turns = (3, 8, 1, 2, 5)
    found = {str(t): complexity.infer(source(t), "f") for t in turns}
    assert [f.coefficient for f in found.values()] == pytest.approx(turns, rel=0.02)
    untimed = {name: dataclasses.replace(f, seconds=None) for name, f in found.items()}
    untimed["sorted"] = complexity.infer("def f(a: list[int]):\n    return sorted(a)", "f")
    assert complexity.rank(untimed) == [*sorted(found), "sorted"]


def test_seconds_are_the_coefficient_of_the_times():
    n = np.array([100, 200, 400, 800, 1600])
    for name, f in (("n", n), ("n log n", n * np.log2(n)), ("n^2", n**2)):
        fit, _ = complexity.select(n, 7 * f)
        times = list(zip(n, 3e-6 * f + 2e-5, strict=True))
        assert fit.name == name
        assert complexity._seconds(times, fit) == pytest.approx(3e-6)
        assert complexity._seconds(times[:2], fit) is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_rewritten_function_gives_the_same(name):
    target = measure.Target({"source": SOURCE, "function": name, "example": None, "seed": 0})
    for variant in inputs.VARIANTS:
        for n in (2, 5, 7):
            counter = counters.Counter(10**6)
            rewritten = target.load(target.counted, counter.hooks(), name)
            sizes = [n] * len(target.kinds)
            assert rewritten(*target.inputs(sizes, variant)) == getattr(known_complexity, name)(
                *target.inputs(sizes, variant)
            )
            assert 0 < counter.total() < 10**6


FEATURES = """
import statistics
from collections import deque
class Box:
    def __init__(self, x): self.x = x
    def __contains__(self, y): return y == self.x
    def __add__(self, other): return Box(self.x + other.x)
class Big(Box):
    def __init__(self, x):
        super().__init__(x)
        self.__hidden = x
    def hidden(self): return self.__hidden
def f(a: list[int]):
    "Doc."
    out = []
    b = a[:]
    b[1:1] = [7, 8]
    del b[0]
    b += [x for x in range(3) if x % 2]
    out.append((3 in b, 3 not in b, 1 < len(b) in (5, 6), 2 in Big(2), (Big(1) + Box(2)).x, Big(4).hidden()))
    out.append([*b, *"ab"])
    out.append({**{"k": 1}, "n": sum(x for x in b), "m": max(map(lambda v: -v, b))})
    s = "x" * 3 + f"{b[0]:>4}"
    s += "y"
    out.append((s, s.join("ab"), sorted(b, key=lambda v: -v), b.pop(0), b.index(8), sorted(zip(b, b))[0]))
    def gen():
        yield from b
        try:
            yield len(b)
        finally:
            out.append("end")
    out.append(list(gen()))
    d = deque(gen(), maxlen=2)
    d.extend(x for x in b)
    while True:
        if len(d) > 1: break
    else:
        out.append("never")
    out.append((list(d), statistics.median(b), dict.fromkeys(b), {x: y for x, y in enumerate(b)}, b * 2, 2 * b))
    match b:
        case [first, *rest]: out.append((first, rest))
    return out
"""


def test_the_rewriting_keeps_the_language():
    scope = {}
    exec(FEATURES, scope)
    counter = counters.Counter(10**6)
    tree = ast.fix_missing_locations(rewriting.Counting().visit(ast.parse(FEATURES)))
    rewritten = measure.Target.load(compile(tree, counter.file, "exec"), counter.hooks(), "f")
    assert rewritten([5, 3, 1, 4]) == scope["f"]([5, 3, 1, 4])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(4, 12))
def test_the_fit_equals_scipys(seed, columns, rows):
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    x, y = rng.normal(1, 2, (rows, columns)), rng.uniform(0.5, 9, rows)
    ours = complexity.nonnegative(x, y)
    theirs, _ = optimize.nnls(x / y[:, None], np.ones(rows))
    errors = [((x @ c / y - 1) ** 2).sum() for c in (ours, theirs)]
    assert (ours >= 0).all()
    assert errors[0] <= errors[1] + 1e-9


@pytest.mark.parametrize("name", complexity.CLASSES)
def test_exact_series_are_recognised(name):
    n = np.arange(4, 16) if name in ("2^n", "n!") else np.unique((2 ** np.arange(2, 10, 0.5)).astype(int))
    for constant, linear in ((3, 0), (20, 0 if complexity.ORDER[name] <= 4 else 2)):
        steps = constant + linear * n + 5 * complexity.CLASSES[name](n.astype(float))
        fit, _ = complexity.select(n, steps)
        assert fit.name == name
    with pytest.raises(ValueError, match="at least 4"):
        complexity.select([1, 2, 3], [1, 2, 3])


# ---- the sandbox ----

BAD = {
    "a loop without an end": ("def f(n: int):\n    while True: pass", ValueError, "too many steps"),
    "a long built-in": ("def f(n: int):\n    return 7 ** (10 ** 8)", sandbox.SandboxError, "did not end"),
    "a loop at import": ("while True: pass\ndef f(n: int): pass", sandbox.SandboxError, "did not end"),
    "a fork bomb": ("import os\ndef f(n: int):\n    while True: os.fork()", ValueError, "PermissionError"),
    "four gigabytes": ("def f(n: int):\n    return len(bytearray(4 << 30))", ValueError, "MemoryError"),
    "a program": ("import os\ndef f(n: int):\n    os.execv('/bin/true', ['true'])", ValueError, "PermissionError"),
    "a socket": ("import socket\ndef f(n: int):\n    socket.socket()", ValueError, "PermissionError"),
    "a file": ("def f(n: int):\n    open('/var/tmp/core-agents-test', 'w')", ValueError, "Error"),
    "a signal": ("import os\ndef f(n: int):\n    os.kill(os.getppid(), 9)", ValueError, "PermissionError"),
    "the end": ("import os\ndef f(n: int):\n    os._exit(3)", sandbox.SandboxError, "exit code 3"),
    "recursion": ("def f(n: int):\n    return f(n)", ValueError, "too many steps"),
    "no function": ("f = 3", ValueError, "no function called"),
    "no syntax": ("def f(:", ValueError, "invalid syntax"),
    "no type": ("def f(a): pass", ValueError, "argument 'a' of f has no type hint"),
    "another type": ("def f(a: complex): pass", ValueError, "argument 'a': no inputs are known"),
    "always an error": ("def f(n: int):\n    raise KeyError('k')", ValueError, "f raised KeyError: 'k'"),
    "nothing to grow": ("def f(b: bool): pass", ValueError, "none of its arguments can grow"),
}


@pytest.mark.parametrize("what", BAD)
def test_code_that_misbehaves_is_ended(what):
    source, error, message = BAD[what]
    with pytest.raises(error, match=message):
        complexity.infer(source, "f", silence=0.6)
    assert not Path("/var/tmp/core-agents-test").exists()


def test_nothing_runs_outside(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"not permitted|Read-only"):
        complexity.infer(f"open({str(marker)!r}, 'w')\ndef f(n: int): pass", "f")
    assert not marker.exists()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_hides_the_network_and_other_processes():
    source = (
        "import os\ndef f(n: int):\n    raise KeyError(sorted(os.listdir('/sys/class/net')), len(os.listdir('/proc')))"
    )
    assert not complexity.infer(SOURCE, "total").warnings
    with pytest.raises(ValueError, match="f raised KeyError"):
        complexity.infer(source, "f")


def test_an_example_says_the_types():
    source = "def f(words, few=3):\n    return [w for w in words for _ in words]"
    assert complexity.infer(source, "f", [["a", "b"]]).time == "n^2"
    with pytest.raises(ValueError, match="takes 2 arguments, the example has 3"):
        complexity.infer(source, "f", [[], 1, 2])


def test_the_job_prints_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    app = Typer()
    app.command()(jobs.complexity)
    code = tmp_path / "code.py"
    code.write_text("def f(a):\n    return sorted(a)\n")
    out = tmp_path / "f.png"
    done = CliRunner().invoke(app, [f"{code}:f", "-o", str(out), "--example", "[[3, 1]]"])
    assert done.exit_code == 0, done.output
    assert "O(n log n)" in done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert json.loads(out.with_suffix(".json").read_text())["time"] == "n log n"
    for bad in ([str(code)], [f"{code}:g", "-o", str(out)], [f"{code}:f", "-o", str(out), "--example", "{"]):
        assert CliRunner().invoke(app, bad).exit_code == 2
