"""Scores with intervals: of one batch or of several seeds, all samples and the best ones side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054
T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip
"""Student's 97.5 % quantiles for 1..30 degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A score with the ends of its 95 % interval, None where one batch gives none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float:
        """Half the interval's width, 0 for none."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


Scores = Mapping[str, Rate]


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of generated samples.

    unranked: of all samples; ranked: of the share `keep` of each seed's samples with the least `scores`, None without
    scores: figures of ranked samples are not comparable with those of methods that keep all. seeds: how many batches.
    Intervals are Student's over seeds, or of one batch: Wilson's for shares of samples, with samples as clusters for
    shares of atoms. tolerances: what the metrics depend on.
    """

    unranked: Scores
    ranked: Scores | None
    keep: float
    seeds: int
    tolerances: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, all samples, the best ones: text for a table."""

        def text(scores: Scores | None, name: str) -> str:
            rate = (scores or {}).get(name)
            if rate is None:
                return "-"
            ends = "" if rate.low is None else f"  [{rate.low:.4g}, {rate.high:.4g}]"
            return f"{rate.value:.4g}{ends}"

        return [(n.replace("_", " "), text(self.unranked, n), text(self.ranked, n)) for n in self.unranked]


def wilson(hits: int, total: int) -> Rate:
    """hits / total with Wilson's 95 % interval; 0 in [0, 1] for a total of 0."""
    if total == 0:
        return Rate(0.0, 0.0, 1.0)
    p, z = hits / total, Z95 * Z95 / total
    middle, half = (p + z / 2) / (1 + z), math.sqrt(p * (1 - p) * z + z * z / 4) / (1 + z)
    return Rate(p, max(middle - half, 0.0), min(middle + half, 1.0))


def clustered(hits: np.ndarray, totals: np.ndarray) -> Rate:
    """sum(hits) / sum(totals) with a normal 95 % interval; the rows (B,) of both are independent clusters."""
    total = int(totals.sum())
    if total == 0:
        return Rate(0.0, 0.0, 1.0)
    p = float(hits.sum() / total)
    residuals = hits - p * totals
    count = len(totals)
    half = Z95 * math.sqrt(float(residuals @ residuals) * count / max(count - 1, 1)) / total if count > 1 else 1.0
    return Rate(p, max(p - half, 0.0), min(p + half, 1.0))


def over_seeds(found: Sequence[Scores]) -> Scores:
    """The scores of one batch as they are; of several, means with Student's interval."""
    if len(found) == 1:
        return found[0]
    out = {}
    for name in found[0]:
        values = np.array([scores[name].value for scores in found])
        half = T95[min(len(values) - 1, len(T95)) - 1] * float(values.std(ddof=1)) / math.sqrt(len(values))
        out[name] = Rate(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half)
    return out


def report(
    batches: Sequence[Any],
    score: Callable[[Any], Scores],
    scores: Sequence[Any] | None,
    keep: float,
    tolerances: Mapping[str, Any],
) -> Report:
    """Applies `score` to each batch, and to the share `keep` of it with the least `scores` (perplexities).

    Raises ValueError for no batch, a share outside (0, 1], and scores that are not one finite number a sample.
    """
    if not batches:
        raise ValueError("argument 'samples' must hold one batch at least")
    if not 0 < keep <= 1:
        raise ValueError(f"argument 'keep' must be in (0, 1], got {keep}")
    ranked = None
    if scores is not None:
        best = []
        if len(scores) != len(batches):
            raise ValueError(f"argument 'scores' must be one array a batch: {len(batches)}, got {len(scores)}")
        for batch, given in zip(batches, scores, strict=True):
            values = np.asarray(given, np.float64)
            if values.shape != (len(batch),) or not np.isfinite(values).all():
                raise ValueError(
                    f"argument 'scores' must be finite, of shape ({len(batch)},), got shape {values.shape}"
                )
            order = np.argsort(values, kind="stable")
            best.append(batch.select(np.sort(order[: max(1, round(keep * len(batch)))])))
        ranked = over_seeds([score(batch) for batch in best])
    return Report(over_seeds([score(batch) for batch in batches]), ranked, keep, len(batches), tolerances)
