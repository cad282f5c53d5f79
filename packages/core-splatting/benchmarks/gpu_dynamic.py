"""GPU benchmark: a frame of 4D Gaussians, all of them and pruned and filtered as in 4DGS-1K (arXiv 2503.16422).

python benchmarks/gpu_dynamic.py [-o FILE.json] [--count 3330000]

A cloud of 4D Gaussians in the cube [-1, 1]^3, each there for a while so that about 15 % are at a time, colours by all
48 spherindrical harmonics, seen at 1352x1014. Rows: all; a random fifth of them; the fifth with the filter of 21 key
frames. Timed halfway between two key frames: slice, colours, projection and blending; the indices of the filter are
on the device. CUDA events, median of 100. Exits 1 if the filtered picture at a key frame is not that of the whole
fifth.
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
from core_splatting import KeyFrameFilter, rasterization_4d, slice_4d
from core_splatting.cases_dynamic import gaussians_4d
from gpu_memory import median_ms

WIDTH, HEIGHT, KEYS = 1352, 1014, 21
COLUMNS = ("what", "gaussians", "active", "ms", "frames_a_second", "ratio", "floor_ms")
PEAK_BYTES_PER_SECOND = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=3_330_000)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    made = gaussians_4d(rng, chosen.count)
    made["scales"][:, 3] *= 0.3
    shape = [torch.from_numpy(x).cuda() for x in made.values()]
    sh = torch.from_numpy(rng.normal(0, 0.2, (chosen.count, 48, 3)).astype(np.float32)).cuda()
    viewmat = torch.eye(4, device="cuda")[None].clone()
    viewmat[0, 2, 3] = 3
    K = torch.tensor([[[1100.0, 0, WIDTH / 2], [0, 1100, HEIGHT / 2], [0, 0, 1]]], device="cuda")
    fifth = torch.from_numpy(np.sort(rng.choice(chosen.count, chosen.count // 5, replace=False))).cuda()
    few, few_sh = [x[fifth] for x in shape], sh[fifth]
    keys = np.linspace(0, 1, KEYS).tolist()
    key_filter = KeyFrameFilter.from_views(*few, [(t, viewmat, K, WIDTH, HEIGHT) for t in keys])
    between = 0.5 * (keys[KEYS // 2] + keys[KEYS // 2 + 1])
    peak = next((v for k, v in PEAK_BYTES_PER_SECOND.items() if k in torch.cuda.get_device_name()), None)

    def frame(given: list[torch.Tensor], coeffs: torch.Tensor, time: float, indices: Any = None) -> torch.Tensor:
        picture: torch.Tensor = rasterization_4d(
            *given, coeffs, viewmat, K, WIDTH, HEIGHT, time, indices=indices, sh_degree=3, time_degree=2
        )[0]
        return picture

    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        at_key = torch.from_numpy(key_filter.indices(keys[5])).cuda()
        difference = float((frame(few, few_sh, keys[5], at_key) - frame(few, few_sh, keys[5])).abs().max())
        indices = torch.from_numpy(key_filter.indices(between)).cuda()
        for what, given, coeffs, chosen_rows in (
            ("all", shape, sh, None), ("a fifth", few, few_sh, None), ("a fifth, filtered", few, few_sh, indices),
        ):  # fmt: skip
            count = len(coeffs) if chosen_rows is None else len(chosen_rows)
            weights = slice_4d(*given, between, chosen_rows)[3]
            there = int((weights > 0).sum())
            ms = median_ms(lambda g=given, c=coeffs, r=chosen_rows: frame(g, c, between, r), 100)
            # Read 17 floats of each, 144 of those that are there; write the picture.
            moved = 4 * (17 * count + 144 * there + 4 * WIDTH * HEIGHT)
            rows.append({
                "what": what, "gaussians": count, "active": there / count, "ms": ms, "frames_a_second": 1e3 / ms,
                "ratio": rows[0]["ms"] / ms if rows else 1.0, "floor_ms": None if peak is None else 1e3 * moved / peak,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "operator": "core_splatting.slice_4d",
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "difference_at_a_key_frame": difference,
        "columns": list(COLUMNS),
        "rows": rows,
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"filtered against unfiltered at a key frame: {difference:g}")
    return int(difference > 1 / 255)


if __name__ == "__main__":
    sys.exit(main())
