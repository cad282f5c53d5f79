"""What `core reproduce` measures of the papers' claims, as the JSON from which the README's table is made.

python benchmarks/claims.py [--size cpu] [--only ARXIV-ID] [--set FIELD=VALUE ...] [-o FOLDER] [--seconds S] [--resume]

Writes FOLDER/ARXIV-ID_SIZE.json for each claim, as soon as there is something to tell, and the claims' pictures.
`--set` changes fields of a claim's `Size` where it has them. `--seconds` stops a claim (each one after so many) where
it is; `--resume` goes on from FOLDER, with the same settings: from the trained Gaussians, kept every two minutes in
FOLDER/ARXIV-ID_SIZE, and of 2503.16413 from each trained field. Exits 1 if a claim does not hold, 3 if one was stopped.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import math
import pathlib
import sys
from typing import Any

from core_splatting.claims import fourdgs_1k, m3
from core_splatting.claims.notes import Notes

CLAIMS = {"2503.16422": fourdgs_1k, "2503.16413": m3}


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", choices=tuple(CLAIMS))
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    given: dict[str, Any] = {k: ast.literal_eval(v) for k, _, v in (x.partition("=") for x in chosen.set)}
    holds, stopped = True, False
    for paper, module in CLAIMS.items():
        if chosen.only not in (None, paper):
            continue
        size = module.SIZES[chosen.size]
        fields = {f.name for f in dataclasses.fields(size)}
        size = dataclasses.replace(size, **{k: v for k, v in given.items() if k in fields})
        file = chosen.out / f"{paper}_{chosen.size}.json" if chosen.out else None
        notes = Notes(file, paper, size, 0, resume=chosen.resume, seconds=chosen.seconds)
        try:
            claim = module.experiment(size, 0, chosen.out or pathlib.Path("out/reproduce"), notes)
            print(f"{paper}: {'holds' if claim.holds else 'does not hold'} at {size}")
            holds &= claim.holds
        except TimeoutError as e:
            print(f"{e}, at {size}")
            stopped = True
        for name, (value, spread) in notes.measured.items():
            print(f"  {name}: {value:.6g} +- {spread:.2g}", flush=True)
    return 3 if stopped else int(not holds)


if __name__ == "__main__":
    sys.exit(main())
