"""GPU benchmark of vecset decoding: the experiment of `core reproduce 2503.16302 --size gpu`.

python benchmarks/gpu_vecset.py [--out FILE.json] [--folder DIR] [--seed N]; needs pybullet's meshes and trimesh.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from core_diffusion.claims.flashvdm import claim
from core_registry.timing import write_results


def main() -> int:
    """Runs the claim, prints its figures, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result = claim("gpu", arguments.seed, arguments.folder)
    print(result.protocol)
    rows = [{"what": name, "value": mean, "spread": spread} for name, (mean, spread) in result.measured.items()]
    for row in rows:
        print(row)
    if arguments.out:
        write_results(arguments.out, ["what", "value", "spread"], rows)
    print("holds" if result.holds else "does not hold")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
