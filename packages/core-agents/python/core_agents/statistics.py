"""Agreement of raters, success of repeated trials, and whether two systems differ, with bootstrap intervals.

Agreement serves MAST's annotation studies (2503.13657), the rest an agent's evaluation (2503.16416). Intervals are
percentiles over replicates in which units (traces, tasks) are drawn with replacement, each with all its labels.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core_agents as _C

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval [low, high]; floats, or float64 [labels] where labels are kept apart.

    Without bootstrap the interval is NaN. `undefined` counts replicates in which the value is not defined (only one
    class was drawn, say); they are left out of the interval.
    """

    value: Any
    low: Any = math.nan
    high: Any = math.nan
    undefined: Any = 0


def bootstrap_sums(rows: Any, replicates: int = 10_000, seed: int = 0) -> Array:
    """Sums float64 [replicates, M] of rows [N, M] drawn with replacement, N of them; the same for the same seed."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or replicates < 0:
        raise ValueError(f"argument 'rows' must have shape (N, M), got {rows.shape}, and 'replicates' be >= 0")
    sums = np.empty((replicates, rows.shape[1]))
    _C.bootstrap_sums(rows, seed, sums)
    return sums


def _interval(replicates: Array, confidence: float) -> tuple[Any, Any]:
    if not 0 < confidence < 1:
        raise ValueError(f"argument 'confidence' must be in (0, 1), got {confidence}")
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no replicate is defined: NaN says so
        low, high = np.nanpercentile(replicates, tails, 0)
    return low, high


def _classes(ratings: Any) -> tuple[Array, Array]:
    """Indices int32 into the sorted classes, -1 for None and NaN, and the classes as numbers."""
    ratings = np.asarray(ratings)
    missing = ratings != ratings  # NaN
    if ratings.dtype == object:
        missing = missing.astype(bool) | (ratings == np.array(None)).astype(bool)
    present = ratings[~missing]
    if present.dtype == object:
        present = np.array(present.tolist())
    classes, which = np.unique(present, return_inverse=True)
    indices = np.full(ratings.shape, -1, np.int32)
    indices[~missing] = which
    numbers = classes.astype(np.float64) if classes.dtype.kind in "biuf" else np.arange(len(classes), dtype=np.float64)
    return indices, numbers


def agreement(
    ratings: Any,
    statistic: str = "cohen",
    metric: str = "nominal",
    *,
    by_label: bool = False,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How far raters agree beyond chance, 1 at best.

    ratings: [N, R], or [N, J, R] for units that got J labels each: N units, R >= 2 raters, classes of any sortable
    kind, None or NaN for missing ("krippendorff" only). `by_label` gives J values, else all labels count together.
    statistic: "cohen" (the mean over pairs of raters), "fleiss" or "krippendorff".
    metric: "nominal"; for "cohen" also "linear", "quadratic"; for "krippendorff" also "ordinal", "interval", "ratio".
    bootstrap: the number of replicates behind the interval, 0 for none.
    A value that is not defined, because all raters always gave the same one class, is NaN, with a RuntimeWarning.
    """
    indices, numbers = _classes(ratings)
    if indices.ndim == 2:
        indices = indices[:, None]
    if indices.ndim != 3 or not indices.size or not len(numbers):
        raise ValueError(f"argument 'ratings' must have shape (N, R) or (N, J, R) and hold labels, got {indices.shape}")
    n, labels, raters = indices.shape
    k, groups = len(numbers), labels if by_label else 1
    width = {"fleiss": k + 2, "cohen": k * k * (raters * (raters - 1) // 2)}.get(statistic, k * k)
    tables = np.empty((n, groups, width))
    _C.agreement_tables(indices, k, statistic, tables)

    def of(summed: Array) -> Array:
        out = np.empty(len(summed))
        _C.agreement(summed, numbers, raters, statistic, metric, out)
        return out

    value: Any = of(tables.sum(0))
    if np.isnan(value).any():
        warnings.warn(
            f"{statistic}: agreement is not defined where only one class occurs", RuntimeWarning, stacklevel=2
        )
    low, high, undefined = (np.full(groups, fill) for fill in (np.nan, np.nan, 0))
    if bootstrap:
        summed = bootstrap_sums(tables.reshape(n, -1), bootstrap, seed)
        replicates = of(summed.reshape(-1, width)).reshape(bootstrap, groups)
        low, high = _interval(replicates, confidence)
        undefined = np.isnan(replicates).sum(0)
    if by_label:
        return Estimate(value, low, high, undefined)
    return Estimate(float(value[0]), float(low[0]), float(high[0]), int(undefined[0]))


def cohen_kappa(y1: Any, y2: Any, *, weights: str | None = None, **options: Any) -> Estimate:
    """Cohen's kappa of two raters' labels [N] or [N, J]; `weights` None, "linear" or "quadratic" as in scikit-learn.

    `options` are those of :func:`agreement`.
    """
    first, second = np.asarray(y1), np.asarray(y2)
    if first.shape != second.shape:
        raise ValueError(f"argument 'y2' must have the shape of 'y1', {first.shape}, got {second.shape}")
    return agreement(np.stack([first, second], -1), "cohen", weights or "nominal", **options)


def fleiss_kappa(ratings: Any, **options: Any) -> Estimate:
    """Fleiss' kappa of ratings [N, R] or [N, J, R] without gaps; `options` are those of :func:`agreement`."""
    return agreement(ratings, "fleiss", **options)


def krippendorff_alpha(reliability_data: Any, level_of_measurement: str = "nominal", **options: Any) -> Estimate:
    """Krippendorff's alpha of data [R, N] (raters first, as the package krippendorff has it), NaN or None for gaps."""
    return agreement(np.asarray(reliability_data).T, "krippendorff", level_of_measurement, **options)


# ---- repeated trials -----------------------------------------------------------------------------------------


def _counts(num_trials: Any, num_correct: Any, k: int) -> tuple[Array, Array]:
    n, c = np.broadcast_arrays(np.asarray(num_trials), np.asarray(num_correct))
    if n.dtype.kind not in "iu" or c.dtype.kind not in "iu":
        raise TypeError(f"arguments 'num_trials' and 'num_correct' must be integers, got {n.dtype} and {c.dtype}")
    if n.size and not (1 <= k <= n.min() and c.min() >= 0 and (c <= n).all()):
        raise ValueError(f"argument 'num_correct' must be in 0..num_trials and 'k' in 1..{n.min()}, got k = {k}")
    return n, c


def _share(n: Array, chosen: Array, k: int, complement: bool) -> Array:
    """C(chosen, k) / C(n, k), or one minus it: exact integers, rounded once."""
    pairs, which = np.unique(np.stack([n.ravel(), chosen.ravel()]), axis=1, return_inverse=True)
    values = []
    for total, part in pairs.T.tolist():
        all_, some = math.comb(total, k), math.comb(part, k)
        values.append((all_ - some if complement else some) / all_)
    return np.array(values, np.float64)[which.reshape(-1)].reshape(n.shape)


def pass_at_k(num_trials: Any, num_correct: Any, k: int) -> Array:
    """The unbiased estimate that at least one of k trials succeeds, 1 - C(n-c, k) / C(n, k), integers of any shape."""
    n, c = _counts(num_trials, num_correct, k)
    return _share(n, n - c, k, True)


def pass_hat_k(num_trials: Any, num_correct: Any, k: int) -> Array:
    """The unbiased estimate that all of k trials succeed (pass^k), C(c, k) / C(n, k), for integers of any shape."""
    n, c = _counts(num_trials, num_correct, k)
    return _share(n, c, k, False)


# ---- comparisons ---------------------------------------------------------------------------------------------


def _paired(a: Any, b: Any) -> tuple[Array, Array]:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"arguments 'a' and 'b' must have one shape (N,), N > 0, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("arguments 'a' and 'b' must be finite")
    return first, second


def mean(values: Any, bootstrap: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of values [N] with its bootstrap interval."""
    x, _ = _paired(values, values)
    low, high = _interval(bootstrap_sums(x[:, None], bootstrap, seed)[:, 0] / len(x), confidence)
    return Estimate(float(x.mean()), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """The mean of b - a with its interval and the two-sided p-value of "no difference"."""

    difference: Estimate
    p_value: float


def paired_bootstrap(a: Any, b: Any, bootstrap: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compares two systems on the same tasks: a, b [N] hold each one's score of task i.

    The p-value is twice the smaller share of replicates on one side of zero (zero counts on both), each share with
    one more replicate counted in, at most 1.
    """
    first, second = _paired(a, b)
    means = bootstrap_sums((second - first)[:, None], bootstrap, seed)[:, 0] / len(first)
    low, high = _interval(means, confidence)
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    difference = Estimate(float((second - first).mean()), float(low), float(high))
    return Comparison(difference, min(1.0, 2 * (side + 1) / (bootstrap + 1)))


def mcnemar(a: Any, b: Any, exact: bool = True, correction: bool = True) -> tuple[float, float]:
    """McNemar's test on outcomes a, b [N] of 0 and 1 of the same tasks: (statistic, p-value), as statsmodels has them.

    exact: the binomial test, statistic min(n01, n10); else chi-square with one degree of freedom, with Edwards'
    continuity correction if `correction`. Without discordant pairs the p-value is 1.
    """
    first, second = _paired(a, b)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("arguments 'a' and 'b' must hold 0 and 1")
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    n, least = only_a + only_b, min(only_a, only_b)
    if exact:
        term = total = 1
        for i in range(least):
            term = term * (n - i) // (i + 1)
            total += term
        return float(least), min(1.0, 2 * total / 2**n)
    if not n:
        return 0.0, 1.0
    chi2 = (abs(only_a - only_b) - correction) ** 2 / n
    return chi2, math.erfc(math.sqrt(chi2 / 2))
