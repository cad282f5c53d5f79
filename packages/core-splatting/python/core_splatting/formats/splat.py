""".splat (antimatter15/splat): 32 bytes a Gaussian, no header: centre, scales, RGBA, quaternion; no harmonics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .gaussians import CHUNK, SH_C0, FormatError, Gaussians, Source, log_scales, logit, require_finite, sigmoid, unit

_RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def open_splat(path: Path) -> Source:
    """Opens a .splat; its scales must not be negative."""
    size = path.stat().st_size
    if size % _RECORD.itemsize:
        raise FormatError(path, f"byte {size}", f"expected a multiple of {_RECORD.itemsize} bytes, got {size}")
    count = size // _RECORD.itemsize

    def chunks(n: int) -> Iterator[Gaussians]:
        with path.open("rb") as file:
            for at in range(0, count, n):
                r = np.fromfile(file, _RECORD, min(n, count - at))
                if len(r) < min(n, count - at):
                    raise FormatError(path, f"Gaussian {at + len(r)}", "expected more records, the file ends")
                negative = (r["scale"] < 0).any(1)
                if negative.any():
                    first = int(np.flatnonzero(negative)[0])
                    raise FormatError(
                        path, f"Gaussian {at + first}", f"expected scales of at least 0, got {r['scale'][first]}"
                    )
                rgba = r["rgba"].astype(np.float32) / 255
                yield Gaussians(
                    r["mean"].astype(np.float32),
                    unit((r["quat"].astype(np.float32) - 128) / 128),
                    log_scales(r["scale"].astype(np.float32)),
                    logit(rgba[:, 3]),
                    ((rgba[:, :3] - np.float32(0.5)) / np.float32(SH_C0))[:, None],
                )

    return Source(count, 0, chunks)


def write_splat(path: Path, source: Source) -> None:
    """Writes a .splat. Colours outside [0, 1] are clipped, harmonics above degree 0 are dropped."""
    with path.open("wb") as file:
        for part in source.chunks(CHUNK):
            require_finite(part, path)
            r = np.empty(len(part), _RECORD)
            r["mean"], r["scale"] = part.means, np.exp(part.log_scales.clip(-87, 88))
            r["rgba"][:, :3] = np.rint(part.colors.clip(0, 1) * 255)
            r["rgba"][:, 3] = np.rint(sigmoid(part.logit_opacities) * 255)
            r["quat"] = np.rint(unit(part.quats) * 128 + 128).clip(0, 255)
            r.tofile(file)
