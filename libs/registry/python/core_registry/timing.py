"""Timing two pieces of work alike, on the CPU and on CUDA, and the file that such a comparison leaves."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import replace

# Bytes a second, and operations a second of the matrix units in bfloat16 and of the others in float32, by data sheet.
_RATES = {
    "H100": {"bytes": 3.35e12, "bfloat16": 989e12, "float32": 67e12},
    "H200": {"bytes": 4.8e12, "bfloat16": 989e12, "float32": 67e12},
    "A100": {"bytes": 2.0e12, "bfloat16": 312e12, "float32": 19.5e12},
}


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


def device_ms(
    call: Callable[[], Any], runs: int = 20, warm_up: int = 5, before: Callable[[], Any] | None = None
) -> float:
    """The median time of a call on torch's current CUDA stream, in milliseconds, by events.

    `before` runs ahead of each call outside the measured time: something that empties the cache, or
    `lambda: torch.cuda._sleep(cycles)`, under which the host queues the call, so that its own time does not count.
    """
    import torch

    for _ in range(warm_up):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for begin, end in marks:
        if before:
            before()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in marks))


def floor_ms(flops: float = 0.0, moved: float = 0.0, dtype: str = "bfloat16") -> float | None:
    """The time that the CUDA device needs by its data sheet for `flops` operations, on the matrix units with "bfloat16"
    and without them with "float32", or to move so many bytes, whichever is longer, in milliseconds; None if the device
    is not known."""
    import torch

    rates = next((r for name, r in _RATES.items() if name in torch.cuda.get_device_name()), None)
    return None if rates is None else 1e3 * max(flops / rates[dtype], moved / rates["bytes"])


def _processor() -> str:
    """The name of the CPU, and how many cores this process may use."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def write_results(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, cpu: bool = False, **more: Any
) -> None:
    """The results of a benchmark on CUDA, or on the `cpu`, with device, date and version of torch, written to `path` as
    JSON of which the tables of the READMEs are made; `columns` are those that a table shows, empty where a row lacks
    one."""
    import torch

    head = {
        "device": _processor() if cpu else torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
    }
    results = {**more, **head, "columns": list(columns), "rows": [dict.fromkeys(columns, "") | dict(r) for r in rows]}
    with replace(path) as made:
        made.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run_benchmark(
    about: str | None,
    measure: Callable[..., Mapping[str, Any]],
    sizes: Iterable[Sequence[Any]],
    columns: Sequence[str],
    right: Callable[[Mapping[str, Any]], bool],
    operator: str,
) -> int:
    """The command line of a benchmark on CUDA: a row `measure(*size)` for each of `sizes`, printed as JSON and, with -o
    FILE, written as `write_results` does. `about` is the text of --help. Returns the exit code: 1 unless all rows are
    `right`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    chosen = parser.parse_args()
    rows = []
    for size in sizes:
        rows.append(measure(*size))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out:
        write_results(chosen.out, columns, rows, operator=operator)
    wrong = [row for row in rows if not right(row)]
    for row in wrong:
        print(f"the answer is wrong: {row}", file=sys.stderr)
    return int(bool(wrong))
