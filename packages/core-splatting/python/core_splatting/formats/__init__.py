"""Files of Gaussians: INRIA's .ply, PlayCanvas's compressed .ply, .splat, .spz. Readers trust no file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core_registry import files

from .compressed_ply import write_compressed
from .gaussians import CHUNK, SH_C0, FormatError, Gaussians, Source
from .ply import open_ply, write_ply
from .splat import open_splat, write_splat
from .spz import open_spz, write_spz

__all__ = ["CHUNK", "SH_C0", "FormatError", "Gaussians", "Source", "open_gaussians", "read", "write"]

_READERS = {".ply": open_ply, ".splat": open_splat, ".spz": open_spz}
_WRITERS = {".compressed.ply": write_compressed, ".ply": write_ply, ".splat": write_splat, ".spz": write_spz}


def open_gaussians(path: str | os.PathLike[str]) -> Source:
    """A file's Gaussians in parts: `.count`, `.sh_degree`, `.chunks(n)`; no more than n are held at a time.

    The suffix chooses among .ply (INRIA's and PlayCanvas's compressed one), .splat and .spz (versions 2 to 4).
    Raises FormatError (a ValueError), here or while the parts come, which names file, place and what was expected.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_READERS)}, got '{path.suffix}'")
    return reader(path)


def read(path: str | os.PathLike[str]) -> Gaussians:
    """All Gaussians of a file; see `open_gaussians`."""
    return open_gaussians(path).read()


def write(path: str | os.PathLike[str], gaussians: Gaussians | Source, **options: Any) -> None:
    """Writes Gaussians under a temporary name and renames it when it is whole.

    The suffix chooses among .compressed.ply, .ply, .splat and .spz; options are those of the format's writer
    (`version` and `fractional_bits` of .spz). Raises ValueError for values that the format cannot hold.
    """
    path = Path(path)
    suffix = next((s for s in _WRITERS if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_WRITERS)}, got '{path.name}'")
    source = Source.of(gaussians) if isinstance(gaussians, Gaussians) else gaussians
    with files.replace(path) as temporary:
        _WRITERS[suffix](temporary, source, **options)
