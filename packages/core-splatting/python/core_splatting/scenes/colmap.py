"""COLMAP's sparse models, binary and text: cameras, images, points3D."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .views import Array, Scene, SceneError, View

# Model: number of its parameters, and where in them fx, fy, cx, cy, k1, k2, p1, p2 stand (-1: none).
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3, (0, 0, 1, 2, -1, -1, -1, -1)),
    1: ("PINHOLE", 4, (0, 1, 2, 3, -1, -1, -1, -1)),
    2: ("SIMPLE_RADIAL", 4, (0, 0, 1, 2, 3, -1, -1, -1)),
    3: ("RADIAL", 5, (0, 0, 1, 2, 3, 4, -1, -1)),
    4: ("OPENCV", 8, (0, 1, 2, 3, 4, 5, 6, 7)),
}
_NAMES = {name: model for model, (name, _, _) in _MODELS.items()}

Camera = tuple[Array, int, int, tuple[float, float, float, float]]


class _Reader:
    """A binary file that is read in order; what lies beyond its end is a SceneError."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, form: str) -> tuple[float, ...]:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise SceneError(self.path, f"byte {self.at}", f"expected {size} more bytes, the file has {len(self.data)}")
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)

    def count(self, least: int) -> int:
        """A number of records of at least `least` bytes."""
        (n,) = self.take("<Q")
        if n * least > len(self.data) - self.at:
            raise SceneError(
                self.path, f"byte {self.at - 8}", f"expected at most {len(self.data) // least} records, got {n}"
            )
        return int(n)

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise SceneError(self.path, f"byte {self.at}", f"expected {size} more bytes, the file has {len(self.data)}")
        self.at += size

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise SceneError(self.path, f"byte {self.at}", "expected a name that ends in 0 within 4096 bytes")
        name = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return name


def _camera(path: Path, where: str, model: int, width: int, height: int, params: tuple[float, ...]) -> Camera:
    name, _, places = _MODELS[model]
    fx, fy, cx, cy, k1, k2, p1, p2 = (params[i] if i >= 0 else 0.0 for i in places)
    if not (np.isfinite(params).all() and fx > 0 and fy > 0 and 0 < width <= 65536 and 0 < height <= 65536):
        raise SceneError(path, where, f"expected a camera of positive size and focal length, got {name} {params}")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), width, height, (k1, k2, p1, p2)


def _unknown(path: Path, where: str, model: object) -> SceneError:
    return SceneError(
        path, where, f"expected a camera of {', '.join(_NAMES)}, got {model}; undistort with COLMAP first"
    )


def rotation(quat: tuple[float, ...] | list[float]) -> Array:
    """(3, 3) of a quaternion w, x, y, z of any length but zero."""
    w, x, y, z = np.asarray(quat, np.float64) / np.linalg.norm(quat)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _read_binary(folder: Path) -> tuple[dict[int, Camera], list[tuple[str, int, tuple[float, ...]]], Array, Array]:
    cameras: dict[int, Camera] = {}
    file = _Reader(folder / "cameras.bin")
    for _ in range(file.count(24)):
        where = f"byte {file.at}"
        number, model, width, height = file.take("<iiQQ")
        if model not in _MODELS:
            raise _unknown(file.path, where, f"model {model}")
        params = file.take(f"<{_MODELS[int(model)][1]}d")
        cameras[int(number)] = _camera(file.path, where, int(model), int(width), int(height), params)
    images = []
    file = _Reader(folder / "images.bin")
    for _ in range(file.count(73)):
        _, *pose, camera = file.take("<i7di")
        name = file.name()
        file.skip(24 * file.count(24))
        images.append((name, int(camera), tuple(pose)))
    file = _Reader(folder / "points3D.bin")
    starts = np.empty(file.count(51), np.int64)  # records vary in length: only where they start is found in turn
    for i in range(len(starts)):
        starts[i] = file.at
        file.skip(43)
        file.skip(8 * file.count(8))
    data = np.frombuffer(file.data, np.uint8)
    points = np.ascontiguousarray(data[starts[:, None] + np.arange(8, 32)]).view("<f8").reshape(-1, 3)
    return cameras, images, points, data[starts[:, None] + np.arange(32, 35)]


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    text = path.read_text("utf-8", "replace").splitlines()
    return [(f"line {i}", line.split()) for i, line in enumerate(text, 1) if not line.startswith("#")]


def _numbers(path: Path, where: str, words: list[str], count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(w) for w in words[:count])
    except ValueError:
        values = ()
    if len(values) < count:
        raise SceneError(path, where, f"expected {count} numbers, got {' '.join(words[:count])[:80]!r}")
    return values


def _read_text(folder: Path) -> tuple[dict[int, Camera], list[tuple[str, int, tuple[float, ...]]], Array, Array]:
    cameras: dict[int, Camera] = {}
    path = folder / "cameras.txt"
    for where, words in _lines(path):
        if not words:
            continue
        if len(words) < 4 or words[1] not in _NAMES:
            raise _unknown(path, where, words[1] if len(words) > 1 else "nothing")
        model = _NAMES[words[1]]
        number, width, height = (int(v) for v in _numbers(path, where, [words[0], *words[2:4]], 3))
        cameras[number] = _camera(
            path, where, model, width, height, _numbers(path, where, words[4:], _MODELS[model][1])
        )
    images = []
    path = folder / "images.txt"
    for where, words in _lines(path)[::2]:  # the other lines are the 2D points
        if not words:
            continue
        _, *pose, camera = _numbers(path, where, words, 9)
        images.append((" ".join(words[9:]), int(camera), tuple(pose)))
    path = folder / "points3D.txt"
    rows = [_numbers(path, where, words[1:], 6) for where, words in _lines(path) if words]
    table = np.array(rows).reshape(-1, 6)
    return cameras, images, table[:, :3], table[:, 3:].clip(0, 255).astype(np.uint8)


def load_colmap(folder: Path, images: Path | None = None) -> Scene:
    """A sparse model: `folder` holds cameras, images and points3D, .bin or .txt, or sparse/0 or sparse that do.

    Photographs are looked for in `images`, by default the folder 'images' beside 'sparse'.
    """
    candidates = [folder / "sparse" / "0", folder / "sparse", folder]
    model = next((f for f in candidates if (f / "cameras.bin").is_file() or (f / "cameras.txt").is_file()), None)
    if model is None:
        raise SceneError(folder, "folder", "expected cameras.bin or cameras.txt in it, in sparse or in sparse/0")
    root = images or folder / "images"
    read = _read_binary if (model / "cameras.bin").is_file() else _read_text
    cameras, records, points, colors = read(model)
    views = []
    for name, camera, pose in sorted(records):
        if camera not in cameras:
            raise SceneError(model, f"image '{name}'", f"expected a camera of the model, got {camera}")
        if not (np.abs(pose) < 1e12).all() or max(np.abs(pose[:4])) < 1e-12:
            raise SceneError(model, f"image '{name}'", f"expected a finite pose, got {pose}")
        viewmat = np.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = rotation(pose[:4]), pose[4:]
        views.append(View(root / name, viewmat, *cameras[camera]))
    if not views:
        raise SceneError(model, "images", "expected at least one, got none")
    kept = np.isfinite(points).all(1)
    return Scene(views, points[kept].astype(np.float64), colors[kept] / 255)
