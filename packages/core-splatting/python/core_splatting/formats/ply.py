"""INRIA's .ply (graphdeco-inria/gaussian-splatting): float32 log scales, logit opacities, f_rest by channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .gaussians import CHUNK, FormatError, Gaussians, Source
from .ply_header import Element, read_header, write_header

_DEGREES = {0: 0, 9: 1, 24: 2, 45: 3}
_GROUPS = {
    "means": ("x", "y", "z"),
    "quats": ("rot_0", "rot_1", "rot_2", "rot_3"),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "logit_opacities": ("opacity",),
    "dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
}


def open_vertices(path: Path, vertex: Element) -> Source:
    """The Gaussians of the element 'vertex'; properties may come in any order, others are passed over."""
    names = vertex.dtype.names or ()
    missing = [p for group in _GROUPS.values() for p in group if p not in names]
    if missing:
        raise FormatError(
            path, "header, element 'vertex'", f"expected the properties of 3D Gaussians, '{missing[0]}' is missing"
        )
    rest = sum(name.startswith("f_rest_") for name in names)
    if rest not in _DEGREES or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise FormatError(
            path, "header, element 'vertex'", f"expected 0, 9, 24 or 45 properties f_rest_0 and on, got {rest}"
        )
    degree = _DEGREES[rest]

    def columns(records: NDArray[np.void], group: tuple[str, ...]) -> NDArray[np.float32]:
        return np.stack([records[p].astype(np.float32) for p in group], 1)

    def chunks(size: int) -> Iterator[Gaussians]:
        with path.open("rb") as file:
            file.seek(vertex.offset)
            for at in range(0, vertex.count, size):
                records = np.fromfile(file, vertex.dtype, min(size, vertex.count - at))
                if len(records) < min(size, vertex.count - at):
                    raise FormatError(path, f"vertex {at + len(records)}", "expected more records, the file ends")
                fields = {k: columns(records, group) for k, group in _GROUPS.items()}
                sh = np.empty((len(records), (degree + 1) ** 2, 3), np.float32)
                sh[:, 0] = fields.pop("dc")
                per_channel = rest // 3
                for i in range(rest):
                    sh[:, 1 + i % per_channel, i // per_channel] = records[f"f_rest_{i}"]
                fields["logit_opacities"] = fields["logit_opacities"][:, 0]
                yield Gaussians(**fields, sh=sh)

    return Source(vertex.count, degree, chunks)


def open_ply(path: Path) -> Source:
    """Opens either kind of .ply: INRIA's, or PlayCanvas's compressed one."""
    with path.open("rb") as file:
        elements = read_header(file, path)
    if "vertex" not in elements:
        raise FormatError(path, "header", f"expected an element 'vertex', got {', '.join(elements) or 'none'}")
    if "packed_position" in (elements["vertex"].dtype.names or ()):
        from .compressed_ply import open_compressed

        return open_compressed(path, elements)
    return open_vertices(path, elements["vertex"])


def write_ply(path: Path, source: Source) -> None:
    """Writes INRIA's .ply; normals are 0."""
    per_channel = (source.sh_degree + 1) ** 2 - 1
    names = ["x", "y", "z", "nx", "ny", "nz", *_GROUPS["dc"], *(f"f_rest_{i}" for i in range(3 * per_channel))]
    names += ["opacity", *_GROUPS["log_scales"], *_GROUPS["quats"]]
    with path.open("wb") as file:
        write_header(file, [("vertex", source.count, [(name, "float") for name in names])])
        for part in source.chunks(CHUNK):
            rows = np.zeros((len(part), len(names)), "<f4")
            rows[:, 0:3] = part.means
            rows[:, 6:9] = part.sh[:, 0]
            rows[:, 9 : 9 + 3 * per_channel] = part.sh[:, 1:].transpose(0, 2, 1).reshape(len(part), -1)
            rows[:, -8] = part.logit_opacities
            rows[:, -7:-4] = part.log_scales
            rows[:, -4:] = part.quats
            rows.tofile(file)
