"""GPU benchmark of packed decoding: 32 query and 8 key/value heads, head dimension 128, one token, bfloat16.

python benchmarks/gpu_vidkv.py [-o FILE.json] [--lengths 32768 131072] [--batches 1 8] [--dirty]

K1.5 + V1.58 in groups of 32 beside torch's attention over the dequantised bfloat16 cache (the fastest of flash, cuDNN
and the default). Medians of 40 replays of a CUDA graph, and of plain calls, with CUDA events. Before each, 128 MiB
are read, so that none of its operands is cached, as after the layers before; with --dirty they are written, and
evicting them costs both sides as many bytes as they read, up to the size of the cache. Exits 1 if the answers differ
by more than 1 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import core_llm_efficiency as core
import torch
import torch.nn.functional as F
from core_llm_efficiency.vidkv import PackedKeys, PackedValues
from core_registry.timing import device_ms, floor_ms, write_results
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, GROUPS, DIM, GROUP = 32, 8, 128, 32
Row = dict[str, Any]


def median_us(call: Callable[[], Any], flush: Callable[[], Any], runs: int = 40) -> float:
    """The median time of a call on the current stream, in microseconds, with nothing of its operands cached."""
    return 1e3 * device_ms(call, runs, 0, flush)


def floor_us(moved: float) -> float | None:
    """The time that memory needs at the data sheet's rate."""
    floor = floor_ms(moved=moved)
    return None if floor is None else 1e3 * floor


def replay(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph, so that the host's time does not count."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def random_cache(batch: int, length: int) -> tuple[PackedKeys, PackedValues]:
    """A packed cache with random bits, made on the device."""
    wide = DIM // 2

    def half(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, device="cuda") * 0.9 + 0.1).half()

    runs = length // GROUP
    channels = torch.stack([torch.randperm(DIM, device="cuda") for _ in range(batch)]).int()
    planes = torch.randint(-(2**31), 2**31 - 1, (batch, GROUPS, length // 32, DIM + wide), device="cuda").int()
    zeros = -1.5 * half(batch, GROUPS, runs, wide)
    codes = torch.randint(0, 243, (batch, GROUPS, length, -(-DIM // 5)), device="cuda").to(torch.uint8)
    codes[..., -2:] %= 81
    return (
        PackedKeys(channels, planes, half(batch, GROUPS, runs, DIM), zeros, GROUP),
        PackedValues(codes, half(batch, GROUPS, runs, DIM), None, GROUP),
    )


def dequantised(keys: PackedKeys, values: PackedValues) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache in bfloat16, by torch operations."""
    batch, wide = keys.planes.shape[0], keys.zeros.shape[3]
    shift = torch.arange(32, dtype=torch.int32, device="cuda")[:, None]
    rest = DIM - wide
    j, f = torch.arange(rest, device="cuda")[:, None], torch.arange(rest, device="cuda")[None]
    angle = 2 * torch.pi * j * ((f + 1) // 2) / rest
    basis = torch.where((f % 2 == 1) | (f == 0), angle.cos(), angle.sin())
    basis = basis * torch.where((f == 0) | (f == rest - 1), 1 / rest, 2 / rest).sqrt()
    key = torch.empty(batch, GROUPS, keys.length, DIM, dtype=torch.bfloat16, device="cuda")
    value = torch.empty_like(key)
    for b in range(batch):
        for g in range(GROUPS):
            bit = (keys.planes[b, g][:, None] >> shift & 1).reshape(keys.length, -1).float()
            scale, zero = (x[b, g].float().repeat_interleave(GROUP, 0) for x in (keys.scales, keys.zeros))
            two = zero + scale[:, :wide] * (bit[:, :wide] + 2 * bit[:, wide : 2 * wide])
            one = ((2 * bit[:, 2 * wide :] - 1) * scale[:, wide:]) @ basis.T.float()
            key[b, g, :, keys.channels[b].long()] = torch.cat([two, one], 1).bfloat16()
            places = [values.codes[b, g].int() // 3**i % 3 - 1 for i in range(5)]
            digits = torch.cat(places, 1)[:, :DIM]
            value[b, g] = (digits * values.scales[b, g].float().repeat_interleave(GROUP, 0)).bfloat16()
    return key, value


def measure(batch: int, length: int, flush: Callable[[], Any]) -> Row:
    """Ours and torch's on the same cache."""
    torch.backends.cuda.matmul.allow_tf32 = False
    keys, values = random_cache(batch, length)
    query = torch.randn(batch, HEADS, DIM, device="cuda").bfloat16()
    recent = torch.zeros(batch, GROUPS, 0, DIM, device="cuda").bfloat16()
    key, value = dequantised(keys, values)

    def ours() -> torch.Tensor:
        out: torch.Tensor = core.packed_attention(query, keys, values, recent, recent)
        return out

    def theirs() -> torch.Tensor:
        return F.scaled_dot_product_attention(query[:, :, None], key, value, enable_gqa=True)[:, :, 0]

    row: Row = {"what": "packed decode", "batch": batch, "length": length}
    row["bytes"] = keys.nbytes + values.nbytes
    row["bytes_ratio"] = row["bytes"] / (key.nbytes + value.nbytes)
    row["floor_us"] = floor_us(row["bytes"])
    out, exact = ours().double(), theirs().double()
    row["difference"] = float((out - exact).norm() / exact.norm())
    row["ours_us"] = median_us(replay(ours), flush)
    row["ours_call_us"] = median_us(ours, flush)
    times = {}
    ways = {"default": None, "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, way in ways.items():
        with contextlib.suppress(RuntimeError), sdpa_kernel(way) if way else contextlib.nullcontext():
            theirs()
            times[name] = median_us(replay(theirs), flush)
    row |= {f"{name}_us": us for name, us in times.items()}
    row["peer"] = "SDPA, " + min(times, key=lambda name: times[name])
    row["peer_us"] = min(times.values())
    row["ratio"] = row["peer_us"] / row["ours_us"] if row["difference"] < 1e-2 else "answers differ"
    return row


def measure_quantise(length: int, flush: Callable[[], Any]) -> Row:
    """Packing the keys and values of a prompt, their channels chosen before, and how much differs on the CPU."""
    key, value = (torch.randn(1, GROUPS, length, DIM, device="cuda").bfloat16() for _ in range(2))
    channels, wide = core.select_channels(key)
    row: Row = {"what": "quantise", "batch": 1, "length": length}
    row |= {"peer": "", "peer_us": "", "ratio": ""}
    keys, values = core.pack_keys(key, channels, wide), core.pack_values(value)
    there = core.pack_keys(key.float().cpu(), channels.cpu(), wide), core.pack_values(value.float().cpu())
    pairs = (keys.planes.cpu(), there[0].planes), (values.codes.cpu(), there[1].codes)
    row["difference"] = max(float((x != y).float().mean()) for x, y in pairs)
    row["keys_us"] = median_us(lambda: core.pack_keys(key, channels, wide), flush)
    row["values_us"] = median_us(lambda: core.pack_values(value), flush)
    row["ours_us"] = row["keys_us"] + row["values_us"]
    row["bytes"] = keys.nbytes + values.nbytes + key.nbytes + value.nbytes
    row["bytes_ratio"] = (keys.nbytes + values.nbytes) / (key.nbytes + value.nbytes)
    row["floor_us"] = floor_us(row["bytes"])
    return row


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dirty", action="store_true")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    filler = torch.zeros(2**25, device="cuda")
    flush = filler.zero_ if chosen.dirty else filler.sum
    rows: list[Row] = []
    for batch in chosen.batches:
        for length in chosen.lengths:
            rows.append(measure(batch, length, flush))
            print(json.dumps(rows[-1]), flush=True)
            torch.cuda.empty_cache()
    rows.append(measure_quantise(32768, flush))
    print(json.dumps(rows[-1]), flush=True)
    columns = ["what", "batch", "length", "ours_us", "peer", "peer_us", "ratio", "floor_us", "bytes_ratio"]
    if chosen.out:
        write_results(chosen.out, columns, rows, operator="core_llm_efficiency.packed_attention")
    worst = max(r["difference"] for r in rows)
    if not worst < 1e-2:
        print(f"the answers differ by {worst:g}", file=sys.stderr)
    return int(not worst < 1e-2)


if __name__ == "__main__":
    sys.exit(main())
