"""GPU benchmark of fixed-sum sampling, beside the published torch step; and a training step of the small DiT.

python benchmarks/gpu_set_diffusion.py [-o FILE.json]

Wall time, median of 50 calls after 10: a call waits for the device itself, for the errors of its arguments. A ratio is
printed only if all of ours keep the sum and the shares of the counts agree with the peer's. floor: bytes of the laws at
3.35 TB/s.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import core_diffusion as cd
import numpy as np
import torch
from core_diffusion.cases import make_bridge, make_sample
from core_diffusion.reference import set_diffusion as reference
from core_registry.timing import write_results

COLUMNS = ["what", "ours_ms", "peer_ms", "ratio", "floor_ms", "difference"]
Row = dict[str, Any]


def median_ms(call: Callable[[], Any], rounds: int = 50) -> float:
    for _ in range(10):
        call()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def shares(counts: torch.Tensor, size: int) -> torch.Tensor:
    return counts.flatten().long().bincount(minlength=size)[:size] / counts.numel()


def row(what: str, ours: Callable[[], Any], peer: Callable[[], Any], tokens: int, traffic: float) -> Row:
    mine, theirs = ours(), peer()
    difference = float((shares(mine, tokens + 1) - shares(theirs, tokens + 1)).abs().max())
    same = bool((mine.sum(1) == tokens).all()) and difference < 0.05
    found: Row = {
        "what": what,
        "ours_ms": median_ms(ours),
        "floor_ms": traffic / 3.35e9,
        "difference": difference,
        "same": same,
    }
    if same:
        found["peer_ms"] = median_ms(peer, 10)
        found["ratio"] = found["peer_ms"] / found["ours_ms"]
    return found


def sampling(batch: int, codes: int, tokens: int) -> list[Row]:
    rng = np.random.default_rng(0)
    a, b = make_sample(rng, batch, codes, tokens), make_bridge(rng, batch, codes, tokens)
    probs, x0, x1 = (torch.from_numpy(x).cuda() for x in (a["probs"].astype(np.float32), b["x0"], b["x1"]))
    totals = torch.full((batch,), tokens, device="cuda")
    g = torch.Generator("cuda").manual_seed(0)
    size = f"B={batch} K={codes} M={tokens}"
    return [
        row(
            f"data end, top-p 0.8, {size}",
            lambda: cd.fixed_sum_sample(probs, totals, seed=1, top_p=0.8),
            lambda: published_sample(probs, totals, g),
            tokens,
            probs.numel() * 4.0,
        ),
        row(
            f"path, t = 0.5, {size}",
            lambda: cd.fixed_sum_bridge(x0, x1, 0.5, max_count=tokens, seed=1),
            lambda: published_step(x0, x1, tokens, g),
            tokens,
            x0.numel() * 12.0,
        ),
    ]


def published_sample(probs: torch.Tensor, totals: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    with torch.device("cuda"):
        return reference.repair_sample(probs, totals, 0.8, g)


def published_step(x0: torch.Tensor, x1: torch.Tensor, tokens: int, g: torch.Generator) -> torch.Tensor:
    with torch.device("cuda"):
        return reference.repair_step(x0, x1, 0.5, 0.25, tokens, g)


def training() -> list[Row]:
    """A step of DiT 12 x 256, patch 2, 28 x 28, batch 256, in bfloat16: eager, compiled, and with experts."""
    from core_diffusion.dit import DiT, flow_matching_loss
    from core_diffusion.training import TrainConfig, Trainer

    rows = []
    data = {"images": torch.randn(4096, 1, 28, 28), "labels": torch.randint(10, (4096,))}
    experts = {"num_experts": 8, "router": "race", "top_k": 1}
    for what, moe, compiled in (
        ("dense", None, False),
        ("dense", None, True),
        ("race", experts, False),
        ("race", experts, True),
    ):
        config = TrainConfig(
            steps=10**6, batch_size=256, precision="bf16", compile=compiled, progress=False, log_every=0
        )
        trainer = Trainer(DiT(moe=moe, per_layer_target=moe is not None), flow_matching_loss(), data, config)
        start = time.perf_counter()
        trainer.train_step()
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        step = median_ms(trainer.train_step, 20)
        print(
            f"DiT {what} {'compiled' if compiled else 'eager'}: {step:.2f} ms a step, first {first:.1f} s", flush=True
        )
        rows.append({"what": f"DiT 12x256 {what}, batch 256, {'compiled' if compiled else 'eager'}", "ours_ms": step})
    return rows


def main() -> int:
    """Runs all rows, prints them, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--training", action="store_true")
    arguments = parser.parse_args()
    rows = [r for size in ((8, 4096, 128), (256, 4096, 128), (8, 1024, 64), (512, 256, 32)) for r in sampling(*size)]
    for r in rows:
        print(r, flush=True)
    if arguments.training:
        rows += training()
    if arguments.out:
        write_results(arguments.out, COLUMNS, rows)
    return 0 if all(r.get("same", True) for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
