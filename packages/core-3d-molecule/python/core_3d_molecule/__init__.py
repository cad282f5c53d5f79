"""core-3d-molecule: octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278)."""

from __future__ import annotations

from .bonds import EDM_VALENCES, Stability, edm_bonds, edm_stability
from .crystal_tokens import Conditions, CrystalTokenizer
from .crystals import (
    Crystals,
    Neighbors,
    Patterns,
    crystal_distances,
    match_crystals,
    neighbor_list,
    niggli_reduce,
    pxrd_patterns,
    structure_validity,
)
from .geometry import gaussian_mmd, kabsch_rmsd
from .octree import Augmentation, OctreeTokenizer, Packed, Tokens
from .relational import relational_attention
from .structures import Structures

__all__ = [
    "EDM_VALENCES",
    "Augmentation",
    "Conditions",
    "CrystalTokenizer",
    "Crystals",
    "Neighbors",
    "OctreeTokenizer",
    "Packed",
    "Patterns",
    "Stability",
    "Structures",
    "Tokens",
    "crystal_distances",
    "edm_bonds",
    "edm_stability",
    "gaussian_mmd",
    "kabsch_rmsd",
    "match_crystals",
    "neighbor_list",
    "niggli_reduce",
    "pxrd_patterns",
    "relational_attention",
    "structure_validity",
]
