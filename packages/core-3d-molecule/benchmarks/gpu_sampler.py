"""GPU benchmark of Uni-3DAR's sampler on the weights of a checkpoint: arena, device queue, graphs; against plain torch.

python benchmarks/gpu_sampler.py CHECKPOINT [--batch 500] [--out FILE.json]

The peer is the loop as it is usually written: a queue of cells for each molecule in Python, keys and values joined anew
at every step, rows of finished molecules gathered out. Wall clock of whole batches, best of 3, both in bfloat16. Before
that both draw 64 molecules in float32 with the same noise and must give the same streams, else it exits with 1.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import torch
from core_3d_molecule.checkpoints import load_model
from core_3d_molecule.octree import CLS, MASK, TREE
from core_3d_molecule.uni3dar import Sampler, Settings, Uni3DAR
from core_3d_molecule.uni3dar.model import TREE_CLASSES
from core_registry.timing import write_results
from torch.nn import functional as F

Entry = tuple[int, int, int, int]
Pair = tuple[torch.Tensor, torch.Tensor]


def draw(logits: torch.Tensor, temperature: float, noise: torch.Tensor | None) -> torch.Tensor:
    """Indices (B,)."""
    if noise is not None:
        return (logits.float() / temperature - noise.clamp(min=1e-20).log()).argmax(-1)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0]


@torch.no_grad()
def plain(
    model: Uni3DAR, count: int, settings: Settings, dtype: torch.dtype, seed: int | None = None
) -> list[list[int]]:
    """The streams of `count` molecules, empty for those not finished in time; with a seed, by the sampler's noise."""
    c = model.config
    queues: list[deque[Entry]] = [deque([(c.merge_level, 0, 0, 0)]) for _ in range(count)]
    streams: list[list[int]] = [[] for _ in range(count)]
    live = list(range(count))
    last: list[tuple[int, int, list[float]]] = [(0, 0, [0.0] * 3)] * count
    cache: list[Pair | None] = [None] * c.layers * c.recycle
    heads = model.heads[0]
    sizes = [TREE_CLASSES, c.atom_types, c.bins, c.bins, c.bins]
    generator = None if seed is None else torch.Generator("cuda").manual_seed(seed)
    noise: list[torch.Tensor | None] = [None] * 5
    for step in range(settings.max_tokens):
        entries = [queues[b].popleft() for b in live]
        middles = [[(x + 0.5) * 2**level * c.bins for x in at] for level, *at in entries]
        first = step == 0
        tokens = [[MASK] if first else [last[b][0], MASK] for b in live]
        levels = [[e[0]] if first else [last[b][1], e[0]] for b, e in zip(live, entries, strict=True)]
        places = [[m] if first else [last[b][2], m] for b, m in zip(live, middles, strict=True)]
        if generator is not None:
            whole = torch.empty(count, sum(sizes), device="cuda").exponential_(generator=generator)
            noise = list(whole[torch.tensor(live).cuda()].split(sizes, 1))
        x = model.embed(torch.tensor(tokens).cuda(), torch.tensor(levels).cuda(), None, None, None)

        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: int, cache: list[Pair | None] = cache
        ) -> torch.Tensor:
            q, k, v = (y.transpose(1, 2).to(dtype) for y in (q, k, v))
            before = cache[index]
            if before is not None:
                k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
            cache[index] = k, v
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            hidden = model.trunk(x, torch.tensor(places).cuda(), attend)[:, -1]
            tree = draw(heads.tree(hidden), settings.tree, noise[0]).tolist()
            chosen: list[torch.Tensor] = []

            def choose(
                part: int, logits: torch.Tensor, chosen: list[torch.Tensor] = chosen, noise: list[Any] = noise
            ) -> torch.Tensor:
                chosen.append(draw(logits, settings.atom if part == 0 else settings.xyz, noise[1 + part]))
                return chosen[-1]

            choose(3, heads.atom(hidden, choose)[3])
        kinds, *bins = (x.tolist() for x in chosen)
        kept = []
        for i, b in enumerate(live):
            level, *at = entries[i]
            if level:
                token = tree[i] + TREE + 1
                bits = [n for n in range(8) if (tree[i] + 1) >> n & 1]
                queues[b] += [(level - 1, *(2 * x + (n >> axis & 1) for axis, x in enumerate(at))) for n in bits]
                place = middles[i]
            else:
                token = kinds[i]
                place = [x * c.bins + float(bins[axis][i]) for axis, x in enumerate(at)]
            streams[b].append(token)
            last[b] = token, level, place
            if queues[b]:
                kept.append(i)
        if not kept:
            break
        if len(kept) < len(live):
            rows = torch.tensor(kept).cuda()
            cache = [None if one is None else (one[0][rows], one[1][rows]) for one in cache]
            live = [live[i] for i in kept]
    return [[*s, CLS] if not q else [] for s, q in zip(streams, queues, strict=True)]


def seconds(call: object) -> float:
    """Wall clock, best of 3 after one."""
    best = np.inf
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()  # type: ignore[operator]
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return float(best)


def main() -> int:
    """Prints and writes the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    model = load_model(arguments.checkpoint, "cuda")
    whole = Settings(compact=0.0)  # rows keep their noise
    found = Sampler(model, whole, batch=64, dtype=torch.float32).sample(64, seed=3)
    ours = [found.tokens[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    same = ours == [s for s in plain(model, 64, whole, torch.float32, 3) if s]
    settings, batch = Settings(), arguments.batch
    sampler = Sampler(model, settings, batch=batch)
    mine = seconds(lambda: sampler.sample(batch, seed=1))
    theirs = seconds(lambda: plain(model, batch, settings, torch.bfloat16))
    row = {
        "what": f"{batch} molecules", "ours_s": mine, "plain_s": theirs, "ratio": theirs / mine,
        "ours_ms_a_molecule": 1e3 * mine / batch, "same": same,
    }  # fmt: skip
    print(torch.cuda.get_device_name(), row, sep="\n")
    if arguments.out:
        columns = ["what", "ours_s", "plain_s", "ratio", "ours_ms_a_molecule", "same"]
        write_results(arguments.out, columns, [row])
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
