"""core-3d-molecule: octree tokens of molecules and crystals (Uni-3DAR, arXiv 2503.16278)."""

from __future__ import annotations

from .octree import OctreeTokenizer, Structures, Tokens

__all__ = ["OctreeTokenizer", "Structures", "Tokens"]
