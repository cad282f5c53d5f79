"""Posed photographs: COLMAP's sparse models, and transforms.json of instant-ngp and nerfstudio."""

from __future__ import annotations

import os
from pathlib import Path

from .colmap import load_colmap
from .nerfstudio import load_nerfstudio
from .views import Scene, SceneError, View, undistort

__all__ = ["Scene", "SceneError", "View", "load_colmap", "load_nerfstudio", "load_scene", "undistort"]


def load_scene(path: str | os.PathLike[str]) -> Scene:
    """The views of a transforms.json, of a folder that holds one, or of a folder with a COLMAP model.

    Raises SceneError (a ValueError) that names the file, the place and what was expected.
    """
    path = Path(path)
    if path.is_file():
        return load_nerfstudio(path)
    if (path / "transforms.json").is_file():
        return load_nerfstudio(path / "transforms.json")
    return load_colmap(path)
