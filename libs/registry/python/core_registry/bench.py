"""Benchmark the rows of the packages' case tables against their peers, in one run and only if the answers agree."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .testing import Args, Case, duplicate
from .timing import fastest


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured operator, times in seconds. `problem` says why there is no ratio, "" if there is one.

    `floor` is the time that this machine needs at least, by its own copy bandwidth and matrix product.
    """

    op: str
    size: str
    device: str
    ours: float | None = None
    peer: str = ""
    peers: float | None = None
    floor: float | None = None
    difference: float | None = None
    problem: str = ""
    failed: bool = False  # whether `problem` is a fault, and not only a lack

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer; None if the answers do not agree."""
        return self.peers / self.ours if self.ours and self.peers and not self.problem else None


class _MissingError(Exception):
    """There is nothing to measure or compare with."""


def load_cases() -> tuple[list[Case], dict[str, str]]:
    """The case tables of all packages, and what is wrong with those that cannot be imported."""
    cases: list[Case] = []
    broken = {}
    for point in sorted(importlib.metadata.entry_points(group="core.cases"), key=lambda p: p.name):
        try:
            cases += (c for c in point.load() if c.op not in {known.op for known in cases})
        except Exception as e:  # one package's failure does not stop the others
            broken[point.name] = f"{type(e).__name__}: {e}"
    return cases, broken


def measure(case: Case, device: str = "cpu", threads: int = 1, seconds: float = 1.0) -> Row:
    """Runs one row at its size "bench" and its peer; never raises for what the operator or its peer does."""
    size = "bench" if "bench" in case.sizes else list(case.sizes)[-1]
    row = Row(case.op, " ".join(f"{k}={v}" for k, v in case.sizes[size].items()), device)
    try:
        if device not in case.description.devices:
            raise _MissingError(f"has no {device} operator in this build")
        tiny = case.arguments()
        expected = case.reference(duplicate(tiny))
        _call(case, tiny, device)
        case.difference(tiny, expected)
        args = case.arguments(size)
        timed = _on_device(duplicate(args), device)
        values, binding = list(timed.values()), case.binding()
        row = dataclasses.replace(row, ours=_timer(device)(lambda: binding(*values), seconds))
        if case.work:
            row = dataclasses.replace(row, floor=floor(*case.work(args), device, threads))
        if not case.peer:
            raise _MissingError("has no peer")
        name, prepare = case.peer
        row = dataclasses.replace(row, peer=name)
        run_peer = prepare(_on_device(duplicate(args), device))
        peers = {k: _to_numpy(v) for k, v in run_peer().items()}
        row = dataclasses.replace(row, peers=_timer(device)(run_peer, seconds))
        _call(case, args, device)
        difference = _difference(case, args, peers)
        return dataclasses.replace(row, difference=difference)
    except _MissingError as e:
        return dataclasses.replace(row, problem=str(e))
    except AssertionError as e:
        said = " ".join(str(e).split())[:300]
        return dataclasses.replace(row, problem=f"the answers differ: {said}", failed=True)
    except Exception as e:  # a benchmark goes on with the next row
        said = str(e).splitlines()[0] if str(e) else ""
        return dataclasses.replace(row, problem=f"{type(e).__name__}: {said}", failed=True)


def _difference(case: Case, args: Args, peers: Args) -> float:
    if case.agree:
        ours = {name: args[name] for name in case.outputs}
        largest = float(case.agree(args, ours, peers))
        if not np.isfinite(largest):
            raise AssertionError(f"{case.op} and its peer disagree")
        return largest
    if not peers:
        raise _MissingError("the peer's answer cannot be compared")
    return case.difference(args, peers)


def _on_device(args: Args, device: str) -> Args:
    if device == "cpu":
        return args
    import torch

    return {k: torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v for k, v in args.items()}


def _to_numpy(x: Any) -> Any:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else x


def _call(case: Case, args: Args, device: str) -> None:
    """Runs the operator on `device` and leaves its outputs in the numpy arrays of `args`."""
    there = _on_device(args, device)
    case.binding()(*there.values())
    for name in case.outputs:
        if args[name] is not None and there[name] is not args[name]:
            args[name][...] = _to_numpy(there[name])


def _timer(device: str) -> Callable[[Callable[[], Any], float], float]:
    return fastest if device == "cpu" else _median_of_events


def _median_of_events(call: Callable[[], Any], seconds: float) -> float:
    import torch

    call()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) * 1e-3)
    return float(np.median(times))


def floor(moved: float, operations: float, device: str = "cpu", threads: int = 1) -> float:
    """Seconds that `moved` bytes or `operations` float32 operations take at least on this machine."""
    bandwidth, speed = _machine(device, threads)
    return max(moved / bandwidth, operations / speed)


@functools.cache
def _machine(device: str, threads: int) -> tuple[float, float]:
    """Bytes a second of a copy (read and written) and operations a second of a float32 matrix product."""
    n = 1024 if device == "cpu" else 8192
    if device == "cpu":
        parts = [np.ones(8 << 20, np.float32) for _ in range(2 * threads)]
        a = np.ones((n, n), np.float32)
        c = np.empty_like(a)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            copy = fastest(lambda: list(pool.map(np.copyto, parts[:threads], parts[threads:])), 0.3)
        product = fastest(lambda: np.matmul(a, a, out=c), 0.3)
        return 2 * threads * parts[0].nbytes / copy, 2 * n**3 / product
    import torch

    x = torch.ones(64 << 20, device=device)
    y, m = torch.empty_like(x), torch.ones(n, n, device=device)
    copy = _median_of_events(lambda: y.copy_(x), 0.3)
    product = _median_of_events(lambda: m @ m, 0.3)
    return 2 * 4 * x.numel() / copy, 2 * n**3 / product
