"""The scores of generated molecules and crystals, by the definitions that published tables use."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .bonded import Bonded
from .bonds import MARGINS, edm_bonds, edm_stability
from .crystals import Crystals, crystal_distances, match_crystals
from .geometry import geometry_mmd
from .novelty import MATCH, known, repeated
from .report import Rate, Report, Scores, clustered, report, wilson
from .structures import Structures
from .valences import TABLES, valence_stability

MIN_DISTANCE, MIN_VOLUME = 0.5, 0.1
ATOMIC_MASS_UNIT = 1.66053906660
"""In g / cm^3 for one unit in a cubic angstrom."""


def smiles(samples: Structures | Bonded, threads: int | None = None) -> tuple[list[str | None], np.ndarray]:
    """The canonical SMILES of each molecule's largest fragment, None for one that RDKit refuses; fragments (B,).

    Bonds are those given, or EDM's. Needs RDKit (the extra `rdkit`), which works without Python's lock: `threads` (all
    cores if left out) share the molecules.
    """
    from rdkit import rdBase

    threads = threads or len(os.sched_getaffinity(0))
    if isinstance(samples, Structures):
        samples = Bonded(samples, edm_bonds(samples), np.zeros(len(samples.numbers), np.int32))
    parts = np.array_split(np.arange(len(samples)), 4 * threads)

    def part(rows: Any) -> list[tuple[str | None, int]]:
        few = samples.select(rows)
        return [_canonical(molecule) for molecule in few.structures.to_rdkit(few.bonds, few.charges)]

    with rdBase.BlockLogs(), ThreadPoolExecutor(threads) as pool:
        found = [one for part_found in pool.map(part, parts) for one in part_found]
    return [text for text, _ in found], np.array([count for _, count in found], np.int64)


def _canonical(molecule: Any) -> tuple[str | None, int]:
    from rdkit import Chem

    try:
        molecule.RemoveAllConformers()
        Chem.SanitizeMol(molecule)
        fragments = Chem.GetMolFrags(molecule, asMols=True)
        if not fragments:
            return None, 0
        largest = max(fragments, key=lambda m: m.GetNumAtoms())
        Chem.SanitizeMol(largest)
        return str(Chem.MolToSmiles(largest)), len(fragments)
    except (ValueError, RuntimeError):
        return None, 0


def evaluate(
    samples: Structures | Bonded | Sequence[Structures | Bonded],
    *,
    scores: Any = None,
    keep: float = 0.1,
    rdkit: bool = True,
    training: set[str] | None = None,
    reference: Structures | None = None,
    reference_smiles: Sequence[str] | None = None,
    threads: int | None = None,
) -> Report:
    """Scores molecules (numpy), one batch or one a seed, by EDM's definitions (arXiv 2203.17003).

    scores: perplexities, (B,) or one array a seed; the share `keep` with the least is reported beside all. training:
    canonical SMILES as `smiles` gives them; reference: real molecules to compare geometries with (seconds to minutes);
    reference_smiles: SMILES to measure the Frechet ChemNet distance from (fcd_torch, the extra `metrics`).

    * atom_stability: atoms with an allowed valence / atoms; molecule_stability: molecules whose atoms all are / N.
    * With `rdkit`: validity: molecules that RDKit sanitises / N, of which the largest fragment counts; valid_connected:
      those of one fragment / N; unique: different SMILES / N (V x U); uniqueness: unique / valid; with `training`,
      novelty: different SMILES that are not in it / different SMILES, and unique_novel: the same / N (V x U x N).
      Shares of different SMILES depend on how many molecules were drawn.
    * For samples with bonds and charges of their own (`Bonded`), given_*: the same by these, with the valences of
      GEOM-Drugs revisited (_pairs) and of JODO and FlowMol (_sums).
    * With `reference`: bond_mmd, angle_mmd, dihedral_mmd as geometry_mmd gives their means. With `reference_smiles`:
      fcd.

    Raises ValueError as edm_stability and `report` do, ModuleNotFoundError for a library that is not installed.
    """
    single = isinstance(samples, Structures | Bonded)
    batches = [samples] if isinstance(samples, Structures | Bonded) else list(samples)

    def score(given: Structures | Bonded) -> Scores:
        batch = given.structures if isinstance(given, Bonded) else given
        stability, count = edm_stability(batch), len(batch)
        found = {
            "atom_stability": clustered(np.asarray(stability.stable_atoms), np.asarray(stability.atom_counts)),
            "molecule_stability": wilson(int(stability.stable.sum()), count),
        }
        if rdkit:
            texts, fragments = smiles(batch, threads)
            found |= _of_smiles(texts, fragments, training)
            if reference_smiles is not None:
                found["fcd"] = Rate(_fcd([s for s in texts if s is not None], reference_smiles))
        if isinstance(given, Bonded):
            found |= _of_bonds(given, rdkit, threads)
        if reference is not None:
            found |= {f"{kind}_mmd": Rate(v["mean"]) for kind, v in geometry_mmd(batch, reference).items()}
        return found

    tolerances = {
        "bonds": "EDM's lengths + " + ", ".join(map(str, MARGINS)) + " pm (single, double, triple), strictly below",
        "valences": "EDM's, strict; of given bonds: pairs (arXiv 2505.00169), sums (JODO, FlowMol)",
        "validity": "RDKit sanitises molecule and largest fragment",
        "interval": "95 %",
    }
    return report(batches, score, [scores] if single and scores is not None else scores, keep, tolerances)


def _of_bonds(given: Bonded, rdkit: bool, threads: int | None) -> dict[str, Rate]:
    atoms, count = np.diff(given.structures.offsets), len(given)
    found = {}
    for table in TABLES:
        stable = np.asarray(valence_stability(given.structures, given.bonds, given.charges, table))
        found[f"given_atom_stability_{table}"] = clustered(stable, atoms)
        found[f"given_molecule_stability_{table}"] = wilson(int(((stable == atoms) & (atoms > 0)).sum()), count)
    if rdkit:
        found |= {f"given_{name}": rate for name, rate in _of_smiles(*smiles(given, threads), None).items()}
    return found


def _of_smiles(texts: list[str | None], fragments: np.ndarray, training: set[str] | None) -> dict[str, Rate]:
    count, valid = len(texts), [s for s in texts if s is not None]
    different = set(valid)
    found = {
        "validity": wilson(len(valid), count),
        "valid_connected": wilson(int((fragments == 1).sum()), count),
        "unique": Rate(len(different) / max(count, 1)),
        "uniqueness": Rate(len(different) / max(len(valid), 1)),
    }
    if training is not None:
        new = len(different - training)
        found |= {"novelty": Rate(new / max(len(different), 1)), "unique_novel": Rate(new / max(count, 1))}
    return found


def _fcd(generated: Sequence[str], reference: Sequence[str]) -> float:
    """The distance of SMILES without their hydrogens, as ChemNet has learnt them."""
    from fcd_torch import FCD
    from rdkit import Chem

    sides = [[Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in side] for side in (generated, reference)]
    return float(FCD(device="cpu", n_jobs=1)(gen=sides[0], ref=sides[1]))


def evaluate_crystals(
    samples: Crystals | Sequence[Crystals],
    *,
    scores: Any = None,
    keep: float = 0.1,
    composition: bool = True,
    targets: Crystals | None = None,
    training: Crystals | None = None,
    reference: Crystals | None = None,
    cutoffs: tuple[float, float] | None = None,
) -> Report:
    """Scores crystals (numpy), one batch or one a seed, by CDVAE's definitions (arXiv 2110.06197).

    * structure_validity: no two atoms closer than 0.5 angstroms, a volume of 0.1 at least; with `composition` (smact),
      composition_validity, and validity: both.
    * With `targets`, one a sample (structure prediction): match_rate: valid samples that match their target / N, and
      match_rms: the mean of their RMS distances in (V / atoms)^(1/3). Not with `scores`, which choose among samples.
    * With `training`: unique and novel, shares of samples that match no earlier sample and no training crystal of the
      same formula; as many matches are tried as there are pairs of one formula.
    * With `reference`: density_distance (g / cm^3) and elements_distance: Wasserstein distances of the densities and of
      the numbers of elements from those of real crystals, over valid samples. With `cutoffs`, too (structures,
      compositions: 0.2, 4 for Perov-5), coverage_recall and coverage_precision as `coverage.coverage` has them, of all
      samples (matminer, the extra `coverage`; 0.1 s a crystal).

    Raises ValueError as crystal_distances, match_crystals and `report` do.
    """
    single = isinstance(samples, Crystals)
    batches = [samples] if isinstance(samples, Crystals) else list(samples)
    if targets is not None and scores is not None:
        raise ValueError("argument 'targets' must be left out with 'scores'")
    if cutoffs is not None and reference is None:
        raise ValueError("argument 'cutoffs' must come with a reference")
    real = None
    if cutoffs is not None and reference is not None:
        from .coverage import coverage, fingerprints

        real = fingerprints(reference)

    def score(batch: Crystals) -> Scores:
        volumes, distances = crystal_distances(batch)
        valid, count = (distances >= MIN_DISTANCE) & (volumes >= MIN_VOLUME), len(batch)
        found = {"structure_validity": wilson(int(valid.sum()), count)}
        if composition:
            from .composition import composition_validity

            plausible = composition_validity(batch)
            found["composition_validity"] = wilson(int(plausible.sum()), count)
            valid = valid & plausible
            found["validity"] = wilson(int(valid.sum()), count)
        if targets is not None:
            rms, _ = match_crystals(batch, targets, **MATCH)
            matched = ~np.isnan(rms) & valid
            found["match_rate"] = wilson(int(matched.sum()), count)
            found["match_rms"] = Rate(float(rms[matched].mean()) if matched.any() else math.nan)
        if training is not None:
            found["unique"] = Rate(1 - float(repeated(batch).sum()) / max(count, 1))
            found["novel"] = wilson(count - int(known(batch, training).sum()), count)
        if reference is not None:
            good = batch.select(np.flatnonzero(valid))
            found["density_distance"] = Rate(_wasserstein(densities(good), densities(reference)))
            found["elements_distance"] = Rate(_wasserstein(_elements(good), _elements(reference)))
        if real is not None and cutoffs is not None:
            covered, near = coverage(fingerprints(batch), real, *cutoffs)
            found["coverage_recall"] = wilson(int(covered.sum()), len(covered))
            found["coverage_precision"] = wilson(int(near.sum()), len(near))
        return found

    tolerances = {
        "structure": f"distances >= {MIN_DISTANCE} angstroms, volume >= {MIN_VOLUME} cubic angstroms",
        "composition": "smact: neutral and by Pauling's rule; single elements and alloys are valid",
        "matching": MATCH,
        **({} if cutoffs is None else {"coverage": "structure, composition within " + ", ".join(map(str, cutoffs))}),
        "interval": "95 %",
    }
    return report(batches, score, [scores] if single and scores is not None else scores, keep, tolerances)


def densities(crystals: Crystals) -> Any:
    """(B,) g / cm^3, with ASE's atomic masses (the extra `ase`)."""
    from ase.data import atomic_masses

    masses = np.append(0, np.cumsum(atomic_masses[crystals.numbers]))
    volumes, _ = crystal_distances(crystals)
    return (masses[crystals.offsets[1:]] - masses[crystals.offsets[:-1]]) * ATOMIC_MASS_UNIT / volumes


def _elements(crystals: Crystals) -> Any:
    """(B,) how many elements each crystal has."""
    batch = np.repeat(np.arange(len(crystals)), np.diff(crystals.offsets))
    pairs = np.unique(batch * 128 + np.asarray(crystals.numbers))
    return np.bincount(pairs // 128, minlength=len(crystals)).astype(np.float64)


def _wasserstein(x: Any, y: Any) -> float:
    """The area between two cumulative distributions; NaN for an empty set."""
    if len(x) == 0 or len(y) == 0:
        return math.nan
    points = np.sort(np.concatenate([x, y]))
    below = [np.searchsorted(np.sort(v), points[:-1], "right") / len(v) for v in (x, y)]
    return float((np.abs(below[0] - below[1]) * np.diff(points)).sum())
