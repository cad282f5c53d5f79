""".spz (Niantic): 20 bytes a Gaussian and harmonics of 8 bits, one array after the other.

Versions 2 and 3 are one gzip stream; version 4 has a table and one zstd stream for each array. Points are in the frame
right, up, back (RUB); here they are in that of INRIA's .ply, right, down, forward, as in Niantic's own converter.
Version 4 needs the package `zstandard` (extra `formats`).
"""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .gaussians import (
    CHUNK,
    FormatError,
    Gaussians,
    Source,
    largest_apart,
    largest_restored,
    logit,
    require_finite,
    sigmoid,
    unit,
)

MAX_GAUSSIANS = 1 << 26
_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
_HEADER_4 = struct.Struct("<IIIBBBBI12x")
_EXTENSIONS, _ANTIALIASED = 2, 1
_SAFE_ORBIT_CAMERA = 0xADBE0002  # says how a viewer may move; the Gaussians do not change
_COLOR_SCALE = np.float32(0.15)
_MOST_GZIP, _MOST_ZSTD = 1032, 1 << 15  # bytes that one compressed byte can give
_SPOOLED = 1 << 25  # bytes of arrays that are held in memory rather than in a temporary file
_FLIP_QUATS = np.array([1, 1, -1, -1], np.float32)  # a half turn around x
_FLIP_MEANS = np.array([1, -1, -1], np.float32)
# Signs of the real harmonics of degree 1 to 3 under y -> -y, z -> -z.
_FLIP_SH = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


def _widths(version: int, degree: int) -> list[int]:
    """Bytes a Gaussian of positions, alphas, colours, scales, rotations, harmonics."""
    return [9, 1, 3, 3, 3 if version == 2 else 4, 3 * ((degree + 1) ** 2 - 1)]


def _check_header(path: Path, magic: int, version: int, count: int, degree: int, bits: int) -> None:
    if magic != _MAGIC:
        raise FormatError(path, "byte 0", f"expected the letters NGSP, got {struct.pack('<I', magic)!r}")
    if version not in (2, 3, 4):
        raise FormatError(path, "header, version", f"expected 2, 3 or 4, got {version}")
    if count > MAX_GAUSSIANS:
        raise FormatError(path, "header, count", f"expected at most {MAX_GAUSSIANS} Gaussians, got {count}")
    if degree > 3:
        raise FormatError(path, "header, degree of the harmonics", f"expected 0 to 3, got {degree}")
    if bits > 23:
        raise FormatError(path, "header, fractional bits", f"expected at most 23, got {bits}")


def _check_extensions(path: Path, records: bytes) -> None:
    """Refuses records that change what the Gaussians mean: (type, length, bytes), one after the other."""
    at = 0
    while at < len(records):
        if at + 8 > len(records):
            raise FormatError(path, "extensions", "expected records of type, length and bytes, the last is cut off")
        kind, length = struct.unpack_from("<II", records, at)
        if kind != _SAFE_ORBIT_CAMERA:
            raise FormatError(path, "extensions", f"expected {_SAFE_ORBIT_CAMERA:#x} only, got {kind:#x}")
        at += 8 + length
    if at != len(records):
        raise FormatError(path, "extensions", "expected records of type, length and bytes, the last is cut off")


class _Gunzip(io.RawIOBase):
    """A gzip stream of one member, as a file; FormatError instead of zlib's errors."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._inflate = file, path, zlib.decompressobj(31)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(1 << 16)
            try:
                out = self._inflate.decompress(data, len(view))
            except zlib.error as e:
                raise FormatError(self._path, f"byte {self._file.tell()}", f"expected a gzip stream: {e}") from None
            if out:
                view[: len(out)] = out
                return len(out)
            if not data:
                raise FormatError(self._path, f"byte {self._file.tell()}", "expected more of the gzip stream")
        return 0


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ModuleNotFoundError(
            "a .spz of version 4 needs the package 'zstandard': install core-splatting[formats]", name="zstandard"
        ) from None
    return zstandard


def _copy(source: Any, target: IO[bytes], size: int, path: Path, where: str) -> None:
    """Copies exactly `size` bytes."""
    left = size
    while left:
        data = source.read(min(left, 1 << 20))
        if not data:
            raise FormatError(path, where, f"expected {size} bytes, the stream ends {left} before")
        target.write(data)
        left -= len(data)


def open_spz(path: Path) -> Source:
    """Opens a .spz of version 2, 3 or 4; its header is checked, its streams are not yet unpacked."""
    with path.open("rb") as file:
        head = file.read(_HEADER_4.size)
        size = file.seek(0, 2)
        file.seek(0)
        if head[:2] == b"\x1f\x8b":
            raw = io.BufferedReader(_Gunzip(file, path)).read(_HEADER.size)
            if len(raw) < _HEADER.size:
                raise FormatError(path, "header", f"expected {_HEADER.size} bytes, got {len(raw)}")
            magic, version, count, degree, bits, flags, _ = _HEADER.unpack(raw)
            most = size * _MOST_GZIP
        elif len(head) == _HEADER_4.size:
            magic, version, count, degree, bits, flags, streams, toc = _HEADER_4.unpack(head)
            most = size * _MOST_ZSTD
        else:
            raise FormatError(path, "byte 0", f"expected a gzip stream or the letters NGSP, got {head[:8]!r}")
    _check_header(path, magic, version, count, degree, bits)
    if (head[:2] == b"\x1f\x8b") != (version < 4):
        raise FormatError(path, "header, version", f"expected 4 without gzip, 2 or 3 within, got {version}")
    widths = _widths(version, degree)
    if count * sum(widths) > most:
        raise FormatError(
            path, "header, count", f"expected what {size} bytes can hold compressed, got {count} Gaussians"
        )

    @contextlib.contextmanager
    def arrays() -> Iterator[IO[bytes]]:
        with tempfile.SpooledTemporaryFile(_SPOOLED) as out, path.open("rb") as file:
            if version < 4:
                stream = io.BufferedReader(_Gunzip(file, path), 1 << 18)
                stream.read(_HEADER.size)
                _copy(stream, out, count * sum(widths), path, "gzip stream")
                if flags & _EXTENSIONS:
                    _check_extensions(path, stream.read(1 << 20))
            else:
                file.seek(_HEADER_4.size)
                extensions = file.read(min(max(toc - _HEADER_4.size, 0), 1 << 20))
                if flags & _EXTENSIONS:
                    _check_extensions(path, extensions)
                _unpack_streams(file, out, [count * w for w in widths if count * w], streams, toc)
            yield out

    def _unpack_streams(file: BinaryIO, out: IO[bytes], sizes: list[int], streams: int, toc: int) -> None:
        if streams != len(sizes):
            raise FormatError(path, "header, number of streams", f"expected {len(sizes)}, got {streams}")
        if toc < _HEADER_4.size or toc + 16 * streams > size:
            raise FormatError(path, "header, offset of the table", f"expected one inside {size} bytes, got {toc}")
        file.seek(toc)
        table = np.frombuffer(file.read(16 * streams), "<u8").reshape(streams, 2).tolist()
        at = toc + 16 * streams
        for i, ((packed, unpacked), expected) in enumerate(zip(table, sizes, strict=True)):
            if unpacked != expected:
                raise FormatError(path, f"table, stream {i}", f"expected {expected} bytes, got {unpacked}")
            if at + packed > size:
                raise FormatError(path, f"table, stream {i}", f"expected an end within {size} bytes, got {at + packed}")
            file.seek(at)
            zstandard = _zstd()
            part = io.BytesIO(file.read(packed)) if packed < 1 << 16 else _Part(file, packed)
            try:
                with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(part, closefd=False) as reader:
                    _copy(reader, out, expected, path, f"stream {i}")
            except zstandard.ZstdError as e:
                raise FormatError(path, f"stream {i} at byte {at}", f"expected a zstd stream: {e}") from None
            at += packed

    def chunks(n: int) -> Iterator[Gaussians]:
        with arrays() as file:
            begin = np.cumsum([0, *(count * w for w in widths)])
            for at in range(0, count, n):
                parts = []
                for start, width in zip(begin.tolist(), widths, strict=False):
                    file.seek(start + at * width)
                    rows = file.read(min(n, count - at) * width)
                    parts.append(np.frombuffer(rows, np.uint8).reshape(min(n, count - at), width))
                yield _decode(parts, version, bits)

    return Source(count, degree, chunks)


class _Part(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)


def _decode(parts: list[NDArray[np.uint8]], version: int, bits: int) -> Gaussians:
    positions, alphas, colors, scales, rotations, harmonics = (p.astype(np.int32) for p in parts)
    count = len(alphas)
    xyz = positions.reshape(count, 3, 3)
    fixed = xyz[..., 0] | xyz[..., 1] << 8 | xyz[..., 2] << 16
    fixed = np.where(fixed & 0x800000, fixed - 0x1000000, fixed)
    if version == 2:
        vector = rotations.astype(np.float32) / np.float32(127.5) - 1
        quats = largest_restored(np.zeros(count, np.int64), vector)
    else:
        packed = np.ascontiguousarray(parts[4]).view("<u4")[:, 0]
        fields = np.stack([packed >> 20, packed >> 10, packed], 1)
        others = (fields & 511).astype(np.float32) * np.float32(0.5**0.5 / 511) * np.where(fields & 512, -1, 1)
        quats = np.roll(largest_restored(packed >> 30, others.astype(np.float32)), 1, 1)
    k = harmonics.shape[1] // 3
    sh = np.empty((count, 1 + k, 3), np.float32)
    sh[:, 0] = (colors / np.float32(255) - np.float32(0.5)) / _COLOR_SCALE
    sh[:, 1:] = (harmonics.reshape(count, k, 3) - np.float32(128)) / 128 * _FLIP_SH[:k, None]
    return Gaussians(
        (fixed * np.float32(0.5**bits) * _FLIP_MEANS).astype(np.float32),
        quats * _FLIP_QUATS,
        (scales / np.float32(16) - 10).astype(np.float32),
        logit((alphas[:, 0] / np.float32(255)).astype(np.float32)),
        sh,
    )


def _encode(g: Gaussians, version: int, bits: int) -> list[NDArray[np.uint8]]:
    def byte(x: NDArray[Any]) -> NDArray[np.uint8]:
        rounded: NDArray[np.uint8] = np.rint(x).clip(0, 255).astype(np.uint8)
        return rounded

    fixed = np.rint(g.means.astype(np.float64) * _FLIP_MEANS * 2**bits).clip(-(1 << 23), (1 << 23) - 1).astype("<i4")
    positions = np.ascontiguousarray(fixed).view(np.uint8).reshape(len(g), 3, 4)[..., :3].reshape(len(g), 9)
    xyzw = np.roll(unit(g.quats) * _FLIP_QUATS, -1, 1)
    if version == 2:
        rotations = byte(xyzw[:, :3] * np.where(xyzw[:, 3:] < 0, -127.5, 127.5) + 127.5)
    else:
        largest, others = largest_apart(xyzw)
        fields = np.rint(np.abs(others) * (511 / 0.5**0.5)).clip(0, 511).astype(np.uint32)
        a, b, c = (fields | np.where(others < 0, np.uint32(512), np.uint32(0))).T
        packed = largest.astype(np.uint32) << 30 | a << 20 | b << 10 | c
        rotations = packed.astype("<u4")[:, None].view(np.uint8)
    k = g.sh.shape[1] - 1
    return [
        positions,
        byte(sigmoid(g.logit_opacities) * 255)[:, None],
        byte(g.sh[:, 0] * (_COLOR_SCALE * 255) + 127.5),
        byte((g.log_scales + 10) * 16),
        rotations,
        byte(g.sh[:, 1:] * _FLIP_SH[:k, None] * 128 + 128).reshape(len(g), 3 * k),
    ]


def write_spz(path: Path, source: Source, version: int = 3, fractional_bits: int = 12) -> None:
    """Writes a .spz of version 2, 3 (gzip) or 4 (zstd).

    Centres are kept to 2^-fractional_bits within +-2^(23 - fractional_bits), log scales to 1/16 in [-10, 5.94],
    harmonics to 1/128 in [-1, 1). Raises ValueError for values that are not finite.
    """
    if version not in (2, 3, 4) or not 0 <= fractional_bits <= 23:
        raise ValueError(
            f"write_spz: argument 'version' must be 2, 3 or 4 and 'fractional_bits' 0 to 23, got {version} and "
            f"{fractional_bits}"
        )
    if source.count > MAX_GAUSSIANS:
        raise ValueError(f"{path}: expected at most {MAX_GAUSSIANS} Gaussians, got {source.count}")
    widths = _widths(version, source.sh_degree)
    begin = np.cumsum([0, *(source.count * w for w in widths)]).tolist()
    with tempfile.SpooledTemporaryFile(_SPOOLED) as arrays, path.open("wb") as file:
        if source.count * sum(widths) > _SPOOLED:
            arrays.rollover()  # in memory, the first write of the last array would fill all before it with zeros
        at = 0
        for part in source.chunks(CHUNK):
            require_finite(part, path)
            for start, width, rows in zip(begin, widths, _encode(part, version, fractional_bits), strict=False):
                arrays.seek(start + at * width)
                arrays.write(rows.tobytes())
            at += len(part)
        arrays.seek(0)
        header = (_MAGIC, version, source.count, source.sh_degree, fractional_bits, 0)
        if version < 4:
            deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
            file.write(deflate.compress(_HEADER.pack(*header, 0)))
            while data := arrays.read(1 << 20):
                file.write(deflate.compress(data))
            file.write(deflate.flush())
            return
        sizes = [source.count * w for w in widths if source.count * w]
        file.write(_HEADER_4.pack(*header, len(sizes), _HEADER_4.size) + bytes(16 * len(sizes)))
        table = []
        for size in sizes:
            start = file.tell()
            with _zstd().ZstdCompressor(level=12).stream_writer(file, size=size, closefd=False) as writer:
                _copy(arrays, writer, size, path, "arrays")
            table.append((file.tell() - start, size))
        file.seek(_HEADER_4.size)
        file.write(np.array(table, "<u8").tobytes())
