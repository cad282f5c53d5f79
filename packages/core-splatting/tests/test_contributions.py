"""The sums of blending weights against pictures in which each Gaussian has a channel of its own."""

from typing import Any

import numpy as np
import pytest
from core_splatting import contributions
from core_splatting.cases import scene
from core_splatting.reference.rasterize import rasterize

NAMES = ("means", "quats", "scales", "opacities", "viewmats", "Ks")


def small() -> dict[str, Any]:
    return scene(np.random.default_rng(0), 30, 37, 29, C=2, D=30, focal=40.0)


def test_sum_of_weights() -> None:
    a = small() | {"backgrounds": None}
    a["colors"] = np.eye(30, dtype=np.float32)[None]
    weights = rasterize(a)["out_colors"]
    pixels = np.random.default_rng(1).uniform(0, 1, (2, 29, 37)).astype(np.float32)
    inputs = [a[k] for k in NAMES]
    np.testing.assert_allclose(contributions(*inputs, 37, 29), weights.sum((1, 2)), rtol=1e-4, atol=1e-2)
    ours = contributions(*inputs, 37, 29, pixels)
    np.testing.assert_allclose(ours, (weights * pixels[..., None]).sum((1, 2)), rtol=1e-4, atol=1e-2)


def test_torch_equals_numpy() -> None:
    torch = pytest.importorskip("torch")
    inputs = [small()[k] for k in NAMES]
    tensors = [torch.from_numpy(x) for x in inputs]
    np.testing.assert_array_equal(contributions(*tensors, 37, 29).numpy(), contributions(*inputs, 37, 29))
    with pytest.raises(NotImplementedError, match="means"):
        contributions(tensors[0].requires_grad_(), *tensors[1:], 37, 29)


def test_refusals() -> None:
    inputs = [small()[k] for k in NAMES]
    with pytest.raises(ValueError, match="pixels"):
        contributions(*inputs, 37, 29, np.ones((2, 37, 29), np.float32))
    with pytest.raises(ValueError, match="width"):
        contributions(*inputs, -1, 29)
    with pytest.raises(ValueError, match="eps2d"):
        contributions(*inputs, 37, 29, eps2d=-1)
