"""How well generated crystals cover real ones: COV-R and COV-P of CDVAE (arXiv 2110.06197), through matminer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .crystals import Crystals


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """structure (B, 61): the mean over sites of CrystalNNFingerprint, preset "ops"; composition (B, 132):
    ElementProperty, preset "magpie". NaN where matminer gives none."""

    structure: Any
    composition: Any

    def __len__(self) -> int:
        return len(self.structure)


def fingerprints(crystals: Crystals) -> Fingerprints:
    """The fingerprints of each crystal; needs matminer (the extra `coverage`), about 0.1 s a crystal."""
    from matminer.featurizers.composition import ElementProperty
    from matminer.featurizers.site import CrystalNNFingerprint

    sites, elements = CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie")
    structure = np.full((len(crystals), len(sites.feature_labels())), np.nan)
    composition = np.full((len(crystals), len(elements.feature_labels())), np.nan)
    for b, one in enumerate(crystals.to_pymatgen()):
        composition[b] = elements.featurize(one.composition)
        try:
            structure[b] = np.mean([sites.featurize(one, i) for i in range(len(one))], axis=0)
        except (ValueError, RuntimeError):  # a structure without neighbours, or of which no Voronoi cells are found
            continue
    return Fingerprints(structure, composition)


def coverage(
    samples: Fingerprints, reference: Fingerprints, structure_cutoff: float = 0.4, composition_cutoff: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which real crystals (R,) bool a sample covers, and which samples (S,) bool lie near a real crystal.

    The least distance of the structures' fingerprints must be at most `structure_cutoff`, and that of the
    compositions', which may be another crystal's, `composition_cutoff`: 0.4 and 10 for MP-20, 0.2 and 4 for Perov-5
    and Carbon-24. The means are COV-R and COV-P. Compositions' fingerprints are scaled by the reference's means and
    deviations; CDVAE takes those of a larger set. NaN covers nothing. Needs scipy.
    """
    from scipy.spatial.distance import cdist

    mean, deviation = np.nanmean(reference.composition, 0), np.nanstd(reference.composition, 0)
    scale = np.where(deviation > 0, deviation, 1)
    near = np.ones(len(reference), bool), np.ones(len(samples), bool)
    for one, other, cutoff in (
        (reference.structure, samples.structure, structure_cutoff),
        ((reference.composition - mean) / scale, (samples.composition - mean) / scale, composition_cutoff),
    ):
        distances = np.nan_to_num(cdist(one, other), nan=np.inf)
        for axis, found in ((1, near[0]), (0, near[1])):
            found &= distances.min(axis, initial=np.inf) <= cutoff
    return near
