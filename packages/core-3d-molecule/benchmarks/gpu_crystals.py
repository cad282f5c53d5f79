"""Uni-3DAR trained on Perov-5 for minutes on one GPU: validity of 1,000 drawn crystals, as a table with its aims.

python benchmarks/gpu_crystals.py DIR [--table perov_5_val.csv] [--minutes M] [--seconds S] [-o results] [--tiny]

Trains on CUDA, or goes on with what an interrupted run left in DIR, and writes gpu_crystals.json to results/ or -o.
Where smact is not installed that table lacks the compositions, and the exit status is 2: copy DIR (the record and the
samples, *.json and *.npz) to where it is and call again with the same arguments. Record, samples and table are copied
to $OUT, if set. A call stops in time after S seconds and exits 3: call again. Exits 0 if both aims are met, 1 if not.
--tiny: the whole path on the CPU, of 40 crystals.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
from typing import Any

from core_3d_molecule.claims import runs, uni3dar_crystals
from core_registry.files import replace

TINY: dict[str, Any] = {
    "device": "cpu", "limit": 40, "steps": 6, "count": 12, "rows": 4096, "layers": 1, "width": 48
}  # fmt: skip
SHOWN = ("structure_validity", "composition_validity", "validity", "unique", "novel")


def main() -> int:
    """Trains, draws and scores; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path, default=pathlib.Path("shared/data/crystals/perov_5_val.csv"))
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    for folder in (chosen.folder, chosen.out):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {"minutes": 0.0, **TINY} if chosen.tiny else {"minutes": chosen.minutes}
    scored = True
    try:
        uni3dar_crystals.generate(0, chosen.folder, chosen.table, seconds=chosen.seconds, **settings)
    except runs.UnfinishedError as e:
        print(e)
        return 3
    except ModuleNotFoundError as e:
        print(e)
        scored = False
    record = json.loads((chosen.folder / "uni3dar-crystals.json").read_text())
    rows = rows_of(record["measured"])
    table = {k: record[k] for k in ("device", "date", "torch")} | {
        "protocol": f"{chosen.table.name}, {record['schedule']['minutes']:g} minutes; unranked: all that were finished",
        "columns": list(rows[0]),
        "rows": rows,
    }
    made = chosen.out / "gpu_crystals.json"
    with replace(made) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{value}" for value in row.values()))
    if out := os.environ.get("OUT"):
        for path in (made, *chosen.folder.glob("*.json"), *chosen.folder.glob("*.npz")):
            shutil.copy(path, out)
    return 2 if not scored else int(any(row["met"] == "no" for row in rows))


def rows_of(measured: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Each score with its 95 % interval's half, unranked and of the best at every temperature; aims at the first."""
    run = {"steps": round(measured["steps"][0]), "gpu_minutes": measured["GPU minutes of training"][0]}
    rows = []
    for key, (value, half) in measured.items():
        group, _, name = key.rpartition(": ")
        if name not in SHOWN and not key.startswith("finished"):
            continue
        bar = uni3dar_crystals.BARS.get(name) if group == "unranked" else None
        aim = {"bar": "", "met": ""} if bar is None else {"bar": f">= {bar}", "met": "yes" if value >= bar else "no"}
        rows.append({"what": key, "value": f"{value:.4f}", "half": f"{half:.4f}"} | aim | run)
    if not any(row["what"] == "unranked: composition_validity" for row in rows):
        bar = uni3dar_crystals.BARS["composition_validity"]
        unknown = {"value": "not scored", "half": "", "bar": f">= {bar}", "met": ""}
        rows.append({"what": "unranked: composition_validity"} | unknown | run)
    return rows


if __name__ == "__main__":
    sys.exit(main())
