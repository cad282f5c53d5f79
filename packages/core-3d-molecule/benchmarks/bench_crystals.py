"""Neighbours, powder patterns and matching of crystals, one thread: ours against pymatgen's, which must agree.

Without --csv the AFLOW prototypes of pymatgen's wheel; with it, a file with a column `cif` (MP-20, Perov-5, Carbon-24).
"""

from __future__ import annotations

import argparse
import csv
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from bench_pipeline import seconds
from core_3d_molecule import Crystals, crystal_distances, data, match_crystals, neighbor_list, pxrd_patterns

TOLERANCES = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10}
CUTOFF, RANGE = 6.0, (0, 120)


def load(path: Path | None, count: int) -> list[Any]:
    """pymatgen's structures."""
    from pymatgen.core import Structure

    if path is None:
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

        found = (entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY)
        return [s for s in found if s.is_ordered and len(s) <= 20][:count]
    with path.open(newline="") as file:
        return [
            Structure.from_str(row["cif"], fmt="cif")
            for _, row in zip(range(count), csv.DictReader(file), strict=False)
        ]


def row(name: str, count: int, ours: float, peer_count: int, peer: float, difference: str) -> None:
    mine, theirs = count / ours, peer_count / peer
    print(f"{name}: ours {mine:,.0f}/s, pymatgen {theirs:,.0f}/s, ratio {mine / theirs:.1f}; {difference}")


def reading(path: Path, structures: list[Any], crystals: Crystals) -> None:
    few = min(len(structures), 300)
    ours = seconds(lambda: data.crystals(path, few), 2)
    with path.open(newline="") as file:
        texts = [row["cif"] for _, row in zip(range(few), csv.DictReader(file), strict=False)]
    peer = seconds(lambda: [type(structures[0]).from_str(text, fmt="cif") for text in texts], 1)
    found = data.crystals(path, len(structures))
    exact: dict[str, Any] = {"ltol": 1e-3, "stol": 1e-3, "angle_tol": 0.01, "primitive_cell": False, "scale": False}
    differ = int(np.isnan(match_crystals(found, crystals, **exact)[0]).sum())
    row("CIF files", few, ours, few, peer, f"{differ} crystals differ")


def neighbors(structures: list[Any], crystals: Crystals) -> None:
    near = neighbor_list(crystals, CUTOFF)
    for b, s in enumerate(structures):
        i, j, images, _ = s.get_neighbor_list(CUTOFF)
        first, last = crystals.offsets[b : b + 2]
        rows = slice(near.offsets[first], near.offsets[last])
        got = np.column_stack([near.pairs[rows] - first, near.shifts[rows]]).tolist()
        if sorted(got) != sorted(np.column_stack([i, j, images]).astype(int).tolist()):
            raise SystemExit(f"neighbours of crystal {b} differ")
    ours = seconds(lambda: neighbor_list(crystals, CUTOFF), 5)
    peer = seconds(lambda: [s.get_neighbor_list(CUTOFF) for s in structures], 2)
    row("neighbours within 6 A", len(structures), ours, len(structures), peer, "the same pairs")


def distances(structures: list[Any], crystals: Crystals) -> None:
    def all_pairs() -> list[float]:
        return [float((s.distance_matrix + np.diag(np.full(len(s), np.inf))).min()) for s in structures]

    difference = np.nan_to_num(np.abs(crystal_distances(crystals)[1] - all_pairs())).max()
    ours, peer = seconds(lambda: crystal_distances(crystals), 5), seconds(all_pairs, 2)
    row("least distances", len(structures), ours, len(structures), peer, f"largest difference {difference:.1e} A")


def patterns(structures: list[Any], crystals: Crystals) -> None:
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    few, calculator = structures[:60], XRDCalculator()
    found = pxrd_patterns(crystals, two_theta_range=RANGE)
    angle = intensity = 0.0
    uneven = 0
    for b, s in enumerate(few):
        want = calculator.get_pattern(s, two_theta_range=RANGE)
        rows = slice(*found.offsets[b : b + 2])
        if len(want.x) != len(found.two_theta[rows]):
            uneven += 1  # a reflection on the border of two bins of 1e-5 degrees
            continue
        angle = max(angle, float(np.abs(found.two_theta[rows] - want.x).max()))
        intensity = max(intensity, float(np.abs(found.intensity[rows] - want.y).max()))
    ours = seconds(lambda: pxrd_patterns(crystals, two_theta_range=RANGE), 5)
    peer = seconds(lambda: [calculator.get_pattern(s, two_theta_range=RANGE) for s in few], 1)
    difference = f"largest difference {angle:.1e} degrees, {intensity:.1e} of 100, {uneven} with other bins"
    row("patterns 0-120 degrees", len(structures), ours, len(few), peer, difference)


def matching(structures: list[Any]) -> None:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

    rng = np.random.default_rng(0)
    others = []
    for k, s in enumerate(structures):
        other = s.copy()
        if k % 3 == 0:
            other.perturb(0.1, seed=k)
        elif k % 3 == 1:
            other.apply_strain(rng.uniform(-0.1, 0.2, 3))
            other.perturb(float(rng.uniform(0.2, 1.0)), seed=k)
        else:
            other = Structure(s.lattice, s.species, rng.random((len(s), 3)))
        others.append(other)
    pair = Crystals.from_pymatgen(others), Crystals.from_pymatgen(structures)
    few, matcher = slice(0, 200), StructureMatcher(**TOLERANCES)
    rms, _ = match_crystals(*pair, **TOLERANCES)
    want: list[Any] = []

    def peer() -> None:
        want[:] = [matcher.get_rms_dist(a, b) for a, b in zip(others[few], structures[few], strict=True)]

    theirs, ours = seconds(peer, 1), seconds(lambda: match_crystals(*pair, **TOLERANCES), 3)
    found = np.array([np.nan if w is None else w[0] for w in want])
    differ = int((np.isnan(found) != np.isnan(rms[few])).sum())
    difference = np.nanmax(np.abs(found - rms[few]))
    matched = int((~np.isnan(found)).sum())
    agreement = f"{matched} of {len(found)} match, {differ} decisions differ, rms to {difference:.1e}"
    row("matching", len(others), ours, len(found), theirs, agreement)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    os.environ["CORE_NUM_THREADS"] = "1"
    warnings.filterwarnings("ignore")
    loaded = load(arguments.csv, arguments.count)
    batch = Crystals.from_pymatgen(loaded)
    print(f"{len(loaded)} crystals, {len(batch.numbers) / len(loaded):.1f} atoms each")
    if arguments.csv:
        reading(arguments.csv, loaded, batch)
    neighbors(loaded, batch)
    distances(loaded, batch)
    patterns(loaded, batch)
    matching(loaded)
