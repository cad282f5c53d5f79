"""torch.autograd.gradcheck of the differentiable operators where nothing is cut off: there differences are slopes."""

from typing import Any

import numpy as np
import pytest
from core_splatting.reference.rasterize import covariances_of

torch = pytest.importorskip("torch")
from core_splatting.memory_ops import memory_attention  # noqa: E402
from core_splatting.ssim import ssim  # noqa: E402
from core_splatting.torch_ops import rasterize, rasterize_4d, slice_4d  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Input #:UserWarning")  # the operators are float32


def check(call: Any, inputs: list[Any], atol: float) -> None:
    leaves = [torch.from_numpy(np.ascontiguousarray(x, np.float32)).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(call, leaves, eps=2e-3, atol=atol, rtol=1e-2)


@pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("by_covars", [False, True])
def test_rasterize(model: str, antialiased: bool, by_covars: bool) -> None:
    """Three Gaussians far larger than the picture, half transparent: no pixel lies at a rim or is finished."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-0.3, 0.3, (3, 3)) * [1, 1, 0.2] + [[0, 0, -0.4], [0, 0, 0], [0, 0, 0.4]]
    quats, scales = rng.normal(size=(3, 4)), rng.uniform(0.6, 1.2, (3, 3))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    world = covariances_of({"quats": quats, "scales": scales, "covars": None})[
        :, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
    ]
    view = np.eye(4)[None].repeat(2, 0)
    view[:, 2, 3], view[1, 0, 3] = 3, 0.2
    shape = [world] if by_covars else [quats, scales]
    others = [rng.uniform(0.3, 0.6, 3), rng.uniform(size=(1, 3, 2)), view, rng.uniform(size=(2, 2))]
    Ks = torch.tensor([[8.0, 0, 3.5], [0, 8, 2.5], [0, 0, 1]]).repeat(2, 1, 1)

    def call(means: Any, *given: Any) -> Any:
        *spread, opacities, colors, viewmats, backgrounds = given
        quats, scales, covars = (None, None, *spread) if by_covars else (*spread, None)
        gaussians = (means, quats, scales, covars, opacities, colors)
        options = (7, 5, 0.01, 1e10, 0.0, 0.3, 0.999, antialiased, model, 1, False, True)
        return rasterize(*gaussians, viewmats, Ks, backgrounds, None, *options)[:2]

    check(call, [means, *shape, *others], 3e-3)


def test_slice_4d() -> None:
    rng = np.random.default_rng(0)
    quats = np.array([1, 0, 0, 0]) + rng.normal(0, 0.1, (2, 4, 4))
    means = np.concatenate([rng.uniform(-1, 1, (4, 3)), rng.uniform(0.4, 0.6, (4, 1))], 1)
    inputs = [means, rng.uniform(0.3, 0.8, (4, 4)), quats[0], quats[1], rng.uniform(0.3, 0.9, 4)]
    check(lambda *x: slice_4d(*x, None, 0.5, 0.05, 0.01)[:3], inputs, 2e-3)


@pytest.mark.parametrize("harmonics", [False, True])
@pytest.mark.parametrize("depth", [False, True])
def test_rasterize_4d(harmonics: bool, depth: bool) -> None:
    """As `test_rasterize`: three Gaussians far larger than the picture, which are there for longer than the video."""
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.uniform(-0.3, 0.3, (3, 3)), rng.uniform(0.4, 0.6, (3, 1))], 1)
    means[:, 2] += [-0.5, 0, 0.5]
    quats = np.array([1, 0, 0, 0]) + rng.normal(0, 0.1, (2, 3, 4))
    looks = rng.normal(0, 0.1, (3, 20, 2)) if harmonics else rng.uniform(size=(1, 3, 2))
    view = np.eye(4)[None].repeat(2, 0)
    view[:, 2, 3], view[1, 0, 3] = 3, 0.2
    Ks = torch.tensor([[8.0, 0, 3.5], [0, 8, 2.5], [0, 0, 1]]).repeat(2, 1, 1)
    inputs = [means, rng.uniform(0.7, 1.2, (3, 4)), quats[0], quats[1], rng.uniform(0.3, 0.6, 3), looks, view]

    def call(*given: Any) -> Any:
        looks = (None, given[5], 1, 1, 1.5) if harmonics else (given[5], None, 0, 0, 1.0)
        options = (7, 5, 0.01, 1e10, 0.0, 0.3, 0.999, False, "pinhole", False, True)
        return rasterize_4d(*given[:5], None, 0.5, 0.05, 0.01, *looks, depth, given[6], Ks, None, None, *options)[:2]

    check(call, inputs, 3e-3)


def test_memory_attention() -> None:
    rng = np.random.default_rng(0)
    check(lambda *x: memory_attention(*x)[0], [rng.normal(size=s) for s in ((5, 3), (6, 3), (6, 4))], 2e-3)


def test_ssim() -> None:
    image, target = np.random.default_rng(0).uniform(size=(2, 1, 2, 6, 5))
    given = torch.from_numpy(target.astype(np.float32))
    check(lambda x: ssim(x, given), [image], 3e-3)
