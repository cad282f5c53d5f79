"""Molecules to a model's input, tokens with [MASK] copies, whole: ours against the Python tokeniser and numpy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from core_3d_molecule import OctreeTokenizer, Structures, data
from core_3d_molecule.cases import GRID, SIZES, _structures, reference_tokenize
from core_3d_molecule.reference import octree as reference

PEER = 500


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least process time of `repeats` runs."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def main(molecules: int) -> None:
    """Prints molecules per second and core, ours and the peer's; raises if the streams differ."""
    if data.has_qm9():
        structures, source = data.qm9(molecules), "QM9"
    else:
        structures, source = Structures(*_structures(np.random.default_rng(0), **SIZES["bench"])), "random"
    tokenizer = OctreeTokenizer()
    few = Structures(structures.numbers, structures.positions, structures.offsets[: PEER + 1])
    end = few.offsets[-1]
    few = Structures(few.numbers[:end], few.positions[:end], few.offsets)
    tokens = tokenizer.tokenize(few)
    shapes = {k: v for k, v in vars(tokens).items() if k != "offsets"}

    def peer() -> tuple[np.ndarray, ...]:
        out = reference_tokenize({**vars(few), **GRID, "keep_first": False, **shapes})
        streams = (out[k] for k in ("tokens", "levels", "centres", "bins"))
        return reference.pack(*streams, tokens.offsets, GRID["cell"], GRID["resolution"])

    expected, packed = peer(), tokenizer.pack(tokens)
    for got, want in zip(vars(packed).values(), expected, strict=True):
        np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-6, atol=1e-6)
    ours = len(structures) / seconds(lambda: tokenizer.pack(tokenizer.tokenize(structures)), 7)
    peers = len(few) / seconds(peer, 2)
    print(f"{len(structures)} molecules of {source}: ours {ours:,.0f}/s, Python reference {peers:,.0f}/s,", end=" ")
    print(f"ratio {ours / peers:.0f} (tokenise and pack, per core second)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=20000)
    main(parser.parse_args().molecules)
