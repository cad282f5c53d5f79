"""Mutated files for the readers' tests."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROUNDS = int(os.environ.get("CORE_FUZZ", 10**5 if os.environ.get("CORE_TEST_ALL") else 200))
SEED = int(os.environ.get("CORE_FUZZ_SEED", "0"))
_WORDS = [
    b"nan", b"-inf", b"1e999", b"9" * 400, b"9" * 5000, b"-1", b"0", b"[]", b"{}", b"null", b"\\ud800", b"\0", b"\n",
    *(struct.pack("<I", n) for n in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 300 << 20)),
    *(struct.pack("<Q", n) for n in (0, 2**31, 2**32, 2**60, 2**63, 2**64 - 1)),
    *(struct.pack("<f", x) for x in (np.nan, np.inf, -1, 1e38)),
    *(struct.pack("<d", x) for x in (np.nan, np.inf, -1e308)),
]  # fmt: skip


def mutated(good: bytes, head: int, rng: np.random.Generator) -> bytes:
    """The good bytes after one to three of: another byte, a flipped bit, a number or a word in place of others or
    between them, a part that is left out, doubled or moved, an early end; mostly in the first `head`."""
    data = bytearray(good)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(min(len(data), head) if rng.random() < 0.7 else len(data)))
        length, word = int(2 ** rng.uniform(0, 7)), _WORDS[rng.integers(len(_WORDS))]
        match rng.integers(8):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at : at + len(word)] = word
            case 3:
                data[at : at + int(rng.integers(4))] = word
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * int(rng.integers(1, 4))
            case 6:
                other = int(rng.integers(len(data)))
                data[at : at + length] = data[other : other + length]
            case 7:
                del data[int(rng.integers(len(data))) :]
    return bytes(data)


@pytest.fixture
def abused() -> Callable[..., None]:
    """abused(path, read, error): mutates the file and reads it, CORE_FUZZ=N times (CORE_FUZZ_SEED: another series).

    Whatever is read, or refused with an `error` that names the file, must have held at most `fixed` bytes and `each`
    for each of the file's. `packed` is done to the bytes after they were mutated. Tests that use it are called abuse,
    so that `.ci/run` also has them under ASan.
    """

    def run(
        path: Path,
        read: Callable[[], Any],
        error: type[ValueError],
        *,
        head: int = 1 << 30,
        each: int = 200,
        fixed: int = 1 << 20,
        packed: Callable[[bytes], bytes] = bytes,
    ) -> None:
        good, refused = path.read_bytes(), 0
        tracemalloc.start()
        try:
            for i in range(ROUNDS):
                data = packed(mutated(good, head, np.random.default_rng((SEED, i))))
                path.write_bytes(data)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                try:
                    with np.errstate(all="ignore"):
                        read()
                except error as e:
                    refused += 1
                    assert str(path.parent) in str(e), f"round {i}: {e}"
                except Exception as e:
                    raise AssertionError(f"round {i}: {type(e).__name__}: {e}") from e
                held = tracemalloc.get_traced_memory()[1] - before
                assert held < fixed + each * len(data), f"round {i}: {held} bytes for {len(data)} of the file"
        finally:
            tracemalloc.stop()
        path.write_bytes(good)
        print(f"{refused} of {ROUNDS} refused")

    return run
