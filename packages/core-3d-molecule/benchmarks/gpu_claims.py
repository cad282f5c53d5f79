"""Uni-3DAR, UAE-3D and UDM-3D trained on QM9 for minutes on one GPU: what they draw, as tables and a picture.

python benchmarks/gpu_claims.py DIR [-o results] [--minutes UNI UAE UDM]

Trains on CUDA, or goes on with what an interrupted run left in DIR; where there is RDKit and no GPU it scores what was
drawn elsewhere and copied into DIR. Exits 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from core_3d_molecule import show
from core_3d_molecule.claims import uae3d_qm9, uni3dar_qm9
from core_registry.claims import Claim
from core_registry.files import replace

TREE = (0.9, 0.7, 0.5)
SAMPLING = ((250, 0.95), (100, 0.95), (250, 0.85))
RUN = ("steps", "gpu_minutes")


def main() -> int:
    """Prints both claims, writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--minutes", type=float, nargs=3, default=(14.5, 9.0, 8.0), metavar=("UNI", "UAE", "UDM"))
    chosen = parser.parse_args()
    uni, uae, udm = chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    drawn = uni3dar_qm9.generate(0, chosen.folder, minutes=uni, temperatures=TREE, xyz=0.3)
    latent = uae3d_qm9.generate(
        0, chosen.folder, minutes=(uae, udm), compiled=(False, True), lr=(2e-3, 4e-4), weights=(10.0, 10.0, 30.0),
        sampling=SAMPLING,
    )  # fmt: skip
    for claim, name, rows in (
        (drawn, "uni3dar", uni3dar_rows(drawn.measured)), (latent, "udm3d", udm3d_rows(latent.measured)),
    ):  # fmt: skip
        report(claim)
        record = json.loads((chosen.folder / f"{name}-qm9.json").read_text())
        head = {k: record[k] for k in ("device", "date", "torch")}
        table = {**head, "protocol": claim.protocol, "columns": list(rows[0]), "rows": rows}
        with replace(chosen.out / f"gpu_{name}.json") as made:
            made.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    samples, _ = uni3dar_qm9.load_samples(chosen.folder / f"uni3dar-qm9-{TREE[0]:g}.npz")
    show.grid(chosen.out / "uni3dar-samples.png", samples.select(range(16)), columns=8)
    return 0 if drawn.holds and latent.holds else 1


def report(claim: Claim) -> None:
    """Prints a claim."""
    print(claim.protocol)
    for name, (value, half) in claim.measured.items():
        print(f"  {name}: {value:.6g} +- {half:.2g}")
    print("holds" if claim.holds else "does not hold")


def uni3dar_rows(m: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Of each temperature what is stable, valid, and valid and unique, of all and of the best 10 %; published rows."""
    run: dict[str, Any] = dict(zip(RUN, (round(m["steps"][0]), m["GPU minutes of training"][0]), strict=True))
    groups = {}
    for tree in TREE:
        at = "" if tree == TREE[0] else f" at {tree:g}"
        for which in ("unranked", "best 10 %"):
            groups[f"{which}{at}"] = f"{which}, tree temperature {tree:g}"
    groups |= {"test molecules": "QM9's test molecules"}
    groups |= {f"{name}, published": f"{name}, published, unranked" for name in uni3dar_qm9.PUBLISHED}
    rows = []
    for key, what in groups.items():
        scores: dict[str, Any] = {short: m[f"{key}: {short}"][0] for short in uni3dar_qm9.NAMES}
        ours = key.startswith(("unranked", "best"))
        rows.append({"what": what} | scores | (run if ours else dict.fromkeys(RUN, "")))
    return rows


def udm3d_rows(m: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Of reconstructions and of what is drawn, each with its aim."""
    runs: dict[str, dict[str, Any]] = {
        who: dict(zip(RUN, (round(m[f"steps, {who}"][0]), m[f"GPU minutes, {who}"][0]), strict=True))
        for who in ("autoencoder", "transformer")
    }
    bars, rows = uae3d_qm9.TEST_BARS, []
    stable = m["test: stable molecules"][0]
    for key, bar in (
        ("atoms right", f">= {bars['atoms']}"), ("bonds right", f">= {bars['bonds']}"),
        ("RMSD (angstroms)", f"<= {bars['rmsd']}"),
        ("stable molecules after reconstruction", f"{stable:.4f} +- {bars['stability']}"),
    ):  # fmt: skip
        rows.append({"what": f"test: {key}", "value": f"{m[f'test: {key}'][0]:.5f}", "bar": bar} | runs["autoencoder"])
    for steps, temperature in SAMPLING:
        what = f"drawn in {steps} steps at {temperature:g}"
        for name, low in uae3d_qm9.DRAWN_BARS.items():
            key = f"{what}: {name.replace('_', ' ')}"
            rows.append({"what": key, "value": f"{m[key][0]:.4f}", "bar": f">= {low}"} | runs["transformer"])
        key = f"{what}: milliseconds a molecule"
        rows.append(
            {"what": key, "value": f"{m[key][0]:.2f}", "bar": f"<= {uae3d_qm9.MOST_MS:g}"} | runs["transformer"]
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
