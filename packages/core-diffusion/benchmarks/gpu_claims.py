"""The claims of this package's papers at the size of one GPU, as `core reproduce ID --size gpu` runs them.

python benchmarks/gpu_claims.py ID ... [--out DIR] [--seed N]; writes ID.json and the claim's pictures into the folder
as soon as a claim is done, and goes on with what a stopped run has left there. 2503.16302 needs pybullet and trimesh.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

from core_diffusion.claims import coarse_to_fine, experts, flashvdm, token_set
from core_registry.timing import write_results

CLAIMS = {
    "2503.14487": experts.diffmoe,
    "2503.16057": experts.race,
    "2503.16194": coarse_to_fine.claim,
    "2503.16302": flashvdm.claim,
    "2503.16425": token_set.claim,
}


def main() -> int:
    """Runs the claims, prints their figures, writes the files; 1 if one of them does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="+", choices=sorted(CLAIMS), metavar="ID")
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = True
    for paper in arguments.ids:
        start = time.perf_counter()
        result = CLAIMS[paper]("gpu", arguments.seed, arguments.out)
        rows = [{"what": name, "value": mean, "spread": spread} for name, (mean, spread) in result.measured.items()]
        print(f"{paper}: {result.claim}\n{result.protocol}", *rows, sep="\n")
        print(f"{'holds' if result.holds else 'does not hold'}, after {time.perf_counter() - start:.0f} s", flush=True)
        write_results(arguments.out / f"{paper}.json", ["what", "value", "spread"], rows)
        every &= bool(result.holds)
    return 0 if every else 1


if __name__ == "__main__":
    sys.exit(main())
