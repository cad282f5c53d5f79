"""A benchmark gives a ratio only for answers that agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from core_registry import bench
from core_registry.testing import Case, poison

Args = dict[str, Any]
CASES, _ = bench.load_cases()


@pytest.fixture
def case() -> Case:
    """The first row of the installed packages, at its smallest size, with itself as peer."""
    if not CASES:
        pytest.skip("no package is installed")
    first = CASES[0]
    return dataclasses.replace(
        first, sizes={"tiny": first.sizes["tiny"], "bench": first.sizes["tiny"]}, peer=("itself", itself), agree=None
    )


def itself(args: Args) -> Callable[[], Args]:
    def run() -> Args:
        CASES[0].binding()(*args.values())
        return {name: args[name] for name in CASES[0].tolerance}

    return run


def test_a_ratio(case: Case) -> None:
    row = bench.measure(case, seconds=0.01)
    assert not row.problem
    assert row.ratio
    assert row.difference == 0
    assert row.floor is None or row.floor > 0


def changed(args: Args) -> Callable[[], Args]:
    return lambda: {name: np.asarray(args[name]) + 1 for name in CASES[0].tolerance}


def fails(args: Args) -> Callable[[], Args]:
    raise RuntimeError("no such peer")


@pytest.mark.parametrize(
    ("change", "problem", "failed"),
    [
        ({"peer": None}, "no peer", False),
        ({"peer": ("silent", lambda args: dict)}, "cannot be compared", False),
        ({"peer": ("other", changed)}, "the answers differ", True),
        ({"peer": ("itself", itself), "agree": lambda args, ours, peers: np.inf}, "the answers differ", True),
        ({"peer": ("itself", itself), "agree": lambda args, ours, peers: np.nan}, "the answers differ", True),
        ({"peer": ("broken", fails)}, "RuntimeError: no such peer", True),
        ({"reference": lambda args: {k: np.zeros_like(args[k]) - 3 for k in CASES[0].tolerance}}, "differ", True),
    ],
)
def test_no_ratio(case: Case, change: dict[str, Any], problem: str, failed: bool) -> None:
    row = bench.measure(dataclasses.replace(case, **change), seconds=0.01)
    assert row.ratio is None
    assert problem in row.problem
    assert row.failed is failed


def test_no_device(case: Case) -> None:
    if "cuda" in case.description.devices:
        pytest.skip("has a CUDA operator")
    assert "no cuda operator" in bench.measure(case, "cuda").problem


def test_floor() -> None:
    moved, operations = bench.floor(1e9, 0), bench.floor(0, 1e12)
    assert 0 < moved < 60
    assert 0 < operations < 6000
    assert bench.floor(1e9, 1e12) == max(moved, operations)


def test_poison_shows_what_is_not_written() -> None:
    x = np.zeros(3, np.float32)
    poison(x)
    assert np.isnan(x).all()
