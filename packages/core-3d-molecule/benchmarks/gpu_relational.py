"""GPU benchmark of relational attention: 512 molecules of QM9's sizes, 8 heads of 8, 16 edge channels, float32.

python benchmarks/gpu_relational.py [--out FILE.json]

CUDA events, median of 50 runs after 10, the host's time left out. Ours beside the decomposed layer under torch.compile,
once over lists of edges and once over molecules padded to the largest, each pair's query, key and value in memory;
the ratio is to the faster. Exits 1 if the answers or the gradients differ.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from bench_relational import CHANNELS, CLASSES, EDGE, HEADS, edge_list, peer, problem
from core_3d_molecule import relational_attention
from core_registry.timing import device_ms, write_results

COLUMNS = ["what", "ours_ms", "edge_lists_ms", "padded_ms", "ratio", "difference", "floor_ms"]
RATE, BANDWIDTH = 60e12, 3e12  # float32 operations and bytes a second of an H100


def median_ms(call: Callable[[], Any]) -> float:
    """The time of a call; the device sleeps some 10 ms, longer than the host takes to queue any of them."""
    return device_ms(call, 50, 10, lambda: torch.cuda._sleep(20_000_000))


def padded(a: dict[str, torch.Tensor], rows: torch.Tensor, bonds: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The layer over molecules side by side: rows (B, N) of atoms, bonds (B, N, N), real (B, N)."""
    at = a["positions"][rows]
    squared = ((at[:, :, None] - at[:, None]) ** 2).sum(-1, keepdim=True)
    gaussians = torch.exp(-(((squared - a["centres"]) / a["widths"]) ** 2) / 2)
    x = torch.cat([squared, gaussians, torch.nn.functional.one_hot(bonds, CLASSES)], -1)
    e = torch.nn.functional.silu(x @ a["w1"].T + a["b1"]) @ a["w2"].T + a["b2"]
    q, k, v = (
        h + (e @ a[f"edge_{name}"].reshape(-1, EDGE).T).unflatten(-1, (HEADS, CHANNELS))
        for name, h in (("q", a["q"][rows][:, :, None]), ("k", a["k"][rows][:, None]), ("v", a["v"][rows][:, None]))
    )
    logits = ((q * k).sum(-1) * CHANNELS**-0.5).masked_fill(~real[:, None, :, None], -torch.inf)
    return (logits.softmax(2)[..., None] * v).sum(2)[real]


def main() -> int:
    """Prints the rows and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--molecules", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    host = problem(arguments.molecules)
    a = {name: x.cuda() for name, x in host.items()}
    i, j = (x.cuda() for x in edge_list(host["offsets"]))
    counts = host["offsets"].diff()
    most = int(counts.max())
    place = torch.arange(most)
    real = place < counts[:, None]
    rows = torch.where(real, host["offsets"][:-1, None] + place, 0).cuda()
    square = torch.zeros(len(counts), most, most, dtype=torch.int64)
    square[real[:, :, None] & real[:, None]] = host["bonds"].long()
    square, real = square.cuda(), real.cuda()
    lists, dense = torch.compile(peer), torch.compile(padded)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: relational_attention(**a),
        "edge_lists": lambda: lists(a, i, j),
        "padded": lambda: dense(a, rows, square, real),
    }
    leaves = [x for x in a.values() if x.is_floating_point()]
    direction = torch.randn_like(a["q"])

    def gradients(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(calls[name](), leaves, direction)

    def apart(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x - y).norm() / y.norm())

    edges, products = len(i), EDGE * (EDGE + 1) // 2
    pair = 16 * 16 + 16 * EDGE + products * (HEADS + 1)  # multiplications and additions, each pair once
    forward = 2 * (edges / 2 * pair + edges * HEADS * (2 * CHANNELS + 3 * EDGE))
    moved = 4.0 * len(a["q"]) * HEADS * (4 * CHANNELS + 3 * EDGE + 1)
    found = []
    with torch.no_grad():
        worst = max(apart(calls["ours"](), calls[name]()) for name in ("edge_lists", "padded"))
        times = {name: median_ms(call) for name, call in calls.items()}
    found.append(row("forward", times, worst, max(forward / RATE, moved / BANDWIDTH)))
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.enable_grad():
        ours = gradients("ours")
        worst = max(
            apart(x, y) for name in ("edge_lists", "padded") for x, y in zip(ours, gradients(name), strict=True)
        )
        times = {name: median_ms(lambda name=name: gradients(name)) for name in calls}
    found.append(row("forward and backward", times, worst, max(4 * forward / RATE, 3 * moved / BANDWIDTH)))
    print(torch.cuda.get_device_name(), edges, "edges")
    for one in found:
        print(one)
    if arguments.out:
        write_results(arguments.out, COLUMNS, found, molecules=arguments.molecules, edges=edges)
    return 0 if all(one["difference"] < 1e-3 for one in found) else 1


def row(what: str, times: dict[str, float], difference: float, floor: float) -> dict[str, Any]:
    """A line of the table."""
    return {
        "what": what, "ours_ms": times["ours"], "edge_lists_ms": times["edge_lists"], "padded_ms": times["padded"],
        "ratio": min(times["edge_lists"], times["padded"]) / times["ours"], "difference": difference,
        "floor_ms": floor * 1e3,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
