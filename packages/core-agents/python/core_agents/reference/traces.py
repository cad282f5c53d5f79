"""Sketches of texts and their comparison with sets and loops."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

MASK = 2**64 - 1
PLACES = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def word_hash(word: bytes) -> int:
    """FNV-1a from zero, folded once."""
    value = 0
    for c in word:
        value = ((value ^ c) * 0x100000001B3) & MASK
    return value ^ value >> 29


def text_sketches(args: dict[str, Any]) -> dict[str, Any]:
    """The least hash of each bucket, text by text."""
    offsets, sketches = args["offsets"], np.full(args["sketches"].shape, -1, np.int64)
    k = sketches.shape[1]
    for row, begin, end in zip(sketches, offsets[:-1], offsets[1:], strict=True):
        words = [word_hash(w.lower()) for w in re.findall(rb"[A-Za-z0-9\x80-\xff]+", args["text"][begin:end].tobytes())]

        runs = list(zip(words, words[1:], words[2:], strict=False))
        if len(words) in (1, 2):
            runs = [[*[0, *words][-2:], 0]]
        for run in runs:
            value = sum(h * p for h, p in zip(run, PLACES, strict=True)) & MASK
            value = ((value ^ value >> 32) * 0xD6E8FEB86659FD93) & MASK
            value ^= value >> 32
            bucket, low = value * k >> 64, value & 0x7FFFFFFF
            row[bucket] = low if row[bucket] < 0 else min(row[bucket], low)
    return {"sketches": sketches}


def near_duplicates(args: dict[str, Any]) -> dict[str, Any]:
    """Pair by pair."""
    sketches, agents, earlier = args["sketches"], args["agents"], np.full(len(args["agents"]), -1, np.int32)
    for j in range(len(agents)):
        for i in range(j):
            a, b = ({(k, v) for k, v in enumerate(sketches[x].tolist()) if v >= 0} for x in (i, j))
            buckets = {k for k, _ in a | b}
            if agents[i] == agents[j] and buckets and len(a & b) >= args["threshold"] * len(buckets):
                earlier[j] = i
                break
    return {"earlier": earlier}
