"""What a second thread can give the rasteriser on the CPU at most, measured on a machine that is not quiet.

python benchmarks/critical_path_cpu.py [--seconds 2]

The library is lent a parallel_for that runs the parts of each region one after the other and takes their CPU time. What
lies outside of regions is serial; parts are dealt to the less busy of two threads, tiles, which threads fetch one by
one, by halves. The ratio leaves out how long a thread takes to wake and what else runs on its core. Scenes, 512x512,
and $CORE_SPLAT_DATA are those of bench_rasterize_cpu.py. The shortest time of each part counts.
"""

from __future__ import annotations

import argparse
import ctypes as C
import time
from typing import Any

import numpy as np
from bench_rasterize_cpu import gradient_of, scenes
from core_registry import plugins
from core_registry._ffi import Plugin

BODY = C.CFUNCTYPE(None, C.c_int64, C.c_int64, C.c_void_p)
PARALLEL_FOR = C.CFUNCTYPE(None, C.c_int64, C.c_int64, BODY, C.c_void_p)
THREADS = 2


class Host(C.Structure):
    """core_host."""

    _fields_ = (("struct_size", C.c_uint32), ("num_threads", C.c_uint32), ("parallel_for", PARALLEL_FOR))


class Recorder:
    """The CPU times of a call: one before each region, those of its parts, and one after the last."""

    def __init__(self) -> None:
        self.regions: list[tuple[float, list[float]]] = []
        self._last = 0.0

    def parallel_for(self, n: int, grain: int, body: Any, ctx: int) -> None:
        """What the pool does, on one thread."""
        before = time.thread_time() - self._last
        chunks = min(4 * THREADS, (n - 1) // max(grain, 1) + 1)
        parts = []
        for c in range(chunks):
            start = time.thread_time()
            body(n * c // chunks, n * (c + 1) // chunks, ctx)
            parts.append(time.thread_time() - start)
        by_halves = n == THREADS  # a thread's share is what it fetches
        self.regions.append((before, [sum(parts) / THREADS] * THREADS if by_halves else parts))
        self._last = time.thread_time()

    def record(self, call: Any) -> list[float]:
        """Serial time, time with one thread and with two, in milliseconds."""
        self.regions, self._last = [], time.thread_time()
        call()
        serial, one, two = time.thread_time() - self._last, 0.0, 0.0
        for before, parts in self.regions:
            serial, one = serial + before, one + sum(parts)
            busy = [0.0] * THREADS
            for part in parts:
                busy[busy.index(min(busy))] += part
            two += max(busy)
        return [1e3 * serial, 1e3 * (serial + one), 1e3 * (serial + two)]


def main() -> None:
    """Prints a line for each scene and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    from core_splatting import _core_splatting as _C

    library = C.CDLL(str(plugins()["core_splatting"].path))
    library.core_plugin_query.restype = C.POINTER(Plugin)
    recorder = Recorder()
    host = Host(C.sizeof(Host), THREADS, PARALLEL_FOR(recorder.parallel_for))
    C.CFUNCTYPE(None, C.c_void_p)(library.core_plugin_query().contents.attach)(C.addressof(host))
    for name, args in scenes().items():
        gradient = gradient_of(args)
        calls = {"forward": (_C.rasterize, args), "backward": (_C.rasterize_backward, gradient)}
        for direction, (op, given) in calls.items():
            rows, end = [], time.perf_counter() + seconds
            while not rows or time.perf_counter() < end:
                rows.append(recorder.record(lambda op=op, given=given: op(*given.values())))
            serial, one, two = np.min(rows, 0)
            print(
                f"{name} {direction}: serial {serial:.2f} of {one:.2f} ms, two threads {one / two:.2f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
