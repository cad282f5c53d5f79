"""GPU benchmark: ours beside gsplat, forward and forward + backward, the same inputs, CUDA events, median of 100 runs.

python benchmarks/gpu_rasterize.py [-o FILE.json] [--sizes 100000x3 1000000x3] [--width 1920] [--height 1080]

The scene: 64 clusters with centres N(0, 2^2) and spread 0.35, log-scales N(log(0.02 (1e5 / n)^(1/3)), 0.5), opacities
sigmoid(N(0, 1.5^2)), seen from 8 units with a focal length of 0.9 widths. With other than 3 channels forward +
backward is the median of 20 runs.

A floor is the time to move inputs and outputs once, with an id of 4 bytes for each (Gaussian, tile) pair written and
read; forward + backward: also the gradients, and once more what the gradient reads. What a time is held by is the
kernel with the greatest share of it, by torch's profiler, which also gives the time of each kernel ("stages_us").

Needs torch with CUDA and this package built with CUDA on PYTHONPATH; gsplat is measured if it can be imported.
Exits 1 if the two images differ by more than 1e-3 in the mean, or the gradients by more than 1 % of their norms.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from core_registry.timing import device_ms, floor_ms, write_results
from core_splatting import rasterization
from core_splatting.cases import scene

COLUMNS = (
    "gaussians", "channels", "ours_ms", "gsplat_ms", "ratio", "mean_difference", "floor_ms", "held_by", "ours_gib",
    "gsplat_gib", "ours_both_ms", "gsplat_both_ms", "both_ratio", "gradient_difference", "floor_both_ms",
    "both_held_by",
)  # fmt: skip


def count_pairs(meta: dict[str, torch.Tensor], width: int, height: int) -> int:
    """The (Gaussian, tile) pairs of the bounding boxes: an upper bound of ours."""
    centres, radii = meta["means2d"], meta["radii"]
    limit = torch.tensor([-(-width // 16), -(-height // 16)], device=centres.device)
    first = ((centres - radii) / 16).floor().clamp(min=0).minimum(limit)
    last = ((centres + radii) / 16).ceil().clamp(min=0).minimum(limit)
    inside = (radii > 0).all(-1)
    return int(((last - first).clamp(min=0).prod(-1) * inside).sum())


def clusters(n: int, channels: int, width: int, height: int) -> dict[str, Any]:
    """The arguments of the operator for the scene described above."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 2, (64, 3))
    view = np.eye(4)
    view[2, 3] = 8
    made = {
        "means": centres[rng.integers(64, size=n)] + rng.normal(0, 0.35, (n, 3)),
        "quats": rng.normal(size=(n, 4)),
        "scales": np.exp(rng.normal(np.log(0.02 * (1e5 / n) ** (1 / 3)), 0.5, (n, 3))),
        "opacities": 1 / (1 + np.exp(-rng.normal(0, 1.5, n))),
        "colors": rng.random((1, n, channels)),
        "viewmats": view[None],
        "Ks": np.array([[[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]]]),
        "out_colors": np.zeros((1, height, width, channels)),
    }
    given = scene(rng, n, width, height)
    return given | {k: v.astype(np.float32) for k, v in made.items()}


def peak_gib(call: Callable[[], Any]) -> float:
    """The most device memory in use during a call, ours and torch's, above what is in use before it."""
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    call()
    torch.cuda.synchronize()
    after, _ = torch.cuda.mem_get_info()
    return (before - after) / 2**30


def stages_us(call: Callable[[], Any], runs: int = 10) -> dict[str, float]:
    """The time of each kernel of a call by name, in microseconds, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profile.events():
        whole = event.name.removeprefix("void ").replace("(anonymous namespace)::", "")
        name = re.split("[<( ]", whole)[0].rpartition("::")[2]
        times[name] = times.get(name, 0.0) + event.device_time_total / runs
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def longest(stages: dict[str, float]) -> str:
    """The kernel with the greatest share of the time, and the share."""
    name = next(iter(stages))
    return f"{name} {stages[name] / sum(stages.values()):.0%}"


def measure(gaussians: int, channels: int, width: int, height: int) -> dict[str, Any]:
    """One row of the table."""
    args = clusters(gaussians, channels, width, height)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    inputs = [torch.from_numpy(args[k]).cuda() for k in names]
    inputs[4] = inputs[4][0]
    options = {"near_plane": 0.01, "far_plane": 100.0, "radius_clip": 0.0, "eps2d": 0.3}
    with torch.no_grad():
        image, alpha, _ = rasterization(*inputs, width, height, **options)
        again, _, meta = rasterization(*inputs, width, height, **options, meta=True)
        row: dict[str, Any] = {
            "gaussians": gaussians, "channels": channels, "width": width, "height": height,
            "box_pairs": count_pairs(meta, width, height), "deterministic": bool(torch.equal(image, again)),
            "coverage": float(alpha.mean()),
        }  # fmt: skip
        moved = sum(v.nbytes for v in args.values() if isinstance(v, np.ndarray)) + 8 * row["box_pairs"]
        row["floor_ms"] = floor_ms(moved=moved)  # inputs and outputs once, a 4-byte id per pair twice
        cpu = args | {"backgrounds": None, "far_plane": 100.0}
        from core_splatting import _core_splatting as _C

        _C.rasterize(*cpu.values())
        row["mean_difference_cpu"] = float(np.abs(image.cpu().numpy() - cpu["out_colors"]).mean())
        row["ours_ms"] = device_ms(lambda: rasterization(*inputs, width, height, **options), 100)
        row["stages_us"] = stages_us(lambda: rasterization(*inputs, width, height, **options))
        row["held_by"] = longest(row["stages_us"])
        row["ours_gib"] = peak_gib(lambda: rasterization(*inputs, width, height, **options))
        leaves = [t.clone().requires_grad_() for t in inputs[:5]]
        weights = torch.rand_like(image) - 0.4

        def both(render: Callable[..., Any]) -> list[torch.Tensor]:
            with torch.enable_grad():
                loss = (render(*leaves, *inputs[5:])[0] * weights).sum()
                return list(torch.autograd.grad(loss, leaves))

        def ours(*given: torch.Tensor) -> Any:
            return rasterization(*given, width, height, **options)

        runs = 100 if channels == 3 else 20
        row["ours_both_ms"] = device_ms(lambda: both(ours), runs)
        row["stages_both_us"] = stages_us(lambda: both(ours))
        row["both_held_by"] = longest(row["stages_both_us"])
        read = sum(t.numel() * t.element_size() for t in leaves)
        row["floor_both_ms"] = floor_ms(moved=moved + 2 * read + 2 * args["out_colors"].nbytes)
        try:
            import gsplat
        except ImportError:
            return row

        def theirs(*given: torch.Tensor) -> Any:
            return gsplat.rasterization(*given, width, height, **options, sh_degree=None, packed=False, tile_size=16)

        pairs = zip(both(ours), both(theirs), strict=True)
        row["gradient_difference"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        row["gsplat_both_ms"] = device_ms(lambda: both(theirs), runs)
        if row["gradient_difference"] <= 1e-2:
            row["both_ratio"] = row["gsplat_both_ms"] / row["ours_both_ms"]

        def peer() -> torch.Tensor:
            return theirs(*inputs)[0]

        row["gsplat"] = gsplat.__version__
        row["mean_difference"] = float((peer() - image).abs().mean())
        row["max_difference"] = float((peer() - image).abs().max())
        row["gsplat_ms"] = device_ms(peer, 100)
        row["gsplat_gib"] = peak_gib(peer)
        if row["mean_difference"] <= 1e-3:
            row["ratio"] = row["gsplat_ms"] / row["ours_ms"]
    return row


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument(
        "--sizes", nargs="+", default=["100000x3", "1000000x3", "3000000x3", "1000000x32", "1000000x160"],
        help="Gaussians x channels",
    )  # fmt: skip
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1080)
    chosen = parser.parse_args()
    rows = []
    for size in chosen.sizes:
        gaussians, channels = map(int, size.split("x"))
        rows.append(measure(gaussians, channels, chosen.width, chosen.height))
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out:
        columns = [c for c in COLUMNS if any(c in r for r in rows)]
        write_results(chosen.out, columns, rows, operator="core_splatting.rasterize")
    worst = max(max(r["mean_difference_cpu"], r.get("mean_difference", 0.0)) for r in rows)
    if worst > 1e-3:
        print(f"the images differ by {worst:g} in the mean", file=sys.stderr)
    slopes = max(r.get("gradient_difference", 0.0) for r in rows)
    if slopes > 1e-2:
        print(f"the gradients differ by {slopes:g} of their norms", file=sys.stderr)
    return int(worst > 1e-3 or slopes > 1e-2)


if __name__ == "__main__":
    sys.exit(main())
