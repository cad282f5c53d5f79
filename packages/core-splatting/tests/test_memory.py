"""M3's memory: the formula in float64, gradients, the torch operator, memory in use, and the greedy rule."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from core_splatting import gaussian_memory_attention, principal_scene_components
from core_splatting.cases_memory import clustered
from core_splatting.reference import memory as reference
from hypothesis import given, settings
from hypothesis import strategies as st

f32 = np.float32


def parts(P: int = 200, L: int = 16, T: int = 300, D: int = 96) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = ((P, L), (L, D), (T, D))
    return [rng.normal(size=shape).astype(f32) for shape in shapes]


@pytest.mark.parametrize("cosine", [True, False])
def test_formula(cosine: bool) -> None:
    queries, projection, components = parts()
    queries[3] = 0  # a pixel that no Gaussian covers
    if not cosine:
        projection /= 16
    out = gaussian_memory_attention(queries, projection, components, cosine=cosine)
    expected = reference.gaussian_memory_attention(queries, projection, components, cosine=cosine)
    assert np.linalg.norm(out - expected) < 1e-5 * np.linalg.norm(expected)
    picture = gaussian_memory_attention(queries.reshape(2, 10, 10, 16)[:, ::-1], projection, components, cosine=cosine)
    np.testing.assert_allclose(picture[:, ::-1].reshape(200, 96), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cosine", [True, False])
def test_gradients_are_those_of_float64(cosine: bool) -> None:
    torch = pytest.importorskip("torch")
    given = [torch.from_numpy(x) for x in parts(50, 8, 40, 24)]
    weights = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    ours = [x.clone().requires_grad_() for x in given]
    (gaussian_memory_attention(*ours, temperature=0.2, cosine=cosine) * weights).sum().backward()
    exact = [x.double().requires_grad_() for x in given]
    seen, rows = exact[0] @ exact[1], exact[2]
    if cosine:
        seen = seen / (seen.norm(dim=1, keepdim=True) + 1e-6) / 0.2
        rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-6)
    ((seen @ rows.T).softmax(1) @ exact[2] * weights).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert (mine.grad - theirs.grad).norm() < 2e-5 * theirs.grad.norm()


def test_torch_operator() -> None:
    torch = pytest.importorskip("torch")
    from core_splatting.memory_ops import memory_attention, memory_attention_backward

    given = [torch.randn(shape, requires_grad=True) for shape in ((30, 8), (17, 8), (17, 20))]
    torch.library.opcheck(memory_attention, tuple(given))
    detached = [x.detach() for x in given]
    out, log_sums = memory_attention(*detached)
    for by_values in (True, False):
        torch.library.opcheck(memory_attention_backward, (*detached, out, log_sums, torch.ones_like(out), by_values))
    queries, projection, components = (torch.from_numpy(x).requires_grad_() for x in parts())
    compiled = torch.compile(gaussian_memory_attention, fullgraph=True, backend="eager")
    compiled(queries, projection, components).square().sum().backward()
    first, queries.grad = queries.grad, None
    gaussian_memory_attention(queries, projection, components).square().sum().backward()
    np.testing.assert_allclose(first, queries.grad, rtol=1e-4, atol=1e-5)
    # A pixel that no Gaussian covers gets a finite derivative.
    empty = torch.zeros(3, 16, requires_grad=True)
    gaussian_memory_attention(empty, projection.detach(), components.detach()).sum().backward()
    assert torch.isfinite(empty.grad).all()


_GROWTH = """
import resource, numpy as np
from core_splatting import gaussian_memory_attention
rng = np.random.default_rng(0)
q, w, c = (rng.normal(size=s).astype("f4") for s in ((40000, 16), (16, 8), (2000, 8)))
gaussian_memory_attention(q[:500], w, c)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gaussian_memory_attention(q, w, c)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_pixels_times_components_never_exist() -> None:
    """Their 40,000 x 2,000 weights alone would take 312,500 KiB."""
    grown = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 0.1 * 312_500


def test_components_by_hand() -> None:
    at = np.deg2rad([0, 10, 19, 90, 100, 80, 200])
    rows = np.stack([np.cos(at), np.sin(at)], 1).astype(f32) * np.arange(1, 8, dtype=f32)[:, None]
    # Within 15 degrees: 0 takes 10; 19 is near the taken 10, so it is neither; 90 takes 100 and 80; 200 is alone.
    threshold = float(np.cos(np.deg2rad(15)))
    assert principal_scene_components(rows, threshold).tolist() == [0, 3, 6]
    assert principal_scene_components(np.zeros((5, 2), f32), 0.9).tolist() == []
    equal = np.tile(np.random.default_rng(0).normal(size=(1, 300)).astype(f32), (50, 1))
    assert principal_scene_components(equal, 1.0).tolist() == [0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2000), st.integers(2, 40), st.integers(1, 30), st.floats(0.3, 0.999), st.integers(0, 99))
def test_components_are_the_references(count: int, width: int, clusters: int, threshold: float, seed: int) -> None:
    a = clustered(np.random.default_rng(seed), count, width, clusters)
    expected = np.flatnonzero(reference.principal_components(a | {"threshold": threshold})["selected"])
    np.testing.assert_array_equal(principal_scene_components(a["features"], threshold), expected)


def test_rows_of_zeros_are_never_near() -> None:
    rows = np.eye(4, dtype=f32)
    rows[1] = 0
    a = {"features": rows, "threshold": 1e-6}
    assert principal_scene_components(rows, 1e-6).tolist() == [0, 2, 3]
    assert np.flatnonzero(reference.principal_components(a)["selected"]).tolist() == [0, 2, 3]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("count", "width", "clusters", "threshold"),
    [
        (1, 3, 1, 0.9),
        (700, 33, 20, 0.9),
        (3000, 7, 30, 0.6),
        (3000, 300, 40, 0.85),
        (4000, 64, 400, 0.3),
        (5000, 768, 9, 0.97),
    ],
)  # fmt: skip
def test_cuda_components_are_the_references(count: int, width: int, clusters: int, threshold: float) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    rows = clustered(np.random.default_rng(count), count, width, clusters)["features"]
    rows[count // 2 :: 50] = rows[::50][: len(rows[count // 2 :: 50])]
    rows[5::97] = 0
    wide = torch.zeros(count, 2 * width, device="cuda")
    wide[:, ::2] = torch.from_numpy(rows)
    for t in (threshold, 1.0):
        expected = np.flatnonzero(reference.principal_components({"features": rows, "threshold": t})["selected"])
        for _ in range(2):
            found = principal_scene_components(wide[:, ::2], t)
            np.testing.assert_array_equal(found.cpu(), expected)
    wide[count - 1, 2 * (width // 2)] = float("inf")
    with pytest.raises(ValueError, match=f"row {count - 1} has not"):
        principal_scene_components(wide[:, ::2], threshold)
    with pytest.raises(ValueError, match="threshold"):
        principal_scene_components(wide, 0.0)


def test_bad_arguments() -> None:
    queries, projection, components = parts()
    for bad in ((queries, projection[:3], components), (queries, projection, components[:, :5])):
        with pytest.raises(ValueError, match="must be of shape"):
            gaussian_memory_attention(*bad)
    for t in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            gaussian_memory_attention(queries, projection, components, temperature=t)
    for rows, threshold in ((np.full((3, 2), np.nan, f32), 0.9), (np.ones((3, 2), f32), 1.5), (np.ones(3, f32), 0.9)):
        with pytest.raises(ValueError, match="principal"):
            principal_scene_components(rows, threshold)
