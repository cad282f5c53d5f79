"""Where the time of a vecset decode goes: python vec_profile.py [--size gpu|tiny]; no training, under a minute on an H100.

First the tests of the operators on CUDA. Then times at the sizes of 2503.16302's claim, the decoder with random weights:
the answers that decide what is asked next are those of a torus with a blade that thickens from a visible root (so that it
is followed), recorded before, and the decoder's are thrown away. At 256 and 512, hierarchy and 1024, 768, 512 keys: median,
least and most of 7; the same with a decoder that takes no time; the device's own time and its longest kernels.
"""

# ruff: noqa: D103, B023, E501

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import time
from pathlib import Path

import pytest
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
counts = [M // 3, M // 4, M // 6]
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
    return f"{found[len(found) // 2]:.3f} [{found[0]:.3f}, {found[-1]:.3f}]"


def surface(p, shift=0.013):
    x, y, z = (p + shift).unbind(-1)
    torus = 0.12 - (((x * x + y * y).sqrt() - 0.55).square() + z * z).sqrt()
    blade = torch.minimum(0.01 + 0.02 * (x - 0.3).clamp(0, 1) - (z - 0.047).abs(), 0.75 - (x * x + y * y).sqrt())
    return torch.maximum(torus, blade)


def recorded(resolution):
    answers = []
    volume = decode_volume(lambda p: (answers.append(surface(p)), answers[-1])[1], resolution, **options)[0]
    return answers, volume


def decode(keys, resolution, answers):
    again, ask = iter(answers), decoder.field(latents, keys)
    return decode_volume(lambda p: (ask(p), next(again))[1], resolution, **options)[0]


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


def attention():
    n, d = (2000, 16) if tiny else (2**18, 64)
    q = torch.randn(1, n, heads, d, device=device, dtype=dtype).transpose(1, 2)
    k, v = decoder._prepared(latents)
    for name, kind in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        with contextlib.suppress(RuntimeError), sdpa_kernel([kind]):
            print(
                f"attention, {n} queries, {M} keys, {name}: {told(timed(lambda: scaled_dot_product_attention(q, k, v)))} ms"
            )
    points = torch.rand(1, n, 3, device=device) * 2 - 1
    for keys in counts:
        cells = vecset._Cells(k, v, decoder._chosen(k, keys, 8), 8)
        *_, begin, items = cells.group(points)
        print(f"by cells, {keys} keys: {told(timed(lambda: cells.attend(q, k, v, begin, items)))}"
              f"; choosing {told(timed(lambda: decoder._chosen(k, keys, 8)))}; grouping {told(timed(lambda: cells.group(points)))} ms")  # fmt: skip
    print(f"fused around the attention: {decoder._fused(points)}, {n} points, all but the attention "
          f"{told(timed(lambda: decoder._values(points, k, v, lambda q, k, v: q)))} ms; with torch's operators:")  # fmt: skip
    x, block = torch.randn(1, n, width, device=device, dtype=dtype), decoder.cross_attn_decoder
    for name, call in (
        ("features and projection", lambda: decoder._embedded(points)),
        ("norm and queries", lambda: block.attn.queries(block.ln_1(x))),
        ("projection and sum", lambda: x + block.attn.c_proj(x)),
        ("norm, MLP and sum", lambda: x + block.mlp(block.ln_3(x))),
        ("head", lambda: decoder._head(x)),
    ):
        print(f"  {name}, {n} points: {told(timed(call))} ms")


def kernels(keys, resolution, answers):
    decode(keys, resolution, answers)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        decode(keys, resolution, answers)
        wait()
    rows = [e for e in seen.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    rows.sort(key=lambda e: -e.self_device_time_total)
    busy = sum(e.self_device_time_total for e in rows) / 1e3
    print(
        f"=== {resolution} {keys or 'hierarchy'}: device busy {busy:.3f} ms, {sum(e.count for e in rows)} launches and copies"
    )
    for e in rows[:15]:
        print(f"{e.self_device_time_total / 1e3:8.3f} ms {e.count:5d}  {e.key[:90]}")


@torch.no_grad()
def main():
    print(device, torch.__version__, torch.cuda.get_device_name() if not tiny else "")
    if not tiny:
        tests = Path(__file__).parents[1] / "packages/core-diffusion/tests"
        chosen = "test_cuda_vecset or volumes_are or (test_cuda and (refine or grid_points or topk_columns))"
        files = [str(tests / name) for name in ("test_cuda_vecset.py", "test_cuda.py", "test_cases.py")]
        code = pytest.main(
            [*files, "-q", "-m", "cuda", "-k", chosen, "--tb=short", "-p", "no:cacheprovider", "--maxfail=4"]
        )
        print(f"tests: {'passed' if code == 0 else 'FAILED'}", flush=True)
    host()
    for resolution in resolutions:
        answers, volume = recorded(resolution)
        again = itertools.cycle(answers)
        beside = timed(lambda r=resolution: decode_volume(lambda p: next(again), r, **options))
        print(f"{resolution}: calls {[a.shape[1] for a in answers]}, dense/ours {(resolution + 1) ** 3 / volume.queries:.1f}; "
              f"beside the decoder {told(beside)} ms")  # fmt: skip
        first = None
        for keys in (None, *counts):
            found = timed(lambda k=keys, r=resolution: decode(k, r, answers))
            first = first or found[len(found) // 2]
            points = [torch.rand(1, a.shape[1], 3, device=device) * 2 - 1 for a in answers]
            ask = decoder.field(latents, keys)
            alone = timed(lambda: [ask(p) for p in points])
            print(f"  {keys or 'hierarchy':>9}: {told(found)} ms, hierarchy / this {first / found[len(found) // 2]:.3f}; field made "
                  f"{told(timed(lambda k=keys: decoder.field(latents, k)))}; its calls alone {told(alone)}")  # fmt: skip
        fused = VecSetDecoder._fused
        VecSetDecoder._fused = lambda model, points: False
        plain = [timed(lambda k=k, r=resolution: decode(k, r, answers))[repeats // 2] for k in (None, *counts[:2])]
        VecSetDecoder._fused = fused
        print(
            "  with torch's operators around the attention: hierarchy, 1024, 768 keys "
            + ", ".join(f"{x:.3f}" for x in plain)
        )
        if not tiny and resolution == resolutions[0]:
            for keys in (None, *counts[:2]):
                kernels(keys, resolution, answers)
    attention()


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
