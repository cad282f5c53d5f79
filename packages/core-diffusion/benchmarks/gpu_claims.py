"""The claims of this package's papers at the size of one GPU, as `core reproduce ID --size gpu` runs them.

python benchmarks/gpu_claims.py ID ... [--out DIR] [--seed N] [--size S] [--limit SECONDS]; goes on with what a stopped
run has left in the folder. ID.json and the claim's pictures appear in it as soon as there is something to tell: after
each seed, and of 2503.16302 after each time and each mesh, so that a run that is cut off loses little. Of bars that a
claim must reach ID.json tells value, bar and whether it is met. 2503.16302 needs pybullet's meshes and trimesh.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sys
import time

from core_diffusion.claims import coarse_to_fine, experts, flashvdm, token_set

CLAIMS = {
    "2503.14487": experts.diffmoe,
    "2503.16057": experts.race,
    "2503.16194": coarse_to_fine.claim,
    "2503.16302": flashvdm.claim,
    "2503.16425": token_set.claim,
}


def main() -> int:
    """Runs the claims and prints their figures; 1 if one of them does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="+", choices=sorted(CLAIMS), metavar="ID")
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=["tiny", "cpu", "gpu"], default="gpu", help="tiny: seconds, to try it")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds of training of 2503.16302")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    claims = CLAIMS | {"2503.16302": functools.partial(flashvdm.claim, limit=arguments.limit)}
    every = True
    for paper in arguments.ids:
        start = time.perf_counter()
        result = claims[paper](arguments.size, arguments.seed, arguments.out)
        print(f"{paper}: {result.claim}\n{result.protocol}")
        for name, (mean, spread) in result.measured.items():
            print(f"{name}: {mean:.6g} +- {spread:.2g}")
        print(f"{'holds' if result.holds else 'does not hold'}, after {time.perf_counter() - start:.0f} s", flush=True)
        every &= result.holds
    return 0 if every else 1


if __name__ == "__main__":
    sys.exit(main())
