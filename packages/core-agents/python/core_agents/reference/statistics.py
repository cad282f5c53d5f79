"""Agreement by its textbook definitions, label after label, and the bootstrap's generator in Python's integers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def agreement_tables(args: dict[str, Any]) -> dict[str, Any]:
    """The counts of each unit, label by label."""
    ratings, k, tables = args["ratings"], args["classes"], np.zeros(args["tables"].shape)
    for (n, label), _ in np.ndenumerate(ratings[..., 0]):
        to = tables[n, 0 if tables.shape[1] == 1 else label]
        given = [int(c) for c in ratings[n, label]]
        if args["statistic"] == "cohen":
            for p, (a, b) in enumerate(itertools.combinations(given, 2)):
                to[p * k * k + a * k + b] += 1
        elif args["statistic"] == "fleiss":
            for c, times in Counter(given).items():
                to[c] += times
                to[k] += times * times
            to[k + 1] += 1
        else:
            present = [c for c in given if c >= 0]
            for a, b in itertools.permutations(present, 2):
                to[a * k + b] += 1 / (len(present) - 1)
    return {"tables": tables}


def splitmix64(x: int) -> int:
    """Steele, Lea and Flood's mixing function."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def bootstrap_sums(args: dict[str, Any]) -> dict[str, Any]:
    """Draw after draw."""
    rows, sums = args["rows"], np.zeros(args["sums"].shape)
    start = splitmix64((args["seed"] + GOLDEN) & MASK)
    for b in range(len(sums)):
        state = start ^ splitmix64((b + GOLDEN) & MASK)
        for _ in range(len(rows)):
            state = (state + GOLDEN) & MASK
            sums[b] += rows[splitmix64(state) * len(rows) >> 64]
    return {"sums": sums}


def agreement(args: dict[str, Any]) -> dict[str, Any]:
    """1 - observed / expected disagreement of each table."""
    k, values, out = len(args["values"]), args["values"], np.empty(args["out"].shape)
    for b, table in enumerate(args["tables"]):
        if args["statistic"] == "fleiss":
            labels, raters = table[k + 1], args["raters"]
            observed = (table[k] / raters - labels) / (labels * (raters - 1))
            chance = sum((table[:k] / (labels * raters)) ** 2)
            out[b] = (observed - chance) / (1 - chance)
            continue
        alphas = []
        for matrix in table.reshape(-1, k, k):
            n, rows, columns = matrix.sum(), matrix.sum(1), matrix.sum(0)
            top = bottom = 0.0
            for i, j in np.ndindex(k, k):
                low, high = min(i, j), max(i, j)
                distance = {
                    "nominal": float(i != j),
                    "linear": float(abs(i - j)),
                    "quadratic": float((i - j) ** 2),
                    "ordinal": (rows[low : high + 1].sum() - (rows[i] + rows[j]) / 2) ** 2,
                    "interval": (values[i] - values[j]) ** 2,
                    "ratio": ((values[i] - values[j]) / (values[i] + values[j])) ** 2 if values[i] + values[j] else 0.0,
                }[args["metric"]]
                top += distance * matrix[i, j]
                pairs = rows[i] * (rows[j] - (i == j)) / (n - 1) if args["statistic"] == "krippendorff" else 0
                bottom += distance * (pairs if args["statistic"] == "krippendorff" else rows[i] * columns[j] / n)
            alphas.append(1 - top / bottom if bottom > 0 else math.nan)
        out[b] = np.mean(alphas)
    return {"out": out}
