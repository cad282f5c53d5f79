"""The smallest honest experiments behind papers' claims, which packages declare for `core reproduce`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Claim:
    """A paper's claim as measured here. `measured` maps a name to (mean, spread over seeds or samples)."""

    paper: str
    claim: str
    protocol: str
    measured: Mapping[str, tuple[float, float]]
    holds: bool
    plot: pathlib.Path | None = None
