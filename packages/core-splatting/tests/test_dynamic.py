"""4D Gaussians: slices in the renderer, gradients, the variation score, pruning and the key-frame filter."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from core_splatting import (
    KeyFrameFilter,
    colors_by_view,
    contributions,
    keep_best,
    rasterization,
    rasterization_4d,
    slice_4d,
    variation_scores,
)
from core_splatting.cases import scene
from core_splatting.cases_dynamic import gaussians_4d
from core_splatting.reference import dynamic as reference

SIZE = (60, 44)


def cameras(count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    viewmats = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    viewmats[:, 0, 3] = np.linspace(-0.3, 0.3, count)
    viewmats[:, 2, 3] = 3
    Ks = np.tile(np.array([[60, 0, 30], [0, 60, 22], [0, 0, 1]], np.float32), (count, 1, 1))
    return viewmats, Ks


def gaussians(count: int = 300, seed: int = 0) -> dict[str, Any]:
    a = gaussians_4d(np.random.default_rng(seed), count)
    a["scales"][:, 3] *= 0.5  # about a quarter is there at a time
    return a


def test_time_axis_alone_is_a_normal_distribution() -> None:
    """Without rotation, space and time are independent."""
    a = gaussians(20)
    a["quats_l"][:] = a["quats_r"][:] = [1, 0, 0, 0]
    means, covars, opacities, weights = slice_4d(*a.values(), 0.5)
    expected = np.exp(-((0.5 - a["means"][:, 3]) ** 2) / (2 * a["scales"][:, 3] ** 2))
    kept = expected > 0.05
    assert 0 < kept.sum() < 20
    np.testing.assert_allclose(weights, np.where(kept, expected, 0), rtol=1e-5)
    np.testing.assert_allclose(means[kept], a["means"][kept, :3], rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(covars, axis1=1, axis2=2)[kept], a["scales"][kept, :3] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(opacities == 0, ~kept)


def test_rendering_equals_its_parts() -> None:
    a, (viewmats, Ks) = gaussians(), cameras()
    coeffs = np.random.default_rng(1).normal(0, 0.3, (300, 48, 3)).astype(np.float32)
    image, _, _ = rasterization_4d(
        *a.values(), coeffs, viewmats, Ks, *SIZE, 0.4, sh_degree=3, time_degree=2, duration=2.0
    )
    s = reference.slice_4d(a | {"indices": None, "time": 0.4, "min_weight": 0.05, "prefilter_var": 0.0})
    means, covars = s["out_means"].astype(np.float32), s["out_covars"].astype(np.float32)
    colors = colors_by_view(3, means, viewmats, coeffs, 2, (a["means"][:, 3] - np.float32(0.4)) / 2)
    expected, _, _ = rasterization(
        means, None, None, s["out_opacities"].astype(np.float32), colors, viewmats, Ks, *SIZE,
        covars=covars[:, [[0, 1, 2], [1, 3, 4], [2, 4, 5]]],
    )  # fmt: skip
    assert image.max() > 0.3
    assert np.abs(image - expected).max() < 5e-3


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def torch_on(device: str) -> Any:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch


def in_parts(a: dict[str, Any], looks: Any, views: tuple[Any, Any], indices: Any = None, **options: Any) -> Any:
    """`rasterization_4d` at 0.4 by an operator for each of its steps."""
    means, covars, opacities, _ = slice_4d(*a.values(), 0.4, indices)
    rows = slice(None) if indices is None else indices
    colors = looks[rows]
    if looks.ndim == 3:
        colors = colors_by_view(3, means, views[0], colors, 2, (a["means"][rows, 3] - 0.4) / 1.7)
    return rasterization(means, None, None, opacities, colors, *views, *SIZE, covars=covars, **options)


def whole(a: dict[str, Any], looks: Any, views: tuple[Any, Any], indices: Any = None, **options: Any) -> Any:
    degrees = {"sh_degree": 3, "time_degree": 2, "duration": 1.7} if looks.ndim == 3 else {}
    return rasterization_4d(*a.values(), looks, *views, *SIZE, 0.4, indices=indices, **degrees, **options)


@pytest.mark.parametrize("device", ["numpy", *DEVICES])
@pytest.mark.parametrize("harmonics", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_one_operator_renders_what_its_parts_do(device: str, harmonics: bool, chosen: bool) -> None:
    a, views = gaussians(), cameras(3)
    rng = np.random.default_rng(1)
    looks = rng.normal(0, 0.3, (300, 48, 3)).astype(np.float32) if harmonics else rng.random((300, 5), np.float32)
    indices = np.flatnonzero(rng.random(300) < 0.6) if chosen else None
    behind = rng.random((3, looks.shape[-1]), np.float32)
    if device != "numpy":
        torch = torch_on(device)
        a = {k: torch.from_numpy(v).to(device) for k, v in a.items()}
        views = tuple(torch.from_numpy(v).to(device) for v in views)
        looks, behind = (torch.from_numpy(v).to(device) for v in (looks, behind))
        indices = None if indices is None else torch.from_numpy(indices).to(device)
    for options in (
        {}, {"backgrounds": behind, "rasterize_mode": "antialiased", "camera_model": "fisheye", "eps2d": 0.1},
        {"near_plane": 2.3, "far_plane": 3.7, "radius_clip": 1.0, "camera_model": "ortho", "max_alpha": 0.5},
        {"render_mode": "RGB+D", "backgrounds": behind}, {"render_mode": "RGB+ED"}, {"render_mode": "D"},
        {"render_mode": "ED", "camera_model": "fisheye"},
    ):  # fmt: skip
        got, want = (f(a, looks, views, indices, **options) for f in (whole, in_parts))
        assert got[0].max() > 0.1
        for ours, parts in zip(got[:2], want[:2], strict=True):
            if device == "cuda":  # rounds a slice by kernel; five channels are products of bfloat16
                assert (ours - parts).abs().max() < (5e-4 if "render_mode" in options else 1e-5)
            elif "render_mode" in options:  # a depth is summed in another order
                np.testing.assert_allclose(ours, parts, rtol=2e-6, atol=2e-6)
            else:
                np.testing.assert_array_equal(ours, parts)
        assert {k: v for k, v in got[2].items() if k != "indices"} == want[2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("harmonics", [False, True])
@pytest.mark.parametrize(("chosen", "mode"), [(False, "RGB"), (True, "RGB"), (True, "RGB+D"), (False, "RGB+ED")])
def test_one_operator_differentiates_what_its_parts_do(device: str, harmonics: bool, chosen: bool, mode: str) -> None:
    """By every input, with the centres' derivatives and their absolute values, to the rounding of float32."""
    torch = torch_on(device)
    rng, views = np.random.default_rng(1), cameras(3)
    looks = rng.normal(0, 0.3, (300, 48, 3)).astype(np.float32) if harmonics else rng.random((300, 5), np.float32)
    indices = torch.from_numpy(np.flatnonzero(rng.random(300) < 0.6)).to(device) if chosen else None
    behind = rng.random((3, looks.shape[-1]), np.float32)
    given, results = (*gaussians().values(), looks, views[0], behind), []
    channels = looks.shape[-1] + (mode != "RGB")
    weights = torch.from_numpy(rng.normal(size=(3, SIZE[1], SIZE[0], channels)).astype(np.float32)).to(device)
    for render in (whole, in_parts):
        x = [torch.from_numpy(v).to(device).requires_grad_() for v in given]
        a = dict(zip(gaussians(1), x, strict=False))
        options = {"backgrounds": x[7], "rasterize_mode": "antialiased", "meta": True, "absgrad": True}
        options["render_mode"] = mode
        image, alphas, meta = render(a, x[5], (x[6], torch.from_numpy(views[1]).to(device)), indices, **options)
        ((image * weights).sum() + alphas.square().sum()).backward()
        arrays = [v.detach() for v in meta.values() if torch.is_tensor(v) and v is not indices]
        results.append(
            ([image.detach(), *arrays], [*(t.grad for t in x), meta["means2d"].grad, meta["means2d"].absgrad])
        )
    for ours, parts in zip(*(r[0] for r in results), strict=True):
        torch.testing.assert_close(ours, parts, rtol=0, atol=1e-6 if device == "cuda" else 0)
    for ours, parts in zip(*(r[1] for r in results), strict=True):
        assert parts.norm() > 0
        assert (ours - parts).norm() < (1e-3 if device == "cuda" else 2e-5) * parts.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("render", ["whole", "in parts"])
def test_gradients_of_a_frame_are_the_same_on_every_run(device: str, render: str) -> None:
    """Those by cameras too, which get some from the harmonics."""
    torch = torch_on(device)
    a, (viewmats, Ks) = gaussians(3000), cameras()
    coeffs = np.random.default_rng(1).normal(0, 0.3, (3000, 48, 3)).astype(np.float32)
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            x = [torch.from_numpy(v).to(device).requires_grad_() for v in (*a.values(), coeffs, viewmats)]
            given = dict(zip(a, x, strict=False))
            views = (x[6], torch.from_numpy(Ks).to(device))
            image = (whole if render == "whole" else in_parts)(given, x[5], views)[0]
            image.square().sum().backward()
            runs.append([t.grad for t in x])
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 80])
def test_what_is_not_there_is_not_rendered(device: str, count: int) -> None:
    """None, one, all of them too far in time, and each with a NaN or an infinity somewhere."""
    torch = torch_on(device)
    a = {k: torch.from_numpy(v).to(device) for k, v in gaussians(count).items()}
    views = tuple(torch.from_numpy(v).to(device) for v in cameras())
    coeffs = torch.full((count, 48, 3), 0.3, device=device)
    a["means"][:, :3], a["means"][:, 3], a["scales"][:, :3] = 0, 0.4, 0.3
    assert (whole(a, coeffs, views)[1].max() > 0.1) == bool(count)
    bad = [a | {"means": a["means"] + torch.tensor([0, 0, 0, 50.0], device=device)}, a | {"scales": a["scales"] * 0}]
    for k, v in a.items():
        bad += [a | {k: v * x} for x in (float("nan"), float("inf"))]
    bad += [a | {"quats_l": a["quats_l"] * 0}, a | {"opacities": a["opacities"] * 0}]
    for given in bad:
        leaves = {k: v.clone().requires_grad_() for k, v in given.items()}
        image, alphas, _ = whole(leaves, coeffs, views)
        assert (image == 0).all()
        assert (alphas == 0).all()
        (image.sum() + alphas.sum()).backward()
        assert all((x.grad == 0).all() for x in leaves.values())


def test_bad_arguments_of_a_frame_are_named() -> None:
    a, views = gaussians(10), cameras()
    coeffs = np.zeros((10, 48, 3), np.float32)
    wrong: list[tuple[str, Any, dict[str, Any]]] = [
        ("indices", coeffs, {"indices": [3, 3]}), ("min_weight", coeffs, {"min_weight": 1.0}),
        ("coeffs", coeffs[:, :47], {}), ("coeffs", coeffs[:9], {}), ("eps2d", coeffs, {"eps2d": -1.0}),
        ("rasterize_mode", coeffs, {"rasterize_mode": "no"}), ("camera_model", coeffs, {"camera_model": "no"}),
        ("backgrounds", coeffs, {"backgrounds": np.zeros((2, 4), np.float32)}),
        ("backgrounds", coeffs, {"backgrounds": np.zeros((2, 3), np.float32), "render_mode": "D"}),
        ("backgrounds", coeffs, {"backgrounds": np.zeros((2, 4), np.float32), "render_mode": "RGB+D"}),
        ("render_mode", coeffs, {"render_mode": "no"}),
    ]  # fmt: skip
    for name, looks, options in wrong:
        with pytest.raises(ValueError, match=name):
            whole(a, looks, views, **options)
    with pytest.raises(ValueError, match="duration"):
        rasterization_4d(*a.values(), coeffs, *views, *SIZE, 0.4, sh_degree=3, time_degree=2, duration=0.0)
    with pytest.raises(ValueError, match="colors"):
        rasterization_4d(*a.values(), np.zeros((9, 3), np.float32), *views, *SIZE, 0.4)
    with pytest.raises(ValueError, match="width"):
        rasterization_4d(*a.values(), coeffs[:, 0], *views, -1, 5, 0.4)
    with pytest.raises(TypeError, match="packing"):
        whole(a, coeffs, views, packing=True)


def test_filter_changes_nothing_at_key_frames_and_little_between() -> None:
    a, (viewmats, Ks) = gaussians(), cameras()
    colors = np.random.default_rng(1).random((300, 3), np.float32)
    times = np.linspace(0, 1, 11)
    filter_ = KeyFrameFilter.from_views(*a.values(), [(t, viewmats, Ks, *SIZE) for t in times])
    shares = []
    for time in np.linspace(0, 1, 21):
        chosen = filter_.indices(time)
        shares.append(len(chosen) / 300)
        whole, part = (
            rasterization_4d(*a.values(), colors, viewmats, Ks, *SIZE, float(time), indices=i)[0]
            for i in (None, chosen)
        )
        if np.isclose(times, time).any():
            assert np.abs(whole - part).max() <= 1 / 255
        else:
            assert 10 * np.log10(1 / max(np.mean((whole - part) ** 2), 1e-12)) > 40
    assert max(shares) < 0.7
    assert filter_.masks.nbytes == 11 * 38


def test_filter_is_the_union_of_two_key_frames() -> None:
    masks = np.packbits(np.eye(3, 9, dtype=bool), axis=1, bitorder="little")
    filter_ = KeyFrameFilter([0.0, 1.0, 2.0], masks, 9)
    for time, want in ((-1, [0]), (0, [0]), (0.5, [0, 1]), (1, [1]), (1.9, [1, 2]), (7, [2])):
        assert filter_.indices(time).tolist() == want
    with pytest.raises(ValueError, match="rise"):
        KeyFrameFilter([1.0, 0.0, 2.0], masks, 9)
    with pytest.raises(ValueError, match="masks"):
        KeyFrameFilter([0.0, 1.0], masks, 9)


def test_variation_score_is_its_formula() -> None:
    a, (viewmats, Ks) = gaussians(60), cameras()
    times = [0.2, 0.5, 0.8]
    scores = variation_scores(*a.values(), [(t, viewmats, Ks, *SIZE) for t in times])
    spatial = np.zeros(60)
    for t in times:
        means, covars, opacities, _ = slice_4d(*a.values(), t)
        spatial += contributions(means, None, None, opacities, viewmats, Ks, *SIZE, covars=covars).sum(0)
    temporal = reference.temporal_variation(a | {"times": np.array(times)})["out"]
    volumes = a["scales"].astype(np.float64).prod(-1)
    limit = np.sort(volumes)[int(0.9 * 59)]
    np.testing.assert_allclose(scores, spatial * temporal * np.clip(volumes / limit, 0, 1) ** 0.1, rtol=1e-3)
    assert (temporal >= 3).all()
    assert (temporal <= 6).all()
    kept = keep_best(scores, 0.8)
    assert len(kept) == 12
    assert scores[kept].min() >= np.delete(scores, kept).max()
    with pytest.raises(ValueError, match="prune"):
        keep_best(scores, 1.5)
    with pytest.raises(ValueError, match="views"):
        variation_scores(*a.values(), [])


def test_indices_are_checked() -> None:
    a = gaussians(10)
    for bad in ([3, 3], [4, 2], [-1, 2], [2, 10]):
        with pytest.raises(ValueError, match="indices"):
            slice_4d(*a.values(), 0.5, bad)
    with pytest.raises(ValueError, match="min_weight"):
        slice_4d(*a.values(), 0.5, min_weight=1.0)
    assert slice_4d(*a.values(), 0.5, np.array([], np.int64))[0].shape == (0, 3)


def test_torch_gradients_of_a_frame() -> None:
    torch = pytest.importorskip("torch")
    from core_splatting.torch_ops import slice_4d as op

    a, (viewmats, Ks) = gaussians(80), cameras()
    x = [torch.from_numpy(v).requires_grad_() for v in a.values()]
    coeffs = (torch.randn(80, 48, 3, generator=torch.Generator().manual_seed(0)) * 0.3).requires_grad_()
    chosen = torch.arange(0, 80, 2)

    def loss(*given: Any) -> Any:
        image = rasterization_4d(
            *given, torch.from_numpy(viewmats), torch.from_numpy(Ks), *SIZE, 0.5, indices=chosen, sh_degree=3,
            time_degree=2,
        )[0]  # fmt: skip
        return image.square().sum()

    loss(*x, coeffs).backward()
    for t in (*x, coeffs):
        assert torch.isfinite(t.grad).all()
        assert (t.grad[::2] != 0).any()
        assert (t.grad[1::2] == 0).all()
    y = [t.detach().clone().requires_grad_() for t in (*x, coeffs)]
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*y).backward()
    for one, other in zip((*x, coeffs), y, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.library.opcheck(op, (*x, chosen, 0.5, 0.05, 0.01))
    with torch.no_grad():
        assert loss(*x, coeffs) == torch.compile(loss, fullgraph=True, backend="aot_eager")(*x, coeffs)


def test_opcheck_of_a_frame() -> None:
    torch = pytest.importorskip("torch")
    from core_splatting.torch_ops import rasterize_4d, rasterize_4d_backward

    a, views = gaussians(40), [torch.from_numpy(v) for v in cameras()]
    options = (0.01, 1e10, 0.0, 0.3, 0.99, False, "pinhole")
    coeffs, colors = torch.full((40, 48, 3), 0.1), torch.full((1, 20, 3), 0.4)
    for looks, depth in product(((None, coeffs, 3, 2, 1.0), (colors, None, 0, 0, 1.0)), (False, True)):
        for keep in (False, True):
            x = [torch.from_numpy(v).requires_grad_(keep) for v in a.values()]
            given = (*x, torch.arange(0, 40, 2), 0.5, 0.05, 0.0, *looks, depth, *views)
            means2d = torch.zeros(2, 20, 2, requires_grad=True) if keep else None
            frame = (*given, None, means2d, *SIZE, *options, False, keep)
            torch.library.opcheck(rasterize_4d, frame)
        image, alphas, seen, _ = (t.detach() for t in rasterize_4d(*frame))
        colors_there = seen if looks[0] is None or depth else looks[0]
        derived = (image, alphas, torch.ones_like(image), None, None, False, True, 4)
        detached = [t.detach() for t in x]
        torch.library.opcheck(
            rasterize_4d_backward, (*detached, *given[5:9], colors_there, *looks[1:], depth, *views, *options, *derived)
        )


def test_cuda_equals_cpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    a, (viewmats, Ks) = gaussians(2000), cameras()
    coeffs = np.random.default_rng(1).normal(0, 0.3, (2000, 48, 3)).astype(np.float32)
    views = [(0.3, viewmats, Ks, *SIZE), (0.6, viewmats, Ks, *SIZE)]
    there = [(t, torch.from_numpy(v).cuda(), torch.from_numpy(k).cuda(), w, h) for t, v, k, w, h in views]
    on_cuda = [torch.from_numpy(v).cuda() for v in a.values()]
    scores = variation_scores(*on_cuda, there).cpu().numpy()
    np.testing.assert_allclose(scores, variation_scores(*a.values(), views), rtol=1e-2, atol=1e-2)
    masks = KeyFrameFilter.from_views(*on_cuda, there).masks
    differing = np.unpackbits(masks ^ KeyFrameFilter.from_views(*a.values(), views).masks).sum()
    assert differing <= 2  # a box that touches the border in one and not in the other
    gradients = []
    for device in ("cuda", "cpu"):
        x = [torch.from_numpy(v).to(device).requires_grad_() for v in (*a.values(), coeffs)]
        v, k = (torch.from_numpy(c).to(device) for c in (viewmats, Ks))
        chosen = torch.arange(0, 2000, 2, device=device)
        rasterization_4d(*x, v, k, *SIZE, 0.5, indices=chosen, sh_degree=3, time_degree=2)[0].square().sum().backward()
        gradients.append([t.grad.cpu() for t in x])
    for got, want in zip(*gradients, strict=True):
        assert (got - want).norm() < 1e-3 * want.norm()


def test_covariances_are_matrices_or_their_upper_triangles() -> None:
    a = scene(np.random.default_rng(0), 50, 40, 30, focal=40.0)
    factors = np.random.default_rng(1).normal(0, 0.05, (50, 3, 3)).astype(np.float32)
    covars = factors @ factors.swapaxes(1, 2)
    given = (a["means"], None, None, a["opacities"], a["colors"][0], a["viewmats"], a["Ks"], 40, 30)
    image = rasterization(*given, covars=covars)[0]
    assert image.max() > 0.1
    packed = covars[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_array_equal(rasterization(*given, covars=packed)[0], image)
    with pytest.raises(ValueError, match=r"'covars' must be of shape \(..., N, 3, 3\) or \(..., N, 6\), got \(50, 9\)"):
        rasterization(*given, covars=covars.reshape(50, 9))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": -1}, "argument 'width' and 'height' must not be negative, got -1 and 5"),
        ({"rasterize_mode": "x"}, "argument 'rasterize_mode' must be classic or antialiased, got 'x'"),
        ({"camera_model": "x"}, "argument 'camera_model'"),
    ],
)
def test_a_picture_that_there_is_not_is_refused(changed: dict[str, Any], message: str) -> None:
    a, (viewmats, Ks) = gaussians(3), cameras()
    options = {"width": 4, "height": 5, "time": 0.4} | changed
    with pytest.raises(ValueError, match=message):
        rasterization_4d(*a.values(), np.ones((3, 3), np.float32), viewmats, Ks, **options)
