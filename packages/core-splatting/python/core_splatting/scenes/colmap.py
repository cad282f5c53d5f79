"""COLMAP's sparse models, binary and text: cameras, images, points3D."""

from __future__ import annotations

import array
import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

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

_LONGEST = 1 << 24  # letters of a line

Camera = tuple[Array, int, int, tuple[float, float, float, float]]
Model = tuple[dict[int, Camera], list[tuple[str, int, tuple[float, ...]]], Array, Array]


class _Reader:
    """A binary file that is read in order, a record at a time; what lies beyond its end is a SceneError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self._size, self.at = path, file, path.stat().st_size, 0

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._file.read(self._need(struct.calcsize(form))))

    def count(self, least: int) -> int:
        """A number of records of at least `least` bytes."""
        (n,) = self.take("<Q")
        if n * least > self._size - self.at:
            raise SceneError(
                self.path, f"byte {self.at - 8}", f"expected at most {self._size // least} records, got {n}"
            )
        return int(n)

    def skip(self, size: int) -> None:
        self._file.seek(self._need(size), os.SEEK_CUR)

    def name(self) -> str:
        text, zero, _ = self._file.read(4096).partition(b"\0")
        if not zero:
            raise SceneError(self.path, f"byte {self.at}", "expected a name that ends in 0 within 4096 bytes")
        self.at += len(text) + 1
        self._file.seek(self.at)
        return text.decode("utf-8", "replace")

    def _need(self, size: int) -> int:
        if size > self._size - self.at:
            raise SceneError(self.path, f"byte {self.at}", f"expected {size} more bytes, the file has {self._size}")
        self.at += size
        return size


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


def _read_binary(folder: Path) -> Model:
    cameras: dict[int, Camera] = {}
    with _opened(folder / "cameras.bin") as file:
        for _ in range(file.count(24)):
            where = f"byte {file.at}"
            number, model, width, height = file.take("<iiQQ")
            if model not in _MODELS:
                raise _unknown(file.path, where, f"model {model}")
            params = file.take(f"<{_MODELS[model][1]}d")
            cameras[number] = _camera(file.path, where, model, width, height, params)
    images = []
    with _opened(folder / "images.bin") as file:
        for _ in range(file.count(73)):
            _, *pose, camera = file.take("<i7di")
            name = file.name()
            file.skip(24 * file.count(24))
            images.append((name, camera, tuple(pose)))
    points, colors = array.array("d"), bytearray()
    with _opened(folder / "points3D.bin") as file:
        for _ in range(file.count(51)):
            _, x, y, z, r, g, b, _ = file.take("<Q3d3Bd")
            points.extend((x, y, z))
            colors.extend((r, g, b))
            file.skip(8 * file.count(8))
    return cameras, images, np.frombuffer(points).reshape(-1, 3), np.frombuffer(colors, np.uint8).reshape(-1, 3)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    with path.open("rb") as file:
        yield _Reader(path, file)


def _lines(path: Path, each: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and the words, of each line, or of each second one, that is no comment."""
    with path.open(encoding="utf-8", errors="replace") as file:
        at = 0
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), 1):
            if len(line) == _LONGEST:
                raise SceneError(path, f"line {number}", f"expected less than {_LONGEST} letters")
            if not line.startswith("#"):
                if at % each == 0:
                    yield f"line {number}", line.split()
                at += 1


def _numbers(path: Path, where: str, words: list[str], count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(w) for w in words[:count])
    except ValueError:
        values = ()
    if len(values) < count:
        raise SceneError(path, where, f"expected {count} numbers, got {' '.join(words[:count])[:80]!r}")
    return values


def _integers(path: Path, where: str, words: list[str]) -> list[int]:
    try:
        return [int(w) for w in words]
    except ValueError:
        raise SceneError(path, where, f"expected whole numbers, got {' '.join(words)[:80]!r}") from None


def _read_text(folder: Path) -> Model:
    cameras: dict[int, Camera] = {}
    path = folder / "cameras.txt"
    for where, words in _lines(path):
        if not words:
            continue
        if len(words) < 4 or words[1] not in _NAMES:
            raise _unknown(path, where, words[1] if len(words) > 1 else "nothing")
        model = _NAMES[words[1]]
        number, width, height = _integers(path, where, [words[0], *words[2:4]])
        cameras[number] = _camera(
            path, where, model, width, height, _numbers(path, where, words[4:], _MODELS[model][1])
        )
    images = []
    path = folder / "images.txt"
    for where, words in _lines(path, 2):  # the other lines are the 2D points
        if not words:
            continue
        _, *pose = _numbers(path, where, words, 8)
        (camera,) = _integers(path, where, words[8:9] or ["nothing"])
        images.append((" ".join(words[9:]), camera, tuple(pose)))
    path = folder / "points3D.txt"
    rows = (_numbers(path, where, words[1:], 6) for where, words in _lines(path) if words)
    table = np.fromiter(rows, np.dtype((np.float64, 6)))
    colors = np.nan_to_num(table[:, 3:], copy=False).clip(0, 255, out=table[:, 3:])
    return cameras, images, table[:, :3], colors.astype(np.uint8)


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
    if not kept.all():
        points, colors = points[kept], colors[kept]
    return Scene(views, points, colors / 255)
