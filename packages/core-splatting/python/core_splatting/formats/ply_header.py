"""The header of a .ply file: elements and their properties."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .gaussians import FormatError

HEADER_LIMIT = 1 << 16
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Element:
    """One element: where its `count` records of `dtype` begin."""

    name: str
    count: int
    dtype: np.dtype[np.void]
    offset: int


def read_header(file: BinaryIO, path: Path) -> dict[str, Element]:
    """The elements of a binary .ply by name; all of them lie inside the file, or FormatError is raised."""
    head = file.read(HEADER_LIMIT)
    if not head.startswith((b"ply\n", b"ply\r\n")):
        raise FormatError(path, "byte 0", f"expected a .ply file ('ply' in the first line), got {head[:8]!r}")
    end = head.find(b"end_header")
    end_of_line = head.find(b"\n", end)
    if end < 0 or end_of_line < 0:
        raise FormatError(path, "header", f"expected a line 'end_header' in the first {HEADER_LIMIT} bytes")
    order = ""
    found: list[tuple[str, int, list[tuple[str, str]]]] = []
    for number, raw in enumerate(head[:end].decode("ascii", "replace").splitlines()[1:], 2):
        where, words = f"header line {number}", raw.split()
        match words:
            case [] | ["comment" | "obj_info", *_]:
                continue
            case ["format", "binary_little_endian", "1.0"]:
                order = "<"
            case ["format", "binary_big_endian", "1.0"]:
                order = ">"
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) <= 15:
                found.append((name, int(count), []))
            case ["property", kind, name] if found and kind in _TYPES:
                found[-1][2].append((name, _TYPES[kind]))
            case _:
                raise FormatError(
                    path, where, f"expected a binary format, an element or a property of numbers, got {raw[:80]!r}"
                )
    if not order:
        raise FormatError(path, "header", "expected a line 'format binary_little_endian 1.0', got none")
    size = file.seek(0, 2)
    elements: dict[str, Element] = {}
    offset = end_of_line + 1
    for name, records, properties in found:
        if name in elements or len({p for p, _ in properties}) < len(properties):
            raise FormatError(path, f"header, element '{name}'", "expected each name once")
        dtype = np.dtype([(p, order + kind) for p, kind in properties])
        elements[name] = Element(name, records, dtype, offset)
        offset += records * dtype.itemsize
        if offset > size:
            raise FormatError(
                path, f"element '{name}'",
                f"expected {records} records of {dtype.itemsize} bytes up to byte {offset}, the file has {size} bytes",
            )  # fmt: skip
    return elements


def write_header(file: BinaryIO, elements: list[tuple[str, int, list[tuple[str, str]]]]) -> None:
    """Writes a little-endian header of (name, count, [(property, type)])."""
    lines = ["ply", "format binary_little_endian 1.0"]
    for name, count, properties in elements:
        lines += [f"element {name} {count}", *(f"property {kind} {prop}" for prop, kind in properties)]
    file.write("\n".join([*lines, "end_header\n"]).encode())
