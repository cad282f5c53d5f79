"""Uni-3DAR, UAE-3D and UDM-3D trained on QM9 for minutes on one GPU: what they draw, as tables and a picture.

python benchmarks/gpu_claims.py DIR [--only uni3dar|udm3d] [--seconds S] [--minutes UNI UAE UDM] [--oriented]
    [--noise S] [--weights K N] [--tiny]

Trains on CUDA, or goes on with what an interrupted call left in DIR; where there is RDKit and no GPU it scores what was
drawn elsewhere and copied into DIR. Tables and a picture go to results/ or -o. A call stops in time after S seconds and
exits 3: call again. Whenever a call ends, record (.json) and samples (.npz) are copied to $OUT, if set, and with
--weights, once a model is trained, the K-th of N shares of its averaged weights in half precision, in pieces of at most
14 MiB (`weights-MODEL-*.safetensors`; UDM-3D's with its autoencoder's, whole, in single precision). A lease gives 8
files, 64 MiB together, back: Uni-3DAR's weights fit whole, UDM-3D's in halves, both in thirds. Pieces that are in DIR,
all of them, are drawn from instead of training; DIR must then hold the record, too, but no samples; what it says of
trials is tried anew if it is taken out of it. Exits 0 if all claims hold, 1 if one does not, 2 if only RDKit is
missing. --oriented: molecules lie along their principal axes. --noise: that of latents in the autoencoder's training.
--tiny: the whole path in seconds, on the CPU, of 40 molecules.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from core_3d_molecule import show
from core_3d_molecule.claims import runs, uae3d_qm9, uni3dar_qm9
from core_3d_molecule.claims.uni3dar_runs import load
from core_registry.claims import Claim
from core_registry.files import replace

TINY: dict[str, Any] = {"device": "cpu", "limit": 40, "steps": 6, "count": 12}
TINY_UNI: dict[str, Any] = {"trial": 8, "rows": 2048, "layers": 1, "width": 48, "temperatures": uni3dar_qm9.GRID[4:6]}
TINY_UDM: dict[str, Any] = {"small": True, "batch": 8, "trial": 8, "sampling": (2, (0.95, 0.8))}
PIECE = 14 << 20
RUN = ("steps", "gpu_minutes")
NAMES = {"uni3dar": "gpu_uni3dar.json", "udm3d": "gpu_udm3d.json"}


def main() -> int:
    """Trains, draws and scores within the time; prints the claims, writes the tables and the picture."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("results"))
    parser.add_argument("--only", choices=list(NAMES))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--minutes", type=float, nargs=3, default=(19.0, 7.0, 13.0), metavar=("UNI", "UAE", "UDM"))
    parser.add_argument("--oriented", action="store_true")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--weights", type=int, nargs=2, default=(0, 1), metavar=("K", "N"))
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    uni, *latent = (0.0, 0.0, 0.0) if chosen.tiny else chosen.minutes
    tiny_uni, tiny_udm = (TINY | TINY_UNI, TINY | TINY_UDM) if chosen.tiny else ({}, {})

    def uni3dar(seconds: float) -> Claim:
        return uni3dar_qm9.generate(
            0, chosen.folder, minutes=uni, seconds=seconds, oriented=chosen.oriented, **tiny_uni
        )

    def udm3d(seconds: float) -> Claim:
        how = {"oriented": chosen.oriented, "noise": chosen.noise} | tiny_udm
        return uae3d_qm9.generate(0, chosen.folder, minutes=tuple(latent), seconds=seconds, **how)

    parts: dict[str, tuple[Callable[[float], Claim], Callable[[Any], list[dict[str, Any]]]]] = {
        "uni3dar": (uni3dar, uni3dar_rows), "udm3d": (udm3d, udm3d_rows),
    }  # fmt: skip
    status = 0
    for name in [chosen.only] if chosen.only else parts:
        run, rows_of = parts[name]
        join(chosen.folder, name)
        try:
            claim = run(chosen.seconds - (time.monotonic() - began))
        except runs.UnfinishedError as e:
            print(e)
            status = 3
            break
        except ModuleNotFoundError as e:
            print(e)
            status = max(status, 2)
            continue
        finally:
            keep(chosen.folder, name, os.environ.get("OUT"), chosen.weights)
        report(claim)
        record = json.loads((chosen.folder / f"{name}-qm9.json").read_text())
        rows = rows_of(claim.measured)
        table = {**{k: record[k] for k in ("device", "date", "torch")}, "protocol": claim.protocol}
        with replace(chosen.out / NAMES[name]) as made:
            made.write_text(json.dumps({**table, "columns": list(rows[0]), "rows": rows}, indent=1) + "\n")
        if name == "uni3dar":
            samples, _ = load(chosen.folder / "uni3dar-qm9.npz")
            show.grid(chosen.out / "uni3dar-samples.png", samples.select(np.arange(min(16, len(samples)))), columns=8)
        status = max(status, int(not claim.holds))
    return status


def keep(folder: pathlib.Path, name: str, out: str | None, share: Sequence[int]) -> None:
    """Copies a model's record, samples and a share (see `split`) of its weights to the folder `out`, as a lease wants
    it."""
    if out is None:
        return
    for path in folder.glob(f"{name}-qm9*"):
        if path.suffix in (".json", ".npz"):
            shutil.copy(path, out)
    if share[0] and (folder / f"{name}-qm9.npz").exists():
        split(folder / f"{name}-qm9.safetensors", pathlib.Path(out), name, share)


def split(checkpoint: pathlib.Path, out: pathlib.Path, name: str, share: Sequence[int]) -> None:
    """Of a checkpoint what `checkpoints.load_model` reads, averaged weights in half precision, in files of at most
    14 MiB (and a tensor); of N shares of these files the K-th, share = (K, N)."""
    from core_3d_molecule.training import read_tensors, write_tensors

    if not checkpoint.exists():  # drawn elsewhere
        return
    tensors, about = read_tensors(checkpoint)
    pieces: list[dict[str, Any]] = [{}]
    for key in [key.removeprefix("model.") for key in tensors if key.startswith("model.")]:
        average = tensors.get(f"average.{key}")
        value = tensors[f"model.{key}"] if average is None else average.half()
        if sum(x.nbytes for x in pieces[-1].values()) > PIECE - value.nbytes and pieces[-1]:
            pieces.append({})
        pieces[-1][f"average.{key}"] = value
    for number in np.array_split(np.arange(len(pieces)), share[1])[share[0] - 1]:
        about_piece = about | {"pieces": len(pieces)}
        write_tensors(out / f"weights-{name}-{number}.safetensors", pieces[number], about_piece)


def join(folder: pathlib.Path, name: str) -> None:
    """From the pieces in a folder, if all are there, the weights that the claim draws from instead of training."""
    from core_3d_molecule.training import read_tensors, write_tensors

    read = [read_tensors(path) for path in sorted(folder.glob(f"weights-{name}-*.safetensors"))]
    if read and len(read) == read[0][1]["pieces"]:
        tensors = {key: value.float() for found, _ in read for key, value in found.items()}
        write_tensors(folder / f"{name}-qm9-weights.safetensors", tensors, read[0][1])


def report(claim: Claim) -> None:
    """Prints a claim."""
    print(claim.protocol)
    for name, (value, half) in claim.measured.items():
        print(f"  {name}: {value:.6g} +- {half:.2g}")
    print("holds" if claim.holds else "does not hold")


def uni3dar_rows(m: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """What is stable, valid, and valid and unique, of all and of the best 10 %, with what must be beaten; published
    rows; what the trials decided by."""
    run: dict[str, Any] = dict(zip(RUN, (round(m["steps"][0]), m["GPU minutes of training"][0]), strict=True))
    bars = uni3dar_qm9.PUBLISHED["G-SchNet"]
    ours = {key: m[f"unranked: {key}"][0] for key in bars}
    groups = {"unranked": "unranked", "best 10 %": "best 10 %", "test molecules": "QM9's test molecules"}
    groups |= {f"{name}, published": f"{name}, published, unranked" for name in uni3dar_qm9.PUBLISHED}
    rows = []
    for key, what in groups.items():
        scores: dict[str, Any] = {short: m[f"{key}: {short}"][0] for short in uni3dar_qm9.NAMES}
        rows.append({"what": what} | scores | (run if key in ("unranked", "best 10 %") else dict.fromkeys(RUN, "")))
    met = {key: "yes" if ours[key] > bar else "no" for key, bar in bars.items()}
    rows.append({"what": "unranked better than G-SchNet"} | met | dict.fromkeys(RUN, ""))
    for key, (value, _) in m.items():
        if key.startswith("trial at ") and key.endswith(": different and valid"):
            name = key.removesuffix(": different and valid")
            shown = {"atom": m[f"{name}: atoms stable"][0], "molecule": m[f"{name}: molecules stable"][0]}
            chosen_by = {"valid": "", "unique": f"decides: {value:.4f}"}
            rows.append({"what": name} | shown | chosen_by | dict.fromkeys(RUN, ""))
    return rows


def udm3d_rows(m: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Of reconstructions and of what is drawn, each with its aim and whether it is met."""
    runs_: dict[str, dict[str, Any]] = {
        who: dict(zip(RUN, (round(m[f"steps, {who}"][0]), m[f"GPU minutes, {who}"][0]), strict=True))
        for who in ("autoencoder", "transformer")
    }
    bars, rows = uae3d_qm9.TEST_BARS, []

    def row(what: str, value: float, bar: str, met: bool, digits: int, who: str) -> None:
        found = {"value": f"{value:.{digits}f}", "bar": bar, "met": "yes" if met else "no"}
        rows.append({"what": what} | found | runs_[who])

    for key, name in (("atoms right", "atoms"), ("bonds right", "bonds")):
        value = m[f"test: {key}"][0]
        row(f"test: {key}", value, f">= {bars[name]}", value >= bars[name], 6, "autoencoder")
    value = m["test: RMSD (angstroms)"][0]
    row("test: RMSD (angstroms)", value, f"<= {bars['rmsd']}", value <= bars["rmsd"], 5, "autoencoder")
    stable, again = (m[f"test: stable molecules{when}"][0] for when in ("", " after reconstruction"))
    near = abs(again - stable) <= bars["stability"]
    row(
        "test: stable molecules after reconstruction",
        again,
        f"{stable:.4f} +- {bars['stability']}",
        near,
        4,
        "autoencoder",
    )
    for name, low in uae3d_qm9.DRAWN_BARS.items():
        key = f"drawn: {name.replace('_', ' ')}"
        row(key, m[key][0], f">= {low}", m[key][0] >= low, 4, "transformer")
    key = "drawn: milliseconds a molecule"
    row(key, m[key][0], f"<= {uae3d_qm9.MOST_MS:g}", m[key][0] <= uae3d_qm9.MOST_MS, 2, "transformer")
    for key, (value, _) in m.items():
        if key.startswith(("trial at ", "test, latents with errors")):
            rows.append({"what": key, "value": f"{value:.4f}", "bar": "", "met": ""} | dict.fromkeys(RUN, ""))
    return rows


if __name__ == "__main__":
    sys.exit(main())
