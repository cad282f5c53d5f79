"""The score of generated molecules: one report with its definitions, tolerances and intervals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from .bonds import MARGINS, edm_bonds, edm_stability
from .structures import Structures

Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of all molecules or atoms, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of a batch, by the definitions of EDM (arXiv 2203.17003).

    atom_stability: atoms with an allowed valence / atoms; molecule_stability: molecules whose atoms are all stable / N.
    With RDKit, else None: validity: molecules that RDKit sanitises / N, of which the largest fragment counts;
    unique: different canonical SMILES / N (V x U); uniqueness: unique / valid; novelty: different SMILES that are not
    among the training ones / different SMILES, None without training SMILES. Intervals: Wilson's for shares of
    molecules, for atoms a normal one with molecules as clusters; unique, uniqueness and novelty depend on how many
    molecules were drawn and have none.
    """

    molecules: int
    atoms: int
    atom_stability: Rate
    molecule_stability: Rate
    validity: Rate | None
    unique: float | None
    uniqueness: float | None
    novelty: float | None
    tolerances: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def wilson(hits: int, total: int) -> Rate:
    """hits / total with Wilson's 95 % interval; 0 in [0, 1] for a total of 0."""
    if total == 0:
        return Rate(0.0, 0.0, 1.0)
    p, z = hits / total, Z95 * Z95 / total
    middle, half = (p + z / 2) / (1 + z), math.sqrt(p * (1 - p) * z + z * z / 4) / (1 + z)
    return Rate(p, max(middle - half, 0.0), min(middle + half, 1.0))


def clustered(hits: np.ndarray, totals: np.ndarray) -> Rate:
    """sum(hits) / sum(totals) with a normal 95 % interval; the rows (B,) of both are independent clusters."""
    total = int(totals.sum())
    if total == 0:
        return Rate(0.0, 0.0, 1.0)
    p = float(hits.sum() / total)
    residuals = hits - p * totals
    count = len(totals)
    half = Z95 * math.sqrt(float(residuals @ residuals) * count / max(count - 1, 1)) / total if count > 1 else 1.0
    return Rate(p, max(p - half, 0.0), min(p + half, 1.0))


def smiles(structures: Structures) -> list[str | None]:
    """The canonical SMILES of each molecule's largest fragment, with EDM's bonds; None for one RDKit refuses.

    Needs RDKit (the extra `rdkit`).
    """
    from rdkit import Chem, rdBase

    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    bonds, orders, bond_offsets = edm_bonds(structures)
    found: list[str | None] = []
    with rdBase.BlockLogs():
        for b in range(len(structures)):
            first, last = structures.offsets[b], structures.offsets[b + 1]
            molecule = Chem.RWMol()
            for number in structures.numbers[first:last].tolist():
                molecule.AddAtom(Chem.Atom(number))
            rows = slice(bond_offsets[b], bond_offsets[b + 1])
            for (i, j), order in zip((bonds[rows] - first).tolist(), orders[rows].tolist(), strict=True):
                molecule.AddBond(i, j, kinds[order])
            found.append(_canonical(Chem, molecule))
    return found


def _canonical(chem: Any, molecule: Any) -> str | None:
    try:
        chem.SanitizeMol(molecule)
        fragments = chem.GetMolFrags(molecule, asMols=True)
        if not fragments:
            return None
        largest = max(fragments, key=lambda m: m.GetNumAtoms())
        chem.SanitizeMol(largest)
        return str(chem.MolToSmiles(largest))
    except (ValueError, RuntimeError):
        return None


def evaluate(structures: Structures, *, rdkit: bool = True, training: set[str] | None = None) -> Report:
    """Scores molecules (numpy); `training` are canonical SMILES as `smiles` gives them.

    Raises ValueError as edm_stability does, and ModuleNotFoundError if `rdkit` is asked for and not installed.
    """
    stability = edm_stability(structures)
    count = len(structures)
    validity, unique, uniqueness, novelty = None, None, None, None
    if rdkit:
        valid = [s for s in smiles(structures) if s is not None]
        different = set(valid)
        validity = wilson(len(valid), count)
        unique = len(different) / max(count, 1)
        uniqueness = len(different) / max(len(valid), 1)
        if training is not None:
            novelty = len(different - training) / max(len(different), 1)
    return Report(
        count, int(stability.atom_counts.sum()),
        clustered(np.asarray(stability.stable_atoms), np.asarray(stability.atom_counts)),
        wilson(int(stability.stable.sum()), count), validity, unique, uniqueness, novelty,
        {"bond margins, pm (single, double, triple)": MARGINS, "valences": "EDM, strict", "interval": "95 %"},
    )  # fmt: skip
