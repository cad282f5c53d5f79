"""Sketches of texts with sets and loops, trace readers and archives with the standard library."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
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


ROLES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
NOT_A_TIME = -(2**63)


def read_traces(args: dict[str, Any]) -> dict[str, Any]:
    """Lines of OpenAI messages by json, key by key in their order."""
    buffer, rows, runs = bytearray(), list[list[int]](), 0

    def put(text: str | None) -> tuple[int, int]:
        if text is None:
            return -1, -1
        begin = len(buffer)
        buffer.extend(text.encode())
        return begin, len(buffer)

    for line in args["text"].tobytes().split(b"\n"):
        if not line.strip():
            continue
        for step, message in enumerate(json.loads(line)):
            text = name = (-1, -1)
            calls = []
            for key, value in message.items():
                if key == "content":
                    text = put(value)
                elif key == "name":
                    name = put(value)
                elif key == "tool_calls":
                    made = [(put(c["id"]), put(c["function"]["name"]), put(c["function"]["arguments"])) for c in value]
                    calls = [(tool, arguments, call_id) for call_id, tool, arguments in made]
            role = ROLES.get(message["role"], 5)
            none, tail = (-1, -1), [-1, -1, NOT_A_TIME, NOT_A_TIME]
            agent, tool = (none, name) if role == 3 else (name, none)
            rows.append([runs, step, 0, role, *text, *agent, *tool, *none, *none, *tail])
            for call in calls:
                rows.append([runs, step, 1, role, *none, *agent, *(x for pair in call for x in pair), *tail])
        runs += 1
    missing = [-1] * 8 + [1, -1, -1, NOT_A_TIME, NOT_A_TIME, 1]
    return {
        "rows": np.array(rows, np.int64).reshape(-1, 18).T,
        "runs": np.array([missing] * runs, np.int64).reshape(-1, 14).T,
        "values": np.full((4, runs), np.nan),
        "buffer": np.frombuffer(bytes(buffer), np.uint8),
        "failures": np.empty((3, 0), np.int64),
        "sizes": np.array([len(rows), runs, len(buffer), 0]),
    }


def zip_members(args: dict[str, Any]) -> dict[str, Any]:
    """By zipfile; the names lie in the directory at the end, in its order."""
    data = args["archive"].tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members, at = [], archive.start_dir
        for one in archive.infolist():
            name, extra, comment = len(one.filename), len(one.extra), len(one.comment)
            begin = one.header_offset + 30 + sum(struct.unpack_from("<HH", data, one.header_offset + 26))
            members.append(
                [at + 46, at + 46 + name, one.compress_type, one.flag_bits, one.CRC, begin, one.compress_size]
            )
            members[-1].append(one.file_size)
            at += 46 + name + extra + comment
    return {"members": np.array(members, np.int64).reshape(-1, 8).T, "sizes": np.array([len(members), 0])}
