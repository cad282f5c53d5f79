"""Gaussians that cannot be rendered, that cover the picture, that are smaller than a pixel; none, one, many."""

import os
from typing import Any

import numpy as np
import pytest
from core_splatting import _core_splatting as _C
from core_splatting import contributions, rasterization, slice_4d
from core_splatting.cases import scene
from core_splatting.cases_dynamic import gaussians_4d
from core_splatting.reference.rasterize import covariances_of, rasterize

GAUSSIAN = ("means", "quats", "scales", "opacities")
BAD = [
    *((name, v) for name in GAUSSIAN for v in (np.nan, np.inf, -np.inf)),
    ("means", 1e30), ("means", -1e30), ("means", [0, 0, np.nan]), ("means", [np.inf, 0, 0]), ("means", [0, 0, -9]),
    ("quats", 0.0), ("quats", [np.nan, 0, 0, 1]), ("scales", 1e30), ("scales", [0.1, np.inf, 0.1]),
    ("opacities", 0.0), ("opacities", 1 / 256), ("opacities", -1.0),
]  # fmt: skip
models = pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
aliasing = pytest.mark.parametrize("mode", ["classic", "antialiased"])


def with_bad_ones(count: int = 40) -> tuple[dict[str, Any], np.ndarray]:
    """A scene, every second Gaussian of which has one value that cannot be rendered, and the indices of the others."""
    a = scene(np.random.default_rng(0), 2 * max(count, len(BAD)), 50, 34, 2, focal=40.0)
    for i, (name, value) in enumerate(BAD):
        a[name][2 * i] = value
    bad = 2 * np.arange(len(BAD))
    return a, np.delete(np.arange(len(a["means"])), bad)


@models
@aliasing
@pytest.mark.parametrize("covars", [False, True])
@pytest.mark.parametrize("render_mode", ["RGB", "RGB+ED"])
def test_they_do_not_change_the_picture_or_its_gradient(model: str, mode: str, covars: bool, render_mode: str) -> None:
    torch = pytest.importorskip("torch")
    a, good = with_bad_ones()
    with np.errstate(over="ignore"):
        world = covariances_of(a).astype(np.float32)
    coeffs = np.random.default_rng(1).normal(0, 0.3, (len(world), 9, 3)).astype(np.float32)
    found = []
    for rows in (np.arange(len(world)), good):
        arrays = [a[k][rows] for k in GAUSSIAN] + [coeffs[rows], a["viewmats"], a["Ks"]]
        leaves = [torch.from_numpy(x).requires_grad_(i < 6) for i, x in enumerate(arrays)]
        by = torch.from_numpy(world[rows]).requires_grad_() if covars else None
        if covars:
            leaves[1] = leaves[2] = None
        image, alphas, _ = rasterization(
            *leaves, 50, 34, sh_degree=2, render_mode=render_mode, rasterize_mode=mode, camera_model=model, covars=by
        )
        (image.square().sum() + alphas.sum()).backward()
        of_gaussians = [x.grad.numpy() for x in (*leaves[:5], by) if x is not None]
        found.append((image.detach().numpy(), alphas.detach().numpy(), leaves[5].grad.numpy(), of_gaussians))
    whole, without = found
    assert whole[1].mean() > 0.05
    for got, want in zip(whole[:3], without[:3], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(whole[0], without[0])
    for got, want in zip(whole[3], without[3], strict=True):
        np.testing.assert_array_equal(got[good], want)
        assert not np.delete(got, good, 0).any()


def test_they_contribute_nothing() -> None:
    a, good = with_bad_ones()
    given = [a[k] for k in (*GAUSSIAN, "viewmats", "Ks")]
    sums = contributions(*given, 50, 34)
    np.testing.assert_array_equal(sums[:, good], contributions(*(x[good] for x in given[:4]), *given[4:], 50, 34))
    assert not np.delete(sums, good, 1).any()


def test_slices_of_them_are_not_rendered() -> None:
    a = gaussians_4d(np.random.default_rng(0), 60)
    bad = [(k, v) for k in a for v in (np.nan, np.inf, -np.inf)] + [("quats_l", 0.0), ("quats_r", 0.0), ("scales", 0.0)]
    for i, (name, value) in enumerate(bad):
        a[name][2 * i] = value
    good = np.delete(np.arange(60), 2 * np.arange(len(bad)))
    cameras = scene(np.random.default_rng(0), 1, 50, 34, focal=40.0)
    colors = np.random.default_rng(1).random((60, 3), np.float32)
    pictures = []
    for rows in (np.arange(60), good):
        means, covars, opacities, _ = slice_4d(*(v[rows] for v in a.values()), 0.5)
        given = (means, None, None, opacities, colors[rows], cameras["viewmats"], cameras["Ks"], 50, 34)
        pictures.append(rasterization(*given, covars=covars)[0])
    assert pictures[0].max() > 0.05
    np.testing.assert_array_equal(*pictures)


@models
@aliasing
@pytest.mark.parametrize("size", [1e-7, 1e-3, 30.0, 1e4])
def test_smaller_than_a_pixel_and_larger_than_the_picture(model: str, mode: str, size: float) -> None:
    a = scene(np.random.default_rng(0), 25, 45, 37, 2, focal=40.0)
    a["scales"][::2] = np.float32(size)
    a["opacities"] *= 0.3
    a |= {"camera_model": model, "antialiased": mode == "antialiased"}
    _C.rasterize(*a.values())
    want = rasterize(a)
    if size > 1:
        assert (want["out_alphas"] > 0.5).all()
    for name, expected in want.items():
        difference = np.abs(a[name] - expected)
        assert difference.max() < 0.02  # a pixel on the border of a Gaussian may fall on either side
        assert difference.mean() < 1e-5


@models
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (17, 15), (33, 1)])
def test_none_and_one(model: str, count: int, width: int, height: int) -> None:
    a = scene(np.random.default_rng(0), count, width, height, 2, focal=20.0) | {"camera_model": model}
    a["means"][:], a["scales"][:] = 0, 0.3
    _C.rasterize(*a.values())
    for name, expected in rasterize(a).items():
        np.testing.assert_allclose(a[name], expected, atol=1e-5)
    assert (a["out_alphas"] > 0).any() == bool(count)


@pytest.mark.skipif(os.environ.get("CORE_TEST_ALL") != "1", reason="CORE_TEST_ALL=1 renders 10,000,000 Gaussians")
def test_ten_million() -> None:
    """All of them, then all but 5,000 transparent: the picture of those."""
    a = scene(np.random.default_rng(0), 10_000_000, 300, 200, focal=300.0)
    _C.rasterize(*a.values())
    assert np.isfinite(a["out_colors"]).all()
    assert a["out_alphas"].mean() > 0.5
    shown = np.sort(np.random.default_rng(1).choice(10_000_000, 5000, replace=False))
    a["scales"] *= 10
    few = {k: a[k][shown] for k in GAUSSIAN} | {"colors": np.ascontiguousarray(a["colors"][:, shown])}
    few |= {k: np.empty_like(a[k]) for k in ("out_colors", "out_alphas")}
    hidden = np.ones(10_000_000, bool)
    hidden[shown] = False
    a["opacities"][hidden] = 0
    b = a | few
    _C.rasterize(*a.values())
    _C.rasterize(*b.values())
    assert b["out_alphas"].mean() > 0.05
    np.testing.assert_array_equal(a["out_colors"], b["out_colors"])
    np.testing.assert_array_equal(a["out_alphas"], b["out_alphas"])
