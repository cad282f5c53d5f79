"""GPU benchmark of the mixture-of-experts layer: 65,536 tokens, 16 experts, 1024 -> 4096, bfloat16.

python benchmarks/gpu_moe.py [--out FILE.json]

CUDA events, median of 50 runs after 10. Selection: ours beside torch.topk and scatter over all 65,536 x 16 scores.
Layer: routing and experts, forward and forward + backward, beside torch.topk and a loop over experts. Exits 1 if the
answers differ.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from core_diffusion import moe_route, topk_mask
from core_diffusion.torch_moe import expert_ffn

TOKENS, EXPERTS, WIDTH, INNER = 65536, 16, 1024, 4096
COLUMNS = ["what", "ours_ms", "peer_ms", "ratio", "difference"]
Row = dict[str, Any]


def median_ms(call: Callable[[], Any]) -> float:
    """The median time of a call on the device, in milliseconds: the device sleeps until the host has queued it."""
    for _ in range(10):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(50)]
    for begin, end in marks:
        torch.cuda._sleep(1_000_000)
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([begin.elapsed_time(end) for begin, end in marks]))


def selection() -> list[Row]:
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
    return [
        {"what": "top-k", "ours_ms": ours, "peer_ms": peers, "ratio": peers / ours, "same": same},
        {"what": "route", "ours_ms": route},
    ]


def layer(backward: bool) -> list[Row]:
    """Race: global top-k, route and experts, beside the loop over experts after torch.topk."""
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

    def step(f: Callable[[], torch.Tensor]) -> torch.Tensor:
        out = f()
        if not backward:
            return out
        weights = [up, down] if f is ours else [*apart[0], *apart[1]]
        return torch.autograd.grad(out, [x, gates, *weights], grad)[0]

    difference = float((step(ours).float() - step(loop).float()).norm() / step(loop).float().norm())
    mine, peers = median_ms(lambda: step(ours)), median_ms(lambda: step(loop))
    what = "layer, forward + backward" if backward else "layer, forward"
    same = difference < 0.02
    return [
        {"what": what, "ours_ms": mine, "peer_ms": peers, "ratio": peers / mine, "difference": difference, "same": same}
    ]


def main() -> int:
    """Runs all rows, prints them, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    out = parser.parse_args().out
    with torch.no_grad():
        rows = selection() + layer(False)
    rows += layer(True)
    for row in rows:
        print(row)
    rows = [dict.fromkeys(COLUMNS, "") | row for row in rows]
    if out:
        head = {
            "date": datetime.date.today().isoformat(),
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "columns": COLUMNS,
        }
        out.write_text(json.dumps({**head, "rows": rows}, indent=2) + "\n")
    return 0 if all(row.get("same", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
