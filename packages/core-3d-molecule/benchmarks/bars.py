"""The package's aims for one core, one benchmark after the other: python benchmarks/bars.py [--csv FILE].

Prints what each benchmark prints, then each aim beside what was measured; exits 1 if one is not met or a benchmark
fails, as it does when ours and the peer's answers differ. Wants a quiet machine and some minutes. --csv: see
bench_crystals.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path

AIMS = [
    ("bench_pipeline.py", "augment, tokenise and pack", 200_000),
    ("bench_bonds.py", "molecules of QM9", 1_000_000),
    ("bench_relational.py", "forward", 4_000_000),
    ("bench_crystals.py", "neighbours within 6 A", 30_000),
    ("bench_crystals.py", "patterns 0-120 degrees", 2_000),
    ("bench_crystals.py", "matching", 1_000),
]


def rate(output: str, what: str) -> float:
    """A second's work of ours, from the line that tells of `what`; NaN if there is none."""
    found = re.search(rf"^[\d ]*{re.escape(what)}\b.*?(?:ours )?([\d,.]+)( M [a-z]+)?/s", output, re.MULTILINE)
    return float(found[1].replace(",", "")) * (1e6 if found[2] else 1) if found else math.nan


def main(csv: Path | None) -> int:
    """Runs the benchmarks; 1 if an aim is missed."""
    environment = os.environ | {"CORE_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    outputs: dict[str, str] = {}
    for script in dict.fromkeys(script for script, _, _ in AIMS):
        given = ["--csv", str(csv.resolve())] if csv and script == "bench_crystals.py" else []
        here = Path(__file__).resolve().parent
        done = subprocess.run(
            [sys.executable, script, *given], cwd=here, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        outputs[script] = done.stdout if done.returncode == 0 else ""
        print(done.stdout, end="", flush=True)
    missed = False
    for script, what, aim in AIMS:
        got = rate(outputs[script], what)
        missed |= not got >= aim
        said = "not measured" if math.isnan(got) else f"{got:,.0f}/s"
        print(f"{what}: {said}, aim {aim:,}/s: {'met' if got >= aim else 'not met'}")
    return int(missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=None)
    sys.exit(main(parser.parse_args().csv))
