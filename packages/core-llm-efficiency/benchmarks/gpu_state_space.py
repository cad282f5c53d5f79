"""GPU benchmark of the state-space scans, bfloat16 operands, float32 steps and states.

python benchmarks/gpu_state_space.py [-o FILE.json]

Mamba-2: (1, 32768, 128 heads of 64, 8 groups, 128 states), beside the same chunked products in torch (as transformers'
model computes them, chunks of 256, bfloat16 products) and, where it is installed, flash-linear-attention's Triton
kernel for one decay a head (`fla.ops.simple_gla`). Mamba-1: (1, 4096 channels, 32768, 16 states). A single step: 64
sequences. Backward: torch.autograd.grad alone, beside that of the same torch code. Medians of 20 with CUDA events.
Exits 1 if the answers differ by more than 1 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import core_llm_efficiency as core
import torch
from core_registry.timing import device_ms, floor_ms, write_results

Row = dict[str, Any]


def chunked(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """The scan of one sequence in torch: chunks of 256 as batched products, states passed on in a loop."""
    _, steps, heads, width = x.shape
    size, share, states = 256, heads // B.shape[2], B.shape[3]
    count = steps // size
    sums = (dt * A).view(count, size, heads).permute(2, 0, 1).cumsum(-1)  # (heads, chunks, size)
    wave = (dt[..., None] * x).to(x.dtype).view(count, size, heads, width).permute(2, 0, 1, 3)
    b, c = (v.view(count, size, -1, states).permute(2, 0, 1, 3) for v in (B, C))
    scores = (c @ b.mT).repeat_interleave(share, 0)
    decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
    out = (scores * decay).to(x.dtype) @ wave
    b, c = b.repeat_interleave(share, 0), c.repeat_interleave(share, 0)
    to_end = (sums[..., -1:] - sums).exp()
    written = (wave * to_end[..., None]).to(x.dtype).mT @ b
    state = torch.zeros_like(written[:, 0], dtype=torch.float32)
    before = []
    for i in range(count):
        before.append(state)
        state = state * sums[:, i, -1, None, None].exp() + written[:, i]
    out = out + sums.exp()[..., None] * (c @ torch.stack(before, 1).to(x.dtype).mT)
    return out.permute(1, 2, 0, 3).reshape(x.shape)


def measure_ssd(
    with_fla: bool, steps: int = 32768, heads: int = 128, width: int = 64, groups: int = 8, states: int = 128
) -> Row:
    """Ours beside the torch code, or beside flash-linear-attention."""
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(1, steps, heads, width, **bf16)
    B, C = (torch.randn(1, steps, groups, states, **bf16) / states**0.5 for _ in range(2))
    dt, A = torch.rand(1, steps, heads, device="cuda") / 10, -torch.rand(heads, device="cuda") * 8 - 0.5
    flops = 2.0 * steps * heads * (64 * states + 64 * width + 2 * states * width)
    moved = 2.0 * (2 * x.numel() + B.numel() + C.numel()) + 4.0 * dt.numel()
    ours = core.mamba_chunk_scan_combined(x, dt, A, B, C)
    what = "Mamba-2" if heads == 128 else f"Mamba-2, {heads} heads"
    row: Row = {"what": what, "length": steps, "floor_ms": floor_ms(flops, moved)}
    if with_fla:
        from fla.ops.simple_gla import chunk_simple_gla

        wave, decay = (dt[..., None] * x).to(x.dtype), dt * A
        k, q = (v.repeat_interleave(heads // groups, 2).contiguous() for v in (B, C))
        row["peer"], theirs = "fla simple_gla", lambda: chunk_simple_gla(q, k, wave, g=decay, scale=1.0)[0]
    else:
        row["peer"], theirs = "torch, chunks", lambda: chunked(x, dt, A, B, C)
    exact = theirs().float()
    row["difference"] = float((ours.float() - exact).norm() / exact.norm())
    row["ours_ms"] = device_ms(lambda: core.mamba_chunk_scan_combined(x, dt, A, B, C))
    row["peer_ms"] = device_ms(theirs, 5)
    row["ratio"] = row["peer_ms"] / row["ours_ms"] if row["difference"] < 1e-2 else "answers differ"
    return row


def measure_ssd_backward(
    steps: int = 32768, heads: int = 128, width: int = 64, groups: int = 8, states: int = 128
) -> Row:
    """The gradients alone, beside those of the torch code."""
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(1, steps, heads, width, **bf16)
    B, C = (torch.randn(1, steps, groups, states, **bf16) / states**0.5 for _ in range(2))
    dt, A = torch.rand(1, steps, heads, device="cuda") / 10, -torch.rand(heads, device="cuda") * 8 - 0.5
    inputs = [v.requires_grad_() for v in (x, dt, A, B, C)]
    flops = 2.0 * steps * heads * width * (2 * 64 + 5 * states)
    row: Row = {"what": "Mamba-2, backward", "length": steps, "peer": "torch, chunks"}
    row["floor_ms"] = floor_ms(flops, 2.0 * (3 * x.numel() + 2 * B.numel() + 2 * C.numel()) + 8.0 * dt.numel())
    weight = torch.randn_like(x)
    with torch.enable_grad():
        out = core.mamba_chunk_scan_combined(*inputs)
        ours = torch.autograd.grad(out, inputs, weight, retain_graph=True)
        row["ours_ms"] = device_ms(lambda: torch.autograd.grad(out, inputs, weight, retain_graph=True), 10)
        theirs = chunked(*inputs)
        exact = torch.autograd.grad(theirs, inputs, weight, retain_graph=True)
        row["peer_ms"] = device_ms(lambda: torch.autograd.grad(theirs, inputs, weight, retain_graph=True), 5)
    row["difference"] = float((ours[0].float() - exact[0].float()).norm() / exact[0].float().norm())
    row["ratio"] = row["peer_ms"] / row["ours_ms"] if row["difference"] < 1e-2 else "answers differ"
    return row


def measure_step(batch: int = 64, heads: int = 128, width: int = 64, groups: int = 8, states: int = 128) -> Row:
    """One decoding step of many sequences, queued while the device is busy; the floor reads and writes the states."""
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(batch, 1, heads, width, **bf16)
    B, C = (torch.randn(batch, 1, groups, states, **bf16) for _ in range(2))
    dt, A = torch.rand(batch, 1, heads, device="cuda"), -torch.rand(heads, device="cuda")
    state = torch.randn(batch, heads, width, states, device="cuda")
    row: Row = {"what": "Mamba-2, a step", "length": 1, "peer": "", "peer_ms": "", "ratio": ""}
    row["floor_ms"] = floor_ms(0, 8.0 * state.numel())

    def ours() -> Any:
        return core.mamba_chunk_scan_combined(x, dt, A, B, C, initial_states=state, return_final_states=True)

    b, c = (v[:, 0].float().repeat_interleave(heads // groups, 1)[:, :, None] for v in (B, C))
    after = (dt[:, 0] * A).exp()[..., None, None] * state + (dt[:, 0, :, None] * x[:, 0].float())[..., None] * b
    pairs = zip(ours(), ((after * c).sum(-1)[:, None], after), strict=True)
    row["difference"] = max(float((y.float() - z).norm() / z.norm()) for y, z in pairs)
    row["ours_ms"] = device_ms(ours, before=lambda: torch.cuda._sleep(400_000))
    return row


def measure_mamba1(channels: int = 4096, steps: int = 32768, states: int = 16) -> Row:
    """The scan alone, and how it compares with its reference on the first steps."""
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    u = torch.randn(1, channels, steps, **bf16)
    B, C = (torch.randn(1, states, steps, **bf16) for _ in range(2))
    delta, A = torch.rand(1, channels, steps, device="cuda") / 10, -torch.rand(channels, states, device="cuda") * 8
    row: Row = {"what": "Mamba-1", "length": steps, "peer": "", "peer_ms": "", "ratio": ""}
    out = core.selective_scan_fn(u, delta, A, B, C)[0, :64, :256].double()
    state, worst = torch.zeros(64, states, dtype=torch.float64, device="cuda"), []
    for t in range(256):
        step = delta[0, :64, t, None].double()
        state = (step * A[:64].double()).exp() * state + step * B[0, :, t].double() * u[0, :64, t, None].double()
        worst.append((state * C[0, :, t].double()).sum(-1))
    exact = torch.stack(worst, -1)
    row["difference"] = float((out - exact).norm() / exact.norm())
    row["floor_ms"] = floor_ms(0, 2.0 * (2 * u.numel() + 2 * B.numel()) + 4.0 * delta.numel())
    row["ours_ms"] = device_ms(lambda: core.selective_scan_fn(u, delta, A, B, C), 10)
    return row


def measure_mamba1_backward(channels: int = 4096, steps: int = 32768, states: int = 16) -> Row:
    """The gradients alone, and how they compare with torch's on the last 64 steps of some channels."""
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    u = torch.randn(1, channels, steps, **bf16)
    B, C = (torch.randn(1, states, steps, **bf16) for _ in range(2))
    delta, A = torch.rand(1, channels, steps, device="cuda") / 10, -torch.rand(channels, states, device="cuda") * 8
    inputs = [v.requires_grad_() for v in (u, delta, A, B, C)]
    row: Row = {"what": "Mamba-1, backward", "length": steps, "peer": "", "peer_ms": "", "ratio": ""}
    row["floor_ms"] = floor_ms(0, 2.0 * (3 * u.numel() + 4 * B.numel()) + 8.0 * delta.numel())
    weight = torch.randn_like(u)
    with torch.enable_grad():
        out = core.selective_scan_fn(*inputs)
        of_u, *_ = torch.autograd.grad(out, inputs, weight, retain_graph=True)
        row["ours_ms"] = device_ms(lambda: torch.autograd.grad(out, inputs, weight, retain_graph=True), 10)
    last = steps - 64
    dy, d = weight[0, :64, last:].double(), delta[0, :64, last:].detach().double()
    carried, worst = torch.zeros(64, states, dtype=torch.float64, device="cuda"), []
    for t in reversed(range(64)):
        carried = carried + dy[:, t, None] * C[0, :, last + t].detach().double()
        worst.append(d[:, t] * (carried * B[0, :, last + t].detach().double()).sum(-1))
        carried = carried * (d[:, t, None] * A[:64].detach().double()).exp()
    exact = torch.stack(worst[::-1], -1)
    row["difference"] = float((of_u[0, :64, last:].double() - exact).norm() / exact.norm())
    return row


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    measurements: list[Callable[[], Row]] = [lambda: measure_ssd(False), measure_ssd_backward, measure_step]
    measurements += [measure_mamba1, measure_mamba1_backward, lambda: measure_ssd(False, heads=24, groups=1)]
    if importlib.util.find_spec("fla"):
        measurements.append(lambda: measure_ssd(True))
    for measurement in measurements:
        with torch.no_grad():
            rows.append(measurement())
        print(json.dumps(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    columns = ["what", "length", "ours_ms", "peer", "peer_ms", "ratio", "floor_ms"]
    if chosen.out:
        write_results(chosen.out, columns, rows, operator="core_llm_efficiency.ssd_scan")
    worst = max(r["difference"] for r in rows)
    if not worst < 1e-2:
        print(f"the answers differ by {worst:g}", file=sys.stderr)
    return int(not worst < 1e-2)


if __name__ == "__main__":
    sys.exit(main())
