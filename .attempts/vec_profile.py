"""Where the time of a vecset decode goes: python vec_profile.py [--size gpu|tiny]; no training, under a minute on an H100.

The decoder has random weights at the sizes of 2503.16302's claim; the surface is of a torus with a blade that thickens
from a visible root (so that it is followed), moved for each "mesh". Prints, at 256 and 512: seconds of the hierarchy and
of 1024, 768, 640 and 512 keys (median, least, most of 7), calls, queries, allocations of device memory; of meshes seen
for the first time; of attention alone (flash, cuDNN, by cells); the host's cost of an operation and of a wait; the
profiler's tables.
"""

# ruff: noqa: D103, B023, E501

from __future__ import annotations

import argparse
import contextlib
import itertools
import time

import torch
from core_diffusion import vecset
from core_diffusion.vecset import VecSetDecoder
from core_diffusion.volume_decoding import decode_volume
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

parser = argparse.ArgumentParser()
parser.add_argument("--size", choices=("gpu", "tiny"), default="gpu")
tiny = parser.parse_args().size == "tiny"
device = torch.device("cpu" if tiny else "cuda")
M, width, heads = (48, 32, 2) if tiny else (3072, 256, 4)
resolutions, coarsest = ((32,), 16) if tiny else ((256, 512), 64)
dtype, repeats = (torch.float32, 2) if tiny else (torch.float16, 7)
counts = [M // 3, M // 4, M * 5 // 24, M // 6]
options = {"coarsest": coarsest, "chunk": 2**19, "device": device}
torch.manual_seed(0)
decoder = VecSetDecoder(width, heads).eval().to(device)
decoder = decoder if tiny else decoder.half()
latents = torch.randn(1, M, width, device=device, dtype=dtype)


def wait():
    if not tiny:
        torch.cuda.synchronize()


def timed(call, times=repeats):
    found = []
    for _ in range(times + (times > 1)):
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(1e3 * (time.perf_counter() - start))
    return sorted(found[times > 1 :])


def told(found):
    return f"{found[len(found) // 2]:8.3f} ms  [{found[0]:.3f}, {found[-1]:.3f}]"


def surface(p, shift=0.013):
    x, y, z = (p + shift).unbind(-1)
    torus = 0.12 - (((x * x + y * y).sqrt() - 0.55).square() + z * z).sqrt()
    blade = torch.minimum(0.01 + 0.02 * (x - 0.3).clamp(0, 1) - (z - 0.047).abs(), 0.75 - (x * x + y * y).sqrt())
    return torch.maximum(torus, blade)


def field(keys, shift=0.013):
    asked = decoder.field(latents, keys)
    return lambda p: surface(p, shift).add_(asked(p), alpha=0.0)


def decode(keys, resolution, shift=0.013):
    return decode_volume(field(keys, shift), resolution, **options)[0]


def host():
    x = torch.zeros(16, device=device)
    n = 2000
    wait()
    start = time.perf_counter()
    for _ in range(n):
        x.add_(1)
    launched = time.perf_counter() - start
    wait()
    start = time.perf_counter()
    for _ in range(200):
        x[0].item()
    waited = time.perf_counter() - start
    print(f"host: {1e6 * launched / n:.2f} us an operation, {1e6 * waited / 200:.1f} us an item()")


def same():
    points = torch.rand(1, 20000, 3, device=device) * 2 - 1
    ask = decoder.field(latents, counts[0])
    ours, takes = ask(points), vecset._flash_takes
    vecset._flash_takes = lambda q: False
    in_groups = ask(points)
    vecset._flash_takes = takes
    whole = decoder.field(latents)(points)
    scale = in_groups.abs().max().item()
    print(f"by cells, as they are and in groups: differ by {(ours - in_groups).abs().max().item():.2e} of {scale:.3f};"
          f" from the whole attention {(ours - whole).abs().max().item():.2e}")  # fmt: skip
    with contextlib.suppress(AttributeError, RuntimeError):
        with sdpa_kernel([SDPBackend.MATH]):
            k, v = decoder._prepared(latents)
            plain = decoder._ask(points[:, :2000], k, v)[..., 0].float()
        print(f"whole attention, ours and math: differ by {(whole[:, :2000] - plain).abs().max().item():.2e}")


def pieces(q, k, v, size=2**15):
    whole = q.shape[2] // size * size
    found = [scaled_dot_product_attention(x, k, v) for x in q[:, :, :whole].split(size, 2)] if whole else []
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        return (
            torch.cat([*found, scaled_dot_product_attention(q[:, :, whole:], k, v)], 2)
            if whole < q.shape[2]
            else torch.cat(found, 2)
        )


def attention():
    n, d = (2000, 16) if tiny else (2**18, 64)
    q = torch.randn(1, n, heads, d, device=device, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(1, M, heads, d, device=device, dtype=dtype).transpose(1, 2) for _ in range(2))
    for name, kind in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        with contextlib.suppress(RuntimeError), sdpa_kernel([kind]):
            first = timed(lambda: scaled_dot_product_attention(q, k, v), 1)[0]
            print(f"attention, {n} queries, {M} keys, {name}: {told(timed(lambda: scaled_dot_product_attention(q, k, v)))}"
                  f", first {first:.1f}")  # fmt: skip
            odd = q[:, :, : n - 77]
            print(f"  77 fewer, first {timed(lambda: scaled_dot_product_attention(odd, k, v), 1)[0]:.1f} ms")
            if n > 2**15:
                piece = lambda: torch.cat([scaled_dot_product_attention(x, k, v) for x in q.split(2**15, 2)], 2)  # noqa: E731
                print(f"  in pieces of 32768: {told(timed(piece))}")
    points = torch.rand(1, n, 3, device=device) * 2 - 1
    kept_k, kept_v = decoder._prepared(latents)
    for keys in counts:
        cells = vecset._Cells(decoder._chosen(kept_k, kept_v, keys, 8), 8)
        begin = cells.sort(points)[1]
        print(f"attention by cells, {keys} keys: {told(timed(lambda: cells.attend(q, k, v, begin)))}"
              f"; choosing {told(timed(lambda: decoder._chosen(kept_k, kept_v, keys, 8)))}"
              f"; sorting {told(timed(lambda: cells.sort(points)))}")  # fmt: skip
    x = torch.randn(1, n, width, device=device, dtype=dtype)
    block = decoder.cross_attn_decoder
    for name, call in (
        ("features", lambda: decoder._embedded(points)),
        ("norm and queries", lambda: block.attn.queries(block.ln_1(x))),
        ("projection and sum", lambda: x + block.attn.c_proj(x)),
        ("norm, MLP and sum", lambda: x + block.mlp(block.ln_3(x))),
        ("head", lambda: decoder._head(x)),
    ):
        print(f"  {name}, {n} points: {told(timed(call))}")


@torch.no_grad()
def main():
    print(device, torch.__version__, torch.cuda.get_device_name() if not tiny else "", torch.backends.cudnn.version())
    host()
    same()
    for resolution in resolutions:
        for keys in (None, *counts):
            before = {} if tiny else torch.cuda.memory_stats()
            found = timed(lambda k=keys, r=resolution: decode(k, r))
            after = {} if tiny else torch.cuda.memory_stats()
            made = [after.get(x, 0) - before.get(x, 0) for x in ("num_device_alloc", "num_alloc_retries")]
            answers = []
            asked = field(keys)
            volume = decode_volume(lambda p: (answers.append(asked(p)), answers[-1])[1], resolution, **options)[0]
            again = itertools.cycle(answers)
            beside = timed(lambda r=resolution: decode_volume(lambda p: next(again), r, **options))
            decoding = timed(
                lambda: [field(keys)(p) for p in (torch.rand(1, a.shape[1], 3, device=device) for a in answers)]
            )
            print(f"{resolution} {keys or 'hierarchy':>9}: {told(found)}; beside {told(beside)}; as many random points "
                  f"{told(decoding)}; calls {[a.shape[1] for a in answers]}, "
                  f"dense/ours {(resolution + 1) ** 3 / volume.queries:.1f}; mallocs, retries {made}")  # fmt: skip
        for keys in (None, counts[0]):
            first = [
                timed(lambda k=keys, r=resolution, s=s: decode(k, r, 0.013 + 0.004 * s), 1)[0] for s in range(1, 6)
            ]
            print(
                f"{resolution} {keys or 'hierarchy'}, first time of other meshes: "
                + " ".join(f"{x:.2f}" for x in first)
            )
    ours = vecset._attend
    for name, other in (
        ("torch's choice", scaled_dot_product_attention),
        ("pieces of 32768 torch's, the rest ours", pieces),
    ):
        vecset._attend = other
        first = timed(lambda: decode(None, resolutions[0], 0.05), 1)[0]
        print(
            f"hierarchy, attention {name}: {told(timed(lambda: decode(None, resolutions[0])))}, of another mesh {first:.2f}"
        )
    vecset._attend = ours
    for keys in (None, counts[0]):
        activities = [ProfilerActivity.CPU] + ([] if tiny else [ProfilerActivity.CUDA])
        with profile(activities=activities) as seen:
            decode(keys, resolutions[0])
            wait()
        table = seen.key_averages()
        if not tiny:
            busy = sum(e.self_device_time_total for e in table if e.device_type == torch.autograd.DeviceType.CUDA)
            print(f"\n=== {keys or 'hierarchy'}: device busy {busy / 1e3:.3f} ms")
            print(table.table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=70))
        print(table.table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    attention()


main()
