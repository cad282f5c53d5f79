"""The functions of core_agents.reference.known_complexity: how many are right, how long it takes, whether runs agree.

PyPI's big_O stands beside it in the same run, with generators and largest sizes that suit each class.
Run with `pytest packages/core-agents/benchmarks/bench_complexity.py -s`.
"""

import random
import time

import pytest
from core_agents.claims.complexity import KNOWN as TRUTH
from core_agents.claims.complexity import SOURCE
from core_agents.complexity import infer
from core_agents.reference import known_complexity as module
from core_agents.sandbox import SandboxError

ONE = {name: text.split("; ") for name, text in TRUTH.items() if ";" in text}
TWO = {name: text for name, text in TRUTH.items() if ";" not in text}


def test_classes():
    time_right = space_right = two_right = 0
    longest = 0.0
    for name in TRUTH:
        start = time.perf_counter()
        found = infer(SOURCE, name)
        seconds = time.perf_counter() - start
        longest = max(longest, seconds)
        if name in TWO:
            two_right += found.expression == TWO[name]
            continue
        right = [found.time, found.space] == ONE[name]
        time_right += found.time == ONE[name][0]
        space_right += found.space == ONE[name][1]
        if not right:
            print(f"\n{name}: {'; '.join(ONE[name])}, found {found.time}; {found.space}")
    print(
        f"\ntime {time_right} of {len(ONE)}, space {space_right} of {len(ONE)}, "
        f"two arguments {two_right} of {len(TWO)}, longest {longest:.1f} s"
    )


def test_ten_runs_are_the_same():
    different = []
    for name in TRUTH:
        runs = [infer(SOURCE, name) for _ in range(10)]
        first, *others = [(r.time, r.typical, r.expression, r.counts) for r in runs]
        if any(r != first for r in others):
            different.append(name)
    print(f"\nten runs of {len(TRUTH)} functions: {len(TRUTH) - len(different)} identical {different}")


HOSTILE = {
    "while True": "def f(n: int):\n    while True: pass",
    "while True at import": "while True: pass\ndef f(n: int): pass",
    "fork bomb": "import os\ndef f(n: int):\n    while True: os.fork()",
    "4 GB": "def f(n: int):\n    return len(bytearray(4 << 30))",
    "a long built-in": "def f(n: int):\n    return 7 ** (10 ** 8)",
}


def test_hostile_programs():
    for name, source in HOSTILE.items():
        start = time.perf_counter()
        with pytest.raises((ValueError, SandboxError)) as error:
            infer(source, "f")
        print(f"\n{name}: ended after {time.perf_counter() - start:.2f} s: {error.value}")


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
