"""Timing two pieces of work alike: the shortest of many runs, and torch kept to one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


def fastest(call: Callable[[], Any], seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """The shortest time of one call among those that fit into `seconds` (at least one), in seconds of `clock`.

    `time.process_time` as the clock counts the CPU time of all threads, for a machine that others use too.
    """
    end = time.perf_counter() + seconds
    start = clock()
    call()
    best = clock() - start
    batch = max(1, int(100e-6 / max(best, 1e-7)))
    while time.perf_counter() < end:
        start = clock()
        for _ in range(batch):
            call()
        best = min(best, (clock() - start) / batch)
    return best


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch works with one thread inside, and with as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
