"""core-3d-molecule: octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278)."""

from __future__ import annotations

from .bonds import EDM_VALENCES, Stability, edm_bonds, edm_stability
from .geometry import gaussian_mmd, kabsch_rmsd
from .octree import OctreeTokenizer, Structures, Tokens
from .relational import relational_attention

__all__ = [
    "EDM_VALENCES",
    "OctreeTokenizer",
    "Stability",
    "Structures",
    "Tokens",
    "edm_bonds",
    "edm_stability",
    "gaussian_mmd",
    "kabsch_rmsd",
    "relational_attention",
]
