"""MMD of two sets of numbers and RMSD of molecules, one thread: ours against the full kernel matrix in torch, and
scipy."""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from bench_pipeline import seconds
from core_3d_molecule import Structures, data, gaussian_mmd, kabsch_rmsd
from core_3d_molecule.cases_octree import SIZES, random_structures


def matrix_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """All pairs of the union in one matrix, as generative models' evaluations compute it."""
    union = torch.cat([x, y])
    square = (union[:, None] - union[None]) ** 2
    n = len(union)
    width = square.sum() / (n * n - n) / 4
    kernel = sum(torch.exp(-square / (width * 2**k)) for k in range(5))
    a = len(x)
    return float(kernel[:a, :a].mean() + kernel[a:, a:].mean() - 2 * kernel[:a, a:].mean())


def mmd(count: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.5, 0.1, count), rng.normal(1.52, 0.12, count)
    sides = torch.from_numpy(x), torch.from_numpy(y)
    difference = abs(gaussian_mmd(x, y) - matrix_mmd(*sides))
    if difference > 1e-6:
        raise SystemExit(f"the two differ by {difference}")
    ours, peer = seconds(lambda: gaussian_mmd(x, y), 3), seconds(lambda: matrix_mmd(*sides), 2)
    print(f"MMD of 2 x {count}: ours {ours:.4f} s, torch {peer:.3f} s, ratio {peer / ours:.1f};", end=" ")
    print(f"difference {difference:.1e}")


def rmsd(count: int) -> None:
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    real = data.has_qm9()
    batch = data.qm9(count) if real else Structures(*random_structures(rng, **SIZES["bench"]))
    batch = batch.select(np.flatnonzero(np.diff(batch.offsets) > 3))
    start = np.asarray(batch.positions, np.float64)
    moved = start @ Rotation.random(random_state=1).as_matrix().T + 1 + rng.normal(0, 0.02, start.shape)
    few = min(len(batch), 500)

    def peer() -> list[float]:
        out = []
        for i, j in zip(batch.offsets[:few], batch.offsets[1:], strict=False):
            a, b = (p[i:j] - p[i:j].mean(0) for p in (start, moved))
            out.append(Rotation.align_vectors(b, a)[1] / np.sqrt(j - i))
        return out

    difference = float(np.abs(kabsch_rmsd(start, moved, batch.offsets)[:few] - peer()).max())
    if difference > 1e-6:
        raise SystemExit(f"the two differ by {difference}")
    ours = len(batch) / seconds(lambda: kabsch_rmsd(start, moved, batch.offsets), 5)
    peers = few / seconds(peer, 2)
    print(f"RMSD: ours {ours:,.0f}/s, scipy {peers:,.0f}/s, ratio {ours / peers:.0f}; difference {difference:.1e} A")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    os.environ["CORE_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    mmd(arguments.count)
    rmsd(20_000)
