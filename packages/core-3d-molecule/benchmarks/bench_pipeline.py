"""Molecules to a model's input, tokens with [MASK] copies, whole: ours against the Python tokeniser and numpy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from core_3d_molecule import Augmentation, OctreeTokenizer, Packed, Structures, data
from core_3d_molecule.cases_octree import GRID, SIZES, random_structures, reference_tokenize
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
        structures, source = Structures(*random_structures(np.random.default_rng(0), **SIZES["bench"])), "random"
    tokenizer = OctreeTokenizer()
    few = structures.select(np.arange(PEER))
    tokens = tokenizer.tokenize(few)
    none = np.empty((PEER, 0), np.int32)

    def peer() -> dict[str, np.ndarray]:
        out = reference_tokenize({**vars(tokens), **vars(few), **GRID, "keep_first": False})
        streams = (out[k] for k in ("tokens", "levels", "centres", "bins", "counts"))
        return reference.pack(*streams, tokens.offsets, none, 1, *GRID.values())

    expected, packed = peer(), vars(tokenizer.pack(tokens))
    for got, want in zip(packed.values(), expected.values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    peers = PEER / seconds(peer, 2)
    for what, augment in (("tokenise and pack", None), ("augment, tokenise and pack", Augmentation())):

        def ours(how: Augmentation | None = augment) -> Packed:
            return tokenizer.pack(tokenizer.tokenize(structures, augment=how))

        rate = len(structures) / seconds(ours, 7)
        print(f"{what}, {len(structures)} molecules of {source}, one core: ours {rate:,.0f}/s,", end=" ")
        print(f"Python reference (without augmentation) {peers:,.0f}/s, ratio {rate / peers:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=20000)
    main(parser.parse_args().molecules)
