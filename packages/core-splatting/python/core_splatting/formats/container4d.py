"""A container of 4D Gaussians (arXiv 2503.16422): float32 geometry, harmonics as codes of k-means books, key frames'
visibility as bits.

Little-endian: header; for each group of coefficients its place and its book (float16); then blocks of Gaussians, each
geometry, codes of each group and masks of each key frame, bit-packed. A block's place follows from the header, so that
blocks are read and written one at a time, from a `Source4D`.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from core_registry import files
from numpy.typing import NDArray

from ..vector_quantisation import distinct, kmeans, nearest
from .gaussians import FormatError

MAGIC, VERSION, BLOCK = b"CORE4DGS", 1, 1 << 14
_HEADER = struct.Struct("<8sIIQIIf")  # magic, version, groups, Gaussians, key frames, coefficients, duration
_GROUP = struct.Struct("<III")  # first coefficient, coefficients, entries of the book
_MAX_GAUSSIANS, _MAX_FRAMES, _MAX_ENTRIES = 1 << 26, 1 << 16, 1 << 16
_COEFFICIENTS = sorted({16 * times + degree**2 for times in (0, 1, 2) for degree in (1, 2, 3, 4)})
_FIELDS = (("means", 4), ("log_scales", 4), ("quats_left", 4), ("quats_right", 4), ("logit_opacities", 1))
_FLOATS = sum(width for _, width in _FIELDS)
_ENDS = np.cumsum([width for _, width in _FIELDS])[:-1]
_SAMPLE = 1 << 16  # Gaussians whose harmonics the books are made from


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

    def __getitem__(self, rows: slice) -> Gaussians4D:
        """Those of a slice, which are not copied."""
        named = {k: getattr(self, k)[rows] for k in (*dict(_FIELDS), "sh")}
        return dataclasses.replace(self, **named, masks=self.masks[:, rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Source4D:
    """4D Gaussians that come in parts: `blocks()` yields them, `count` in all, alike on every call."""

    count: int
    coefficients: int
    key_times: NDArray[Any]
    duration: float
    blocks: Callable[[], Iterator[Gaussians4D]]

    def read(self) -> Gaussians4D:
        """All of them."""
        out = self.empty(self.count)
        at = 0
        for part in self.blocks():
            for name in (*dict(_FIELDS), "sh"):
                getattr(out, name)[at : at + len(part)] = getattr(part, name)
            out.masks[:, at : at + len(part)] = part.masks
            at += len(part)
        return out

    def empty(self, count: int) -> Gaussians4D:
        """Uninitialised arrays of `count` Gaussians with the same key frames and coefficients."""
        named = {k: np.empty((count, w), np.float32) for k, w in _FIELDS}
        sh, masks = np.empty((count, self.coefficients, 3), np.float32), np.empty((len(self.key_times), count), bool)
        return Gaussians4D(**named, sh=sh, masks=masks, key_times=self.key_times, duration=self.duration)

    @staticmethod
    def of(gaussians: Gaussians4D) -> Source4D:
        """The parts of arrays."""
        g, count = gaussians, len(gaussians)
        return Source4D(
            count, g.sh.shape[1], g.key_times, g.duration, lambda: (g[at : at + BLOCK] for at in range(0, count, BLOCK))
        )

    def _blocks_of(self, size: int) -> Iterator[Gaussians4D]:
        """The parts, joined and cut so that all but the last hold `size`."""
        held, filled, given = self.empty(size), 0, 0
        for part in self.blocks():
            given += len(part)
            at = 0
            while at < len(part):
                n = min(size - filled, len(part) - at)
                for name in (*dict(_FIELDS), "sh"):
                    getattr(held, name)[filled : filled + n] = getattr(part, name)[at : at + n]
                held.masks[:, filled : filled + n] = part.masks[:, at : at + n]
                filled, at = filled + n, at + n
                if filled == size:
                    yield held
                    filled = 0
        if filled:
            yield held[:filled]
        if given != self.count:
            raise ValueError(f"write_4d: argument 'gaussians' must give {self.count} Gaussians, gave {given}")


def _decoded(
    path: Path, source: Source4D, books: list[tuple[int, NDArray[np.float32]]], offset: int
) -> Iterator[Gaussians4D]:
    """The Gaussians of an open container's blocks, which begin at `offset`."""
    frames = len(source.key_times)
    with path.open("rb") as file:
        file.seek(offset)
        for at in range(0, source.count, BLOCK):
            n = min(BLOCK, source.count - at)
            data = np.frombuffer(file.read(_block_bytes(n, frames, books)), np.uint8)
            if len(data) < _block_bytes(n, frames, books):
                raise FormatError(path, f"Gaussian {at}", "expected a whole block, the file ends")
            out = source.empty(n)
            geometry = data[: n * 4 * _FLOATS].view("<f4").reshape(n, _FLOATS)
            place = n * 4 * _FLOATS
            for (name, _), column in zip(_FIELDS, np.split(geometry, _ENDS, 1), strict=True):
                getattr(out, name)[:] = column
            for first, book in books:
                bits = _bits(len(book))
                size = (n * bits + 7) // 8
                codes = _unpack(data[place : place + size], n, bits)
                if n and codes.max() >= len(book):
                    raise FormatError(
                        path, f"block at Gaussian {at}", f"expected codes below {len(book)}, got {codes.max()}"
                    )
                width = book.shape[1] // 3
                out.sh[:, first : first + width] = book[codes].reshape(n, width, 3)
                place += size
            rows = data[place:].reshape(frames, (n + 7) // 8)
            out.masks[:] = np.unpackbits(rows, axis=1, count=n, bitorder="little")
            yield out


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


def harmonics_books(
    sh: NDArray[Any] | Source4D, entries: int = 4096, seed: int = 0
) -> list[tuple[int, NDArray[np.float32]]]:
    """Books of k-means centres for harmonics (N, K, 3), each with the first of its coefficients: (entries, 3 x width).

    The constant coefficient has a book of its own, so have the others of each term of the series in time. A book has at
    most `entries` and at most a quarter as many as there are Gaussians; those of the other coefficients together take
    at most a sixteenth of the geometry's bytes, where that leaves them 32 entries. Values are those of float16.
    The centres are those of at most 65,536 Gaussians, chosen at random.
    """

    def parts() -> Iterator[NDArray[Any]]:
        if isinstance(sh, Source4D):
            yield from (block.sh for block in sh.blocks())
        else:
            yield from (sh[at : at + BLOCK] for at in range(0, len(sh), BLOCK))

    count, coefficients = (sh.count, sh.coefficients) if isinstance(sh, Source4D) else sh.shape[:2]
    if not count:
        return []
    chosen = np.arange(count)
    if count > _SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(count, _SAMPLE, replace=False))
    sample, at = [], 0
    for part in parts():
        sample.append(part[chosen[slice(*np.searchsorted(chosen, [at, at + len(part)]))] - at])
        at += len(part)
    rows = np.concatenate(sample)
    starts = [first for first in (0, 1, *range(16, coefficients, 16)) if first < coefficients]
    books = []
    for first, last in zip(starts, [*starts[1:], coefficients], strict=True):
        fitting = count * 4 * _FLOATS // 16 // (6 * (last - first)) // max(len(starts) - 1, 1)
        most = max(min(entries, count // 4, max(fitting, 32) if first else entries), 1)
        book = distinct((part[:, first:last].reshape(len(part), -1) for part in parts()), most)
        if book is None:
            book = kmeans(rows[:, first:last].reshape(len(rows), -1), most, seed=seed)
        books.append((first, book.astype(np.float16).astype(np.float32)))
    return books


def write_4d(
    path: str | os.PathLike[str], gaussians: Gaussians4D | Source4D, entries: int = 4096, seed: int = 0
) -> None:
    """Writes a container with the books of `harmonics_books`, under a temporary name that is then changed.

    A `Source4D` is gone through several times, and no more than a block of it and the sample for the books is held.
    Raises ValueError for coefficients that are not finite or beyond float16, and for a number of entries out of range.
    """
    path, source = Path(path), gaussians if isinstance(gaussians, Source4D) else Source4D.of(gaussians)
    if not 1 <= entries <= _MAX_ENTRIES:
        raise ValueError(f"write_4d: argument 'entries' must be 1 to {_MAX_ENTRIES}, got {entries}")
    if not all((np.abs(block.sh) < 6e4).all() for block in source.blocks()):
        raise ValueError(f"{path}: argument 'sh' must be finite and below 60,000")
    books = harmonics_books(source, entries, seed)
    with files.replace(path) as temporary, temporary.open("wb") as file:
        head = (len(books), source.count, len(source.key_times), source.coefficients, source.duration)
        file.write(_HEADER.pack(MAGIC, VERSION, *head) + source.key_times.astype("<f4").tobytes())
        for first, book in books:
            file.write(_GROUP.pack(first, book.shape[1] // 3, len(book)) + book.astype("<f2").tobytes())
        for block in source._blocks_of(BLOCK):
            file.write(np.concatenate([getattr(block, name) for name, _ in _FIELDS], 1).astype("<f4").tobytes())
            for first, book in books:
                rows = block.sh[:, first : first + book.shape[1] // 3].reshape(len(block), -1)
                file.write(_pack(nearest(rows, book), _bits(len(book))))
            file.write(np.packbits(block.masks, axis=1, bitorder="little").tobytes())


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
            there, wanted = size - file.tell(), length * width * 6
            if there < wanted:  # read(wanted) would hold as much first
                raise FormatError(path, where, f"expected {wanted} bytes, got {there}")
            raw = file.read(wanted)
            books.append((first, np.frombuffer(raw, "<f2").astype(np.float32).reshape(length, 3 * width)))
            expected = first + width
        if count and expected != coefficients:
            raise FormatError(path, "books", f"expected {coefficients} coefficients in all, got {expected}")
        offset = file.tell()
    whole, rest = divmod(count, BLOCK)
    need = offset + whole * _block_bytes(BLOCK, frames, books) + (_block_bytes(rest, frames, books) if rest else 0)
    if need != size:
        raise FormatError(path, "header, count", f"expected a file of {need} bytes, got {size}")
    source = Source4D(count, coefficients, key_times, duration, lambda: _decoded(path, source, books, offset))
    return source
