"""Ours and the peer on the same work in one run: the rows of the packages' case tables."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import sys
import timeit
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import rich.console
import rich.table

if TYPE_CHECKING:
    from .testing import Case

Row = dict[str, Any]
H100_BYTES, H100_FLOPS = 3.35e12, 67e12  # datasheet: HBM3, fp32
CPU_BYTES, CPU_FLOPS = 2e10, 8e10  # one core of a server: memory, fp32 FMA


def run(op: str | None, device: str, threads: int) -> list[Row]:
    """One row per case: seconds of ours and of the peer, their ratio, the floor and the largest difference."""
    os.environ["CORE_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if device not in ("cpu", "cuda"):
        raise SystemExit(f"core: --device is cpu or cuda, not {device!r}")
    cases: list[Case] = []
    for point in sorted(importlib.metadata.entry_points(group="core.cases"), key=lambda p: p.name):
        cases += point.load()
    chosen = [c for c in cases if device in c.devices and (op is None or op in (c.op, c.op.partition(".")[2]))]
    if not chosen:
        raise SystemExit(
            f"core: no case of {op or 'any operator'} on {device}; there are {', '.join(c.op for c in cases)}"
        )
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    return [_row(c, device) for c in chosen]


def _row(case: Case, device: str) -> Row:
    args = case.arguments("bench")
    row: Row = {"op": case.op, "device": device, "peer": case.peer[0] if case.peer else ""}
    call = case.binding()
    if device == "cuda":
        import torch

        row["device"] = torch.cuda.get_device_name()
        there = {k: torch.from_numpy(v).cuda() if hasattr(v, "__array__") else v for k, v in args.items()}
        values, seconds = list(there.values()), _cuda_seconds
    else:
        values, seconds = list(args.values()), _cpu_seconds
    row["ours"] = seconds(lambda: call(*values))
    if case.work:
        moved, flops = case.work(args)
        rates = (H100_BYTES, H100_FLOPS) if device == "cuda" else (CPU_BYTES, CPU_FLOPS)
        row["floor"] = max(moved / rates[0], flops / rates[1])
    if case.peer and device == "cpu":
        work = case.peer[1](args)
        answer = work()
        row["peers"] = seconds(work)
        try:
            row["difference"] = case.agree(args, args, answer) if case.agree else case.difference(args, answer)
            if not row["difference"] < float("inf"):
                raise AssertionError("the answers differ")
            row["ratio"] = row["peers"] / row["ours"]
        except AssertionError as e:
            row["error"] = str(e).strip().splitlines()[0]
    return row


def _cpu_seconds(work: Callable[[], object]) -> float:
    timer = timeit.Timer(work)
    work()
    number, _ = timer.autorange() if timer.timeit(1) < 0.05 else (1, 0)
    return float(min(timer.repeat(5, number)) / number)


def _cuda_seconds(work: Callable[[], object]) -> float:
    import torch

    times = []
    for i in range(60):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= 10:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def show(console: rich.console.Console, rows: list[Row]) -> None:
    """Prints the rows as a table."""
    columns = list(dict.fromkeys(k for r in rows for k in r))
    table = rich.table.Table(*columns, box=None)
    for row in rows:
        table.add_row(*(_cell(c, row) for c in columns))
    console.print(table)


def _cell(column: str, row: Mapping[str, Any]) -> str:
    value = row.get(column, "")
    if not isinstance(value, float):
        return str(value)
    if column in ("ours", "peers", "floor", "seconds"):
        for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
            if value >= scale:
                return f"{value / scale:.3g} {unit}"
        return f"{value * 1e9:.0f} ns"
    return f"{value:.3g}"
