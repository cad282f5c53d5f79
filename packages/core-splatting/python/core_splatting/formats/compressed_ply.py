"""PlayCanvas's compressed .ply: blocks of 256 Gaussians, each value in 8 to 11 bits of the block's range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gaussians import (
    SH_C0,
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
from .ply_header import Element, write_header

BLOCK = 256
_SORTED = 1 << 18  # Gaussians that the writer sorts along the Morton curve at a time
_COLUMNS = [
    f"{m}_{v}" for group in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for m in ("min", "max") for v in group
]  # fmt: skip
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_REST = {0: 0, 9: 1, 24: 2, 45: 3}
_LOG_SCALE_LIMIT = 20.0

Float = NDArray[Any]  # of float32
Packed = NDArray[Any]  # of uint32


def _unpack_111011(packed: Packed) -> Float:
    return np.stack([(packed >> 21) / 2047, (packed >> 11 & 1023) / 1023, (packed & 2047) / 2047], 1).astype(np.float32)


def _pack_111011(unit_values: Float) -> Packed:
    x, y, z = np.rint(unit_values * np.array([2047, 1023, 2047], np.float32)).astype(np.uint32).T
    packed: Packed = x << 21 | y << 11 | z
    return packed


def open_compressed(path: Path, elements: dict[str, Element]) -> Source:
    """The Gaussians of elements 'chunk', 'vertex' and, for degrees above 0, 'sh'."""
    chunk, vertex, sh = elements.get("chunk"), elements["vertex"], elements.get("sh")
    blocks = -(-vertex.count // BLOCK)
    names = chunk.dtype.names or () if chunk else ()
    wanted = _COLUMNS if "min_r" in names else _COLUMNS[:12]
    if chunk is None or any(c not in names for c in wanted):
        raise FormatError(path, "header", f"expected an element 'chunk' with {', '.join(wanted)}")
    if chunk.count != blocks:
        raise FormatError(
            path,
            "header, element 'chunk'",
            f"expected {blocks} records for {vertex.count} Gaussians, got {chunk.count}",
        )
    if any(p not in (vertex.dtype.names or ()) or vertex.dtype[p].kind != "u" for p in _PACKED):
        raise FormatError(path, "header, element 'vertex'", f"expected unsigned {', '.join(_PACKED)}")
    rest = len(sh.dtype.names or ()) if sh else 0
    if sh and (
        sh.count != vertex.count
        or rest not in _REST
        or any(f"f_rest_{i}" not in (sh.dtype.names or ()) or sh.dtype[i].str != "|u1" for i in range(rest))
    ):
        raise FormatError(
            path, "header, element 'sh'", f"expected {vertex.count} records of 0, 9, 24 or 45 uchar f_rest"
        )

    def chunks(size: int) -> Iterator[Gaussians]:
        size = max(size // BLOCK, 1) * BLOCK
        with path.open("rb") as file:
            file.seek(chunk.offset)
            table = np.fromfile(file, chunk.dtype, blocks)
            bounds = np.stack([table[c].astype(np.float32) for c in wanted], 1).reshape(blocks, len(wanted) // 3, 3)
            if not np.isfinite(bounds).all():
                bad = int(np.flatnonzero(~np.isfinite(bounds).all((1, 2)))[0])
                raise FormatError(path, f"chunk {bad}", "expected finite bounds")
            for at in range(0, vertex.count, size):
                count = min(size, vertex.count - at)
                file.seek(vertex.offset + at * vertex.dtype.itemsize)
                records = np.fromfile(file, vertex.dtype, count)
                rows: NDArray[np.void] | None = None
                if sh:
                    file.seek(sh.offset + at * sh.dtype.itemsize)
                    rows = np.fromfile(file, sh.dtype, count)
                if len(records) < count or (rows is not None and len(rows) < count):
                    raise FormatError(path, f"vertex {at}", "expected more records, the file ends")
                yield _decode(
                    records, rows, np.repeat(bounds[at // BLOCK : -(-(at + count) // BLOCK)], BLOCK, 0)[:count]
                )

    return Source(vertex.count, _REST[rest], chunks)


def _decode(records: NDArray[np.void], rows: NDArray[np.void] | None, bounds: Float) -> Gaussians:
    position, rotation, scale, color = (records[p].astype(np.uint32) for p in _PACKED)

    def between(values: Float, i: int) -> Float:
        low, high = bounds[:, i], bounds[:, i + 1]
        value: Float = low * (1 - values) + high * values
        return value

    others = np.stack([rotation >> 20 & 1023, rotation >> 10 & 1023, rotation & 1023], 1).astype(np.float32)
    quats = largest_restored(rotation >> 30, (others / 1023 - np.float32(0.5)) * np.float32(2**0.5))
    rgba = np.stack([color >> 24, color >> 16 & 255, color >> 8 & 255, color & 255], 1).astype(np.float32) / 255
    rgb = between(rgba[:, :3], 4) if bounds.shape[1] == 6 else rgba[:, :3]
    sh = np.empty((len(records), 1 + (len(rows.dtype.names or ()) // 3 if rows is not None else 0), 3), np.float32)
    sh[:, 0] = (rgb - np.float32(0.5)) / np.float32(SH_C0)
    if rows is not None:
        count = len(rows.dtype.names or ())
        raw = np.stack([rows[f"f_rest_{i}"] for i in range(count)], 1).astype(np.float32)
        sh[:, 1:] = ((raw + np.float32(0.5)) / 32 - 4).reshape(len(rows), 3, -1).transpose(0, 2, 1)
    return Gaussians(
        between(_unpack_111011(position), 0), quats, between(_unpack_111011(scale), 2), logit(rgba[:, 3]), sh
    )


def _morton_order(means: Float) -> NDArray[np.int64]:
    """The order along the Morton curve through the bounding box, so that blocks are small."""
    low = means.min(0)
    cells = ((means - low) * (1023 / np.maximum(means.max(0) - low, 1e-30))).clip(0, 1023).astype(np.uint32)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | cells << shift) & mask
    return np.argsort(cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2, kind="stable")


def write_compressed(path: Path, source: Source) -> None:
    """Writes a compressed .ply. The order of the Gaussians changes: they are sorted for small blocks.

    Log scales are kept in [-20, 20], spherical harmonics above degree 0 in [-4, 4].
    Raises ValueError for values that are not finite.
    """
    count, rest = source.count, 3 * ((source.sh_degree + 1) ** 2 - 1)
    blocks = -(-count // BLOCK)
    elements = [
        ("chunk", blocks, [(c, "float") for c in _COLUMNS]),
        ("vertex", count, [(p, "uint") for p in _PACKED]),
    ]
    if rest:
        elements.append(("sh", count, [(f"f_rest_{i}", "uchar") for i in range(rest)]))
    with path.open("wb") as file:
        write_header(file, elements)
        chunk_at = file.tell()
        vertex_at = chunk_at + blocks * 4 * len(_COLUMNS)
        sh_at = vertex_at + count * 16
        for part in source.chunks(_SORTED):
            require_finite(part, path)
            bounds, packed, rows = _encode(part[_morton_order(part.means)])
            for at, array in ((chunk_at, bounds), (vertex_at, packed), (sh_at, rows)):
                file.seek(at)
                file.write(array.tobytes())
            chunk_at, vertex_at, sh_at = chunk_at + bounds.nbytes, vertex_at + packed.nbytes, sh_at + rows.nbytes


def _encode(g: Gaussians) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.uint8]]:
    starts = np.arange(0, len(g), BLOCK)
    values = [
        g.means,
        g.log_scales.clip(-_LOG_SCALE_LIMIT, _LOG_SCALE_LIMIT),
        g.sh[:, 0] * np.float32(SH_C0) + np.float32(0.5),
    ]
    bounds, units = [], []
    for value in values:
        low, high = np.minimum.reduceat(value, starts), np.maximum.reduceat(value, starts)
        bounds += [low, high]
        width = np.repeat(high - low, BLOCK, 0)[: len(g)]
        offset = value - np.repeat(low, BLOCK, 0)[: len(g)]
        units.append(np.divide(offset, width, out=np.zeros_like(value), where=width > 0).clip(0, 1))
    largest, others = largest_apart(unit(g.quats))
    a, b, c = np.rint((others / np.float32(2**0.5) + np.float32(0.5)) * 1023).clip(0, 1023).astype(np.uint32).T
    rotation = largest.astype(np.uint32) << 30 | a << 20 | b << 10 | c
    rgba = np.concatenate([units[2], sigmoid(g.logit_opacities)[:, None]], 1)
    red, green, blue, alpha = np.rint(rgba * 255).astype(np.uint32).T
    packed = [_pack_111011(units[0]), rotation, _pack_111011(units[1]), red << 24 | green << 16 | blue << 8 | alpha]
    rows = ((g.sh[:, 1:].transpose(0, 2, 1).reshape(len(g), -1) + 4) * 32).clip(0, 255).astype(np.uint8)
    return np.concatenate(bounds, 1).astype("<f4"), np.stack(packed, 1).astype("<u4"), rows
