"""GPU benchmark of XAttention: 32 query and 8 key/value heads, head dimension 128, bfloat16, blocks of 128.

python benchmarks/gpu_xattention.py [-o FILE.json] [--lengths 32768 131072]

CUDA events, median of 20 runs after 5. Kernel: ours beside FlexAttention on the same random blocks. Chain: estimate,
select and attend on operands with topics, locality and a sink, beside torch's dense causal attention (the faster of
cuDNN and flash). Backward: torch.autograd.grad alone, beside FlexAttention's on the same blocks. Exits 1 if the answers
of the kernels differ by more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import core_llm_efficiency as core
import torch
import torch.nn.functional as F
from core_llm_efficiency.xattention import DENSE_UP_TO, _antidiagonal_scores
from core_registry.timing import device_ms, floor_ms, write_results
from torch._functorch import config as functorch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

functorch.donated_buffer = False  # the peer's graph is kept and goes backward many times
HEADS, GROUPS, DIM, BLOCK, STRIDE = 32, 8, 128, 128, 16
Row = dict[str, Any]


def operands(length: int) -> list[torch.Tensor]:
    """q, k, v whose heads look for recurring topics, near positions and the first token, in different shares."""
    place = torch.arange(length, device="cuda", dtype=torch.float32)[:, None]
    centres = torch.randn(64, DIM // 2, device="cuda")
    runs = torch.randint(0, 64, (-(-length // 256),), device="cuda")
    topic = centres[runs].repeat_interleave(256, 0)[:length]
    wave = 2.0 ** torch.linspace(-14, -6, DIM // 8, device="cuda") * 2 * math.pi
    near = torch.cat([(place * wave).cos(), (place * wave).sin()], 1)
    gain = torch.rand(HEADS, 1, 1, device="cuda") * 1.2 + 0.4
    q, k = torch.zeros(1, HEADS, length, DIM, device="cuda"), torch.zeros(1, GROUPS, length, DIM, device="cuda")
    k[..., : DIM // 2], k[..., DIM // 2 : 3 * DIM // 4] = 1.5 * topic, 2.5 * near
    k[..., :1, DIM - 1 :] += 8.0
    q[..., : DIM // 2] = gain * 1.5 * topic
    q[..., DIM // 2 : 3 * DIM // 4] = (2 - gain) * 2.5 * near
    q[..., DIM - 1 :] += 4.0
    v = torch.randn_like(k)
    noisy = [x + 0.3 * torch.randn_like(x) for x in (q, k)]
    return [x.to(torch.bfloat16) for x in (*noisy, v)]


def products(mask: torch.Tensor) -> float:
    """Floating point operations on the chosen blocks, counted whole."""
    return 4.0 * float(mask.sum()) * BLOCK * BLOCK * DIM


def flex_blocks(mask: torch.Tensor, length: int) -> BlockMask:
    """FlexAttention's form of a mask: whole blocks, and those on the diagonal."""
    diagonal = torch.eye(mask.shape[2], dtype=torch.bool, device="cuda")

    def listed(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kept.sum(-1, dtype=torch.int32), order.to(torch.int32)

    partial, whole = listed(mask & diagonal), listed(mask & ~diagonal)
    return BlockMask.from_kv_blocks(
        *partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=lambda b, h, i, j: i >= j, seq_lengths=(length, length)
    )


def random_blocks(length: int, density: float) -> torch.Tensor:
    """A causal mask of random blocks, the diagonal included."""
    blocks = length // BLOCK
    mask = torch.rand(1, HEADS, blocks, blocks, device="cuda") < density
    return (mask | torch.eye(blocks, dtype=torch.bool, device="cuda")).tril()


def measure_kernel(length: int, density: float) -> Row:
    """Ours and FlexAttention on the same random blocks."""
    q, k, v = operands(length)
    mask = random_blocks(length, density)
    flops = products(mask)
    row: Row = {"what": "attend", "length": length}
    row["density"] = core.block_density(mask, q_len=length, k_len=length, block_size=BLOCK)
    row["floor_ms"] = floor_ms(flops, 2.0 * (2 * q.numel() + k.numel() + v.numel()))
    ours = core.block_sparse_attention(q, k, v, mask)
    row["ours_ms"] = device_ms(lambda: core.block_sparse_attention(q, k, v, mask))
    row["ours_tflops"] = flops / row["ours_ms"] * 1e-9
    chosen, flex = flex_blocks(mask, length), torch.compile(flex_attention)
    theirs = flex(q, k, v, block_mask=chosen, enable_gqa=True)
    row["difference"] = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    row["peer"], row["peer_ms"] = "FlexAttention", device_ms(lambda: flex(q, k, v, block_mask=chosen, enable_gqa=True))
    row["peer_tflops"] = flops / row["peer_ms"] * 1e-9
    row["ratio"] = row["peer_ms"] / row["ours_ms"] if row["difference"] < 1e-2 else "answers differ"
    return row


def measure_gradients(length: int, density: float) -> Row:
    """The gradients of q, k and v alone, ours and FlexAttention's on the same random blocks."""
    inputs = [x.requires_grad_() for x in operands(length)]
    mask = random_blocks(length, density)
    weight = torch.randn_like(inputs[0])
    chosen, flex = flex_blocks(mask, length), torch.compile(flex_attention)
    row: Row = {"what": "attend, backward", "length": length}
    row["density"] = core.block_density(mask, q_len=length, k_len=length, block_size=BLOCK)
    flops = 2.5 * products(mask)
    row["floor_ms"] = floor_ms(flops, 4.0 * sum(x.numel() for x in inputs) + 4.0 * weight.numel())
    found: list[tuple[torch.Tensor, ...]] = []
    for name, call in (
        ("ours", lambda: core.block_sparse_attention(*inputs, mask)),
        ("peer", lambda: flex(*inputs, block_mask=chosen, enable_gqa=True)),
    ):
        out = call()

        def back(out: torch.Tensor = out) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(out, inputs, weight, retain_graph=True)

        found.append(back())
        row[f"{name}_ms"] = device_ms(back)
        row[f"{name}_tflops"] = flops / row[f"{name}_ms"] * 1e-9
    row["peer"] = "FlexAttention"
    row["difference"] = max(
        float((x.float() - y.float()).norm() / y.float().norm()) for x, y in zip(*found, strict=True)
    )
    row["ratio"] = row["peer_ms"] / row["ours_ms"] if row["difference"] < 1e-2 else "answers differ"
    return row


def dense_ms(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, float]:
    """torch's dense causal attention by its fast ways."""
    times = {}
    runs = 100 if q.shape[2] <= DENSE_UP_TO else 20 if q.shape[2] <= 65536 else 5
    for name, way in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        with sdpa_kernel(way):
            times[name] = device_ms(
                lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), runs, 2
            )
    return times


def measure_chain(length: int, threshold: float) -> list[Row]:
    """Estimate, select and attend, and the first two alone; the error is that of leaving blocks out."""
    q, k, v = operands(length)
    options: dict[str, Any] = {"threshold": threshold, "stride": STRIDE, "block_size": BLOCK}
    row: Row = {"what": "all", "length": length, "threshold": threshold}
    _, mask = core.xattn_estimate(q, k, **options)
    row["density"] = core.block_density(mask, q_len=length, k_len=length, block_size=BLOCK)
    tiles = (length / STRIDE) ** 2 / 2 * STRIDE * DIM * 2 * HEADS
    row["floor_ms"] = floor_ms(tiles + products(mask), 2.0 * (3 * q.numel() + 2 * k.numel() + v.numel()))
    row["ours_ms"] = device_ms(lambda: core.xattention(q, k, v, dense_up_to=0, **options))
    row["scores_ms"] = device_ms(lambda: _antidiagonal_scores(q, k, STRIDE, BLOCK, None, True))
    row["attend_ms"] = device_ms(lambda: core.block_sparse_attention(q, k, v, mask))
    times = dense_ms(q, k, v)
    row |= {f"{name}_ms": ms for name, ms in times.items()}
    row["peer"] = "dense, " + min(times, key=lambda name: times[name])
    row["peer_ms"] = min(times.values())
    row["ratio"] = row["peer_ms"] / row["ours_ms"]
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    row["difference_to_dense"] = float(
        (core.xattention(q, k, v, dense_up_to=0, **options).float() - exact.float()).norm() / exact.float().norm()
    )
    estimate: Row = {
        "what": "estimate, select",
        "length": length,
        "density": row["density"],
        "peer": "",
        "peer_ms": "",
        "ratio": "",
    }
    estimate["floor_ms"] = floor_ms(tiles, 2.0 * (q.numel() + k.numel()) + 4.0 * mask.numel())
    estimate["ours_ms"] = device_ms(lambda: core.xattn_estimate(q, k, **options))
    default = row | {"what": "default", "density": 1.0 if length <= DENSE_UP_TO else row["density"]}
    default["ours_ms"] = device_ms(lambda: core.xattention(q, k, v, **options), 100)
    default["ratio"] = row["peer_ms"] / default["ours_ms"]
    return [estimate, row, *([default] if length <= DENSE_UP_TO else [])]


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 32768, 131072])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1, 0.25])
    parser.add_argument("--threshold", type=float, default=0.9)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    measurements: list[Callable[[], list[Row]]] = [
        lambda n=n: measure_chain(n, chosen.threshold) for n in chosen.lengths
    ]
    measurements += [lambda d=d: [measure_kernel(max(chosen.lengths), d)] for d in chosen.densities]
    measurements += [lambda d=d: [measure_gradients(32768, d)] for d in chosen.densities]
    for measurement in measurements:
        for row in measurement():
            rows.append(row)
            print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()
    columns = ["what", "length", "density", "ours_ms", "peer", "peer_ms", "ratio", "floor_ms"]
    if chosen.out:
        write_results(chosen.out, columns, rows, operator="core_llm_efficiency.block_sparse_attention")
    worst = max((r["difference"] for r in rows if "difference" in r), default=0.0)
    if not worst < 1e-2:
        print(f"the answers differ by {worst:g}", file=sys.stderr)
    return int(not worst < 1e-2)


if __name__ == "__main__":
    sys.exit(main())
