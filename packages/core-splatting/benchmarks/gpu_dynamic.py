"""GPU benchmark: 4D Gaussians all together, and pruned and filtered by key frames as in 4DGS-1K (arXiv 2503.16422).

python benchmarks/gpu_dynamic.py [-o FILE.json] [--gaussians 3333160] [--width 1352] [--height 1014]

The scene is the clusters of `gpu_rasterize.py` with centres in time uniform over [0, 1], of which 15 % have a temporal
weight above 0.05 at a time, random 4D rotations near none, harmonics of degree 3 and two terms in time. Key frames are
1/15 apart, as each 20th of 300. A frame is what `Player.render` makes on the device, from the stored scene to a
picture: CUDA events, median over 60 times; and frames a second by the clock over 300 times in order. "In turn" slices,
colours and rasterises by an operator each, as 4D Gaussians are rendered elsewhere. Exits 1 if the filtered picture is
not the unfiltered one at a key frame, or that in turn not the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time as clock
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from core_registry.timing import device_ms, floor_ms, write_results
from core_splatting import colors_by_view, rasterization
from core_splatting.dynamic import KeyFrameFilter, keep_best, slice_4d, variation_scores
from core_splatting.formats.container4d import Gaussians4D
from core_splatting.playback import Player
from gpu_rasterize import clusters

COLUMNS = (
    "what",
    "gaussians",
    "sliced",
    "active",
    "ms",
    "floor_ms",
    "frames_per_second",
    "ratio",
    "difference",
    "psnr",
)
SIGMA = 0.15 / (2 * (2 * np.log(20)) ** 0.5)  # of which 15 % of a uniform distribution weigh more than 0.05
KEYS = np.linspace(0, 1, 16)


def moving(count: int, width: int, height: int) -> tuple[Gaussians4D, dict[str, Any]]:
    """The scene and its camera."""
    rng = np.random.default_rng(1)
    still = clusters(count, 3, width, height)
    opacity = still["opacities"][:, None].clip(1e-6, 1 - 1e-6)
    small = rng.normal(0, 0.02, (count, 4))
    sh = np.zeros((count, 48, 3), np.float32)
    sh[:, 0] = (still["colors"][0] - 0.5) / 0.28209479
    sh[:, 1:] = rng.normal(0, 0.05, (count, 47, 3))
    f32 = np.float32
    g = Gaussians4D(
        np.concatenate([still["means"], rng.random((count, 1))], 1).astype(f32),
        np.log(np.concatenate([still["scales"], np.full((count, 1), SIGMA)], 1)).astype(f32),
        (np.array([1.0, 0, 0, 0]) + small).astype(f32), (np.array([1.0, 0, 0, 0]) - small).astype(f32),
        np.log(opacity / (1 - opacity)).astype(f32), sh, np.zeros((0, count), bool), np.zeros(0, f32), 1.0,
    )  # fmt: skip
    return g, {k: torch.from_numpy(np.ascontiguousarray(still[k], np.float32)).cuda() for k in ("viewmats", "Ks")}


def pruned(g: Gaussians4D, player: Player, camera: dict[str, Any], size: tuple[int, int]) -> Gaussians4D:
    """The fifth with the best scores, with the masks of the key frames."""
    shape = player.arrays[:5]
    views = [(float(t), camera["viewmats"], camera["Ks"], *size) for t in KEYS]
    kept = keep_best(variation_scores(*shape, views), 0.8)
    masks = KeyFrameFilter.from_views(*(x[kept] for x in shape), views).masks
    rows = kept.cpu().numpy()
    names = ("means", "log_scales", "quats_left", "quats_right", "logit_opacities", "sh")
    return dataclasses.replace(
        g, **{k: getattr(g, k)[rows] for k in names},
        masks=np.unpackbits(masks, axis=1, count=len(rows), bitorder="little").astype(bool),
        key_times=KEYS.astype(np.float32),
    )  # fmt: skip


def in_turn(player: Player, t: float, viewmats: torch.Tensor, Ks: torch.Tensor, *size: int) -> torch.Tensor:
    """The picture of all Gaussians, by an operator for each step."""
    *shape, sh = player.arrays
    means, covars, opacities, _ = slice_4d(*shape, t)
    phases = (shape[0][:, 3] - t) / player.duration
    colors = colors_by_view(player.sh_degree, means, viewmats, sh, player.time_degree, phases)
    image: torch.Tensor = rasterization(means, None, None, opacities, colors, viewmats, Ks, *size, covars=covars)[0]
    return image


def measure(
    what: str, player: Player, frame: Callable[[float], torch.Tensor], size: tuple[int, int], *, filtered: bool = False
) -> dict[str, Any]:
    """One row of the table. The floor moves geometry and harmonics of what is sliced, and the picture, once."""
    with torch.no_grad():
        indices = player.indices(0.5) if filtered else None
        weights = slice_4d(*player.arrays[:5], 0.5)[3]
        sliced = player.count if indices is None else len(indices)
        row = {"what": what, "gaussians": player.count, "sliced": sliced, "active": float((weights > 0).float().mean())}
        times = iter(np.linspace(0.02, 0.98, 1000))
        row["ms"] = device_ms(lambda: frame(float(next(times))), 60)
        active = int((weights > 0).sum())
        row["floor_ms"] = floor_ms(0.0, 68.0 * sliced + 576.0 * active + 12.0 * size[0] * size[1])
        torch.cuda.synchronize()
        start = clock.perf_counter()
        for t in np.linspace(0, 1, 300):
            frame(float(t))
        torch.cuda.synchronize()
        row["frames_per_second"] = 300 / (clock.perf_counter() - start)
    return row


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--gaussians", type=int, default=3_333_160)
    parser.add_argument("--width", type=int, default=1352)
    parser.add_argument("--height", type=int, default=1014)
    chosen = parser.parse_args()
    size = (chosen.width, chosen.height)
    g, camera = moving(chosen.gaussians, *size)
    everything = Player(g, "cuda")
    few = Player(pruned(g, everything, camera, size), "cuda")
    view = (camera["viewmats"], camera["Ks"], *size)
    rows = [
        measure("all, in turn", everything, lambda t: in_turn(everything, t, *view), size),
        measure("all", everything, lambda t: everything.render(t, *view), size),
        measure("pruned", few, lambda t: few.render(t, *view, filtered=False), size),
        measure("pruned, filtered", few, lambda t: few.render(t, *view), size, filtered=True),
    ]

    def apart(t: float, one: Callable[..., torch.Tensor], other: Callable[..., torch.Tensor]) -> torch.Tensor:
        return one(t, *view) - other(t, *view)

    def unfiltered(t: float, *view: Any) -> torch.Tensor:
        image: torch.Tensor = few.render(t, *view, filtered=False)
        return image

    with torch.no_grad():
        rows[1]["difference"] = float(apart(0.4, lambda *x: in_turn(everything, *x), everything.render).abs().max())
        rows[3]["difference"] = float(apart(float(KEYS[7]), few.render, unfiltered).abs().max())
        between = apart(float(KEYS[7:9].mean()), few.render, unfiltered)
        rows[3]["psnr"] = float(-10 * between.square().mean().clamp(min=1e-12).log10())
    for row in rows:
        row["ratio"] = rows[1]["ms"] / row["ms"]
    for row in rows:
        print(json.dumps(row), flush=True)
    if chosen.out:
        write_results(chosen.out, COLUMNS, rows, operator="core_splatting.rasterize_4d")
    return int(max(rows[1]["difference"], rows[3]["difference"]) > 1 / 255)


if __name__ == "__main__":
    sys.exit(main())
