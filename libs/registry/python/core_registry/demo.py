"""The demonstrations that packages declare: what each returns, and running all of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture under the demonstration's folder, with its title."""

    title: str
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Demo:
    """What a demonstration did: `ours` and `peers` are seconds for the same work, `peer` the other's name.

    `difference` is the largest absolute difference between the two answers, at most `tolerance`.
    """

    what: str
    input: str
    ours: float
    peer: str
    peers: float
    difference: float
    tolerance: float
    pictures: Sequence[Picture] = ()
    figures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.difference <= self.tolerance:
            raise ValueError(f"{self.what}: differs from {self.peer} by {self.difference:g}, more than {self.tolerance:g}")

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.peers / self.ours
