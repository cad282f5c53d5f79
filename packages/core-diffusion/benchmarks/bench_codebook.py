"""k-means and nearest codes, ours against scikit-learn and faiss, one thread each.

CORE_NUM_THREADS=1 OMP_NUM_THREADS=1 pytest -s benchmarks/bench_codebook.py prints the ratios.
"""

import time

import numpy as np
import pytest
from core_diffusion import k_means, nearest_codes
from core_registry.timing import fastest

faiss = pytest.importorskip("faiss")
cluster = pytest.importorskip("sklearn.cluster")


def codebook(rows: int = 16384, dim: int = 8) -> np.ndarray:
    """A normalised codebook, as LlamaGen's: float32 [rows, dim]."""
    x = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def seconds(call) -> float:  # type: ignore[no-untyped-def]
    return fastest(call, 3.0, time.process_time)


def test_nearest_codes(benchmark) -> None:  # type: ignore[no-untyped-def]
    """16384 vectors among 16384 codes."""
    x, codes = codebook(), codebook()[::-1].copy()
    codes += np.float32(0.01)
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(codes)
    theirs, labels = index.search(x, 1)
    ours, distance = nearest_codes(x, codes)
    difference = float(np.abs(distance - theirs[:, 0]).max())
    assert difference < 1e-5
    benchmark.pedantic(nearest_codes, (x, codes), rounds=3)
    mine, peer = seconds(lambda: nearest_codes(x, codes)), seconds(lambda: index.search(x, 1))
    print(
        f"\nnearest of 16384 codes: ours {mine * 1e3:.0f} ms, faiss {peer * 1e3:.0f} ms, ratio {mine / peer:.2f}; "
        f"{(ours == labels[:, 0]).mean():.4%} the same code, distances differ by {difference:.1e}"
    )


def test_k_means(benchmark) -> None:  # type: ignore[no-untyped-def]
    """16384 codes to 512 clusters in 25 rounds."""
    x = codebook()
    faiss.omp_set_num_threads(1)

    def peer() -> float:
        found = faiss.Kmeans(8, 512, niter=25, seed=1, max_points_per_centroid=1 << 20)
        found.train(x)
        return float(found.index.search(x, 1)[0].sum())

    def ours(init=None) -> float:  # type: ignore[no-untyped-def]
        return k_means(x, 512, init=init, max_iter=25, tol=0, random_state=1).inertia

    start = x[np.random.default_rng(1).permutation(len(x))[:512]]
    theirs = cluster.k_means(x, 512, n_init=1, max_iter=25, tol=0, random_state=1)[2]
    assert ours() <= 1.01 * theirs
    benchmark.pedantic(ours, rounds=3)
    whole, rounds, other = seconds(ours), seconds(lambda: ours(start)), seconds(peer)
    print(
        f"\nk-means 16384 x 8 to 512, 25 rounds: ours {whole * 1e3:.0f} ms ({rounds * 1e3:.0f} ms from random rows), "
        f"faiss {other * 1e3:.0f} ms, ours / faiss {whole / other:.2f} and {rounds / other:.2f}; inertia {ours():.1f} "
        f"({ours(start):.1f}), faiss {peer():.1f}, scikit-learn {theirs:.1f}"
    )
