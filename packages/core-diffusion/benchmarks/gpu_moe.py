"""GPU benchmark of the mixture-of-experts layer: 65,536 tokens, 16 experts, 1024 -> 4096, bfloat16.

python benchmarks/gpu_moe.py [--out FILE.json]

CUDA events, median of 50 runs after 10. Selection: ours beside torch.topk and scatter over all 65,536 x 16 scores.
Layer: routing and experts, forward and forward + backward, beside torch.topk with a loop over experts and with
torch.nn.functional.grouped_mm over sorted rows; the ratio is to the faster. A third way, scattermoe, has no release
on the package index. floor_ms: the products alone at the rate of one 8192^3 product of torch, and for the selection its
bytes at the rate of a large copy. Exits 1 if the answers differ.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from core_diffusion import moe_route, topk_mask
from core_diffusion.torch_moe import expert_ffn
from core_registry.timing import device_ms, write_results

TOKENS, EXPERTS, WIDTH, INNER = 65536, 16, 1024, 4096
COLUMNS = ["what", "ours_ms", "floor_ms", "loop_ms", "grouped_mm_ms", "ratio", "difference"]
Row = dict[str, Any]


def median_ms(call: Callable[[], Any]) -> float:
    """The time of a call; the device sleeps until the host has queued it."""
    return device_ms(call, 50, 10, lambda: torch.cuda._sleep(1_000_000))


def ceilings() -> tuple[float, float]:
    """Measured FLOP/s of a large bfloat16 product and bytes/s of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = median_ms(lambda: a @ b)
    from_, to = (torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy = median_ms(lambda: to.copy_(from_))
    return 2 * 8192**3 / product * 1e3, 2 * 2**30 / copy * 1e3


def selection(bandwidth: float) -> list[Row]:
    """Global top-k of one score in 16, and the lists of tokens."""
    scores = torch.randn(TOKENS * EXPERTS, device="cuda")

    def peer() -> tuple[torch.Tensor, torch.Tensor]:
        values, places = scores.topk(TOKENS, sorted=False)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(0, places, True), values.min()

    (mask, kth), (theirs, limit) = topk_mask(scores, TOKENS), peer()
    same = bool(torch.equal(mask, theirs) and kth == limit)
    table = mask.view(TOKENS, EXPERTS)
    ours, peers, route = (
        median_ms(lambda: topk_mask(scores, TOKENS)),
        median_ms(peer),
        median_ms(lambda: moe_route(table, TOKENS)),
    )
    floor = 5 * scores.numel() / bandwidth * 1e3
    return [
        {"what": "top-k", "ours_ms": ours, "floor_ms": floor, "loop_ms": peers, "ratio": peers / ours, "same": same},
        {"what": "route", "ours_ms": route, "floor_ms": (table.numel() + 8 * TOKENS) / bandwidth * 1e3},
    ]


def sorted_rows(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of selected pairs: token, expert, row in a matrix where each expert's rows begin at a multiple of 8; the ends."""
    token, expert = places // EXPERTS, places % EXPERTS
    order = expert.argsort(stable=True)
    token, expert = token[order], expert[order]
    count = torch.bincount(expert, minlength=EXPERTS)
    ends = ((count + 7) // 8 * 8).cumsum(0)
    starts = ends - (count + 7) // 8 * 8
    row = torch.arange(TOKENS, device="cuda") - (count.cumsum(0) - count)[expert] + starts[expert]
    return token, expert, row, ends.to(torch.int32)


def layer(backward: bool, rate: float) -> list[Row]:
    """Race: global top-k, route and experts, beside torch's ways."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(TOKENS, EXPERTS, device="cuda")
    up = (torch.randn(EXPERTS, INNER, WIDTH, device="cuda") * WIDTH**-0.5).bfloat16()
    down = (torch.randn(EXPERTS, WIDTH, INNER, device="cuda") * INNER**-0.5).bfloat16()
    gates = logits.bfloat16()
    apart = [[w.clone() for w in up], [w.clone() for w in down]]
    grad = torch.randn_like(x)
    for t in (x, gates, up, down, *apart[0], *apart[1]):
        t.requires_grad_(backward)

    def ours() -> torch.Tensor:
        mask = topk_mask(logits.view(-1), TOKENS)[0].view(TOKENS, EXPERTS)
        return expert_ffn(x, mask, gates, up, down, pairs=TOKENS)

    def loop() -> torch.Tensor:
        places = logits.view(-1).topk(TOKENS, sorted=False).indices
        mask = torch.zeros(TOKENS * EXPERTS, dtype=torch.bool, device="cuda").scatter_(0, places, True)
        mask = mask.view(TOKENS, EXPERTS)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows = mask[:, e].nonzero().squeeze(1)
            y = F.linear(F.gelu(F.linear(x[rows], apart[0][e]), approximate="tanh"), apart[1][e])
            out = out.index_add(0, rows, y * gates[rows, e, None])
        return out

    def grouped() -> torch.Tensor:
        token, expert, row, ends = sorted_rows(logits.view(-1).topk(TOKENS, sorted=False).indices)
        rows = x.new_zeros(TOKENS + 8 * EXPERTS, WIDTH).index_copy(0, row, x[token])
        h = F.gelu(F.grouped_mm(rows, up.transpose(1, 2), offs=ends), approximate="tanh")
        y = F.grouped_mm(h, down.transpose(1, 2), offs=ends)[row] * gates[token, expert, None]
        return torch.zeros_like(x).index_add(0, token, y)

    def step(f: Callable[[], torch.Tensor]) -> torch.Tensor:
        out = f()
        if not backward:
            return out
        weights = [*apart[0], *apart[1]] if f is loop else [up, down]
        return torch.autograd.grad(out, [x, gates, *weights], grad)[0]

    want = step(loop).float()
    differences = [float((step(f).float() - want).norm() / want.norm()) for f in (ours, grouped)]
    mine, by_loop, by_group = (median_ms(lambda f=f: step(f)) for f in (ours, loop, grouped))  # type: ignore[misc]
    return [
        {
            "what": "layer, forward + backward" if backward else "layer, forward",
            "ours_ms": mine,
            "floor_ms": (3 if backward else 1) * 4 * TOKENS * WIDTH * INNER / rate * 1e3,
            "loop_ms": by_loop,
            "grouped_mm_ms": by_group,
            "ratio": min(by_loop, by_group) / mine,
            "difference": max(differences),
            "same": max(differences) < 0.02,
        }
    ]


def main() -> int:
    """Runs all rows, prints them, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    out = parser.parse_args().out
    with torch.no_grad():
        rate, bandwidth = ceilings()
        rows = selection(bandwidth) + layer(False, rate)
    rows += layer(True, rate)
    for row in rows:
        print(row)
    if out:
        write_results(out, COLUMNS, rows)
    return 0 if all(row.get("same", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
