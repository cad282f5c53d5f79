"""Every molecule of QM9, and every crystal of tables given with --csv, against the Python tokeniser, and read back.

Prints the streams that differ (none may), the largest error of a coordinate, and for crystals how many cells came back
within 0.02 angstroms and 0.5 degrees; exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from core_3d_molecule import Crystals, CrystalTokenizer, OctreeTokenizer, Tokens, data, match_crystals, niggli_reduce
from core_3d_molecule.demo import roundtrip_error
from core_3d_molecule.octree import LATTICE
from core_3d_molecule.reference import octree as reference

NAMES = ("tokens", "levels", "bins", "counts")


def equal(tokens: Tokens, stream: int, want: dict[str, list[object]]) -> bool:
    rows = slice(tokens.offsets[stream], tokens.offsets[stream + 1])
    return all(np.array_equal(getattr(tokens, name)[rows], want[name]) for name in NAMES)


def molecules() -> bool:
    structures, tokenizer = data.qm9(), OctreeTokenizer()
    tokens = tokenizer.tokenize(structures)
    error = roundtrip_error(tokenizer, structures, tokens)
    differ = sum(
        not equal(tokens, b, reference.tokenize(numbers.tolist(), positions.tolist(), 6, 0.24, 0.01))
        for b, (numbers, positions) in enumerate(structures)
    )
    print(f"QM9: {len(structures)} molecules, {differ} streams differ, largest error {error:.6f} angstroms")
    return differ == 0 and error <= 0.005 + 1e-9


def cells_agree(found: Crystals, want: Crystals) -> np.ndarray:
    """Whether lengths agree within 0.02 angstroms and angles within 0.5 degrees, in ascending order of lengths.

    An edge and its opposite make the same cell, so two angles may both stand for their supplements.
    """
    agree = []
    for a, b in zip(found.lattices, want.lattices, strict=True):
        best = False
        for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
            m = b[order]
            lengths = [np.linalg.norm(x, axis=1) for x in (a, m)]
            if np.abs(lengths[0] - lengths[1]).max() > 0.02:
                continue
            for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)):
                angles = [
                    np.degrees(np.arccos([x[i] @ x[j] / size[i] / size[j] for i, j in ((1, 2), (0, 2), (0, 1))]))
                    for x, size in ((a, lengths[0]), (m * np.array(signs)[:, None], lengths[1]))
                ]
                best |= bool(np.abs(angles[0] - angles[1]).max() <= 0.5)
        agree.append(best)
    return np.array(agree)


def crystals(path: Path) -> bool:
    given = niggli_reduce(data.crystals(path))
    tokenizer = CrystalTokenizer(OctreeTokenizer(8, duplicates="first"), niggli=False)
    tokens = tokenizer.tokenize(given)
    differ, everywhere = 0, []
    for b, (numbers, fractional, lattice) in enumerate(given):
        corners = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]) @ lattice
        for r, (kinds, points) in enumerate((([LATTICE + 1] * 8, corners), (numbers, fractional % 1.0 @ lattice))):
            everywhere.append(points)
            want = reference.tokenize(kinds, points, 8, 0.24, 0.01, True, middle=corners.mean(0))
            differ += not equal(tokens, 2 * b + r, want)
    order = tokens.atoms[tokens.atoms >= 0]
    error = np.abs(tokenizer.octree.detokenize(tokens).positions - np.concatenate(everywhere)[order]).max()
    again, rows = tokenizer.detokenize(tokens)
    kept = given.select(rows)
    share = float(cells_agree(again, kept).mean()) * len(rows) / len(given)
    whole = np.diff(again.offsets) == np.diff(kept.offsets)
    rms, farthest = match_crystals(again.select(whole), kept.select(whole), scale=False, primitive_cell=False)
    print(
        f"{path.name}: {len(given)} crystals, {differ} of {2 * len(given)} streams differ, "
        f"largest error {error:.6f} angstroms, {len(rows)} come back,",
        end=" ",
    )
    print(
        f"{share:.4%} of cells within 0.02 A and 0.5 degrees, {int((~whole).sum())} lost an atom in a shared cell,",
        end=" ",
    )
    print(f"{int(np.isnan(rms).sum())} do not match, largest distance {np.nanmax(farthest):.4f} (V / N)^(1/3)")
    return differ == 0 and error <= 0.005 + 1e-9 and share >= 0.999


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, nargs="*", default=[])
    parser.add_argument("--no-qm9", action="store_true")
    arguments = parser.parse_args()
    passed = [crystals(path) for path in arguments.csv]
    if not arguments.no_qm9:
        passed.append(molecules())
    raise SystemExit(not all(passed))
