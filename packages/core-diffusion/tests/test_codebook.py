import os
import subprocess
import sys

import numpy as np
import pytest
from core_diffusion import CoarseToFine, k_means, nearest_codes
from core_diffusion.cases_codebook import clouds
from core_diffusion.reference import codebook as reference
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_common_offset_costs_no_accuracy() -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.random((500, 8), np.float32), rng.random((300, 8), np.float32)
    near, shifted = nearest_codes(x, codes), nearest_codes(x + 1000, codes + 1000)
    assert (near[0] == reference.squared_distances(x, codes).argmin(1)).all()
    exact = reference.squared_distances(x + np.float32(1000), codes + np.float32(1000))
    assert (exact[np.arange(500), shifted[0]] <= exact.min(1) + 1e-5).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_no_cluster_is_empty(rows: int, clusters: int, dim: int, seed: int, values: int) -> None:
    x = np.random.default_rng(seed).integers(values, size=(rows, dim)).astype(np.float32)  # many equal rows
    clusters = min(clusters, rows)
    found = k_means(x, clusters, random_state=seed)
    assert (np.bincount(found.label, minlength=clusters) > 0).all()
    every = reference.squared_distances(x, found.centroid)
    assert found.inertia == pytest.approx(every[np.arange(rows), found.label].sum(), rel=1e-5, abs=1e-5)
    if len(np.unique(x, axis=0)) >= clusters:
        assert found.inertia <= every.min(1).sum() * (1 + 1e-5) + 1e-5


def test_inertia_is_scikit_learns() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = clouds(np.random.default_rng(1), 4096, 200, 8)
    ours = min(k_means(x, 128, random_state=seed).inertia for seed in range(3))
    theirs = min(cluster.k_means(x, 128, n_init=1, random_state=seed)[2] for seed in range(3))
    assert ours <= 1.01 * theirs


def test_threads_do_not_change_the_result() -> None:
    program = (
        "import numpy as np, hashlib\n"
        "from core_diffusion import k_means\n"
        "f = k_means(np.random.default_rng(0).random((5000, 7), np.float32), 60, random_state=3)\n"
        "print(hashlib.sha256(f.centroid.tobytes() + f.label.tobytes()).hexdigest(), f.inertia)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "CORE_NUM_THREADS": n}, capture_output=True, check=True
        ).stdout
        for n in ("1", "2", "5")
    }
    assert len(said) == 1


def test_torch_tensors_stay_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((4, 9, 3), np.float32)
    index, distance = nearest_codes(torch.from_numpy(x), x[0])
    assert index.shape == (4, 9)
    assert torch.equal(index, torch.from_numpy(nearest_codes(x, x[0])[0]))
    assert (distance[0] == 0).all()
    ours, theirs = (k_means(rows, 5, random_state=1) for rows in (x[1], torch.from_numpy(x[1])))
    assert np.array_equal(ours.centroid, theirs.centroid.numpy())
    assert ours.inertia == theirs.inertia > 0
    with pytest.raises(NotImplementedError, match="'x'"):
        nearest_codes(torch.zeros(2, 3, requires_grad=True), x[0])


def test_refusals_name_the_argument() -> None:
    x = np.zeros((3, 2), np.float32)
    for what, match in (
        (lambda: k_means(x, 4), "n_clusters"),
        (lambda: k_means(x[0], 1), "'X'"),
        (lambda: k_means(x, 2, n_init=0), "n_init"),
        (lambda: k_means(x, 2, max_iter=-1), "max_iter"),
        (lambda: k_means(x, 2, tol=float("nan")), "tol"),
        (lambda: k_means(x, 2, init=x), "centers|init"),
        (lambda: nearest_codes(x, x[:0]), "codes"),
        (lambda: nearest_codes(x, x[:, :1]), "codes"),
        (lambda: nearest_codes(x + np.float32(np.nan), x), "row 0, column 0"),
    ):
        with pytest.raises(ValueError, match=match):
            what()


class TestCoarseToFine:
    def test_round_trip_and_mask(self) -> None:
        codes = clouds(np.random.default_rng(2), 300, 20, 4)
        levels = CoarseToFine.from_codebook(codes, 20, random_state=0)
        fine = np.arange(300).reshape(10, 30)
        coarse, rank = levels.encode(fine)
        assert (levels.decode(coarse, rank) == fine).all()
        assert levels.mask(coarse)[np.arange(10)[:, None], np.arange(30), fine].all()  # each in its own cluster
        assert (levels.mask(np.arange(20)).sum(1) == np.bincount(levels.coarse_of)).all()

    def test_refusals(self) -> None:
        levels = CoarseToFine.from_labels([0, 1, 1])
        for what in (
            lambda: CoarseToFine.from_labels([0, 2]),
            lambda: CoarseToFine.from_labels([-1, 0]),
            lambda: levels.encode([3]),
            lambda: levels.decode([0], [1]),
            lambda: levels.decode([2], [0]),
        ):
            with pytest.raises(ValueError, match=r"code|rank|label"):
                what()
