"""What `core reproduce` measures of the papers' claims, as the JSON from which the README's table is made.

python benchmarks/claims.py [--size cpu] [--only ARXIV-ID] [--set FIELD=VALUE ...] [-o FOLDER]

Writes FOLDER/ARXIV-ID_SIZE.json for each claim, and the claims' pictures. `--set` changes fields of a claim's `Size`
where it has them. Exits 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import pathlib
import sys
from typing import Any

from core_registry.timing import write_results
from core_splatting.claims import fourdgs_1k, m3

CLAIMS = {"2503.16422": fourdgs_1k, "2503.16413": m3}
COLUMNS = ("paper", "what", "value", "spread")


def main() -> int:
    """Measures, prints, writes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", choices=tuple(CLAIMS))
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("-o", "--out", type=pathlib.Path)
    chosen = parser.parse_args()
    given: dict[str, Any] = {k: ast.literal_eval(v) for k, _, v in (x.partition("=") for x in chosen.set)}
    holds = True
    for paper, module in CLAIMS.items():
        if chosen.only not in (None, paper):
            continue
        size = module.SIZES[chosen.size]
        fields = {f.name for f in dataclasses.fields(size)}
        size = dataclasses.replace(size, **{k: v for k, v in given.items() if k in fields})
        claim = module.experiment(size, 0, chosen.out or pathlib.Path("out/reproduce"))
        print(f"{paper}: {'holds' if claim.holds else 'does not hold'} at {size}")
        rows = [{"paper": paper, "what": k, "value": v, "spread": s} for k, (v, s) in claim.measured.items()]
        for name, (value, spread) in claim.measured.items():
            print(f"  {name}: {value:.6g} +- {spread:.2g}", flush=True)
        holds &= claim.holds
        if chosen.out:
            write_results(chosen.out / f"{paper}_{chosen.size}.json", COLUMNS, rows, cpu=size.device == "cpu")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
