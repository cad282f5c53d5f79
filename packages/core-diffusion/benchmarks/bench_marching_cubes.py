"""Marching cubes, ours against scikit-image's, one thread of ours: pytest benchmarks/bench_marching_cubes.py.

CORE_NUM_THREADS=1 pytest -s benchmarks/bench_marching_cubes.py prints the ratios.
"""

import time

import numpy as np
import pytest
from core_diffusion import marching_cubes, sparse_marching_cubes

measure = pytest.importorskip("skimage.measure")


def torus(n: int) -> np.ndarray:
    """Signed distance of a torus, above 0 inside, float32 [n, n, n] on [-1, 1]^3."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32),) * 3, indexing="ij", sparse=True)
    return np.float32(0.2) - np.sqrt((np.sqrt(x * x + y * y) - np.float32(0.61)) ** 2 + z * z)


def sphere(n: int) -> np.ndarray:
    """Signed distance of a sphere of radius 0.8, above 0 inside, float32 [n, n, n] on [-1, 1]^3."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32),) * 3, indexing="ij", sparse=True)
    return np.float32(0.801) - np.sqrt(x * x + y * y + z * z)


def seconds(f, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Shortest process time of one call."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        f()
        best = min(best, time.process_time() - start)
    return best


def same_surface(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance of paired vertices, in nodes: each vertex of one has its own in the other."""
    assert ours.shape == theirs.shape
    spatial = pytest.importorskip("scipy.spatial")
    distance, index = spatial.cKDTree(theirs).query(ours)
    assert len(np.unique(index)) == len(index)
    return float(distance.max())


@pytest.mark.parametrize("size", [129, 257])
@pytest.mark.parametrize("shape", [sphere, torus])
def test_marching_cubes(benchmark, shape, size: int) -> None:  # type: ignore[no-untyped-def]
    """Prints the ratios for the dense volume and for its band only, if the surfaces agree."""
    volume = shape(size)
    band = np.flatnonzero(np.abs(volume) < 4 / size * 2)
    values = volume.ravel()[band]
    ours, faces = marching_cubes(volume)
    theirs, their_faces, _, _ = measure.marching_cubes(volume, 0.0)
    difference = same_surface(ours, theirs)
    assert difference < 1e-3
    assert len(faces) == len(their_faces)
    assert np.array_equal(sparse_marching_cubes(band, values, volume.shape)[1], faces)
    benchmark.pedantic(marching_cubes, (volume,), rounds=3)
    repeats = 7 if size < 200 else 4
    dense = seconds(lambda: marching_cubes(volume), repeats)
    sparse = seconds(lambda: sparse_marching_cubes(band, values, volume.shape), repeats)
    peer = seconds(lambda: measure.marching_cubes(volume, 0.0), repeats)
    print(
        f"\n{shape.__name__} {size}^3, {len(faces)} triangles: dense {dense * 1e3:.1f} ms, band {sparse * 1e3:.1f} ms, "
        f"scikit-image {peer * 1e3:.0f} ms; ratios {peer / dense:.1f} and {peer / sparse:.1f}; "
        f"vertices differ by {difference:.1e} nodes"
    )
