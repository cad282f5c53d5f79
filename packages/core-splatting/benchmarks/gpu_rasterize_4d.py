"""GPU benchmark of 4D Gaussians: all of them beside those that 4DGS-1K's pruning and key-frame filter leave (arXiv
2503.16422), CUDA events, median over frames; whole frames from 4D Gaussians with harmonics to the picture.

python benchmarks/gpu_rasterize_4d.py [-o FILE.json] [--count 3333160] [--active 0.15]

The scene is that of gpu_rasterize.py at 1352x1014, each Gaussian with a time in [0, 1] and a spread in time of which
`--active` are above the threshold at once; 48 coefficients of three channels each. The filter's key frames are 20
frames of 300 apart; their indices are put on the device before, as they last for 20 frames.

Exits 1 if the filter changes a picture at a key frame.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
from core_splatting.dynamic import KeyFrameFilter, keep_best, rasterization_4d, variation_scores
from gpu_rasterize import clusters, median_ms

WIDTH, HEIGHT, FRAMES, INTERVAL = 1352, 1014, 300, 20
HARMONICS = {"sh_degree": 3, "time_degree": 2}


def scene(count: int, active: float) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """The 4D Gaussians, their coefficients, the camera and its matrix."""
    flat = clusters(count, 0, WIDTH, HEIGHT)
    rng = np.random.default_rng(1)
    # Above exp(-dt^2 / (2 S)) = 0.05 for |dt| < 2.448 sqrt(S).
    spread = np.full((count, 1), active / (2 * 2.448))
    identity = np.tile([1.0, 0, 0, 0], (count, 1))
    near_identity = identity + rng.normal(0, 0.02, (count, 4))
    arrays = (
        np.concatenate([flat["means"], rng.random((count, 1))], 1), np.concatenate([flat["scales"], spread], 1),
        near_identity, identity, flat["opacities"],
    )  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(0)
    coeffs = torch.randn((count, 48, 3), device="cuda", generator=generator) * 0.1
    camera, K = (torch.from_numpy(flat[k]).cuda() for k in ("viewmats", "Ks"))
    return [torch.from_numpy(a.astype(np.float32)).cuda() for a in arrays], coeffs, camera, K


def measure(count: int, active: float) -> dict[str, Any]:
    """The table's row."""
    gaussians, coeffs, camera, K = scene(count, active)
    keys = [k * INTERVAL / FRAMES for k in range(FRAMES // INTERVAL + 1)]
    middle = keys[7] + 0.5 * INTERVAL / FRAMES

    def frame(of: list[torch.Tensor], colors: torch.Tensor, time: float, indices: torch.Tensor | None) -> torch.Tensor:
        picture: torch.Tensor = rasterization_4d(
            *of, colors, camera, K, WIDTH, HEIGHT, time, indices=indices, far_plane=100.0, **HARMONICS
        )[0]
        return picture

    with torch.no_grad():
        scores = variation_scores(*gaussians, [(t, camera, K, WIDTH, HEIGHT) for t in keys], far_plane=100.0)
        best = keep_best(scores, 0.8)
        pruned, kept = [g[best].contiguous() for g in gaussians], coeffs[best].contiguous()
        views = [(t, camera, K, WIDTH, HEIGHT) for t in keys]
        both = {
            name: KeyFrameFilter.from_views(*of, views, far_plane=100.0)
            for name, of in (("all", gaussians), ("pruned", pruned))
        }
        chosen = {
            (name, t): torch.from_numpy(f.indices(t)).cuda() for name, f in both.items() for t in (keys[7], middle)
        }
        at_key = frame(pruned, kept, keys[7], None) - frame(pruned, kept, keys[7], chosen["pruned", keys[7]])
        between = frame(pruned, kept, middle, None) - frame(pruned, kept, middle, chosen["pruned", middle])
        row = {
            "gaussians": count, "width": WIDTH, "height": HEIGHT, "pruned_to": len(best),
            "all_ms": median_ms(lambda: frame(gaussians, coeffs, middle, None)),
            "filtered_ms": median_ms(lambda: frame(gaussians, coeffs, middle, chosen["all", middle])),
            "pruned_ms": median_ms(lambda: frame(pruned, kept, middle, None)),
            "pruned_filtered_ms": median_ms(lambda: frame(pruned, kept, middle, chosen["pruned", middle])),
            "filtered_to": len(chosen["all", middle]), "pruned_filtered_to": len(chosen["pruned", middle]),
            "difference_at_key_frame": float(at_key.abs().max()),
            "psnr_between_db": float(-10 * torch.log10(between.square().mean())),
        }  # fmt: skip
        sliced = chosen["pruned", middle]
        moved = 4 * len(sliced) * (17 + 144) + 4 * WIDTH * HEIGHT * 4
        row["floor_ms"] = 1e3 * moved / 3.35e12
        row["ratio"] = row["all_ms"] / row["pruned_filtered_ms"]
        row["frames_per_second"] = 1e3 / row["pruned_filtered_ms"]
    return row


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=3_333_160)
    parser.add_argument("--active", type=float, default=0.15)
    chosen = parser.parse_args()
    row = measure(chosen.count, chosen.active)
    result = {
        "operator": "core_splatting.dynamic.rasterization_4d",
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "columns": list(row),
        "rows": [row],
    }
    print(json.dumps(row))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    if row["difference_at_key_frame"] > 1 / 255:
        print(f"the filter changes the picture by {row['difference_at_key_frame']:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
