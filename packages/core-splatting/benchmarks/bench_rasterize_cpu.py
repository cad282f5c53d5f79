"""CPU benchmark of the rasteriser: whole calls (projection, sort, blending) at 512x512, forward and backward.

python benchmarks/bench_rasterize_cpu.py [--opensplat FOLDER] [--seconds 2]

Scenes: `cases.scene` of 10,000 and 100,000 Gaussians, and, where $CORE_SPLAT_DATA has it, the scan
biker.compressed.ply (152,746) from the front. Wall time, the shortest of as many calls as fit into the seconds, with
one thread and with two; torch is imported and multiplies a matrix between the calls, so that its threads are awake. At
10,000 Gaussians beside `rasterize_torch` with as many threads, and beside OpenSplat's rasteriser (one thread, without
its projection), built by torch from a checkout of OpenSplat that is given. Exits 1 if a picture differs from theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 512
_WRAPPER = """
using torch::Tensor;
using Lists = std::vector<int32_t>*;
std::tuple<Tensor, Tensor, int64_t> forward(int64_t n, std::vector<Tensor> g) {
  auto [image, left, lists] = rasterize_forward_tensor_cpu(n, n, g[0], g[1], g[2], g[3], g[4], g[5], g[6]);
  return {image, left, reinterpret_cast<int64_t>(lists)};
}
Tensor backward(int64_t n, std::vector<Tensor> g, Tensor left, int64_t lists, Tensor v, Tensor v_alpha) {
  return std::get<2>(rasterize_backward_tensor_cpu(n, n, g[0], g[1], g[2], g[3], g[4], g[5], g[6], left,
                                                   reinterpret_cast<Lists>(lists), v, v_alpha));
}
void release(int64_t lists) { delete[] reinterpret_cast<Lists>(lists); }
"""


def fastest(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call in milliseconds, torch's threads being awake."""
    import torch

    matrix, best, end = torch.ones(300, 300), float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        matrix @ matrix
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def biker(path: pathlib.Path) -> dict[str, Any]:
    """The operator's arguments for a scan seen from the front."""
    from core_splatting import formats
    from core_splatting.cases import scene

    g = formats.read(path)
    args = scene(np.random.default_rng(0), len(g), SIDE, SIDE)
    centre = np.median(g.means, 0)
    size = np.quantile(np.linalg.norm(g.means - centre, axis=1), 0.9)
    args["viewmats"][0] = np.diag([1, -1, -1, 1])  # a scan stands upright
    args["viewmats"][0, :3, 3] = args["viewmats"][0, :3, :3] @ -centre + np.array([0, 0, 2.2 * size])
    return args | {
        "means": g.means, "quats": g.quats, "scales": g.scales, "opacities": g.opacities, "colors": g.colors[None],
    }  # fmt: skip


def scenes() -> dict[str, dict[str, Any]]:
    """The operator's arguments for each scene, over black; the pictures are rendered."""
    from core_splatting import _core_splatting as _C
    from core_splatting.cases import scene

    scan = pathlib.Path(os.environ.get("CORE_SPLAT_DATA", "/nonexistent")) / "biker.compressed.ply"
    found = {f"{n:,}": scene(np.random.default_rng(0), n, SIDE, SIDE) for n in (10_000, 100_000)}
    if scan.exists():
        found["biker"] = biker(scan)
    for args in found.values():
        args["backgrounds"] = None
        _C.rasterize(*args.values())
    return found


def gradient_of(args: dict[str, Any]) -> dict[str, Any]:
    """The gradient's arguments for the picture in `args`."""
    from core_splatting.cases import scene_backward

    rng = np.random.default_rng(1)
    given = scene_backward(rng, N=len(args["means"]), W=SIDE, H=SIDE)
    taken = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    pictures = {"image": args["out_colors"], "alphas": args["out_alphas"]}
    return (
        given | {k: args[k] for k in taken} | pictures | {"v_means2d": np.empty((1, len(args["means"]), 2), np.float32)}
    )


def opensplat(folder: pathlib.Path, args: dict[str, Any], seconds: float) -> tuple[np.ndarray, float, float]:
    """OpenSplat's picture and the times of its two functions, given the projections."""
    import torch
    from core_splatting.reference.rasterize import covariances_of, project
    from torch.utils.cpp_extension import load_inline

    source = folder / "rasterizer" / "gsplat-cpu" / "gsplat_cpu.cpp"
    module = load_inline(
        "opensplat_cpu", f'#include "{source}"\n{_WRAPPER}', functions=["forward", "backward", "release"],
        extra_cflags=["-O3"], extra_include_paths=[str(source.parent)],
    )  # fmt: skip
    centres, covariances, depths, _ = project(
        args["means"].astype(np.float64), covariances_of(args), args["viewmats"][0].astype(np.float64),
        args["Ks"][0].astype(np.float64), SIDE, SIDE, args["eps2d"], "pinhole",
    )  # fmt: skip
    conics = np.linalg.inv(covariances)[:, [0, 0, 1], [0, 1, 1]]
    arrays = (centres - 0.5, conics, args["colors"][0], args["opacities"][:, None], np.zeros(3), covariances, depths)
    given = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in arrays]

    def run() -> Any:
        module.release(module.forward(SIDE, given)[2])

    forward = fastest(run, seconds)
    image, left, lists = module.forward(SIDE, given)
    v, v_alpha = torch.ones_like(image), torch.zeros_like(left)
    backward = fastest(lambda: module.backward(SIDE, given, left, lists, v, v_alpha), seconds)
    module.release(lists)
    return image.numpy(), forward, backward


def measure(threads: int, seconds: float, folder: pathlib.Path | None) -> list[dict[str, Any]]:
    """The rows of this process, whose number of threads is set by the environment."""
    import torch
    from core_splatting import _core_splatting as _C
    from core_splatting.reference.rasterize import rasterize_torch

    torch.set_num_threads(threads)
    rows = []
    for name, args in scenes().items():
        row: dict[str, Any] = {"scene": name, "threads": threads}
        row["forward_ms"] = fastest(lambda args=args: _C.rasterize(*args.values()), seconds)
        given = gradient_of(args)
        row["backward_ms"] = fastest(lambda given=given: _C.rasterize_backward(*given.values()), seconds)
        if name == "10,000":
            start = time.perf_counter()
            theirs = rasterize_torch(args)[0].numpy()
            row["torch_ms"] = 1e3 * (time.perf_counter() - start)
            row["torch_difference"] = float(np.abs(theirs - args["out_colors"]).mean())
            if row["torch_difference"] < 1e-5:
                row["torch_ratio"] = row["torch_ms"] / row["forward_ms"]
            if folder:
                image, forward, backward = opensplat(folder, args, seconds)
                row |= {"opensplat_ms": forward, "opensplat_backward_ms": backward}
                row["opensplat_difference"] = float(np.abs(image - args["out_colors"][0]).mean())
                if row["opensplat_difference"] < 2e-3:  # its ellipses end at three deviations
                    row["opensplat_ratio"] = forward / row["forward_ms"]
                    row["opensplat_backward_ratio"] = backward / row["backward_ms"]
        rows.append(row)
    return rows


def main() -> int:
    """Measures in a process for each number of threads, prints; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opensplat", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, help="measure in this process")
    chosen = parser.parse_args()
    if chosen.threads:
        print(json.dumps(measure(chosen.threads, chosen.seconds, chosen.opensplat)))
        return 0
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        command = [sys.executable, __file__, "--threads", str(threads), "--seconds", str(chosen.seconds)]
        if chosen.opensplat:
            command += ["--opensplat", str(chosen.opensplat.resolve())]
        environment = os.environ | {"CORE_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        for row in rows[-3:]:
            if row["threads"] == threads:
                print({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    one, two = ({r["scene"]: r for r in rows if r["threads"] == t} for t in (1, 2))
    for name in one:
        ratios = {k: round(one[name][k] / two[name][k], 2) for k in ("forward_ms", "backward_ms")}
        print(f"{name}: two threads against one: {ratios}")
    asked = ("torch_ratio",) + (("opensplat_ratio",) if chosen.opensplat else ())
    return int(not all(k in r for k in asked for r in rows if r["scene"] == "10,000"))


if __name__ == "__main__":
    sys.exit(main())
