"""Bonds and stability of QM9 by EDM's table: ours against the Python reference, and the EDM test split's stability."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from bench_pipeline import seconds
from core_3d_molecule import Structures, data, edm_stability
from core_3d_molecule.bonds import EDM_VALENCES
from core_3d_molecule.reference import bonds as reference

PEER = 500
QM9, TRAIN, VALID = 130831, 100000, 17748


def peer(structures: Structures) -> tuple[list[int], list[bool]]:
    """Valences and stable molecules by the reference."""
    valences, stable = [], []
    for i, j in itertools.pairwise(structures.offsets):
        numbers = structures.numbers[i:j].tolist()
        sums = [0] * len(numbers)
        for a, b, order in reference.bonds(numbers, structures.positions[i:j].tolist()):
            sums[a] += order
            sums[b] += order
        valences += sums
        stable.append(all(v in EDM_VALENCES[z] for z, v in zip(numbers, sums, strict=True)))
    return valences, stable


def main(molecules: int | None) -> None:
    """Prints molecules per second and core, ours and the reference's; raises if an integer differs."""
    structures = data.qm9(molecules)
    few = Structures(structures.numbers, structures.positions, structures.offsets[: PEER + 1])
    few = Structures(few.numbers[: few.offsets[-1]], few.positions[: few.offsets[-1]], few.offsets)
    got, (valences, stable) = edm_stability(few), peer(few)
    np.testing.assert_array_equal(got.valences, valences)
    np.testing.assert_array_equal(got.stable, stable)
    ours = len(structures) / seconds(lambda: edm_stability(structures), 7)
    peers = len(few) / seconds(lambda: peer(few), 2)
    print(f"{len(structures)} molecules of QM9: ours {ours:,.0f}/s, Python {peers:,.0f}/s, ratio {ours / peers:.0f}")
    if len(structures) == QM9:
        result = edm_stability(structures)
        test = np.random.RandomState(0).permutation(QM9)[TRAIN + VALID :]
        atoms = result.stable_atoms[test].sum() / result.atom_counts[test].sum()
        print(f"EDM test split, {len(test)}: atom stability {atoms:.5f}, molecule {result.stable[test].mean():.5f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=None, help="all of QM9 if left out")
    main(parser.parse_args().molecules)
