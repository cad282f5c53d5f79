"""A container of 4D Gaussians (arXiv 2503.16422): float32 geometry, harmonics as codes of k-means books, key frames'
visibility as bits.

Little-endian: header; for each group of coefficients its place and its book (float16); then blocks of Gaussians, each
geometry, codes of each group and masks of each key frame, bit-packed. A block's place follows from the header, so that
blocks are read and written one at a time.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from core_registry import files
from numpy.typing import NDArray

from ..vector_quantisation import kmeans, nearest
from .gaussians import FormatError

MAGIC, VERSION, BLOCK = b"CORE4DGS", 1, 1 << 14
_HEADER = struct.Struct("<8sIIQIIf")  # magic, version, groups, Gaussians, key frames, coefficients, duration
_GROUP = struct.Struct("<III")  # first coefficient, coefficients, entries of the book
_MAX_GAUSSIANS, _MAX_FRAMES, _MAX_ENTRIES = 1 << 26, 1 << 16, 1 << 16
_COEFFICIENTS = sorted({16 * times + degree**2 for times in (0, 1, 2) for degree in (1, 2, 3, 4)})
_FIELDS = (("means", 4), ("log_scales", 4), ("quats_left", 4), ("quats_right", 4), ("logit_opacities", 1))
_FLOATS = sum(width for _, width in _FIELDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians4D:
    """N 4D Gaussians before their activations, float32, and the key frames that see each.

    means (N, 4): x, y, z, t; log_scales (N, 4); quats_left, quats_right (N, 4), the two isoclinic rotations;
    logit_opacities (N, 1); sh (N, K, 3), coefficients of 4D spherindrical harmonics, K = 16 terms in time (0 to 2) +
    (degree + 1)^2; masks (F, N) bool, the union over views of what key frame f sees; key_times (F,), rising; duration
    T > 0 of the cosine series.
    """

    means: NDArray[Any]
    log_scales: NDArray[Any]
    quats_left: NDArray[Any]
    quats_right: NDArray[Any]
    logit_opacities: NDArray[Any]
    sh: NDArray[Any]
    masks: NDArray[np.bool_]
    key_times: NDArray[Any]
    duration: float

    def __post_init__(self) -> None:
        n, f = len(self.means), len(self.key_times)
        shapes = dict(_FIELDS)
        for name in (*shapes, "sh", "key_times"):
            array = getattr(self, name)
            if array.dtype != np.float32:
                raise TypeError(f"Gaussians4D: argument '{name}' must be float32, got {array.dtype}")
            if name in shapes and array.shape != (n, shapes[name]):
                raise ValueError(
                    f"Gaussians4D: argument '{name}' must be of shape {(n, shapes[name])}, got {array.shape}"
                )
        if self.sh.ndim != 3 or self.sh.shape[::2] != (n, 3) or self.sh.shape[1] not in _COEFFICIENTS:
            raise ValueError(
                f"Gaussians4D: argument 'sh' must be of shape ({n}, K, 3) with K one of {_COEFFICIENTS}, got "
                f"{self.sh.shape}"
            )
        if not _rising(self.key_times):
            raise ValueError("Gaussians4D: argument 'key_times' must be finite and rise")
        if not 0 < self.duration < np.inf:
            raise ValueError(f"Gaussians4D: argument 'duration' must be positive and finite, got {self.duration}")
        if self.masks.dtype != np.bool_ or self.masks.shape != (f, n) or f > _MAX_FRAMES:
            raise ValueError(f"Gaussians4D: argument 'masks' must be bool of shape {(f, n)}, got {self.masks.shape}")

    def __len__(self) -> int:
        return len(self.means)


@dataclasses.dataclass(frozen=True)
class Source4D:
    """An open container: `blocks()` yields its Gaussians in parts of at most 16,384."""

    path: Path
    count: int
    key_times: NDArray[Any]
    duration: float
    books: list[tuple[int, NDArray[np.float32]]]
    coefficients: int
    offset: int

    def blocks(self) -> Iterator[Gaussians4D]:
        """The parts, in order."""
        frames = len(self.key_times)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for at in range(0, self.count, BLOCK):
                n = min(BLOCK, self.count - at)
                data = np.frombuffer(file.read(_block_bytes(n, frames, self.books)), np.uint8)
                if len(data) < _block_bytes(n, frames, self.books):
                    raise FormatError(self.path, f"Gaussian {at}", "expected a whole block, the file ends")
                geometry = data[: n * 4 * _FLOATS].view("<f4").astype(np.float32).reshape(n, _FLOATS)
                place = n * 4 * _FLOATS
                columns = np.split(geometry, np.cumsum([w for _, w in _FIELDS])[:-1], 1)
                sh = np.empty((n, self.coefficients, 3), np.float32)
                for first, book in self.books:
                    bits = _bits(len(book))
                    size = (n * bits + 7) // 8
                    codes = _unpack(data[place : place + size], n, bits)
                    if n and codes.max() >= len(book):
                        raise FormatError(
                            self.path, f"block at Gaussian {at}", f"expected codes below {len(book)}, got {codes.max()}"
                        )
                    width = book.shape[1] // 3
                    sh[:, first : first + width] = book[codes].reshape(n, width, 3)
                    place += size
                rows = data[place:].reshape(frames, (n + 7) // 8)
                masks = np.unpackbits(rows, axis=1, count=n, bitorder="little").astype(bool)
                named = {k: np.ascontiguousarray(c) for (k, _), c in zip(_FIELDS, columns, strict=True)}
                yield Gaussians4D(**named, sh=sh, masks=masks, key_times=self.key_times, duration=self.duration)

    def read(self) -> Gaussians4D:
        """All of them."""
        parts = list(self.blocks())
        if not parts:
            shapes = {k: np.empty((0, w), np.float32) for k, w in _FIELDS}
            none = np.empty((len(self.key_times), 0), bool)
            sh = np.empty((0, self.coefficients, 3), np.float32)
            return Gaussians4D(**shapes, sh=sh, masks=none, key_times=self.key_times, duration=self.duration)
        named = {k: np.concatenate([getattr(p, k) for p in parts]) for k in (*dict(_FIELDS), "sh")}
        masks = np.concatenate([p.masks for p in parts], 1)
        return Gaussians4D(**named, masks=masks, key_times=self.key_times, duration=self.duration)


def _rising(times: NDArray[Any]) -> bool:
    return bool(np.isfinite(times).all() and (np.diff(times) > 0).all())


def _bits(entries: int) -> int:
    return max((entries - 1).bit_length(), 0)


def _block_bytes(n: int, frames: int, books: list[tuple[int, NDArray[np.float32]]]) -> int:
    return n * 4 * _FLOATS + sum((n * _bits(len(b)) + 7) // 8 for _, b in books) + frames * ((n + 7) // 8)


def _pack(codes: NDArray[np.int64], bits: int) -> bytes:
    each = (codes[:, None] >> np.arange(bits) & 1).astype(np.uint8)
    return np.packbits(each.ravel(), bitorder="little").tobytes()


def _unpack(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int64]:
    each = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits).astype(np.int64)
    codes: NDArray[np.int64] = (each << np.arange(bits)).sum(1)
    return codes


def harmonics_books(sh: NDArray[Any], entries: int = 4096, seed: int = 0) -> list[tuple[int, NDArray[np.float32]]]:
    """Books of k-means centres for harmonics (N, K, 3), each with the first of its coefficients: (entries, 3 x width).

    The constant coefficient has a book of its own, so have the others of each term of the series in time. A book has at
    most `entries` and at most a quarter as many as there are Gaussians; those of the other coefficients together take
    at most a sixteenth of the geometry's bytes, where that leaves them 32 entries. Values are those of float16.
    """
    count, coefficients = sh.shape[:2]
    if not count:
        return []
    starts = [first for first in (0, 1, *range(16, coefficients, 16)) if first < coefficients]
    books = []
    for first, last in zip(starts, [*starts[1:], coefficients], strict=True):
        fitting = count * 4 * _FLOATS // 16 // (6 * (last - first)) // max(len(starts) - 1, 1)
        most = max(min(entries, count // 4, max(fitting, 32) if first else entries), 1)
        book = kmeans(sh[:, first:last].reshape(count, -1), most, seed=seed)
        books.append((first, book.astype(np.float16).astype(np.float32)))
    return books


def write_4d(path: str | os.PathLike[str], gaussians: Gaussians4D, entries: int = 4096, seed: int = 0) -> None:
    """Writes a container with the books of `harmonics_books`, under a temporary name that is then changed.

    Raises ValueError for coefficients that are not finite or beyond float16, and for a number of entries out of range.
    """
    path, g = Path(path), gaussians
    if not 1 <= entries <= _MAX_ENTRIES:
        raise ValueError(f"write_4d: argument 'entries' must be 1 to {_MAX_ENTRIES}, got {entries}")
    if not (np.abs(g.sh) < 6e4).all():
        raise ValueError(f"{path}: argument 'sh' must be finite and below 60,000")
    coefficients = g.sh.shape[1]
    books = harmonics_books(g.sh, entries, seed)
    with files.replace(path) as temporary, temporary.open("wb") as file:
        file.write(
            _HEADER.pack(MAGIC, VERSION, len(books), len(g), len(g.key_times), coefficients, g.duration)
            + g.key_times.astype("<f4").tobytes()
        )
        for first, book in books:
            file.write(_GROUP.pack(first, book.shape[1] // 3, len(book)) + book.astype("<f2").tobytes())
        for at in range(0, len(g), BLOCK):
            part = slice(at, at + BLOCK)
            geometry = np.concatenate([getattr(g, name)[part] for name, _ in _FIELDS], 1)
            file.write(geometry.astype("<f4").tobytes())
            for first, book in books:
                rows = g.sh[part, first : first + book.shape[1] // 3].reshape(len(geometry), -1)
                file.write(_pack(nearest(rows, book), _bits(len(book))))
            file.write(np.packbits(g.masks[:, part], axis=1, bitorder="little").tobytes())


def open_4d(path: str | os.PathLike[str]) -> Source4D:
    """Opens a container; FormatError names file and place of what is wrong. Sizes are checked first."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != MAGIC:
            raise FormatError(path, "byte 0", f"expected the letters {MAGIC.decode()}, got {head[:8]!r}")
        _, version, groups, count, frames, coefficients, duration = _HEADER.unpack(head)
        limits = (
            ("version", version, VERSION, VERSION), ("groups", groups, 0, _COEFFICIENTS[-1]),
            ("count", count, 0, _MAX_GAUSSIANS), ("key frames", frames, 0, _MAX_FRAMES),
        )  # fmt: skip
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise FormatError(path, f"header, {name}", f"expected {low} to {high}, got {value}")
        if coefficients not in _COEFFICIENTS:
            raise FormatError(path, "header, coefficients", f"expected one of {_COEFFICIENTS}, got {coefficients}")
        if not 0 < duration < np.inf:
            raise FormatError(path, "header, duration", f"expected a positive number, got {duration}")
        raw = file.read(4 * frames)
        if len(raw) < 4 * frames:
            raise FormatError(path, "key frames", f"expected {frames} times, the file ends")
        key_times = np.frombuffer(raw, "<f4").astype(np.float32)
        if not _rising(key_times):
            raise FormatError(path, "key frames", "expected finite times that rise")
        books: list[tuple[int, NDArray[np.float32]]] = []
        expected = 0
        for i in range(groups):
            where = f"book {i}"
            group = file.read(_GROUP.size)
            first, width, length = _GROUP.unpack(group) if len(group) == _GROUP.size else (-1, 0, 0)
            if first != expected or not 1 <= width <= coefficients - first or not 1 <= length <= _MAX_ENTRIES:
                raise FormatError(path, where, f"expected coefficients from {expected}, up to {_MAX_ENTRIES} entries")
            raw = file.read(length * width * 6)
            if len(raw) < length * width * 6:
                raise FormatError(path, where, f"expected {length * width * 6} bytes, got {len(raw)}")
            books.append((first, np.frombuffer(raw, "<f2").astype(np.float32).reshape(length, 3 * width)))
            expected = first + width
        if count and expected != coefficients:
            raise FormatError(path, "books", f"expected {coefficients} coefficients in all, got {expected}")
        offset = file.tell()
    whole, rest = divmod(count, BLOCK)
    need = offset + whole * _block_bytes(BLOCK, frames, books) + (_block_bytes(rest, frames, books) if rest else 0)
    if need != size:
        raise FormatError(path, "header, count", f"expected a file of {need} bytes, got {size}")
    return Source4D(path, count, key_times, duration, books, coefficients, offset)
