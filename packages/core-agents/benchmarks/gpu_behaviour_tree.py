"""GPU benchmark of the behaviour-tree tick: the specification's tree of 50 nodes for many agents, and a stateful one.

python benchmarks/gpu_behaviour_tree.py [--out FILE.json]

Per case: seconds of a call, median of 100 (the host waits for the device, so all its own work is in them), the
kernel's own time, and the floor: bytes of observations, actions and status once, state and counters twice, at
3.35 TB/s. Before that everything that the agents hold must equal the CPU's, bit for bit; exits 1 if it does not.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
from core_agents import BatchedTree, Program, compile  # noqa: A004
from core_agents.cases import combat_tree
from core_agents.reference.behaviour_tree import random_tree
from core_registry.timing import write_results

FEATURES, BANDWIDTH = 8, 3.35e12


def kernel_seconds(there: BatchedTree, sent: torch.Tensor) -> float:
    """The mean time of the tick's kernel alone, over 20 calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(20):
            there.tick(sent)
        torch.cuda.synchronize()
    spent = [e for e in profile.key_averages() if "tick_tiles" in e.key]
    return sum(e.device_time_total for e in spent) / sum(e.count for e in spent) * 1e-6


def measure(name: str, program: Program, agents: int, rng: np.random.Generator) -> dict[str, Any]:
    """One case: compared with the CPU over three ticks, then timed."""
    here, there = BatchedTree(program, agents), BatchedTree(program, agents)
    same = True
    for _ in range(3):
        observations = rng.normal(size=(agents, FEATURES)).astype(np.float32)
        sent = torch.from_numpy(observations).cuda()
        here.tick(observations)
        there.tick(sent)
        for held in ("status", "actions", "_state", "_counters"):
            same &= bool((np.asarray(getattr(here, held)) == getattr(there, held).cpu().numpy()).all())
    seconds = []
    for _ in range(110):
        torch.cuda.synchronize()
        start = time.perf_counter()
        there.tick(sent)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    call, kernel = float(np.median(seconds[10:])), kernel_seconds(there, sent)
    moved = agents * (4 * FEATURES + 5 + 2 * program.state_rows + 8 * program.counter_rows)
    return {
        "what": name,
        "nodes": len(program),
        "agents": agents,
        "same": same,
        "call_us": call * 1e6,
        "kernel_us": kernel * 1e6,
        "floor_us": moved / BANDWIDTH * 1e6,
        "tree_ticks_per_second": agents / call,
        "kernel_tree_ticks_per_second": agents / kernel,
    }


def main() -> int:
    """Runs all rows, prints them, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    out = parser.parse_args().out
    rng = np.random.default_rng(0)
    fifty = compile(combat_tree(rng, FEATURES), FEATURES)
    stateful = compile(random_tree(np.random.default_rng(5), 50, FEATURES), FEATURES)
    rows = []
    for name, program, agents in (
        ("50 nodes, observations", fifty, 1_000_000),
        ("50 nodes, observations", fifty, 100_000),
        ("random tree with RUNNING", stateful, 1_000_000),
    ):
        rows.append(measure(name, program, agents, rng))
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    if out:
        write_results(out, ["what", "agents", "call_us", "kernel_us", "floor_us", "tree_ticks_per_second"], rows)
    return 0 if all(row["same"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
