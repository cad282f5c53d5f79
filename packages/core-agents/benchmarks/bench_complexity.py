"""Complexity inference while four other processes keep the machine busy; they are started here.

The functions of core_agents.reference.known_complexity, ten runs each: how many classes are right, the longest run,
whether all runs agree. Then hostile programs, the ranking of solutions of one class, the cost of counting against
sys.settrace, and PyPI's big_O on the same functions, with generators and largest sizes that suit each class.
Run with `pytest packages/core-agents/benchmarks/bench_complexity.py -s`.
"""

import inspect
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from core_agents.claims.complexity import KNOWN as TRUTH
from core_agents.claims.complexity import SOURCE
from core_agents.complexity import infer
from core_agents.counting import counter as counters
from core_agents.counting import measure
from core_agents.reference import known_complexity as module
from core_agents.reference import solutions
from core_agents.sandbox import SandboxError

ONE = {name: text.split("; ") for name, text in TRUTH.items() if ";" in text}
TWO = {name: text for name, text in TRUTH.items() if ";" not in text}
LOAD, RUNS = 4, 10


@pytest.fixture(scope="module", autouse=True)
def busy():
    """Processes that compute for ever, until the last benchmark is done."""
    made = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(LOAD)]
    time.sleep(20)
    print(f"\n{LOAD} busy processes on {len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}")
    yield
    for one in made:
        one.kill()
        one.wait()


def test_classes():
    time_right = space_right = two_right = 0
    longest, different = (0.0, ""), []
    for name in TRUTH:
        answers = []
        for _ in range(RUNS):
            start = time.perf_counter()
            found = infer(SOURCE, name)
            longest = max(longest, (time.perf_counter() - start, name))
            answers.append((found.time, found.typical, found.space, found.expression, found.counts))
        if any(a != answers[0] for a in answers):
            different.append(name)
        if name in TWO:
            two_right += found.expression == TWO[name]
            got, want = found.expression, TWO[name]
        else:
            time_right += found.time == ONE[name][0]
            space_right += found.space == ONE[name][1]
            got, want = f"{found.time}; {found.space}", "; ".join(ONE[name])
        print(f"\n{name}: {got}{'' if got == want else f', but it is {want}'}", end="")
    print(
        f"\ntime {time_right} of {len(ONE)}, space {space_right} of {len(ONE)}, two arguments {two_right} of {len(TWO)}"
        f"\nlongest of {RUNS * len(TRUTH)} runs: {longest[0]:.2f} s ({longest[1]}), load {os.getloadavg()[0]:.1f}"
        f"\nidentical in {RUNS} of {RUNS} runs: {len(TRUTH) - len(different)} of {len(TRUTH)} {different}"
    )


HOSTILE = {
    "while True": "def f(n: int):\n    while True: pass",
    "while True at import": "while True: pass\ndef f(n: int): pass",
    "fork bomb": "import os\ndef f(n: int):\n    while True: os.fork()",
    "4 GB": "def f(n: int):\n    return len(bytearray(4 << 30))",
    "a long built-in": "def f(n: int):\n    return 7 ** (10 ** 8)",
}


def processes():
    return sum(entry.name.isdigit() for entry in Path("/proc").iterdir())


def test_hostile_programs():
    before = processes()
    for name, source in HOSTILE.items():
        start = time.perf_counter()
        with pytest.raises((ValueError, SandboxError)) as error:
            infer(source, "f")
        print(f"\n{name}: ended after {time.perf_counter() - start:.2f} s: {error.value}", end="")
    print(f"\nprocesses before {before}, after {processes()}")


def ranks(values):
    return np.argsort(np.argsort(values))


def test_ranking():
    """Solutions of one task in O(n), by their coefficients and by the time that they take here."""
    source = inspect.getsource(solutions)
    data = [random.Random(0).randrange(10**6) for _ in range(20_000)]
    found, truth = {}, {}
    for name in solutions.LARGEST:
        found[name] = infer(source, name)
        seconds = []
        for _ in range(15):
            copied = list(data)
            start = time.thread_time()
            answer = getattr(solutions, name)(copied)
            seconds.append(time.thread_time() - start)
            assert answer == max(data)
        truth[name] = min(seconds) / len(data)
    assert {f.time for f in found.values()} == {"n"}
    order = ranks([truth[name] for name in found])
    for name, f in sorted(found.items(), key=lambda item: truth[item[0]]):
        print(
            f"\n{name}: {f.coefficient:.2f} steps, {f.seconds * 1e9:.1f} ns, truly {truth[name] * 1e9:.1f} ns", end=""
        )
    for what in ("coefficient", "seconds"):
        mine = ranks([getattr(f, what) for f in found.values()])
        print(f"\nSpearman's rho of {what} to true time: {np.corrcoef(mine, order)[0, 1]:.3f}", end="")
    print()


def test_cost_of_counting():
    """Counted work against opcodes that a trace function in Python counts."""
    for name, n in (("bubble_sort", 150), ("prefix_sums", 8000), ("merge_sort", 2000), ("edit_distance", 100)):
        target = measure.Target({"source": SOURCE, "function": name, "example": None, "seed": 0})
        opcodes = 0

        def trace(frame, event, arg):
            nonlocal opcodes
            frame.f_trace_opcodes = True
            opcodes += event == "opcode"
            return trace

        def seconds(function, traced=False, target=target, n=n):
            arguments = target.inputs([n] * len(target.kinds), "random")
            start = time.thread_time()
            sys.settrace(trace if traced else None)
            try:
                function(*arguments)
            finally:
                sys.settrace(None)
            return time.thread_time() - start

        rewritten = target.load(target.counted, counters.Counter(10**8).hooks(), name)
        plain, counted = (min(seconds(f) for _ in range(5)) for f in (target.plain, rewritten))
        traced = seconds(target.plain, True)
        print(
            f"\n{name}, n = {n}: as it is {plain * 1e3:.1f} ms, counted {counted * 1e3:.1f} ms, {opcodes} opcodes by "
            f"sys.settrace {traced * 1e3:.0f} ms: {(traced - plain) / (counted - plain):.0f} times the cost",
            end="",
        )
    print()


def test_peer():
    big_o = pytest.importorskip("big_o")
    names = {
        "1": "Constant", "log n": "Logarithmic", "n": "Linear", "n log n": "Linearithmic", "n^2": "Quadratic",
        "n^3": "Cubic", "2^n": "Exponential",
    }  # fmt: skip
    largest = {"1": 100_000, "log n": 100_000, "n": 100_000, "n log n": 100_000, "n^2": 1000, "n^3": 150, "2^n": 18}
    right = tried = 0
    start = time.perf_counter()
    for name, (want, _) in ONE.items():
        kinds = list(getattr(module, name).__annotations__.values())[:-1]
        if want not in names or len(kinds) > 1 or kinds[0] not in (int, list[int]):
            continue
        make = (lambda n: n) if kinds[0] is int else (lambda n: [random.randrange(4 * n) for _ in range(n)])
        best, _ = big_o.big_o(getattr(module, name), make, min_n=4, max_n=largest[want], n_measures=10, n_timings=3)
        tried += 1
        right += type(best).__name__ == names[want]
    print(f"\nbig_O: {right} of {tried}, {time.perf_counter() - start:.0f} s in all (random input only)")
