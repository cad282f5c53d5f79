"""The rasteriser against its float64 reference, degenerate Gaussians, and the properties that any renderer has."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from core_splatting import _core_splatting as _C
from core_splatting import rasterization
from core_splatting.cases import scene
from core_splatting.reference.rasterize import rasterize
from hypothesis import given, settings
from hypothesis import strategies as st

Args = dict[str, Any]
GAUSSIAN = ("means", "quats", "scales", "opacities")


def small(seed: int = 0, N: int = 40, D: int = 3, C: int = 1) -> Args:
    return scene(np.random.default_rng(seed), N, 50, 34, C, D, focal=50.0)


def facade(a: Args, **more: Any) -> tuple[Any, Any]:
    height, width = a["out_alphas"].shape[1:]
    names = (*GAUSSIAN, "colors", "viewmats", "Ks")
    options = {k: a[k] for k in ("near_plane", "far_plane", "radius_clip", "eps2d", "backgrounds", "max_alpha")} | more
    image, alphas, _ = rasterization(*(a[k][0] if k == "colors" else a[k] for k in names), width, height, **options)
    return image, alphas


def run(a: Args) -> tuple[np.ndarray, np.ndarray]:
    _C.rasterize(*a.values())
    return a["out_colors"].copy(), a["out_alphas"].copy()


def assert_equals_reference(a: Args) -> None:
    image, alphas = run(a)
    want = rasterize(a)
    for got, expected in ((image, want["out_colors"]), (alphas, want["out_alphas"])):
        difference = np.abs(got - expected)
        assert difference.max(initial=0) < 0.02  # a pixel on the border of a Gaussian may fall on either side
        assert difference.size == 0 or difference.mean() < 1e-5


@pytest.mark.parametrize("channels", [0, 1, 3, 4, 32, 33, 70])
def test_channels_and_cameras(channels: int) -> None:
    assert_equals_reference(small(D=channels, C=3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(0, 60), size=st.floats(-4, 2), thin=st.floats(0, 4),
    opaque=st.booleans(), eps2d=st.sampled_from([0.1, 0.3, 2.0]), clip=st.sampled_from([0.0, 3.0]),
    near=st.sampled_from([0.01, 3.0]),
)  # fmt: skip
def test_random_scenes(
    seed: int, n: int, size: float, thin: float, opaque: bool, eps2d: float, clip: float, near: float
) -> None:
    a = small(seed, n)
    a["scales"] *= np.float32(10**size) * np.array([1, 10**-thin, 1], np.float32)
    if opaque:
        a["opacities"][:] = 1
    assert_equals_reference(a | {"eps2d": eps2d, "radius_clip": clip, "near_plane": near, "far_plane": near + 1.5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, v) for name in GAUSSIAN for v in (np.nan, np.inf, -np.inf)),
        ("quats", 0.0),
        ("opacities", 0.0),
        ("opacities", 1 / 256),
        ("opacities", -1.0),
        ("scales", 1e30),
    ],
)
def test_degenerate_gaussian_is_culled(name: str, value: float) -> None:
    a = small()
    a[name][7] = value
    without = {k: np.delete(v, 7, 0) if k in GAUSSIAN else v for k, v in a.items()}
    without["colors"] = np.delete(a["colors"], 7, 1)
    np.testing.assert_array_equal(run(a)[0], run(without)[0])


def test_point_gaussians_have_the_size_of_eps2d() -> None:
    a = small()
    a["scales"][:] = 0
    assert run(a)[1].max() > 0.1
    assert_equals_reference(a)
    assert run(a | {"eps2d": 0.0})[1].max() == 0


def test_behind_the_camera_and_around_it() -> None:
    a = small()
    a["means"][:20, 2] = -10
    assert_equals_reference(a)
    a["means"][:, 2] = -3 + 0.02
    a["scales"][:] = 1
    assert_equals_reference(a)


def test_order_of_the_gaussians_does_not_matter() -> None:
    a = small(N=200)
    order = np.random.default_rng(1).permutation(200)
    b = (
        a
        | {k: np.ascontiguousarray(a[k][order]) for k in GAUSSIAN}
        | {"colors": np.ascontiguousarray(a["colors"][:, order])}
    )
    for x, y in zip(run(a), run(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_colours_for_each_camera() -> None:
    a = small(C=2)
    both = np.concatenate([a["colors"], 1 - a["colors"]])
    image, _ = run(a | {"colors": both})
    first, _ = run(a)
    second, _ = run(a | {"colors": 1 - a["colors"]})
    np.testing.assert_array_equal(image, np.stack([first[0], second[1]]))


def test_background_shows_what_alpha_leaves() -> None:
    a = small()
    black, alphas = run(a | {"backgrounds": None})
    np.testing.assert_allclose(run(a)[0], black + (1 - alphas[..., None]) * a["backgrounds"][:, None, None], atol=1e-6)


def test_depth_modes() -> None:
    a = small() | {"backgrounds": None}
    image, alphas = facade(a)
    both, _ = facade(a, render_mode="RGB+D")
    depth, _ = facade(a, render_mode="D")
    expected, _ = facade(a, render_mode="ED")
    np.testing.assert_allclose(both, np.concatenate([image, depth], -1), atol=1e-6)
    covered = alphas > 0.01
    np.testing.assert_allclose((depth / alphas.clip(1e-10))[covered], expected[covered], rtol=1e-5)
    assert 1.5 < expected[covered].min() <= expected[covered].max() < 4.5
    with_ed, _ = facade(a | {"backgrounds": np.ones((1, 3), np.float32)}, render_mode="RGB+ED")
    np.testing.assert_allclose(with_ed[..., 3:][covered], expected[covered], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"near_plane": 0.0}, ValueError, "near_plane"),
        ({"far_plane": 0.001}, ValueError, "far_plane"),
        ({"eps2d": float("nan")}, ValueError, "eps2d"),
        ({"max_alpha": 1.0}, ValueError, "max_alpha"),
        ({"sh_degree": 3}, ValueError, "coefficients"),
        ({"camera_model": "ftheta"}, ValueError, "camera_model"),
        ({"rasterize_mode": "smooth"}, ValueError, "rasterize_mode"),
        ({"packed": 7}, NotImplementedError, "packed"),
        ({"covars": np.zeros((40, 3, 3), np.float32)}, ValueError, "covars"),
        ({"colour": 3}, TypeError, "colour"),
        ({"render_mode": "normal"}, ValueError, "render_mode"),
        ({"backgrounds": np.zeros((2, 3), np.float32)}, ValueError, "backgrounds"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        facade(small(), **change)


@pytest.mark.parametrize("name", ["cameras", "gaussians", "width", "height"])
def test_workspace_of_a_negative_size(name: str) -> None:
    sizes = {"cameras": 1, "gaussians": 1, "width": 1, "height": 1} | {name: -1}
    with pytest.raises(ValueError, match=f"argument '{name}'"):
        _C.rasterize_workspace(**sizes, device=-1, out=np.zeros(1, np.int64))


def test_bad_cameras() -> None:
    a = small()
    a["Ks"][0, 0, 0] = -1
    with pytest.raises(ValueError, match="focal"):
        run(a)
    a = small()
    a["viewmats"][0, 1, 3] = np.nan
    with pytest.raises(ValueError, match="viewmats"):
        run(a)


def test_only_the_float64_arrays_are_refused_by_name() -> None:
    a = small()
    with pytest.raises(TypeError, match="'scales'"):
        facade(a | {"scales": a["scales"].astype(np.float64)})


_DIGESTS = """
import hashlib, numpy as np
from core_splatting import _core_splatting as _C
from core_splatting.cases import scene_backward, weighed_pixels
h = hashlib.sha256()
for channels in (3, 33):
    a = scene_backward(np.random.default_rng(0), N=30000, W=250, H=130, C=2, D=channels, focal=250.0)
    _C.rasterize_backward(*a.values())
    for k in ("image", "alphas", *(k for k in a if k.startswith("v_"))):
        h.update(b"" if a[k] is None else a[k].tobytes())
a = weighed_pixels(np.random.default_rng(0), 30000, 250, 130, focal=250.0)
_C.contributions(*a.values())
print(h.hexdigest(), hashlib.sha256(a["out"].tobytes()).hexdigest())
"""


def test_the_number_of_threads_changes_no_bit() -> None:
    """With enough Gaussians that every stage is divided among them."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGESTS], env={**os.environ, "CORE_NUM_THREADS": n}, capture_output=True, text=True,
            check=True,
        ).stdout
        for n in ("1", "2", "5")
    }  # fmt: skip
    assert len(digests) == 1


_BESIDE_TORCH = f"""
import os, signal
import torch
torch.set_num_threads(2)
torch.ones(300, 300) @ torch.ones(300, 300)  # wakes its threads, which the operators then borrow
digests = {_DIGESTS!r}
exec(digests)
child = os.fork()  # where these threads are missing
if child == 0:
    signal.alarm(60)
    exec(digests)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_torchs_threads_change_no_bit() -> None:
    lines: set[str] = set()
    for program, counts in ((_DIGESTS, ("1",)), (_BESIDE_TORCH, ("1", "2", "3"))):
        for n in counts:
            environment = {**os.environ, "CORE_NUM_THREADS": n, "PYTHONUNBUFFERED": "1"}
            done = subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
            )
            lines.update(done.stdout.splitlines())
    assert len(lines) == 1
