"""transforms.json of instant-ngp and nerfstudio: cameras in OpenGL's frame, distortion of OpenCV's model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .views import Scene, SceneError, View, open_image

_FILE_LIMIT = 1 << 28
_LARGEST = 1e12  # number that may stand in the file


def _number(
    path: Path, where: str, frame: dict[str, Any], shared: dict[str, Any], *names: str, default: Any = None
) -> float:
    for name in names:
        value = frame.get(name, shared.get(name))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST:
            return float(value)
        if value is not None:
            raise SceneError(path, where, f"expected a finite number '{name}', got {value!r}")
    if default is None:
        raise SceneError(path, where, f"expected '{names[0]}'")
    return float(default)


def load_nerfstudio(path: Path) -> Scene:
    """Views of a transforms.json; frames whose photograph is missing are left out, and there are no points."""
    if path.stat().st_size > _FILE_LIMIT:
        raise SceneError(path, "size", f"expected at most {_FILE_LIMIT} bytes")
    try:
        shared = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as e:
        raise SceneError(path, "file", f"expected JSON: {e}") from None
    frames = shared.get("frames") if isinstance(shared, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise SceneError(path, "file", "expected an object with a list 'frames' of objects")
    model = shared.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"):
        raise SceneError(path, "camera_model", f"expected OPENCV or PINHOLE, got {model!r}")
    views, missing = [], []
    for i, frame in enumerate(frames):
        where = f"frame {i}"
        name = frame.get("file_path")
        if not isinstance(name, str):
            raise SceneError(path, where, f"expected a string 'file_path', got {name!r}")
        image = path.parent / name
        if not image.suffix:
            image = path.parent / f"{name}.png"
        if not os.path.isfile(image):  # noqa: PTH113 - no error for a name that no file can have
            missing.append(name)
            continue
        matrix = np.asarray(frame.get("transform_matrix"), np.float64) if _is_matrix(frame) else np.empty(0)
        if matrix.shape not in ((4, 4), (3, 4)):
            raise SceneError(path, where, "expected 'transform_matrix' of 4 x 4 finite numbers")
        if not abs(abs(np.linalg.det(matrix[:3, :3])) - 1) < 0.05:
            raise SceneError(path, where, "expected 'transform_matrix' to begin with a rotation")
        if "w" not in shared and "w" not in frame:
            with open_image(image) as opened:
                frame = frame | {"w": opened.width, "h": opened.height}
        width, height = (_number(path, where, frame, shared, k) for k in ("w", "h"))
        angle = _number(path, where, frame, shared, "camera_angle_x", default=0.8)
        fx = _number(path, where, frame, shared, "fl_x", default=0.5 * width / np.tan(0.5 * angle or np.nan))
        fy = _number(path, where, frame, shared, "fl_y", default=fx)
        cx = _number(path, where, frame, shared, "cx", default=width / 2)
        cy = _number(path, where, frame, shared, "cy", default=height / 2)
        if not (0 < width <= 65536 and 0 < height <= 65536 and fx > 0 and fy > 0):
            raise SceneError(
                path, where, f"expected a positive size and focal length, got {width} x {height}, {fx}, {fy}"
            )
        k1, k2, p1, p2, k3 = (
            _number(path, where, frame, shared, k, default=0.0) for k in ("k1", "k2", "p1", "p2", "k3")
        )
        if k3:
            raise SceneError(path, where, f"expected no coefficient k3, got {k3}")
        camera_to_world = np.eye(4)
        camera_to_world[:3] = matrix[:3]
        camera_to_world[:3, 1:3] *= -1  # OpenGL: y up, z back
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        time = _number(path, where, frame, {}, "time", default=0.0)
        viewmat = np.linalg.inv(camera_to_world)
        views.append(View(image, viewmat, K, int(width), int(height), (k1, k2, p1, p2), time))
    if not views:
        raise SceneError(path, "frames", f"expected photographs beside the file, {len(missing)} are missing")
    return Scene(sorted(views, key=lambda v: v.path.name), np.empty((0, 3)), np.empty((0, 3)))


def _is_matrix(frame: dict[str, Any]) -> bool:
    rows = frame.get("transform_matrix")
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 4 and all(isinstance(v, (int, float)) and abs(v) < _LARGEST for v in row)
        for row in rows
    )
