"""The gradient on the CPU where tiles are finished early, Gaussians are degenerate, and channels are many."""

from typing import Any

import numpy as np
import pytest
from core_splatting import _core_splatting as _C
from core_splatting.cases import scene
from core_splatting.reference.rasterize import rasterize, rasterize_backward

Args = dict[str, Any]
GAUSSIAN = ("means", "quats", "scales", "opacities")


def gradient(forward: Args, v_image: np.ndarray, v_alphas: np.ndarray) -> Args:
    """The operator's arguments for a scene, whose outputs are then written."""
    _C.rasterize(*forward.values())
    inputs = {k: v for k, v in forward.items() if k not in ("backgrounds", "workspace") and not k.startswith("out_")}
    out = {f"v_{k}": None if forward[k] is None else np.empty_like(forward[k]) for k in (*GAUSSIAN, "colors")}
    args = inputs | {
        "image": forward["out_colors"], "alphas": forward["out_alphas"], "v_image": v_image, "v_alphas": v_alphas,
        "workspace": None, "deterministic": False, "v_means": out["v_means"], "v_quats": out["v_quats"],
        "v_scales": out["v_scales"], "v_covars": None, "v_opacities": out["v_opacities"], "v_colors": out["v_colors"],
        "v_viewmats": np.empty_like(forward["viewmats"]),
        "v_means2d": np.empty((len(forward["viewmats"]), len(forward["means"]), 4), np.float32),
    }  # fmt: skip
    _C.rasterize_backward(*args.values())
    return args


def pixels(forward: Args, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=forward[k].shape).astype(np.float32) for k in ("out_colors", "out_alphas"))


def results(args: Args) -> Args:
    return {k: v for k, v in args.items() if k.startswith("v_") and v is not None and k not in ("v_image", "v_alphas")}


def assert_close(got: Args, want: Args, tolerance: float) -> None:
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=0, atol=tolerance * np.abs(want[name]).max(), err_msg=name)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (19, 33)])
def test_behind_opaque_gaussians(width: int, height: int) -> None:
    a = scene(np.random.default_rng(3), 70, width, height, focal=30.0) | {"backgrounds": None}
    a["scales"] *= 2 / a["scales"].mean()
    a["opacities"][:] = 0.999
    got = gradient(a, *pixels(a))
    hidden = np.argsort(a["means"][:, 2])[-20:]  # every pixel is finished long before them
    assert not got["v_colors"][0, hidden].any()
    assert np.abs(got["v_colors"]).max() > 0.1
    assert_close(results(got), rasterize_backward(got | {"image": rasterize(a)["out_colors"]}), 2e-3)


@pytest.mark.parametrize(("name", "value"), [("means", np.nan), ("scales", np.inf), ("quats", 0.0), ("opacities", 0.0)])
def test_degenerate_gaussians_have_no_gradient(name: str, value: float) -> None:
    a = scene(np.random.default_rng(4), 60, 50, 34, focal=50.0) | {"backgrounds": None}
    a[name][7] = value
    got = results(gradient(a, *pixels(a)))
    without = {k: np.delete(v, 7, 0) if k in GAUSSIAN else v for k, v in a.items()}
    without["colors"] = np.delete(a["colors"], 7, 1)
    want = results(gradient(without, *pixels(a)))
    for key, axis in (*((f"v_{k}", 0) for k in GAUSSIAN), ("v_colors", 1), ("v_means2d", 1)):
        assert not np.take(got[key], 7, axis).any(), key
        np.testing.assert_array_equal(np.delete(got[key], 7, axis), want[key], err_msg=key)


def test_more_than_a_thousand_channels() -> None:
    a = scene(np.random.default_rng(5), 30, 35, 20, D=1030, focal=40.0) | {"backgrounds": None}
    v_image, v_alphas = pixels(a)
    whole = results(gradient(a, v_image, v_alphas))
    half = []
    for part in (slice(0, 515), slice(515, 1030)):
        b = a | {"colors": np.ascontiguousarray(a["colors"][..., part])}
        b["out_colors"] = np.empty((1, 20, 35, 515), np.float32)
        half.append(results(gradient(b, np.ascontiguousarray(v_image[..., part]), v_alphas / 2)))
    np.testing.assert_array_equal(whole["v_colors"], np.concatenate([h["v_colors"] for h in half], -1))
    names = ("v_means", "v_quats", "v_scales", "v_opacities", "v_viewmats")
    assert_close({k: whole[k] for k in names}, {k: half[0][k] + half[1][k] for k in names}, 1e-4)
