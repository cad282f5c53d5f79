"""core-3d-molecule: octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278)."""

from __future__ import annotations

from .bonded import Bonded
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
from .evaluate import evaluate, evaluate_crystals
from .geometry import chains, gaussian_mmd, geometry_mmd, kabsch_rmsd, mirrored, principal_frames
from .octree import Augmentation, OctreeTokenizer, Packed, Tokens
from .relational import relational_attention
from .report import Report
from .structures import Structures
from .valences import valence_stability

__all__ = [
    "EDM_VALENCES",
    "Augmentation",
    "Bonded",
    "Conditions",
    "CrystalTokenizer",
    "Crystals",
    "Neighbors",
    "OctreeTokenizer",
    "Packed",
    "Patterns",
    "Report",
    "Stability",
    "Structures",
    "Tokens",
    "chains",
    "crystal_distances",
    "edm_bonds",
    "edm_stability",
    "evaluate",
    "evaluate_crystals",
    "gaussian_mmd",
    "geometry_mmd",
    "kabsch_rmsd",
    "match_crystals",
    "mirrored",
    "neighbor_list",
    "niggli_reduce",
    "principal_frames",
    "pxrd_patterns",
    "relational_attention",
    "structure_validity",
    "valence_stability",
]
