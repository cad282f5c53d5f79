"""MAST (arXiv 2503.13657): failure modes can be told apart, and a judge's answer can be read."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
from core_registry.claims import Claim

from .. import mast, statistics
from ..reference.mast import FAULTS, f1_score, fault_counts, forms
from .plots import axes

SHARES = (11.8, 1.5, 15.7, 2.8, 12.4, 2.2, 6.8, 7.4, 0.85, 1.9, 13.2, 6.2, 8.2, 9.1)
"""How often each mode occurs in the paper's 1,642 traces, in per cent."""


def first_word(text: str) -> tuple[bool, ...]:
    """Verdicts by the first "yes" or "no" after each code, wherever it stands: what a naive reader does."""
    found = []
    for code in mast.PAPER.codes:
        after = re.search(rf"{re.escape(code)}.*?(yes|no|true|false)", text, re.IGNORECASE | re.DOTALL)
        found.append(bool(after) and after[1].lower() in ("yes", "true"))
    return tuple(found)


def misread(patterns: list[tuple[bool, ...]]) -> tuple[float, float]:
    """The share of answers in six forms that are not read as they were meant: by ours, and by the naive reader."""
    ours = naive = total = 0
    for write in forms(mast.PAPER).values():
        for verdicts in patterns:
            text = write(verdicts)
            ours += tuple(mast.parse_answer(text).modes.values()) != verdicts
            naive += first_word(text) != verdicts
            total += 1
    return ours / total, naive / total


def study(seed: int) -> statistics.Estimate:
    """Fleiss' kappa of a made agreement study of the paper's size: 15 traces, 14 modes, 3 raters who err at 1 %."""
    rng = np.random.default_rng(seed)
    truth = rng.random((15, 14)) < np.array(SHARES) / 100 * 2
    ratings = truth[..., None] ^ (rng.random((15, 14, 3)) < 0.01)
    return statistics.agreement(ratings.astype(int), "fleiss", bootstrap=2000, seed=seed)


def claim(size: str, seed: int, out: Path) -> Claim:
    """All 2^14 answers in six forms and 200 rounds of injected faults; the sizes are the same."""
    patterns = list(itertools.product((False, True), repeat=len(mast.PAPER.codes)))
    ours, naive = misread(patterns)
    scores = {code: f1_score(fault_counts(code, seed, 200)) for code in FAULTS}
    made = study(seed)
    return Claim(
        paper="2503.13657",
        claim="The failure modes of multi-agent systems can be recognised consistently from their traces.",
        protocol=f"a judge's answer, all {len(patterns):,} of them in six forms, is read back; detectors find faults "
        "that were put into made traces (3 x 200 for each mode). The paper's kappa of 0.88 between people and its "
        "judge's 0.77 are not measured: that needs its annotators, its data and its judge. What a study of its size "
        "(15 traces, 3 raters) can say is shown by one that was made up: kappa with half its interval of 95 %",
        measured={
            "share of answers read wrongly": (ours, 0.0),
            "the same, by the first yes or no after a code": (naive, 0.0),
            **{f"F1 of the detector of {code}": (score, 0.0) for code, score in scores.items()},
            "kappa of a made study of the paper's size": (float(made.value), float(made.high - made.low) / 2),
        },
        holds=ours == 0 and min(scores.values()) >= 0.9,
        plot=_plot(ours, naive, scores, out / "mast.png"),
    )


def _plot(ours: float, naive: float, scores: dict[str, float], path: Path) -> Path:
    with axes(path, columns=2, width=9, height=4) as (left, right):
        bars = left.bar(["this parser", "first yes or no\nafter a code"], [ours, naive], color=["#7dbb7d", "#d98880"])
        left.bar_label(bars, fmt="{:.1%}")
        left.set(ylabel="share of answers", title="answers read wrongly")
        bars = right.bar(list(scores), list(scores.values()), color="#7f9fbf")
        right.bar_label(bars, fmt="{:.2f}")
        right.axhline(0.9, color="grey", linestyle="--")
        right.set(ylim=(0, 1.1), xlabel="failure mode", title="F1 of detectors on faults that were put in")
    return path
